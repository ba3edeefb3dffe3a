// SPDX-License-Identifier: GPL-2.0

//! Pins for tests that are shell scripts.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use anyhow::{anyhow, bail, Context as _, Result};
use clap::Args;

use crate::context::expect_contents;
use crate::device::{errno, write_until, Dma};
use crate::map::Mapping;
use crate::stamp::{self, Stamp, SECTOR};
use crate::uring::Uring;

/// Every file of these tests has this number, so that what one process wrote another one can check.
const FILE: u32 = 0x9_1b1b;

/// A range of a file, in bytes.
#[derive(Args, Debug)]
pub struct Place {
    /// The file
    file: PathBuf,
    /// Where the range starts
    #[arg(default_value_t = 0)]
    offset: u64,
    /// How long it is [default: to the end of the file]
    len: Option<u64>,
}

impl Place {
    fn range(&self, file: &File) -> Result<Range<u64>> {
        let end = match self.len {
            Some(len) => self.offset + len,
            None => file.metadata()?.len(),
        };
        match self.offset % 8 == 0 && self.offset < end {
            true => Ok(self.offset..end),
            false => bail!("bytes {}..{end} are no range to pin", self.offset),
        }
    }
}

fn stamp(round: u32) -> Stamp {
    Stamp { file: FILE, round }
}

/// Registers a range with an io_uring and obeys standard input. A line each is answered:
///
/// - `dma ROUND [OFFSET LEN]` writes through the pins;
/// - `start` writes through them without a pause, until `stop`;
/// - `unpin` releases them.
///
/// Says `pinned` first, or `refused ERRNO` and ends. At the end of input all is released.
pub fn pin(place: &Place) -> Result<()> {
    let file = open(&place.file)?;
    let range = place.range(&file)?;
    // The device counts from the start of the file, so all of it is mapped.
    let map = Mapping::shared(&file, 0, range.end as usize)?;
    let ring = match Uring::register(&map, range.clone()) {
        Ok(ring) => ring,
        Err(error) => {
            let Some(number) = errno(&error) else {
                return Err(error);
            };
            println!("refused {number}");
            return Ok(());
        }
    };
    // Neither may keep the filesystem busy.
    drop((map, file));
    let mut pins = Pins {
        range,
        ring: Some(ring),
        writer: None,
    };
    say("pinned")?;
    for line in io::stdin().lock().lines() {
        match pins.obey(&line?) {
            Ok(()) => say("ok")?,
            Err(error) => say(&format!("error: {error:#}"))?,
        }
    }
    Ok(())
}

/// What a process holds, and does with it.
struct Pins {
    range: Range<u64>,
    /// The writer has it while there is one.
    ring: Option<Uring>,
    writer: Option<Writer>,
}

struct Writer {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(Uring, Result<u32>)>,
}

impl Pins {
    fn obey(&mut self, line: &str) -> Result<()> {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["unpin"] => Box::new(self.take()?).unpin(),
            ["dma", round] => self.write(round.parse()?, self.range.clone()),
            ["dma", round, offset, len] => {
                let offset: u64 = offset.parse()?;
                self.write(round.parse()?, offset..offset + len.parse::<u64>()?)
            }
            ["start"] => self.start(),
            ["stop"] => self.stop(),
            _ => bail!("what is {line:?}?"),
        }
    }

    fn take(&mut self) -> Result<Uring> {
        self.ring.take().context("not pinned, or writing")
    }

    fn write(&mut self, round: u32, range: Range<u64>) -> Result<()> {
        let ring = self.ring.as_mut().context("not pinned, or writing")?;
        ring.write(stamp(round), range)
    }

    fn start(&mut self) -> Result<()> {
        let mut ring = self.take()?;
        let stop = Arc::new(AtomicBool::new(false));
        let (seen, range) = (Arc::clone(&stop), self.range.clone());
        let thread = thread::spawn(move || {
            let last = write_until(&mut ring, &seen, stamp(0), range);
            (ring, last)
        });
        self.writer = Some(Writer { stop, thread });
        Ok(())
    }

    fn stop(&mut self) -> Result<()> {
        let writer = self.writer.take().context("nothing is writing")?;
        writer.stop.store(true, Ordering::Release);
        let joined = writer.thread.join();
        let (ring, last) = joined.map_err(|_| anyhow!("the writer panicked"))?;
        self.ring = Some(ring);
        last.map(drop)
    }
}

fn say(line: &str) -> io::Result<()> {
    let mut output = io::stdout();
    writeln!(output, "{line}")?;
    output.flush()
}

fn open(path: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .with_context(|| format!("cannot open {}", path.display()))
}

/// Fails unless a range of a file reads as a round wrote it. With `or_zero`, sectors may be zeroes instead:
/// pages that were cut off from the file with their device still writing are either.
pub fn verify(place: &Place, round: u32, or_zero: bool) -> Result<()> {
    let file =
        File::open(&place.file).with_context(|| format!("cannot open {}", place.file.display()))?;
    let range = place.range(&file)?;
    if !or_zero {
        return expect_contents(&file, range, stamp(round));
    }
    let mut found = vec![0; (range.end - range.start) as usize];
    file.read_exact_at(&mut found, range.start)?;
    let mut expected = stamp(round).bytes(range.start, found.len());
    for (expected, found) in expected.chunks_mut(SECTOR).zip(found.chunks(SECTOR)) {
        if found.iter().all(|byte| *byte == 0) {
            expected.fill(0);
        }
    }
    let difference = stamp::compare(&expected, &found, range.start, stamp(round));
    match difference.sectors {
        0 => Ok(()),
        sectors => bail!("{sectors} sectors:\n{}", difference.notes.join("\n")),
    }
}

/// Writes a round to a file by write(2).
pub fn fill(place: &Place, round: u32) -> Result<()> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&place.file)?;
    let range = place.range(&file)?;
    let bytes = stamp(round).bytes(range.start, (range.end - range.start) as usize);
    Ok(file.write_all_at(&bytes, range.start)?)
}
