// SPDX-License-Identifier: GPL-2.0

//! Keep-dirty, and what else writeback and its neighbours ask the ledger.

use crate::{
    debug,
    ledger::LEDGER,
    mapping::Mapping,
    stats, //
};
use kernel::{
    bindings,
    mm::folio::Folio,
    prelude::*,
    time::{
        delay::fsleep,
        Delta, //
    }, //
};

/// Does the folio have a writable long-term pin right now?
///
/// Context: any. For what the answer is worth see `ledger.rs`.
#[inline]
pub(crate) fn is_pinned(folio: &Folio) -> bool {
    LEDGER.get(folio.pfn()).count() != 0 || debug::guess_pinned(folio)
}

/// The knock-out of never waiting: what was proposed for `folio_mkclean()`.
#[cold]
fn wait_for_unpin(folio: &Folio) {
    while debug::wait_for_pin() && is_pinned(folio) {
        fsleep(Delta::from_millis(10));
    }
}

/// Makes a folio that is about to be written dirty again if it is pinned, and says so.
///
/// The device may write to the folio at any time from now, also before a single byte of it is
/// copied, and the next fsync has to find that. Two fsyncs show why *now* and not after the copy:
/// the first takes the copy, the device completes another write, and the second fsync begins while
/// the I/O of the first is still in flight. If the folio is clean at that moment the second one
/// sees writeback without dirt, waits for the old I/O, and returns success too early.
///
/// The DIRTY tag survives because `__folio_start_writeback()` leaves it alone on a dirty folio; the
/// TOWRITE tag goes, so that a sync meets each folio once and comes to an end.
///
/// Context: folio locked and just cleaned by `folio_clear_dirty_for_io()`. Does not sleep.
pub(crate) fn keep_dirty(folio: &Folio) -> bool {
    if !is_pinned(folio) || debug::no_keep_dirty() {
        return false;
    }
    if debug::wait_for_pin() {
        wait_for_unpin(folio);
        return false;
    }
    stats::kept_dirty();

    if !debug::late_keep_dirty() {
        redirty(folio);
    }
    true
}

/// The knock-out of [`keep_dirty`]'s order: makes folios dirty only now that they were copied.
///
/// To be called for each folio of a bio. Does nothing unless a test asks for it.
pub(crate) fn late_keep_dirty() -> impl FnMut(&Folio) {
    let mut delayed = false;

    move |folio| {
        if debug::late_keep_dirty() {
            if !core::mem::replace(&mut delayed, true) {
                debug::delay_bounce();
            }
            redirty(folio);
        }
    }
}

/// Sets PG_dirty and the DIRTY tag, and nothing of the filesystem's own.
///
/// Context: the folio is in its mapping and cannot leave: locked, or under writeback.
pub(crate) fn redirty(folio: &Folio) {
    // SAFETY: The folio is valid, and the caller keeps it in its mapping.
    unsafe { bindings::pinwb_redirty_folio(folio.as_raw()) };
}

/// Walks a mapping for folios with pins.
///
/// Each folio is asked under its lock: a pin that was counted too late for us to see takes that
/// lock after us, and then sees that the file was opted out.
///
/// Context: process context, no folio locks. Sleeps for folio locks, never for a pin.
pub(crate) fn has_pins(mapping: Mapping<'_>) -> bool {
    let mut batch = bindings::folio_batch::default();
    let mut index = 0;

    loop {
        // SAFETY: The mapping is valid by its invariants, and the batch is empty.
        let nr = unsafe {
            bindings::filemap_get_folios(mapping.as_raw(), &mut index, c_ulong::MAX, &mut batch)
        };

        if nr == 0 {
            return false;
        }

        let pinned = batch.folios[..nr as usize].iter().any(|&folio| {
            // SAFETY: The batch holds a reference until it is released below.
            let folio = unsafe { Folio::from_raw(folio) };

            let locked = folio.lock();

            locked
                .mapping()
                .is_some_and(|of| of.as_ptr() == mapping.as_raw())
                && is_pinned(&locked)
        });

        // SAFETY: The batch is valid, and its references are ours.
        unsafe { bindings::folio_batch_release(&mut batch) };
        if pinned {
            return true;
        }
    }
}
