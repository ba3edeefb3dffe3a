// SPDX-License-Identifier: GPL-2.0

//! The races that the design is about, each as a story with an ending.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::Duration;

use anyhow::{bail, Context as _, Result};

use super::common::{fallocate, start_writeback, wait_until, while_syncing, Pinned, KIB, MIB};
use crate::context::Context;
use crate::device::Kind;
use crate::diag;
use crate::layer::{Hold, Layer};
use crate::ledger::{self, Stats, Switch};
use crate::map::{Mapping, PAGE};
use crate::pagemap::{PageFlags, DIRTY, WRITEBACK};
use crate::stamp::Stamp;
use crate::tap::Invariant::{I1, I2, I4, I6};
use crate::tap::{expect_eq, skip, Test};

pub const TESTS: &[Test] = &[
    Test::new("story1.admitted_after_writeback", story1)
        .on(Layer::Held)
        .proves(&[I1, I2])
        // btrfs waits for writeback in the fault already.
        .without_on("ext4 xfs", "no_admission"),
    Test::new("story2.invalidated_before_admission", story2)
        .once()
        .proves(&[I1])
        .without("no_admission"),
    Test::new("story3.large_folio_one_block_dirty", story3)
        .proves(&[I1, I4])
        .without("no_admission"),
    Test::new("story4.second_fsync_first_in_flight", story4)
        .on(Layer::Held)
        .proves(&[I1, I4])
        .without("late_keep_dirty"),
    Test::new("story5.extend_and_dma_during_writeback", story5)
        .proves(&[I4])
        .without("no_keep_dirty"),
    Test::new("story10.partial_truncate_pinned_large_folio", story10)
        .proves(&[I4, I6])
        .without("no_hole_alloc"),
    Test::new("story12.munmap_during_writeback", story12).proves(&[I4]),
];

/// A mapped file whose blocks are on the disk and whose pages are in the page tables.
fn settled(context: &Context, name: &str, len: u64, stamp: Stamp) -> Result<(File, Mapping)> {
    let file = context.written(name, len, stamp, MIB as usize)?;
    let map = Mapping::shared(&file, 0, len as usize)?;
    map.touch();
    Ok((file, map))
}

/// Writeback holds the folio when a pin arrives: the pin is admitted after that I/O, and finds it dirty.
fn story1(context: &Context) -> Result<()> {
    let len = 256 * KIB;
    let flags = PageFlags::open()?;
    let stamp = Stamp::fresh();
    let (file, map) = settled(context, "file", len, stamp)?;
    map.store(0, &stamp.round(1).bytes(0, len as usize));
    let hold = Hold::start()?;
    start_writeback(&file)?;
    let pages = len as usize / PAGE;
    crate::tap::expect_eq(
        "pages under writeback before the pin",
        flags.count(&map, 0..len as usize, WRITEBACK)?,
        pages,
    )?;
    let mut release = hold.end_after(Duration::from_millis(500))?;
    let mut device = Kind::Uring.attach(&map, 0..len)?;
    let writeback = flags.count(&map, 0..len as usize, WRITEBACK)?;
    let dirty = flags.count(&map, 0..len as usize, DIRTY)?;
    diag!(
        "admitted before the I/O was over: {}",
        release.try_wait()?.is_none()
    );
    release.wait()?;
    if writeback > 0 || dirty < pages {
        bail!("admitted with {writeback} pages under writeback and {dirty} of {pages} dirty");
    }
    device.write(stamp.round(2), 0..len)?;
    file.sync_all()?;
    context.expect_on_disk(&file, 0..len, stamp.round(2))
}

/// A direct write drops the page from the cache between GUP and admission: the driver gets the page that
/// is in the file.
fn story2(context: &Context) -> Result<()> {
    const WINDOW: u32 = 1500;
    let len = 64 * KIB;
    let half = len / 2;
    let stamp = Stamp::fresh();
    let (file, map) = settled(context, "file", len, stamp)?;
    let direct = context.open_direct("file")?;
    let aligned = Mapping::anonymous(len as usize)?;
    aligned.store(0, &stamp.round(2).bytes(0, len as usize));
    let restarts = Stats::read()?.get("admit_restarts");
    let delay = Switch::delay("admit_ms", WINDOW)?;
    let mut device = thread::scope(|scope| {
        let pin = scope.spawn(|| Kind::Uring.attach(&map, 0..len));
        thread::sleep(Duration::from_millis(u64::from(WINDOW) / 3));
        let written = aligned.write_to(&direct, len as usize, 0);
        let early = !pin.is_finished();
        drop(delay);
        let device = match pin.join() {
            Ok(device) => device?,
            Err(_) => bail!("the pinning thread panicked"),
        };
        expect_eq("direct write", written?, len as usize)?;
        if !early {
            return skip("the pin was admitted before the direct write");
        }
        Ok(device)
    })?;
    let restarts = Stats::read()?.get("admit_restarts") - restarts;
    diag!("{restarts} restarts of admission");
    device.write(stamp.round(3), 0..half)?;
    file.sync_all()?;
    let written = stamp.round(3).bytes(0, half as usize);
    let lost = context.mismatches(&file, 0..half, &written, stamp.round(3))?;
    let unseen = map.load(0, half as usize) != written;
    if lost > 0 || unseen {
        bail!("the device writes to a page that has left the file: {lost} sectors lost");
    }
    context.expect_on_disk(&file, half..len, stamp.round(2))
}

/// One block of a large folio is dirty by write(2), another is pinned: the pinned one reaches the disk.
///
/// The fault of the pin dirties the folio as a whole, so the story needs writeback and write(2) to come
/// between that fault and admission.
fn story3(context: &Context) -> Result<()> {
    const WINDOW: u32 = 1200;
    let len = 2 * MIB;
    let stamp = Stamp::fresh();
    let file = context.written("file", len, stamp, len as usize)?;
    let map = Mapping::shared(&file, 0, len as usize)?;
    let written = 64 * KIB..65 * KIB;
    let pinned = 128 * KIB..132 * KIB;
    let write = |round: u32| {
        let bytes = stamp.round(round).bytes(written.start, KIB as usize);
        file.write_all_at(&bytes, written.start)
    };
    let delay = Switch::delay("admit_ms", WINDOW)?;
    let mut device = thread::scope(|scope| {
        let pin = scope.spawn(|| Kind::Uring.attach(&map, pinned.clone()));
        thread::sleep(Duration::from_millis(u64::from(WINDOW) / 3));
        file.sync_all()?;
        write(1)?;
        let early = !pin.is_finished();
        drop(delay);
        match pin.join() {
            Ok(_) if !early => skip("the pin was admitted before the write"),
            Ok(device) => device,
            Err(_) => bail!("the pinning thread panicked"),
        }
    })?;
    let pages = ledger::folios_of(&file)?
        .first()
        .map_or(0, |folio| folio.pages);
    if pages < 64 {
        return skip(format!("the page cache gave a folio of {pages} pages"));
    }
    for round in 1..=3 {
        if round > 1 {
            write(round)?;
        }
        device.write(stamp.round(round), pinned.clone())?;
        file.sync_all()?;
        context
            .expect_on_disk(&file, pinned.clone(), stamp.round(round))
            .context("the pinned block")?;
        context
            .expect_on_disk(&file, written.clone(), stamp.round(round))
            .context("the written block")?;
        context.expect_on_disk(&file, 0..written.start, stamp)?;
        context.expect_on_disk(&file, pinned.end..len, stamp)?;
    }
    Ok(())
}

/// The copy of a folio is being written when the device writes again and a second fsync starts: the
/// second one writes it again.
fn story4(context: &Context) -> Result<()> {
    let len = 64 * KIB;
    let flags = PageFlags::open()?;
    let mut pinned = Pinned::sparse(context, Kind::Uring, "file", len)?;
    pinned.write(0)?;
    pinned.file.sync_all()?;
    pinned.map.touch();
    // Between keep-dirty and the copy, and once more between the copy and a keep-dirty that comes late.
    let delay = Switch::delay("bounce_ms", 200)?;
    let mut round = 0;
    for pause in [20, 150, 250, 320, 450] {
        round += 2;
        pinned.write(round - 1)?;
        let stamp = pinned.stamp.round(round);
        let file = &pinned.file;
        let (device, map) = (&mut pinned.device, &pinned.map);
        let hold = Hold::start()?;
        thread::scope(|scope| -> Result<()> {
            let first = scope.spawn(|| file.sync_all());
            wait_until(Duration::from_secs(5), || {
                Ok(flags.count(map, 0..len as usize, WRITEBACK)? > 0)
            })?;
            thread::sleep(Duration::from_millis(pause));
            device.write(stamp, 0..len)?;
            let second = scope.spawn(|| -> Result<usize> {
                file.sync_all()?;
                let expected = stamp.bytes(0, len as usize);
                context.mismatches(file, 0..len, &expected, stamp)
            });
            thread::sleep(Duration::from_millis(300));
            let early = first.is_finished() || second.is_finished();
            drop(hold);
            let (Ok(synced), Ok(lost)) = (first.join(), second.join()) else {
                bail!("an fsync panicked");
            };
            synced?;
            let lost = lost?;
            diag!("pause {pause} ms: {lost} sectors lost");
            if early {
                bail!("an fsync returned while its I/O was held");
            }
            if lost > 0 {
                bail!("the second fsync returned 0 with {lost} sectors not on the disk");
            }
            Ok(())
        })?;
    }
    drop(delay);
    Ok(())
}

/// The file grows, and the device writes to the new part, while writeback holds an older size.
fn story5(context: &Context) -> Result<()> {
    const SHORT: u64 = 5000;
    const LONG: u64 = 8192;
    let file = context.sparse("file", SHORT)?;
    let map = Mapping::shared(&file, 0, LONG as usize)?;
    let mut device = Kind::Uring.attach(&map, 0..LONG)?;
    let stamp = Stamp::fresh();
    let _delay = Switch::delay("bounce_ms", 60).ok();
    let mut round = 0;
    for pause in [0, 10, 30, 50, 70, 90] {
        round += 2;
        file.set_len(SHORT)?;
        device.write(stamp.round(round - 1), 0..LONG)?;
        thread::scope(|scope| -> Result<()> {
            let sync = scope.spawn(|| file.sync_all());
            thread::sleep(Duration::from_millis(pause));
            file.set_len(LONG)?;
            device.write(stamp.round(round), 0..LONG)?;
            match sync.join() {
                Ok(result) => Ok(result?),
                Err(_) => bail!("fsync panicked"),
            }
        })?;
        let expected = stamp.round(round).bytes(0, LONG as usize);
        if map.load(0, LONG as usize) != expected {
            bail!("pause {pause} ms: writeback wiped what the device wrote");
        }
        file.sync_all()?;
        context
            .expect_on_disk(&file, 0..LONG, stamp.round(round))
            .with_context(|| format!("pause {pause} ms"))?;
    }
    Ok(())
}

/// A file whose first folio is large and pinned as a whole; gives the bytes that it covers.
fn pin_large_folio(context: &Context, name: &str) -> Result<(Pinned, Range<u64>)> {
    let len = 2 * MIB;
    let stamp = Stamp::fresh();
    let file = context.written(name, len, stamp, len as usize)?;
    let pinned = Pinned::new(Kind::Uring, file, stamp)?;
    let folios = ledger::folios_of(&pinned.file)?;
    let Some((index, pages)) = folios
        .iter()
        .max_by_key(|folio| folio.pages)
        .and_then(|folio| folio.place.map(|(_, _, index)| (index, folio.pages)))
        .filter(|(_, pages)| *pages >= 64)
    else {
        return skip("the page cache gave no large folio");
    };
    diag!("a folio of {pages} pages at page {index}");
    let start = index * PAGE as u64;
    Ok((pinned, start..start + pages * PAGE as u64))
}

/// A pinned large folio loses blocks by truncate or punch and can't be split: what the device writes to
/// it afterwards gets blocks again.
fn story10(context: &Context) -> Result<()> {
    for (name, punch) in [("truncated", false), ("punched", true)] {
        let (mut pinned, folio) = pin_large_folio(context, name)?;
        let middle = folio.start + (folio.end - folio.start) / 2;
        if punch {
            let hole = middle - 100 * KIB - 512..middle + 100 * KIB + 1024;
            let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            fallocate(&pinned.file, mode, hole).context("punch")?;
        } else {
            pinned.file.set_len(middle + 5000)?;
            pinned.file.set_len(folio.end)?;
        }
        for round in 1..=3 {
            let stamp = pinned.stamp.round(round);
            pinned.device.write(stamp, folio.clone())?;
            pinned.file.sync_all()?;
            context
                .expect_on_disk(&pinned.file, folio.clone(), stamp)
                .with_context(|| format!("{name}, round {round}"))?;
        }
        context.expect_after_power_cut(name, folio.clone(), pinned.stamp.round(3))?;
        pinned.device.unpin()?;
    }
    Ok(())
}

/// A dirty page table entry is zapped while its page is written back. A splat would fail the test.
fn story12(context: &Context) -> Result<()> {
    let len = MIB;
    let half = len / 2;
    let mut pinned = Pinned::sparse(context, Kind::Uring, "file", len)?;
    const ROUNDS: u32 = 60;
    let (file, device) = (&pinned.file, &mut pinned.device);
    while_syncing(file, File::sync_all, || {
        for round in 1..=ROUNDS {
            let stamp = pinned.stamp.round(round);
            let other = Mapping::shared(file, 0, len as usize)?;
            other.store(half as usize, &stamp.bytes(half, half as usize));
            device.write(stamp, 0..half)?;
        }
        Ok(())
    })?;
    pinned.file.sync_all()?;
    pinned.expect_on_disk(context, ROUNDS)
}
