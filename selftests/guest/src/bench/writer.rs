// SPDX-License-Identifier: GPL-2.0

//! How fast a process writes to files while most of the memory is pinned, and dirty for that: on the same
//! filesystem and on another one, beside no pins, beside pins, and beside as much memory that is locked, which
//! is as little of use to the page cache.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{ensure, Result};

use super::{report, report_end};
use crate::context::{create, Context};
use crate::device::Kind;
use crate::diag;
use crate::disk;
use crate::fs as filesystem;
use crate::layer::Layer;
use crate::ledger;
use crate::map::{Mapping, PAGE};
use crate::mounted::on_new_filesystem;
use crate::options::Options;
use crate::stamp::Stamp;
use crate::tests::common::Pinned;
use crate::vmstat;

/// What to measure.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// Write so many MiB each time
    #[arg(long, default_value_t = 200)]
    mebibytes: usize,
    /// Pin so many percent of the memory
    #[arg(long, default_value_t = 60)]
    percent: u64,
    /// Measure each so many times, by turns
    #[arg(long, default_value_t = 5)]
    rounds: u32,
}

const MIB: usize = 1 << 20;

/// Another filesystem of the same kind, on the second disk.
struct Other(PathBuf);

impl Other {
    fn new(options: &Options, size: u64) -> Result<Self> {
        let device = disk::second()?;
        let directory = options.work.join("other");
        fs::create_dir_all(&directory)?;
        let kind = filesystem::by_name(&options.fs)?;
        filesystem::run(&mut kind.mkfs(&device, size, &[]))?;
        filesystem::mount(&device, &directory, kind.name(), kind.mount_options())?;
        Ok(Self(directory))
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        filesystem::detach(&self.0);
    }
}

/// Prints the milliseconds of each round: where, and beside what.
pub fn run(arguments: &Arguments, options: &Options) -> Result<()> {
    on_new_filesystem(options, Layer::Disk, ["", ""], |context| {
        let other = Other::new(options, context.size())?;
        measure(arguments, context, &other.0)
    })
}

fn measure(arguments: &Arguments, context: &Context, other: &Path) -> Result<()> {
    let pinned = vmstat::memory("MemTotal")? / 100 * arguments.percent;
    let pinned = pinned / MIB as u64 * MIB as u64;
    diag!("{} MiB are pinned", pinned / MIB as u64);
    let mut times: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    let mut write_beside = |beside| -> Result<()> {
        for (place, directory) in [("same", context.root()), ("other", other.to_owned())] {
            let took = write(&directory.join("written"), arguments.mebibytes)?;
            diag!("{place} filesystem beside {beside}: {took:?}");
            times
                .entry(format!("{place}-{beside}"))
                .or_default()
                .push(took.as_millis() as u64);
        }
        Ok(())
    };
    for _ in 0..arguments.rounds {
        write_beside("nothing")?;
        let locked = Mapping::anonymous(pinned as usize)?;
        locked.lock()?;
        write_beside("locked")?;
        drop(locked);
        let pins = pin(context, pinned)?;
        write_beside("pins")?;
        pins.release()?;
        ledger::wait_until_empty(10)?;
    }
    for (case, times) in &times {
        report(case, "ms", times);
    }
    report_end();
    Ok(())
}

/// A file that a device may write to: dirty by being pinned. What the device would write takes memory of its own.
fn pin(context: &Context, len: u64) -> Result<Pinned> {
    let pinned = Pinned::sparse(context, Kind::Uring, "pinned", len)?;
    pinned.file.sync_all()?;
    let exempt = vmstat::number(vmstat::PINNED)? * PAGE as u64;
    ensure!(exempt == len, "{exempt} bytes are exempt, not {len}");
    Ok(pinned)
}

/// The time that writing a new file takes. Nothing is dirty before, but for pins.
fn write(path: &Path, mebibytes: usize) -> Result<Duration> {
    filesystem::sync();
    let chunk = Stamp::fresh().bytes(0, MIB);
    let file: File = create(path)?;
    let start = Instant::now();
    for nth in 0..mebibytes {
        file.write_all_at(&chunk, (nth * MIB) as u64)?;
    }
    let took = start.elapsed();
    fs::remove_file(path)?;
    Ok(took)
}
