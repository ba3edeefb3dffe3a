// SPDX-License-Identifier: GPL-2.0

//! What pinned writeback wants to know of a `struct address_space`.

use core::{
    marker::PhantomData,
    ptr::NonNull, //
};
use kernel::{
    bindings,
    mm::folio::FolioGuard, //
};

/// The page cache of a file.
///
/// # Invariants
///
/// `raw` points to an address space with a host inode that stays valid for `'a`.
#[derive(Clone, Copy)]
pub(crate) struct Mapping<'a> {
    raw: NonNull<bindings::address_space>,
    _life: PhantomData<&'a bindings::address_space>,
}

impl<'a> Mapping<'a> {
    /// The mapping of a locked folio, which keeps it; [`None`] if the folio was truncated.
    ///
    /// The folio must be a page cache folio.
    pub(crate) fn of(locked: &'a FolioGuard<'_>) -> Option<Self> {
        // INVARIANT: The lock keeps the folio in the mapping, and an inode is not freed before its
        // folios are gone.
        Some(Self {
            raw: locked.mapping()?,
            _life: PhantomData,
        })
    }

    /// A mapping that C hands in.
    ///
    /// # Safety
    ///
    /// The type invariants must hold for `'a`.
    pub(crate) unsafe fn from_raw(raw: NonNull<bindings::address_space>) -> Self {
        // INVARIANT: By the caller's promise.
        Self {
            raw,
            _life: PhantomData,
        }
    }

    pub(crate) fn as_raw(self) -> *mut bindings::address_space {
        self.raw.as_ptr()
    }

    /// Does anything ever write this mapping to a disk?
    pub(crate) fn can_writeback(self) -> bool {
        // SAFETY: The mapping is valid by the type invariants.
        unsafe { bindings::mapping_can_writeback(self.as_raw()) }
    }

    /// Has the filesystem opted this file in?
    pub(crate) fn is_opted_in(self) -> bool {
        // SAFETY: The mapping is valid by the type invariants.
        unsafe { bindings::mapping_pinned_writeback(self.as_raw()) }
    }

    /// Remembers until eviction that folios here may be dirty unannounced.
    ///
    /// To be called with the folio locked: writeback of it looks at the flag under that lock.
    pub(crate) fn set_was_pinned(self) {
        // SAFETY: The mapping is valid by the type invariants.
        unsafe { bindings::mapping_set_was_pinned(self.as_raw()) }
    }

    /// Size of a filesystem block in bytes.
    pub(crate) fn block_size(self) -> usize {
        // SAFETY: The mapping and its host are valid by the type invariants.
        1 << unsafe { (*(*self.as_raw()).host).i_blkbits }
    }
}
