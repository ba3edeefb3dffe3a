// SPDX-License-Identifier: GPL-2.0

//! What may happen to a ledger, and what a hash map says that it must answer.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::rc::Rc;

use proptest::prelude::{prop_assert, prop_assert_eq};
use proptest::strategy::{BoxedStrategy, Just, Strategy};
use proptest::test_runner::TestCaseError;
use proptest::{collection, num, prop_oneof};

use crate::entry::Entry;
use crate::ledger::Ledger;
use crate::prelude::{EBUSY, ENOMEM};
use crate::radix::{KernelMemory, TableSource};

/// Levels of tables: the entry of a PFN is in one of the last.
const LEVELS: usize = 4;
/// Bits of a PFN that the tables of a level share.
const SHARED_BITS: [usize; LEVELS] = [40, 27, 18, 9];
/// PFNs from here on are not in the ledger.
const END: usize = 1 << 40;

/// One thing that happens.
#[derive(Clone, Debug)]
pub(crate) enum Operation {
    /// Pages are pinned, or get extra pins.
    Pin { pfn: usize, pins: u64 },
    /// Pins are released; not always all, and sometimes too many.
    Unpin { pfn: usize, pins: u64 },
    /// Writeback asks.
    Get { pfn: usize },
    /// Somebody reads the list of pinned folios.
    Walk,
    /// From now on there is memory for so many tables.
    Memory { tables: usize },
}

/// Memory for so many tables and no more.
#[derive(Clone)]
struct Budget {
    left: Rc<Cell<usize>>,
    in_use: Rc<Cell<usize>>,
}

impl TableSource for Budget {
    fn zeroed<T>(&self) -> Result<*mut T, crate::alloc::AllocError> {
        let left = self.left.get().checked_sub(1);

        self.left.set(left.ok_or(crate::alloc::AllocError)?);
        self.in_use.set(self.in_use.get() + 1);
        KernelMemory.zeroed()
    }

    unsafe fn discard<T>(&self, table: *mut T) {
        self.in_use.set(self.in_use.get() - 1);
        // SAFETY: By the caller's promise; `zeroed()` above got the table from there.
        unsafe { KernelMemory.discard(table) };
    }
}

/// PFNs of one leaf, and the first of the next.
pub(crate) fn near() -> BoxedStrategy<usize> {
    (512usize..=1024).boxed()
}

/// PFNs that meet, and that do not, in each level; and some that no ledger has.
pub(crate) fn far() -> BoxedStrategy<usize> {
    let bits = || prop_oneof![Just(0usize), Just(1), Just(511)];
    let inside = (
        bits(),
        bits(),
        bits(),
        prop_oneof![Just(0usize), Just(5), Just(8191)],
    )
        .prop_map(|(entry, leaf, inner, upper)| {
            (upper << 27) | (inner << 18) | (leaf << 9) | entry
        });

    prop_oneof![20 => inside, 1 => Just(END), 1 => Just(usize::MAX)].boxed()
}

/// Numbers of pins: few, and now and then so many that the count is full.
fn pins() -> impl Strategy<Value = u64> {
    prop_oneof![
        16 => 1u64..=512,
        2 => Entry::MAX_COUNT - 512..=Entry::MAX_COUNT,
        1 => num::u64::ANY,
    ]
}

/// Histories over some PFNs, of up to so many operations.
pub(crate) fn histories(
    pfns: BoxedStrategy<usize>,
    operations: usize,
) -> impl Strategy<Value = Vec<Operation>> {
    let operation = prop_oneof![
        10 => (pfns.clone(), pins()).prop_map(|(pfn, pins)| Operation::Pin { pfn, pins }),
        10 => (pfns.clone(), pins()).prop_map(|(pfn, pins)| Operation::Unpin { pfn, pins }),
        5 => pfns.prop_map(|pfn| Operation::Get { pfn }),
        1 => (0usize..12).prop_map(|tables| Operation::Memory { tables }),
    ];
    let some = collection::vec(operation, operations / 2..=operations);

    // A walk looks at every slot of every table: a few for each history.
    (some, collection::vec(0usize..operations, 0..4)).prop_map(|(mut history, walks)| {
        for at in walks {
            history.insert(at.min(history.len()), Operation::Walk);
        }
        history
    })
}

/// What the ledger must know.
#[derive(Default)]
struct Reference {
    counts: HashMap<usize, u64>,
    /// Tables that are there: level, and the bits of the PFN that lead to it.
    tables: HashSet<(usize, usize)>,
    memory: usize,
}

impl Reference {
    fn count(&self, pfn: usize) -> u64 {
        self.counts.get(&pfn).copied().unwrap_or(0)
    }

    /// Makes the tables on the way to an entry, while there is memory.
    fn reach(&mut self, pfn: usize) -> bool {
        SHARED_BITS.iter().enumerate().all(|(level, bits)| {
            let table = (level, pfn >> bits);

            if !self.tables.contains(&table) {
                if self.memory == 0 {
                    return false;
                }
                self.memory -= 1;
                self.tables.insert(table);
            }
            true
        })
    }

    fn leaves(&self) -> usize {
        self.tables.iter().filter(|t| t.0 == LEVELS - 1).count()
    }
}

/// Runs a history on a ledger and on the reference.
pub(crate) fn check(history: Vec<Operation>) -> Result<(), TestCaseError> {
    let budget = Budget {
        left: Rc::new(Cell::new(usize::MAX)),
        in_use: Rc::new(Cell::new(0)),
    };
    let ledger = Ledger::new(budget.clone());
    let mut reference = Reference {
        memory: usize::MAX,
        ..Reference::default()
    };

    for operation in history {
        match operation {
            Operation::Pin { pfn, pins } => {
                let count = u128::from(reference.count(pfn)) + u128::from(pins);
                let expected = if pfn >= END || !reference.reach(pfn) {
                    Err(ENOMEM)
                } else if count > u128::from(Entry::MAX_COUNT) {
                    Err(EBUSY)
                } else {
                    reference.counts.insert(pfn, count as u64);
                    Ok(())
                };

                prop_assert_eq!(ledger.add(pfn, pins, 0), expected);
            }
            Operation::Unpin { pfn, pins } => {
                let count = reference.count(pfn);

                reference.counts.insert(pfn, count.saturating_sub(pins));
                prop_assert_eq!(ledger.sub(pfn, pins).short, pins.saturating_sub(count));
            }
            Operation::Get { pfn } => {
                let leaf = ledger.leaf(pfn);
                let known = pfn < END && reference.tables.contains(&(LEVELS - 1, pfn >> 9));

                prop_assert_eq!(ledger.get(pfn).word(), reference.count(pfn));
                prop_assert_eq!(
                    leaf.as_ref().map(|l| l.first_pfn),
                    known.then_some(pfn & !511)
                );
                if let Some(leaf) = leaf {
                    // SAFETY: The leaf has 512 entries, of which this is one.
                    let word = unsafe { leaf.entries.add(pfn & 511).read() };

                    prop_assert_eq!(word, reference.count(pfn));
                }
            }
            Operation::Walk => walk(&ledger, &reference)?,
            Operation::Memory { tables } => {
                budget.left.set(tables);
                reference.memory = tables;
            }
        }
        prop_assert_eq!(ledger.leaves(), reference.leaves());
    }

    walk(&ledger, &reference)?;
    prop_assert_eq!(budget.in_use.get(), reference.tables.len());
    drop(ledger);
    prop_assert_eq!(budget.in_use.get(), 0, "tables leaked");
    Ok(())
}

fn walk(ledger: &Ledger<Budget>, reference: &Reference) -> Result<(), TestCaseError> {
    let pinned = reference.counts.iter().filter(|(_, count)| **count != 0);
    let expected: BTreeMap<usize, u64> = pinned.map(|(pfn, count)| (*pfn, *count)).collect();
    let mut seen = Vec::new();

    let all = ledger.for_each(|pfn, entry| {
        seen.push((pfn, entry.count()));
        Ok(())
    });
    prop_assert!(all.is_ok());
    prop_assert_eq!(seen, expected.into_iter().collect::<Vec<_>>());

    // It ends when it is told to.
    let stopped = ledger.for_each(|_, _| Err(EBUSY));
    prop_assert_eq!(
        stopped.is_err(),
        reference.counts.values().any(|count| *count != 0)
    );
    Ok(())
}

/// An entry's word, and a number of pins.
pub(crate) fn entries() -> impl Strategy<Value = (u64, u64)> {
    (num::u64::ANY, prop_oneof![pins(), num::u64::ANY])
}

/// Adds to and subtracts from an entry with anything in its upper half.
pub(crate) fn check_entry((word, pins): (u64, u64)) -> Result<(), TestCaseError> {
    let reserved = word & !Entry::MAX_COUNT;
    let count = word & Entry::MAX_COUNT;
    let entry = Entry::from_word(word);
    let sum = u128::from(count) + u128::from(pins);
    let fits = sum <= u128::from(Entry::MAX_COUNT);

    prop_assert_eq!(entry.count(), count);
    prop_assert_eq!(
        entry.add(pins, entry.owner()).map(Entry::word),
        fits.then_some(reserved | sum as u64)
    );

    let bits = Entry::IN_NODE | Entry::IN_WB;
    prop_assert_eq!(entry.exempt_bits(), word & bits);
    prop_assert_eq!(entry.not_exempt().word(), word & !bits);
    prop_assert_eq!(
        entry.exempt().word(),
        match count {
            0 => word,
            _ => word | bits,
        }
    );

    let hashed = 1 << 56;
    prop_assert_eq!(entry.is_hashed(), word & hashed != 0);
    prop_assert_eq!(entry.not_hashed().word(), word & !hashed);
    prop_assert_eq!(
        entry.hashed().word(),
        match count {
            0 => word,
            _ => word | hashed,
        }
    );

    let (less, short) = entry.sub(pins);
    let owner_bits = ((1 << 22) - 1) << Entry::OWNER_SHIFT;
    // Without pins it can't be counted as pinned, nobody has any, and it may be written by others.
    let kept = match count.saturating_sub(pins) {
        0 => reserved & !Entry::IN_NODE & !owner_bits & !hashed,
        _ => reserved,
    };
    prop_assert_eq!(less.word(), kept | count.saturating_sub(pins));
    prop_assert_eq!(short, pins.saturating_sub(count));
    Ok(())
}
