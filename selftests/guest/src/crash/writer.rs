// SPDX-License-Identifier: GPL-2.0

//! A file of the books, and what writes to it through pins.

use std::fs;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use anyhow::{bail, Result};

use super::model::{File, Manner, Round};
use super::recorder::{Id, Recorder};
use crate::context::Context;
use crate::device::{Dma, Kind};
use crate::ledger;
use crate::map::{Mapping, PAGE};
use crate::stamp::{Stamp, SECTOR};

/// What writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Source {
    /// READ_FIXED into registered buffers.
    Uring,
    /// RDMA.
    Verbs,
    /// Stores of the CPU and no pin at all, to tell what is not for pinned writeback to answer for.
    Stores,
}

/// The CPU in the place of a device.
struct Stores(Mapping);

impl Dma for Stores {
    fn write(&mut self, stamp: Stamp, range: Range<u64>) -> Result<()> {
        let bytes = stamp.bytes(range.start, (range.end - range.start) as usize);
        self.0.store(range.start as usize, &bytes);
        Ok(())
    }

    fn unpin(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

/// An open file whose pages are pinned in pieces.
pub struct Target<'a> {
    recorder: &'a Recorder,
    source: Source,
    /// Its place in the books.
    pub id: Id,
    /// The file.
    pub file: fs::File,
    /// All of it, and what it may grow into.
    pub map: Mapping,
    stamp: Stamp,
    pins: Vec<(Range<u64>, Box<dyn Dma>)>,
    round: Round,
}

/// A stamp that tells a file from the others of the run.
pub fn fresh_stamp(name: &str) -> Stamp {
    let salt = name
        .bytes()
        .fold(0u32, |sum, byte| sum.wrapping_mul(31) + u32::from(byte));
    let stamp = Stamp::fresh();
    Stamp {
        file: (stamp.file ^ salt) & 0xf_ffff,
        ..stamp
    }
}

impl<'a> Target<'a> {
    /// Creates a file of `size` bytes, all hole, that never gets longer than `capacity`.
    pub fn create(
        context: &Context,
        recorder: &'a Recorder,
        source: Source,
        name: &str,
        size: u64,
        capacity: u64,
        manner: Manner,
    ) -> Result<Self> {
        let stamp = fresh_stamp(name);
        let id = recorder.add(File::new(name, stamp, capacity, manner));
        recorder.note(id, |file| {
            file.create();
            file.resize(size);
        });
        let file = context.sparse(name, size)?;
        Self::new(recorder, source, id, file, stamp, capacity, 0)
    }

    /// Creates a file that is in the books already and was removed, to go on after `round`.
    #[allow(clippy::too_many_arguments)]
    pub fn reopen(
        context: &Context,
        recorder: &'a Recorder,
        source: Source,
        id: Id,
        name: &str,
        stamp: Stamp,
        size: u64,
        round: Round,
    ) -> Result<Self> {
        recorder.note(id, |file| {
            file.create();
            file.resize(size);
        });
        let file = context.sparse(name, size)?;
        Self::new(recorder, source, id, file, stamp, size, round)
    }

    fn new(
        recorder: &'a Recorder,
        source: Source,
        id: Id,
        file: fs::File,
        stamp: Stamp,
        capacity: u64,
        round: Round,
    ) -> Result<Self> {
        Ok(Self {
            recorder,
            source,
            id,
            map: Mapping::shared(&file, 0, capacity as usize)?,
            file,
            stamp,
            pins: Vec::new(),
            round,
        })
    }

    /// Bytes of the file.
    pub fn size(&self) -> Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Pins the pages from the one at `start` to the last of the file.
    pub fn pin_from(&mut self, start: u64) -> Result<()> {
        let page = PAGE as u64;
        let range = start / page * page..self.size()?.next_multiple_of(page);
        if range.is_empty() {
            return Ok(());
        }
        let pin: Box<dyn Dma> = match self.source {
            Source::Uring => Kind::Uring.attach(&self.map, range.clone())?,
            Source::Verbs => Kind::Verbs.attach(&self.map, range.clone())?,
            Source::Stores => Box::new(Stores(Mapping::shared(&self.file, 0, self.map.len())?)),
        };
        self.pins.push((range, pin));
        Ok(())
    }

    /// Unpins everything.
    pub fn unpin(&mut self) -> Result<()> {
        for (_, pin) in self.pins.drain(..) {
            pin.unpin()?;
        }
        Ok(())
    }

    /// Unpins everything and pins the whole file as it is now.
    pub fn pin_again(&mut self) -> Result<()> {
        self.unpin()?;
        self.pin_from(0)
    }

    /// Pieces of the file whose pages are pinned and have not left it.
    pub fn attached(&self) -> Result<Vec<Range<u64>>> {
        let size = self.size()?;
        if self.source == Source::Stores {
            let clipped = |range: &Range<u64>| range.start..range.end.min(size);
            let pieces = self.pins.iter().map(|(range, _)| clipped(range));
            return Ok(pieces.filter(|piece| !piece.is_empty()).collect());
        }
        let mut pieces: Vec<Range<u64>> = Vec::new();
        for folio in ledger::folios_of(&self.file)? {
            let Some((_, _, index)) = folio.place else {
                continue;
            };
            let start = index * PAGE as u64;
            let end = start + folio.pages * PAGE as u64;
            for (pinned, _) in &self.pins {
                let piece = start.max(pinned.start)..end.min(pinned.end).min(size);
                match pieces.last_mut() {
                    Some(last) if !piece.is_empty() && last.end == piece.start => {
                        last.end = piece.end;
                    }
                    _ if !piece.is_empty() => pieces.push(piece),
                    _ => {}
                }
            }
        }
        Ok(pieces)
    }

    /// The last round.
    pub fn round(&self) -> Round {
        self.round
    }

    /// The device writes one more round to `range`, all of which is pinned.
    pub fn write(&mut self, range: Range<u64>) -> Result<()> {
        self.round += 1;
        let (round, stamp) = (self.round, self.stamp.round(self.round.into()));
        self.recorder
            .note(self.id, |file| file.begin(range.clone(), round));
        let mut written = 0;
        for (pinned, pin) in &mut self.pins {
            let part = range.start.max(pinned.start)..range.end.min(pinned.end);
            if !part.is_empty() {
                written += part.end - part.start;
                pin.write(stamp, part)?;
            }
        }
        if written != range.end - range.start {
            bail!("{written} bytes of {range:?} are pinned");
        }
        self.recorder
            .note(self.id, |file| file.complete(range, round));
        Ok(())
    }

    /// One more round, by write(2).
    pub fn write_by_call(&mut self, range: Range<u64>) -> Result<()> {
        self.round += 1;
        let (round, stamp) = (self.round, self.stamp.round(self.round.into()));
        self.recorder
            .note(self.id, |file| file.begin(range.clone(), round));
        let bytes = stamp.bytes(range.start, (range.end - range.start) as usize);
        self.file.write_all_at(&bytes, range.start)?;
        self.recorder
            .note(self.id, |file| file.complete(range, round));
        Ok(())
    }

    /// Changes the file's size.
    pub fn resize(&mut self, size: u64) -> Result<()> {
        debug_assert!(size % SECTOR as u64 == 0);
        self.recorder.note(self.id, |file| file.resize(size));
        Ok(self.file.set_len(size)?)
    }

    /// Punches a hole.
    pub fn punch(&mut self, range: Range<u64>) -> Result<()> {
        self.recorder.note(self.id, |file| file.zero(range.clone()));
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        Ok(crate::tests::common::fallocate(&self.file, mode, range)?)
    }
}
