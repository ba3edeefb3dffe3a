// SPDX-License-Identifier: GPL-2.0

//! A frozen filesystem is not written to, whatever devices write to memory, and can be thawed.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{bail, Context as _, Result};

use super::common::{busy_flusher, wait_until, Flush, Pinned, MIB};
use crate::context::Context;
use crate::device::{while_writing, Kind};
use crate::fs::while_frozen;
use crate::map::Mapping;
use crate::stamp::Stamp;
use crate::tap::{expect_eq, Invariant, Test};

use Invariant::{I3, I4};

pub const TESTS: &[Test] = &[
    // Elsewhere the flusher would need a transaction, and thawing would wait for it.
    Test::new("frozen.disk", disk)
        .proves(&[I3])
        .without_on("ext4", "no_freeze"),
    Test::new("frozen.fsync", fsync).proves(&[I4]),
    Test::new("frozen.direct_read", direct_read).proves(&[I3]),
];

const LEN: u64 = MIB;

/// Sectors that were written to a disk since boot.
fn sectors_written(disk: &Path) -> Result<u64> {
    let name = disk.file_name().context("a disk without a name")?;
    let path = Path::new("/sys/class/block").join(name).join("stat");
    fs::read_to_string(path)?
        .split_whitespace()
        .nth(6)
        .context("too few fields")?
        .parse()
        .context("not a number")
}

/// Neither the flusher nor sync(2) writes what is pinned.
fn disk(context: &Context) -> Result<()> {
    let mut pinned = Pinned::sparse(context, Kind::Uring, "file", LEN)?;
    pinned.write(0)?;
    pinned.file.sync_all()?;
    let _busy = busy_flusher()?;
    let (stamp, range) = (pinned.stamp, pinned.range.clone());
    let (written, last) = while_writing(&mut *pinned.device, stamp, range, || {
        while_frozen(&context.root(), || {
            let before = sectors_written(context.device())?;
            for _ in 0..10 {
                Flush::Sync.call(&pinned.file, &pinned.map)?;
                thread::sleep(Duration::from_millis(100));
            }
            anyhow::Ok(sectors_written(context.device())? - before)
        })?
    })?;
    if written > 0 {
        bail!("{written} sectors were written while the filesystem was frozen");
    }
    pinned.file.sync_all()?;
    pinned.expect_on_disk(context, last)
}

/// Freezes, has a device write, and calls something that is waited for until the time is over, and then thawed
/// for. Returns whether it had returned by then, and what.
fn call_while_frozen<T: Send>(
    context: &Context,
    write: impl FnOnce() -> Result<()>,
    limit: Duration,
    call: impl FnOnce() -> T + Send,
) -> Result<(bool, T)> {
    let returned = AtomicBool::new(false);
    thread::scope(|scope| {
        let (early, caller) = while_frozen(&context.root(), || -> Result<_> {
            write()?;
            let caller = scope.spawn(|| {
                let result = call();
                returned.store(true, Ordering::Release);
                result
            });
            let early = wait_until(limit, || Ok(returned.load(Ordering::Acquire)))?;
            Ok((early, caller))
        })??;
        Ok((early, caller.join().expect("the thread panics nowhere")))
    })
}

/// fsync(2) waits for the thaw, and then does what it is for.
fn fsync(context: &Context) -> Result<()> {
    let mut pinned = Pinned::sparse(context, Kind::Uring, "file", LEN)?;
    pinned.write(1)?;
    pinned.file.sync_all()?;
    let (file, device) = (&pinned.file, &mut pinned.device);
    let (stamp, range) = (pinned.stamp.round(2), pinned.range.clone());
    let write = || device.write(stamp, range);
    let (early, synced) = call_while_frozen(context, write, Duration::from_millis(500), || {
        file.sync_all()
    })?;
    if early {
        bail!("fsync returned, and the filesystem was frozen");
    }
    synced?;
    pinned.expect_on_disk(context, 2)
}

/// A direct read of what is not pinned does not wait for the thaw.
fn direct_read(context: &Context) -> Result<()> {
    let stamp = Stamp::fresh();
    let file = context.written("file", 2 * LEN, stamp, MIB as usize)?;
    file.sync_all()?;
    let map = Mapping::shared(&file, 0, LEN as usize)?;
    let mut device = Kind::Uring.attach(&map, 0..LEN)?;
    let direct = context.open_direct("file")?;
    let buffer = Mapping::anonymous(LEN as usize)?;
    let write = || device.write(stamp.round(1), 0..LEN);
    let (early, read) = call_while_frozen(context, write, Duration::from_secs(5), || {
        buffer.read_from(&direct, LEN as usize, LEN)
    })?;
    expect_eq("bytes read", read?, LEN as usize)?;
    if !early {
        bail!("a direct read of clean pages waited for the thaw");
    }
    if buffer.load(0, LEN as usize) != stamp.bytes(LEN, LEN as usize) {
        bail!("it read something else");
    }
    Ok(())
}
