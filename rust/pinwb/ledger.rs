// SPDX-License-Identifier: GPL-2.0

//! The ledger: who is pinned, exactly.
//!
//! One 64-bit [`Entry`] for each folio that has, or ever had, a writable long-term pin, keyed by
//! the PFN of its head page. The entries live in leaves of 4 KiB, 512 entries each, so that one
//! leaf covers 2 MiB of memory; the leaves hang in a radix tree of three more levels, allocated when
//! the first pin in their range is taken and never freed. A machine on which nothing was pinned
//! has spent one pointer.
//!
//! # Concurrency
//!
//! There are no locks. A table is published with one compare-and-exchange of the slot that points
//! to it, and lives for ever after, so that a reader needs no protection. A count changes by
//! compare-and-exchange of its entry, or, in the loops of `glue.c`, by an addition that is taken
//! back if it should not have been.
//!
//! The reader that matters is writeback, which asks with the folio locked or under writeback.
//! It needs two orderings:
//!
//! - *A pin that the driver may use is seen.* Admission counts first and then takes the folio
//!   lock, or counts while it holds it; writeback holds that lock. Whichever comes second sees what the first did, by the lock.
//!   So adding needs no ordering of its own.
//! - *A pin that is not seen any more left its data behind.* The caller of [`Ledger::sub`] has
//!   finished DMA and made the folio dirty before; writeback that reads the smaller count must see
//!   that. So subtracting is a release, and reading an acquire.

use crate::entry::Entry;
use kernel::{
    alloc::{
        flags::{
            __GFP_NOWARN,
            __GFP_ZERO, //
        },
        AllocError, //
    },
    bindings,
    prelude::*,
    sync::atomic::{
        Acquire,
        Atomic,
        Full,
        Relaxed,
        Release, //
    }, //
};

/// Entries in a leaf, and slots in an inner table: both are 4 KiB.
const FANOUT_BITS: usize = 9;
const FANOUT: usize = 1 << FANOUT_BITS;

/// With three levels of 9 bits below it the root covers 40 bits of PFN: 52 bits of physical address
/// with 4 KiB pages, which is the most that a 64-bit machine of today has.
const ROOT_BITS: usize = 13;

// What the loops in `glue.c` know of leaves and entries.
const _: () = assert!(FANOUT == bindings::PINWB_LEAF_ENTRIES as usize);
const _: () = assert!(Entry::MAX_COUNT == bindings::PINWB_MAX_COUNT as u64);
const _: () = assert!(Entry::IN_NODE == bindings::PINWB_IN_NODE);
const _: () = assert!(Entry::IN_WB == bindings::PINWB_IN_WB);
const _: () = assert!(Entry::OWNER_SHIFT == bindings::PINWB_OWNER_SHIFT);

type Leaf = [Atomic<u64>; FANOUT];
type Inner = [Atomic<*mut Leaf>; FANOUT];
type Upper = [Atomic<*mut Inner>; FANOUT];
type Root = [Atomic<*mut Upper>; 1 << ROOT_BITS];

/// Where the tables of a ledger come from.
///
/// The kernel's ledger allocates with kmalloc; tests put in their own to make it fail.
pub(crate) trait TableSource {
    /// Allocates a zeroed table.
    ///
    /// The implementation must return memory that is valid for the whole life of the ledger.
    fn zeroed<T>(&self) -> Result<*mut T, AllocError>;

    /// Gives back a table that [`Self::zeroed`] returned and that was never published.
    ///
    /// # Safety
    ///
    /// `table` must come from [`Self::zeroed`] of the same source, and nobody else may know it.
    unsafe fn discard<T>(&self, table: *mut T);
}

/// Tables from the kernel's allocator.
pub(crate) struct KernelMemory;

impl TableSource for KernelMemory {
    fn zeroed<T>(&self) -> Result<*mut T, AllocError> {
        // The pin fails with ENOMEM, and whoever asked for it is told.
        let flags = GFP_KERNEL | __GFP_ZERO | __GFP_NOWARN;

        Ok(KVBox::into_raw(KVBox::<T>::new_uninit(flags)?).cast())
    }

    unsafe fn discard<T>(&self, table: *mut T) {
        // SAFETY: By the caller's promise `table` came from `zeroed()` above, which leaked a
        // `KVBox<MaybeUninit<T>>`, and nobody else uses it.
        drop(unsafe { KVBox::<core::mem::MaybeUninit<T>>::from_raw(table.cast()) });
    }
}

/// Counts of writable long-term pins, by PFN.
///
/// # Invariants
///
/// Every non-null pointer in `root` and in the tables below it came from `source` and points to a
/// table of the slot's type that stays valid for as long as the ledger does.
pub(crate) struct Ledger<S: TableSource> {
    root: Atomic<*mut Root>,
    source: S,
    leaves: Atomic<usize>,
}

impl<S: TableSource> Ledger<S> {
    /// An empty ledger, which owns no memory yet.
    pub(crate) const fn new(source: S) -> Self {
        // INVARIANT: There is no pointer but the null one.
        Self {
            root: Atomic::new(core::ptr::null_mut()),
            source,
            leaves: Atomic::new(0),
        }
    }

    /// Counts `pins` more pins of the folio whose head page is `pfn`, taken by the process `owner`.
    ///
    /// Errors: `ENOMEM` if a table can't be allocated or the PFN is out of range, `EBUSY` if the
    /// count has no room. Nothing is counted then.
    ///
    /// Context: may sleep.
    pub(crate) fn add(&self, pfn: usize, pins: u64, owner: u32) -> Result {
        let entry = self.entry_or_alloc(pfn)?;
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
        let Some(entry) = self.entry(pfn) else {
            return Subtracted {
                short: pins,
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
        self.change_exempt(pfn, Entry::exempt)
    }

    /// Marks the folio whose head page is `pfn` as one like others.
    ///
    /// Returns the bits of [`Entry::exempt_bits`] that it had: the caller takes it off there.
    ///
    /// Context: any.
    pub(crate) fn clear_exempt(&self, pfn: usize) -> u64 {
        self.change_exempt(pfn, Entry::not_exempt)
    }

    fn change_exempt(&self, pfn: usize, change: fn(Entry) -> Entry) -> u64 {
        let Some(entry) = self.entry(pfn) else {
            return 0;
        };
        let mut old = entry.load(Relaxed);

        loop {
            let new = change(Entry::from_word(old)).word();

            // ORDERING: None: whoever changes a bit changes the counter that it stands for, and
            // nothing is decided by the two together.
            match entry.cmpxchg(old, new, Relaxed) {
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
        Entry::from_word(self.entry(pfn).map_or(0, |entry| entry.load(Acquire)))
    }

    /// Number of leaves, 4 KiB each.
    pub(crate) fn leaves(&self) -> usize {
        self.leaves.load(Relaxed)
    }

    /// Calls `f` with the PFN and the entry of every folio that has pins, in order of PFN.
    ///
    /// Pins that come and go meanwhile may be seen or not.
    pub(crate) fn for_each(&self, mut f: impl FnMut(usize, Entry) -> Result) -> Result {
        let Some(root) = table(&self.root) else {
            return Ok(());
        };

        let uppers = (0..)
            .zip(root)
            .filter_map(|(i, slot)| Some((i, table(slot)?)));
        let inners = uppers.flat_map(tables_below);
        let leaves = inners.flat_map(tables_below);

        for (prefix, leaf) in leaves {
            for (k, word) in leaf.iter().enumerate() {
                let entry = Entry::from_word(word.load(Acquire));

                if entry.count() != 0 {
                    f((prefix << FANOUT_BITS) | k, entry)?;
                }
            }
        }
        Ok(())
    }

    /// The leaf with the entry of `pfn`, if a folio near it was ever pinned.
    ///
    /// Context: any.
    #[inline]
    pub(crate) fn leaf(&self, pfn: usize) -> Option<LeafRef<'_>> {
        let [i, j, k, l] = split(pfn)?;
        let upper = table(&table(&self.root)?[i])?;

        Some(LeafRef {
            first_pfn: pfn - l,
            entries: table(&table(&upper[j])?[k])?,
        })
    }

    #[inline]
    fn entry(&self, pfn: usize) -> Option<&Atomic<u64>> {
        let leaf = self.leaf(pfn)?;

        Some(&leaf.entries[pfn - leaf.first_pfn])
    }

    fn entry_or_alloc(&self, pfn: usize) -> Result<&Atomic<u64>> {
        let [i, j, k, l] = split(pfn).ok_or(ENOMEM)?;
        let root = self.table_or_alloc(&self.root)?.0;
        let upper = self.table_or_alloc(&root[i])?.0;
        let inner = self.table_or_alloc(&upper[j])?.0;
        let (leaf, new) = self.table_or_alloc(&inner[k])?;

        if new {
            self.leaves.add(1, Relaxed);
        }
        Ok(&leaf[l])
    }

    /// The table that `slot` points to, allocated if there is none, and whether it is new.
    fn table_or_alloc<'a, T>(&'a self, slot: &'a Atomic<*mut T>) -> Result<(&'a T, bool)> {
        if let Some(table) = table(slot) {
            return Ok((table, false));
        }

        let new = self.source.zeroed::<T>()?;

        // ORDERING: Full publishes the zeroes with the pointer if we win the race. If we lose it,
        // the exchange orders nothing, but what we read of the winner's table depends on the
        // pointer, as in `table()`.
        match slot.cmpxchg(core::ptr::null_mut(), new, Full) {
            // SAFETY: `new` is valid for the life of the ledger by the contract of `zeroed()`, and
            // all zeroes are a valid table: atomics of 0 or null.
            Ok(_) => Ok((unsafe { &*new }, true)),
            Err(winner) => {
                // SAFETY: `new` was not published, so that nobody else knows it.
                unsafe { self.source.discard(new) };
                // SAFETY: By the type invariants a non-null slot points to a valid table.
                Ok((unsafe { &*winner }, false))
            }
        }
    }
}

impl<S: TableSource> Drop for Ledger<S> {
    fn drop(&mut self) {
        let Some(root) = table(&self.root) else {
            return;
        };

        for upper in root.iter().filter_map(table) {
            for inner in upper.iter().filter_map(table) {
                for leaf in inner.iter() {
                    self.discard(leaf);
                }
            }
            for inner in upper.iter() {
                self.discard(inner);
            }
        }
        for upper in root.iter() {
            self.discard(upper);
        }
        self.discard(&self.root);
    }
}

impl<S: TableSource> Ledger<S> {
    /// Gives back the table that a slot points to, on drop, from the bottom up.
    fn discard<T>(&self, slot: &Atomic<*mut T>) {
        let table = slot.load(Relaxed);

        if !table.is_null() {
            // SAFETY: By the type invariants the table came from the source. The ledger is being
            // dropped and nobody looks into the slot again.
            unsafe { self.source.discard(table) };
        }
    }
}

/// What [`Ledger::sub`] did.
pub(crate) struct Subtracted {
    /// How many of the pins had not been counted at all: other than 0 is a bug of the caller's. The
    /// count stops at zero.
    pub(crate) short: u64,
    /// The last pin has gone, and the caller takes the folio off `NR_FILE_PINNED`.
    pub(crate) left_node: bool,
}

/// A leaf, for those who change many entries in a row: C loops in `glue.c`.
pub(crate) struct LeafRef<'a> {
    /// Whose entry is the first.
    first_pfn: usize,
    entries: &'a Leaf,
}

impl LeafRef<'_> {
    /// The same for C.
    pub(crate) fn as_raw(&self) -> bindings::pinwb_leaf {
        bindings::pinwb_leaf {
            first_pfn: self.first_pfn,
            entries: core::ptr::from_ref(self.entries).cast_mut().cast(),
        }
    }
}

/// The table that a slot points to, if any.
#[inline]
fn table<T>(slot: &Atomic<*mut T>) -> Option<&T> {
    // ORDERING: What is read of the table depends on the pointer, as with rcu_dereference(); pairs
    // with the publication in `table_or_alloc()`. Volatile like READ_ONCE(), because
    // `Atomic::load()` is a call, and there are four of these on the way to an entry.
    //
    // SAFETY: `as_ptr()` is valid and aligned. By the invariants of `Ledger` what it points to is
    // null or points to a table that lives as long as the slot does.
    unsafe { slot.as_ptr().read_volatile().as_ref() }
}

/// The tables that the slots of `table` point to, each with the bits of the PFN that led to it.
fn tables_below<'a, T>(
    (prefix, table_above): (usize, &'a [Atomic<*mut T>; FANOUT]),
) -> impl Iterator<Item = (usize, &'a T)> + 'a {
    table_above
        .iter()
        .enumerate()
        .filter_map(move |(i, slot)| Some(((prefix << FANOUT_BITS) | i, table(slot)?)))
}

/// The indices of a PFN in the four levels, or [`None`] if it is beyond the root.
#[inline]
fn split(pfn: usize) -> Option<[usize; 4]> {
    let root = pfn >> (3 * FANOUT_BITS);

    (root < 1 << ROOT_BITS).then_some([
        root,
        (pfn >> (2 * FANOUT_BITS)) & (FANOUT - 1),
        (pfn >> FANOUT_BITS) & (FANOUT - 1),
        pfn & (FANOUT - 1),
    ])
}

/// The kernel's ledger.
pub(crate) static LEDGER: Ledger<KernelMemory> = Ledger::new(KernelMemory);
