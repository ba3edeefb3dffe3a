// SPDX-License-Identifier: GPL-2.0

//! Block I/O requests as submitters see them.
//!
//! C headers: [`include/linux/bio.h`](srctree/include/linux/bio.h),
//! [`include/linux/bvec.h`](srctree/include/linux/bvec.h),
//! [`include/linux/blk_types.h`](srctree/include/linux/blk_types.h)

use crate::{
    bindings,
    mm::folio::Folio,
    page::PAGE_SIZE,
    types::Opaque, //
};
use core::{
    marker::PhantomData,
    ptr::NonNull, //
};

/// The most bvecs that a bio from a bio_set can have, and that drivers have to cope with.
pub const MAX_VECS: usize = bindings::BIO_MAX_VECS as usize;

/// A flag in `bi_flags`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Flag(u32);

impl Flag {
    /// The bio shares the table of another one.
    pub const CLONED: Self = Self(bindings::BIO_CLONED);
    /// The bio's own table was swapped for one that points at private copies.
    pub const BOUNCED: Self = Self(bindings::BIO_BOUNCED);
}

/// A range of physically contiguous memory: one entry of a bio's table.
///
/// The range may start after the page that it names, and may span several folios.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct BioVec(bindings::bio_vec);

impl BioVec {
    /// Creates an entry from its parts. `offset` and `len` are in bytes; `offset` counts from the
    /// start of `page`.
    #[inline]
    pub fn new(page: *mut bindings::page, offset: u32, len: u32) -> Self {
        Self(bindings::bio_vec {
            bv_page: page,
            bv_len: len,
            bv_offset: offset,
        })
    }

    /// Returns the page that the offset counts from.
    #[inline]
    pub fn page(&self) -> *mut bindings::page {
        self.0.bv_page
    }

    /// Returns the number of bytes.
    #[inline]
    pub fn len(&self) -> u32 {
        self.0.bv_len
    }

    /// Returns whether there are no bytes, which no bvec of a valid bio has.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.0.bv_len == 0
    }

    /// Returns the offset in bytes from the start of [`BioVec::page`].
    #[inline]
    pub fn offset(&self) -> u32 {
        self.0.bv_offset
    }

    /// Returns the same range with `more` bytes added at its end.
    #[inline]
    pub fn extended(&self, more: u32) -> Self {
        Self::new(self.page(), self.offset(), self.len() + more)
    }

    /// Returns the address of the range in the kernel's direct mapping.
    ///
    /// # Safety
    ///
    /// The page must be valid, and not in high memory.
    #[inline]
    pub unsafe fn virt(&self) -> *mut u8 {
        // The C function does not write through the pointer.
        //
        // SAFETY: The caller promises that the page is valid and has an address.
        unsafe { bindings::bvec_virt(core::ptr::from_ref(&self.0).cast_mut()) }.cast()
    }

    /// Splits the range at folio boundaries.
    ///
    /// # Safety
    ///
    /// The range must be memory of folios that are neither freed nor split for the duration of
    /// `'a`.
    #[inline]
    pub unsafe fn folios<'a>(&self) -> FolioRanges<'a> {
        // INVARIANT: The caller promises that all of the range is memory of folios.
        FolioRanges {
            rest: *self,
            _folios: PhantomData,
        }
    }
}

/// A range of bytes within one folio.
pub struct FolioRange<'a> {
    /// The folio.
    pub folio: &'a Folio,
    /// The offset of the first byte within the folio, in bytes.
    pub start: usize,
    /// The same bytes as an entry of a table.
    pub vec: BioVec,
}

/// The iterator of [`BioVec::folios`].
///
/// # Invariants
///
/// All bytes of `rest` are memory of folios that live for `'a`.
pub struct FolioRanges<'a> {
    rest: BioVec,
    _folios: PhantomData<&'a Folio>,
}

impl<'a> Iterator for FolioRanges<'a> {
    type Item = FolioRange<'a>;

    fn next(&mut self) -> Option<FolioRange<'a>> {
        if self.rest.is_empty() {
            return None;
        }

        let BioVec(bindings::bio_vec {
            bv_page,
            bv_len,
            bv_offset,
        }) = self.rest;
        let in_page = bv_offset as usize % PAGE_SIZE;
        // SAFETY: All pages of a bvec are contiguous, also in `struct page`s.
        let page = unsafe { bv_page.add(bv_offset as usize / PAGE_SIZE) };
        // SAFETY: By the type invariants the page is one of a folio that lives for `'a`.
        let folio = unsafe { Folio::of_page(page) };

        // SAFETY: Both are pages of one folio, thus contiguous.
        let nr = unsafe { page.offset_from(folio.as_raw().cast::<bindings::page>()) } as usize;
        let start = nr * PAGE_SIZE + in_page;
        // CAST: At most `bv_len`.
        let len = usize::min(bv_len as usize, folio.size() - start) as u32;

        // INVARIANT: What is left is a part of what there was.
        self.rest = BioVec::new(bv_page, bv_offset + len, bv_len - len);

        Some(FolioRange {
            folio,
            start,
            vec: BioVec::new(page, in_page as u32, len),
        })
    }
}

/// A bio's table of bvecs: where it is, how many entries are in use, and for how many there is
/// room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    /// The first entry (`bi_io_vec`).
    pub vecs: NonNull<BioVec>,
    /// The number of entries in use (`bi_vcnt`).
    pub len: u16,
    /// The number of entries that there is room for (`bi_max_vecs`).
    pub capacity: u16,
}

/// A wrapper for the kernel's `struct bio`, in the hands of whoever made it.
///
/// # Invariants
///
/// The bio is initialized, alive, and has a table; it is either not submitted yet, or its I/O has
/// ended, so that nobody else looks at it.
#[repr(transparent)]
pub struct Bio(Opaque<bindings::bio>);

impl Bio {
    /// Creates a reference from a raw pointer.
    ///
    /// # Safety
    ///
    /// For the duration of `'a`, the bio must be initialized and alive, have a table, be not cloned
    /// or the clone of one whose table is alive, and belong to the caller: not submitted yet, or
    /// its I/O has ended.
    #[inline]
    pub unsafe fn from_raw<'a>(bio: *mut bindings::bio) -> &'a Self {
        // INVARIANT: As the caller promises.
        //
        // SAFETY: The caller promises that the pointer is valid; both wrappers are transparent.
        unsafe { &*bio.cast() }
    }

    /// Returns a raw pointer to the bio.
    #[inline]
    pub fn as_raw(&self) -> *mut bindings::bio {
        self.0.get()
    }

    /// Returns how many bytes there are left to do (`bi_iter.bi_size`).
    #[inline]
    pub fn size(&self) -> usize {
        // SAFETY: The bio is alive by the type invariants. The iterator is packed, but the field is
        // read by value.
        unsafe { (*self.as_raw()).bi_iter.bi_size as usize }
    }

    /// Returns whether the iterator stands at the start of the table, as it does until the bio is
    /// submitted or advanced.
    #[inline]
    pub fn is_at_start(&self) -> bool {
        // SAFETY: The bio is alive by the type invariants.
        let iter = unsafe { &raw const (*self.as_raw()).bi_iter };

        // SAFETY: As above.
        unsafe { (*iter).bi_idx == 0 && (*iter).bi_bvec_done == 0 }
    }

    /// Returns whether data goes to the device.
    #[inline]
    pub fn is_write(&self) -> bool {
        // SAFETY: The bio is alive by the type invariants.
        unsafe { (*self.as_raw()).bi_opf & 1 != 0 }
    }

    /// Returns whether somebody waits for the I/O (`REQ_SYNC`).
    #[inline]
    pub fn is_sync(&self) -> bool {
        // SAFETY: The bio is alive by the type invariants.
        unsafe { (*self.as_raw()).bi_opf & (1 << bindings::req_flag_bits___REQ_SYNC) != 0 }
    }

    /// Returns whether `flag` is set.
    #[inline]
    pub fn is_flagged(&self, flag: Flag) -> bool {
        // SAFETY: The bio is alive by the type invariants.
        unsafe { (*self.as_raw()).bi_flags & (1 << flag.0) != 0 }
    }

    /// Sets `flag`.
    ///
    /// # Safety
    ///
    /// What the flag says must be true, and no other reference may be used at the same time.
    #[inline]
    pub unsafe fn set_flag(&self, flag: Flag) {
        // SAFETY: The bio is alive and ours by the type invariants.
        unsafe { (*self.as_raw()).bi_flags |= 1 << flag.0 };
    }

    /// Clears `flag`.
    ///
    /// # Safety
    ///
    /// What the flag said must no longer be true, and no other reference may be used at the same
    /// time.
    #[inline]
    pub unsafe fn clear_flag(&self, flag: Flag) {
        // SAFETY: The bio is alive and ours by the type invariants.
        unsafe { (*self.as_raw()).bi_flags &= !(1 << flag.0) };
    }

    /// Returns the bio's table.
    #[inline]
    pub fn table(&self) -> Table {
        let bio = self.as_raw();

        // SAFETY: The bio is alive and has a table by the type invariants; the layout of `BioVec`
        // is that of `struct bio_vec`.
        unsafe {
            Table {
                vecs: NonNull::new_unchecked((*bio).bi_io_vec.cast()),
                len: (*bio).bi_vcnt,
                capacity: (*bio).bi_max_vecs,
            }
        }
    }

    /// Returns the entries of the table that are in use.
    ///
    /// Of a clone these are none: it does not own its table, and does not know how long it is.
    #[inline]
    pub fn vecs(&self) -> &[BioVec] {
        let table = self.table();

        // SAFETY: By the type invariants there is a table, of whose entries `bi_vcnt` are in use;
        // `swap_table()` is not called while there are references to the old one.
        unsafe { core::slice::from_raw_parts(table.vecs.as_ptr(), table.len.into()) }
    }

    /// Gives the bio another table, and returns the one that it had. The iterator is left as it is.
    ///
    /// # Safety
    ///
    /// - `table` must be valid until it is swapped out again or the bio is gone; its entries must
    ///   have as many bytes in sum as those of the old one.
    /// - The old table must be swapped in again before the bio is freed or reset.
    /// - No reference to the old table may be alive.
    #[inline]
    pub unsafe fn swap_table(&self, table: Table) -> Table {
        let old = self.table();
        let bio = self.as_raw();

        // INVARIANT: The bio has a table again.
        //
        // SAFETY: The bio is alive and ours by the type invariants.
        unsafe {
            (*bio).bi_io_vec = table.vecs.as_ptr().cast();
            (*bio).bi_vcnt = table.len;
            (*bio).bi_max_vecs = table.capacity;
        }
        old
    }

    /// Iterates over what is left to do in pieces of at most a page, as drivers do
    /// (`bio_for_each_segment()`).
    #[inline]
    pub fn segments(&self) -> Segments<'_> {
        Segments {
            bio: self,
            // SAFETY: The bio is alive by the type invariants.
            iter: unsafe { (*self.as_raw()).bi_iter },
        }
    }
}

/// The iterator of [`Bio::segments`].
pub struct Segments<'a> {
    bio: &'a Bio,
    iter: bindings::bvec_iter,
}

impl Iterator for Segments<'_> {
    type Item = BioVec;

    fn next(&mut self) -> Option<BioVec> {
        if self.iter.bi_size == 0 {
            return None;
        }

        // SAFETY: The iterator came from the bio, and has bytes left.
        let segment = unsafe { bindings::bio_iter_iovec(self.bio.as_raw(), &self.iter) };

        // SAFETY: As above; the segment is within one entry of the table.
        unsafe {
            bindings::bio_advance_iter_single(self.bio.as_raw(), &mut self.iter, segment.bv_len)
        };
        Some(BioVec(segment))
    }
}
