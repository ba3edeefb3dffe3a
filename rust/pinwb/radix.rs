// SPDX-License-Identifier: GPL-2.0

//! 64-bit words by PFN, without locks: how the ledger, and what is kept beside it, is stored.
//!
//! The words live in leaves of 4 KiB, 512 words each, so that one leaf covers 2 MiB of memory; the
//! leaves hang in a radix tree of three more levels, allocated when the first word in their range is
//! needed and never freed. A tree without words has spent one pointer.
//!
//! There are no locks. A table is published with one compare-and-exchange of the slot that points
//! to it, and lives for ever after, so that a reader needs no protection.

use kernel::{
    alloc::{
        flags::{
            __GFP_NOWARN,
            __GFP_ZERO, //
        },
        AllocError,
        Flags, //
    },
    prelude::*,
    sync::atomic::{
        Atomic,
        Full,
        Relaxed, //
    }, //
};

/// Words in a leaf, and slots in an inner table: both are 4 KiB.
const FANOUT_BITS: usize = 9;
pub(crate) const FANOUT: usize = 1 << FANOUT_BITS;

/// With three levels of 9 bits below it the root covers 40 bits of PFN: 52 bits of physical address
/// with 4 KiB pages, which is the most that a 64-bit machine of today has.
const ROOT_BITS: usize = 13;

pub(crate) type Leaf = [Atomic<u64>; FANOUT];
type Inner = [Atomic<*mut Leaf>; FANOUT];
type Upper = [Atomic<*mut Inner>; FANOUT];
type Root = [Atomic<*mut Upper>; 1 << ROOT_BITS];

/// Where the tables of a tree come from.
///
/// The ledger's tables are allocated with kmalloc; tests put in their own to make it fail.
pub(crate) trait TableSource {
    /// Allocates a zeroed table.
    ///
    /// The implementation must return memory that is valid for the whole life of the tree.
    fn zeroed<T>(&self) -> Result<*mut T, AllocError>;

    /// Gives back a table that [`Self::zeroed`] returned and that was never published.
    ///
    /// # Safety
    ///
    /// `table` must come from [`Self::zeroed`] of the same source, and nobody else may know it.
    unsafe fn discard<T>(&self, table: *mut T);
}

fn zeroed_table<T>(flags: Flags) -> Result<*mut T, AllocError> {
    let table = KVBox::<T>::new_uninit(flags | __GFP_ZERO | __GFP_NOWARN)?;

    Ok(KVBox::into_raw(table).cast())
}

/// Tables from the kernel's allocator.
pub(crate) struct KernelMemory;

impl TableSource for KernelMemory {
    fn zeroed<T>(&self) -> Result<*mut T, AllocError> {
        // The pin fails with ENOMEM, and whoever asked for it is told.
        zeroed_table(GFP_KERNEL)
    }

    unsafe fn discard<T>(&self, table: *mut T) {
        // SAFETY: By the caller's promise `table` came from `zeroed_table()` above, which
        // leaked a `KVBox<MaybeUninit<T>>`, and nobody else uses it.
        drop(unsafe { KVBox::<core::mem::MaybeUninit<T>>::from_raw(table.cast()) });
    }
}

/// The same for who can do without, and must not wait: in writeback.
pub(crate) struct NowaitMemory;

impl TableSource for NowaitMemory {
    fn zeroed<T>(&self) -> Result<*mut T, AllocError> {
        zeroed_table(GFP_NOWAIT)
    }

    unsafe fn discard<T>(&self, table: *mut T) {
        // SAFETY: By the caller's promise; `zeroed()` above allocates as that of `KernelMemory`.
        unsafe { KernelMemory.discard(table) };
    }
}

/// A 64-bit word for each PFN, 0 to begin with.
///
/// # Invariants
///
/// Every non-null pointer in `root` and in the tables below it came from `source` and points to a
/// table of the slot's type that stays valid for as long as the tree does.
pub(crate) struct Radix<S: TableSource> {
    root: Atomic<*mut Root>,
    source: S,
    leaves: Atomic<usize>,
}

impl<S: TableSource> Radix<S> {
    /// A tree without words, which owns no memory yet.
    pub(crate) const fn new(source: S) -> Self {
        // INVARIANT: There is no pointer but the null one.
        Self {
            root: Atomic::new(core::ptr::null_mut()),
            source,
            leaves: Atomic::new(0),
        }
    }

    /// Number of leaves, 4 KiB each.
    pub(crate) fn leaves(&self) -> usize {
        self.leaves.load(Relaxed)
    }

    /// Calls `f` with the PFN and the word of every page whose leaf exists, in order of PFN.
    pub(crate) fn for_each(&self, mut f: impl FnMut(usize, &Atomic<u64>) -> Result) -> Result {
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
                f((prefix << FANOUT_BITS) | k, word)?;
            }
        }
        Ok(())
    }

    /// The leaf with the word of `pfn`, if any word near it was ever needed.
    ///
    /// Context: any.
    #[inline]
    pub(crate) fn leaf(&self, pfn: usize) -> Option<LeafRef<'_>> {
        let [i, j, k, l] = split(pfn)?;
        let upper = table(&table(&self.root)?[i])?;

        Some(LeafRef {
            first_pfn: pfn - l,
            words: table(&table(&upper[j])?[k])?,
        })
    }

    /// The word of `pfn`, if any word near it was ever needed.
    ///
    /// Context: any.
    #[inline]
    pub(crate) fn word(&self, pfn: usize) -> Option<&Atomic<u64>> {
        let leaf = self.leaf(pfn)?;

        Some(&leaf.words[pfn - leaf.first_pfn])
    }

    /// The word of `pfn`.
    ///
    /// Errors: `ENOMEM` if a table can't be allocated or the PFN is out of range.
    ///
    /// Context: that of [`TableSource::zeroed`].
    pub(crate) fn word_or_alloc(&self, pfn: usize) -> Result<&Atomic<u64>> {
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
            // SAFETY: `new` is valid for the life of the tree by the contract of `zeroed()`, and
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

impl<S: TableSource> Drop for Radix<S> {
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

impl<S: TableSource> Radix<S> {
    /// Gives back the table that a slot points to, on drop, from the bottom up.
    fn discard<T>(&self, slot: &Atomic<*mut T>) {
        let table = slot.load(Relaxed);

        if !table.is_null() {
            // SAFETY: By the type invariants the table came from the source. The tree is being
            // dropped and nobody looks into the slot again.
            unsafe { self.source.discard(table) };
        }
    }
}

/// A leaf, for those who use many words in a row.
pub(crate) struct LeafRef<'a> {
    /// Whose word is the first.
    pub(crate) first_pfn: usize,
    pub(crate) words: &'a Leaf,
}

/// The table that a slot points to, if any.
#[inline]
fn table<T>(slot: &Atomic<*mut T>) -> Option<&T> {
    // ORDERING: What is read of the table depends on the pointer, as with rcu_dereference(); pairs
    // with the publication in `table_or_alloc()`. Volatile like READ_ONCE(), because
    // `Atomic::load()` is a call, and there are four of these on the way to an entry.
    //
    // SAFETY: `as_ptr()` is valid and aligned. By the invariants of `Radix` what it points to is
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
