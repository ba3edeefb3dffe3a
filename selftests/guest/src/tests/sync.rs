// SPDX-License-Identifier: GPL-2.0

//! Every way to get data to the disk, with pinned pages among what is written: pinned folios are never
//! clean, and what the device wrote before is on the disk afterwards.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{bail, Context as _, Result};

use super::common::{busy_flusher, wait_until, while_syncing, Flush, Pinned, Sysctl, KIB, MIB};
use crate::context::{expect_contents, Context};
use crate::device::{while_writing, Dma, Kind};
use crate::diag;
use crate::disk::{self, Requests};
use crate::ledger::Switch;
use crate::map::{Mapping, PAGE};
use crate::pagemap::{PageFlags, DIRTY, LOCKED};
use crate::stamp::Stamp;
use crate::tap::Invariant::{I1, I4};
use crate::tap::Test;

pub const TESTS: &[Test] = &[
    Test::new("uring.every_sync", |c| every_sync(c, Kind::Uring))
        .proves(&[I1, I4])
        .without("no_keep_dirty"),
    Test::new("verbs.every_sync", |c| every_sync(c, Kind::Verbs))
        .once()
        .proves(&[I1, I4])
        .without("no_keep_dirty"),
    Test::new("sync.never_clean", never_clean)
        .proves(&[I1])
        .without("late_keep_dirty"),
    Test::new("sync.written_beside_pins", written_beside_pins)
        .proves(&[I4])
        .without("no_keep_dirty"),
    Test::new("sync.direct_read", direct_read)
        .proves(&[I4])
        .without("no_keep_dirty"),
    Test::new("sync.direct_write", direct_write)
        .proves(&[I1, I4])
        .without("no_keep_dirty"),
    Test::new("sync.direct_write_beside_pins", direct_write_beside_pins)
        .proves(&[I4])
        .without("no_keep_dirty"),
    Test::new("sync.flusher", flusher)
        .once()
        .proves(&[I4])
        .without("no_keep_dirty"),
    // btrfs writes so much metadata that the difference is lost in it.
    Test::new("sync.whole_requests", whole_requests).only("ext4 xfs"),
];

/// As many as a bio of copies has.
const PINWB_BIO_MAX_PAGES: u64 = 256;

/// Each way is tried, so that each must fail without keep-dirty, all but the first.
fn every_sync(context: &Context, kind: Kind) -> Result<()> {
    let flags = PageFlags::open()?;
    let mut pinned = Pinned::sparse(context, kind, "file", MIB)?;
    pinned.file.sync_all()?;
    pinned.map.touch();
    let bytes = 0..pinned.map.len();
    let pages = pinned.map.len() / PAGE;
    let mut lost = Vec::new();
    let mut round = 0;
    for flush in Flush::EVERY {
        round += 1;
        pinned.write(round)?;
        flush.call(&pinned.file, &pinned.map)?;
        let dirty = flags.count(&pinned.map, bytes.clone(), DIRTY)?;
        if dirty < pages {
            lost.push(format!("{flush:?}: {} pages are clean", pages - dirty));
        }
        if let Err(error) = pinned.expect_on_disk(context, round) {
            lost.push(format!("{flush:?}: {error:#}"));
        }
    }
    if !lost.is_empty() {
        bail!("{}", lost.join("\n"));
    }
    pinned.device.unpin()
}

/// Looks at the flags of pinned pages all the time: whenever nobody holds the folio's lock, it is dirty.
fn never_clean(context: &Context) -> Result<()> {
    let flags = PageFlags::open()?;
    let mut pinned = Pinned::sparse(context, Kind::Uring, "file", 256 * KIB)?;
    pinned.map.touch();
    let (device, map, file) = (&mut pinned.device, &pinned.map, &pinned.file);
    let (stamp, range) = (pinned.stamp, pinned.range.clone());
    // Between keep-dirty and the copy, and once more between the copy and a keep-dirty that comes late.
    let _delay = Switch::delay("bounce_ms", 30)?;
    thread::scope(|scope| {
        let syncer = scope.spawn(|| -> Result<()> {
            for (round, flush) in (1..).zip(Flush::ALL) {
                device.write(stamp.round(round), range.clone())?;
                flush.call(file, map)?;
            }
            Ok(())
        });
        let mut samples = 0;
        let mut clean = 0;
        while !syncer.is_finished() {
            samples += 1;
            let found = flags.of(map, 0..map.len())?;
            clean += found.iter().filter(|f| *f & (LOCKED | DIRTY) == 0).count();
        }
        diag!("{samples} samples of {} pages", map.len() / PAGE);
        match syncer.join() {
            Ok(result) => result?,
            Err(_) => bail!("the syncing thread panicked"),
        }
        if clean > 0 {
            bail!("a pinned page was clean {clean} times");
        }
        Ok(())
    })
}

/// A copy is a page, and a segment for the disk. Bios of them are what the disk takes at once, or the block layer
/// would cut a small piece off each.
fn whole_requests(context: &Context) -> Result<()> {
    expect_whole_requests(context)?;
    // A bio is two of these, and a small one if nobody looks at it.
    let half = (PINWB_BIO_MAX_PAGES / 2 - 1) * PAGE as u64 / KIB;
    let limit = disk::attribute_path(context.device(), disk::MOST_KIB)?;
    let _small = Sysctl::set(&limit.to_string_lossy(), &half.to_string())?;
    expect_whole_requests(context)
}

fn expect_whole_requests(context: &Context) -> Result<()> {
    const LEN: u64 = 32 * MIB;
    let pages = disk::most_pages(context.device())?.min(PINWB_BIO_MAX_PAGES);
    let least = LEN.div_ceil(pages * PAGE as u64);
    let stamp = Stamp::fresh();
    for (folios, file) in [
        ("small", context.sparse("small", LEN)?),
        // As large as the filesystem has them.
        ("large", context.written("large", LEN, stamp, LEN as usize)?),
    ] {
        let mut pinned = Pinned::new(Kind::Uring, file, stamp)?;
        pinned.write(1)?;
        pinned.file.sync_all()?;
        pinned.write(2)?;
        let before = Requests::of(context.device())?.writes;
        pinned.file.sync_all()?;
        let requests = Requests::of(context.device())?.writes - before;
        diag!("{folios} folios: {requests} requests, of {pages} pages at most");
        // Metadata, and extents that end within one.
        if requests > least + least / 4 {
            bail!("{folios} folios: {requests} requests, {least} would do");
        }
        pinned.device.unpin()?;
    }
    Ok(())
}

/// A mapped file whose middle is pinned.
struct Middle {
    file: File,
    map: Mapping,
    device: Box<dyn Dma>,
    stamp: Stamp,
}

impl Middle {
    const LEN: u64 = 64 * KIB;
    const PINNED: Range<u64> = 16 * KIB..48 * KIB;

    /// All of it is on the disk as round 0 says. In small folios the pins are on pages of their own, in a
    /// large one the unpinned pages are diverted as well.
    fn new(context: &Context, name: &str, large: bool) -> Result<Self> {
        let stamp = Stamp::fresh();
        let len = Self::LEN as usize;
        let file = if large {
            context.written(name, Self::LEN, stamp, len)?
        } else {
            context.sparse(name, Self::LEN)?
        };
        let map = Mapping::shared(&file, 0, len)?;
        if !large {
            map.advise_random();
            map.store(0, &stamp.bytes(0, len));
        }
        let device = Kind::Uring.attach(&map, Self::PINNED)?;
        file.sync_all()?;
        Ok(Self {
            file,
            map,
            device,
            stamp,
        })
    }

    /// Fails unless each range is on the disk as its round wrote it.
    fn expect_on_disk(&self, context: &Context, parts: &[(Range<u64>, u32)]) -> Result<()> {
        for (range, round) in parts {
            context.expect_on_disk(&self.file, range.clone(), self.stamp.round(*round))?;
        }
        Ok(())
    }
}

/// A write(2) that is on the disk when it returns.
#[derive(Clone, Copy, Debug)]
enum SyncWrite {
    OpenSync,
    OpenDsync,
    CallSync,
    CallDsync,
}

impl SyncWrite {
    const ALL: [SyncWrite; 4] = [
        SyncWrite::OpenSync,
        SyncWrite::OpenDsync,
        SyncWrite::CallSync,
        SyncWrite::CallDsync,
    ];

    fn write(self, context: &Context, name: &str, bytes: &[u8], offset: u64) -> Result<()> {
        let (open, call) = match self {
            SyncWrite::OpenSync => (libc::O_SYNC, 0),
            SyncWrite::OpenDsync => (libc::O_DSYNC, 0),
            SyncWrite::CallSync => (0, libc::RWF_SYNC),
            SyncWrite::CallDsync => (0, libc::RWF_DSYNC),
        };
        let file = OpenOptions::new()
            .write(true)
            .custom_flags(open)
            .open(context.path(name))?;
        let piece = libc::iovec {
            iov_base: bytes.as_ptr() as *mut libc::c_void,
            iov_len: bytes.len(),
        };
        // SAFETY: the one piece is `bytes`, which the kernel only reads.
        let written =
            unsafe { libc::pwritev2(file.as_raw_fd(), &piece, 1, offset as libc::off_t, call) };
        match written {
            len if len == bytes.len() as isize => Ok(()),
            -1 => Err(io::Error::last_os_error()).with_context(|| format!("{self:?}")),
            len => bail!("{self:?}: {len} bytes of {}", bytes.len()),
        }
    }
}

/// Synchronous writes into pinned pages and next to them are durable, and cost the device's writes nothing.
fn written_beside_pins(context: &Context) -> Result<()> {
    let pinned = Middle::PINNED;
    let spots = [
        // The page before, the middle of the first pinned page, from the last pinned page into the next.
        pinned.start - 4 * KIB..pinned.start,
        pinned.start + 512..pinned.start + 1536,
        pinned.end - 512..pinned.end + 512,
    ];
    for (name, large) in [("small", false), ("large", true)] {
        let mut middle = Middle::new(context, name, large)?;
        let mut round = 0;
        for way in SyncWrite::ALL {
            round += 2;
            let stamp = middle.stamp;
            middle
                .device
                .write(stamp.round(round - 1), pinned.clone())?;
            for spot in &spots {
                let bytes = stamp
                    .round(round)
                    .bytes(spot.start, (spot.end - spot.start) as usize);
                way.write(context, name, &bytes, spot.start)?;
                middle
                    .expect_on_disk(context, &[(spot.clone(), round)])
                    .with_context(|| format!("{name}, {way:?} at {spot:?}"))?;
            }
            middle.file.sync_all()?;
            middle
                .expect_on_disk(
                    context,
                    &[
                        (pinned.start..spots[1].start, round - 1),
                        (spots[1].clone(), round),
                        (spots[1].end..spots[2].start, round - 1),
                        (spots[2].clone(), round),
                    ],
                )
                .with_context(|| format!("{name}, fsync after {way:?}"))?;
        }
        middle.device.unpin()?;
    }
    Ok(())
}

/// The file, opened for direct I/O, and an aligned buffer as long as it is.
struct Direct {
    file: File,
    buffer: Mapping,
}

impl Direct {
    fn open(context: &Context, name: &str, len: u64) -> Result<Self> {
        let file = context.open_direct(name)?;
        let buffer = Mapping::anonymous(len as usize)?;
        Ok(Self { file, buffer })
    }

    fn read(&self, range: Range<u64>) -> Result<Vec<u8>> {
        let len = (range.end - range.start) as usize;
        let read = self.buffer.read_from(&self.file, len, range.start);
        match read.context("direct read")? {
            read if read == len => Ok(self.buffer.load(0, len)),
            read => bail!("direct read: {read} bytes of {len}"),
        }
    }

    fn write(&self, stamp: Stamp, range: Range<u64>) -> Result<()> {
        let len = (range.end - range.start) as usize;
        self.buffer.store(0, &stamp.bytes(range.start, len));
        let written = self.buffer.write_to(&self.file, len, range.start);
        match written.context("direct write")? {
            written if written == len => Ok(()),
            written => bail!("direct write: {written} bytes of {len}"),
        }
    }
}

/// A direct read gets what the device wrote, for it writes dirty pages back first.
fn direct_read(context: &Context) -> Result<()> {
    for (name, large) in [("small", false), ("large", true)] {
        let mut middle = Middle::new(context, name, large)?;
        let direct = Direct::open(context, name, Middle::LEN)?;
        let pinned = Middle::PINNED;
        for round in 1..=3 {
            let stamp = middle.stamp.round(round);
            middle.device.write(stamp, pinned.clone())?;
            let found = direct.read(0..Middle::LEN)?;
            let mut expected = middle.stamp.bytes(0, Middle::LEN as usize);
            stamp.fill(
                &mut expected[pinned.start as usize..pinned.end as usize],
                pinned.start,
            );
            let difference = crate::stamp::compare(&expected, &found, 0, stamp);
            if difference.sectors > 0 {
                bail!(
                    "{name}, round {round}: a direct read got {:?}",
                    difference.notes
                );
            }
        }
        middle.device.unpin()?;
    }
    Ok(())
}

/// A direct write can't drop pinned pages from the cache. It goes through them, so that file, mapping, device
/// and disk agree.
fn direct_write(context: &Context) -> Result<()> {
    let pinned = Middle::PINNED;
    // From before the pins to their middle, so that the device's later writes meet both parts.
    let written = pinned.start - 8 * KIB..pinned.start + 16 * KIB;
    let rewritten = pinned.start + 8 * KIB..pinned.end;
    for (name, large) in [("small", false), ("large", true)] {
        let mut middle = Middle::new(context, name, large)?;
        let direct = Direct::open(context, name, Middle::LEN)?;
        let mut round = 0;
        for _ in 0..2 {
            round += 3;
            let stamp = middle.stamp;
            middle
                .device
                .write(stamp.round(round - 2), pinned.clone())?;
            direct.write(stamp.round(round - 1), written.clone())?;
            let parts = [
                (written.clone(), round - 1),
                (written.end..pinned.end, round - 2),
            ];
            for (range, round) in &parts {
                expect_contents(&middle.file, range.clone(), stamp.round(*round))?;
                let len = (range.end - range.start) as usize;
                if middle.map.load(range.start as usize, len)
                    != stamp.round(*round).bytes(range.start, len)
                {
                    bail!("{name}: {range:?} differs in the mapping after a direct write");
                }
            }
            middle
                .expect_on_disk(context, &parts[..1])
                .with_context(|| format!("{name}, after the direct write"))?;
            middle.device.write(stamp.round(round), rewritten.clone())?;
            middle.file.sync_all()?;
            middle
                .expect_on_disk(
                    context,
                    &[
                        (written.start..rewritten.start, round - 1),
                        (rewritten.clone(), round),
                    ],
                )
                .with_context(|| format!("{name}, after the device's next write"))?;
        }
        let Middle {
            file,
            map,
            device,
            stamp,
        } = middle;
        device.unpin()?;
        drop((file, map, direct));
        context.remount()?;
        let file = context.open(name)?;
        expect_contents(
            &file,
            written.start..rewritten.start,
            stamp.round(round - 1),
        )?;
        expect_contents(&file, rewritten.clone(), stamp.round(round))?;
    }
    Ok(())
}

/// Direct writes to one part of a large folio, the device's to another, and fsync, all at once.
fn direct_write_beside_pins(context: &Context) -> Result<()> {
    let mut middle = Middle::new(context, "file", true)?;
    let direct = Direct::open(context, "file", Middle::LEN)?;
    let beside = Middle::PINNED.end..Middle::LEN;
    let (stamp, file) = (middle.stamp, &middle.file);
    let write_directly = || {
        let end = Instant::now() + Duration::from_secs(1);
        let mut round = 0;
        while Instant::now() < end {
            round += 1;
            direct.write(stamp.round(round), beside.clone())?;
        }
        Ok(round)
    };
    let (direct_round, pinned_round) =
        while_writing(&mut *middle.device, stamp, Middle::PINNED, || {
            while_syncing(file, File::sync_all, write_directly)
        })?;
    diag!("{direct_round} direct writes beside {pinned_round} rounds of the device");
    let parts = [(Middle::PINNED, pinned_round), (beside, direct_round)];
    middle.expect_on_disk(context, &parts[1..])?;
    middle.file.sync_all()?;
    middle.expect_on_disk(context, &parts)
}

/// Without any call, periodic writeback brings the device's data to the disk.
fn flusher(context: &Context) -> Result<()> {
    const PATIENCE: Duration = Duration::from_secs(5);
    let mut pinned = Pinned::sparse(context, Kind::Uring, "file", 256 * KIB)?;
    pinned.file.sync_all()?;
    let _busy = busy_flusher()?;
    let len = pinned.map.len();
    for round in 1..=3 {
        pinned.write(round)?;
        let expected = pinned.stamp.round(round).bytes(0, len);
        let written = wait_until(PATIENCE, || {
            let found =
                crate::disk::read_below(context.raw()?, &pinned.file, pinned.range.clone())?;
            Ok(found.bytes == expected)
        })?;
        if !written {
            bail!("round {round} is not on the disk after {PATIENCE:?}");
        }
    }
    Ok(())
}
