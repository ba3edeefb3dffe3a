// SPDX-License-Identifier: GPL-2.0

//! Folios.
//!
//! A folio is a physically, virtually and logically contiguous set of bytes: one page, or a power
//! of two of them. The page cache is made of folios.
//!
//! C headers: [`include/linux/mm.h`](srctree/include/linux/mm.h),
//! [`include/linux/pagemap.h`](srctree/include/linux/pagemap.h),
//! [`include/linux/page-flags.h`](srctree/include/linux/page-flags.h)

use crate::{
    bindings,
    error::{
        to_result,
        Result, //
    },
    types::{
        NotThreadSafe,
        Opaque, //
    },
};
use core::ptr::{
    addr_of,
    NonNull, //
};

/// A wrapper for the kernel's `struct folio`.
///
/// A reference to this type stands for a folio that somebody keeps alive: by a reference count, by
/// a `FOLL_PIN` pin, or by I/O that is under way. It says nothing about the folio lock; what needs
/// that lock is a method of [`FolioGuard`].
///
/// # Invariants
///
/// The pointer is that of a head page, and the folio is neither freed nor split while the reference
/// lives.
#[repr(transparent)]
pub struct Folio(Opaque<bindings::folio>);

// SAFETY: A folio has no thread affinity. It is locked and unlocked by different tasks all the time
// (I/O completion does), although `FolioGuard` does not offer that.
unsafe impl Send for Folio {}

// SAFETY: The methods that take `&self` read words that the C side updates atomically, or take the
// folio lock.
unsafe impl Sync for Folio {}

impl Folio {
    /// Creates a reference to a folio from a raw pointer.
    ///
    /// # Safety
    ///
    /// `folio` must point at a folio that is neither freed nor split for the duration of `'a`: the
    /// caller holds a reference or a pin on it, or knows somebody who does.
    #[inline]
    pub unsafe fn from_raw<'a>(folio: *const bindings::folio) -> &'a Self {
        // SAFETY: The caller promises that the pointer is valid for `'a`; the layout is that of
        // `struct folio` because both wrappers are transparent. INVARIANT: a `struct folio` pointer
        // is that of a head page.
        unsafe { &*folio.cast() }
    }

    /// Returns the folio that contains a page.
    ///
    /// # Safety
    ///
    /// `page` must be valid, and its folio neither freed nor split for the duration of `'a`: the
    /// caller holds a reference or a pin on it, or knows somebody who does.
    #[inline]
    pub unsafe fn of_page<'a>(page: *mut bindings::page) -> &'a Self {
        // SAFETY: The caller promises that `page` is valid, and that its folio stays the same folio
        // for `'a`.
        unsafe { Self::from_raw(bindings::page_folio(page)) }
    }

    /// Returns a raw pointer to the folio.
    #[inline]
    pub fn as_raw(&self) -> *mut bindings::folio {
        self.0.get()
    }

    /// Returns the page frame number of the first page.
    #[inline]
    pub fn pfn(&self) -> usize {
        // SAFETY: The folio is valid by the type invariants.
        unsafe { bindings::folio_pfn(self.as_raw()) }
    }

    /// Returns the number of pages, a power of two.
    #[inline]
    pub fn nr_pages(&self) -> usize {
        // SAFETY: The folio is valid by the type invariants, and not split.
        unsafe { bindings::folio_nr_pages(self.as_raw()) }
    }

    /// Returns the number of bytes.
    #[inline]
    pub fn size(&self) -> usize {
        // SAFETY: The folio is valid by the type invariants, and not split.
        unsafe { bindings::folio_size(self.as_raw()) }
    }

    /// Returns the offset within the file, in pages.
    ///
    /// Of use for page cache folios only. It stays what it was when the folio leaves the page
    /// cache.
    #[inline]
    pub fn index(&self) -> usize {
        let folio = self.as_raw();

        // SAFETY: The folio is valid by the type invariants. `index` is written only while nobody
        // else can find the folio, or by migration, which a reference keeps away. All variants of
        // the unions are plain integers and pointers.
        unsafe {
            (*folio)
                .__bindgen_anon_1
                .__bindgen_anon_1
                .__bindgen_anon_2
                .index
        }
    }

    /// Returns the offset within the file, in bytes.
    ///
    /// Of use for page cache folios only; see [`Folio::index`].
    #[inline]
    pub fn pos(&self) -> i64 {
        // SAFETY: The folio is valid by the type invariants.
        unsafe { bindings::folio_pos(self.as_raw()) }
    }

    /// Returns whether this is anonymous memory, including KSM.
    #[inline]
    pub fn is_anon(&self) -> bool {
        // SAFETY: The folio is valid by the type invariants.
        unsafe { bindings::folio_test_anon(self.as_raw()) }
    }

    /// Returns whether the folio goes to swap when reclaimed: anonymous memory and shmem.
    #[inline]
    pub fn is_swapbacked(&self) -> bool {
        // SAFETY: The folio is valid by the type invariants.
        unsafe { bindings::folio_test_swapbacked(self.as_raw()) }
    }

    /// Returns whether this is a folio of hugetlbfs.
    #[inline]
    pub fn is_hugetlb(&self) -> bool {
        // SAFETY: The folio is valid by the type invariants.
        unsafe { bindings::folio_test_hugetlb(self.as_raw()) }
    }

    /// Returns whether the folio is dirty. May change at any time unless the folio is locked; even
    /// then it may become dirty.
    #[inline]
    pub fn is_dirty(&self) -> bool {
        // SAFETY: The folio is valid by the type invariants.
        unsafe { bindings::folio_test_dirty(self.as_raw()) }
    }

    /// Returns whether the folio is being written back. Cannot become true while the folio is
    /// locked by the caller.
    #[inline]
    pub fn is_writeback(&self) -> bool {
        // SAFETY: The folio is valid by the type invariants.
        unsafe { bindings::folio_test_writeback(self.as_raw()) }
    }

    /// Returns whether the folio has more than one page.
    #[inline]
    pub fn is_large(&self) -> bool {
        // SAFETY: The folio is valid by the type invariants.
        unsafe { bindings::folio_test_large(self.as_raw()) }
    }

    /// Returns the mapping that the folio is in, or [`None`] after truncation.
    ///
    /// This is a peek: without the folio lock the folio may be truncated at any time, and the
    /// address space may even be freed before the pointer is looked at. Use
    /// [`FolioGuard::mapping`] unless only the value is of interest.
    ///
    /// For anonymous memory this is not an address space: the low bits are flags. Callers check
    /// [`Folio::is_anon`].
    #[inline]
    pub fn mapping(&self) -> Option<NonNull<bindings::address_space>> {
        // SAFETY: The folio is valid by the type invariants; a volatile read, like `READ_ONCE()`,
        // because truncation may store NULL at the same time.
        let mapping = unsafe {
            addr_of!((*self.as_raw()).__bindgen_anon_1.__bindgen_anon_1.mapping).read_volatile()
        };
        NonNull::new(mapping)
    }

    /// Locks the folio. May sleep; see [`Folio::lock_killable`] for the order.
    #[inline]
    pub fn lock(&self) -> FolioGuard<'_> {
        // SAFETY: The folio is valid by the type invariants.
        unsafe { bindings::folio_lock(self.as_raw()) };

        // INVARIANT: The lock was just taken.
        FolioGuard {
            folio: self,
            _not_send: NotThreadSafe,
        }
    }

    /// Locks the folio, or returns [`EINTR`] if a fatal signal arrives while waiting.
    ///
    /// May sleep. Whoever needs the locks of two folios of one mapping takes them in the order of
    /// their indices.
    ///
    /// [`EINTR`]: crate::error::code::EINTR
    #[inline]
    pub fn lock_killable(&self) -> Result<FolioGuard<'_>> {
        // SAFETY: The folio is valid by the type invariants.
        to_result(unsafe { bindings::folio_lock_killable(self.as_raw()) })?;

        // INVARIANT: The lock was just taken.
        Ok(FolioGuard {
            folio: self,
            _not_send: NotThreadSafe,
        })
    }

    /// Locks the folio if nobody else has it locked. Never sleeps.
    #[inline]
    pub fn try_lock(&self) -> Option<FolioGuard<'_>> {
        // SAFETY: The folio is valid by the type invariants.
        if !unsafe { bindings::folio_trylock(self.as_raw()) } {
            return None;
        }

        // INVARIANT: The lock was just taken.
        Some(FolioGuard {
            folio: self,
            _not_send: NotThreadSafe,
        })
    }
}

/// A locked folio.
///
/// The lock keeps truncation and the start of writeback away. It does not keep stores through page
/// tables or by a device away.
///
/// # Invariants
///
/// The folio is locked, and it is this guard's job to unlock it.
#[must_use = "the folio unlocks immediately when the guard is unused"]
pub struct FolioGuard<'a> {
    folio: &'a Folio,
    _not_send: NotThreadSafe,
}

impl FolioGuard<'_> {
    /// Returns the mapping that the folio is in, or [`None`] if it was truncated.
    ///
    /// The folio stays in this mapping, and the mapping with it, until the guard is dropped.
    #[inline]
    pub fn mapping(&self) -> Option<NonNull<bindings::address_space>> {
        // The lock is what truncation takes before it changes the field.
        self.folio.mapping()
    }

    /// Waits until the folio is not under writeback, or returns [`EINTR`] on a fatal signal.
    ///
    /// Writeback cannot start again before the guard is dropped. May sleep.
    ///
    /// [`EINTR`]: crate::error::code::EINTR
    #[inline]
    pub fn wait_writeback_killable(&self) -> Result {
        // SAFETY: The folio is valid by the type invariants of `Folio`.
        to_result(unsafe { bindings::folio_wait_writeback_killable(self.as_raw()) })
    }

    /// Marks the folio dirty in the terms of its filesystem (`->dirty_folio()`).
    ///
    /// Returns whether the folio was clean before.
    #[inline]
    pub fn mark_dirty(&self) -> bool {
        // SAFETY: The folio is valid by the type invariants of `Folio`. It is locked by those of
        // this type, which keeps it from being truncated meanwhile.
        unsafe { bindings::folio_mark_dirty(self.as_raw()) }
    }
}

impl core::ops::Deref for FolioGuard<'_> {
    type Target = Folio;

    #[inline]
    fn deref(&self) -> &Folio {
        self.folio
    }
}

impl Drop for FolioGuard<'_> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type invariants the folio is locked, and the lock is ours to give up.
        unsafe { bindings::folio_unlock(self.folio.as_raw()) };
    }
}
