// SPDX-License-Identifier: GPL-2.0

//! Choices that a seed determines.

use std::ops::Range;

use fastrand::Rng;

/// A generator.
pub struct Random(Rng);

impl Random {
    /// The generator of that seed.
    pub fn new(seed: u64) -> Self {
        Self(Rng::with_seed(seed))
    }

    /// A number below `limit`, which is not 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0.u64(..limit)
    }

    /// True once in `times`.
    pub fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// A number of the range, which is not empty.
    pub fn within(&mut self, range: Range<u64>) -> u64 {
        self.0.u64(range)
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
        &of[self.0.usize(..of.len())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
