// SPDX-License-Identifier: GPL-2.0

//! Numbers that a seed determines: SplitMix64.

use std::ops::Range;

/// A generator.
pub struct Random(u64);

impl Random {
    /// The generator of that seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    }

    /// A number below `limit`, which is not 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// True once in `times`.
    pub fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// A number of the range, which is not empty.
    pub fn within(&mut self, range: Range<u64>) -> u64 {
        range.start + self.below(range.end - range.start)
    }

    /// A stretch of `range` whose ends are multiples of `unit`, as those of `range` are, and at most
    /// `longest` bytes.
    pub fn stretch(&mut self, range: Range<u64>, unit: u64, longest: u64) -> Range<u64> {
        let units = (range.end - range.start) / unit;
        let len = 1 + self.below(units.min(longest / unit));
        let start = range.start + self.below(units - len + 1) * unit;
        start..start + len * unit
    }

    /// One of them.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len() as u64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_says_it_all() {
        let numbers = |seed| {
            let mut random = Random::new(seed);
            [random.below(1000), random.below(1000), random.below(1000)]
        };
        assert_eq!(numbers(1), numbers(1));
        assert_ne!(numbers(1), numbers(2));
    }

    #[test]
    fn a_stretch_stays_inside() {
        let mut random = Random::new(7);
        for _ in 0..1000 {
            let stretch = random.stretch(4096..16_384, 512, 4096);
            assert!(stretch.start >= 4096 && stretch.end <= 16_384);
            assert!(stretch.start < stretch.end && stretch.end - stretch.start <= 4096);
            assert!(stretch.start % 512 == 0 && stretch.end % 512 == 0);
        }
    }
}
