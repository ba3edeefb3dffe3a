// SPDX-License-Identifier: GPL-2.0

//! The kernel's flags of single pages.

use std::fs::File;
use std::hint::black_box;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use anyhow::{bail, Context as _, Result};

use crate::map::{Mapping, PAGE};

/// The page's folio is locked.
pub const LOCKED: u64 = 1 << 0;
/// The page has data that is not on the disk.
pub const DIRTY: u64 = 1 << 4;
/// The page is being written.
pub const WRITEBACK: u64 = 1 << 8;

/// Reclaim does not look at the page.
pub const UNEVICTABLE: u64 = 1 << 18;

/// The page is the head of a large folio, or another page of one.
pub const COMPOUND: u64 = 1 << 15 | 1 << 16;

/// In an entry of `/proc/self/pagemap`: there is a page.
const PRESENT: u64 = 1 << 63;

/// Reads page flags through one mapping.
pub struct PageFlags {
    pagemap: File,
    flags: File,
}

impl PageFlags {
    /// Opens the kernel's files.
    pub fn open() -> Result<Self> {
        match (
            File::open("/proc/self/pagemap"),
            File::open("/proc/kpageflags"),
        ) {
            (Ok(pagemap), Ok(flags)) => Ok(Self { pagemap, flags }),
            _ => bail!("no /proc/kpageflags"),
        }
    }

    fn number(file: &File, index: u64) -> Result<u64> {
        let mut word = [0; 8];
        file.read_exact_at(&mut word, index * 8)?;
        Ok(u64::from_ne_bytes(word))
    }

    /// The page frame number behind a byte of the mapping, if a page is mapped there or can be. Migration and
    /// reclaim unmap pages that they then find they can't take; a fault waits for the one and makes good for
    /// the other.
    fn frame(&self, map: &Mapping, offset: usize) -> Result<Option<u64>> {
        let index = ((map.address() + offset) / PAGE) as u64;
        for _ in 0..100 {
            let entry = Self::number(&self.pagemap, index)?;
            if entry & PRESENT != 0 {
                return Ok(Some(entry & ((1 << 55) - 1)));
            }
            black_box(map.load(offset, 1));
        }
        Ok(None)
    }

    /// The page frame numbers of `range`, given in bytes of the mapping. All must be inside the file.
    pub fn frames(&self, map: &Mapping, range: Range<usize>) -> Result<Vec<u64>> {
        range
            .step_by(PAGE)
            .map(|offset| {
                self.frame(map, offset)?
                    .with_context(|| format!("the page at byte {offset} is not mapped"))
            })
            .collect()
    }

    /// The flags of one page frame.
    pub fn of_frame(&self, frame: u64) -> Result<u64> {
        Self::number(&self.flags, frame)
    }

    /// The flags of each page in `range`, given in bytes of the mapping. All must be inside the file.
    pub fn of(&self, map: &Mapping, range: Range<usize>) -> Result<Vec<u64>> {
        self.frames(map, range)?
            .into_iter()
            .map(|frame| self.of_frame(frame))
            .collect()
    }

    /// How many pages are mapped, in all of a mapping.
    pub fn mapped(&self, map: &Mapping) -> Result<usize> {
        let first = map.address() / PAGE;
        let mut mapped = 0;
        for page in first..first + map.len() / PAGE {
            mapped += usize::from(Self::number(&self.pagemap, page as u64)? & PRESENT != 0);
        }
        Ok(mapped)
    }

    /// How many pages of `range` have the flag.
    pub fn count(&self, map: &Mapping, range: Range<usize>, flag: u64) -> Result<usize> {
        let flags = self.of(map, range)?;
        Ok(flags.iter().filter(|flags| *flags & flag != 0).count())
    }
}
