// SPDX-License-Identifier: GPL-2.0

//! What C calls. `include/linux/pinwb.h` has the contracts.

use crate::{
    admit::{
        self,
        PinnedRange, //
    },
    mapping::Mapping,
    places,
    stats,
    unchanged,
    writeback, //
};
use core::ptr::NonNull;
use kernel::{
    bindings,
    error::from_result,
    mm::folio::Folio,
    prelude::*, //
};

/// See `pinwb_admit()`.
///
/// # Safety
///
/// The caller holds a `FOLL_PIN` reference to each of the `nr_pages` pages in `pages`, which are
/// those of the user range of `mm` at `start`; `mmap_locked` says whether the `mmap_lock` is held.
#[export]
pub(crate) unsafe extern "C" fn __pinwb_admit(
    mm: *mut bindings::mm_struct,
    start: c_ulong,
    pages: *mut *mut bindings::page,
    nr_pages: c_ulong,
    mmap_locked: bool,
) -> c_int {
    from_result(|| {
        let mm = NonNull::new(mm).ok_or(EINVAL)?;
        // SAFETY: `pages` is an array of `nr_pages` by the caller's promise.
        let pages = unsafe { core::slice::from_raw_parts(pages, nr_pages) };

        // SAFETY: By the caller's promise.
        unsafe { PinnedRange::new(mm, start, pages, mmap_locked) }.admit()?;
        Ok(0)
    })
}

/// See `pinwb_unpin()`.
///
/// # Safety
///
/// The caller holds `nr` `FOLL_PIN` references to the folio.
#[export]
pub(crate) unsafe extern "C" fn __pinwb_unpin(folio: *mut bindings::folio, nr: c_ulong) {
    // SAFETY: The caller's references keep the folio.
    admit::forget(unsafe { Folio::from_raw(folio) }, nr as u64);
}

/// See `pinwb_unpin_pages()`.
///
/// # Safety
///
/// The caller holds a `FOLL_PIN` reference to each of the `nr_pages` pages that is not null.
#[export]
pub(crate) unsafe extern "C" fn pinwb_unpin_pages(
    pages: *mut *mut bindings::page,
    nr_pages: c_ulong,
) {
    // SAFETY: `pages` is an array of `nr_pages` by the caller's promise.
    let pages = unsafe { core::slice::from_raw_parts(pages, nr_pages) };

    // SAFETY: By the caller's promise.
    unsafe { admit::forget_pages(pages) };
}

/// See `pinwb_folio_pinned()`.
///
/// # Safety
///
/// The folio is valid.
#[export]
pub(crate) unsafe extern "C" fn __pinwb_folio_pinned(folio: *const bindings::folio) -> bool {
    // SAFETY: By the caller's promise.
    writeback::is_pinned(unsafe { Folio::from_raw(folio) })
}

/// See `pinwb_folio_stays()`.
///
/// # Safety
///
/// The folio is valid.
#[export]
pub(crate) unsafe extern "C" fn __pinwb_folio_stays(folio: *const bindings::folio) -> bool {
    // SAFETY: By the caller's promise.
    writeback::stays(unsafe { Folio::from_raw(folio) })
}

/// See `pinwb_keep_dirty()`.
///
/// # Safety
///
/// The folio is locked and in a mapping.
#[export]
pub(crate) unsafe extern "C" fn __pinwb_keep_dirty(folio: *mut bindings::folio) -> bool {
    // SAFETY: By the caller's promise.
    writeback::keep_dirty(unsafe { Folio::from_raw(folio) })
}

/// See `pinwb_folio_exempt()`.
///
/// # Safety
///
/// The folio is valid.
#[export]
pub(crate) unsafe extern "C" fn __pinwb_folio_exempt(folio: *const bindings::folio) -> bool {
    // SAFETY: By the caller's promise.
    writeback::is_exempt(unsafe { Folio::from_raw(folio) })
}

/// See `pinwb_skip_folio()`.
///
/// # Safety
///
/// The caller has a reference to the folio.
#[export]
pub(crate) unsafe extern "C" fn __pinwb_folio_unchanged(folio: *const bindings::folio) -> bool {
    // SAFETY: By the caller's promise.
    let folio = unsafe { Folio::from_raw(folio) };

    writeback::is_exempt(folio) && unchanged::is_unchanged(folio)
}

/// See `pinwb_folio_cut()`.
///
/// # Safety
///
/// The folio is valid.
#[export]
pub(crate) unsafe extern "C" fn __pinwb_folio_cut(folio: *const bindings::folio) {
    // SAFETY: By the caller's promise.
    unchanged::forget(unsafe { Folio::from_raw(folio) });
}

/// See `pinwb_writeback_failed()`.
#[export]
pub(crate) extern "C" fn __pinwb_writeback_failed() {
    unchanged::forget_all();
}

/// See `pinwb_folio_removed()`.
///
/// # Safety
///
/// The folio is valid.
#[export]
pub(crate) unsafe extern "C" fn __pinwb_folio_removed(folio: *mut bindings::folio) {
    // SAFETY: By the caller's promise.
    writeback::removed(unsafe { Folio::from_raw(folio) });
}

/// Finds the pins on files of a filesystem.
///
/// # Safety
///
/// `found` is valid for writing.
#[export]
pub(crate) unsafe extern "C" fn pinwb_pins_on(
    major: c_uint,
    minor: c_uint,
    found: *mut bindings::pinwb_pins,
) {
    // SAFETY: By the caller's promise.
    unsafe { *found = places::pins_on(major, minor) };
}

/// Which of the bits `PINWB_EXEMPT` are set.
///
/// # Safety
///
/// The folio is valid.
#[export]
pub(crate) unsafe extern "C" fn pinwb_exempt_bits(folio: *const bindings::folio) -> u64 {
    // SAFETY: By the caller's promise.
    writeback::exempt_bits(unsafe { Folio::from_raw(folio) })
}

/// Sets the bits `PINWB_EXEMPT` of a folio with pins, and says which were not set.
///
/// # Safety
///
/// The folio is valid.
#[export]
pub(crate) unsafe extern "C" fn pinwb_set_exempt(folio: *const bindings::folio) -> u64 {
    // SAFETY: By the caller's promise.
    writeback::set_exempt(unsafe { Folio::from_raw(folio) })
}

/// Clears the bits `PINWB_EXEMPT`, and says which were set.
///
/// # Safety
///
/// The folio is valid.
#[export]
pub(crate) unsafe extern "C" fn pinwb_clear_exempt(folio: *const bindings::folio) -> u64 {
    // SAFETY: By the caller's promise.
    writeback::clear_exempt(unsafe { Folio::from_raw(folio) })
}

/// See `pinwb_mapping_has_pins()`.
///
/// # Safety
///
/// The mapping is that of an inode that the caller has a reference to.
#[export]
pub(crate) unsafe extern "C" fn __pinwb_mapping_has_pins(
    mapping: *mut bindings::address_space,
) -> bool {
    // SAFETY: By the caller's promise.
    NonNull::new(mapping)
        .is_some_and(|mapping| writeback::has_pins(unsafe { Mapping::from_raw(mapping) }))
}

/// See `pinwb_refuse()`.
#[export]
pub(crate) extern "C" fn pinwb_count_refusal() {
    stats::refused();
}

/// Exports knock-outs to the parts that are in C.
#[cfg(CONFIG_PINWB_DEBUG)]
macro_rules! knockouts {
    ($($name:ident: $switch:ident;)*) => {
        $(
            /// See `PINWB_KNOCKOUT()`.
            #[export]
            pub(crate) extern "C" fn $name() -> bool {
                crate::debug::$switch()
            }
        )*
    };
}

#[cfg(CONFIG_PINWB_DEBUG)]
knockouts! {
    pinwb_knockout_hole_alloc: no_hole_alloc;
    pinwb_knockout_cow: no_cow;
    pinwb_knockout_exclusion: no_exclusion;
    pinwb_knockout_keep_unmapped: no_keep_unmapped;
    pinwb_knockout_unwritten: no_unwritten_again;
    pinwb_knockout_touch: no_touch;
    pinwb_knockout_exempt: no_exempt;
    pinwb_knockout_freeze: no_freeze;
    pinwb_knockout_sticky: always_sticky;
}
