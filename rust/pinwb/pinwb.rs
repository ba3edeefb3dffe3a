// SPDX-License-Identifier: GPL-2.0

//! Pinned writeback.
//!
//! Devices that registered the pages of a shared file mapping (RDMA, io_uring fixed buffers) write
//! to them whenever they like, for days. Writeback cannot make such a folio clean, and must not
//! hand it to the block layer while it changes. So it keeps the folio dirty, and writes a copy.
//!
//! - [`ledger`]: which folios are pinned, and how often, exactly; [`radix`] is how it is stored;
//! - [`admit`]: what a new pin waits for before the driver may start DMA;
//! - [`writeback`]: the keep-dirty step, and what writeback asks the ledger;
//! - [`bounce`]: the copies, for a bio;
//! - [`unchanged`]: what periodic writeback need not write again;
//! - [`stats`], [`bounced`], [`debugfs`], [`debug`]: what happened, who is pinned, test switches;
//! - [`ffi`] and `glue.c`: the border to C.
//!
//! The races and the arguments are in `Documentation/mm/pinwb/design.rst`.

mod admit;
mod bounce;
mod bounced;
mod debug;
mod debugfs;
mod entry;
mod ffi;
mod ledger;
mod mapping;
mod places;
mod radix;
mod stats;
mod trace;
mod unchanged;
mod writeback;

#[cfg(CONFIG_PINWB_BENCHMARK)]
mod bench;
#[cfg(CONFIG_PINWB_KUNIT_TEST)]
mod bounce_kunit;
#[cfg(CONFIG_PINWB_KUNIT_TEST)]
mod bounced_kunit;
#[cfg(CONFIG_PINWB_KUNIT_TEST)]
mod ledger_kunit;
#[cfg(CONFIG_PINWB_KUNIT_TEST)]
mod unchanged_kunit;

use kernel::{
    debugfs::Scope,
    prelude::*, //
};

module! {
    type: Pinwb,
    name: "pinwb",
    authors: ["The pinwb authors"],
    description: "Pinned writeback",
    license: "GPL",
}

#[pin_data]
struct Pinwb {
    #[pin]
    _debugfs: Scope<()>,
}

impl kernel::InPlaceModule for Pinwb {
    fn init(_module: &'static ThisModule) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            _debugfs <- debugfs::directory(),
        })
    }
}
