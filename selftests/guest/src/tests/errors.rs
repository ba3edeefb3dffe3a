// SPDX-License-Identifier: GPL-2.0

//! Writeback that can't store what a device wrote: no space, no path to the disk, blocks that have left the
//! file, memory that is broken. The data stays, fsync tells, and the next writeback stores it.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::Command;

use anyhow::{bail, Context as _, Result};

use super::common::{fallocate, Pinned, KIB, MIB};
use crate::context::{expect_contents, Context};
use crate::device::{errno, Kind};
use crate::diag;
use crate::disk;
use crate::fs::{run, sync};
use crate::kmsg;
use crate::layer::{Layer, Outage};
use crate::ledger;
use crate::map::{Mapping, PAGE};
use crate::pagemap::{PageFlags, DIRTY};
use crate::stamp::Stamp;
use crate::tap::{expect_eq, skip, Invariant, Test};

use Invariant::{I1, I4, I6};

pub const TESTS: &[Test] = &[
    Test::new("errors.enospc_at_pin", enospc_at_pin).proves(&[I6]),
    Test::new("story7.enospc_in_writeback", enospc_in_writeback)
        .proves(&[I1, I4, I6])
        .without("no_hole_alloc"),
    Test::new("errors.truncate_without_space", truncate_without_space).proves(&[I4, I6]),
    Test::new("story7.eio_in_writeback", |c| eio_in_writeback(c, false))
        .on(Layer::Failing)
        .proves(&[I1, I4, I6])
        .without("no_keep_dirty"),
    Test::new("story7.eio_in_unwritten_blocks", |c| {
        eio_in_writeback(c, true)
    })
    .on(Layer::Failing)
    // Where zeroed blocks stay in their places.
    .only("ext4")
    .proves(&[I1, I4, I6])
    .without("no_unwritten_again"),
    Test::new("errors.eio_of_journal", |c| {
        journal_abort(c, false, journal)
    })
    .on(Layer::Failing)
    .only("ext4")
    .made("", "errors=remount-ro")
    .proves(&[I1, I4]),
    Test::new("errors.eio_of_journal_new_blocks", |c| {
        journal_abort(c, true, journal)
    })
    .on(Layer::Failing)
    .only("ext4")
    .made("", "errors=remount-ro")
    .proves(&[I1, I4]),
    Test::new("errors.eio_of_all_writes", |c| {
        journal_abort(c, false, |_| Outage::of_writes())
    })
    .on(Layer::Failing)
    .only("ext4")
    .made("", "errors=remount-ro")
    .proves(&[I1, I4]),
    Test::new("errors.eio_of_block_map", eio_of_block_map)
        .on(Layer::Failing)
        .only("ext4")
        .proves(&[I1, I4, I6])
        .without("no_keep_unmapped"),
    Test::new("errors.holes_in_pinned_folio", holes_in_pinned_folio)
        .proves(&[I4, I6])
        .without("no_hole_alloc"),
    Test::new("errors.extend_in_last_page", extend_in_last_page)
        .only("ext4")
        .made("-b 1024", "")
        .proves(&[I4, I6])
        .without("no_hole_alloc"),
    Test::new("story11.hwpoison_small_folio", |c| hwpoison(c, false)).proves(&[I1, I4]),
    Test::new("story11.hwpoison_large_folio", |c| hwpoison(c, true)).proves(&[I1, I4]),
];

/// Fails unless fsync reports one of `errnos`.
pub fn expect_sync_fails(file: &File, errnos: &[i32], when: &str) -> Result<()> {
    match file.sync_all() {
        Ok(()) => bail!("{when}: fsync returned 0"),
        Err(error) if error.raw_os_error().is_some_and(|e| errnos.contains(&e)) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("{when}: fsync failed in another way")),
    }
}

/// Fails unless memory has what the round wrote, and all of it is dirty.
pub fn expect_kept(pinned: &Pinned, round: u32, when: &str) -> Result<()> {
    let len = pinned.map.len();
    // By read(2): a load through the mapping is killed if a page is gone and can't be read.
    expect_contents(&pinned.file, 0..len as u64, pinned.stamp.round(round))
        .with_context(|| format!("{when}: the data is no longer in memory"))?;
    pinned.map.touch();
    let dirty = PageFlags::open()?.count(&pinned.map, 0..len, DIRTY)?;
    expect_eq(&format!("{when}: dirty pages"), dirty, len / PAGE)
}

/// A file that is written and pinned as a whole, if the page cache gives a folio that is worth punching.
pub fn in_large_folios(context: &Context, name: &str, len: u64) -> Result<Pinned> {
    let stamp = Stamp::fresh();
    let file = context.written(name, len, stamp, len as usize)?;
    let pinned = Pinned::new(Kind::Uring, file, stamp)?;
    let folios = ledger::folios_of(&pinned.file)?;
    if folios
        .iter()
        .any(|folio| folio.pages * 2 < len / PAGE as u64)
    {
        return skip("the page cache gave no large folio");
    }
    Ok(pinned)
}

const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;

/// A file that takes all the space that is left.
pub fn fill(context: &Context, name: &str) -> Result<()> {
    sync();
    let file = context.create(name)?;
    let mut end = 0;
    let mut step = 64 * MIB;
    while step >= KIB {
        match fallocate(&file, 0, end..end + step) {
            Ok(()) => end += step,
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                end = file.metadata()?.len().max(end);
                step /= 2;
            }
            Err(error) => return Err(error).context("fallocate"),
        }
    }
    // Allocation in advance asks for more than it takes; a write can still find some.
    let block = vec![0xee; 4 * KIB as usize];
    loop {
        match file
            .write_all_at(&block, end)
            .and_then(|()| file.sync_all())
        {
            Ok(()) => end += 4 * KIB,
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => break,
            Err(error) => return Err(error).context("write"),
        }
    }
    diag!("{} KiB taken", end / KIB);
    Ok(())
}

/// Gives the space back that such a file takes. On XFS that of a file without a name comes back later, in
/// the background.
pub fn release(context: &Context, name: &str) -> Result<()> {
    context.open(name)?.set_len(0)?;
    Ok(fs::remove_file(context.path(name))?)
}

/// A fault that finds no space refuses the pin.
fn enospc_at_pin(context: &Context) -> Result<()> {
    let file = context.sparse("file", MIB)?;
    fill(context, "filler")?;
    let map = Mapping::shared(&file, 0, MIB as usize)?;
    match Kind::Uring.attach(&map, 0..MIB) {
        Ok(_) => bail!("pages without space for their blocks were pinned"),
        Err(error) => match errno(&error) {
            Some(libc::EFAULT | libc::ENOSPC) => diag!("refused: {error:#}"),
            _ => return Err(error),
        },
    }
    ledger::wait_until_empty(5)?;
    release(context, "filler")?;
    drop(map);
    let mut pinned = Pinned::new(Kind::Uring, file, Stamp::fresh())?;
    pinned.write(1)?;
    pinned.file.sync_all()?;
    pinned.expect_on_disk(context, 1)
}

/// Writeback that finds no space tells fsync and keeps the data; with space it stores them.
fn enospc_in_writeback(context: &Context) -> Result<()> {
    let len = context.kind().largest_folio();
    let mut pinned = in_large_folios(context, "file", len)?;
    fallocate(&pinned.file, PUNCH, len / 8 + 512..len * 3 / 8 + 512).context("punch")?;
    fill(context, "filler")?;
    pinned.write(1)?;
    // The blocks that keep metadata going may do for some of it.
    let failed = |file: &File| match file.sync_all() {
        Ok(()) => None,
        Err(error) => {
            diag!("fsync on a full disk: {error}");
            Some(error)
        }
    };
    if failed(&pinned.file).is_none() && context.is_missing(&pinned.file, pinned.range.clone())? {
        bail!("fsync returned 0, and part of the file has no block");
    }
    expect_kept(&pinned, 1, "on a full disk")?;
    pinned.write(2)?;
    release(context, "filler")?;
    sync();
    // An error that sync(2) met is reported once; what counts is the call after it.
    let _ = failed(&pinned.file);
    pinned.file.sync_all().context("fsync with space again")?;
    pinned.expect_on_disk(context, 2)?;
    context.expect_after_power_cut("file", pinned.range.clone(), pinned.stamp.round(2))
}

/// A file with pins can be made shorter when there is no space for what a device wrote to it.
fn truncate_without_space(context: &Context) -> Result<()> {
    let len = context.kind().largest_folio();
    let mut pinned = in_large_folios(context, "file", len)?;
    let left = 0..len / 2 + 512;
    pinned.file.sync_all()?;
    fill(context, "filler")?;
    pinned.write(1)?;
    // Where all that is written goes elsewhere, this is an error that waits for fsync.
    sync();
    pinned.file.set_len(left.end).context("truncate")?;
    expect_eq("length", pinned.file.metadata()?.len(), left.end)?;
    release(context, "filler")?;
    let _ = pinned.file.sync_all();
    pinned.file.sync_all().context("fsync with space again")?;
    let stamp = pinned.stamp.round(1);
    context.expect_on_disk(&pinned.file, left.clone(), stamp)?;
    pinned.release()?;
    context.remount()?;
    let file = context.open("file")?;
    expect_eq("length on the disk", file.metadata()?.len(), left.end)?;
    expect_contents(&file, left, stamp)
}

/// A file of `len` bytes, and where on the disk its next writes go: a path that is about to go down.
pub fn written_before_outage(
    context: &Context,
    len: u64,
    stamp: Stamp,
) -> Result<(File, Vec<Range<u64>>)> {
    kmsg::expect("Buffer I/O error");
    kmsg::expect("failed to convert unwritten extents");
    kmsg::expect("BTRFS error");
    let file = context.written("file", len, stamp, len as usize)?;
    let places = disk::rewritten_at(&file, 0..len)?;
    Ok((file, places))
}

/// The disk does not take the data, into written blocks or into unwritten ones. When the path is back, the
/// next fsync stores what the device wrote last.
fn eio_in_writeback(context: &Context, unwritten: bool) -> Result<()> {
    let len = MIB;
    let stamp = Stamp::fresh();
    let (file, places) = written_before_outage(context, len, stamp)?;
    if unwritten {
        fallocate(&file, libc::FALLOC_FL_ZERO_RANGE, 0..len).context("zero")?;
        file.sync_all()?;
    }
    let other = context.open("file")?;
    let mut pinned = Pinned::new(Kind::Uring, file, stamp)?;
    if !unwritten {
        pinned.write(1)?;
        pinned.file.sync_all()?;
        pinned.expect_on_disk(context, 1)?;
    }
    pinned.map.touch();
    pinned.write(2)?;
    let outage = Outage::of(&places)?;
    expect_sync_fails(&pinned.file, &[libc::EIO], "without the disk")?;
    expect_kept(&pinned, 2, "without the disk")?;
    pinned.write(3)?;
    expect_sync_fails(&pinned.file, &[libc::EIO], "still without the disk")?;
    expect_kept(&pinned, 3, "still without the disk")?;
    pinned.write(4)?;
    drop(outage);

    pinned.file.sync_all().context("fsync with the disk back")?;
    pinned.expect_on_disk(context, 4)?;
    context.expect_after_power_cut("file", 0..len, stamp.round(4))?;
    // Whoever had the file open learns of the error, once.
    expect_sync_fails(&other, &[libc::EIO], "through another descriptor")?;
    other
        .sync_all()
        .context("fsync through another descriptor, again")?;
    drop(other);
    pinned.write(5)?;
    pinned.file.sync_all()?;
    pinned.expect_on_disk(context, 5)?;
    let file = pinned.remount(context, "file")?;
    expect_contents(&file, 0..len, stamp.round(5))
}

/// The journal can't be written; the data can, or can't either. The journal aborts, fsync says so, nothing
/// hangs or warns, what was stored before is there after recovery, and so is what fsync returned 0 for. The
/// data may need blocks of which only the aborted transaction knows.
fn journal_abort(
    context: &Context,
    new_blocks: bool,
    break_down: fn(&Context) -> Result<Outage>,
) -> Result<()> {
    kmsg::expect("EXT4-fs error");
    kmsg::expect("Buffer I/O error");
    let aborted = [libc::EIO, libc::EROFS, libc::ESHUTDOWN];
    let len = MIB;
    let mut pinned = in_large_folios(context, "file", len)?;
    pinned.write(1)?;
    pinned.file.sync_all()?;
    pinned.expect_on_disk(context, 1)?;
    let hole = 256 * KIB..512 * KIB;
    if new_blocks {
        fallocate(&pinned.file, PUNCH, hole.clone()).context("punch")?;
    }
    pinned.map.touch();
    pinned.write(2)?;
    let outage = break_down(context)?;
    expect_sync_fails(&pinned.file, &aborted, "without the journal")?;
    expect_kept(&pinned, 2, "without the journal")?;
    // Whoever syncs next may be the one that finds the journal aborted. Only data whose blocks were known
    // to the disk before is stored then.
    pinned.write(3)?;
    if pinned.file.sync_all().is_ok() {
        context
            .expect_after_power_cut("file", 0..len, pinned.stamp.round(3))
            .context("fsync returned 0 after the abort")?;
        diag!("fsync returned 0 after the abort");
    }
    sync();
    expect_kept(&pinned, 3, "after the abort")?;
    drop(outage);
    expect_sync_fails(&pinned.file, &aborted, "with the disk back")?;
    expect_kept(&pinned, 3, "with the disk back")?;
    let stamp = pinned.stamp;
    let file = pinned.remount(context, "file")?;
    // Blocks are where they were; which of the later rounds reached them is open, and so is the punch.
    let sound = |range: Range<u64>| {
        (1..=3).any(|round| expect_contents(&file, range.clone(), stamp.round(round)).is_ok())
    };
    if !sound(0..hole.start) || !sound(hole.end..len) || !new_blocks && !sound(hole) {
        bail!("a file that was on the disk is no longer there as any round wrote it");
    }
    let mut pinned = Pinned::new(Kind::Uring, file, stamp)?;
    pinned.write(4)?;
    pinned.file.sync_all().context("fsync after recovery")?;
    pinned.expect_on_disk(context, 4)
}

/// No path to the journal.
fn journal(context: &Context) -> Result<Outage> {
    const JOURNAL: u64 = 8;
    let block = context.root().metadata()?.blksize();
    let ranges: Vec<Range<u64>> = extents_of(context, JOURNAL)?
        .iter()
        .filter(|numbers| numbers.len() >= 9 && numbers[0] == numbers[1])
        .map(|numbers| numbers[6] * block..(numbers[6] + numbers[8]) * block)
        .collect();
    if ranges.is_empty() {
        bail!("the journal is nowhere");
    }
    Outage::of(&ranges)
}

/// The block that says where the file's blocks are can't be read, and so blocks can't be allocated. What
/// has blocks is stored, the rest stays dirty, neither clean nor out of the file.
fn eio_of_block_map(context: &Context) -> Result<()> {
    kmsg::expect("Delayed block allocation failed");
    kmsg::expect("Buffer I/O error");
    kmsg::expect("EXT4-fs error");
    let len = 256 * KIB;
    let page = PAGE as u64;
    let stamp = Stamp::fresh();
    let file = context.sparse("file", len)?;
    for offset in (0..len).step_by(2 * PAGE) {
        file.write_all_at(&stamp.bytes(offset, PAGE), offset)?;
    }
    file.sync_all()?;
    let inode = file.metadata()?.ino();
    drop(file);
    context.remount()?;
    let map_block = block_of_extents(context, inode)?;
    let mut pinned = Pinned::new(Kind::Uring, context.open("file")?, stamp)?;
    pinned.write(1)?;
    pinned.map.touch();
    let outage = Outage::of(&[map_block])?;
    fs::write("/proc/sys/vm/drop_caches", "1")?;
    expect_sync_fails(&pinned.file, &[libc::EIO], "without the block map")?;
    expect_kept(&pinned, 1, "without the block map")?;
    for offset in (0..len).step_by(2 * PAGE) {
        context.expect_on_disk(&pinned.file, offset..offset + page, stamp.round(1))?;
    }
    pinned.write(2)?;
    drop(outage);
    pinned.file.sync_all().context("fsync with the disk back")?;
    pinned.expect_on_disk(context, 2)?;
    context.expect_after_power_cut("file", 0..len, stamp.round(2))
}

/// Where the only block of extents of a file is, that its inode points to.
fn block_of_extents(context: &Context, inode: u64) -> Result<Range<u64>> {
    let extents = extents_of(context, inode)?;
    let index = extents
        .iter()
        .find(|numbers| numbers.starts_with(&[0, 1]))
        .context("the file has no block of extents")?;
    let block = context.root().metadata()?.blksize();
    Ok(index[6] * block..(index[6] + 1) * block)
}

/// The extent tree of an inode, entry by entry: level and depth, number of the entry and of all, first and
/// last logical block, first physical block; then, in leaves, the last one and how many.
fn extents_of(context: &Context, inode: u64) -> Result<Vec<Vec<u64>>> {
    let request = format!("ex <{inode}>");
    let text = run(Command::new("debugfs")
        .args(["-R", &request])
        .arg(context.device()))?;
    let numbers = |line: &str| -> Vec<u64> {
        line.split(|c: char| !c.is_ascii_digit())
            .filter_map(|word| word.parse().ok())
            .collect()
    };
    let mut extents: Vec<Vec<u64>> = text.lines().map(numbers).collect();
    extents.retain(|numbers| numbers.len() >= 7);
    Ok(extents)
}

/// Holes of all sizes in a folio that can't be split: what the device writes there gets blocks again, and
/// what it wrote is never zeroed.
fn holes_in_pinned_folio(context: &Context) -> Result<()> {
    let len = MIB.min(context.kind().largest_folio());
    let mut pinned = in_large_folios(context, "file", len)?;
    let part = len / 16;
    let holes = [
        vec![(4 * KIB, 4 * KIB)],
        vec![(part * 3 / 2 + 512, 2 * KIB), (part * 3, KIB)],
        vec![(part * 9 / 2 - 8, part * 3 / 2 + 16)],
        (0..8).map(|i| (i * part, part / 4)).collect(),
    ];
    for (round, holes) in (1..).zip(holes) {
        for (start, len) in &holes {
            fallocate(&pinned.file, PUNCH, *start..start + len).context("punch")?;
        }
        pinned.write(round)?;
        pinned.file.sync_all()?;
        expect_kept(&pinned, round, "after fsync")?;
        pinned
            .expect_on_disk(context, round)
            .with_context(|| format!("holes {holes:?}"))?;
    }
    for (round, cut) in (10..).zip([len - 8 * KIB, len / 2 + 1000, 512]) {
        pinned.file.set_len(cut)?;
        pinned.write(round)?;
        pinned.file.sync_all()?;
        let stamp = pinned.stamp.round(round);
        context
            .expect_on_disk(&pinned.file, 0..cut, stamp)
            .with_context(|| format!("cut at {cut}"))?;
        pinned.file.set_len(len)?;
        pinned.write(round + 20)?;
        pinned.file.sync_all()?;
        expect_kept(&pinned, round + 20, "extended again")?;
        pinned
            .expect_on_disk(context, round + 20)
            .with_context(|| format!("extended again from {cut}"))?;
    }
    let last = pinned.stamp.round(32);
    context.expect_after_power_cut("file", 0..len, last)
}

/// The file grows inside its last page, which has blocks that were beyond its end when it was pinned.
fn extend_in_last_page(context: &Context) -> Result<()> {
    let page = PAGE as u64;
    let stamp = Stamp::fresh();
    let file = context.written("file", 704, stamp, 704)?;
    let map = Mapping::shared(&file, 0, PAGE)?;
    let mut device = Kind::Uring.attach(&map, 0..page)?;
    type Extend = fn(&File, Range<u64>) -> io::Result<()>;
    let truncate: Extend = |file, range| file.set_len(range.end);
    let append: Extend = |file, range| {
        let bytes = vec![0xa5; (range.end - range.start) as usize];
        file.write_all_at(&bytes, range.start)
    };
    let allocate: Extend = |file, range| fallocate(file, 0, range);
    let steps = [
        (1504, truncate),
        (2056, append),
        (3304, allocate),
        (page - 8, append),
        (page, truncate),
    ];
    let mut len = 704;
    for (round, (to, extend)) in (1..).zip(steps) {
        extend(&file, len..to)?;
        len = to;
        device.write(stamp.round(round), 0..page)?;
        file.sync_all()?;
        if map.load(0, PAGE) != stamp.round(round).bytes(0, PAGE) {
            bail!("{len} bytes: what the device wrote is no longer in memory");
        }
        context
            .expect_on_disk(&file, 0..len, stamp.round(round))
            .with_context(|| format!("{len} bytes"))?;
    }
    context.expect_after_power_cut("file", 0..len, stamp.round(steps.len() as u32))
}

/// A page of memory breaks under a pin: fsync says so, everything else is stored, and nobody panics.
fn hwpoison(context: &Context, large: bool) -> Result<()> {
    const BAD: usize = 5;
    let len = 16 * PAGE as u64;
    let mut pinned = match large {
        true => in_large_folios(context, "file", len)?,
        false => {
            let stamp = Stamp::fresh();
            let file = context.sparse("file", len)?;
            let map = Mapping::shared(&file, 0, len as usize)?;
            map.advise_random();
            map.touch();
            let device = Kind::Uring.attach(&map, 0..len)?;
            let range = 0..len;
            Pinned {
                device,
                map,
                file,
                stamp,
                range,
            }
        }
    };
    pinned.write(1)?;
    pinned.file.sync_all()?;
    pinned.expect_on_disk(context, 1)?;
    pinned.write(2)?;
    poison(&pinned.map, BAD * PAGE)?;
    let sound = [0..(BAD * PAGE) as u64, ((BAD + 1) * PAGE) as u64..len];
    let first = pinned.file.sync_all();
    diag!("fsync: {first:?}");
    if first.is_ok() && !large {
        bail!("fsync returned 0 though a page is lost");
    }
    for round in 2..=4 {
        if round > 2 {
            pinned.write(round)?;
        }
        pinned
            .file
            .sync_all()
            .context("fsync, after the error was told")?;
        for range in &sound {
            context
                .expect_on_disk(&pinned.file, range.clone(), pinned.stamp.round(round))
                .with_context(|| format!("round {round}"))?;
        }
    }
    pinned.device.unpin()?;
    ledger::wait_until_empty(10)
}

/// Has the kernel take a page of the mapping for broken. A child asks for it, as it is killed.
fn poison(map: &Mapping, offset: usize) -> Result<()> {
    // SAFETY: this process has one thread, so that the child may do as it likes.
    let child = unsafe { libc::fork() };
    match child {
        -1 => return Err(io::Error::last_os_error()).context("fork"),
        0 => {
            let page = (map.address() + offset) as *mut libc::c_void;
            // SAFETY: the page is in the mapping, and nothing of it is used here.
            unsafe {
                page.cast::<u8>().read_volatile();
                let done = libc::madvise(page, PAGE, libc::MADV_HWPOISON);
                let errno = io::Error::last_os_error().raw_os_error().unwrap_or(0);
                libc::_exit(if done == 0 { 0 } else { errno });
            }
        }
        _ => {}
    }
    let mut status = 0;
    // SAFETY: `status` is valid for writing.
    unsafe { libc::waitpid(child, &mut status, 0) };
    let killed = libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status));
    let errno = libc::WEXITSTATUS(status);
    diag!("the child that broke the page: signal {killed:?}, errno {errno}");
    match (killed, errno) {
        (None, libc::EINVAL) => skip("no CONFIG_MEMORY_FAILURE"),
        _ => Ok(()),
    }
}
