// SPDX-License-Identifier: GPL-2.0

//! The ledger: who is pinned, exactly.
//!
//! One 64-bit [`Entry`] for each folio that has, or ever had, a writable long-term pin, in a
//! [`Radix`] tree by the PFN of its head page. A machine on which nothing was pinned has spent one
//! pointer.
//!
//! # Concurrency
//!
//! There are no locks: an entry changes by compare-and-exchange, here and in the loops of `glue.c`.
//!
//! The reader that matters is writeback, which asks with the folio locked or under writeback.
//! It needs two orderings:
//!
//! - *A pin that the driver may use is seen.* Admission counts first and then takes the folio
//!   lock, or counts while it holds it; writeback holds that lock. Whichever comes second sees what
//!   the first did, by the lock. So adding needs no ordering of its own.
//! - *A pin that is not seen any more left its data behind.* The caller of [`Ledger::sub`] has
//!   finished DMA and made the folio dirty before; writeback that reads the smaller count must see
//!   that. So subtracting is a release, and reading an acquire.

use crate::{
    entry::Entry,
    radix::{
        KernelMemory,
        Radix,
        TableSource,
        FANOUT, //
    }, //
};
use kernel::{
    bindings,
    prelude::*,
    sync::atomic::{
        Acquire,
        Relaxed,
        Release, //
    }, //
};

// What the loops in `glue.c` know of leaves and entries.
const _: () = assert!(FANOUT == bindings::PINWB_LEAF_ENTRIES as usize);
const _: () = assert!(Entry::MAX_COUNT == bindings::PINWB_MAX_COUNT as u64);
const _: () = assert!(Entry::IN_NODE == bindings::PINWB_IN_NODE);
const _: () = assert!(Entry::IN_WB == bindings::PINWB_IN_WB);
const _: () = assert!(Entry::OWNER_SHIFT == bindings::PINWB_OWNER_SHIFT);

/// Counts of writable long-term pins, by PFN.
pub(crate) struct Ledger<S: TableSource> {
    entries: Radix<S>,
}

impl<S: TableSource> Ledger<S> {
    /// An empty ledger, which owns no memory yet.
    pub(crate) const fn new(source: S) -> Self {
        Self {
            entries: Radix::new(source),
        }
    }

    /// Counts `pins` more pins of the folio whose head page is `pfn`, taken by the process `owner`.
    ///
    /// Errors: `ENOMEM` if a table can't be allocated or the PFN is out of range, `EBUSY` if the
    /// count has no room. Nothing is counted then.
    ///
    /// Context: may sleep.
    pub(crate) fn add(&self, pfn: usize, pins: u64, owner: u32) -> Result {
        let entry = self.entries.word_or_alloc(pfn)?;
        let mut old = entry.load(Relaxed);

        loop {
            let new = Entry::from_word(old).add(pins, owner).ok_or(EBUSY)?;

            // ORDERING: The folio lock that admission takes next orders this before everything
            // that writeback reads, see the top of the file.
            match entry.cmpxchg(old, new.word(), Relaxed) {
                Ok(_) => return Ok(()),
                Err(current) => old = current,
            }
        }
    }

    /// Counts `pins` fewer pins of the folio whose head page is `pfn`.
    ///
    /// Context: any.
    pub(crate) fn sub(&self, pfn: usize, pins: u64) -> Subtracted {
        let Some(entry) = self.entries.word(pfn) else {
            return Subtracted {
                short: pins,
                last: false,
                left_node: false,
            };
        };
        let mut old = entry.load(Relaxed);

        loop {
            let (new, short) = Entry::from_word(old).sub(pins);

            // ORDERING: Release, so that whoever reads the smaller count sees the device's data
            // and the dirty bit. Pairs with the load in `get()`.
            match entry.cmpxchg(old, new.word(), Release) {
                Ok(_) => {
                    return Subtracted {
                        short,
                        last: short < pins && new.count() == 0,
                        left_node: (old & !new.word()) & Entry::IN_NODE != 0,
                    }
                }
                Err(current) => old = current,
            }
        }
    }

    /// Marks the folio whose head page is `pfn` as exempt from the dirty limits if it has pins.
    ///
    /// Returns the bits of [`Entry::exempt_bits`] that it did not have: the caller counts it there.
    ///
    /// Context: any.
    pub(crate) fn set_exempt(&self, pfn: usize) -> u64 {
        self.change(pfn, Entry::exempt)
    }

    /// Marks the folio whose head page is `pfn` as one like others.
    ///
    /// Returns the bits of [`Entry::exempt_bits`] that it had: the caller takes it off there.
    ///
    /// Context: any.
    pub(crate) fn clear_exempt(&self, pfn: usize) -> u64 {
        self.change(pfn, Entry::not_exempt)
    }

    /// Remembers that there is something to compare the content of the folio with whose head page is
    /// `pfn`, see `unchanged.rs`, if the folio has pins.
    ///
    /// Context: any.
    pub(crate) fn set_hashed(&self, pfn: usize) {
        self.change(pfn, Entry::hashed);
    }

    /// Forgets that.
    ///
    /// Context: any.
    pub(crate) fn clear_hashed(&self, pfn: usize) {
        self.change(pfn, Entry::not_hashed);
    }

    /// Changes flags of an entry, and returns which of them.
    fn change(&self, pfn: usize, change: fn(Entry) -> Entry) -> u64 {
        let Some(entry) = self.entries.word(pfn) else {
            return 0;
        };
        let mut old = entry.load(Relaxed);

        loop {
            let new = change(Entry::from_word(old)).word();

            // ORDERING: Whoever changes a bit of an exempt folio changes the counter that it stands
            // for, and nothing is decided by the two together. A folio that is hashed has no stale
            // hashes: the release makes that true for who finds it by the acquire in `get()`.
            match entry.cmpxchg(old, new, Release) {
                Ok(_) => return old ^ new,
                Err(current) => old = current,
            }
        }
    }

    /// What the ledger knows of the folio whose head page is `pfn`.
    ///
    /// Context: any.
    #[inline]
    pub(crate) fn get(&self, pfn: usize) -> Entry {
        // ORDERING: Acquire pairs with the release in `sub()`.
        Entry::from_word(
            self.entries
                .word(pfn)
                .map_or(0, |entry| entry.load(Acquire)),
        )
    }

    /// Number of leaves, 4 KiB each.
    pub(crate) fn leaves(&self) -> usize {
        self.entries.leaves()
    }

    /// Calls `f` with the PFN and the entry of every folio that has pins, in order of PFN.
    ///
    /// Pins that come and go meanwhile may be seen or not.
    pub(crate) fn for_each(&self, mut f: impl FnMut(usize, Entry) -> Result) -> Result {
        self.entries.for_each(|pfn, word| {
            let entry = Entry::from_word(word.load(Acquire));

            if entry.count() != 0 {
                f(pfn, entry)?;
            }
            Ok(())
        })
    }

    /// The leaf with the entry of `pfn`, if a folio near it was ever pinned: for C loops in `glue.c`,
    /// which change many entries in a row.
    ///
    /// Context: any.
    #[inline]
    pub(crate) fn leaf(&self, pfn: usize) -> Option<bindings::pinwb_leaf> {
        let leaf = self.entries.leaf(pfn)?;

        Some(bindings::pinwb_leaf {
            first_pfn: leaf.first_pfn,
            entries: core::ptr::from_ref(leaf.words).cast_mut().cast(),
        })
    }
}

/// What [`Ledger::sub`] did.
pub(crate) struct Subtracted {
    /// How many of the pins had not been counted at all: other than 0 is a bug of the caller's. The
    /// count stops at zero.
    pub(crate) short: u64,
    /// The last pin has gone.
    pub(crate) last: bool,
    /// And the caller takes the folio off `NR_FILE_PINNED`.
    pub(crate) left_node: bool,
}

/// The kernel's ledger.
pub(crate) static LEDGER: Ledger<KernelMemory> = Ledger::new(KernelMemory);
