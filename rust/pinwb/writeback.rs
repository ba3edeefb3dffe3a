// SPDX-License-Identifier: GPL-2.0

//! Keep-dirty, and what else writeback and its neighbours ask the ledger.

use crate::{
    debug,
    entry::Entry,
    ledger::LEDGER,
    mapping::Mapping,
    stats,
    trace, //
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
    pins(folio) != 0 || debug::guess_pinned(folio)
}

/// Does a pin keep the folio in memory?
///
/// Exactly: the last unpin must know. Context: any.
pub(crate) fn stays(folio: &Folio) -> bool {
    pins(folio) != 0 && !debug::no_cull()
}

/// Number of writable long-term pins.
fn pins(folio: &Folio) -> usize {
    // CAST: 64 bits both.
    LEDGER.get(folio.pfn()).count() as usize
}

/// Is the folio dirty for its pins alone, as far as the dirty limits are concerned?
///
/// Context: any.
pub(crate) fn is_exempt(folio: &Folio) -> bool {
    exempt_bits(folio) & Entry::IN_NODE != 0
}

/// In which counters of exempt folios it is, see [`Entry::exempt_bits`]. Context: any.
pub(crate) fn exempt_bits(folio: &Folio) -> u64 {
    LEDGER.get(folio.pfn()).exempt_bits()
}

/// See [`crate::ledger::Ledger::set_exempt`].
pub(crate) fn set_exempt(folio: &Folio) -> u64 {
    if debug::no_exempt() {
        return 0;
    }
    LEDGER.set_exempt(folio.pfn())
}

/// See [`crate::ledger::Ledger::clear_exempt`].
pub(crate) fn clear_exempt(folio: &Folio) -> u64 {
    LEDGER.clear_exempt(folio.pfn())
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
    trace::keep_dirty(folio, pins(folio));

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

/// Says that a folio leaves its file, if it has pins.
///
/// Context: any, with the folio still in its mapping.
pub(crate) fn removed(folio: &Folio) {
    let pins = pins(folio);

    if pins != 0 {
        stats::orphaned();
        trace::orphan(folio, pins);
    }
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
