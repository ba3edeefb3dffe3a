// SPDX-License-Identifier: GPL-2.0

//! What was done, how often, and how long it took.

use std::collections::BTreeMap;
use std::time::Duration;

/// Steps of one name.
#[derive(Clone, Copy, Debug, Default)]
pub struct Count {
    /// How many.
    pub steps: u64,
    /// How long all of them took.
    pub time: Duration,
}

/// What was done and looked at.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Steps that did something, by name.
    pub counts: BTreeMap<&'static str, Count>,
    /// Files compared with the disk after a sync.
    pub compared: u64,
    /// Bytes that devices wrote to pages of no file.
    pub orphaned_dma: u64,
}

impl Tally {
    /// All steps.
    pub fn total(&self) -> u64 {
        self.counts.values().map(|count| count.steps).sum()
    }

    /// Steps of that name.
    pub fn steps(&self, name: &str) -> u64 {
        self.counts.get(name).map_or(0, |count| count.steps)
    }

    /// Adds another one.
    pub fn add(&mut self, other: &Tally) {
        for (name, count) in &other.counts {
            let sum = self.counts.entry(name).or_default();
            sum.steps += count.steps;
            sum.time += count.time;
        }
        self.compared += other.compared;
        self.orphaned_dma += other.orphaned_dma;
    }
}
