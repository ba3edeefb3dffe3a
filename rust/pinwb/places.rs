// SPDX-License-Identifier: GPL-2.0

//! In which files the pinned folios are.

use crate::{
    bounced::{
        FileId,
        BOUNCED, //
    },
    ledger::LEDGER, //
};
use core::ffi::CStr;
use kernel::{
    bindings,
    prelude::*,
    rbtree::RBTree, //
};

/// Where a folio that was pinned at some time is, and whether it is in a file.
pub(crate) fn place(pfn: usize) -> (bindings::pinwb_place, bool) {
    let mut place = bindings::pinwb_place::default();

    // SAFETY: `place` is valid for writing; the function takes any PFN that was pinned.
    let in_file = unsafe { bindings::pinwb_folio_place(pfn, &mut place) };

    (place, in_file)
}

/// What is pinned of a file.
pub(crate) struct FilePins {
    /// Where the first folio is. Files of subvolumes may have the same number: the inode's address
    /// tells them apart.
    pub(crate) first: bindings::pinwb_place,
    pub(crate) folios: usize,
    pub(crate) pages: usize,
    /// Writable long-term pins.
    pub(crate) pins: u64,
    /// Who took the first pin of the first folio.
    pub(crate) owner: u32,
    /// The first folio.
    pfn: usize,
}

impl FilePins {
    /// Bytes of it that were copied for writeback, see `bounced.rs`.
    pub(crate) fn bounced(&self) -> u64 {
        BOUNCED.of(FileId::new(self.first.file_id))
    }

    /// A path of the file, from the root of its filesystem, if there is one in memory.
    ///
    /// Context: process context.
    pub(crate) fn path<'a>(&self, buffer: &'a mut [u8]) -> Option<&'a CStr> {
        // CAST: The buffer is a page.
        let len = buffer.len() as c_int;

        // SAFETY: The buffer has that many bytes; the function takes any PFN that was pinned, and
        // only compares the inode's address.
        let path = unsafe {
            bindings::pinwb_folio_path(self.pfn, self.first.inode, buffer.as_mut_ptr().cast(), len)
        };

        // SAFETY: What is not null is a C string in the buffer.
        (!path.is_null()).then(|| unsafe { CStr::from_ptr(path.cast()) })
    }
}

/// What is pinned, by file.
///
/// Walks the whole ledger. Errors: `ENOMEM`. Context: process context, may sleep.
pub(crate) fn files() -> Result<RBTree<usize, FilePins>> {
    let mut files = RBTree::<usize, FilePins>::new();

    LEDGER.for_each(|pfn, entry| {
        let (place, in_file) = place(pfn);
        let id = place.inode as usize;

        if !in_file {
            return Ok(());
        }
        if let Some(file) = files.get_mut(&id) {
            file.folios += 1;
            file.pages += place.nr_pages;
            file.pins += entry.count();
            return Ok(());
        }
        let file = FilePins {
            folios: 1,
            pages: place.nr_pages,
            pins: entry.count(),
            owner: entry.owner(),
            pfn,
            first: place,
        };
        files.try_create_and_insert(id, file, GFP_KERNEL)?;
        Ok(())
    })?;
    Ok(files)
}

/// What is pinned of the files of a filesystem, and by whom first.
///
/// Walks the whole ledger. Context: process context.
pub(crate) fn pins_on(major: u32, minor: u32) -> bindings::pinwb_pins {
    let mut found = bindings::pinwb_pins::default();

    // The closure never fails, and neither does the walk.
    let _ = LEDGER.for_each(|pfn, entry| {
        let (place, in_file) = place(pfn);

        if in_file && (place.major, place.minor) == (major, minor) {
            if found.nr_pages == 0 {
                found.owner = entry.owner();
            }
            found.nr_pages += place.nr_pages;
        }
        Ok(())
    });
    found
}
