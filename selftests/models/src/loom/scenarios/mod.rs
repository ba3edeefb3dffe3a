// SPDX-License-Identifier: GPL-2.0

//! Small cases, each a function that is one execution.

use loom::thread::JoinHandle;

pub(crate) mod ledger;
pub(crate) mod lru;
pub(crate) mod protocol;

/// What a thread returns, when it has.
fn join<T>(thread: JoinHandle<T>) -> T {
    thread.join().expect("a panic ends the execution")
}
