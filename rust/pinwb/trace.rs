// SPDX-License-Identifier: GPL-2.0

//! Tracepoints, see `include/trace/events/pinwb.h`.

use kernel::{
    bindings,
    declare_trace,
    mm::folio::Folio,
    prelude::*, //
};

/// Declares the events that name a folio and a number of pins, and safe functions for them.
macro_rules! folio_events {
    ($($(#[$doc:meta])* $name:ident: $event:ident;)*) => {
        declare_trace! {$(
            /// # Safety
            ///
            /// The folio is valid.
            unsafe fn $event(folio: *mut bindings::folio, pins: c_ulong);
        )*}

        $(
            $(#[$doc])*
            #[inline]
            pub(crate) fn $name(folio: &Folio, pins: usize) {
                // SAFETY: The folio is valid for as long as the reference.
                unsafe { $event(folio.as_raw(), pins) };
            }
        )*
    };
}

folio_events! {
    /// So many writable long-term pins were counted.
    pin: pinwb_pin;
    /// So many were given back.
    unpin: pinwb_unpin;
    /// So many pins wait until the folio is not under I/O any more.
    admit_wait: pinwb_admit_wait;
    /// A folio with so many pins is written, and stays dirty.
    keep_dirty: pinwb_keep_dirty;
    /// A folio with so many pins leaves its file.
    orphan: pinwb_orphan;
}

declare_trace! {
    /// # Safety
    ///
    /// Inode and bio are valid.
    unsafe fn pinwb_bounce(inode: *mut bindings::inode, bio: *mut bindings::bio, copied: c_uint);
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
