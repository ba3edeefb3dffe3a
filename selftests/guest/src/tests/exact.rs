// SPDX-License-Identifier: GPL-2.0

//! The ledger counts writable long-term pins, all of them and nothing else.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Command, Stdio};

use anyhow::{bail, Context as _, Result};

use super::common::{Pinned, KIB, MIB};
use crate::context::Context;
use crate::device::Kind;
use crate::diag;
use crate::ledger::{self, Stats};
use crate::map::{Mapping, PAGE};
use crate::stamp::Stamp;
use crate::tap::{expect_eq, Test};

pub const TESTS: &[Test] = &[
    Test::new("ledger.exact_uring", |c| overlapping(c, Kind::Uring)),
    Test::new("ledger.exact_verbs", |c| overlapping(c, Kind::Verbs)),
    Test::new("ledger.large_folios", large_folios),
    Test::new("ledger.fork_and_munmap", fork_and_munmap),
    Test::new("ledger.orphan", orphan),
    Test::new("ledger.killed_uring", |c| killed(c, "uring")),
    Test::new("ledger.killed_verbs", |c| killed(c, "verbs")),
    Test::new("ledger.ordinary_references", ordinary_references),
];

const PAGES: u64 = 64;

fn bytes(pages: Range<u64>) -> Range<u64> {
    pages.start * PAGE as u64..pages.end * PAGE as u64
}

/// A mapped file whose every folio has one page.
fn small_folios(context: &Context, name: &str, pages: u64) -> Result<(File, Mapping)> {
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
    pinned.device.write(stamp.round(1), range.clone())?;
    file.sync_all()?;
    context.expect_on_disk(&file, range, stamp.round(1))?;
    pinned.device.unpin()?;
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

fn killed(context: &Context, device: &str) -> Result<()> {
    ledger::wait_until_empty(10)?;
    if device == "verbs"
        && std::fs::read_dir("/sys/class/infiniband").map_or(0, Iterator::count) == 0
    {
        bail!("no RDMA device");
    }
    let file = context.sparse("file", MIB)?;
    let mut child = Command::new("/proc/self/exe")
        .args(["hold-pins", device])
        .arg(context.path("file"))
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    if let Some(output) = child.stdout.take() {
        BufReader::new(output).read_line(&mut line)?;
    }
    let pins = ledger::pins_of(&file);
    child.kill()?;
    child.wait()?;
    expect_eq("first line of the process", line.trim(), "pinned")?;
    let pins = pins?;
    diag!("{pins} pins before the kill");
    if pins == 0 {
        bail!("the process holds no pins");
    }
    ledger::wait_until_empty(15)
}

/// More than 1,024 references to one page look like a pin to `folio_maybe_dma_pinned()`.
fn ordinary_references(context: &Context) -> Result<()> {
    ledger::wait_until_empty(10)?;
    let before = Stats::read()?;
    let (file, map) = small_folios(context, "file", 16)?;
    file.sync_all()?;

    let maps = (0..2000)
        .map(|_| Mapping::shared(&file, 0, PAGE))
        .collect::<io::Result<Vec<_>>>()?;
    maps.iter().for_each(Mapping::touch);
    let pipes = (0..6)
        .map(|_| reference_by_pipe(&map))
        .collect::<io::Result<Vec<_>>>()?;
    let references: usize = pipes.iter().map(|pipe| pipe.pages).sum();
    diag!("{} mappings, {references} references by pipes", maps.len());

    // Short-term pins, for reading and for writing.
    let other = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .custom_flags(libc::O_DIRECT)
        .open(context.path("other"))?;
    // SAFETY: the first page of `map` is mapped.
    let (written, read) = unsafe {
        let page = map.address() as *mut libc::c_void;
        (
            libc::pwrite(other.as_raw_fd(), page, PAGE, 0),
            libc::pread(other.as_raw_fd(), page, PAGE, 0),
        )
    };
    expect_eq(
        "direct write and read",
        (written, read),
        (PAGE as isize, PAGE as isize),
    )?;
    try_to_migrate(&map);

    map.store(0, &[2]);
    file.sync_all()?;
    let after = Stats::read()?;
    expect_eq("folios in the ledger", ledger::folios()?.len(), 0)?;
    for name in [
        "pins",
        "pins_total",
        "bounced_bytes",
        "bounced_bios",
        "kept_dirty",
    ] {
        expect_eq(name, after.get(name), before.get(name))?;
    }
    Ok(())
}

struct HeldPages {
    pages: usize,
    _ends: [OwnedFd; 2],
}

/// Puts the first page of `map` into a pipe as often as the pipe has room.
fn reference_by_pipe(map: &Mapping) -> io::Result<HeldPages> {
    let mut ends = [0; 2];
    let page = libc::iovec {
        iov_base: map.address() as *mut libc::c_void,
        iov_len: PAGE,
    };
    let pages = vec![page; 256];
    // SAFETY: the descriptors are new and owned here; the page is mapped.
    unsafe {
        if libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK) != 0 {
            return Err(io::Error::last_os_error());
        }
        let ends = ends.map(|fd| OwnedFd::from_raw_fd(fd));
        let pipe = ends[1].as_raw_fd();
        libc::fcntl(pipe, libc::F_SETPIPE_SZ, 256 * PAGE);
        match libc::vmsplice(pipe, pages.as_ptr(), pages.len(), libc::SPLICE_F_NONBLOCK) {
            -1 => Err(io::Error::last_os_error()),
            len => Ok(HeldPages {
                pages: len as usize / PAGE,
                _ends: ends,
            }),
        }
    }
}

/// Asks for migration and compaction; whether they succeed doesn't matter.
fn try_to_migrate(map: &Mapping) {
    let mut pages: Vec<usize> = (0..map.len())
        .step_by(PAGE)
        .map(|offset| map.address() + offset)
        .collect();
    let nodes = vec![0i32; pages.len()];
    let mut status = vec![0i32; pages.len()];
    // SAFETY: the three arrays have the length that is given.
    unsafe {
        libc::syscall(
            libc::SYS_move_pages,
            0,
            pages.len(),
            pages.as_mut_ptr(),
            nodes.as_ptr(),
            status.as_mut_ptr(),
            2,
        )
    };
    let _ = std::fs::write("/proc/sys/vm/compact_memory", "1");
}
