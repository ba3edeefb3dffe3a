// SPDX-License-Identifier: GPL-2.0

//! What the tests ask of a device that writes to pinned memory.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Result;

use crate::beside::beside;
use crate::map::Mapping;
use crate::stamp::Stamp;
use crate::uring::Uring;
use crate::verbs::Verbs;

/// A device with a range of a mapping registered for writing. Offsets are those of the registered file.
/// Dropping it unpins, but not always at once: see [`Dma::unpin`].
pub trait Dma: Send {
    /// Writes the stamped contents of `range`; returns when they are in memory.
    fn write(&mut self, stamp: Stamp, range: Range<u64>) -> Result<()>;

    /// Drops the registration and returns when the pins are gone.
    fn unpin(self: Box<Self>) -> Result<()>;
}

/// Writes `range` again and again, a new round each time, until told to stop. Returns the last round,
/// which is then in memory as a whole.
pub fn write_until(
    device: &mut dyn Dma,
    stop: &AtomicBool,
    stamp: Stamp,
    range: Range<u64>,
) -> Result<u32> {
    let mut round = stamp.round;
    loop {
        round += 1;
        device.write(stamp.round(round), range.clone())?;
        if stop.load(Ordering::Acquire) {
            return Ok(round);
        }
    }
}

/// Does something while a device writes `range` without a pause. Returns what that gave, and the last round.
pub fn while_writing<T>(
    device: &mut dyn Dma,
    stamp: Stamp,
    range: Range<u64>,
    body: impl FnOnce() -> Result<T>,
) -> Result<(T, u32)> {
    beside(|stop| write_until(device, stop, stamp, range), body)
}

/// The kinds of device that a test runs with.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum Kind {
    /// A read into a registered buffer of an io_uring.
    Uring,
    /// An RDMA write from another process.
    Verbs,
}

impl Kind {
    /// The name on a command line.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Uring => "uring",
            Kind::Verbs => "verbs",
        }
    }

    /// Registers `range` of `map` for writing. The range is given in bytes of the file; `map` maps the
    /// file from its start. The kernel's errno can be had back by [`errno`].
    pub fn attach(self, map: &Mapping, range: Range<u64>) -> Result<Box<dyn Dma>> {
        Ok(match self {
            Kind::Uring => Box::new(Uring::register(map, range)?),
            Kind::Verbs => Box::new(Verbs::register(map, range)?),
        })
    }
}

/// The errno at the root of an error, if a system call set one.
pub fn errno(error: &anyhow::Error) -> Option<i32> {
    error
        .chain()
        .find_map(|cause| cause.downcast_ref::<io::Error>())
        .and_then(io::Error::raw_os_error)
}
