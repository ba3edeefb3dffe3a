// SPDX-License-Identifier: GPL-2.0

//! Does the steps of a history, to files and to their models.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use anyhow::{bail, Result};

use super::mismatch::{fail, mismatch, supported, Kind};
use super::model::{Model, Pin, PinnedPage};
use super::op::{Op, Step, SyncCall, FILE_MAX, IO_MAX, SLOTS};
use super::subject::{read_all, Handles, Subject};
use super::tally::Tally;
use crate::context::{self, Context};
use crate::fs as filesystem;
use crate::ledger;
use crate::map::{Mapping, PAGE};
use crate::pagemap::{PageFlags, COMPOUND};
use crate::stamp::SECTOR;
use crate::tests::common::fallocate;
use crate::uring::{self, BufferTable};

/// The bytes that all steps write: each takes its part of them, so that what is found where it should not
/// be has a different value nearly everywhere.
pub struct Pattern {
    bytes: Vec<u8>,
    /// The same bytes, for devices to read from.
    source: File,
}

impl Pattern {
    /// Where a step's bytes may start.
    pub const STARTS: u64 = 4 << 20;

    /// The same bytes each time.
    pub fn new() -> Result<Self> {
        let mut bytes = vec![0; (Self::STARTS + IO_MAX) as usize];
        fastrand::Rng::with_seed(1).fill(&mut bytes);
        let source = uring::memory_file(c"pinwb-pattern")?;
        source.write_all_at(&bytes, 0)?;
        Ok(Self { bytes, source })
    }

    fn at(&self, start: u64, len: u64) -> &[u8] {
        &self.bytes[start as usize..(start + len) as usize]
    }
}

/// What is left of a file while it is closed.
pub struct Parked {
    name: String,
    model: Model,
    bases: [usize; SLOTS],
}
/// A few files, a ring, and the models.
pub struct Worker<'a> {
    context: &'a Context,
    pattern: &'a Pattern,
    prefix: String,
    subjects: Vec<Subject>,
    ring: BufferTable,
    flags: PageFlags,
    aligned: Mapping,
    buffer: Vec<u8>,
    /// What was done so far.
    pub tally: Tally,
}

impl<'a> Worker<'a> {
    /// New files, whose names begin with `prefix`.
    pub fn new(
        context: &'a Context,
        pattern: &'a Pattern,
        prefix: &str,
        files: usize,
    ) -> Result<Self> {
        let mut worker = Self {
            context,
            pattern,
            prefix: prefix.to_owned(),
            subjects: Vec::new(),
            ring: BufferTable::new((files * SLOTS) as u32)?,
            flags: PageFlags::open()?,
            aligned: Mapping::anonymous(IO_MAX as usize)?,
            buffer: Vec::new(),
            tally: Tally::default(),
        };
        for file in 0..files {
            let name = format!("{prefix}{file}");
            // What a failure left is another file, and may be pinned still.
            let _ = fs::remove_file(context.path(&name));
            context::create(&context.path(&name))?;
            worker.subjects.push(Subject {
                handles: Handles::open(&context.path(&name))?,
                name,
                model: Model::new(SLOTS),
                bases: [0; SLOTS],
                clone: None,
            });
        }
        Ok(worker)
    }

    /// Number of files.
    pub fn files(&self) -> usize {
        self.subjects.len()
    }

    /// What a file should be.
    pub fn model(&self, file: usize) -> &Model {
        &self.subjects[file].model
    }

    /// True if a file is mapped.
    pub fn is_mapped(&self, file: usize) -> bool {
        self.subjects[file].handles.map.is_some()
    }

    /// Does one step. Returns whether there was anything to do.
    pub fn apply(&mut self, step: &Step) -> Result<bool> {
        if step.file >= self.subjects.len() {
            bail!("a history for more than {} files", self.subjects.len());
        }
        let start = Instant::now();
        let done = self.dispatch(step)?;
        if done {
            let count = self.tally.counts.entry(step.op.name()).or_default();
            count.steps += 1;
            count.time += start.elapsed();
        }
        Ok(done)
    }

    fn dispatch(&mut self, step: &Step) -> Result<bool> {
        let file = step.file;
        let pattern = self.pattern;
        let subject = &mut self.subjects[file];
        let handles = &mut subject.handles;
        let model = &mut subject.model;
        match step.op {
            Op::Dma {
                slot,
                at,
                len,
                data,
            } => {
                let Some(pin) = model.pins()[slot].as_ref() else {
                    return Ok(false);
                };
                let range = pin.range();
                let (start, end) = (at.max(range.start), range.end.min(at + len));
                if start >= end {
                    return Ok(false);
                }
                let address = subject.bases[slot] + (start - range.start) as usize;
                let slot_of_ring = (file * SLOTS + slot) as u32;
                let len = end - start;
                self.ring
                    .write(slot_of_ring, address, len as u32, &pattern.source, data)?;
                if !pin.pages.iter().all(|page| page.in_file) {
                    self.tally.orphaned_dma += 1;
                }
                model.dma(slot, start, pattern.at(data, len));
            }
            Op::Store { at, len, data } => {
                let end = model.len_in_pages().min(at + len);
                let (Some(map), true) = (&handles.map, at < end) else {
                    return Ok(false);
                };
                let bytes = pattern.at(data, end - at);
                map.store(at as usize, bytes);
                model.store(at, bytes);
            }
            Op::Write { at, len, data } => {
                let bytes = pattern.at(data, len);
                fail(handles.file.write_all_at(bytes, at), "write")?;
                model.write(at, bytes);
            }
            Op::WriteDirect { at, len, data } => {
                let bytes = pattern.at(data, len);
                self.aligned.store(0, bytes);
                let written = self.aligned.write_to(&handles.direct, len as usize, at);
                if fail(written, "direct write")? != len as usize {
                    return mismatch(Kind::Error, format!("short direct write of {len} at {at}"));
                }
                model.write(at, bytes);
            }
            Op::Read { at, len } => {
                let end = model.len().min(at + len);
                self.buffer.resize(len as usize, 0);
                let found = fail(handles.file.read_at(&mut self.buffer, at), "read")?;
                let expected = subject
                    .model
                    .bytes()
                    .get(at as usize..end as usize)
                    .unwrap_or(&[]);
                subject.compare(Kind::Memory, "read", at, expected, &self.buffer[..found])?;
            }
            Op::ReadDirect { at, mut len } => {
                if !self.context.kind().reads_directly_past_eof() {
                    let rest = model.len().saturating_sub(at);
                    len = len.min(rest.next_multiple_of(SECTOR as u64));
                }
                let end = model.len().min(at + len);
                let read = self.aligned.read_from(&handles.direct, len as usize, at);
                let found = self.aligned.load(0, fail(read, "direct read")?);
                let expected = subject
                    .model
                    .bytes()
                    .get(at as usize..end as usize)
                    .unwrap_or(&[]);
                subject.compare(Kind::Memory, "read directly", at, expected, &found)?;
            }
            Op::Truncate { len } => {
                fail(handles.file.set_len(len), "truncate")?;
                let old = model.len();
                model.resize(len);
                if len <= old {
                    subject.cut(len..u64::MAX)?;
                }
            }
            Op::Allocate { at, len, keep_size } => {
                let mode = keep(keep_size);
                if !supported(fallocate(&handles.file, mode, at..at + len), "fallocate")? {
                    return Ok(false);
                }
                if !keep_size && at + len > model.len() {
                    model.resize(at + len);
                }
            }
            Op::Punch { at, len } => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                if !supported(fallocate(&handles.file, mode, at..at + len), "punch")? {
                    return Ok(false);
                }
                model.zero(at..at + len);
                let end = model.len().min(at + len);
                subject.cut(at..end)?;
            }
            Op::Zero { at, len, keep_size } => {
                let mode = libc::FALLOC_FL_ZERO_RANGE | keep(keep_size);
                if !supported(fallocate(&handles.file, mode, at..at + len), "zero range")? {
                    return Ok(false);
                }
                model.zero(at..at + len);
                let end = model.len().min(at + len);
                if !keep_size && at + len > model.len() {
                    model.resize(at + len);
                }
                subject.cut(at..end)?;
            }
            Op::Collapse { at, len } => {
                if at + len >= model.len() {
                    return Ok(false);
                }
                let mode = libc::FALLOC_FL_COLLAPSE_RANGE;
                if subject.shift(mode, at, len, "collapse")? {
                    subject.model.collapse(at..at + len);
                }
            }
            Op::Insert { at, len } => {
                if at >= model.len() || model.len() + len > FILE_MAX {
                    return Ok(false);
                }
                let mode = libc::FALLOC_FL_INSERT_RANGE;
                if subject.shift(mode, at, len, "insert")? {
                    subject.model.insert(at, len);
                }
            }
            Op::Map { random } => {
                let map = fail(Mapping::shared(&handles.file, 0, FILE_MAX as usize), "mmap")?;
                if random {
                    map.advise_random();
                }
                handles.map = Some(map);
            }
            Op::Unmap => return Ok(handles.map.take().is_some()),
            Op::Pin { slot, at, len } => return self.pin(file, slot, at, len),
            Op::Unpin { slot } => {
                if model.pins()[slot].is_none() {
                    return Ok(false);
                }
                fail(self.ring.unpin((file * SLOTS + slot) as u32), "unpin")?;
                model.unpin(slot);
            }
            Op::Forget { at, len } => {
                let fd = handles.file.as_raw_fd();
                // SAFETY: the descriptor is open.
                let error = unsafe {
                    libc::posix_fadvise(fd, at as i64, len as i64, libc::POSIX_FADV_DONTNEED)
                };
                if error != 0 {
                    return mismatch(Kind::Error, format!("fadvise: errno {error}"));
                }
            }
            Op::DropCaches => filesystem::drop_caches()?,
            Op::Clone => return self.clone(file),
            Op::Sync { how } => self.sync_and_compare(file, how)?,
            Op::Replace => {
                let path = self.context.path(&subject.name);
                fail(fs::remove_file(&path), "unlink")?;
                context::create(&path)?;
                subject.handles = Handles::open(&path)?;
                subject.model.resize(0);
                subject.model.orphan_all();
            }
            Op::Freeze => self.freeze()?,
            Op::PowerCut { how } => {
                self.sync_all(how)?;
                power_cut(self.context, &[self])?;
            }
            Op::Remount { keep_pins } => {
                remount(self.context, std::slice::from_mut(self), keep_pins)?;
            }
        }
        Ok(true)
    }

    fn pin(&mut self, file: usize, slot: usize, at: u64, len: u64) -> Result<bool> {
        let subject = &mut self.subjects[file];
        let page = PAGE as u64;
        let start = at / page * page;
        let end = subject.model.len_in_pages().min(at + len);
        let end = end.next_multiple_of(page);
        let Some(map) = &subject.handles.map else {
            return Ok(false);
        };
        if start >= end || subject.model.pins()[slot].is_some() {
            return Ok(false);
        }
        let slot_of_ring = (file * SLOTS + slot) as u32;
        fail(self.ring.pin(slot_of_ring, map, start..end), "pin")?;
        let frames = self.flags.frames(map, start as usize..end as usize)?;
        let mut folios = None;
        let mut pages = Vec::new();
        for (index, frame) in (start / page..).zip(frames) {
            let folio = if self.flags.of_frame(frame)? & COMPOUND == 0 {
                index..index + 1
            } else {
                if folios.is_none() {
                    folios = Some(ledger::folios_of(&subject.handles.file)?);
                }
                let found = folios.iter().flatten().find_map(|folio| {
                    let (_, _, index) = folio.place?;
                    (folio.frame..folio.frame + folio.pages)
                        .contains(&frame)
                        .then_some(index..index + folio.pages)
                });
                match found {
                    Some(folio) => folio,
                    None => {
                        let text = format!("page {index} was pinned, and is not in the ledger");
                        return mismatch(Kind::Ledger, text);
                    }
                }
            };
            pages.push(PinnedPage {
                frame,
                folio,
                in_file: true,
            });
        }
        subject.bases[slot] = map.address() + start as usize;
        let first = start / page;
        subject.model.pin(slot, Pin { first, pages });
        Ok(true)
    }

    fn clone(&mut self, file: usize) -> Result<bool> {
        let path = self.context.path(&format!("{}.clone", self.prefix));
        let clone = context::create(&path)?;
        let subject = &mut self.subjects[file];
        let done = filesystem::clone_file(&subject.handles.file, &clone);
        fs::remove_file(&path)?;
        if !supported(done, "clone")? {
            return Ok(false);
        }
        fail(clone.sync_all(), "fsync of a clone")?;
        subject.clone = Some((clone, subject.model.bytes().to_vec()));
        subject.compare_clone(self.context)?;
        Ok(true)
    }

    fn compare(&mut self, file: usize) -> Result<()> {
        let subject = &self.subjects[file];
        subject.compare_disk(self.context)?;
        subject.compare_clone(self.context)?;
        subject.compare_ledger()?;
        self.tally.compared += 1;
        Ok(())
    }

    fn sync_and_compare(&mut self, file: usize, how: SyncCall) -> Result<()> {
        let subject = &self.subjects[file];
        subject.compare_memory(&mut self.buffer)?;
        subject.sync(how)?;
        if matches!(how, SyncCall::Sync | SyncCall::Syncfs) {
            (0..self.subjects.len()).try_for_each(|file| self.compare(file))
        } else {
            self.compare(file)
        }
    }

    /// Syncs and compares all files.
    pub fn sync_all(&mut self, how: SyncCall) -> Result<()> {
        (0..self.subjects.len()).try_for_each(|file| self.sync_and_compare(file, how))
    }

    fn freeze(&mut self) -> Result<()> {
        let compared = filesystem::while_frozen(&self.context.root(), || {
            (0..self.subjects.len()).try_for_each(|file| self.compare(file))
        });
        fail(compared, "freeze or thaw")?
    }

    /// Closes all files. Pins are dropped, or go on to pages of no file when the filesystem is unmounted.
    fn park(&mut self, keep_pins: bool) -> Result<Vec<Parked>> {
        let mut parked = Vec::new();
        for (file, subject) in self.subjects.drain(..).enumerate() {
            let mut model = subject.model;
            if !keep_pins {
                for slot in 0..SLOTS {
                    if model.pins()[slot].is_some() {
                        fail(self.ring.unpin((file * SLOTS + slot) as u32), "unpin")?;
                        model.unpin(slot);
                    }
                }
            }
            parked.push(Parked {
                name: subject.name,
                model,
                bases: subject.bases,
            });
        }
        Ok(parked)
    }

    fn unpark(&mut self, parked: Vec<Parked>) -> Result<()> {
        for Parked {
            name,
            mut model,
            bases,
        } in parked
        {
            model.orphan_all();
            let subject = Subject {
                handles: Handles::open(&self.context.path(&name))?,
                name,
                model,
                bases,
                clone: None,
            };
            read_all(&subject.handles.file, &mut self.buffer)?;
            subject.compare(
                Kind::Remount,
                "after a remount",
                0,
                subject.model.bytes(),
                &self.buffer,
            )?;
            self.subjects.push(subject);
        }
        Ok(())
    }

    /// Drops the pins and the files, in this order or the other.
    pub fn finish(self, pins_first: bool) -> Result<Tally> {
        let Self {
            context,
            subjects,
            ring,
            tally,
            ..
        } = self;
        let kept = (!pins_first).then_some(ring);
        for subject in &subjects {
            fs::remove_file(context.path(&subject.name))?;
        }
        drop(subjects);
        drop(kept);
        Ok(tally)
    }
}

fn keep(keep_size: bool) -> i32 {
    match keep_size {
        true => libc::FALLOC_FL_KEEP_SIZE,
        false => 0,
    }
}

/// Images the disk as after a power cut and compares all files in the image. All must have been synced.
pub fn power_cut(context: &Context, workers: &[&Worker<'_>]) -> Result<()> {
    let mut buffer = Vec::new();
    context.after_power_cut(|directory| {
        for subject in workers.iter().flat_map(|worker| &worker.subjects) {
            let file = fail(
                File::open(directory.join(&subject.name)),
                "after a power cut",
            )?;
            read_all(&file, &mut buffer)?;
            subject.compare(
                Kind::Remount,
                "after a power cut",
                0,
                subject.model.bytes(),
                &buffer,
            )?;
        }
        Ok(())
    })
}

/// Unmounts, checks and mounts the filesystem, and compares all files.
pub fn remount(context: &Context, workers: &mut [Worker<'_>], keep_pins: bool) -> Result<()> {
    let parked = workers
        .iter_mut()
        .map(|worker| worker.park(keep_pins))
        .collect::<Result<Vec<_>>>()?;
    context.remount_checked()?;
    for (worker, parked) in workers.iter_mut().zip(parked) {
        worker.unpark(parked)?;
    }
    Ok(())
}
