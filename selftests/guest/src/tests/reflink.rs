// SPDX-License-Identifier: GPL-2.0

//! Blocks that two files share: a device that writes to one of the files must not change the other.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::process::Command;

use anyhow::{bail, Context as _, Result};

use super::common::{fallocate, file_range, while_syncing, Pinned, KIB, MIB};
use super::errors::{expect_kept, expect_sync_fails, fill, release};
use crate::context::{expect_contents, Context};
use crate::device::{while_writing, Kind};
use crate::diag;
use crate::fs::{clone_file, run, sync, while_frozen};
use crate::ledger::Switch;
use crate::stamp::Stamp;
use crate::tap::{Invariant, Test};

use Invariant::{I1, I3, I4, I6};

/// A test that clones, which a filesystem may have been made not to do.
const fn cloning(name: &'static str, run: fn(&Context) -> Result<()>) -> Test {
    Test::new(name, run)
        .only("xfs btrfs")
        .unless_made("reflink=0")
}

pub const TESTS: &[Test] = &[
    cloning("reflink.clone", |c| clone_between_rounds(c, false))
        .proves(&[I4, I6])
        .without_on("xfs", "no_cow"),
    cloning("reflink.clone_then_unpin", |c| {
        clone_between_rounds(c, true)
    })
    .proves(&[I4, I6])
    .without_on("xfs", "no_cow"),
    cloning("reflink.clone_while_dma", |c| {
        clone_while_dma(c, File::sync_data)
    })
    .proves(&[I6])
    .without_on("xfs", "no_cow"),
    cloning("reflink.clone_in_writeback", clone_in_writeback)
        .proves(&[I6])
        .without_on("xfs", "no_exclusion"),
    cloning("reflink.part_of_folio", part_of_folio)
        .proves(&[I4, I6])
        .without_on("xfs", "no_cow"),
    cloning("reflink.unshare", unshare)
        .only("xfs")
        .proves(&[I4]),
    cloning("reflink.enospc", enospc)
        .only("xfs")
        .proves(&[I1, I4, I6])
        .without_on("xfs", "no_cow"),
    cloning("reflink.refused", refused),
    cloning("reflink.freeze_while_dma", freeze_while_dma).proves(&[I3, I4]),
    Test::new("xfs.shutdown_while_dma", shutdown_while_dma)
        .only("xfs")
        .proves(&[I3]),
];

const LEN: u64 = MIB;

#[repr(C)]
struct Dedupe {
    src_offset: u64,
    src_length: u64,
    dest_count: u16,
    reserved1: u16,
    reserved2: u32,
    dest_fd: i64,
    dest_offset: u64,
    bytes_deduped: u64,
    status: i32,
    reserved: u32,
}

/// Has the range of `to` share the blocks of `from` if the bytes are the same.
fn dedupe(from: &File, to: &File, len: u64) -> io::Result<u64> {
    const FIDEDUPERANGE: libc::c_ulong = 0xc018_9436;
    let mut argument = Dedupe {
        src_offset: 0,
        src_length: len,
        dest_count: 1,
        reserved1: 0,
        reserved2: 0,
        dest_fd: to.as_raw_fd().into(),
        dest_offset: 0,
        bytes_deduped: 0,
        status: 0,
        reserved: 0,
    };
    // SAFETY: the kernel reads and writes the structure, with the one destination that it counts.
    if unsafe { libc::ioctl(from.as_raw_fd(), FIDEDUPERANGE as _, &mut argument) } != 0 {
        return Err(io::Error::last_os_error());
    }
    match argument.status {
        0 => Ok(argument.bytes_deduped),
        status if status < 0 => Err(io::Error::from_raw_os_error(-status)),
        _ => Err(io::Error::other("the bytes differ")),
    }
}

/// A new file that shares all blocks of `pinned`.
fn clone_of(context: &Context, pinned: &Pinned, name: &str) -> Result<File> {
    let file = context.create(name)?;
    clone_file(&pinned.file, &file).with_context(|| format!("clone to {name}"))?;
    Ok(file)
}

/// The device writes before each clone and after it: each keeps what was there when it was made.
fn clone_between_rounds(context: &Context, unpin: bool) -> Result<()> {
    const ROUNDS: u32 = 3;
    let mut pinned = Pinned::sparse(context, Kind::Uring, "file", LEN)?;
    let (stamp, range) = (pinned.stamp, pinned.range.clone());
    let name = |round| format!("clone-{round}");
    for round in 1..=ROUNDS {
        pinned.write(round)?;
        // Half of the clones find the file synced, half of them sync it themselves.
        if round % 2 == 0 {
            pinned.file.sync_all()?;
        }
        clone_of(context, &pinned, &name(round))?.sync_all()?;
    }
    pinned.write(ROUNDS + 1)?;
    let Pinned {
        device, map, file, ..
    } = pinned;
    let held = match unpin {
        true => {
            device.unpin()?;
            None
        }
        false => Some(device),
    };
    file.sync_all()?;
    context.expect_on_disk(&file, range.clone(), stamp.round(ROUNDS + 1))?;
    for round in 1..=ROUNDS {
        let clone = context.open(&name(round))?;
        context
            .expect_on_disk(&clone, range.clone(), stamp.round(round))
            .with_context(|| name(round))?;
        context
            .expect_after_power_cut(&name(round), range.clone(), stamp.round(round))
            .with_context(|| name(round))?;
    }
    context.expect_after_power_cut("file", range.clone(), stamp.round(ROUNDS + 1))?;
    drop((held, map, file));
    context.scrub()?;
    context.remount()?;
    for round in 1..=ROUNDS {
        expect_contents(
            &context.open(&name(round))?,
            range.clone(),
            stamp.round(round),
        )
        .with_context(|| name(round))?;
    }
    Ok(())
}

/// Clones are made while the device writes and another thread writes back, without a pause: whatever is in
/// a clone when it was made stays in it.
fn clone_while_dma(
    context: &Context,
    write_back: impl Fn(&File) -> io::Result<()> + Sync,
) -> Result<()> {
    const CLONES: usize = 12;
    let mut pinned = Pinned::sparse(context, Kind::Uring, "file", LEN)?;
    pinned.write(0)?;
    pinned.file.sync_all()?;
    let (range, file, stamp) = (pinned.range.clone(), &pinned.file, pinned.stamp);
    let make_clones = || {
        (0..CLONES)
            .map(|nth| {
                let name = format!("clone-{nth}");
                let made = context.create(&name)?;
                clone_file(file, &made).with_context(|| name.clone())?;
                // The clone has nothing in the page cache: this is what its blocks hold.
                let mut bytes = vec![0; LEN as usize];
                made.read_exact_at(&mut bytes, 0)?;
                Ok((name, bytes))
            })
            .collect::<Result<Vec<_>>>()
    };
    let (clones, last) = while_writing(&mut *pinned.device, stamp, range, || {
        while_syncing(file, write_back, make_clones)
    })?;
    pinned.file.sync_all()?;
    pinned.expect_on_disk(context, last)?;
    diag!("{last} rounds");
    let file = pinned.remount(context, "file")?;
    expect_contents(&file, 0..LEN, stamp.round(last))?;
    for (name, then) in clones {
        let now = fs::read(context.path(&name))?;
        let changed = then
            .chunks(512)
            .zip(now.chunks(512))
            .filter(|(then, now)| then != now)
            .count();
        if changed > 0 {
            bail!("{changed} sectors of {name} have changed since it was made");
        }
    }
    context.scrub()
}

/// Each clone finds writeback between the lookup of the blocks and the I/O to them: the copy is held back,
/// and the next writeback begins as soon as the last one ends.
fn clone_in_writeback(context: &Context) -> Result<()> {
    let _delay = Switch::delay("bounce_ms", 30)?;
    clone_while_dma(context, |file| {
        file_range(file, libc::SYNC_FILE_RANGE_WRITE)
    })
}

/// Only some blocks of the pinned file are shared.
fn part_of_folio(context: &Context) -> Result<()> {
    #[repr(C)]
    struct Range {
        from: i64,
        from_offset: u64,
        len: u64,
        offset: u64,
    }
    const FICLONERANGE: libc::c_ulong = 0x4020_940d;
    let stamp = Stamp::fresh();
    let file = context.written("file", LEN, stamp, LEN as usize)?;
    let mut pinned = Pinned::new(Kind::Uring, file, stamp)?;
    let other = context.create("clone")?;
    let (begin, len) = (76 * KIB, 40 * KIB);
    let argument = Range {
        from: pinned.file.as_raw_fd().into(),
        from_offset: begin,
        len,
        offset: begin,
    };
    // SAFETY: the kernel reads the structure.
    if unsafe { libc::ioctl(other.as_raw_fd(), FICLONERANGE as _, &argument) } != 0 {
        return Err(io::Error::last_os_error()).context("FICLONERANGE");
    }
    pinned.write(1)?;
    pinned.file.sync_all()?;
    pinned.expect_on_disk(context, 1)?;
    context.expect_on_disk(&other, begin..begin + len, stamp)?;
    pinned.write(2)?;
    pinned.file.sync_all()?;
    pinned.expect_on_disk(context, 2)?;
    other.sync_all()?;
    context.expect_after_power_cut("clone", begin..begin + len, stamp)
}

/// The file gets blocks of its own again under the pin.
fn unshare(context: &Context) -> Result<()> {
    const FALLOC_FL_UNSHARE_RANGE: i32 = 0x40;
    let mut pinned = Pinned::sparse(context, Kind::Uring, "file", LEN)?;
    pinned.write(1)?;
    let other = clone_of(context, &pinned, "clone")?;
    pinned.write(2)?;
    fallocate(&pinned.file, FALLOC_FL_UNSHARE_RANGE, pinned.range.clone()).context("unshare")?;
    pinned.write(3)?;
    pinned.file.sync_all()?;
    pinned.expect_on_disk(context, 3)?;
    context.expect_on_disk(&other, pinned.range.clone(), pinned.stamp.round(1))?;
    context.expect_after_power_cut("file", pinned.range.clone(), pinned.stamp.round(3))
}

/// There is no block to write shared data to: fsync says so, nothing is lost, and the clone stays as it is.
/// Not on btrfs, where to clone a file that is pinned takes space for all of it.
fn enospc(context: &Context) -> Result<()> {
    let mut pinned = Pinned::sparse(context, Kind::Uring, "file", LEN)?;
    pinned.write(1)?;
    // Before the clone: whatever is written back after it gets blocks of its own.
    fill(context, "filler")?;
    let filler = context.open("filler")?;
    filler.set_len(filler.metadata()?.len() - LEN / 4)?;
    filler.sync_all()?;
    let other = clone_of(context, &pinned, "clone")?;
    other.sync_all()?;
    pinned.write(2)?;
    for time in ["once", "again"] {
        expect_sync_fails(&pinned.file, &[libc::ENOSPC], time)?;
        expect_kept(&pinned, 2, time)?;
    }
    context.expect_on_disk(&other, pinned.range.clone(), pinned.stamp.round(1))?;
    drop(filler);
    release(context, "filler")?;
    pinned.write(3)?;
    pinned.file.sync_all().context("with space again")?;
    pinned.expect_on_disk(context, 3)?;
    context.expect_on_disk(&other, pinned.range.clone(), pinned.stamp.round(1))?;
    context.expect_after_power_cut("clone", pinned.range.clone(), pinned.stamp.round(1))
}

fn expect_busy<T>(what: &str, result: io::Result<T>) -> Result<()> {
    match result {
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("{what}: not EBUSY")),
        Ok(_) => bail!("{what} was possible with a pin"),
    }
}

/// What can't be done to a file with pins is refused, and possible without them.
fn refused(context: &Context) -> Result<()> {
    let stamp = Stamp::fresh();
    let other = context.written("other", LEN, stamp, LEN as usize)?;
    let file = context.written("file", LEN, stamp, LEN as usize)?;
    let pinned = Pinned::new(Kind::Uring, file, stamp)?;
    expect_busy("clone to the file", clone_file(&other, &pinned.file))?;
    expect_busy("dedupe to the file", dedupe(&other, &pinned.file, LEN))?;
    expect_busy("dedupe from the file", dedupe(&pinned.file, &other, LEN))?;
    if context.kind().name() == "xfs" {
        let swap = run(Command::new("xfs_io")
            .args(["-c", "swapext other", "file"])
            .current_dir(context.root()));
        match swap {
            Ok(said) if !said.contains("busy") => bail!("swapext with a pin: {said}"),
            Ok(said) => diag!("{said}"),
            Err(error) => diag!("{error:#}"),
        }
    }
    pinned.expect_on_disk(context, 0)?;
    let Pinned {
        device, map, file, ..
    } = pinned;
    device.unpin()?;
    drop(map);
    file.sync_all()?;
    let shared = dedupe(&other, &file, LEN).context("dedupe without a pin")?;
    if shared != LEN {
        bail!("{shared} bytes of {LEN} were deduplicated");
    }
    clone_file(&other, &file).context("clone without a pin")
}

/// A device writes while the filesystem is frozen, and what is frozen is a filesystem with all that was
/// synced before.
fn freeze_while_dma(context: &Context) -> Result<()> {
    let mut pinned = Pinned::sparse(context, Kind::Uring, "file", LEN)?;
    pinned.write(0)?;
    pinned.file.sync_all()?;
    clone_of(context, &pinned, "clone")?.sync_all()?;
    let (stamp, range) = (pinned.stamp, pinned.range.clone());
    let ((), last) = while_writing(&mut *pinned.device, stamp, range.clone(), || {
        (0..5).try_for_each(|_| {
            while_frozen(&context.root(), || {
                sync();
                // As after a power cut: the clone in it, and a filesystem that recovers.
                context.expect_after_power_cut("clone", range.clone(), stamp.round(0))
            })?
        })
    })?;
    pinned.file.sync_all()?;
    pinned.expect_on_disk(context, last)?;
    context.expect_after_power_cut("file", pinned.range.clone(), stamp.round(last))
}

/// The filesystem goes away under the device: nobody hangs, and it can be mounted again.
fn shutdown_while_dma(context: &Context) -> Result<()> {
    let mut pinned = Pinned::sparse(context, Kind::Uring, "file", LEN)?;
    pinned.write(1)?;
    pinned.file.sync_all()?;
    clone_of(context, &pinned, "clone")?.sync_all()?;
    let (range, file, stamp) = (pinned.range.clone(), &pinned.file, pinned.stamp.round(1));
    while_writing(&mut *pinned.device, stamp, range.clone(), || {
        run(Command::new("xfs_io")
            .args(["-x", "-c", "shutdown"])
            .arg(context.root()))?;
        expect_sync_fails(file, &[libc::EIO], "after the shutdown")
    })?;
    let Pinned {
        device, map, file, ..
    } = pinned;
    drop((device, map, file));
    context.remount()?;
    expect_contents(&context.open("clone")?, range, stamp)
}
