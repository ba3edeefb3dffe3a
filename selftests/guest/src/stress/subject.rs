// SPDX-License-Identifier: GPL-2.0

//! One file on the filesystem under test, and the comparison of it with its model.

use std::fs::{File, OpenOptions};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context as _, Result};

use super::mismatch::{check, describe, fail, mismatch, Kind};
use super::model::{Model, PinnedPage};
use super::op::{SyncCall, FILE_MAX, SLOTS};
use crate::context::Context;
use crate::disk::{self, OnDisk, Place};
use crate::ledger;
use crate::map::{Mapping, PAGE};
use crate::tests::common::fallocate;

/// The descriptors and the mapping of one file.
pub struct Handles {
    pub file: File,
    pub direct: File,
    pub map: Option<Mapping>,
}

impl Handles {
    /// Opens a file that exists, twice.
    pub fn open(path: &Path) -> Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        Ok(Self {
            file: options.open(path)?,
            direct: options.custom_flags(libc::O_DIRECT).open(path)?,
            map: None,
        })
    }
}
/// A file and what it should be.
pub struct Subject {
    pub name: String,
    pub handles: Handles,
    pub model: Model,
    /// Where each pin's range was mapped.
    pub bases: [usize; SLOTS],
    /// A clone, and what it should contain.
    pub clone: Option<(File, Vec<u8>)>,
}

impl Subject {
    fn page_note(&self, at: u64) -> String {
        let page = at / PAGE as u64;
        match self.model.pins_of_page(page) {
            0 if self.model.is_pinned_folio(page) => format!("page {page}, its folio is pinned"),
            0 => format!("page {page}, not pinned"),
            pins => format!("page {page}, {pins} pins"),
        }
    }

    pub fn compare(
        &self,
        kind: Kind,
        place: &str,
        base: u64,
        expected: &[u8],
        found: &[u8],
    ) -> Result<()> {
        match describe(base, expected, found) {
            None => Ok(()),
            Some((at, text)) => mismatch(
                kind,
                format!(
                    "{} {place}: {text} ({}; {} bytes long)",
                    self.name,
                    self.page_note(at),
                    self.model.len()
                ),
            ),
        }
    }

    /// What read(2) returns of the whole file.
    pub fn compare_memory(&self, buffer: &mut Vec<u8>) -> Result<()> {
        read_all(&self.handles.file, buffer)?;
        self.compare(Kind::Memory, "in memory", 0, self.model.bytes(), buffer)
    }

    /// All bytes on the disk, and zeroes from there to the end of the page if the filesystem sees to that.
    pub fn compare_disk(&self, context: &Context) -> Result<()> {
        let end = match context.kind().zeroes_tails() {
            true => self.model.len_in_pages(),
            false => self.model.bytes().len() as u64,
        };
        let found = disk::read_below(context.raw()?, &self.handles.file, 0..end)?;
        let mut expected = self.model.bytes().to_vec();
        expected.resize(end as usize, 0);
        leave_out_opaque(&found, &mut expected);
        let compared = self.compare(Kind::Disk, "on the disk", 0, &expected, &found.bytes);
        if compared.is_err() && !found.missing.is_empty() {
            return compared.with_context(|| format!("without blocks: {:?}", found.missing));
        }
        compared
    }

    pub fn compare_clone(&self, context: &Context) -> Result<()> {
        let Some((file, expected)) = &self.clone else {
            return Ok(());
        };
        let found = disk::read_below(context.raw()?, file, 0..expected.len() as u64)?;
        let mut expected = expected.to_vec();
        leave_out_opaque(&found, &mut expected);
        self.compare(Kind::Disk, "clone on the disk", 0, &expected, &found.bytes)
    }

    /// The ledger's folios of the file are those that the model has pins of.
    pub fn compare_ledger(&self) -> Result<()> {
        let folios = ledger::folios_of(&self.handles.file)?;
        let wrong = |text: String| mismatch(Kind::Ledger, format!("{}: {text}", self.name));
        let mut listed = vec![false; (FILE_MAX as usize).div_ceil(PAGE)];
        for folio in &folios {
            let Some((_, _, index)) = folio.place else {
                continue;
            };
            let pages = index..index + folio.pages;
            let pins: u64 = pages
                .clone()
                .map(|page| self.model.pins_of_page(page))
                .sum();
            // io_uring keeps one pin of a large folio and drops the others.
            let plausible = match folio.pages {
                1 => folio.count == pins,
                _ => (1..=pins).contains(&folio.count),
            };
            if !plausible {
                return wrong(format!("{folio:?}, of which the model has {pins} pins"));
            }
            for page in pages {
                if let Some(listed) = listed.get_mut(page as usize) {
                    *listed = true;
                }
            }
        }
        for (page, listed) in listed.iter().enumerate() {
            if !listed && self.model.pins_of_page(page as u64) > 0 {
                return wrong(format!("page {page} is pinned, and not in the ledger"));
            }
        }
        Ok(())
    }

    pub fn sync(&self, how: SyncCall) -> Result<()> {
        let Handles { file, map, .. } = &self.handles;
        let fd = file.as_raw_fd();
        let done = match (how, map) {
            (SyncCall::Fsync, _) | (SyncCall::Msync, None) => file.sync_all(),
            (SyncCall::Fdatasync, _) => file.sync_data(),
            (SyncCall::Msync, Some(map)) => map.sync(),
            (SyncCall::Sync, _) => {
                crate::fs::sync();
                Ok(())
            }
            // SAFETY: the descriptor is open.
            (SyncCall::Syncfs, _) => check(unsafe { libc::syncfs(fd) }),
            (SyncCall::RangeThenFsync, _) => {
                let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE
                    | libc::SYNC_FILE_RANGE_WRITE
                    | libc::SYNC_FILE_RANGE_WAIT_AFTER;
                // SAFETY: the descriptor is open.
                check(unsafe { libc::sync_file_range(fd, 0, 0, flags) })
                    .and_then(|()| file.sync_all())
            }
        };
        fail(done, &format!("{how:?}"))
    }

    /// The page cache lost a range; finds out which pins are on pages of no file now.
    pub fn cut(&mut self, range: Range<u64>) -> Result<()> {
        if self.model.cut(range.clone()) {
            let folios = ledger::folios_of(&self.handles.file)?;
            let in_file = |page: &PinnedPage| {
                folios
                    .iter()
                    .any(|folio| (folio.frame..folio.frame + folio.pages).contains(&page.frame))
            };
            self.model.settle(range, in_file);
        }
        Ok(())
    }

    pub fn shift(&self, mode: i32, at: u64, len: u64, what: &str) -> Result<bool> {
        let pinned = self.model.has_pins();
        match fallocate(&self.handles.file, mode, at..at + len) {
            Ok(()) if pinned => mismatch(Kind::Error, format!("{what} in spite of pins")),
            Ok(()) => Ok(true),
            Err(error) => match error.raw_os_error() {
                Some(libc::EBUSY) if pinned => Ok(false),
                // Not on this filesystem, or not at this granularity.
                Some(libc::EOPNOTSUPP | libc::EINVAL) => Ok(false),
                _ => mismatch(Kind::Error, format!("{what}, pinned: {pinned}: {error}")),
            },
        }
    }
}

/// All that read(2) returns of a file.
pub fn read_all(file: &File, buffer: &mut Vec<u8>) -> Result<()> {
    buffer.resize(FILE_MAX as usize + PAGE, 0);
    let mut len = 0;
    loop {
        match fail(file.read_at(&mut buffer[len..], len as u64), "read")? {
            0 => break,
            more => len += more,
        }
    }
    buffer.truncate(len);
    Ok(())
}

/// What is among the metadata can't be found on the disk: that is compared after a remount or a power cut.
fn leave_out_opaque(found: &OnDisk, expected: &mut [u8]) {
    for (range, place) in &found.missing {
        if *place == Place::Opaque {
            let range = range.start as usize..range.end as usize;
            expected[range.clone()].copy_from_slice(&found.bytes[range]);
        }
    }
}
