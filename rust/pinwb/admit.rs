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
//! Lock order: `mmap_lock` (held or not), then the folio lock, one at a time.

use crate::{
    bounce,
    debug,
    ledger::LEDGER,
    mapping::Mapping,
    stats, //
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
    pages: u64,
}

/// Pins that are in the ledger but not yet for good: forgotten again when this is dropped.
struct Counted<'a> {
    range: &'a PinnedRange<'a>,
    runs: usize,
    pins: u64,
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

        let counted = self.count()?;

        for run in self.runs() {
            self.admit_folio(&run)?;
        }
        counted.keep();
        Ok(())
    }

    /// The runs of pages whose pins the ledger counts.
    fn runs(&self) -> impl Iterator<Item = Run<'_>> {
        let mut next = 0;

        core::iter::from_fn(move || {
            while let Some(&page) = self.pages.get(next) {
                let first = next;
                // SAFETY: By the type invariants the page is pinned for as long as `self` lives,
                // and a pinned folio is not split.
                let folio = unsafe { Folio::of_page(page) };

                next += 1;
                while folio.is_large()
                    && self.pages.get(next).is_some_and(|&page| {
                        // SAFETY: As above.
                        core::ptr::eq(folio, unsafe { Folio::of_page(page) })
                    })
                {
                    next += 1;
                }
                if is_counted(folio) {
                    return Some(Run {
                        folio,
                        address: self.start + (first << PAGE_SHIFT),
                        pages: (next - first) as u64,
                    });
                }
            }
            None
        })
    }

    fn count(&self) -> Result<Counted<'_>> {
        let mut counted = Counted {
            range: self,
            runs: 0,
            pins: 0,
        };

        for run in self.runs() {
            LEDGER.add(run.folio.pfn(), run.pages)?;
            counted.runs += 1;
            counted.pins += run.pages;
        }
        Ok(counted)
    }

    fn admit_folio(&self, run: &Run<'_>) -> Result {
        let mut locked = run.folio.lock_killable()?;
        let Some(mapping) = Mapping::of(&locked) else {
            drop(locked);
            return self.not_in_a_mapping(run.address);
        };

        // Memory filesystems have no writeback that could lose anything.
        if !mapping.can_writeback() {
            return Ok(());
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
            return Ok(());
        }
        if locked.is_writeback() {
            locked.wait_writeback_killable()?;
        }
        if !locked.is_dirty() {
            drop(locked);
            self.fault_for_write(run.address)?;
            locked = run.folio.lock_killable()?;
            if Mapping::of(&locked).is_none() {
                return self.restart();
            }
        }
        dirty_in_full(&locked, run.folio);
        Ok(())
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
            return self.restart();
        }
        Ok(())
    }

    fn restart(&self) -> Result {
        stats::restarted();
        Err(EAGAIN)
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
        stats::pinned(self.pins);
        core::mem::forget(self);
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        for run in self.range.runs().take(self.runs) {
            forget(run.folio, run.pages);
        }
    }
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
    let short = LEDGER.sub(folio.pfn(), pins);

    if kernel::warn_on!(short != 0) {
        pr_err!(
            "pfn {:#x}: {} pages unpinned that pin_longterm_pages() never pinned\n",
            folio.pfn(),
            short
        );
    }
}
