// SPDX-License-Identifier: GPL-2.0

//! What periodic writeback need not write again.
//!
//! A pinned folio stays dirty whether or not the device writes to it: an idle registration would be
//! written in full in each interval, for as long as the pins last. So when a pass that nobody waits
//! for writes a copy, a hash of the copy is kept; the next periodic pass leaves a folio out whose
//! content has the same hash. Passes that somebody waits for (fsync, sync) always write: a hash is
//! no proof.
//!
//! # Which hash
//!
//! SipHash-2-4 with a key of the running system, 64 bits for each page. Whoever can write to the
//! memory, from another machine perhaps, can't look for contents that collide, and by chance two do
//! once in 2^64. What is missed then is not lost: the folio is dirty, and written by the next
//! fsync, unpin or unmount.
//!
//! It is computed from the copies that go to the disk, and from the folio later. The device may
//! write while the folio is read, so that what is hashed never was in memory at one time. But if it
//! is what is on the disk, then so was every byte of it at a time after the pass began; what is
//! written later is for the next pass.
//!
//! # When a hash is valid
//!
//! As long as the disk has what was hashed. The bit in the folio's ledger entry is cleared
//!
//! - by the last unpin: the page may become another file's;
//! - when a copy is written of which no hash is taken, for fsync;
//! - when a part of the folio is truncated or punched out: it stays, but its blocks don't.
//!
//! It is set for the folio, and the hashes are one for each of its pages: before it is set they are
//! all made 0, which is no hash. Only the writeback that the folio is under does that and stores
//! hashes, so that nobody else does at the same time.
//!
//! When a write fails, others are lost with it: those of the same I/O completion, and all whose
//! blocks were to be made valid together. So any error of a mapping with pins makes all hashes
//! invalid, by the epoch that they are stored with. Errors are rare.
//!
//! A page that reaches beyond the end of the file has no hash: zeroes that are appended change the
//! file and not the page, and the filesystem may wait for writeback to store the new size.
//!
//! A direct write to a pinned range, which the page cache does not see, is not overwritten by the
//! periodic pass then, but by the next fsync.
//!
//! # Memory
//!
//! 8 bytes for each page, like the ledger: in a tree of its own, since who only calls fsync needs
//! none of it. If there is no memory right now, there is no hash.

use crate::{
    debug,
    ledger::LEDGER,
    radix::{
        NowaitMemory,
        Radix, //
    },
    stats, //
};
use kernel::{
    alloc::flags::__GFP_NOWARN,
    bindings,
    block::bio::{
        Bio,
        BioVec, //
    },
    mm::folio::Folio,
    page::{
        Page,
        PAGE_SIZE, //
    },
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        barrier::smp_rmb, //
    }, //
};

/// The hashes by PFN, or 0.
static HASHES: Radix<NowaitMemory> = Radix::new(NowaitMemory);

/// Counts errors of writeback, see the top.
static EPOCH: Atomic<u64> = Atomic::new(0);

/// The hash of a page's content, as it is stored now; never 0.
///
/// # Safety
///
/// `data` must be valid for reading [`PAGE_SIZE`] bytes, and not poisoned. They may change meanwhile.
unsafe fn hash(data: *const u8) -> u64 {
    // SAFETY: By the caller's promise.
    let hash = unsafe { bindings::pinwb_hash_page(data.cast()) };

    (hash ^ EPOCH.load(Relaxed)).max(1)
}

/// Makes sure that the folio has a hash, or 0, for each of its pages.
fn begin(folio: &Folio) -> Result {
    let first = folio.pfn();

    if LEDGER.get(first).is_hashed() {
        return Ok(());
    }
    for pfn in first..first + folio.nr_pages() {
        // ORDERING: `set_hashed()` is a release.
        HASHES.word_or_alloc(pfn)?.store(0, Relaxed);
    }
    LEDGER.set_hashed(first);
    Ok(())
}

/// Are hashes to be taken of what a bio writes? If nobody waits for it.
pub(crate) fn are_taken_of(bio: &Bio) -> bool {
    !bio.is_sync() && !write_all()
}

/// A folio was copied and is about to be written, and no hash was taken.
///
/// Context: process context, folio under writeback.
pub(crate) fn written_unseen(folio: &Folio) {
    if !debug::keep_hashes() {
        forget(folio);
    }
}

/// Takes the hash of a piece of a folio, from byte `offset` on, that was copied and is about to be
/// written.
///
/// The piece is `inside` if it does not reach beyond the end of the file.
///
/// Context: process context, folio under writeback.
pub(crate) fn written(folio: &Folio, offset: usize, copy: &BioVec, inside: bool) {
    if begin(folio).is_err() {
        return;
    }

    let whole = inside && offset % PAGE_SIZE == 0 && copy.len() as usize == PAGE_SIZE;
    // SAFETY: The copy is a page of the pool's, which nobody else writes to.
    let hash = if whole {
        unsafe { hash(copy.virt()) }
    } else {
        0
    };

    if let Some(word) = HASHES.word(folio.pfn() + offset / PAGE_SIZE) {
        word.store(hash, Relaxed);
    }
}

/// Is everything to be written in each interval (sysctl)?
fn write_all() -> bool {
    // SAFETY: Plain memory, which may change any time.
    unsafe { (&raw const bindings::pinwb_write_unchanged).read_volatile() }
}

/// Writeback of some mapping with pins has failed.
///
/// Context: any.
pub(crate) fn forget_all() {
    if !debug::keep_hashes() {
        // ORDERING: The end of the failed writeback comes after this and is ordered; pairs with the
        // barrier in `is_unchanged()`.
        EPOCH.add(1u64, Relaxed);
    }
}

/// The disk may not have what was hashed.
///
/// Context: any.
pub(crate) fn forget(folio: &Folio) {
    let pfn = folio.pfn();

    if LEDGER.get(pfn).is_hashed() {
        LEDGER.clear_hashed(pfn);
    }
}

/// Is the content of a pinned folio what was written last?
///
/// Context: process context, with a reference to the folio. Reads all of the folio.
pub(crate) fn is_unchanged(folio: &Folio) -> bool {
    let first = folio.pfn();

    if write_all() || folio.is_writeback() {
        return false;
    }
    // ORDERING: Whether the last writeback failed was said before it ended.
    smp_rmb();
    if !LEDGER.get(first).is_hashed() {
        return false;
    }
    // Memory that is poisoned must not be read but by who survives that.
    let Ok(page) = Page::alloc_page(GFP_NOWAIT | __GFP_NOWARN) else {
        return false;
    };
    let virt = |page: *mut bindings::page| {
        // SAFETY: Neither page cache folios nor this page are in high memory (CONFIG_PINWB depends
        // on 64BIT).
        unsafe { BioVec::new(page, 0, PAGE_SIZE as u32).virt() }
    };
    let (from, scratch) = (virt(folio.as_raw().cast()), virt(page.as_ptr()));

    let unchanged = (0..folio.nr_pages()).all(|nr| {
        let stored = HASHES.word(first + nr).map_or(0, |word| word.load(Relaxed));

        if stored == 0 {
            return false;
        }
        // CAST: An `unsigned int` on some architectures, a `size_t` on others.
        let len = PAGE_SIZE as _;
        // SAFETY: The folio has that many pages, and the scratch page is ours. The source may be
        // written to meanwhile, by a device or through a page table; the copy is made by C (or
        // assembly) code that has no opinion on its content.
        let residue = unsafe {
            bindings::copy_mc_to_kernel(scratch.cast(), from.add(nr * PAGE_SIZE).cast(), len)
        };

        // SAFETY: The scratch page is ours.
        residue == 0 && unsafe { hash(scratch) } == stored
    });

    if unchanged {
        stats::unchanged(folio.size() as u64);
    }
    unchanged
}
