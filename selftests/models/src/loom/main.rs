// SPDX-License-Identifier: GPL-2.0

//! All interleavings of pins, unpins, writeback and truncation, for small cases, with loom.
//!
//! Ledger, admission and keep-dirty are the files of the kernel. They are compiled here against
//! stand-ins for what they use of it: [`memory`] and [`kernel`] for atomics and allocation,
//! [`bindings`] for folio lock, flags and page cache. [`world`] is the filesystem, the driver and
//! its device.

extern crate self as kernel;

#[path = "../../../../rust/pinwb/admit.rs"]
mod admit;
#[path = "../../../../rust/pinwb/entry.rs"]
#[allow(dead_code, reason = "hashes decide nothing of what is modelled")]
mod entry;
#[path = "../../../../rust/pinwb/ledger.rs"]
#[allow(dead_code, reason = "walking a ledger is left to the random histories")]
mod ledger;
#[path = "../../../../rust/pinwb/mapping.rs"]
mod mapping;
#[path = "../../../../rust/pinwb/radix.rs"]
#[allow(dead_code, reason = "as with the ledger")]
mod radix;
#[path = "../../../../rust/pinwb/writeback.rs"]
mod writeback;

mod bindings;
mod debug;
#[path = "kernel.rs"]
mod kernel_crate;
mod memory;
mod mm;
mod models;
mod scenarios;
mod world;

use kernel_crate::{alloc, error, page, prelude, sync, time, types};

/// Stand-in for `rust/pinwb/bounce.rs`: the copy is made in [`world`].
mod bounce {
    pub(crate) fn prepare() -> crate::error::Result {
        Ok(())
    }
}

/// Stand-in for `rust/pinwb/stats.rs`: nothing is decided by counters.
mod stats {
    pub(crate) fn pinned(_: u64) {}
    pub(crate) fn kept_dirty() {}
    pub(crate) fn restarted() {}
    pub(crate) fn orphaned() {}
}

/// Stand-in for `rust/pinwb/trace.rs`.
mod trace {
    use crate::mm::folio::Folio;

    pub(crate) fn pin(_: &Folio, _: usize) {}
    pub(crate) fn unpin(_: &Folio, _: usize) {}
    pub(crate) fn admit_wait(_: &Folio, _: usize) {}
    pub(crate) fn keep_dirty(_: &Folio, _: usize) {}
    pub(crate) fn orphan(_: &Folio, _: usize) {}
}

use clap::Parser;
use pinwb_models::report::{self, Options};
use std::process::ExitCode;

fn main() -> anyhow::Result<ExitCode> {
    let options = Options::parse();
    let models = models::all(options.quick);

    report::run("loom", &options, models)
}
