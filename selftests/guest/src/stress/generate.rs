// SPDX-License-Identifier: GPL-2.0

//! Makes histories up, step by step, from a seed and from what the files are like by then.

use fastrand::Rng;

use super::op::{Op, Step, SyncCall, FILE_MAX, IO_MAX, SLOTS};
use super::worker::{Pattern, Worker};
use crate::map::PAGE;

const BLOCK: u64 = PAGE as u64;

/// A seeded source of steps.
pub struct Generator {
    rng: Rng,
    /// Names of steps that are never taken.
    without: Vec<String>,
    /// Nobody else uses the filesystem: it may be frozen and unmounted.
    alone: bool,
}

type Make = fn(&mut Generator, &Worker<'_>, usize) -> Op;

/// How often each kind of step is taken, in parts of their sum.
const WEIGHTS: &[(u32, Make)] = &[
    (320, Generator::dma),
    (130, Generator::store),
    (120, Generator::write),
    (25, Generator::write_direct),
    (90, Generator::read),
    (10, Generator::read_direct),
    (75, Generator::pin),
    (50, Generator::unpin),
    (45, Generator::truncate),
    (35, Generator::punch),
    (25, Generator::zero),
    (25, Generator::allocate),
    (6, Generator::collapse),
    (6, Generator::insert),
    (10, Generator::map),
    (4, |_, _, _| Op::Unmap),
    (12, Generator::forget),
    (1, |_, _, _| Op::DropCaches),
    (1, |_, _, _| Op::Clone),
    (1, |_, _, _| Op::Replace),
    (7, Generator::sync),
    (1, Generator::rare),
];

impl Generator {
    /// A generator whose steps depend on these and on the files alone.
    pub fn new(seed: u64, alone: bool, without: Vec<String>) -> Self {
        Self {
            rng: Rng::with_seed(seed),
            without,
            alone,
        }
    }

    /// The next step.
    pub fn step(&mut self, worker: &Worker<'_>) -> Step {
        const TRIES: usize = 100;
        for _ in 0..TRIES {
            let step = self.any_step(worker);
            if !self.without.iter().any(|name| name == step.op.name()) {
                return step;
            }
        }
        Step {
            file: 0,
            op: Op::DropCaches,
        }
    }

    fn any_step(&mut self, worker: &Worker<'_>) -> Step {
        let file = self.rng.usize(0..worker.files());
        let op = if worker.model(file).len() == 0 {
            self.write(worker, file)
        } else if !worker.is_mapped(file) && self.rng.u8(0..4) == 0 {
            self.map(worker, file)
        } else {
            let sum = WEIGHTS.iter().map(|(weight, _)| weight).sum();
            let mut left = self.rng.u32(0..sum);
            let chosen = WEIGHTS
                .iter()
                .find(|(weight, _)| match left.checked_sub(*weight) {
                    Some(rest) => {
                        left = rest;
                        false
                    }
                    None => true,
                });
            match chosen {
                Some((_, make)) => make(self, worker, file),
                None => Op::DropCaches,
            }
        };
        Step { file, op }
    }

    fn data(&mut self) -> u64 {
        self.rng.u64(0..Pattern::STARTS)
    }

    /// A length, short ones more often than long ones.
    fn len(&mut self, most: u64) -> u64 {
        let most = match self.rng.u8(0..8) {
            0..=2 => most.min(600),
            3..=5 => most.min(BLOCK + 100),
            6 => most.min(4 * BLOCK),
            _ => most,
        };
        self.rng.u64(1..=most)
    }

    /// Somewhere below `end`, often at a border of something.
    fn place(&mut self, end: u64) -> u64 {
        let at = self.rng.u64(0..end);
        match self.rng.u8(0..6) {
            0 => at / BLOCK * BLOCK,
            1 => at / 1024 * 1024,
            2 => (at / BLOCK * BLOCK + BLOCK)
                .saturating_sub(self.rng.u64(1..9))
                .min(end - 1),
            _ => at,
        }
    }

    /// A range that starts in the file and may reach beyond its end.
    fn range(&mut self, worker: &Worker<'_>, file: usize, most: u64) -> (u64, u64) {
        let end = worker.model(file).len().max(1);
        let at = self.place(end);
        let len = match self.rng.u8(0..4) {
            // From border to border.
            0 => (self.len(most) / 1024 * 1024).max(1024),
            1 => (self.len(most) / BLOCK * BLOCK).max(BLOCK),
            _ => self.len(most),
        };
        (at, len.min(FILE_MAX - at))
    }

    /// As [`Generator::range`], now and then beyond the end of the file.
    fn range_to_grow(&mut self, worker: &Worker<'_>, file: usize) -> (u64, u64) {
        let (at, len) = self.range(worker, file, IO_MAX);
        if self.rng.u8(0..8) != 0 {
            return (at, len);
        }
        let end = worker.model(file).len();
        let at = (end + self.rng.u64(0..2 * BLOCK)).min(FILE_MAX - 1);
        (at, len.min(FILE_MAX - at))
    }

    fn dma(&mut self, worker: &Worker<'_>, file: usize) -> Op {
        let pins = worker.model(file).pins();
        let taken: Vec<usize> = (0..SLOTS).filter(|slot| pins[*slot].is_some()).collect();
        let Some(&slot) = self.rng.choice(&taken) else {
            return self.pin(worker, file);
        };
        let range = pins[slot].as_ref().map_or(0..1, |pin| pin.range());
        let at = range.start + self.place(range.end - range.start);
        let len = self.len(4 * BLOCK).min(range.end - at);
        let data = self.data();
        Op::Dma {
            slot,
            at,
            len,
            data,
        }
    }

    fn store(&mut self, worker: &Worker<'_>, file: usize) -> Op {
        let (end, data) = (worker.model(file).len_in_pages().max(1), self.data());
        let at = self.place(end);
        let len = self.len(2 * BLOCK).min(end - at);
        Op::Store { at, len, data }
    }

    fn write(&mut self, worker: &Worker<'_>, file: usize) -> Op {
        let data = self.data();
        let (at, len) = self.range_to_grow(worker, file);
        Op::Write { at, len, data }
    }

    fn direct_range(&mut self, worker: &Worker<'_>, file: usize) -> (u64, u64) {
        let align = *self
            .rng
            .choice(&[512, 1024, BLOCK, BLOCK])
            .unwrap_or(&BLOCK);
        let (at, len) = self.range_to_grow(worker, file);
        let at = at / align * align;
        (
            at,
            len.next_multiple_of(align).min(IO_MAX).min(FILE_MAX - at),
        )
    }

    fn write_direct(&mut self, worker: &Worker<'_>, file: usize) -> Op {
        let data = self.data();
        let (at, len) = self.direct_range(worker, file);
        Op::WriteDirect { at, len, data }
    }

    fn read(&mut self, worker: &Worker<'_>, file: usize) -> Op {
        let (at, len) = self.range(worker, file, 4 * BLOCK);
        Op::Read { at, len }
    }

    fn read_direct(&mut self, worker: &Worker<'_>, file: usize) -> Op {
        let (at, len) = self.direct_range(worker, file);
        Op::ReadDirect { at, len }
    }

    fn pin(&mut self, worker: &Worker<'_>, file: usize) -> Op {
        if !worker.is_mapped(file) {
            return self.map(worker, file);
        }
        let pins = worker.model(file).pins();
        let free: Vec<usize> = (0..SLOTS).filter(|slot| pins[*slot].is_none()).collect();
        let Some(&slot) = self.rng.choice(&free) else {
            return self.unpin(worker, file);
        };
        let (at, len) = self.range(worker, file, 8 * BLOCK);
        Op::Pin { slot, at, len }
    }

    fn unpin(&mut self, worker: &Worker<'_>, file: usize) -> Op {
        let pins = worker.model(file).pins();
        let taken: Vec<usize> = (0..SLOTS).filter(|slot| pins[*slot].is_some()).collect();
        match self.rng.choice(&taken) {
            Some(&slot) => Op::Unpin { slot },
            None => self.read(worker, file),
        }
    }

    fn truncate(&mut self, worker: &Worker<'_>, file: usize) -> Op {
        let len = worker.model(file).len();
        // Near the end more often than not, so that files keep some length.
        let len = match self.rng.u8(0..8) {
            0 => self.place(FILE_MAX),
            1..=3 => len.saturating_sub(self.len(2 * BLOCK)),
            4 => (len / BLOCK * BLOCK).saturating_sub(BLOCK),
            _ => (len + self.len(3 * BLOCK)).min(FILE_MAX),
        };
        Op::Truncate { len }
    }

    fn allocate(&mut self, worker: &Worker<'_>, file: usize) -> Op {
        let keep_size = self.rng.bool();
        let (at, len) = self.range_to_grow(worker, file);
        Op::Allocate { at, len, keep_size }
    }

    fn punch(&mut self, worker: &Worker<'_>, file: usize) -> Op {
        let (at, len) = self.range(worker, file, IO_MAX);
        Op::Punch { at, len }
    }

    fn zero(&mut self, worker: &Worker<'_>, file: usize) -> Op {
        let keep_size = self.rng.bool();
        let (at, len) = self.range_to_grow(worker, file);
        Op::Zero { at, len, keep_size }
    }

    fn blocks(&mut self, worker: &Worker<'_>, file: usize) -> (u64, u64) {
        let (at, len) = self.range(worker, file, 4 * BLOCK);
        (at / BLOCK * BLOCK, len.next_multiple_of(BLOCK))
    }

    fn collapse(&mut self, worker: &Worker<'_>, file: usize) -> Op {
        let (at, len) = self.blocks(worker, file);
        Op::Collapse { at, len }
    }

    fn insert(&mut self, worker: &Worker<'_>, file: usize) -> Op {
        let (at, len) = self.blocks(worker, file);
        Op::Insert { at, len }
    }

    fn map(&mut self, _: &Worker<'_>, _: usize) -> Op {
        Op::Map {
            random: self.rng.bool(),
        }
    }

    fn forget(&mut self, worker: &Worker<'_>, file: usize) -> Op {
        let (at, len) = match self.rng.bool() {
            true => (0, FILE_MAX),
            false => self.range(worker, file, IO_MAX),
        };
        Op::Forget { at, len }
    }

    fn how(&mut self) -> SyncCall {
        *self.rng.choice(&SyncCall::ALL).unwrap_or(&SyncCall::Fsync)
    }

    fn sync(&mut self, _: &Worker<'_>, _: usize) -> Op {
        Op::Sync { how: self.how() }
    }

    /// What stops the whole filesystem.
    fn rare(&mut self, worker: &Worker<'_>, file: usize) -> Op {
        // Images and checks take as long as a thousand other steps.
        if !self.alone || self.rng.u8(0..4) != 0 {
            return self.sync(worker, file);
        }
        match self.rng.u8(0..8) {
            0..=3 => Op::Freeze,
            4 | 5 => Op::PowerCut { how: self.how() },
            _ => Op::Remount {
                keep_pins: self.rng.bool(),
            },
        }
    }
}
