// SPDX-License-Identifier: GPL-2.0

//! What happened since boot, for debugfs.
//!
//! Plain atomic counters without ordering: nothing is decided by them.

use kernel::sync::atomic::{
    Atomic,
    Relaxed, //
};

/// The counters. The totals of the moment are not here: they are read off the ledger.
struct Stats {
    pins_total: Atomic<u64>,
    bounced_bytes: Atomic<u64>,
    bounced_bios: Atomic<u64>,
    kept_dirty: Atomic<u64>,
    orphans: Atomic<u64>,
    refusals: Atomic<u64>,
    unchanged_bytes: Atomic<u64>,
    admit_restarts: Atomic<u64>,
}

static STATS: Stats = Stats {
    pins_total: Atomic::new(0),
    bounced_bytes: Atomic::new(0),
    bounced_bios: Atomic::new(0),
    kept_dirty: Atomic::new(0),
    orphans: Atomic::new(0),
    refusals: Atomic::new(0),
    unchanged_bytes: Atomic::new(0),
    admit_restarts: Atomic::new(0),
};

/// `pins` writable long-term pins of file pages were admitted.
pub(crate) fn pinned(pins: u64) {
    STATS.pins_total.add(pins, Relaxed);
}

/// Bios went to the disk with copies in them.
pub(crate) fn bounced(bios: u64, bytes: u64) {
    STATS.bounced_bios.add(bios, Relaxed);
    STATS.bounced_bytes.add(bytes, Relaxed);
}

/// A folio stays dirty although it is being written.
pub(crate) fn kept_dirty() {
    STATS.kept_dirty.add(1u64, Relaxed);
}

/// A folio left its file with pins.
pub(crate) fn orphaned() {
    STATS.orphans.add(1u64, Relaxed);
}

/// A pin was refused.
pub(crate) fn refused() {
    STATS.refusals.add(1u64, Relaxed);
}

/// Periodic writeback left bytes out that were written before.
pub(crate) fn unchanged(bytes: u64) {
    STATS.unchanged_bytes.add(bytes, Relaxed);
}

/// A range must be pinned again.
pub(crate) fn restarted() {
    STATS.admit_restarts.add(1u64, Relaxed);
}

/// Names and values of all counters.
pub(crate) fn all() -> [(&'static str, u64); 8] {
    [
        ("pins_total", STATS.pins_total.load(Relaxed)),
        ("bounced_bytes", STATS.bounced_bytes.load(Relaxed)),
        ("bounced_bios", STATS.bounced_bios.load(Relaxed)),
        ("kept_dirty", STATS.kept_dirty.load(Relaxed)),
        ("orphans", STATS.orphans.load(Relaxed)),
        ("refusals", STATS.refusals.load(Relaxed)),
        ("unchanged_bytes", STATS.unchanged_bytes.load(Relaxed)),
        ("admit_restarts", STATS.admit_restarts.load(Relaxed)),
    ]
}
