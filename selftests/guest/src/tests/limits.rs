// SPDX-License-Identifier: GPL-2.0

//! Pinned pages stay dirty, and that must be nobody else's trouble: dirty limits and flusher.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Result};

use super::common::{flusher_interval, wait_until, Flush, Pinned, Sysctl, KIB, MIB};
use super::errors::written_before_outage;
use crate::cgroup::Cgroup;
use crate::context::{create, Context};
use crate::device::Kind;
use crate::diag;
use crate::fs as filesystem;
use crate::holder::{Holder, Orders};
use crate::layer::{Layer, Outage};
use crate::ledger::{self, Stats};
use crate::stamp::Stamp;
use crate::tap::{Invariant, Test};
use crate::vmstat;

use Invariant::I5;

pub const TESTS: &[Test] = &[
    Test::new("limits.counted_uring", |c| counted(c, Kind::Uring))
        .proves(&[I5])
        .without("no_exempt"),
    Test::new("limits.counted_verbs", |c| counted(c, Kind::Verbs)).proves(&[I5]),
    Test::new("limits.cgroup", cgroup)
        .proves(&[I5])
        .without("no_exempt"),
    Test::new("limits.writer", writer)
        .proves(&[I5])
        .without("no_exempt"),
    Test::new("limits.group_writer", group_writer)
        .proves(&[I5])
        .without("no_exempt"),
    Test::new("limits.switched", switched).proves(&[I5]),
    Test::new("limits.background", |c| background(c, "other"))
        .proves(&[I5])
        .without("no_exempt"),
    Test::new("limits.background_rest", |c| background(c, PINNED))
        .proves(&[I5])
        .without("no_exempt"),
    Test::new("limits.unpinned", unpinned).proves(&[I5]),
    Test::new("limits.mlocked", mlocked).proves(&[I5]),
    Test::new("limits.sync_once", sync_once),
    Test::new("limits.interval", interval),
    Test::new("limits.gets_old", gets_old),
    Test::new("limits.unchanged", unchanged),
    Test::new("limits.written_back_again", written_back_again).without("keep_hashes"),
    Test::new("limits.written_after_error", written_after_error)
        .on(Layer::Failing)
        .without("keep_hashes"),
];

/// The file that is pinned.
const PINNED: &str = "file";
const LEN: u64 = 8 * MIB;
const PAGE: u64 = 4 * KIB;
/// What the counters of the devices may be wrong by.
const BLUR: u64 = MIB;

/// Fails unless so many bytes are counted as pinned.
fn expect_pinned(bytes: u64, when: &str) -> Result<()> {
    let pages = vmstat::number(vmstat::PINNED)?;
    if pages != bytes / PAGE {
        bail!(
            "{when}: {} is {pages}, not {}",
            vmstat::PINNED,
            bytes / PAGE
        );
    }
    let shown = vmstat::memory("FilePinned")?;
    if shown != bytes {
        bail!("{when}: FilePinned is {shown} bytes, not {bytes}");
    }
    Ok(())
}

/// Fails unless so many bytes are counted as pinned on the devices.
fn expect_on_devices(bytes: u64, when: &str) -> Result<()> {
    let shown = vmstat::devices("BdiPinned")?;
    if shown.abs_diff(bytes) > BLUR {
        bail!("{when}: BdiPinned is {shown} bytes, not {bytes}");
    }
    Ok(())
}

/// Tells how many bytes were written back since.
fn written_from_now() -> Result<impl Fn() -> Result<u64>> {
    let pages = || vmstat::number("nr_written");
    let before = pages()?;
    Ok(move || Ok((pages()? - before) * PAGE))
}

/// Bytes of pinned pages written so far.
fn bounced() -> Result<u64> {
    Ok(Stats::read()?.get("bounced_bytes"))
}

/// The counters follow pins, writeback and truncation.
fn counted(context: &Context, kind: Kind) -> Result<()> {
    expect_pinned(0, "before")?;
    let mut pinned = Pinned::sparse(context, kind, PINNED, LEN)?;
    expect_pinned(LEN, "pinned")?;
    expect_on_devices(LEN, "pinned")?;
    for (round, flush) in (1..).zip(Flush::ALL) {
        pinned.write(round)?;
        flush.call(&pinned.file, &pinned.map)?;
        expect_pinned(LEN, &format!("after {flush:?}"))?;
    }
    expect_on_devices(LEN, "written back")?;

    let second = kind.attach(&pinned.map, 0..LEN / 2)?;
    expect_pinned(LEN, "pinned twice")?;
    second.unpin()?;
    expect_pinned(LEN, "with one pin less")?;

    pinned.file.set_len(LEN / 2)?;
    expect_pinned(LEN / 2, "truncated")?;
    expect_on_devices(LEN / 2, "truncated")?;

    let Pinned {
        device, map, file, ..
    } = pinned;
    device.unpin()?;
    expect_pinned(0, "unpinned")?;
    file.sync_all()?;
    expect_on_devices(0, "unpinned and clean")?;
    drop(map);
    Ok(())
}

/// A control group shows what its processes have pinned.
fn cgroup(context: &Context) -> Result<()> {
    let group = Cgroup::new("pinwb-limits", 128 * MIB)?;
    // A group's file shows the last few pages of a change within seconds, when the kernel sums up for all.
    let expect_shown = |bytes: u64, when: &str| {
        let mut shown = 0;
        let right = wait_until(Duration::from_secs(30), || {
            shown = group.number("memory.stat", "file_pinned")?;
            Ok(shown == bytes)
        })?;
        ensure!(right, "{when}: file_pinned is {shown} bytes, not {bytes}");
        Ok(())
    };
    drop(context.sparse(PINNED, LEN)?);
    let orders = Orders::new(Kind::Uring, &context.path(PINNED)).write(Stamp::fresh());
    let mut holder = Holder::start(group.confine(&mut orders.command()))?;
    expect_shown(LEN, "pinned")?;
    holder.kill();
    ledger::wait_until_empty(10)?;
    expect_shown(0, "with no pins left")
}

/// Sets a dirty limit in bytes. Zero is not among the values that it takes: the ratio that was in force is
/// what sets it back.
fn dirty_limit(name: &str, bytes: u64) -> Result<Sysctl> {
    let [ratio, limit] = ["ratio", "bytes"].map(|unit| format!("vm/{name}_{unit}"));
    Sysctl::set_another(&ratio, &limit, &bytes.to_string())
}

/// More pinned memory than is dirty before the flusher begins, or than may be dirty at all.
fn over_the_limit(context: &Context, background: u64, limit: u64) -> Result<(Pinned, [Sysctl; 2])> {
    let mut pinned = Pinned::sparse(context, Kind::Uring, PINNED, 64 * MIB)?;
    pinned.write(1)?;
    pinned.file.sync_all()?;
    let limits = [
        dirty_limit("dirty_background", background)?,
        dirty_limit("dirty", limit)?,
    ];
    Ok((pinned, limits))
}

/// Makes the file as much longer, or a new one.
fn append(path: &Path, bytes: u64) -> Result<File> {
    let stamp = Stamp::fresh();
    let mut file = File::options().create(true).append(true).open(path)?;
    for offset in (0..bytes).step_by(MIB as usize) {
        file.write_all(&stamp.bytes(offset, MIB as usize))?;
    }
    Ok(file)
}

/// Who writes little beside much that is pinned is far from the limits: nothing is written for it.
fn writer(context: &Context) -> Result<()> {
    let (pinned, _limits) = over_the_limit(context, 16 * MIB, 32 * MIB)?;
    let written = written_from_now()?;
    let path = context.path("other");
    let writer = thread::spawn(move || {
        let start = Instant::now();
        append(&path, 8 * MIB)?;
        anyhow::Ok(start.elapsed())
    });
    // It may take minutes if it is throttled; what is written for it is seen at once.
    while !writer.is_finished() && written()? < 4 * MIB {
        thread::sleep(Duration::from_millis(50));
    }
    // The flusher would be at it by now.
    thread::sleep(Duration::from_millis(500));
    let bytes = written()?;
    if bytes >= 4 * MIB {
        bail!("{bytes} bytes were written back: pinned pages count against the dirty limits");
    }
    match writer.join() {
        Ok(took) => diag!("8 MiB written in {:?}, {bytes} bytes written back", took?),
        Err(_) => bail!("the writer panicked"),
    }
    drop(pinned);
    Ok(())
}

/// The same within a control group, which has limits of its own.
fn group_writer(context: &Context) -> Result<()> {
    const MEMORY: u64 = 128 * MIB;
    // What the writer writes may have to be written: how much a group may have dirty on a device also depends on
    // how much of it was written before. And some metadata.
    const AT_MOST: u64 = 5 * MIB;
    drop(context.sparse(PINNED, MEMORY / 2)?);
    let group = Cgroup::new("pinwb-limits", MEMORY)?;
    let orders = Orders::new(Kind::Uring, &context.path(PINNED));
    let holder = Holder::start(group.confine(&mut orders.command()))?;
    filesystem::sync();
    let written = written_from_now()?;
    let mut writer = Command::new("dd");
    let output = format!("of={}", context.path("other").display());
    writer.args(["if=/dev/zero", &output, "bs=64k", "count=64", "status=none"]);
    let mut writer = group.confine(&mut writer).spawn()?;
    let done = wait_until(Duration::from_secs(60), || {
        Ok(writer.try_wait()?.is_some() || written()? > AT_MOST)
    })?;
    // The flusher would be at it by now.
    thread::sleep(Duration::from_millis(500));
    let bytes = written()?;
    let _ = writer.kill();
    let status = writer.wait()?;
    drop(holder);
    ensure!(
        bytes <= AT_MOST,
        "{bytes} bytes were written back: pinned pages count against the limits of the group"
    );
    ensure!(done && status.success(), "the writer: {status}");
    Ok(())
}

/// Bytes of pinned pages that count for the writeback of a control group, on all devices.
fn pinned_for(group: &Cgroup) -> Result<u64> {
    let id = group.id()?.to_string();
    let mut pinned = 0;
    for entry in fs::read_dir("/sys/kernel/debug/bdi")? {
        let text = fs::read_to_string(entry?.path().join("wb_stats")).unwrap_or_default();
        for stats in text.split("\n\n") {
            if vmstat::field(stats, ':', "WbCgIno").is_ok_and(|found| found == id) {
                pinned += vmstat::kilobytes(stats, "WbPinned")?;
            }
        }
    }
    Ok(pinned)
}

/// A file is written back for the group that used it first, until most of its dirty pages are another's.
/// Pinned ones move with it, while they are dirty.
fn switched(context: &Context) -> Result<()> {
    let first = Cgroup::new("pinwb-first", 128 * MIB)?;
    let second = Cgroup::new("pinwb-second", 128 * MIB)?;
    let path = context.path(PINNED);
    drop(context.sparse(PINNED, LEN)?);
    // Who dirties a page of it first while it is in memory has it.
    context.remount()?;
    let mut one_page = Command::new("dd");
    let output = format!("of={}", path.display());
    one_page.args(["if=/dev/zero", &output, "bs=4k", "count=1", "conv=notrunc"]);
    filesystem::run(first.confine(&mut one_page))?;
    let orders = Orders::new(Kind::Uring, &path).write(Stamp::fresh());
    let holder = Holder::start(second.confine(&mut orders.command()))?;
    let before = [pinned_for(&first)?, pinned_for(&second)?];

    let file = context.open(PINNED)?;
    let mut syncs = 0;
    let moved = wait_until(Duration::from_secs(30), || {
        file.sync_all()?;
        syncs += 1;
        Ok(pinned_for(&first)? <= BLUR && pinned_for(&second)?.abs_diff(LEN) <= BLUR)
    })?;
    let after = [pinned_for(&first)?, pinned_for(&second)?];
    diag!("bytes of the groups: {before:?}, after {syncs} syncs {after:?}");
    ensure!(
        before[0].abs_diff(LEN) <= BLUR,
        "the first group does not write the file: nothing was tested"
    );
    ensure!(moved, "pinned pages did not move: {after:?}");
    expect_on_devices(LEN, "moved")?;

    drop(holder);
    ledger::wait_until_empty(10)?;
    file.sync_all()?;
    expect_on_devices(0, "unpinned and clean")
}

/// The flusher in the background cleans what it can, and leaves alone what stays dirty anyway; also if both are
/// of one file.
fn background(context: &Context, name: &str) -> Result<()> {
    // A writer wakes it each MiB or so, and what came after the last time is left to the periodic wake-up. That
    // one is to find nothing old enough to be written for its age, and nothing pinned yet when it is turned on:
    // it writes all then.
    let _wakes = flusher_interval(Duration::from_secs(3600), Duration::from_millis(200))?;
    let (pinned, _limits) = over_the_limit(context, MIB, 512 * MIB)?;
    let dirty = || -> Result<u64> {
        let pinned = vmstat::number(vmstat::PINNED)?;
        Ok(vmstat::number("nr_dirty")?.saturating_sub(pinned) * PAGE)
    };
    let before = bounced()?;
    let other = append(&context.path(name), 8 * MIB)?;
    wait_until(Duration::from_secs(20), || {
        Ok(bounced()? > before || dirty()? <= 2 * MIB)
    })?;
    let bounced = bounced()? - before;
    if bounced > 0 {
        bail!("{bounced} bytes of pinned pages were written for those that are not");
    }
    let left = dirty()?;
    if left > 2 * MIB {
        bail!("{left} bytes are left dirty in the background");
    }
    drop((other, pinned));
    Ok(())
}

/// What was pinned counts like all other dirty memory, however it was written meanwhile.
fn unpinned(context: &Context) -> Result<()> {
    let (pinned, _limits) = over_the_limit(context, 16 * MIB, 32 * MIB)?;
    let written = written_from_now()?;
    let Pinned {
        device, map, file, ..
    } = pinned;
    device.unpin()?;
    expect_pinned(0, "unpinned")?;
    // It is over the limits now, and the next writer finds that.
    let other = append(&context.path("other"), 8 * MIB)?;
    if !wait_until(Duration::from_secs(20), || Ok(written()? >= 48 * MIB))? {
        bail!("dirty pages that were pinned are not written in the background");
    }
    drop((other, map, file));
    Ok(())
}

/// What is mlocked as well is not among the memory that could be dirtied, so pins don't take it off again.
fn mlocked(context: &Context) -> Result<()> {
    const LEN: u64 = 64 * MIB;
    let limit = || anyhow::Ok(vmstat::number("nr_dirty_threshold")? * PAGE);
    let _half = Sysctl::set("vm/dirty_ratio", "50")?;
    let unpinned = limit()?;
    let mut pinned = Pinned::sparse(context, Kind::Uring, PINNED, LEN)?;
    pinned.write(1)?;
    pinned.file.sync_all()?;
    let before = limit()?;
    pinned.map.lock()?;
    let after = limit()?;
    diag!("limit: {unpinned} bytes, with pins {before}, mlocked {after}");
    if vmstat::memory("Unevictable")? < LEN {
        bail!("what was mlocked is still evictable");
    }
    // Half of what could be dirtied.
    if unpinned.saturating_sub(before) < LEN / 4 {
        bail!("pins left the limit as it was: {before} bytes");
    }
    if before.saturating_sub(after) > LEN / 8 {
        bail!("mlock of what is pinned took the limit from {before} to {after} bytes");
    }
    Ok(())
}

/// sync(2) has the flusher begin, and then writes all: pinned pages once.
fn sync_once(context: &Context) -> Result<()> {
    let mut pinned = Pinned::sparse(context, Kind::Uring, PINNED, LEN)?;
    pinned.write(1)?;
    pinned.file.sync_all()?;
    for (round, flush) in [(2, Flush::Sync), (3, Flush::Syncfs)] {
        pinned.write(round)?;
        let before = bounced()?;
        flush.call(&pinned.file, &pinned.map)?;
        let bounced = bounced()? - before;
        // Single folios may be written twice for other reasons.
        if !(LEN..LEN + LEN / 4).contains(&bounced) {
            bail!("{flush:?} wrote {bounced} bytes of {LEN} that are pinned");
        }
        pinned.expect_on_disk(context, round)?;
    }
    Ok(())
}

/// The sysctl with which periodic writeback writes what did not change, as well.
const WRITE_UNCHANGED: &str = "vm/pinned_write_unchanged";

/// How old data gets before the flusher writes it, in the tests of that.
const EXPIRE: Duration = Duration::from_secs(2);

/// Makes the flusher come by often, for data that is older than [`EXPIRE`].
fn short_intervals() -> Result<[Sysctl; 2]> {
    flusher_interval(EXPIRE, Duration::from_millis(200))
}

/// Waits until the flusher has written so much, of its own accord.
fn expect_flusher_writes(bytes: u64, since: u64, what: &str) -> Result<()> {
    if !wait_until(EXPIRE * 4, || Ok(bounced()? - since >= bytes))? {
        bail!(
            "the flusher wrote {} bytes of {what}, not {bytes}",
            bounced()? - since
        );
    }
    Ok(())
}

/// A pinned file that the flusher, which comes by often, has written once.
fn written_by_flusher(context: &Context) -> Result<(Pinned, [Sysctl; 2])> {
    let mut pinned = Pinned::sparse(context, Kind::Uring, PINNED, LEN)?;
    pinned.write(1)?;
    pinned.file.sync_all()?;
    let before = bounced()?;
    let intervals = short_intervals()?;
    expect_flusher_writes(LEN, before, "what was pinned")?;
    Ok((pinned, intervals))
}

/// Pins that nothing happens to are written once in each interval, if that is asked for.
fn interval(context: &Context) -> Result<()> {
    let (_pinned, _intervals) = written_by_flusher(context)?;
    let _all = Sysctl::set(WRITE_UNCHANGED, "1")?;
    let before = bounced()?;
    let start = Instant::now();
    thread::sleep(EXPIRE * 4);
    // An interval is longer by the time that writing takes.
    expect_flusher_writes(2 * LEN, before, "what is pinned")?;
    let bounced = bounced()? - before;
    let intervals = start.elapsed().as_secs() / EXPIRE.as_secs();
    diag!("{bounced} bytes written in {intervals} intervals");
    // The first is already over, and the last may just be.
    if bounced > (intervals + 1) * LEN {
        bail!("{bounced} bytes written in {intervals} intervals, of {LEN} that are pinned");
    }
    Ok(())
}

/// What a device wrote gets old enough for the flusher, although background writeback comes by all the time, for
/// what is written to the rest of the file, and to another.
fn gets_old(context: &Context) -> Result<()> {
    let (mut pinned, _intervals) = written_by_flusher(context)?;
    let other = create(&context.path("other"))?;
    let _limit = dirty_limit("dirty_background", MIB)?;
    let written = bounced()?;
    pinned
        .device
        .write(pinned.stamp.round(2), LEN / 2..LEN / 2 + PAGE)?;
    let chunk = Stamp::fresh().bytes(LEN, 4 * MIB as usize);
    let ended = AtomicBool::new(false);
    let old = thread::scope(|scope| {
        let rest = scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                pinned.file.write_all_at(&chunk, LEN)?;
            }
            anyhow::Ok(())
        });
        let old = wait_until(EXPIRE * 5, || {
            other.write_all_at(&chunk[..PAGE as usize], 0)?;
            Ok(bounced()? > written)
        });
        ended.store(true, Ordering::Relaxed);
        rest.join().expect("the thread panics nowhere").and(old)
    })?;
    if !old {
        bail!("what a device wrote is not written while others write");
    }
    Ok(())
}

/// Pins that nothing happens to are written once; and what does change then, is written.
fn unchanged(context: &Context) -> Result<()> {
    let (mut pinned, _intervals) = written_by_flusher(context)?;
    let (written, seen) = (bounced()?, Stats::read()?.get("unchanged_bytes"));
    let start = Instant::now();
    thread::sleep(EXPIRE * 4);
    let again = bounced()? - written;
    let compared = Stats::read()?.get("unchanged_bytes") - seen;
    diag!(
        "{again} bytes written and {compared} found unchanged in {:?}",
        start.elapsed()
    );
    if again > 0 {
        bail!("{again} bytes were written again that nobody had written to");
    }
    if compared < 2 * LEN {
        bail!("only {compared} bytes were looked at in four intervals, of {LEN}");
    }

    let (written, range) = (bounced()?, LEN / 2..LEN / 2 + PAGE);
    pinned.device.write(pinned.stamp.round(2), range.clone())?;
    expect_flusher_writes(PAGE, written, "a page")?;
    thread::sleep(EXPIRE);
    context.expect_on_disk(&pinned.file, range.clone(), pinned.stamp.round(2))?;
    context.expect_on_disk(&pinned.file, 0..range.start, pinned.stamp.round(1))?;
    // The folio as a whole, and nothing else.
    let again = bounced()? - written;
    if again > 2 * MIB {
        bail!("{again} bytes were written for a page that changed");
    }

    // Who waits for it gets it written, whether or not it changed. The flusher may come in between.
    let written = bounced()?;
    pinned.file.sync_all()?;
    match bounced()? - written {
        bytes if bytes < LEN => bail!("fsync wrote {bytes} bytes of {LEN}"),
        _ => Ok(()),
    }
}

/// What the flusher compares with is what is on the disk, not what it wrote itself at some time.
fn written_back_again(context: &Context) -> Result<()> {
    let mut pinned = Pinned::sparse(context, Kind::Uring, PINNED, LEN)?;
    pinned.write(1)?;
    let before = bounced()?;
    let _intervals = short_intervals()?;
    expect_flusher_writes(LEN, before, "the first contents")?;

    pinned.write(2)?;
    pinned.file.sync_all()?;
    let before = bounced()?;
    pinned.write(1)?;
    expect_flusher_writes(LEN, before, "the first contents, which came back")?;
    thread::sleep(EXPIRE);
    pinned.expect_on_disk(context, 1)
}

/// What could not be written is written by the flusher once it can be, whether or not it changed.
fn written_after_error(context: &Context) -> Result<()> {
    let len = MIB;
    let stamp = Stamp::fresh();
    let (file, places) = written_before_outage(context, len, stamp)?;
    let mut pinned = Pinned::new(Kind::Uring, file, stamp)?;
    pinned.write(1)?;
    pinned.file.sync_all()?;

    // Set once: a change of the wake-up interval has the flusher write all there is.
    let before = bounced()?;
    let _intervals = short_intervals()?;
    expect_flusher_writes(len, before, "what was pinned")?;
    let outage = Outage::of(&places)?;
    let before = bounced()?;
    pinned.write(2)?;
    expect_flusher_writes(len, before, "what can't be written")?;
    thread::sleep(Duration::from_millis(500));
    if pinned.expect_on_disk(context, 2).is_ok() {
        bail!("it was written while the disk was away");
    }
    drop(outage);

    let before = bounced()?;
    expect_flusher_writes(len, before, "what could not be written")?;
    thread::sleep(EXPIRE);
    pinned.expect_on_disk(context, 2)
}
