// SPDX-License-Identifier: GPL-2.0

//! Stand-in for `rust/pinwb/debug.rs`: the same knock-outs, and those that only a model can have.

use std::cell::Cell;

use crate::mm::folio::Folio;

/// A step to leave out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Knockout {
    /// Nothing.
    #[default]
    None,
    /// As in the kernel.
    NoCopy,
    /// As in the kernel.
    NoKeepDirty,
    /// As in the kernel.
    LateKeepDirty,
    /// As in the kernel.
    NoAdmission,
    /// As in the kernel.
    NoExempt,
    /// As in the kernel.
    WaitForPin,
    /// Pins are counted when admission has ended.
    LateCount,
    /// Admission and its fault for write lock no folio.
    NoLock,
    /// Admission does not wait for writeback.
    NoWait,
    /// Reclaim does not look for pins again when it has put a folio away.
    NoSecondLook,
    /// Who clears PG_lru and leaves the folio where it is sets it again without looking for pins.
    NoRecheck,
    /// The last unpin isolates a folio before it takes the lock of the lists.
    IsolateFirst,
}

thread_local! {
    static KNOCKOUT: Cell<Knockout> = Cell::default();
}

pub(crate) fn knock_out(knockout: Knockout) {
    KNOCKOUT.set(knockout);
}

pub(crate) fn is(knockout: Knockout) -> bool {
    KNOCKOUT.get() == knockout
}

pub(crate) fn no_keep_dirty() -> bool {
    is(Knockout::NoKeepDirty)
}

pub(crate) fn late_keep_dirty() -> bool {
    is(Knockout::LateKeepDirty)
}

pub(crate) fn no_admission() -> bool {
    is(Knockout::NoAdmission)
}

pub(crate) fn no_exempt() -> bool {
    is(Knockout::NoExempt)
}

pub(crate) fn wait_for_pin() -> bool {
    is(Knockout::WaitForPin)
}

/// Reclaim has its own knock-outs here.
pub(crate) fn no_cull() -> bool {
    false
}

/// A heuristic on reference counts has no model here.
pub(crate) fn guess_pinned(_: &Folio) -> bool {
    false
}

pub(crate) fn delay_admission() {}

pub(crate) fn delay_bounce() {}
