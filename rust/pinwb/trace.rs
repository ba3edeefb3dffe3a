// SPDX-License-Identifier: GPL-2.0

//! Tracepoints, see `include/trace/events/pinwb.h`.

use kernel::{
    bindings,
    declare_trace,
    mm::folio::Folio,
    prelude::*, //
};

declare_trace! {
    /// # Safety
    ///
    /// The folio is valid.
    unsafe fn pinwb_pin(folio: *mut bindings::folio, pins: c_ulong);

    /// # Safety
    ///
    /// The folio is valid.
    unsafe fn pinwb_unpin(folio: *mut bindings::folio, pins: c_ulong);

    /// # Safety
    ///
    /// The folio is valid.
    unsafe fn pinwb_admit_wait(folio: *mut bindings::folio, pins: c_ulong);

    /// # Safety
    ///
    /// The folio is valid.
    unsafe fn pinwb_keep_dirty(folio: *mut bindings::folio, pins: c_ulong);

    /// # Safety
    ///
    /// The folio is valid.
    unsafe fn pinwb_orphan(folio: *mut bindings::folio, pins: c_ulong);

    /// # Safety
    ///
    /// Inode and bio are valid.
    unsafe fn pinwb_bounce(inode: *mut bindings::inode, bio: *mut bindings::bio, copied: c_uint);
}

/// So many writable long-term pins were counted.
#[inline]
pub(crate) fn pin(folio: &Folio, pins: usize) {
    // SAFETY: The folio is valid for as long as the reference.
    unsafe { pinwb_pin(folio.as_raw(), pins) };
}

/// So many were given back.
#[inline]
pub(crate) fn unpin(folio: &Folio, pins: usize) {
    // SAFETY: As above.
    unsafe { pinwb_unpin(folio.as_raw(), pins) };
}

/// So many pins wait until the folio is not under I/O any more.
#[inline]
pub(crate) fn admit_wait(folio: &Folio, pins: usize) {
    // SAFETY: As above.
    unsafe { pinwb_admit_wait(folio.as_raw(), pins) };
}

/// A folio with so many pins is written, and stays dirty.
#[inline]
pub(crate) fn keep_dirty(folio: &Folio, pins: usize) {
    // SAFETY: As above.
    unsafe { pinwb_keep_dirty(folio.as_raw(), pins) };
}

/// A folio with so many pins leaves its file.
#[inline]
pub(crate) fn orphan(folio: &Folio, pins: usize) {
    // SAFETY: As above.
    unsafe { pinwb_orphan(folio.as_raw(), pins) };
}

/// So many bytes of a bio are copies.
///
/// # Safety
///
/// Inode and bio are valid.
#[inline]
pub(crate) unsafe fn bounce(inode: *mut bindings::inode, bio: *mut bindings::bio, copied: usize) {
    // SAFETY: By the caller's promise. CAST: A bio has at most 4 GiB.
    unsafe { pinwb_bounce(inode, bio, copied as c_uint) };
}
