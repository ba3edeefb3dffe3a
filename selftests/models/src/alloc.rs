// SPDX-License-Identifier: GPL-2.0

//! Stand-in for `kernel::alloc`.

/// No memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AllocError;

/// Allocation flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flags(u32);

impl Flags {
    /// Whether all of `flags` are set.
    pub fn contains(self, flags: Flags) -> bool {
        self.0 & flags.0 == flags.0
    }
}

impl core::ops::BitOr for Flags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// The flags that occur.
pub mod flags {
    use super::Flags;

    /// May sleep.
    pub const GFP_KERNEL: Flags = Flags(1);
    /// May not sleep.
    pub const GFP_NOWAIT: Flags = Flags(8);
    /// Zeroed memory.
    pub const __GFP_ZERO: Flags = Flags(2);
    /// No message on failure.
    pub const __GFP_NOWARN: Flags = Flags(4);
}
