// SPDX-License-Identifier: GPL-2.0

//! Shared words, as loom sees them.
//!
//! The kernel's structures keep their layout: an [`Atomic`] is the word itself, zeroed memory is a
//! table of zeroes, and C can step through an array of them. What loom has to know of a word lies
//! beside it, found by address, from the first access on.
//!
//! loom orders an atomic's creation before its uses, so they are all created before the threads
//! start. That a *table* was published properly is checked by a cell for each table: allocation
//! writes to it, and every access to a word of the table reads it.
//!
//! [`Atomic`]: crate::sync::atomic::Atomic

use std::alloc::{alloc, alloc_zeroed, dealloc, Layout};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ops::Range;
use std::rc::Rc;

use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicU64, Ordering};

/// Words that one execution may use.
const WORDS: usize = 48;

/// What to take away from the memory, to see that a model notices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Weakness {
    /// Nothing.
    #[default]
    None,
    /// Acquire, release and full ordering become relaxed.
    Orderings,
    /// What is read through a pointer is not ordered after the load of the pointer.
    Dependencies,
    /// Compare-and-exchange is a load and a store.
    CompareExchange,
}

struct Table {
    bytes: Range<usize>,
    layout: Layout,
    made: UnsafeCell<()>,
    discarded: Cell<bool>,
}

#[derive(Default)]
struct Memory {
    words: HashMap<usize, Rc<AtomicU64>>,
    spare: Vec<Rc<AtomicU64>>,
    tables: Vec<Rc<Table>>,
}

thread_local! {
    // loom runs all threads of an execution on one thread of the host.
    static MEMORY: RefCell<Memory> = RefCell::default();
    static WEAKNESS: Cell<Weakness> = Cell::default();
}

/// Chooses what the executions from now on lack.
pub(crate) fn weaken(weakness: Weakness) {
    WEAKNESS.set(weakness);
}

/// To be called at the start of each execution, before it has a second thread.
pub(crate) fn start() {
    let spare = (0..WORDS).map(|_| Rc::new(AtomicU64::new(0))).collect();
    let old = MEMORY.replace(Memory {
        spare,
        ..Memory::default()
    });

    COUNTERS.with(|counters| counters.iter().for_each(|counter| counter.set(0)));
    for table in old.tables {
        // SAFETY: `table()` allocated this, and the execution that used it is over.
        unsafe { dealloc(table.bytes.start as *mut u8, table.layout) };
    }
}

/// Tables that were allocated and not discarded.
pub(crate) fn tables() -> usize {
    MEMORY.with_borrow(|m| m.tables.iter().filter(|t| !t.discarded.get()).count())
}

/// Allocates a table, which lives until the next [`start`].
pub(crate) fn table(layout: Layout, zeroed: bool) -> *mut u8 {
    // SAFETY: No table has size zero.
    let start = unsafe {
        match zeroed {
            true => alloc_zeroed(layout),
            false => alloc(layout),
        }
    };
    assert!(!start.is_null(), "out of memory");
    if !zeroed {
        // SAFETY: Just allocated with this size.
        unsafe { start.write_bytes(0xa5, layout.size()) };
    }

    let first = start.expose_provenance();
    let table = Rc::new(Table {
        bytes: first..first + layout.size(),
        layout,
        made: UnsafeCell::new(()),
        discarded: Cell::new(false),
    });
    table.made.with_mut(|_| ());
    MEMORY.with_borrow_mut(|m| m.tables.push(table));
    start
}

/// Gives back a table. Who looks into it from now on has a bug.
pub(crate) fn discard(start: *mut u8) {
    let first = start.addr();
    let table = MEMORY.with_borrow(|m| m.tables.iter().find(|t| t.bytes.start == first).cloned());
    let table = table.expect("discarded what is no table");

    assert!(!table.discarded.replace(true), "discarded twice");
    // Whoever has seen the table would be in a race with its end.
    table.made.with_mut(|_| ());
}

fn word(address: usize) -> Rc<AtomicU64> {
    let (word, table) = MEMORY.with_borrow_mut(|m| {
        let table = m.tables.iter().find(|t| t.bytes.contains(&address));
        let word = m.words.entry(address).or_insert_with(|| {
            // SAFETY: The address is that of an `Atomic`, which changes only through loom.
            let plain = unsafe { (address as *const u64).read() };

            assert_eq!(plain, 0, "a word that was not initialised");
            m.spare.pop().expect("WORDS is too small for this model")
        });

        (word.clone(), table.cloned())
    });

    if let Some(table) = table {
        assert!(!table.discarded.get(), "a table was used after its end");
        table.made.with(|_| ());
    }
    word
}

fn weakened(order: Ordering) -> Ordering {
    match WEAKNESS.get() {
        Weakness::Orderings => Ordering::Relaxed,
        _ => order,
    }
}

/// The order in which a pointer is loaded through which others are read. loom knows no
/// dependencies; an acquire stands in. The litmus tests have the real thing.
fn dependency() -> Ordering {
    match WEAKNESS.get() {
        Weakness::Dependencies => Ordering::Relaxed,
        _ => Ordering::Acquire,
    }
}

pub(crate) fn load(address: usize, order: Ordering) -> u64 {
    word(address).load(weakened(order))
}

pub(crate) fn load_pointer(address: usize) -> u64 {
    word(address).load(dependency())
}

/// A failed exchange orders nothing, as in the kernel; but if the word is a pointer, what is read
/// through it depends on it.
pub(crate) fn cmpxchg(
    address: usize,
    old: u64,
    new: u64,
    order: Ordering,
    is_pointer: bool,
) -> Result<u64, u64> {
    let word = word(address);
    let on_failure = match is_pointer {
        true => dependency(),
        false => Ordering::Relaxed,
    };

    if WEAKNESS.get() == Weakness::CompareExchange {
        let current = word.load(on_failure);

        if current != old {
            return Err(current);
        }
        word.store(new, Ordering::Release);
        return Ok(current);
    }
    word.compare_exchange(old, new, weakened(order), on_failure)
}

pub(crate) fn fetch_add(address: usize, n: u64, order: Ordering) -> u64 {
    word(address).fetch_add(n, weakened(order))
}

pub(crate) fn fetch_or(address: usize, bits: u64, order: Ordering) -> u64 {
    word(address).fetch_or(bits, weakened(order))
}

pub(crate) fn fetch_and(address: usize, bits: u64, order: Ordering) -> u64 {
    word(address).fetch_and(bits, weakened(order))
}

pub(crate) fn store(address: usize, value: u64, order: Ordering) {
    word(address).store(value, weakened(order));
}

thread_local! {
    /// Counters that only add up: NR_FILE_PINNED and WB_PINNED. No words of loom's, because no order
    /// in which they change means anything.
    static COUNTERS: [Cell<i64>; 2] = const { [Cell::new(0), Cell::new(0)] };
}

fn count(item: usize, n: i64) {
    COUNTERS.with(|counters| counters[item].set(counters[item].get() + n));
}

/// The counters, when nothing runs.
pub(crate) fn counters() -> [i64; 2] {
    COUNTERS.with(|counters| counters.each_ref().map(Cell::get))
}

/// Words of the C functions.
mod c {
    use loom::sync::atomic::fence;

    use super::{cmpxchg, count, fetch_and, fetch_or, load, Ordering};

    #[no_mangle]
    extern "C-unwind" fn model_read_once(word: *const u64) -> u64 {
        load(word.addr(), Ordering::Relaxed)
    }

    #[no_mangle]
    extern "C-unwind" fn model_or_relaxed(word: *mut u64, bits: u64) {
        fetch_or(word.addr(), bits, Ordering::Relaxed);
    }

    #[no_mangle]
    extern "C-unwind" fn model_and_relaxed(word: *mut u64, bits: u64) {
        fetch_and(word.addr(), bits, Ordering::Relaxed);
    }

    #[no_mangle]
    extern "C-unwind" fn model_mb() {
        fence(Ordering::SeqCst);
    }

    #[no_mangle]
    unsafe extern "C-unwind" fn model_try_cmpxchg(
        word: *mut u64,
        old: *mut u64,
        new: u64,
        release: bool,
    ) -> bool {
        let order = match release {
            true => Ordering::Release,
            false => Ordering::Relaxed,
        };
        // SAFETY: It is a local variable of the caller's.
        let old = unsafe { &mut *old };

        match cmpxchg(word.addr(), *old, new, order, false) {
            Ok(_) => true,
            Err(current) => {
                *old = current;
                false
            }
        }
    }

    #[no_mangle]
    extern "C-unwind" fn model_count(item: i32, n: i64) {
        count(item as usize, n);
    }
}
