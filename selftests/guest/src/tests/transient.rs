// SPDX-License-Identifier: GPL-2.0

//! References that are no pins. "More references than the page cache and the page tables account for" was
//! once proposed as the sign of a pin; each test here has such references while the file is written back,
//! which neither counts nor copies anything.
//!
//! Writeback asks about pins only where there were some, so every file here was pinned once.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{bail, Context as _, Result};

use super::exact::small_folios;
use crate::beside::beside;
use crate::context::Context;
use crate::device::Kind;
use crate::diag;
use crate::ledger::{self, Stats};
use crate::map::{Mapping, PAGE};
use crate::numa;
use crate::tap::Invariant::I7;
use crate::tap::{expect_eq, Test};

const fn no_pin(name: &'static str, run: fn(&Context) -> Result<()>) -> Test {
    Test::new(name, run).proves(&[I7]).without("guess_pins")
}

pub const TESTS: &[Test] = &[
    no_pin("transient.filesystem", filesystem),
    no_pin("transient.mappings", mappings),
    no_pin("transient.pipes", pipes),
    no_pin("transient.reads", reads),
    no_pin("transient.direct_io", direct_io),
    no_pin("transient.lru_isolation", lru_isolation),
    no_pin("transient.migration", |c| migration(c, numa::migrate)),
    no_pin("transient.mempolicy", |c| migration(c, numa::bind)),
];

const PAGES: u64 = 32;
const ROUNDS: u8 = 4;

/// A file that was pinned and is not any more.
struct Unpinned {
    file: File,
    map: Mapping,
    stats: Stats,
}

impl Unpinned {
    fn new(context: &Context) -> Result<Self> {
        ledger::wait_until_empty(10)?;
        let (file, map) = small_folios(context, "file", PAGES)?;
        let device = Kind::Uring.attach(&map, 0..map.len() as u64)?;
        expect_eq("pages pinned", ledger::pins_of(&file)?, PAGES)?;
        device.unpin()?;
        ledger::wait_until_empty(5)?;
        file.sync_all()?;
        let stats = Stats::read()?;
        Ok(Self { file, map, stats })
    }

    /// Makes all of it dirty and writes it back, some times over.
    fn write_back(&self) -> Result<()> {
        for round in 1..=ROUNDS {
            for page in 0..PAGES as usize {
                self.map.store(page * PAGE, &[round]);
            }
            self.file.sync_all()?;
        }
        Ok(())
    }

    /// The same while `disturb` is called again and again. Returns what it has added up.
    fn write_back_while(&self, disturb: impl Fn(&Self) -> Result<usize> + Sync) -> Result<usize> {
        let disturb = |stop: &AtomicBool| {
            let mut sum = disturb(self)?;
            while !stop.load(Ordering::Acquire) {
                sum += disturb(self)?;
            }
            Ok(sum)
        };
        let ((), sum) = beside(disturb, || self.write_back())?;
        Ok(sum)
    }

    /// Fails if anything was taken for a pin.
    fn expect_nothing(&self) -> Result<()> {
        expect_eq("folios in the ledger", ledger::folios()?.len(), 0)?;
        let stats = Stats::read()?;
        for name in [
            "pins",
            "folios",
            "pins_total",
            "bounced_bytes",
            "bounced_bios",
            "kept_dirty",
        ] {
            expect_eq(name, stats.get(name), self.stats.get(name))?;
        }
        Ok(())
    }
}

/// Buffer heads, blocks that are allocated and written in a transaction, write(2) beside stores.
fn filesystem(context: &Context) -> Result<()> {
    let unpinned = Unpinned::new(context)?;
    let end = unpinned.map.len() as u64;
    unpinned.write_back_while(|u| {
        u.file.write_all_at(&[1; PAGE], 0)?;
        u.file.write_all_at(&[1; PAGE], end)?;
        // What is cut off while it is being written is copied, pinned or not.
        u.file.sync_data()?;
        u.file.set_len(end)?;
        Ok(1)
    })?;
    unpinned.expect_nothing()
}

/// More than 1,024 references to one page look like a pin to `folio_maybe_dma_pinned()`.
fn mappings(context: &Context) -> Result<()> {
    let unpinned = Unpinned::new(context)?;
    let maps = (0..2000)
        .map(|_| Mapping::shared(&unpinned.file, 0, PAGE))
        .collect::<io::Result<Vec<_>>>()?;
    unpinned.write_back_while(|_| {
        maps.iter().for_each(Mapping::touch);
        Ok(1)
    })?;
    unpinned.expect_nothing()
}

/// A pipe that is full of one page.
struct HeldPages {
    pages: usize,
    _ends: [OwnedFd; 2],
}

impl HeldPages {
    const MOST: usize = 256;

    fn fill(more: impl Fn(libc::c_int) -> isize) -> Result<Self> {
        let mut fds = [0; 2];
        // SAFETY: the descriptors are new and owned here.
        let ends = unsafe {
            if libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK) != 0 {
                return Err(io::Error::last_os_error()).context("pipe");
            }
            libc::fcntl(fds[1], libc::F_SETPIPE_SZ, Self::MOST * PAGE);
            fds.map(|fd| OwnedFd::from_raw_fd(fd))
        };
        let mut pages = 0;
        while let len @ 1.. = more(fds[1]) {
            pages += len as usize / PAGE;
        }
        if pages == 0 {
            return Err(io::Error::last_os_error()).context("nothing went into the pipe");
        }
        Ok(Self { pages, _ends: ends })
    }

    /// The first page of the mapping, as memory.
    fn of_memory(map: &Mapping) -> Result<Self> {
        let page = libc::iovec {
            iov_base: map.address() as *mut libc::c_void,
            iov_len: PAGE,
        };
        // SAFETY: the page is mapped.
        Self::fill(|pipe| unsafe { libc::vmsplice(pipe, &page, 1, libc::SPLICE_F_NONBLOCK) })
    }

    /// The first page of the file, from the page cache.
    fn of_file(file: &File) -> Result<Self> {
        Self::fill(|pipe| {
            let mut offset = 0;
            // SAFETY: the descriptors are open, and `offset` is valid for writing.
            unsafe {
                libc::splice(
                    file.as_raw_fd(),
                    &mut offset,
                    pipe,
                    std::ptr::null_mut(),
                    PAGE,
                    libc::SPLICE_F_NONBLOCK,
                )
            }
        })
    }
}

fn pipes(context: &Context) -> Result<()> {
    let unpinned = Unpinned::new(context)?;
    let mut pipes = Vec::new();
    for _ in 0..3 {
        pipes.push(HeldPages::of_memory(&unpinned.map)?);
        pipes.push(HeldPages::of_file(&unpinned.file)?);
    }
    let references: usize = pipes.iter().map(|pipe| pipe.pages).sum();
    diag!("{references} references by pipes");
    unpinned.write_back()?;
    unpinned.expect_nothing()
}

/// Lookups in the page cache, by read(2) and by page faults of read-only mappings.
fn reads(context: &Context) -> Result<()> {
    let unpinned = Unpinned::new(context)?;
    unpinned.write_back_while(|u| {
        let mut bytes = vec![0; u.map.len()];
        u.file.read_exact_at(&mut bytes, 0)?;
        Mapping::shared(&u.file, 0, u.map.len())?.touch();
        Ok(1)
    })?;
    unpinned.expect_nothing()
}

/// Pins that end with the I/O that they were taken for: a direct write from the file's pages.
fn direct_io(context: &Context) -> Result<()> {
    let unpinned = Unpinned::new(context)?;
    context.create("other")?;
    let other = context.open_direct("other")?;
    let written = unpinned.write_back_while(|u| {
        let written = u.map.write_to(&other, u.map.len(), 0)?;
        expect_eq("direct write", written, u.map.len())?;
        Ok(1)
    })?;
    diag!("{written} direct writes");
    unpinned.expect_nothing()
}

/// Pages are taken off the LRU lists, and put back because they are dirty.
fn lru_isolation(context: &Context) -> Result<()> {
    let unpinned = Unpinned::new(context)?;
    unpinned.write_back_while(|u| {
        for advice in [libc::MADV_COLD, libc::MADV_PAGEOUT] {
            u.map.advise(advice)?;
        }
        Ok(1)
    })?;
    unpinned.expect_nothing()
}

/// Pages move from node to node.
fn migration(context: &Context, to: fn(&Mapping, i32) -> Result<usize>) -> Result<()> {
    numa::require()?;
    let unpinned = Unpinned::new(context)?;
    let moved = unpinned.write_back_while(|u| {
        u.map.touch();
        let there = numa::NODES
            .into_iter()
            .map(|node| to(&u.map, node))
            .collect::<Result<Vec<_>>>()?;
        numa::compact()?;
        // As many as were on the one node and then on the other.
        Ok(there.into_iter().min().unwrap_or(0))
    })?;
    diag!("{moved} pages moved");
    if moved == 0 {
        bail!("no page moved: nothing was tested");
    }
    unpinned.expect_nothing()
}
