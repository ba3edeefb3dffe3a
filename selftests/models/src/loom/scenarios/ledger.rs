// SPDX-License-Identifier: GPL-2.0

//! The ledger alone (I7).

use std::rc::Rc;

use loom::thread::{self, JoinHandle};

use super::join;
use crate::bindings;
use crate::entry::Entry;
use crate::ledger::Ledger;
use crate::memory::{self, Weakness};
use crate::models::{Break, Scenario, Without};
use crate::prelude::EBUSY;
use crate::radix::KernelMemory;

/// A PFN; the next one is in the same leaf.
const PFN: usize = 0x1_2345;
/// A PFN that shares all tables but the leaf.
const ELSEWHERE: usize = PFN ^ 512;
/// Tables on the way to an entry.
const LEVELS: usize = 4;

const LOST: &[&str] = &["I7"];
const RACE: &[&str] = &["Causality violation"];

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "ledger: two first pins make the tables, a third asks",
        run: first_pins,
        breaks: &[
            Break {
                without: Without::Memory(Weakness::Orderings),
                name: "without release at publication",
                says: RACE,
            },
            Break {
                without: Without::Memory(Weakness::Dependencies),
                name: "without order by dependency",
                says: RACE,
            },
            Break {
                without: Without::Memory(Weakness::CompareExchange),
                name: "with a publication that is not atomic",
                says: &["I7", "Causality violation", "tables"],
            },
        ],
        preemptions: None,
    },
    Scenario {
        name: "ledger: two first pins of one folio make the tables once",
        run: first_pins_of_one,
        breaks: &[Break {
            without: Without::Memory(Weakness::CompareExchange),
            name: "with a publication that is not atomic",
            says: &["I7"],
        }],
        preemptions: None,
    },
    Scenario {
        name: "ledger: pins and unpins of one folio add up",
        run: add_and_sub,
        breaks: &[Break {
            without: Without::Memory(Weakness::CompareExchange),
            name: "with counts that are not atomic",
            says: LOST,
        }],
        preemptions: None,
    },
    Scenario {
        name: "ledger: pins and unpins by the loops in C add up with those in Rust",
        run: with_c,
        breaks: &[Break {
            without: Without::Memory(Weakness::CompareExchange),
            name: "with counts that are not atomic",
            says: LOST,
        }],
        preemptions: None,
    },
    Scenario {
        name: "ledger: who sees a pin gone sees what it left behind",
        run: left_behind,
        breaks: &[Break {
            without: Without::Memory(Weakness::Orderings),
            name: "without release and acquire",
            says: RACE,
        }],
        preemptions: None,
    },
    Scenario {
        name: "ledger: the last place is given once",
        run: last_place,
        breaks: &[Break {
            without: Without::Memory(Weakness::CompareExchange),
            name: "with counts that are not atomic",
            says: LOST,
        }],
        preemptions: None,
    },
    Scenario {
        name: "ledger: one pin is taken off once",
        run: stops_at_zero,
        breaks: &[Break {
            without: Without::Memory(Weakness::CompareExchange),
            name: "with counts that are not atomic",
            says: LOST,
        }],
        preemptions: None,
    },
    Scenario {
        name: "ledger: the loop in C leaves a release too many alone",
        run: too_many,
        breaks: &[],
        preemptions: None,
    },
];

/// A ledger that the threads of an execution share. Its tables go with the execution.
#[derive(Clone)]
struct Shared(Rc<core::mem::ManuallyDrop<Ledger<KernelMemory>>>);

// SAFETY: All threads of an execution take turns on one thread of the host.
unsafe impl Send for Shared {}

impl Shared {
    fn new() -> Self {
        memory::start();
        let ledger = Ledger::new(KernelMemory);

        // The structure itself is no table: who has it has got it in order.
        assert_eq!(ledger.get(PFN).count(), 0);
        assert_eq!(ledger.leaves(), 0);
        Self(Rc::new(core::mem::ManuallyDrop::new(ledger)))
    }

    /// With `pins` of [`PFN`].
    fn with_pins(pins: u64) -> Self {
        let this = Self::new();

        this.add(pins);
        this
    }

    fn spawn<T: 'static>(&self, f: impl FnOnce(&Self) -> T + 'static) -> JoinHandle<T> {
        let this = self.clone();

        thread::spawn(move || f(&this))
    }

    fn add(&self, pins: u64) {
        self.0.add(PFN, pins, 0).expect("room for pins");
    }

    fn sub(&self, pins: u64) {
        assert_eq!(self.0.sub(PFN, pins).short, 0, "I7: a pin is missing");
    }

    fn entry(&self) -> *mut bindings::atomic64_t {
        let leaf = self.0.leaf(PFN).expect("a leaf");

        leaf.entries.wrapping_add(PFN - leaf.first_pfn)
    }

    fn check(&self, pins: u64) {
        assert_eq!(
            self.0.get(PFN),
            Entry::from_word(pins),
            "I7: pins counted, and held"
        );
    }
}

fn first_pins() {
    let ledger = Shared::new();
    let one = ledger.spawn(|ledger| ledger.add(1));
    let other = ledger.spawn(|ledger| ledger.0.add(ELSEWHERE, 2, 0).expect("room for pins"));

    assert!(ledger.0.get(PFN).count() <= 1, "I7: a pin that nobody has");
    join(one);
    join(other);

    ledger.check(1);
    assert_eq!(ledger.0.get(ELSEWHERE).count(), 2, "I7: pins held");
    assert_eq!(ledger.0.leaves(), 2, "I7: leaves");
    assert_eq!(memory::tables(), LEVELS + 1, "tables that are not in use");
}

fn first_pins_of_one() {
    let ledger = Shared::new();
    let other = ledger.spawn(|ledger| ledger.add(1));

    ledger.add(2);
    join(other);
    ledger.check(3);
    assert_eq!(ledger.0.leaves(), 1, "I7: leaves");
    assert_eq!(memory::tables(), LEVELS, "tables that are not in use");
}

fn add_and_sub() {
    let ledger = Shared::with_pins(3);
    let one = ledger.spawn(|ledger| ledger.add(2));
    let other = ledger.spawn(|ledger| ledger.sub(2));

    ledger.sub(1);
    join(one);
    join(other);
    ledger.check(2);
}

fn with_c() {
    let ledger = Shared::with_pins(2);
    let count = ledger.spawn(|ledger| {
        // SAFETY: The entry is valid.
        assert!(unsafe { bindings::pinwb_count_one(ledger.entry(), 0, 0, &mut 0) });
    });
    let forget = ledger.spawn(|ledger| {
        // SAFETY: As above.
        assert!(unsafe { bindings::pinwb_forget_one(ledger.entry(), &mut false, &mut 0) });
    });

    ledger.add(4);
    ledger.sub(1);
    join(count);
    join(forget);
    ledger.check(5);
}

fn left_behind() {
    let ledger = Shared::with_pins(2);
    let one = Rc::new(loom::cell::UnsafeCell::new(0));
    let other = Rc::new(loom::cell::UnsafeCell::new(0));

    // Each device has a place of its own, and writes no more when its pin goes.
    let device = |data: &Rc<loom::cell::UnsafeCell<u64>>, in_c: bool| {
        let data = Alone(data.clone());

        ledger.spawn(move |ledger| {
            data.write();
            if in_c {
                // SAFETY: The entry is valid.
                assert!(unsafe { bindings::pinwb_forget_one(ledger.entry(), &mut false, &mut 0) });
            } else {
                ledger.sub(1);
            }
        })
    };
    let first = device(&one, true);
    let second = device(&other, false);
    // Pins that come later do not hide that those went.
    let third = ledger.spawn(|ledger| ledger.add(1));

    join(third);
    if ledger.0.get(PFN).count() == 1 {
        Alone(one).read();
        Alone(other).read();
    }
    join(first);
    join(second);
}

/// Data that only one may touch at a time; loom knows.
struct Alone(Rc<loom::cell::UnsafeCell<u64>>);

// SAFETY: All threads of an execution take turns on one thread of the host.
unsafe impl Send for Alone {}

impl Alone {
    fn write(&self) {
        // SAFETY: loom checks that nobody else is at it.
        self.0.with_mut(|data| unsafe { *data = 1 });
    }

    fn read(&self) {
        // SAFETY: As above.
        let data = self.0.with(|data| unsafe { *data });

        assert_eq!(data, 1, "left behind");
    }
}

fn last_place() {
    let ledger = Shared::with_pins(Entry::MAX_COUNT - 1);
    let other = ledger.spawn(|ledger| ledger.0.add(PFN, 1, 0));
    let mine = ledger.0.add(PFN, 1, 0);

    let refused = [mine, join(other)]
        .iter()
        .filter(|added| **added == Err(EBUSY))
        .count();
    assert_eq!(refused, 1, "I7: pins refused");
    ledger.check(Entry::MAX_COUNT);
}

fn stops_at_zero() {
    let ledger = Shared::with_pins(1);
    let other = ledger.spawn(|ledger| ledger.0.sub(PFN, 1).short);
    let mine = ledger.0.sub(PFN, 1).short;

    assert_eq!(
        mine + join(other),
        1,
        "I7: releases too many that were told"
    );
    ledger.check(0);
}

fn too_many() {
    let ledger = Shared::with_pins(1);
    // SAFETY: The entry is valid.
    let forget =
        |ledger: &Shared| unsafe { bindings::pinwb_forget_one(ledger.entry(), &mut false, &mut 0) };
    let one = ledger.spawn(forget);
    let other = ledger.spawn(forget);

    let taken = [join(one), join(other)].into_iter().filter(|t| *t).count();
    assert_eq!(taken, 1, "I7: pins taken off");
    ledger.check(0);
}
