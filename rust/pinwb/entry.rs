// SPDX-License-Identifier: GPL-2.0

//! The arithmetic of one ledger entry.
//!
//! Nothing here touches shared memory: [`Entry`] is a plain value, and `ledger.rs` applies these
//! steps with compare-and-exchange. This file has no dependency on the kernel.

/// What the ledger knows of one folio, packed into 64 bits.
///
/// ```text
///  63               32 31                0
/// +-------------------+-------------------+
/// | reserved, zero    | writable pins     |
/// +-------------------+-------------------+
/// ```
///
/// The upper half has room for the totals of the other kinds of long-term pin and for flag bits.
/// Arithmetic on the count never carries into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry(u64);

/// Mask of the count of writable long-term pins.
const COUNT_MASK: u64 = u32::MAX as u64;

impl Entry {
    /// The largest count that an entry can hold, in pins.
    pub(crate) const MAX_COUNT: u64 = COUNT_MASK;

    /// Reads an entry from the ledger's word.
    pub(crate) const fn from_word(word: u64) -> Self {
        Self(word)
    }

    /// The word to store in the ledger.
    pub(crate) const fn word(self) -> u64 {
        self.0
    }

    /// Number of writable long-term pins.
    pub(crate) const fn count(self) -> u64 {
        self.0 & COUNT_MASK
    }

    /// The entry with `pins` more pins, or [`None`] if the count has no room for them.
    pub(crate) const fn add(self, pins: u64) -> Option<Self> {
        match self.count().checked_add(pins) {
            Some(count) if count <= COUNT_MASK => Some(Self((self.0 & !COUNT_MASK) | count)),
            _ => None,
        }
    }

    /// The entry with `pins` fewer pins, and by how many the count fell short.
    ///
    /// The count stops at zero; a shortfall other than 0 is a bug of whoever released the pins.
    pub(crate) const fn sub(self, pins: u64) -> (Self, u64) {
        let count = self.count();
        let taken = if pins < count { pins } else { count };

        (Self((self.0 & !COUNT_MASK) | (count - taken)), pins - taken)
    }
}
