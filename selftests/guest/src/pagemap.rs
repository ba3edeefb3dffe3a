// SPDX-License-Identifier: GPL-2.0

//! The kernel's flags of single pages.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::Duration;

use anyhow::{bail, Context as _, Result};

use crate::map::{Mapping, PAGE};

/// The page's folio is locked.
pub const LOCKED: u64 = 1 << 0;
/// The page has data that is not on the disk.
pub const DIRTY: u64 = 1 << 4;
/// The page is being written.
pub const WRITEBACK: u64 = 1 << 8;

/// The page is the head of a large folio, or another page of one.
pub const COMPOUND: u64 = 1 << 15 | 1 << 16;

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

    /// The page frame number behind an address, if a page is mapped there. Migration unmaps pages that it
    /// then finds it can't move, and maps them again.
    fn frame(&self, address: usize) -> Result<Option<u64>> {
        for _ in 0..100 {
            let entry = Self::number(&self.pagemap, (address / PAGE) as u64)?;
            if entry >> 63 != 0 {
                return Ok(Some(entry & ((1 << 55) - 1)));
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(None)
    }

    /// The page frame numbers of `range`, given in bytes of the mapping. All must be mapped.
    pub fn frames(&self, map: &Mapping, range: Range<usize>) -> Result<Vec<u64>> {
        range
            .step_by(PAGE)
            .map(|offset| {
                self.frame(map.address() + offset)?
                    .with_context(|| format!("the page at byte {offset} is not mapped"))
            })
            .collect()
    }

    /// The flags of one page frame.
    pub fn of_frame(&self, frame: u64) -> Result<u64> {
        Self::number(&self.flags, frame)
    }

    /// The flags of each page in `range`, given in bytes of the mapping. All must be mapped.
    pub fn of(&self, map: &Mapping, range: Range<usize>) -> Result<Vec<u64>> {
        self.frames(map, range)?
            .into_iter()
            .map(|frame| self.of_frame(frame))
            .collect()
    }

    /// How many pages of `range` have the flag.
    pub fn count(&self, map: &Mapping, range: Range<usize>, flag: u64) -> Result<usize> {
        let flags = self.of(map, range)?;
        Ok(flags.iter().filter(|flags| *flags & flag != 0).count())
    }
}
