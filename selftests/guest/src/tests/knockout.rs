// SPDX-License-Identifier: GPL-2.0

//! Each safety step is there for a reason: without it, the test of its invariant must fail.

use std::fs::File;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{bail, Result};

use super::common::{Pinned, MIB};
use crate::context::Context;
use crate::device::{write_until, Kind};
use crate::diag;
use crate::disk;
use crate::layer::Layer;
use crate::ledger::Switch;
use crate::tap::Test;

pub const TESTS: &[Test] = &[
    Test::new("knockout.keep_dirty", keep_dirty),
    Test::new("knockout.copy", copy)
        .on(Layer::Integrity)
        .timeout(400),
];

/// I1: a folio that is clean while it is pinned loses what the device writes next.
fn keep_dirty(context: &Context) -> Result<()> {
    let lost = {
        let _switch = Switch::knock_out("no_keep_dirty")?;
        rounds(context, "without")?
    };
    diag!("without keep-dirty, sectors lost in each round: {lost:?}");
    let kept = rounds(context, "with")?;
    diag!("with keep-dirty: {kept:?}");
    if kept.iter().any(|sectors| *sectors > 0) {
        bail!("data was lost with keep-dirty on");
    }
    if lost[0] > 0 {
        bail!("the first round was dirty by itself, and was lost");
    }
    if lost[1..].iter().all(|sectors| *sectors == 0) {
        bail!("nothing was lost with keep-dirty off: the test can't fail");
    }
    Ok(())
}

/// Sectors that are not on the disk after fsync, for each round.
fn rounds(context: &Context, name: &str) -> Result<Vec<usize>> {
    let mut pinned = Pinned::sparse(context, Kind::Uring, name, 2 * MIB)?;
    (1..=3)
        .map(|round| {
            pinned.write(round)?;
            pinned.file.sync_all()?;
            let stamp = pinned.stamp.round(round);
            let expected = stamp.bytes(0, 2 * MIB as usize);
            context.mismatches(&pinned.file, pinned.range.clone(), &expected, stamp)
        })
        .collect()
}

/// I2: a page that changes while it is hashed and written fails its checksum.
fn copy(context: &Context) -> Result<()> {
    let torn = {
        let _switch = Switch::knock_out("no_copy")?;
        torn_blocks(context, "without", true)?
    };
    diag!("without the copy: {torn} blocks or more fail their checksum");
    let sound = torn_blocks(context, "with", false)?;
    diag!("with the copy: {sound} blocks fail their checksum");
    if sound > 0 {
        bail!("{sound} torn blocks with the copy on");
    }
    if torn == 0 {
        bail!("no torn block with the copy off: the test can't fail");
    }
    Ok(())
}

const TORN_ROUNDS: u32 = 8;
const ENOUGH: usize = 8;

/// Blocks whose checksum is wrong, summed over some fsyncs of a file that a device never stops writing.
/// The device is asked to tear, so the first round that does may be the last.
fn torn_blocks(context: &Context, name: &str, until_found: bool) -> Result<usize> {
    let mut pinned = Pinned::sparse(context, Kind::Uring, name, 4 * MIB)?;
    // Blocks get their places now, so that each round's can be found while the next is written.
    pinned.write(0)?;
    pinned.file.sync_all()?;
    let places = disk::locate(&pinned.file, pinned.range.clone())?;
    let stop = AtomicBool::new(false);
    let (device, stamp) = (&mut *pinned.device, pinned.stamp);
    let (range, file): (_, &File) = (pinned.range.clone(), &pinned.file);
    let torn = thread::scope(|scope| {
        let writer = scope.spawn(|| write_until(device, &stop, stamp, range));
        let mut torn = 0;
        let mut result = Ok(());
        for _ in 0..TORN_ROUNDS {
            result = file
                .sync_all()
                .map_err(Into::into)
                .and_then(|()| bad_blocks(context, &places))
                .map(|bad| torn += bad);
            if result.is_err() || until_found && torn > 0 {
                break;
            }
        }
        stop.store(true, Ordering::Release);
        match writer.join() {
            Ok(last) => last?,
            Err(_) => bail!("the writer panicked"),
        };
        result.map(|()| torn)
    })?;
    // The last fsync of quiet pages leaves good checksums behind.
    pinned.file.sync_all()?;
    match bad_blocks(context, &places)? {
        0 => Ok(torn),
        bad => bail!("{bad} blocks fail their checksum though nothing wrote meanwhile"),
    }
}

fn bad_blocks(context: &Context, places: &[Range<u64>]) -> Result<usize> {
    const STEP: u64 = 128 << 10;
    const BLOCK: u64 = 4 << 10;
    let disk = context.raw()?;
    let mut bad = 0;
    for place in places {
        for start in place.clone().step_by(STEP as usize) {
            let stretch = start..place.end.min(start + STEP);
            if is_sound(disk, stretch.clone())? {
                continue;
            }
            for block in stretch.clone().step_by(BLOCK as usize) {
                if !is_sound(disk, block..stretch.end.min(block + BLOCK))? {
                    bad += 1;
                }
                // The kernel logs each; a few will do.
                if bad >= ENOUGH {
                    return Ok(bad);
                }
            }
        }
    }
    Ok(bad)
}

fn is_sound(disk: &disk::RawDisk, range: Range<u64>) -> Result<bool> {
    match disk.read(range) {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EILSEQ | libc::EIO)) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
