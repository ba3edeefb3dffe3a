// SPDX-License-Identifier: GPL-2.0

//! Command line of the harness.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use pinwb_harness::job::{Job, Mount};
use pinwb_harness::qemu::{self, Config, Stream};
use pinwb_harness::{bench, cache, check, demo, kselftests, rootfs, session, stress, xfstests};

#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Args, Clone)]
struct Guest {
    /// Kernel image to boot [default: $PINWB_KERNEL, else the newest in the cache]
    #[arg(long)]
    kernel: Option<PathBuf>,
    /// Add to the kernel command line
    #[arg(long, value_name = "ARGS", allow_hyphen_values = true)]
    append: Vec<String>,
    /// Memory of the guest, in MiB
    #[arg(long, short, default_value_t = 2048)]
    memory: u32,
    /// Virtual CPUs of the guest
    #[arg(long, default_value_t = 2)]
    cpus: u32,
}

impl Guest {
    fn config(&self) -> Config {
        Config {
            kernel: self.kernel.clone(),
            append: self.append.clone(),
            memory: self.memory,
            cpus: self.cpus,
            ..Config::default()
        }
    }
}

#[derive(Subcommand)]
enum Verb {
    /// Run every group of tests and count
    Check {
        /// Only groups, or else tests, whose name contains this
        #[arg(long, value_name = "S")]
        filter: Option<String>,
        /// Run the tests of the guest with every set of filesystem options, and nothing else; long
        #[arg(long)]
        matrix: bool,
        /// Show what there is to run, and run nothing
        #[arg(long)]
        list: bool,
        /// Show the guests' consoles
        #[arg(long)]
        console: bool,
        /// Kernel image to boot [default: $PINWB_KERNEL, else the newest in the cache]
        #[arg(long)]
        kernel: Option<PathBuf>,
        /// Multiply all time limits by this, for slow kernels and machines
        #[arg(long, value_name = "N", default_value_t = 1)]
        timeout_scale: u32,
        /// Leave out this group
        #[arg(long, value_name = "GROUP")]
        skip: Vec<String>,
    },
    /// Run one command in a guest; its exit status is ours
    Run {
        #[command(flatten)]
        guest: Guest,
        /// Make this filesystem on the first disk and mount it on /mnt
        #[arg(long, value_name = "TYPE")]
        fs: Option<String>,
        /// Options of mkfs
        #[arg(long, default_value = "", allow_hyphen_values = true)]
        mkfs_opts: String,
        /// Mount options
        #[arg(long, default_value = "")]
        mount_opts: String,
        /// Give up after this many seconds
        #[arg(long, default_value_t = 900)]
        timeout: u64,
        /// Show the guest's console
        #[arg(long)]
        console: bool,
        /// The command; a single argument is given to the shell
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// An interactive guest: a shell on the serial console, ext4 on /mnt
    Vm {
        #[command(flatten)]
        guest: Guest,
    },
    /// Show the damage that is refused, and that it works with pinwb
    Demo {
        #[command(flatten)]
        guest: Guest,
    },
    /// Random histories of pinned files, checked against a model and the raw disk
    Stress {
        #[command(flatten)]
        guest: Guest,
        #[command(flatten)]
        options: stress::Options,
    },
    /// Cut the power at many points of workloads that are logged
    Crash {
        #[command(flatten)]
        guest: Guest,
        /// Where all choices come from [default: the time]
        #[arg(long)]
        seed: Option<u64>,
        #[command(flatten)]
        options: session::Options,
    },
    /// A device that never stops, under syncs, scrubs and snapshots
    Soak {
        #[command(flatten)]
        guest: Guest,
        #[command(flatten)]
        options: session::Options,
    },
    /// Time and count what pins cost, with and without the subsystem: $PINWB_UML, $PINWB_KERNEL and
    /// the same with _NOPINWB
    Bench {
        /// Boots of each UML kernel, where two are compared
        #[arg(long, default_value_t = 10)]
        boots: u32,
        /// Only this part; may be given more than once
        #[arg(long, value_name = "PART")]
        only: Vec<bench::Part>,
        /// Put the results into the documentation
        #[arg(long)]
        save: bool,
        /// Measure nothing, and make tables and plots of the documentation from the data beside it
        #[arg(long, conflicts_with = "save")]
        redraw: bool,
    },
    /// Run a built checkout of xfstests, and compare with the same kernel booted with pinwb=off
    Xfstests {
        #[command(flatten)]
        guest: Guest,
        #[command(flatten)]
        options: xfstests::Options,
    },
    /// Make the guest's root image, and print its path
    Rootfs,
    /// Build the kernel's own selftests from the tree, $PINWB_TREE
    Kselftests,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli.verb) {
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            eprintln!("harness: {e:#}");
            ExitCode::from(2)
        }
    }
}

fn run(verb: Verb) -> Result<u8> {
    match verb {
        Verb::Check {
            filter,
            matrix,
            list,
            console,
            kernel,
            timeout_scale,
            skip,
        } => check::check(&check::Options {
            filter,
            list,
            matrix,
            console,
            kernel,
            timeout_scale,
            skip,
        }),
        Verb::Run {
            guest,
            fs,
            mkfs_opts,
            mount_opts,
            timeout,
            console,
            command,
        } => {
            let mut config = guest.config();
            config.timeout = Duration::from_secs(timeout);
            config.silence = config.timeout;
            config.show_console = console;
            let argv = match command.as_slice() {
                [line] => vec!["bash".into(), "-c".into(), line.clone()],
                _ => command,
            };
            let mount = fs.map(|fs| Mount {
                fs,
                mkfs: mkfs_opts,
                options: mount_opts,
            });
            let job = Job {
                argv,
                mount,
                ..Job::default()
            };
            run_one(&config, &job)
        }
        Verb::Vm { guest } => vm(&guest),
        Verb::Demo { guest } => demo::demo(&guest.config()),
        Verb::Stress { guest, options } => stress::stress(&guest.config(), &options),
        Verb::Crash {
            guest,
            seed,
            mut options,
        } => {
            options
                .more
                .extend(seed.map(|seed| format!("--seed={seed}")));
            session::session(&guest.config(), "crash", &options)
        }
        Verb::Soak { guest, options } => session::session(&guest.config(), "soak", &options),
        Verb::Bench {
            boots,
            only,
            save,
            redraw,
        } => bench::bench(&bench::Options {
            boots,
            only,
            save,
            redraw,
        }),
        Verb::Xfstests { guest, options } => xfstests::xfstests(&guest.config(), &options),
        Verb::Rootfs => {
            println!("{}", rootfs::image()?.display());
            Ok(0)
        }
        Verb::Kselftests => {
            for program in kselftests::built()? {
                println!("{}", program.display());
            }
            Ok(0)
        }
    }
}

fn run_one(config: &Config, job: &Job) -> Result<u8> {
    let log = cache::new_run("run")?;
    let outcome = qemu::boot(config, job, &log, &mut |stream, bytes| {
        // A closed pipe is the reader's choice; the exit status still counts.
        let _ = match stream {
            Stream::Out => io::stdout().write_all(bytes).and(io::stdout().flush()),
            Stream::Err => io::stderr().write_all(bytes),
        };
    })?;
    outcome.complain();
    if let Some(complaint) = outcome.end.complaint() {
        eprintln!("harness: {complaint}");
    }
    let boot = outcome.boot.unwrap_or_default().as_secs_f32();
    let all = outcome.elapsed.as_secs_f32();
    eprintln!(
        "harness: booted in {boot:.1} s, {all:.1} s in all, console in {}",
        outcome.console.display()
    );
    let status = outcome.end.status();
    if status == 0 && !(outcome.splats.is_empty() && outcome.wrong.is_empty()) {
        return Ok(126);
    }
    Ok(u8::try_from(status).unwrap_or(1))
}

fn vm(guest: &Guest) -> Result<u8> {
    let log = cache::new_run("vm")?;
    let job = Job {
        argv: vec!["bash".into(), "--login".into()],
        env: vec![(
            "PINWB_TERM".into(),
            std::env::var("TERM").unwrap_or("linux".into()),
        )],
        mount: Some(Mount {
            fs: "ext4".into(),
            mkfs: "-q".into(),
            options: String::new(),
        }),
        interactive: true,
        ..Job::default()
    };
    eprintln!("harness: leave with `exit`; Ctrl-A X ends the guest at once");
    let outcome = qemu::boot(&guest.config(), &job, &log, &mut |_, _| {})?;
    outcome.complain();
    Ok(0)
}
