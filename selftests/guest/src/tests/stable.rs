// SPDX-License-Identifier: GPL-2.0

//! What reaches the block layer doesn't change under it: checksums, parity and protection information agree
//! with the data, though a device never stops writing.

use std::ops::Range;

use anyhow::{bail, Context as _, Result};

use super::common::{Pinned, MIB};
use crate::context::Context;
use crate::device::{while_writing, Kind};
use crate::disk;
use crate::kmsg;
use crate::layer::{parity_mismatches, Layer};
use crate::ledger;
use crate::tap::Invariant::I2;
use crate::tap::Test;

pub const TESTS: &[Test] = &[
    Test::new("stable.integrity", integrity)
        .on(Layer::Integrity)
        .proves(&[I2])
        // btrfs has moved on to other blocks by the time the torn ones could be read.
        .without_on("ext4 xfs", "no_copy")
        .timeout(400),
    // Without the copy this fails on a busy machine only: the array sends data right after it has
    // computed their parity.
    Test::new("stable.raid5", raid5)
        .on(Layer::Raid5)
        .once()
        .proves(&[I2]),
    Test::new("stable.protection", protection)
        .on(Layer::Protection)
        .once()
        .proves(&[I2])
        .without("no_copy"),
];

const ROUNDS: u32 = 6;
const ENOUGH: usize = 8;

/// Calls `check` after each of some fsyncs of a file that a device never stops writing, and once more
/// when it has stopped. It gets the places of the file on the disk.
fn under_fire(context: &Context, check: impl Fn(&[Range<u64>]) -> Result<()>) -> Result<()> {
    let mut pinned = Pinned::sparse(context, Kind::Uring, "file", 4 * MIB)?;
    // Blocks get their places now, so that each round's can be found while the next is written.
    pinned.write(0)?;
    pinned.file.sync_all()?;
    let places = disk::locate(&pinned.file, pinned.range.clone())?;
    let (range, file) = (pinned.range.clone(), &pinned.file);
    let ((), last) = while_writing(&mut *pinned.device, pinned.stamp, range, || {
        (1..=ROUNDS).try_for_each(|round| {
            file.sync_all()
                .map_err(Into::into)
                .and_then(|()| check(&places))
                .with_context(|| format!("fsync {round}"))
        })
    })?;
    pinned.file.sync_all()?;
    check(&places).context("after the last write")?;
    pinned.expect_on_disk(context, last)
}

/// A page that changes while it is hashed and written fails its checksum.
fn integrity(context: &Context) -> Result<()> {
    under_fire(context, |places| expect_sound(context, places))
}

/// A page that changes while parity is computed and it is written doesn't match its stripe.
fn raid5(context: &Context) -> Result<()> {
    under_fire(context, |_| match parity_mismatches()? {
        0 => Ok(()),
        sectors => bail!("the parity of {sectors} sectors is wrong"),
    })
}

/// A page that changes after its guard tag was computed is refused by the disk, or can't be read back.
fn protection(context: &Context) -> Result<()> {
    let _permit = ledger::is_knocked_out("no_copy")
        .then(|| kmsg::permit("Buffer I/O error|I/O error, dev|protection error, dev"));
    under_fire(context, |places| expect_sound(context, places))
}

fn expect_sound(context: &Context, places: &[Range<u64>]) -> Result<()> {
    match bad_blocks(context, places)? {
        0 => Ok(()),
        bad => bail!("{bad} blocks or more fail their checksum"),
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
