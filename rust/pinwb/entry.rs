// SPDX-License-Identifier: GPL-2.0

//! The arithmetic of one ledger entry.
//!
//! Nothing here touches shared memory: [`Entry`] is a plain value, and `ledger.rs` applies these
//! steps with compare-and-exchange. This file has no dependency on the kernel.

/// What the ledger knows of one folio, packed into 64 bits.
///
/// ```text
///  63               32 31                0
/// +------+--------+---+-------------------+
/// | zero |H owner |W N| writable pins     |
/// +------+--------+---+-------------------+
/// ```
///
/// The owner is the process that took the first of the pins, for messages: 0 if there are none, or
/// if the process is unknown. N and W say that the folio is in the counters of what is exempt from
/// the dirty limits, see `linux/pinwb.h`: the node's and the memcg's, and the `bdi_writeback`'s. H
/// says that there are hashes of what was written last, see `unchanged.rs`. Arithmetic on the count
/// never carries into the upper half.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry(u64);

/// Mask of the count of writable long-term pins.
const COUNT_MASK: u64 = u32::MAX as u64;

impl Entry {
    /// The folio is counted in `NR_FILE_PINNED`.
    pub(crate) const IN_NODE: u64 = 1 << 32;
    /// The folio is counted in `WB_PINNED`.
    pub(crate) const IN_WB: u64 = 1 << 33;
    const EXEMPT: u64 = Self::IN_NODE | Self::IN_WB;
    /// Where the owner begins: 22 bits, which is what `PID_MAX_LIMIT` needs.
    pub(crate) const OWNER_SHIFT: u32 = 34;
    const OWNER: u64 = ((1 << 22) - 1) << Self::OWNER_SHIFT;
    const HASHED: u64 = 1 << 56;

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

    /// The process that took the first of the pins, or 0.
    pub(crate) const fn owner(self) -> u32 {
        // CAST: It has 22 bits.
        ((self.0 & Self::OWNER) >> Self::OWNER_SHIFT) as u32
    }

    /// The entry with `pins` more pins, or [`None`] if the count has no room for them. If they are
    /// the first, `owner` is who takes them.
    pub(crate) const fn add(self, pins: u64, owner: u32) -> Option<Self> {
        let mut flags = self.0 & !COUNT_MASK;

        if self.count() == 0 {
            flags = (flags & !Self::OWNER) | (((owner as u64) << Self::OWNER_SHIFT) & Self::OWNER);
        }
        match self.count().checked_add(pins) {
            Some(count) if count <= COUNT_MASK => Some(Self(flags | count)),
            _ => None,
        }
    }

    /// The entry with `pins` fewer pins, and by how many the count fell short.
    ///
    /// The count stops at zero; a shortfall other than 0 is a bug of whoever released the pins. A
    /// folio without pins is not in `NR_FILE_PINNED`, has no owner, and is not hashed.
    pub(crate) const fn sub(self, pins: u64) -> (Self, u64) {
        let count = self.count();
        let taken = if pins < count { pins } else { count };
        let mut flags = self.0 & !COUNT_MASK;

        if taken == count {
            flags &= !(Self::IN_NODE | Self::OWNER | Self::HASHED);
        }
        (Self(flags | (count - taken)), pins - taken)
    }

    /// Which of the counters of exempt folios the folio is in: `IN_NODE`, `IN_WB`.
    pub(crate) const fn exempt_bits(self) -> u64 {
        self.0 & Self::EXEMPT
    }

    /// The entry of a folio that is dirty for its pins, if it has any.
    pub(crate) const fn exempt(self) -> Self {
        if self.count() == 0 {
            return self;
        }
        Self(self.0 | Self::EXEMPT)
    }

    /// Are there hashes of what was written last?
    pub(crate) const fn is_hashed(self) -> bool {
        self.0 & Self::HASHED != 0
    }

    /// The entry of a folio with hashes, if it has pins.
    pub(crate) const fn hashed(self) -> Self {
        if self.count() == 0 {
            return self;
        }
        Self(self.0 | Self::HASHED)
    }

    /// The entry of a folio without.
    pub(crate) const fn not_hashed(self) -> Self {
        Self(self.0 & !Self::HASHED)
    }

    /// The entry of a folio that is not exempt.
    pub(crate) const fn not_exempt(self) -> Self {
        Self(self.0 & !Self::EXEMPT)
    }
}
