// SPDX-License-Identifier: GPL-2.0

//! Counts of instructions, user and kernel together.
//!
//! QEMU's `-icount shift=0` moves the guest's clock by a nanosecond for each instruction that the
//! guest executes, and the time stamp counter ticks at 1 GHz. So the difference of two readings is
//! the number of instructions between them, of every thread, on the one CPU that the guest has; and
//! the microseconds that the kernel's own benchmark reads off its clock are thousands of them.
//! Nothing here waits for a device: ram disks complete I/O before they return.

use std::arch::x86_64::_rdtsc;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use clap::Args;
use nix::sys::mman::{mlockall, MlockAllFlags};

use crate::gup::{self, Area, Call};
use crate::{file, report, report_end};

/// More than a timer tick: each write then finds a time of modification that has passed.
const PAUSE: Duration = Duration::from_millis(8);
/// Rounds that are not counted, while caches and slabs fill.
const WARM_UP: u32 = 8;
const PLACE: &str = "/tmp/pinwb-bench";
const HUGE_PAGE: usize = 2 << 20;

#[derive(Args)]
pub struct Options {
    /// Rounds of a write and fsync
    #[arg(long, default_value_t = 100)]
    writes: u32,
    /// Rounds of each way to pin
    #[arg(long, default_value_t = 10)]
    repeats: u32,
    /// MiB that each round pins
    #[arg(long, default_value_t = 32)]
    mebibytes: usize,
}

/// Runs all cases.
pub fn run(options: &Options) -> Result<()> {
    let place = Path::new(PLACE);
    let ext4 = set_up()?;
    writes(&ext4, "write-rewrite", options.writes, |_| 0)?;
    writes(&ext4, "write-append", options.writes, |round| {
        u64::from(round) * gup::PAGE as u64
    })?;
    pins(place, &ext4, options)?;
    report_end();
    Ok(())
}

/// Sees to it that what is counted is the kernel's work for the case; mounts an ext4, whose place it
/// returns.
pub fn set_up() -> Result<PathBuf> {
    mlockall(MlockAllFlags::MCL_CURRENT).context("mlockall")?;
    clock_counts_instructions()?;
    file::no_background_writeback()?;
    let ext4 = Path::new(PLACE).join("ext4");
    file::mount_ext4(&ext4)?;
    Ok(ext4)
}

/// Fails if the clock is none that counts instructions: how many a round of a known loop takes is
/// known well enough, and a real clock's reading isn't a multiple of the number of rounds.
fn clock_counts_instructions() -> Result<()> {
    const ROUNDS: u64 = 1_000_000;

    let start = now();
    let mut round = 0;
    while round < ROUNDS {
        round = std::hint::black_box(round + 1);
    }
    let per_round = (now() - start) as f64 / ROUNDS as f64;
    // Timer interrupts are in it as well.
    ensure!(
        (1.0..20.0).contains(&per_round) && per_round.fract() < 0.05,
        "{per_round} ticks for a round of a few instructions: is QEMU running with -icount shift=0?"
    );
    Ok(())
}

fn now() -> u64 {
    // SAFETY: every x86-64 CPU has the instruction, and the kernel lets us use it.
    unsafe { _rdtsc() }
}

/// One buffered write of a page and an fsync, at the offset that each round asks for.
pub fn writes(dir: &Path, case: &str, rounds: u32, offset: impl Fn(u32) -> u64) -> Result<()> {
    measure_writes(dir, case, rounds, |file, page, round| {
        file.write_all_at(page, offset(round))
    })
}

/// The same pages of a file in each round, by a write(2) each, and one fsync.
pub fn rewrite_many(dir: &Path, case: &str, rounds: u32, pages: u64) -> Result<()> {
    measure_writes(dir, case, rounds, |file, page, _| {
        (0..pages).try_for_each(|index| file.write_all_at(page, index * gup::PAGE as u64))
    })
}

fn measure_writes(
    dir: &Path,
    case: &str,
    rounds: u32,
    write: impl Fn(&File, &[u8], u32) -> io::Result<()>,
) -> Result<()> {
    let file = File::create(dir.join(case)).with_context(|| format!("create {case}"))?;
    let page = [0x5a; gup::PAGE];
    let mut counts = Vec::new();
    for round in 0..WARM_UP + rounds {
        thread::sleep(PAUSE);
        let start = now();
        write(&file, &page, round)?;
        file.sync_all()?;
        let count = now() - start;
        if round >= WARM_UP {
            counts.push(count);
        }
    }
    report(case, "instructions", &counts);
    Ok(())
}

/// All ways to pin anonymous memory.
pub fn anonymous(len: usize, repeats: u32) -> Result<()> {
    let anonymous = Area::anonymous(len)?;
    for (case, call) in [
        ("get_user_pages", Call::Get),
        ("get_user_pages_fast", Call::GetFast),
        ("pin_user_pages", Call::Pin),
        ("pin_user_pages_fast", Call::PinFast),
        ("longterm-anon", Call::PinLongterm),
    ] {
        anonymous
            .measure(call, true, repeats)
            .and_then(|series| series.report(case))
            .context(case)?;
    }
    Ok(())
}

fn pins(place: &Path, ext4: &Path, options: &Options) -> Result<()> {
    let len = options.mebibytes << 20;
    anonymous(len, options.repeats)?;
    for (size, chunk, huge) in [("4k", gup::PAGE, "never"), ("2m", HUGE_PAGE, "always")] {
        let shmem = place.join(format!("shmem-{size}"));
        file::mount_virtual("tmpfs", &shmem, &format!("huge={huge},size=50%"))?;
        let in_shmem = file::written(shmem.join("file"), len, chunk)?;
        let in_ext4 = file::written(ext4.join(format!("file-{size}")), len, chunk)?;

        let longterm = |case: &str, path: &Path, write: bool| -> Result<()> {
            let case = format!("{case}-{size}");
            Area::shared(path, len)?
                .measure(Call::PinLongterm, write, options.repeats)
                .and_then(|series| series.report(&case))
                .with_context(|| case.clone())
        };
        longterm("longterm-shmem", &in_shmem, true)?;
        longterm("longterm-ext4-read", &in_ext4, false)?;
        if file::has_pinwb() {
            longterm("longterm-ext4", &in_ext4, true)?;
        }
        for path in [in_shmem, in_ext4] {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}
