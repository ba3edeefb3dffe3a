// SPDX-License-Identifier: GPL-2.0

//! Times of `gup_test -L` in a UML kernel, which runs natively: the kernel's code at the speed of
//! the machine, but one CPU, no huge pages, and page tables of its own.

use std::ffi::OsStr;
use std::fs;
use std::io::stdout;
use std::path::{Path, PathBuf};

use anyhow::{ensure, Context, Result};
use clap::Args;
use nix::sys::reboot::{reboot, RebootMode};
use nix::sys::termios::tcdrain;

use crate::{file, gup, report_end, Series};

/// On a device filesystem, because the root is the host's, and read-only.
const PLACE: &str = "/dev/pinwb-bench";

#[derive(Args)]
pub struct Options {
    /// The kernel's selftest
    #[arg(long)]
    gup_test: PathBuf,
    /// How often all cases are gone through: what else the machine does comes and goes by the
    /// second, and is to hit some values of each case instead of all of one
    #[arg(long, default_value_t = 5)]
    passes: u32,
    /// Rounds of each case in one pass
    #[arg(long, default_value_t = 8)]
    repeats: u32,
    /// MiB that each round pins
    #[arg(long, default_value_t = 64)]
    mebibytes: usize,
    /// What UML adds to its command line, after ours
    #[arg(last = true, hide = true)]
    _of_the_kernel: Vec<String>,
}

/// Where filesystems are mounted.
pub fn place() -> &'static Path {
    Path::new(PLACE)
}

/// Measures, with what PID 1 has to mount, and powers off if this is PID 1.
pub fn run(measure: impl FnOnce() -> Result<()>) -> Result<()> {
    let result = prepare().and_then(|()| measure());
    if std::process::id() == 1 {
        if let Err(error) = &result {
            println!("bench\terror\t{error:#}");
        }
        let _ = tcdrain(stdout());
        let _ = reboot(RebootMode::RB_POWER_OFF);
    }
    result
}

fn prepare() -> Result<()> {
    for (fstype, at) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("debugfs", "/sys/kernel/debug"),
    ] {
        file::mount_virtual(fstype, Path::new(at), "")?;
    }
    file::no_background_writeback()
}

/// Runs all cases.
pub fn measure(options: &Options) -> Result<()> {
    let len = options.mebibytes << 20;
    let place = place();
    let (shmem, ext4) = (place.join("shmem"), place.join("ext4"));
    file::mount_virtual("tmpfs", &shmem, "size=50%")?;
    file::mount_ext4(&ext4)?;
    let in_shmem = file::written(shmem.join("file"), len, gup::PAGE)?;
    let in_ext4 = file::written(ext4.join("file"), len, gup::PAGE)?;

    let mut cases: Vec<(&str, Vec<&OsStr>)> = vec![
        ("anon", vec![OsStr::new("-w")]),
        ("shmem", shared("-w", &in_shmem)),
        // Pins that the subsystem has nothing to do with, over the same kind of folios.
        ("ext4-read", shared("-W", &in_ext4)),
    ];
    let mut all = time(options, &cases)?;
    if file::has_pinwb() {
        ensure!(
            file::dirty_bytes()? >= len as u64,
            "the file is not dirty in full"
        );
        cases = vec![
            ("ext4", shared("-w", &in_ext4)),
            // Once there is something in the ledger, releasing a pin means a look at each page.
            ("anon-after", vec![OsStr::new("-w")]),
        ];
        all.extend(time(options, &cases)?);
        let pages = (len / gup::PAGE) as u64;
        all_counted_and_forgotten(u64::from(options.passes * options.repeats) * pages)?;
    }
    for (case, series) in all {
        series.report(case)?;
    }
    report_end();
    Ok(())
}

/// Arguments of `gup_test` for a shared mapping.
fn shared<'a>(write: &'a str, path: &'a Path) -> Vec<&'a OsStr> {
    vec![
        OsStr::new(write),
        OsStr::new("-S"),
        OsStr::new("-f"),
        path.as_os_str(),
    ]
}

fn time<'a>(options: &Options, cases: &[(&'a str, Vec<&OsStr>)]) -> Result<Vec<(&'a str, Series)>> {
    let mut all: Vec<(&str, Series)> = Vec::new();
    all.extend(cases.iter().map(|(case, _)| (*case, Series::default())));
    for _ in 0..options.passes {
        for ((_, series), (case, more)) in all.iter_mut().zip(cases) {
            let pass = gup::program(&options.gup_test, options.mebibytes, options.repeats, more)
                .with_context(|| case.to_string())?;
            series.extend(pass);
        }
    }
    Ok(all)
}

/// What was timed is what it is said to be: as many pins as asked for, and none left.
fn all_counted_and_forgotten(pins: u64) -> Result<()> {
    let text = fs::read_to_string("/sys/kernel/debug/pinwb/stats").context("read stats")?;
    let value = |name: &str| {
        text.lines()
            .filter_map(|line| line.split_once(' '))
            .find_map(|(key, value)| (key == name).then_some(value))
    };
    let (left, total) = (value("pins"), value("pins_total"));
    ensure!(
        left == Some("0") && total == Some(&pins.to_string()),
        "{pins} pins were taken and released, but the kernel says:\n{text}"
    );
    Ok(())
}
