// SPDX-License-Identifier: GPL-2.0

//! Checksums, snapshots and block groups that move, under a device that never stops writing.

use std::fs::{self, File};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{bail, Context as _, Result};

use super::common::{file_range, while_syncing, Pinned, KIB, MIB};
use super::errors::{expect_kept, expect_sync_fails};
use crate::btrfs;
use crate::context::{expect_contents, Context};
use crate::device::{while_writing, Kind};
use crate::diag;
use crate::ledger::Switch;
use crate::tap::{Invariant, Test};

use Invariant::{I1, I2, I3, I4, I6};

pub const TESTS: &[Test] = &[
    Test::new("btrfs.scrub_while_dma", scrub_while_dma)
        .only("btrfs")
        .proves(&[I2, I6])
        .without("no_copy"),
    Test::new("btrfs.snapshot", snapshot)
        .only("btrfs")
        .proves(&[I4, I6])
        .without("no_hole_alloc"),
    Test::new("btrfs.snapshot_while_dma", snapshot_while_dma)
        .only("btrfs")
        .proves(&[I2, I6])
        .without("no_copy"),
    Test::new("btrfs.send", send).only("btrfs").proves(&[I4]),
    Test::new("btrfs.log_while_flushing", log_while_flushing)
        .only("btrfs")
        .proves(&[I2, I4])
        .without("no_exclusion"),
    Test::new("btrfs.balance_while_dma", balance_while_dma)
        .only("btrfs")
        .proves(&[I3, I4]),
    Test::new("btrfs.defragment_while_dma", defragment_while_dma)
        .only("btrfs")
        .proves(&[I3, I4]),
    Test::new("btrfs.small_file", small_file)
        .only("btrfs")
        .proves(&[I1, I4])
        .without("no_keep_dirty"),
    Test::new("btrfs.quota", quota)
        .only("btrfs")
        .proves(&[I1, I6])
        .without("no_keep_unmapped"),
    Test::new("btrfs.read_only_subvolume", read_only_subvolume)
        .only("btrfs")
        .proves(&[I3]),
];

const LEN: u64 = 2 * MIB;

fn on_root(context: &Context, arguments: &[&str]) -> Result<()> {
    btrfs::command(arguments, &[&context.root()]).map(drop)
}

/// A file that a device has written to once, and that is on the disk.
fn synced(context: &Context) -> Result<Pinned> {
    let mut pinned = Pinned::sparse(context, Kind::Uring, "file", LEN)?;
    pinned.write(0)?;
    pinned.file.sync_all()?;
    Ok(pinned)
}

/// The device and a thread that syncs go on while something is done to the filesystem; then all is where it
/// should be, with the right checksums.
fn while_all_goes_on<T>(context: &Context, body: impl FnOnce() -> Result<T>) -> Result<T> {
    let mut pinned = synced(context)?;
    let (stamp, range, file) = (pinned.stamp, pinned.range.clone(), &pinned.file);
    let (done, last) = while_writing(&mut *pinned.device, stamp, range, || {
        while_syncing(file, File::sync_data, body)
    })?;
    pinned.file.sync_all()?;
    pinned.expect_on_disk(context, last)?;
    context.expect_after_power_cut("file", 0..LEN, stamp.round(last))?;
    context.scrub()?;
    let file = pinned.remount(context, "file")?;
    expect_contents(&file, 0..LEN, stamp.round(last))?;
    Ok(done)
}

fn scrub_while_dma(context: &Context) -> Result<()> {
    while_all_goes_on(context, || {
        (0..5).try_for_each(|_| {
            thread::sleep(Duration::from_millis(400));
            context.scrub()
        })
    })
}

fn balance_while_dma(context: &Context) -> Result<()> {
    while_all_goes_on(context, || {
        (0..2).try_for_each(|_| on_root(context, &["balance", "start", "--full-balance"]))
    })
}

fn defragment_while_dma(context: &Context) -> Result<()> {
    while_all_goes_on(context, || {
        (0..5).try_for_each(|_| {
            let arguments = ["filesystem", "defragment", "-f", "-czstd"];
            btrfs::command(&arguments, &[&context.path("file")]).map(drop)
        })
    })
}

/// Each snapshot has what the device had written when it was taken, though nobody synced the file.
fn snapshot(context: &Context) -> Result<()> {
    const ROUNDS: u32 = 4;
    let mut pinned = synced(context)?;
    let (stamp, range) = (pinned.stamp, pinned.range.clone());
    let name = |round| format!("snapshot-{round}");
    for round in 1..=ROUNDS {
        pinned.write(round)?;
        btrfs::snapshot(&context.root(), &context.path(&name(round)), round % 2 == 0)?;
    }
    pinned.write(ROUNDS + 1)?;
    pinned.file.sync_all()?;
    for round in 1..=ROUNDS {
        let in_snapshot = format!("{}/file", name(round));
        let file = File::open(context.path(&in_snapshot))?;
        context
            .expect_on_disk(&file, range.clone(), stamp.round(round))
            .with_context(|| name(round))?;
        context
            .expect_after_power_cut(&in_snapshot, range.clone(), stamp.round(round))
            .with_context(|| name(round))?;
    }
    context.expect_after_power_cut("file", range, stamp.round(ROUNDS + 1))
}

/// Snapshots that are taken while the device writes don't change afterwards.
fn snapshot_while_dma(context: &Context) -> Result<()> {
    const SNAPSHOTS: usize = 6;
    let taken = while_all_goes_on(context, || {
        (0..SNAPSHOTS)
            .map(|nth| {
                let name = format!("snapshot-{nth}");
                btrfs::snapshot(&context.root(), &context.path(&name), false)?;
                let name = format!("{name}/file");
                let bytes = fs::read(context.path(&name)).with_context(|| name.clone())?;
                Ok((name, bytes))
            })
            .collect::<Result<Vec<_>>>()
    })?;
    for (name, then) in taken {
        let now = fs::read(context.path(&name)).with_context(|| name.clone())?;
        if then != now {
            bail!("{name} has changed since it was taken");
        }
    }
    Ok(())
}

/// What is sent of a snapshot is what the snapshot has.
fn send(context: &Context) -> Result<()> {
    let mut pinned = synced(context)?;
    let (stamp, range) = (pinned.stamp, pinned.range.clone());
    pinned.write(1)?;
    let snapshot = context.path("snapshot");
    btrfs::snapshot(&context.root(), &snapshot, true)?;
    let stream = context.work().join("stream");
    let received = context.path("received");
    fs::create_dir(&received)?;
    let ((), last) = while_writing(&mut *pinned.device, stamp, range.clone(), || {
        btrfs::command(&["send", "-q", "-f"], &[&stream, &snapshot])?;
        btrfs::command(&["receive", "-q", "-f"], &[&stream, &received]).map(drop)
    })?;
    fs::remove_file(&stream)?;
    for name in ["snapshot/file", "received/snapshot/file"] {
        let file = File::open(context.path(name))?;
        expect_contents(&file, range.clone(), stamp.round(1)).context(name)?;
    }
    pinned.file.sync_all()?;
    pinned.expect_on_disk(context, last)
}

/// A flusher that always finds dirty folios writes them while fsync logs the file. The log must tell of no
/// extent that has no data yet, or no checksums: after a power cut the file would fail to be read.
fn log_while_flushing(context: &Context) -> Result<()> {
    // On a busy machine it takes some of them to meet the window.
    const CUTS: u32 = 15;
    const RUN: Duration = Duration::from_millis(500);
    const SYNCS: u32 = 12;
    // Time between the allocation of extents and their I/O.
    let _delay = Switch::delay("bounce_ms", 5)?;
    let mut pinned = synced(context)?;
    let (stamp, range, file) = (pinned.stamp, pinned.range.clone(), &pinned.file);
    for cut in 1..=CUTS {
        while_writing(&mut *pinned.device, stamp, range.clone(), || {
            while_syncing(
                file,
                |file| file_range(file, libc::SYNC_FILE_RANGE_WRITE),
                || {
                    let end = Instant::now() + RUN;
                    let mut syncs = 0;
                    while Instant::now() < end || syncs < SYNCS {
                        file.sync_data()?;
                        syncs += 1;
                    }
                    diag!("{syncs} times fsync");
                    Ok(())
                },
            )
        })?;
        // The last fsync is some milliseconds old, and nothing has committed since.
        let look = |directory: &Path| {
            let bytes = fs::read(directory.join("file")).context("after a power cut")?;
            match bytes.len() as u64 {
                LEN => Ok(()),
                len => bail!("{len} bytes are left"),
            }
        };
        context
            .after_power_cut(look)
            .with_context(|| format!("power cut {cut}"))?;
    }
    Ok(())
}

/// Without a pin the data of such a file would be in the metadata.
fn small_file(context: &Context) -> Result<()> {
    let len = 700;
    let mut pinned = Pinned::sparse(context, Kind::Uring, "small", len)?;
    for round in 1..=3 {
        pinned.write(round)?;
        pinned.file.sync_all()?;
        pinned.expect_on_disk(context, round)?;
        context.expect_after_power_cut("small", 0..len, pinned.stamp.round(round))?;
    }
    Ok(())
}

/// What exceeds a limit stays in memory, dirty, until the limit is raised.
fn quota(context: &Context) -> Result<()> {
    on_root(context, &["quota", "enable"])?;
    let limit = |limit: &str| on_root(context, &["qgroup", "limit", limit]);
    let mut pinned = synced(context)?;
    // Each write takes new blocks before the old ones are free.
    limit(&format!("{}k", (LEN + LEN / 4) / KIB))?;
    pinned.write(1)?;
    for time in ["once", "again"] {
        // EIO is what waiting for writeback makes of EDQUOT.
        expect_sync_fails(&pinned.file, &[libc::EDQUOT, libc::EIO], time)?;
        expect_kept(&pinned, 1, time)?;
    }
    limit("none")?;
    pinned.write(2)?;
    pinned.file.sync_all().context("without a limit")?;
    pinned.expect_on_disk(context, 2)?;
    context.expect_after_power_cut("file", 0..LEN, pinned.stamp.round(2))
}

/// A subvolume that becomes read-only under a pin has what was synced before, and nobody hangs.
fn read_only_subvolume(context: &Context) -> Result<()> {
    let subvolume = context.path("subvolume");
    btrfs::command(&["subvolume", "create"], &[&subvolume])?;
    let mut pinned = Pinned::sparse(context, Kind::Uring, "subvolume/file", LEN)?;
    let set = |value: &str| {
        let name = ["property", "set", "-f", "-ts"];
        btrfs::command(&name, &[&subvolume, Path::new("ro"), Path::new(value)]).map(drop)
    };
    pinned.write(1)?;
    pinned.file.sync_all()?;
    set("true")?;
    pinned.write(2)?;
    expect_sync_fails(&pinned.file, &[libc::EROFS], "read-only")?;
    context.expect_after_power_cut("subvolume/file", 0..LEN, pinned.stamp.round(1))?;
    set("false")?;
    pinned.file.sync_all()?;
    pinned.expect_on_disk(context, 2)
}
