// SPDX-License-Identifier: GPL-2.0

//! In which files the pinned folios are.

use crate::ledger::LEDGER;
use kernel::bindings;

/// Where a folio that was pinned at some time is, and whether it is in a file.
pub(crate) fn place(pfn: usize) -> (bindings::pinwb_place, bool) {
    let mut place = bindings::pinwb_place::default();

    // SAFETY: `place` is valid for writing; the function takes any PFN that was pinned.
    let in_file = unsafe { bindings::pinwb_folio_place(pfn, &mut place) };

    (place, in_file)
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
