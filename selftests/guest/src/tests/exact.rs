// SPDX-License-Identifier: GPL-2.0

//! The ledger counts writable long-term pins, all of them and nothing else.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::thread;
use std::time::Duration;

use anyhow::{bail, Context as _, Result};
use io_uring::IoUring;

use super::common::{Pinned, KIB, MIB};
use crate::context::Context;
use crate::device::Kind;
use crate::diag;
use crate::holder::{Holder, Orders};
use crate::layer::{Hold, Layer};
use crate::ledger::{self, FilePins, Stats};
use crate::map::{Mapping, PAGE};
use crate::numa;
use crate::stamp::Stamp;
use crate::tap::Invariant::{I4, I7};
use crate::tap::{expect_eq, Test};
use crate::uring;
use crate::verbs::ReadOnly;

/// A test of the counts alone: there is no step to leave out but the counting.
const fn counts(name: &'static str, run: fn(&Context) -> Result<()>) -> Test {
    Test::new(name, run).proves(&[I7])
}

pub const TESTS: &[Test] = &[
    counts("ledger.exact_uring", |c| overlapping(c, Kind::Uring)),
    counts("ledger.exact_verbs", |c| overlapping(c, Kind::Verbs)),
    counts("ledger.exact_mixed", mixed),
    counts("ledger.large_folios", large_folios),
    counts("ledger.fork_and_munmap", fork_and_munmap)
        .proves(&[I4, I7])
        .without("no_keep_dirty"),
    counts("ledger.mremap", moved_mapping),
    counts("ledger.orphan", orphan),
    counts("ledger.files", files),
    counts("ledger.killed_uring", |c| killed(c, Kind::Uring)),
    counts("ledger.killed_verbs", |c| killed(c, Kind::Verbs)),
    counts("ledger.buffers_update", buffers_update),
    counts("ledger.buffers_clone", buffers_clone),
    counts("ledger.short_term_pins", short_term_pins).on(Layer::Held),
    counts("ledger.read_only", read_only),
    counts("ledger.other_memory", other_memory).on(Layer::None),
    counts("ledger.migration", migration),
];

const PAGES: u64 = 64;

fn bytes(pages: Range<u64>) -> Range<u64> {
    pages.start * PAGE as u64..pages.end * PAGE as u64
}

/// A mapped file whose every folio has one page.
pub fn small_folios(context: &Context, name: &str, pages: u64) -> Result<(File, Mapping)> {
    let file = context.sparse(name, pages * PAGE as u64)?;
    let map = Mapping::shared(&file, 0, (pages * PAGE as u64) as usize)?;
    map.advise_random();
    for page in 0..pages {
        map.store(page as usize * PAGE, &[1]);
    }
    Ok((file, map))
}

/// Compares the ledger with the registrations that are held, page by page.
fn expect_counts(file: &File, held: &[Range<u64>]) -> Result<()> {
    let mut expected = Vec::new();
    for page in 0..PAGES {
        let count = held.iter().filter(|range| range.contains(&page)).count() as u64;
        if count > 0 {
            expected.push((page, count));
        }
    }
    let folios = ledger::folios_of(file)?;
    if let Some(large) = folios.iter().find(|folio| folio.pages > 1) {
        bail!(
            "a folio of {} pages where single ones were faulted",
            large.pages
        );
    }
    let found: Vec<(u64, u64)> = folios
        .iter()
        .filter_map(|folio| folio.place.map(|(_, _, index)| (index, folio.count)))
        .collect();
    expect_eq("counts by page", &found, &expected)?;
    let stats = Stats::read()?;
    let pins: u64 = expected.iter().map(|(_, count)| count).sum();
    expect_eq("pins", stats.get("pins"), pins)?;
    expect_eq("pinned folios", stats.get("folios"), expected.len() as u64)
}

fn overlapping(context: &Context, kind: Kind) -> Result<()> {
    ledger::wait_until_empty(10)?;
    let before = Stats::read()?;
    let (file, map) = small_folios(context, "file", PAGES)?;
    let mut held = vec![0..PAGES, 16..48, 32..PAGES, 32..33];
    let all: u64 = held.iter().map(|range| range.end - range.start).sum();
    let mut devices = Vec::new();
    for pages in &held {
        devices.push(kind.attach(&map, bytes(pages.clone()))?);
        expect_counts(&file, &held[..devices.len()])?;
    }
    file.sync_all()?;
    expect_counts(&file, &held)?;
    while let Some(device) = devices.pop() {
        device.unpin()?;
        held.pop();
        expect_counts(&file, &held)?;
    }
    ledger::wait_until_empty(1)?;
    let taken = Stats::read()?.get("pins_total") - before.get("pins_total");
    expect_eq("pins taken in all", taken, all)
}

fn large_folios(context: &Context) -> Result<()> {
    ledger::wait_until_empty(10)?;
    let len = 2 * MIB;
    let file = context.written("file", len, Stamp::fresh(), len as usize)?;
    let map = Mapping::shared(&file, 0, len as usize)?;
    for kind in [Kind::Uring, Kind::Verbs] {
        let device = match kind.attach(&map, 0..len) {
            Err(error) if error.is::<crate::tap::Skip>() => continue,
            attached => attached?,
        };
        let folios = ledger::folios_of(&file)?;
        let largest = folios.iter().map(|folio| folio.pages).max().unwrap_or(0);
        let covered: u64 = folios.iter().map(|folio| folio.pages).sum();
        let pins: u64 = folios.iter().map(|folio| folio.count).sum();
        diag!(
            "{kind:?}: {} folios, the largest of {largest} pages, {pins} pins",
            folios.len()
        );
        expect_eq("pages in pinned folios", covered, len / PAGE as u64)?;
        // A driver that keeps one pin for each folio has returned the others.
        for folio in &folios {
            if folio.count != 1 && folio.count != folio.pages {
                bail!("{folio:?}: neither one pin nor one for each page");
            }
        }
        expect_eq("pins", Stats::read()?.get("pins"), pins)?;
        device.unpin()?;
        ledger::wait_until_empty(5)?;
    }
    Ok(())
}

fn fork_and_munmap(context: &Context) -> Result<()> {
    ledger::wait_until_empty(10)?;
    let (file, map) = small_folios(context, "file", PAGES)?;
    let stamp = Stamp::fresh();
    let mut pinned = Pinned::new(Kind::Uring, file.try_clone()?, stamp)?;
    let all = std::slice::from_ref(&(0..PAGES));
    expect_counts(&file, all)?;
    // A child has the mappings and the ring, and lets go of both.
    // SAFETY: the child calls nothing but _exit.
    let child = unsafe {
        match libc::fork() {
            0 => libc::_exit(0),
            child => child,
        }
    };
    if child < 0 {
        return Err(io::Error::last_os_error()).context("fork");
    }
    let mut status = 0;
    // SAFETY: `status` is valid for writing.
    unsafe { libc::waitpid(child, &mut status, 0) };
    expect_counts(&file, all)?;
    drop(map);
    expect_counts(&file, all)?;
    // The address is gone, the pages are not: device writes still reach the file and the disk.
    let Pinned { map, .. } = pinned;
    drop(map);
    expect_counts(&file, all)?;
    let range = bytes(0..PAGES);
    for round in 1..=2 {
        pinned.device.write(stamp.round(round), range.clone())?;
        file.sync_all()?;
        context.expect_on_disk(&file, range.clone(), stamp.round(round))?;
    }
    pinned.device.unpin()?;
    ledger::wait_until_empty(5)
}

/// The mapping goes elsewhere while it is pinned; the pages stay what they are.
fn moved_mapping(context: &Context) -> Result<()> {
    ledger::wait_until_empty(10)?;
    let (file, mut map) = small_folios(context, "file", PAGES)?;
    let all = 0..PAGES;
    let mut device = Kind::Uring.attach(&map, bytes(all.clone()))?;
    expect_counts(&file, std::slice::from_ref(&all))?;
    let before = map.address();
    map.relocate()?;
    if map.address() == before {
        bail!("the mapping was not moved");
    }
    map.touch();
    expect_counts(&file, std::slice::from_ref(&all))?;
    // Pinned once more where it is now.
    let again = Kind::Uring.attach(&map, bytes(8..16))?;
    expect_counts(&file, &[all.clone(), 8..16])?;
    // Registered, the device finds the pages by itself; for the address only its own mapping counts.
    drop(map);
    expect_counts(&file, &[all.clone(), 8..16])?;
    let stamp = Stamp::fresh();
    device.write(stamp, bytes(all.clone()))?;
    file.sync_all()?;
    context.expect_on_disk(&file, bytes(all.clone()), stamp)?;
    device.unpin()?;
    expect_counts(&file, std::slice::from_ref(&(8..16)))?;
    again.unpin()?;
    ledger::wait_until_empty(5)
}

/// A pinned folio that is cut off its file stays in the ledger until it is unpinned.
fn orphan(context: &Context) -> Result<()> {
    ledger::wait_until_empty(10)?;
    let pinned = Pinned::sparse(context, Kind::Uring, "file", 256 * KIB)?;
    let pins = Stats::read()?.get("pins");
    pinned.file.set_len(0)?;
    expect_eq("pins after truncate", Stats::read()?.get("pins"), pins)?;
    if let Some(folio) = ledger::folios()?.iter().find(|f| f.place.is_some()) {
        bail!("{folio:?} has a place in a file of no bytes");
    }
    std::fs::remove_file(context.path("file"))?;
    pinned.device.unpin()?;
    ledger::wait_until_empty(5)
}

fn killed(context: &Context, kind: Kind) -> Result<()> {
    ledger::wait_until_empty(10)?;
    let file = context.sparse("file", MIB)?;
    let mut holder = Holder::start(&mut Orders::new(kind, &context.path("file")).command())?;
    let pins = ledger::pins_of(&file)?;
    diag!("{pins} pins before the kill");
    if pins == 0 {
        bail!("the process holds no pins");
    }
    holder.kill();
    ledger::wait_until_empty(15)
}

/// Both devices have the same pages, and let go of them in an order that is neither's.
fn mixed(context: &Context) -> Result<()> {
    ledger::wait_until_empty(10)?;
    let (file, map) = small_folios(context, "file", PAGES)?;
    let mut held = Vec::new();
    let mut devices = Vec::new();
    for (kind, pages) in [
        (Kind::Verbs, 0..PAGES),
        (Kind::Uring, 0..PAGES),
        (Kind::Verbs, 8..24),
        (Kind::Uring, 16..32),
    ] {
        devices.push(kind.attach(&map, bytes(pages.clone()))?);
        held.push(pages);
        expect_counts(&file, &held)?;
    }
    for next in [1, 1, 0, 0] {
        devices.remove(next).unpin()?;
        held.remove(next);
        expect_counts(&file, &held)?;
    }
    ledger::wait_until_empty(1)
}

fn buffer(map: &Mapping, pages: Range<u64>) -> libc::iovec {
    let range = bytes(pages);
    libc::iovec {
        iov_base: (map.address() + range.start as usize) as *mut libc::c_void,
        iov_len: (range.end - range.start) as usize,
    }
}

/// Buffers of a ring are put in, replaced and taken out one by one.
fn buffers_update(context: &Context) -> Result<()> {
    const NONE: libc::iovec = libc::iovec {
        iov_base: std::ptr::null_mut(),
        iov_len: 0,
    };
    ledger::wait_until_empty(10)?;
    let (file, map) = small_folios(context, "file", PAGES)?;
    let ring = IoUring::new(4)?;
    ring.submitter().register_buffers_sparse(3)?;
    let update = |slot, buffer: libc::iovec| {
        // SAFETY: the ring never uses the buffers, it only pins them.
        unsafe {
            ring.submitter()
                .register_buffers_update(slot, &[buffer], None)
        }
        .context("IORING_REGISTER_BUFFERS_UPDATE")
    };
    update(0, buffer(&map, 0..PAGES))?;
    update(2, buffer(&map, 8..16))?;
    expect_counts(&file, &[0..PAGES, 8..16])?;
    // The same again: the new pins are there before the old ones go.
    update(0, buffer(&map, 0..PAGES))?;
    expect_counts(&file, &[0..PAGES, 8..16])?;
    update(0, buffer(&map, 32..40))?;
    expect_counts(&file, &[32..40, 8..16])?;
    update(2, NONE)?;
    expect_counts(&file, std::slice::from_ref(&(32..40)))?;
    ring.submitter().unregister_buffers()?;
    ledger::wait_until_empty(5)
}

/// A second ring shares the buffers of the first, and with them their pins. Then both are closed.
fn buffers_clone(context: &Context) -> Result<()> {
    ledger::wait_until_empty(10)?;
    let (file, map) = small_folios(context, "file", PAGES)?;
    let (first, second) = (IoUring::new(4)?, IoUring::new(4)?);
    let buffers = [buffer(&map, 0..PAGES), buffer(&map, 8..16)];
    // SAFETY: the ring never uses the buffers, it only pins them.
    unsafe { first.submitter().register_buffers(&buffers) }?;
    expect_counts(&file, &[0..PAGES, 8..16])?;
    second
        .submitter()
        .register_buffers_clone(first.as_raw_fd())
        .context("IORING_REGISTER_CLONE_BUFFERS")?;
    expect_counts(&file, &[0..PAGES, 8..16])?;
    first.submitter().unregister_buffers()?;
    expect_counts(&file, &[0..PAGES, 8..16])?;
    // SAFETY: as above.
    unsafe { first.submitter().register_buffers(&buffers[1..]) }?;
    expect_counts(&file, &[0..PAGES, 8..16, 8..16])?;
    drop((first, second));
    ledger::wait_until_empty(10)
}

/// A direct read into pages of the file is in flight, and holds pins that nobody counts.
fn short_term_pins(context: &Context) -> Result<()> {
    const LONG_TERM: Range<u64> = 0..16;
    ledger::wait_until_empty(10)?;
    let (file, map) = small_folios(context, "file", PAGES)?;
    let stamp = Stamp::fresh();
    context.written("other", PAGES * PAGE as u64, stamp, MIB as usize)?;
    let other = context.open_direct("other")?;
    let device = Kind::Uring.attach(&map, bytes(LONG_TERM))?;
    let before = foll_pins()?;
    let hold = Hold::start()?;
    let read = thread::scope(|scope| -> Result<usize> {
        let read = scope.spawn(|| map.read_from(&other, map.len(), 0));
        thread::sleep(Duration::from_millis(300));
        let early = read.is_finished();
        let pinned = foll_pins()? - before;
        let counted = expect_counts(&file, &[LONG_TERM]);
        drop(hold);
        let Ok(read) = read.join() else {
            bail!("the reading thread panicked");
        };
        if early {
            bail!("the direct read returned {read:?} while its I/O was held");
        }
        diag!("{pinned} pins of any kind were taken meanwhile");
        if pinned < PAGES {
            bail!("{pinned} pages were pinned for the direct read");
        }
        counted?;
        Ok(read?)
    })?;
    expect_eq("bytes read", read, map.len())?;
    expect_eq(
        "what was read is there",
        map.load(0, map.len()) == stamp.bytes(0, map.len()),
        true,
    )?;
    expect_counts(&file, &[LONG_TERM])?;
    device.unpin()?;
    ledger::wait_until_empty(5)
}

/// Pages that were ever pinned, for whatever purpose.
fn foll_pins() -> Result<u64> {
    // The CPUs hand in their share now and then, and when asked.
    fs::read("/proc/sys/vm/stat_refresh")?;
    let text = fs::read_to_string("/proc/vmstat")?;
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix("nr_foll_pin_acquired "))
        .context("no nr_foll_pin_acquired in /proc/vmstat")?;
    Ok(value.parse()?)
}

/// A device that only reads changes nothing that would have to be written back.
fn read_only(context: &Context) -> Result<()> {
    ledger::wait_until_empty(10)?;
    let (file, map) = small_folios(context, "file", PAGES)?;
    let before = foll_pins()?;
    let reader = ReadOnly::register(&map)?;
    let pinned = foll_pins()? - before;
    if pinned < PAGES {
        bail!("{pinned} pages were pinned for the region");
    }
    expect_counts(&file, &[])?;
    let device = Kind::Verbs.attach(&map, bytes(4..8))?;
    expect_counts(&file, std::slice::from_ref(&(4..8)))?;
    drop(reader);
    expect_counts(&file, std::slice::from_ref(&(4..8)))?;
    device.unpin()?;
    ledger::wait_until_empty(5)
}

/// Memory that is in no file of a disk needs no writeback.
fn other_memory(_context: &Context) -> Result<()> {
    ledger::wait_until_empty(10)?;
    let total = Stats::read()?.get("pins_total");
    let len = (PAGES * PAGE as u64) as usize;
    let shmem = uring::memory_file(c"pinned")?;
    shmem.set_len(len as u64)?;
    for map in [Mapping::anonymous(len)?, Mapping::shared(&shmem, 0, len)?] {
        map.store(0, &[1]);
        for kind in [Kind::Uring, Kind::Verbs] {
            let before = foll_pins()?;
            let device = kind.attach(&map, 0..len as u64)?;
            let pinned = foll_pins()? - before;
            if pinned < PAGES {
                bail!("{kind:?}: {pinned} pages were pinned");
            }
            let stats = Stats::read()?;
            expect_eq("pins", stats.get("pins"), 0)?;
            expect_eq("pinned folios", ledger::folios()?.len(), 0)?;
            device.unpin()?;
        }
    }
    expect_eq("pins taken in all", Stats::read()?.get("pins_total"), total)
}

/// Pinned pages stay where they are, and so do their counts.
fn migration(context: &Context) -> Result<()> {
    numa::require()?;
    ledger::wait_until_empty(10)?;
    let (file, map) = small_folios(context, "file", PAGES)?;
    let nodes = numa::nodes(&map)?;
    let device = Kind::Uring.attach(&map, bytes(0..PAGES))?;
    for node in numa::NODES {
        numa::migrate(&map, node)?;
        numa::bind(&map, node)?;
        numa::compact()?;
        expect_eq("nodes of the pages", numa::nodes(&map)?, nodes.clone())?;
        expect_counts(&file, std::slice::from_ref(&(0..PAGES)))?;
    }
    device.unpin()?;
    ledger::wait_until_empty(5)?;
    let moved = numa::migrate(&map, 1 - nodes[0])?;
    diag!("{moved} of {PAGES} pages move when nobody pins them");
    if moved == 0 {
        bail!("no page moves even without a pin: nothing was tested");
    }
    Ok(())
}

/// The list of files with pins: each once, with its name for as long as it has one.
fn files(context: &Context) -> Result<()> {
    let (plain, plain_map) = small_folios(context, "plain", PAGES)?;
    let (spaced, spaced_map) = small_folios(context, "with a space", PAGES)?;
    let part = Kind::Uring.attach(&plain_map, bytes(0..8))?;
    let whole = Kind::Uring.attach(&spaced_map, bytes(0..PAGES))?;
    let again = Kind::Uring.attach(&spaced_map, bytes(0..4))?;
    let entry = |file: &File, path: &str, pages, pins, bounced| -> Result<FilePins> {
        Ok(FilePins {
            inode: file.metadata()?.ino(),
            pages,
            pins,
            owner: std::process::id(),
            bounced,
            path: path.to_owned(),
        })
    };
    let expect = |expected: Vec<FilePins>| -> Result<()> {
        let mut found = ledger::files()?;
        found.sort_by(|a, b| a.path.cmp(&b.path));
        if found != expected {
            bail!("the kernel lists {found:?}, not {expected:?}");
        }
        Ok(())
    };
    expect(vec![
        entry(&plain, "/plain", 8, 8, 0)?,
        entry(&spaced, "/with a space", PAGES, PAGES + 4, 0)?,
    ])?;

    again.unpin()?;
    spaced.sync_all()?;
    let copied = PAGES * PAGE as u64;
    fs::remove_file(context.path("plain"))?;
    expect(vec![
        entry(&plain, "-", 8, 8, 0)?,
        entry(&spaced, "/with a space", PAGES, PAGES, copied)?,
    ])?;

    part.unpin()?;
    whole.unpin()?;
    expect(Vec::new())
}
