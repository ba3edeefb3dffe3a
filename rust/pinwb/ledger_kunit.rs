// SPDX-License-Identifier: GPL-2.0

//! KUnit tests of the ledger.
//!
//! They run on ledgers of their own, never on the kernel's: a test may take any PFN that it likes.

use crate::{
    entry::Entry,
    ledger::Ledger,
    radix::{
        KernelMemory,
        TableSource, //
    }, //
};
use kernel::{
    alloc::AllocError,
    bindings,
    mm::folio::Folio,
    page::Page,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        Completion, //
    },
    workqueue, //
};

/// Memory for so many tables and no more.
struct Budget {
    left: Atomic<usize>,
}

impl Budget {
    const fn new(tables: usize) -> Self {
        Self {
            left: Atomic::new(tables),
        }
    }
}

impl TableSource for Budget {
    fn zeroed<T>(&self) -> Result<*mut T, AllocError> {
        if self.left.load(Relaxed) == 0 {
            return Err(AllocError);
        }
        self.left.fetch_sub(1usize, Relaxed);
        KernelMemory.zeroed()
    }

    unsafe fn discard<T>(&self, table: *mut T) {
        self.left.add(1usize, Relaxed);
        // SAFETY: By the caller's promise; `zeroed()` above got the table from `KernelMemory`.
        unsafe { KernelMemory.discard(table) };
    }
}

/// What the workers of the concurrency test share.
#[pin_data]
struct Shared {
    ledger: Ledger<KernelMemory>,
    running: Atomic<usize>,
    errors: Atomic<usize>,
    #[pin]
    done: Completion,
}

impl Shared {
    fn new(workers: usize) -> impl PinInit<Self> {
        pin_init!(Self {
            ledger: Ledger::new(KernelMemory),
            running: Atomic::new(workers),
            errors: Atomic::new(0),
            done <- Completion::new(),
        })
    }
}

/// Levels of tables on the way to an entry.
const LEVELS: usize = 4;

#[kunit_tests(pinwb_ledger)]
mod tests {
    use super::*;

    #[test]
    fn entry_counts_without_touching_the_reserved_half() {
        let reserved = 0xa400_0002_0000_0000;
        let entry = Entry::from_word(reserved | 7);

        assert_eq!(entry.count(), 7);
        assert_eq!(entry.add(3, 0).map(Entry::word), Some(reserved | 10));
        assert_eq!(entry.sub(7).0.word(), reserved);
        assert_eq!(entry.sub(9), (Entry::from_word(reserved), 2));
    }

    #[test]
    fn entry_refuses_to_overflow() {
        let full = Entry::from_word(Entry::MAX_COUNT);

        assert_eq!(full.add(1, 0), None);
        assert_eq!(full.add(u64::MAX, 0), None);
        assert_eq!(Entry::from_word(0).add(Entry::MAX_COUNT, 0), Some(full));
        assert_eq!(Entry::from_word(1).add(Entry::MAX_COUNT, 0), None);
    }

    #[test]
    fn entry_is_exempt_only_with_pins() {
        let none = Entry::from_word(0);
        let two = Entry::from_word(2);
        let both = Entry::IN_NODE | Entry::IN_WB;

        assert_eq!(none.exempt(), none);
        assert_eq!(two.exempt().exempt_bits(), both);
        assert_eq!(two.exempt().count(), 2);
        assert_eq!(two.exempt().not_exempt(), two);

        // The last unpin takes it off the node's counter, and leaves the other one's to writeback.
        let (one, _) = two.exempt().sub(1);
        assert_eq!(one.exempt_bits(), both);
        let (unpinned, _) = one.sub(1);
        assert_eq!(unpinned.exempt_bits(), Entry::IN_WB);
        assert_eq!(unpinned.count(), 0);
    }

    #[test]
    fn entry_has_the_owner_of_its_first_pin() -> Result {
        const PID_MAX_LIMIT: u32 = 1 << 22;
        let none = Entry::from_word(Entry::IN_WB);
        let first = none.add(2, PID_MAX_LIMIT - 1).ok_or(EINVAL)?;
        let second = first.add(1, 7).ok_or(EINVAL)?;

        assert_eq!(first.owner(), PID_MAX_LIMIT - 1);
        assert_eq!(second.owner(), PID_MAX_LIMIT - 1);
        assert_eq!(second.count(), 3);
        assert_eq!(second.sub(2).0.owner(), PID_MAX_LIMIT - 1);
        assert_eq!(second.sub(3).0, none);
        Ok(())
    }

    #[test]
    fn exempt_bits_change_hands_once() -> Result {
        let ledger = Ledger::new(KernelMemory);
        let both = Entry::IN_NODE | Entry::IN_WB;

        assert_eq!(ledger.set_exempt(8), 0);
        ledger.add(8, 1, 0)?;
        assert_eq!(ledger.set_exempt(8), both);
        assert_eq!(ledger.set_exempt(8), 0);
        assert!(ledger.sub(8, 1).left_node);
        assert!(!ledger.sub(8, 0).left_node);
        assert_eq!(ledger.clear_exempt(8), Entry::IN_WB);
        assert_eq!(ledger.clear_exempt(8), 0);

        // Pinned again before it was written: it is in one of the counters still.
        ledger.add(8, 1, 0)?;
        ledger.set_exempt(8);
        ledger.sub(8, 1);
        ledger.add(8, 1, 0)?;
        assert_eq!(ledger.set_exempt(8), Entry::IN_NODE);
        assert_eq!(ledger.clear_exempt(8), both);
        assert!(!ledger.sub(8, 1).left_node);
        Ok(())
    }

    #[test]
    fn counts_are_per_pfn() -> Result {
        let ledger = Ledger::new(KernelMemory);

        assert_eq!(ledger.get(0).count(), 0);
        ledger.add(0, 1, 0)?;
        ledger.add(511, 2, 0)?;
        ledger.add(512, 3, 0)?;
        ledger.add(0x12_3456_789a, 4, 0)?;
        ledger.add(511, 10, 0)?;

        assert_eq!(ledger.get(0).count(), 1);
        assert_eq!(ledger.get(1).count(), 0);
        assert_eq!(ledger.get(511).count(), 12);
        assert_eq!(ledger.get(512).count(), 3);
        assert_eq!(ledger.get(0x12_3456_789a).count(), 4);
        assert_eq!(ledger.leaves(), 3);
        Ok(())
    }

    #[test]
    fn walk_finds_exactly_what_is_pinned() -> Result {
        let ledger = Ledger::new(KernelMemory);
        let pfns = [3usize, 511, 512, 1 << 18, (1 << 27) + 5, (1 << 40) - 1];

        for (i, &pfn) in pfns.iter().enumerate() {
            ledger.add(pfn, i as u64 + 1, 0)?;
        }
        ledger.add(77, 1, 0)?;
        assert_eq!(ledger.sub(77, 1).short, 0);

        let mut seen = KVec::new();
        ledger.for_each(|pfn, entry| Ok(seen.push((pfn, entry.count()), GFP_KERNEL)?))?;

        assert_eq!(seen.len(), pfns.len());
        for (i, &pfn) in pfns.iter().enumerate() {
            assert_eq!(seen[i], (pfn, i as u64 + 1));
        }
        Ok(())
    }

    #[test]
    fn subtraction_stops_at_zero_and_says_so() -> Result {
        let ledger = Ledger::new(KernelMemory);

        assert_eq!(ledger.sub(5, 2).short, 2);
        ledger.add(5, 3, 0)?;
        assert_eq!(ledger.sub(5, 1).short, 0);
        assert_eq!(ledger.sub(5, 4).short, 2);
        assert_eq!(ledger.get(5).count(), 0);
        assert_eq!(ledger.sub(6, 1).short, 1);
        Ok(())
    }

    #[test]
    fn loop_in_c_stops_at_what_was_not_counted() -> Result {
        let ledger = Ledger::new(KernelMemory);
        let page = Page::alloc_page(GFP_KERNEL)?;
        // SAFETY: The page is ours, and not part of anything larger.
        let pfn = unsafe { Folio::of_page(page.as_ptr()) }.pfn();

        ledger.add(pfn, 3, 0)?;

        let leaf = ledger.leaf(pfn).ok_or(EINVAL)?;
        let forget = |pages: &mut [*mut bindings::page]| {
            // SAFETY: The pages are ours or null, and the leaf lives as long as the ledger.
            unsafe { bindings::pinwb_forget_ready(pages.as_mut_ptr(), pages.len(), &leaf) }
        };
        let [page, null] = [page.as_ptr(), core::ptr::null_mut()];

        assert_eq!(forget(&mut [page, null, page]), 1);
        assert_eq!(ledger.get(pfn).count(), 2);
        assert_eq!(forget(&mut [page, page, page, page]), 2);
        assert_eq!(ledger.get(pfn), Entry::from_word(0));
        assert_eq!(forget(&mut [page]), 0);
        assert_eq!(forget(&mut []), 0);
        assert_eq!(ledger.get(pfn), Entry::from_word(0));
        Ok(())
    }

    #[test]
    fn overflow_is_refused_with_ebusy_and_counts_nothing() -> Result {
        let ledger = Ledger::new(KernelMemory);

        ledger.add(9, Entry::MAX_COUNT, 0)?;
        assert_eq!(ledger.add(9, 1, 0), Err(EBUSY));
        assert_eq!(ledger.get(9).count(), Entry::MAX_COUNT);
        assert_eq!(ledger.sub(9, Entry::MAX_COUNT).short, 0);
        ledger.add(9, 1, 0)?;
        assert_eq!(ledger.get(9).count(), 1);
        Ok(())
    }

    #[test]
    fn pfn_beyond_the_root_is_refused_with_enomem() {
        let ledger = Ledger::new(KernelMemory);

        assert_eq!(ledger.add(1 << 40, 1, 0), Err(ENOMEM));
        assert_eq!(ledger.get(1 << 40).count(), 0);
        assert_eq!(ledger.get(usize::MAX).count(), 0);
    }

    #[test]
    fn failed_allocation_is_enomem_and_counts_nothing() -> Result {
        for tables in 0..LEVELS {
            let ledger = Ledger::new(Budget::new(tables));

            assert_eq!(ledger.add(42, 1, 0), Err(ENOMEM));
            assert_eq!(ledger.get(42).count(), 0);
            assert_eq!(ledger.leaves(), 0);
        }

        // One leaf fits: it serves its 2 MiB for ever, and nothing beyond.
        let ledger = Ledger::new(Budget::new(LEVELS));

        ledger.add(42, 1, 0)?;
        ledger.add(43, 1, 0)?;
        assert_eq!(ledger.add(512, 1, 0), Err(ENOMEM));
        assert_eq!(ledger.get(42).count(), 1);
        assert_eq!(ledger.sub(42, 1).short, 0);
        ledger.add(42, 1, 0)?;
        Ok(())
    }

    #[test]
    fn concurrent_pins_and_unpins_add_up() -> Result {
        const WORKERS: usize = 4;
        const ROUNDS: u64 = 2000;
        const PFNS: u64 = 3 * 512;

        let shared = Arc::pin_init(Shared::new(WORKERS), GFP_KERNEL)?;

        for worker in 0..WORKERS as u64 {
            let shared = shared.clone();

            workqueue::system_unbound().try_spawn(GFP_KERNEL, move || {
                // All workers fight for the same leaves and, at PFN 0, for the same entry. Each
                // leaves `worker + 1` pins on PFN 0 and nothing elsewhere.
                for round in 0..ROUNDS {
                    let pfn = (round * 8 % PFNS) as usize;
                    let counted = shared.ledger.add(0, 2, 0).and(shared.ledger.add(pfn, 1, 0));

                    if counted.is_err()
                        || shared.ledger.sub(0, 2).short + shared.ledger.sub(pfn, 1).short != 0
                    {
                        shared.errors.add(1usize, Relaxed);
                    }
                }
                if shared.ledger.add(0, worker + 1, 0).is_err() {
                    shared.errors.add(1usize, Relaxed);
                }
                if shared.running.fetch_sub(1usize, Relaxed) == 1 {
                    shared.done.complete_all();
                }
            })?;
        }
        shared.done.wait_for_completion();

        assert_eq!(shared.errors.load(Relaxed), 0);
        assert_eq!(shared.ledger.get(0).count(), 1 + 2 + 3 + 4);
        assert_eq!(shared.ledger.leaves(), 3);

        let mut folios = 0;
        shared.ledger.for_each(|_, _| {
            folios += 1;
            Ok(())
        })?;
        assert_eq!(folios, 1);
        Ok(())
    }
}
