// SPDX-License-Identifier: GPL-2.0

//! Admission: what a pin must wait for before the driver may start DMA.
//!
//! `get_user_pages()` has just taken references to the pages of a range, for write and for an
//! indefinite time. Between that and the first DMA three things can have gone wrong, none of which
//! the references prevent:
//!
//! 1. Writeback of a folio has begun before the pin. It has cleaned the folio and will not copy
//!    it: the device would tear that I/O, and what it wrote after would never be written.
//! 2. A direct write or a truncate has thrown the folio out of the page cache: the device would
//!    write for ever to a page that is not in the file any more.
//! 3. The folio is dirty because of one of its blocks; the device would write to the others, and
//!    nobody would know.
//!
//! The order of steps closes all three. The pin is counted *first*. Then the folio is locked.
//! Writeback holds the same lock from `folio_clear_dirty_for_io()` until it has set the writeback
//! flag, and asks the ledger inside. So writeback that takes the lock after us sees the count and
//! keeps the folio dirty, and writeback that took it before us is visible as the writeback flag,
//! for which we wait. Under the lock the folio is either in its mapping, and stays there, or is
//! gone, and `get_user_pages()` starts again. Once dirty in full, a counted folio stays dirty.
//!
//! Most folios need none of this: they are dirty already, in the mapping and the leaf of the ledger
//! that the folio before them was in, and nobody has them locked. `pinwb_admit_ready()` counts these
//! in one go, each under its folio lock, which is the same to whoever takes the lock later.
//!
//! Lock order: `mmap_lock` (held or not), then the folio lock, one at a time.

use crate::{
    bounce,
    debug,
    ledger::{
        Subtracted,
        LEDGER, //
    },
    mapping::Mapping,
    stats,
    trace, //
};
use core::ptr::NonNull;
use kernel::{
    bindings,
    error::to_result,
    mm::folio::{
        Folio,
        FolioGuard, //
    },
    page::{
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    prelude::*, //
};

/// A user range whose pages `get_user_pages()` has just pinned for write.
///
/// # Invariants
///
/// `mm` is valid and its `mmap_lock` is held for read if `mmap_locked` says so. The caller holds a
/// `FOLL_PIN` reference to each page of `pages`, which starts at the address `start`.
pub(crate) struct PinnedRange<'a> {
    mm: NonNull<bindings::mm_struct>,
    start: usize,
    pages: &'a [*mut bindings::page],
    mmap_locked: bool,
}

/// Pages of one folio that follow each other in the array.
struct Run<'a> {
    folio: &'a Folio,
    /// User address of the first page.
    address: usize,
    pages: usize,
}

/// Pins that are in the ledger but not yet for good: forgotten again when this is dropped.
struct Counted<'a> {
    range: &'a PinnedRange<'a>,
    /// So many pages from the beginning on were counted, those that the ledger counts.
    pages: usize,
    pins: usize,
}

/// Where a folio was found. Most of those that follow it are there as well.
struct Place {
    mapping: *mut bindings::address_space,
    leaf: bindings::pinwb_leaf,
}

impl<'a> PinnedRange<'a> {
    /// # Safety
    ///
    /// The type invariants must hold for `'a`.
    pub(crate) unsafe fn new(
        mm: NonNull<bindings::mm_struct>,
        start: usize,
        pages: &'a [*mut bindings::page],
        mmap_locked: bool,
    ) -> Self {
        // INVARIANT: By the caller's promise.
        Self {
            mm,
            start,
            pages,
            mmap_locked,
        }
    }

    /// Counts the pins and makes every folio safe for a device to write to.
    ///
    /// Errors: `EAGAIN` if a page is not what is in the file any more and the range must be pinned
    /// again, `EINTR` on a fatal signal, `ENOMEM` and `EBUSY` as [`crate::ledger::Ledger::add`],
    /// `EFAULT` if a page can't be made dirty or its file no longer takes pins. On error nothing
    /// stays counted.
    ///
    /// Context: process context, no locks but `mmap_lock`. Sleeps, but never for a pin.
    pub(crate) fn admit(&self) -> Result {
        debug::delay_admission();
        bounce::prepare()?;

        // SAFETY: It has no requirements.
        let owner = unsafe { bindings::pinwb_owner() };
        let mut counted = Counted {
            range: self,
            pages: 0,
            pins: 0,
        };

        while let Some(run) = self.run(counted.pages) {
            if !is_counted(run.folio) {
                counted.pages += run.pages;
                continue;
            }
            LEDGER.add(run.folio.pfn(), run.pages as u64, owner)?;
            trace::pin(run.folio, run.pages);
            counted.pages += run.pages;
            counted.pins += run.pages;

            if let Some(place) = self.admit_folio(&run)? {
                let ready = self.admit_ready(counted.pages, &place);

                counted.pages += ready;
                counted.pins += ready;
            }
        }
        counted.keep();
        Ok(())
    }

    /// The run that begins with the page `first`, if there is one.
    fn run(&self, first: usize) -> Option<Run<'_>> {
        // SAFETY: By the type invariants the page is pinned for as long as `self` lives.
        let (folio, pages) = unsafe { run(self.pages.get(first..)?) }?;

        Some(Run {
            folio,
            address: self.start + (first << PAGE_SHIFT),
            pages,
        })
    }

    /// Admits the pages from `first` on while they are at `place` and need nothing but to be
    /// counted. Returns how many.
    fn admit_ready(&self, first: usize, place: &Place) -> usize {
        let pages = &self.pages[first..];

        // SAFETY: By the type invariants the pages are pinned. The mapping is only looked into while
        // a folio that is in it is locked. Leaves live for ever.
        unsafe {
            bindings::pinwb_admit_ready(
                pages.as_ptr().cast_mut(),
                pages.len(),
                place.mapping,
                &place.leaf,
            )
        }
    }

    /// Makes one folio, which is counted, safe for a device to write to. Returns where it is, if
    /// others may be admitted there without another look.
    fn admit_folio(&self, run: &Run<'_>) -> Result<Option<Place>> {
        let mut locked = run.folio.lock_killable()?;
        let Some(mapping) = Mapping::of(&locked) else {
            drop(locked);
            self.not_in_a_mapping(run.address)?;
            return Ok(None);
        };

        // Memory filesystems have no writeback that could lose anything.
        if !mapping.can_writeback() {
            return Ok(None);
        }
        // The file may have been opted out since get_user_pages() looked. We set one flag and look
        // at the other; who opts a file out clears the other and then looks at the first. Both are
        // bits of one word, so one of us sees what the other did: either we give up, or the walk
        // for pins is made, and finds ours under the folio lock.
        mapping.set_was_pinned();
        if !mapping.is_opted_in() {
            return Err(EFAULT);
        }

        if debug::no_admission() {
            return Ok(None);
        }
        if locked.is_writeback() {
            trace::admit_wait(run.folio, run.pages);
            locked.wait_writeback_killable()?;
        }
        if !locked.is_dirty() {
            drop(locked);
            self.fault_for_write(run.address)?;
            locked = run.folio.lock_killable()?;
            if Mapping::of(&locked).is_none() {
                return Err(self.restart());
            }
        }
        dirty_in_full(&locked, run.folio);
        // SAFETY: The folio is locked, in its mapping, and dirty.
        unsafe { bindings::pinwb_account_exempt(run.folio.as_raw()) };
        Ok(place(&locked))
    }

    /// A folio without a mapping: thrown out of the page cache, or never in one (drivers map pages
    /// of their own into user space, and these may be pinned as ever).
    #[cold]
    fn not_in_a_mapping(&self, address: usize) -> Result {
        if debug::no_admission() {
            return Ok(());
        }
        // SAFETY: By the type invariants `mm` is valid, and locked as we say.
        if unsafe { bindings::pinwb_vma_is_opted_in(self.mm.as_ptr(), address, self.mmap_locked) } {
            return Err(self.restart());
        }
        Ok(())
    }

    fn restart(&self) -> Error {
        stats::restarted();
        EAGAIN
    }

    /// Has the filesystem told of a write, as a store by the CPU would: `->page_mkwrite()` finds
    /// space, and dirties what it covers.
    fn fault_for_write(&self, address: usize) -> Result {
        // SAFETY: By the type invariants `mm` is valid, and locked as we say.
        to_result(unsafe {
            bindings::pinwb_fault_for_write(self.mm.as_ptr(), address, self.mmap_locked)
        })
    }
}

/// Where small folios are found that need nothing but to be counted; large ones are few.
fn place(locked: &FolioGuard<'_>) -> Option<Place> {
    if locked.is_large() {
        return None;
    }
    Some(Place {
        mapping: Mapping::of(locked)?.as_raw(),
        leaf: LEDGER.leaf(locked.pfn())?,
    })
}

/// Makes a folio dirty to its last block.
fn dirty_in_full(locked: &FolioGuard<'_>, folio: &Folio) {
    // One page that is one block is dirty or not. Everything else may be dirty in part, and so the
    // filesystem is told that all of it is, as set_page_dirty() of an old-style driver would.
    //
    // The fault may have found the page table entry writable while the folio was cleaned behind
    // its back: then, too, the filesystem takes this dirt, because the mapping was pinned.
    let one_block = !folio.is_large()
        && Mapping::of(locked).is_some_and(|mapping| mapping.block_size() >= PAGE_SIZE);

    if !(one_block && locked.is_dirty()) {
        locked.mark_dirty();
    }
}

impl Counted<'_> {
    /// The pins are admitted and stay until `unpin_longterm_*()`.
    fn keep(self) {
        stats::pinned(self.pins as u64);
        core::mem::forget(self);
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        // SAFETY: By the invariants of the range its pages are pinned.
        unsafe { forget_pages(&self.range.pages[..self.pages]) };
    }
}

/// The folio that the first page is in, and how many pages from there on are, at least: where the
/// memory map has a gap inside a folio, it makes two runs.
///
/// # Safety
///
/// The first page is pinned for `'a`; a pinned folio is not split.
unsafe fn run<'a>(pages: &[*mut bindings::page]) -> Option<(&'a Folio, usize)> {
    let &first = pages.first()?;
    // SAFETY: By the caller's promise.
    let folio = unsafe { Folio::of_page(first) };

    if !folio.is_large() {
        return Some((folio, 1));
    }
    // Pages of one folio follow each other: no need to ask each for its folio.
    let bytes_before = first.addr().wrapping_sub(folio.as_raw().addr());
    let before = bytes_before / size_of::<bindings::page>();
    let left = folio.nr_pages().saturating_sub(before);
    let expected = (0..left).map(|i| first.wrapping_add(i));
    let same = pages
        .iter()
        .zip(expected)
        .take_while(|&(&page, expected)| page == expected);

    Some((folio, same.count().max(1)))
}

/// Does the ledger count writable long-term pins of this folio?
///
/// Page cache folios of files. The answer must be the same at pin and at unpin, so it may not
/// depend on the mapping, which truncation takes away; see `pinwb_folio_is_counted()`.
fn is_counted(folio: &Folio) -> bool {
    // SAFETY: The folio is valid for as long as the reference.
    unsafe { bindings::pinwb_folio_is_counted(folio.as_raw()) }
}

/// Takes pins off the ledger.
///
/// The caller has dirtied the folio if it wanted to, and still holds the references. Any context.
pub(crate) fn forget(folio: &Folio, pins: u64) {
    let Subtracted {
        short,
        last,
        left_node,
    } = LEDGER.sub(folio.pfn(), pins);

    // CAST: As many as there are pages in an array.
    trace::unpin(folio, (pins - short) as usize);
    if last {
        // SAFETY: The folio is valid, by the caller's references.
        unsafe { bindings::pinwb_unpinned(folio.as_raw(), left_node) };
    }
    if kernel::warn_on!(short != 0) {
        pr_err!(
            "pfn {:#x}: {} pages unpinned that pin_longterm_pages() never pinned\n",
            folio.pfn(),
            short
        );
    }
}

/// Takes a pin of each page off the ledger, if it counts them. As [`forget`].
///
/// # Safety
///
/// The caller holds a `FOLL_PIN` reference to each of the pages that is not null.
pub(crate) unsafe fn forget_pages(pages: &[*mut bindings::page]) {
    let mut rest = pages;

    while let Some(page) = rest.first() {
        if page.is_null() {
            rest = &rest[1..];
            continue;
        }
        // SAFETY: By the caller's promise, and the first page is not null.
        let Some((folio, pages)) = (unsafe { run(rest) }) else {
            return;
        };

        if is_counted(folio) {
            forget(folio, pages as u64);
        }
        rest = &rest[pages..];

        if let Some(leaf) = LEDGER.leaf(folio.pfn()) {
            // SAFETY: By the caller's promise; leaves live for ever.
            let ready = unsafe {
                bindings::pinwb_forget_ready(rest.as_ptr().cast_mut(), rest.len(), &leaf)
            };
            rest = &rest[ready..];
        }
    }
}
