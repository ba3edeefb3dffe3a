// SPDX-License-Identifier: GPL-2.0

//! Tests of pinned writeback. They run as root inside a guest of the kernel under test, pin pages of
//! mapped files by means of real devices (io_uring, RDMA), and compare what those devices wrote with what
//! is on the raw disk.

mod bench;
mod beside;
mod btrfs;
mod cgroup;
mod context;
mod crash;
mod demo;
mod device;
mod disk;
mod fs;
mod holder;
mod inject;
mod kmsg;
mod layer;
mod ledger;
mod logwrites;
mod map;
mod mounted;
mod numa;
mod options;
mod pagemap;
mod pin;
mod pinstorm;
mod restart;
mod snapshot;
mod soak;
mod stamp;
mod stress;
mod tap;
mod tasks;
mod tests;
mod uring;
mod verbs;
mod vmstat;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};

use crate::bench::{latency, reclaim, writer};
use crate::layer::Layer;
use crate::mounted::on_new_filesystem;
use crate::options::Options;

/// Tests of pinned writeback, for the inside of a guest
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Print every test: name, the invariants that it proves, what it fails without, and `once` if it
    /// doesn't depend on how the filesystem was made; separated by tabs
    List {
        /// Print the tables of Documentation/testing.rst instead
        #[arg(long)]
        rst: bool,
    },
    /// Run tests and print TAP
    Run {
        /// Only tests whose name contains this; may be given more than once
        #[arg(long)]
        filter: Vec<String>,
        /// Leave out tests that don't depend on how the filesystem is made and mounted
        #[arg(long)]
        dependent: bool,
        #[command(flatten)]
        options: Options,
    },
    /// RDMA into a mapped file while fsync runs, with a summary
    Demo {
        /// Print the summary as one line of JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        options: Options,
    },
    /// Cut the power at many points of a workload that is logged, and look at what is left
    Crash {
        #[command(flatten)]
        crash: crash::Arguments,
        #[command(flatten)]
        options: Options,
    },
    /// A device that never stops under syncs, scrubs and snapshots
    Soak {
        #[command(flatten)]
        soak: soak::Arguments,
        #[command(flatten)]
        options: Options,
    },
    /// Time that fsync takes beside a device that writes to another file
    Latency {
        #[command(flatten)]
        latency: latency::Arguments,
        #[command(flatten)]
        options: Options,
    },
    /// What reclaim does to a control group half of whose memory is pinned
    Reclaim {
        #[command(flatten)]
        reclaim: reclaim::Arguments,
        #[command(flatten)]
        options: Options,
    },
    /// Time that it takes to write files while most of the memory is pinned
    Writer {
        #[command(flatten)]
        writer: writer::Arguments,
        #[command(flatten)]
        options: Options,
    },
    /// Restart the machine while a device writes to pinned pages
    Restart {
        #[command(flatten)]
        restart: restart::Arguments,
        #[command(flatten)]
        options: Options,
    },
    /// Random histories of pinned files against a model
    Stress {
        #[command(flatten)]
        stress: stress::Arguments,
        #[command(flatten)]
        options: Options,
    },
    /// Run one test here, on a filesystem that is mounted already
    #[command(hide = true)]
    One {
        name: String,
        #[command(flatten)]
        options: Options,
        #[arg(long)]
        device: Option<PathBuf>,
        #[arg(long)]
        raw: Option<PathBuf>,
        #[arg(long, default_value_t = 0)]
        device_size: u64,
        #[arg(long, default_value = "")]
        mounted_with: String,
    },
    /// The sending side of an RDMA test; orders come from standard input
    #[command(hide = true)]
    VerbsPeer,
    /// Pin random ranges of other programs' files until killed
    Pinstorm {
        #[command(flatten)]
        options: pinstorm::Options,
    },
    /// Pin a range of a file, and write through the pins as standard input says
    Pin {
        #[command(flatten)]
        place: pin::Place,
    },
    /// Write what a round of `pin` would
    Fill {
        round: u32,
        #[command(flatten)]
        place: pin::Place,
    },
    /// Compare a range of a file with what a round of `pin` wrote
    Verify {
        /// A sector may also be all zeroes
        #[arg(long)]
        or_zero: bool,
        round: u32,
        #[command(flatten)]
        place: pin::Place,
    },
    /// Register a mapped file and wait to be killed
    #[command(hide = true)]
    HoldPins(holder::Orders),
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("pinwb-test: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::List { rst: true } => print!("{}", tests::rst()),
        Command::List { rst: false } => {
            for test in tests::listed() {
                let once = if test.once { "once" } else { "" };
                let proves = test.proves_names(",");
                println!("{}\t{proves}\t{}\t{once}", test.name, test.without);
            }
        }
        Command::Run {
            filter,
            dependent,
            options,
        } => {
            let mut selected = tests::select(&filter, &options.fs);
            selected.retain(|test| !dependent || test.depends_on_options());
            if !tap::run_all(&selected, &options)? {
                return Ok(ExitCode::FAILURE);
            }
        }
        Command::Demo { json, options } => demo::run(json, &options)?,
        Command::Crash { crash, options } => {
            if !crash::run_command(&crash, &options)? {
                return Ok(ExitCode::FAILURE);
            }
        }
        Command::Soak { soak, options } => {
            on_new_filesystem(&options, Layer::Disk, ["", ""], |context| {
                soak::run(context, &soak)
            })?;
            println!("soak: PASSED");
        }
        Command::Latency { latency, options } => latency::run(&latency, &options)?,
        Command::Reclaim { reclaim, options } => reclaim::run(&reclaim, &options)?,
        Command::Writer { writer, options } => writer::run(&writer, &options)?,
        Command::Restart { restart, options } => restart::run(&restart, &options)?,
        Command::Stress { stress, options } => {
            let well = on_new_filesystem(&options, Layer::Disk, ["", ""], |context| {
                stress::command(context, &stress)
            })?;
            if !well {
                return Ok(ExitCode::FAILURE);
            }
        }
        Command::One {
            name,
            options,
            device,
            raw,
            device_size,
            mounted_with,
        } => {
            let test = tests::all()
                .into_iter()
                .find(|test| test.name == name)
                .with_context(|| format!("no test {name}"))?;
            let place = device.as_deref().zip(raw.as_deref());
            let context = context::Context::new(
                fs::by_name(&options.fs)?,
                &options.work,
                place.map(|(device, raw)| (device, raw, device_size)),
                &mounted_with,
            )?;
            return Ok(ExitCode::from(tap::run_here(&test, &context) as u8));
        }
        Command::VerbsPeer => verbs::run_peer()?,
        Command::HoldPins(orders) => orders.follow()?,
        Command::Pinstorm { options } => pinstorm::run(&options)?,
        Command::Pin { place } => pin::pin(&place)?,
        Command::Fill { round, place } => pin::fill(&place, round)?,
        Command::Verify {
            or_zero,
            round,
            place,
        } => pin::verify(&place, round, or_zero)?,
    }
    Ok(ExitCode::SUCCESS)
}
