// SPDX-License-Identifier: GPL-2.0

//! How long fsync(2) of a small file takes while another one on the same filesystem is written to and
//! synced all the time: by a device that has it pinned, or by write(2) of what the same device stored to
//! memory of its own, which is how it is done without pins of files.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{ensure, Result};

use super::{report, report_end};
use crate::beside::beside_steps;
use crate::context::{create, Context};
use crate::diag;
use crate::layer::Layer;
use crate::map::{Mapping, PAGE};
use crate::mounted::on_new_filesystem;
use crate::options::Options;
use crate::stamp::Stamp;
use crate::uring::{memory_file, Uring};

/// What to measure.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// Sync for so many seconds in each turn
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Turns of each
    #[arg(long, default_value_t = 7)]
    turns: u32,
}

/// What is measured beside.
#[derive(Clone, Copy, Debug)]
enum Beside {
    Nothing,
    Pins,
}

impl Beside {
    const ALL: [Self; 2] = [Beside::Nothing, Beside::Pins];

    /// In the names of cases.
    fn name(self) -> &'static str {
        match self {
            Beside::Nothing => "nothing",
            Beside::Pins => "pins",
        }
    }
}

const LOAD: u64 = 8 << 20;
/// From one round of the load to the next.
const PERIOD: Duration = Duration::from_millis(200);
/// From one sync to the next, if it does not take longer.
const PAUSE: Duration = Duration::from_millis(5);

/// Prints the median and the 99th percentile of each turn, in microseconds.
pub fn run(arguments: &Arguments, options: &Options) -> Result<()> {
    on_new_filesystem(options, Layer::Disk, ["", ""], |context| {
        measure(arguments, context)
    })
}

fn measure(arguments: &Arguments, context: &Context) -> Result<()> {
    let load = |name| context.written(name, LOAD, Stamp::fresh(), LOAD as usize);
    // A file each: that one was pinned is remembered.
    let (pinned, never_pinned) = (load("pinned")?, load("never pinned")?);
    let other = create(&context.path("other"))?;
    let mut sides = Beside::ALL.map(|beside| (beside, [vec![], vec![]]));
    let time = Duration::from_secs(arguments.seconds);
    for _ in 0..arguments.turns {
        for (side, [p50, p99]) in &mut sides {
            let mut times = match side {
                Beside::Pins => beside_pins(&pinned, || syncs(&other, time))?,
                Beside::Nothing => beside_writes(&never_pinned, || syncs(&other, time))?,
            };
            times.sort();
            diag!("{} syncs beside {}", times.len(), side.name());
            p50.push(times[times.len() / 2]);
            p99.push(times[times.len() * 99 / 100]);
        }
    }
    for (side, [p50, p99]) in &sides {
        report(side.name(), "p50", p50);
        report(side.name(), "p99", p99);
    }
    report_end();
    Ok(())
}

/// Microseconds of each fsync that there is time for.
fn syncs(file: &File, time: Duration) -> Result<Vec<u64>> {
    let mut times = Vec::new();
    let end = Instant::now() + time;
    while Instant::now() < end {
        file.write_all_at(&[times.len() as u8; PAGE], 0)?;
        let start = Instant::now();
        file.sync_all()?;
        let took = start.elapsed();
        times.push(took.as_micros() as u64);
        thread::sleep(PAUSE.saturating_sub(took));
    }
    Ok(times)
}

/// A device, and two versions of what it stores. Those are made beforehand: to store takes no more of the
/// CPUs than it must where the device is the kernel.
struct Device {
    uring: Uring,
    versions: [File; 2],
}

impl Device {
    fn register(map: &Mapping) -> Result<Self> {
        let stamp = Stamp::fresh();
        let version = |round| -> Result<File> {
            let version = memory_file(c"version")?;
            version.write_all_at(&stamp.round(round).bytes(0, LOAD as usize), 0)?;
            Ok(version)
        };
        Ok(Self {
            uring: Uring::register(map, 0..LOAD)?,
            versions: [version(0)?, version(1)?],
        })
    }

    /// Stores the version that was not stored last.
    fn store(&mut self) -> Result<()> {
        self.versions.swap(0, 1);
        self.uring.read_from(&self.versions[0], 0, 0..LOAD)
    }

    fn unpin(self) -> Result<()> {
        Ok(self.uring.unpin()?)
    }
}

/// A device stores to pinned pages of the file.
fn beside_pins<T>(file: &File, body: impl FnOnce() -> Result<T>) -> Result<T> {
    let map = Mapping::shared(file, 0, LOAD as usize)?;
    let mut device = Device::register(&map)?;
    let done = while_loading(file, || device.store(), body)?;
    device.unpin()?;
    file.sync_all()?;
    Ok(done)
}

/// The same device stores to memory of no file, which is then written to the file by write(2).
fn beside_writes<T>(file: &File, body: impl FnOnce() -> Result<T>) -> Result<T> {
    // The length keeps it off the boundary of a huge page, where the file's folios are. QEMU's TLB has room for
    // one of two pages at the same place in them: copies from one to the other would take twenty times as long.
    let map = Mapping::anonymous(LOAD as usize + PAGE)?;
    let mut device = Device::register(&map)?;
    let write = || {
        device.store()?;
        let written = map.write_to(file, LOAD as usize, 0)?;
        ensure!(written as u64 == LOAD, "short write of {written} bytes");
        Ok(())
    };
    let done = while_loading(file, write, body)?;
    device.unpin()?;
    Ok(done)
}

/// Writes and syncs the file, at a steady pace, while `body` runs.
fn while_loading<T>(
    file: &File,
    mut write: impl FnMut() -> Result<()> + Send,
    body: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let load = || {
        let next = Instant::now() + PERIOD;
        write()?;
        file.sync_all()?;
        thread::sleep(next.saturating_duration_since(Instant::now()));
        Ok(())
    };
    let start = Instant::now();
    let (done, rounds) = beside_steps(load, body)?;
    diag!("{rounds} rounds in {:?}", start.elapsed());
    Ok(done)
}
