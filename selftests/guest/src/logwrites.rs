// SPDX-License-Identifier: GPL-2.0

//! The log of dm-log-writes: every write to the device of [`Layer::LogWrites`], in the order in which they
//! became durable. The state after any number of its entries is one that a power cut could have left.
//!
//! The format is that of `drivers/md/dm-log-writes.c`: a superblock of one sector, then for each entry one
//! sector that describes it and the sectors that were written. Entries enter the log when a flush or FUA
//! completes, and marks enter it behind everything that was durable when they were set.
//!
//! [`Layer::LogWrites`]: crate::layer::Layer::LogWrites

use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};

use crate::disk::{RawDisk, Requests};
use crate::layer::{self, LOGGED};
use crate::map::PAGE;

const MAGIC: u64 = 0x6a_7366_7773_6872;
const VERSION: u64 = 1;

const FLUSH: u64 = 1 << 0;
const FUA: u64 = 1 << 1;
const DISCARD: u64 = 1 << 2;
const MARK: u64 = 1 << 3;

/// Bytes of a 512-byte sector, the unit of the target's status.
const STATUS_SECTOR: u64 = 512;
/// Size of `struct log_write_entry`.
const HEADER: usize = 32;
/// How long a mark may take to reach the log.
const SETTLE: Duration = Duration::from_secs(30);

/// Puts a mark into the log, behind everything that is durable now.
pub fn mark(name: &str) -> Result<()> {
    layer::dmsetup(&["message", LOGGED, "0", "mark", name]).map(|_| ())
}

/// What one entry did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Wrote the bytes that lie in this range of the log; empty for a flush alone.
    Write(Range<usize>),
    /// Gave up so many bytes.
    Discard(u64),
    /// Marked this point.
    Mark(String),
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where on the device, in bytes.
    pub position: u64,
    /// What was done there.
    pub action: Action,
    /// Came with a flush of the device's cache, or went past it: what is before it is durable.
    pub barrier: bool,
}

/// A log, in memory.
pub struct Log {
    bytes: Vec<u8>,
    /// The entries, oldest first.
    pub entries: Vec<Entry>,
}

impl Log {
    /// Reads the log of the target, which stays in use, up to the mark `last` at least.
    pub fn read(device: &Path, last: &str) -> Result<Self> {
        let disk = RawDisk::open(device)?;
        let end = Instant::now() + SETTLE;
        let mut complete = false;
        loop {
            wait_until_idle(device, end)?;
            let log = disk
                .read(0..used()?)
                .map_err(Into::into)
                .and_then(Self::parse);
            // The superblock counts an entry before the entry's own writes are complete; they are so when
            // the log's device was idle afterwards.
            match log {
                Ok(log) if complete => return Ok(log),
                Ok(log) => complete = log.marks().any(|(_, name)| name == last),
                Err(error) if complete || Instant::now() >= end => return Err(error),
                Err(_) => {}
            }
            ensure!(
                Instant::now() < end,
                "mark {last} did not reach the log of dm-log-writes"
            );
            if !complete {
                thread::sleep(Duration::from_millis(20));
            }
        }
    }

    /// Takes a log apart.
    pub fn parse(bytes: Vec<u8>) -> Result<Self> {
        ensure!(
            number(&bytes, 0)? == MAGIC && number(&bytes, 8)? == VERSION,
            "this is no log of dm-log-writes"
        );
        let count = number(&bytes, 16)?;
        let sector = (number(&bytes, 24)? & 0xffff_ffff) as usize;
        ensure!(
            sector >= 512 && sector.is_power_of_two(),
            "odd sectors of {sector} bytes in the log"
        );
        let mut entries = Vec::new();
        let mut at = sector;
        for index in 0..count {
            let entry = entry(&bytes, at, sector).with_context(|| format!("log entry {index}"))?;
            at += sector;
            if let Action::Write(data) = &entry.action {
                at = data.end;
            }
            entries.push(entry);
        }
        Ok(Self { bytes, entries })
    }

    /// A log of these entries, without their data.
    #[cfg(test)]
    pub fn of(entries: Vec<Entry>) -> Self {
        Self {
            bytes: Vec::new(),
            entries,
        }
    }

    /// The marks, and how many entries there are up to and with each.
    pub fn marks(&self) -> impl Iterator<Item = (usize, &str)> {
        self.entries
            .iter()
            .enumerate()
            .filter_map(|(index, entry)| match &entry.action {
                Action::Mark(name) => Some((index + 1, name.as_str())),
                _ => None,
            })
    }
}

fn number(bytes: &[u8], at: usize) -> Result<u64> {
    let field = bytes.get(at..at + 8).context("the log is cut short")?;
    Ok(u64::from_le_bytes(field.try_into()?))
}

fn entry(bytes: &[u8], at: usize, sector: usize) -> Result<Entry> {
    let position = number(bytes, at)? * sector as u64;
    let len = number(bytes, at + 8)? * sector as u64;
    let flags = number(bytes, at + 16)?;
    let inline = number(bytes, at + 24)? as usize;
    let action = if flags & MARK != 0 {
        ensure!(inline <= sector - HEADER, "a mark of {inline} bytes");
        let name = bytes
            .get(at + HEADER..at + HEADER + inline)
            .context("the log is cut short")?;
        Action::Mark(String::from_utf8_lossy(name).into_owned())
    } else if flags & DISCARD != 0 {
        Action::Discard(len)
    } else {
        let start = at + sector;
        let end = start + usize::try_from(len)?;
        ensure!(end <= bytes.len(), "the log is cut short");
        Action::Write(start..end)
    };
    Ok(Entry {
        position,
        action,
        barrier: flags & (FLUSH | FUA) != 0,
    })
}

/// Bytes of the log's device that are in use, whole pages.
fn used() -> Result<u64> {
    let status = layer::dmsetup(&["status", LOGGED])?;
    let mut words = status
        .split_whitespace()
        .skip_while(|word| *word != "log-writes")
        .skip(2);
    let last: u64 = words
        .next()
        .with_context(|| format!("odd status: {status}"))?
        .parse()?;
    if let Some(word) = words.next() {
        bail!("dm-log-writes: {word}: is its device full?");
    }
    Ok(((last + 1) * STATUS_SECTOR).next_multiple_of(PAGE as u64))
}

fn wait_until_idle(device: &Path, end: Instant) -> Result<()> {
    loop {
        if Requests::of(device)?.in_flight == 0 {
            return Ok(());
        }
        ensure!(Instant::now() < end, "{} is never idle", device.display());
        thread::sleep(Duration::from_millis(2));
    }
}

/// What was on the device after some of the log's entries. It only goes forward.
pub struct Image {
    bytes: Vec<u8>,
    /// The pages that were written.
    present: Vec<bool>,
    applied: usize,
}

impl Image {
    /// A device of `len` bytes, a multiple of the page size, that is all zeroes.
    pub fn new(len: u64) -> Self {
        Self {
            bytes: vec![0; len as usize],
            present: vec![false; len as usize / PAGE],
            applied: 0,
        }
    }

    /// Applies what follows, up to the first `point` entries of the log.
    pub fn replay(&mut self, log: &Log, point: usize) -> Result<()> {
        ensure!(point >= self.applied, "a replay does not go back");
        for (index, entry) in log.entries[..point].iter().enumerate().skip(self.applied) {
            self.apply(log, entry)
                .with_context(|| format!("log entry {index}"))?;
        }
        self.applied = point;
        Ok(())
    }

    fn apply(&mut self, log: &Log, entry: &Entry) -> Result<()> {
        let start = entry.position as usize;
        match &entry.action {
            Action::Mark(_) => {}
            Action::Write(data) if data.is_empty() => {}
            Action::Write(data) => {
                let end = start + data.len();
                let target = self.bytes.get_mut(start..end);
                target
                    .context("a write past the end of the device")?
                    .copy_from_slice(&log.bytes[data.clone()]);
                self.present[start / PAGE..end.div_ceil(PAGE)].fill(true);
            }
            Action::Discard(len) => {
                let target = self.bytes.get_mut(start..start + *len as usize);
                target
                    .context("a discard past the end of the device")?
                    .fill(0);
            }
        }
        Ok(())
    }

    /// Writes it to a new sparse file.
    pub fn write_to(&self, path: &Path) -> Result<()> {
        let _ = fs::remove_file(path);
        let file = File::create(path)?;
        file.set_len(self.bytes.len() as u64)?;
        let mut page = 0;
        while page < self.present.len() {
            let run = self.present[page..].iter().take_while(|p| **p).count();
            let bytes = &self.bytes[page * PAGE..(page + run) * PAGE];
            file.write_all_at(bytes, (page * PAGE) as u64)?;
            page += run.max(1);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECTOR: usize = 512;

    /// A log as the kernel would write it.
    struct Builder {
        bytes: Vec<u8>,
        count: u64,
    }

    impl Builder {
        fn new() -> Self {
            Self {
                bytes: vec![0; SECTOR],
                count: 0,
            }
        }

        fn entry(mut self, sector: u64, sectors: u64, flags: u64, inline: &[u8]) -> Self {
            let at = self.bytes.len();
            for number in [sector, sectors, flags, inline.len() as u64] {
                self.bytes.extend_from_slice(&number.to_le_bytes());
            }
            self.bytes.extend_from_slice(inline);
            self.bytes.resize(at + SECTOR, 0);
            self.count += 1;
            self
        }

        fn write(self, sector: u64, flags: u64, data: &[u8]) -> Self {
            let mut new = self.entry(sector, (data.len() / SECTOR) as u64, flags, &[]);
            new.bytes.extend_from_slice(data);
            new
        }

        fn finish(mut self) -> Vec<u8> {
            let head = [MAGIC, VERSION, self.count, SECTOR as u64];
            for (index, number) in head.into_iter().enumerate() {
                self.bytes[8 * index..8 * index + 8].copy_from_slice(&number.to_le_bytes());
            }
            self.bytes
        }
    }

    fn sample() -> Vec<u8> {
        Builder::new()
            .write(2, 0, &[1; 2 * SECTOR])
            .entry(0, 0, FLUSH, &[])
            .entry(0, 0, MARK, b"first")
            .write(3, FUA, &[2; SECTOR])
            .entry(2, 1, DISCARD, &[])
            .write(16, 0, &[3; SECTOR])
            .entry(0, 0, MARK, b"second")
            .finish()
    }

    #[test]
    fn entries_are_told_apart() {
        let log = Log::parse(sample()).unwrap();
        let barriers: Vec<bool> = log.entries.iter().map(|entry| entry.barrier).collect();
        assert_eq!(barriers, [false, true, false, true, false, false, false]);
        assert_eq!(log.entries[0].position, 1024);
        assert_eq!(log.entries[0].action, Action::Write(2 * SECTOR..4 * SECTOR));
        assert!(matches!(&log.entries[1].action, Action::Write(data) if data.is_empty()));
        assert_eq!(log.entries[4].action, Action::Discard(512));
        let marks: Vec<_> = log.marks().collect();
        assert_eq!(marks, [(3, "first"), (7, "second")]);
    }

    #[test]
    fn a_replay_stops_where_it_is_told() {
        let log = Log::parse(sample()).unwrap();
        let mut image = Image::new(4 * PAGE as u64);
        image.replay(&log, 0).unwrap();
        assert!(image.bytes.iter().all(|byte| *byte == 0));
        image.replay(&log, 3).unwrap();
        assert_eq!(image.bytes[1024..2048], [1; 1024]);
        image.replay(&log, 4).unwrap();
        assert_eq!(image.bytes[1024..1536], [1; 512]);
        assert_eq!(image.bytes[1536..2048], [2; 512]);
        image.replay(&log, 5).unwrap();
        assert_eq!(image.bytes[1024..1536], [0; 512]);
        assert_eq!(image.bytes[1536..2048], [2; 512]);
        image.replay(&log, 7).unwrap();
        assert_eq!(image.bytes[8192..8704], [3; 512]);
        assert_eq!(image.present, [true, false, true, false]);
        assert!(image.replay(&log, 3).is_err());
    }

    #[test]
    fn an_image_becomes_a_file() {
        let log = Log::parse(sample()).unwrap();
        let mut image = Image::new(4 * PAGE as u64);
        image.replay(&log, 7).unwrap();
        let path = std::env::temp_dir().join(format!("pinwb-image-{}", std::process::id()));
        image.write_to(&path).unwrap();
        let bytes = fs::read(&path);
        let _ = fs::remove_file(&path);
        assert_eq!(bytes.unwrap(), image.bytes);
    }

    #[test]
    fn damage_is_noticed() {
        assert!(Log::parse(vec![0; 4096]).is_err());
        let mut short = sample();
        short.truncate(3 * SECTOR);
        assert!(Log::parse(short).is_err());
        let log = Log::parse(sample()).unwrap();
        assert!(Image::new(PAGE as u64).replay(&log, 7).is_err());
    }
}
