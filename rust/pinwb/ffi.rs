// SPDX-License-Identifier: GPL-2.0

//! What C calls. `include/linux/pinwb.h` has the contracts.

use crate::{
    admit::{
        self,
        PinnedRange, //
    },
    mapping::Mapping,
    stats,
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

/// See `pinwb_knockout_hole_alloc()`.
#[cfg(CONFIG_PINWB_DEBUG)]
#[export]
pub(crate) extern "C" fn pinwb_knockout_hole_alloc() -> bool {
    crate::debug::no_hole_alloc()
}

/// See `pinwb_knockout_cow()`.
#[cfg(CONFIG_PINWB_DEBUG)]
#[export]
pub(crate) extern "C" fn pinwb_knockout_cow() -> bool {
    crate::debug::no_cow()
}

/// See `pinwb_knockout_exclusion()`.
#[cfg(CONFIG_PINWB_DEBUG)]
#[export]
pub(crate) extern "C" fn pinwb_knockout_exclusion() -> bool {
    crate::debug::no_exclusion()
}

/// See `pinwb_knockout_keep_unmapped()`.
#[cfg(CONFIG_PINWB_DEBUG)]
#[export]
pub(crate) extern "C" fn pinwb_knockout_keep_unmapped() -> bool {
    crate::debug::no_keep_unmapped()
}

/// See `pinwb_knockout_unwritten()`.
#[cfg(CONFIG_PINWB_DEBUG)]
#[export]
pub(crate) extern "C" fn pinwb_knockout_unwritten() -> bool {
    crate::debug::no_unwritten_again()
}

/// See `pinwb_knockout_touch()`.
#[cfg(CONFIG_PINWB_DEBUG)]
#[export]
pub(crate) extern "C" fn pinwb_knockout_touch() -> bool {
    crate::debug::no_touch()
}

/// See `pinwb_knockout_sticky()`.
#[cfg(CONFIG_PINWB_DEBUG)]
#[export]
pub(crate) extern "C" fn pinwb_knockout_sticky() -> bool {
    crate::debug::always_sticky()
}
