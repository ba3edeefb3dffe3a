// SPDX-License-Identifier: GPL-2.0

//! How each part is measured.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{bail, Context, Result};

use crate::job::Job;
use crate::qemu::{self, Config, Outcome, Stream};
use crate::samples::Samples;
use crate::{cache, kselftests, programs, uml};

use super::parts::{Part, FILESYSTEMS, OFF, SMP, WITH, WITHOUT};
use super::Options;

/// Measures a part; `log` is a directory.
pub fn measure(part: Part, options: &Options, log: &Path) -> Result<Samples> {
    match part {
        Part::Time => time(options.boots, log),
        Part::Instructions => instructions(log),
        Part::Writeback => writeback(log),
        Part::Ledger => ledger(log),
        Part::Writer | Part::Latency | Part::Reclaim => beside_pins(part, log),
    }
}

/// How long a UML kernel may take.
const UML_LIMIT: Duration = Duration::from_secs(300);

fn writeback(log: &Path) -> Result<Samples> {
    let program = programs::build(programs::BENCH)?;
    let mebibytes = Part::Writeback.mebibytes().to_string();
    let arguments = ["writeback", "--mebibytes", &mebibytes].map(String::from);
    let mut samples = Samples {
        notes: vec![format!(
            "fsync of {mebibytes} MiB on ext4, written to in full, by turns with and without pins: \
             microseconds; UML, one CPU, ram disk"
        )],
        ..Samples::default()
    };
    eprintln!("harness: fsync of pinned files");
    let kernel = image("PINWB_UML")?;
    let said = uml::run(
        &kernel,
        &program,
        &arguments,
        UML_LIMIT,
        &log.join("uml-writeback.log"),
    )?;
    samples.add(WITH, 1, &said)?;
    Ok(samples)
}

fn ledger(log: &Path) -> Result<Samples> {
    let mut samples = Samples {
        notes: vec![
            "KUnit suite pinwb_bench, for all pages of a thread, the slowest thread's; and bytes"
                .into(),
            "nanoseconds; UML, one CPU (y) and two (smp)".into(),
        ],
        ..Samples::default()
    };
    let arguments = [
        "pinwb_bench_page_ext=1",
        "kunit.enable=1",
        "kunit.filter_glob=pinwb_bench",
        "kunit_shutdown=poweroff",
    ]
    .map(String::from);
    // UML has two CPUs only with this way to run processes.
    let two_cpus = ["seccomp=on", "ncpus=2"].map(String::from);
    for (kernel, variable, more) in [
        (WITH, "PINWB_UML", &[][..]),
        (SMP, "PINWB_UML_SMP", &two_cpus[..]),
    ] {
        eprintln!(
            "harness: the ledger beside other ways, {}",
            kernel_name(kernel)
        );
        let log = log.join(format!("uml-ledger-{kernel}.log"));
        let said = uml::boot(
            &image(variable)?,
            &[&arguments[..], more].concat(),
            UML_LIMIT,
            &log,
        )?;
        add_suite(&mut samples, kernel, &said).with_context(|| log.display().to_string())?;
    }
    Ok(samples)
}

/// Adds what the suite printed, if all of it ran.
fn add_suite(samples: &mut Samples, kernel: &str, said: &str) -> Result<()> {
    if let Some(line) = said
        .lines()
        .find(|line| line.contains("not ok ") || line.contains("# SKIP"))
    {
        bail!("the KUnit suite did not pass: {line}");
    }
    samples.add(kernel, 1, said)
}

/// Guests in which something is measured beside no pins, and beside pins.
fn beside_pins(part: Part, log: &Path) -> Result<Samples> {
    let (how, memory) = match part {
        Part::Writer => (
            "writing 200 MiB to a new file, 60 % of 1 GiB of memory pinned, or locked by mlock(2): milliseconds",
            1024,
        ),
        Part::Reclaim => (
            "a control group of 128 MiB of which 64 MiB are pinned reads 48 MiB and 32 MiB, by turns, \
             six times: pages scanned, pages evicted and read again, pinned pages unmapped, \
             milliseconds",
            1024,
        ),
        _ => (
            "fsync of 4 KiB beside a device that writes 8 MiB to pinned pages of a file, or to memory \
             for write(2) to it, which are synced, five times a second: microseconds, medians and \
             99th percentiles of the turns",
            2048,
        ),
    };
    let mut samples = Samples {
        notes: vec![how.into(), "QEMU TCG, two CPUs, virtio disk".into()],
        ..Samples::default()
    };
    for fs in FILESYSTEMS {
        eprintln!("harness: {}, {fs}", part.name());
        let config = Config {
            kernel: Some(image("PINWB_KERNEL")?),
            memory,
            measures: true,
            timeout: Duration::from_secs(3600),
            silence: Duration::from_secs(1800),
            ..Config::default()
        };
        let dir = log.join(format!("{}-{fs}", part.name()));
        fs::create_dir_all(&dir)?;
        // Room for what is pinned.
        let arguments = [part.name(), "--fs", fs, "--size-mib=1000"];
        let (said, outcome) = run_in_guest(&config, programs::TEST, &arguments, &dir)?;
        let mut of_fs = Samples::default();
        add_guest(&mut of_fs, WITH, &said, &outcome)?;
        for sample in &mut of_fs.samples {
            sample.case = format!("{fs}-{}", sample.case);
        }
        samples.samples.append(&mut of_fs.samples);
    }
    Ok(samples)
}

fn time(boots: u32, log: &Path) -> Result<Samples> {
    let program = programs::build(programs::BENCH)?;
    let gup_test = kselftests::built()?
        .into_iter()
        .find(|p| p.ends_with("gup_test"))
        .context("no gup_test: no kernel tree, PINWB_TREE")?;
    let mebibytes = Part::Time.mebibytes().to_string();
    let arguments = [
        "uml",
        "--gup-test",
        &gup_test.display().to_string(),
        "--mebibytes",
        &mebibytes,
    ]
    .map(String::from);
    let kernels = [
        (WITHOUT, image("PINWB_UML_NOPINWB")?),
        (WITH, image("PINWB_UML")?),
    ];
    let mut samples = Samples {
        notes: vec![
            format!("gup_test -L -m {mebibytes} -n 512: microseconds; UML, one CPU"),
            format!("{boots} boots of each kernel (CONFIG_PINWB=n, =y), by turns"),
        ],
        ..Samples::default()
    };
    for boot in 1..=boots {
        for (kernel, path) in &kernels {
            eprintln!("harness: boot {boot} of {boots}, CONFIG_PINWB={kernel}");
            let said = uml::run(
                path,
                &program,
                &arguments,
                UML_LIMIT,
                &log.join(format!("uml-{kernel}-{boot}.log")),
            )?;
            samples
                .add(kernel, boot, &said)
                .with_context(|| format!("UML, CONFIG_PINWB={kernel}, see {}", log.display()))?;
        }
    }
    Ok(samples)
}

fn instructions(log: &Path) -> Result<Samples> {
    let mebibytes = Part::Instructions.mebibytes().to_string();
    let mut samples = Samples {
        notes: vec![
            "QEMU TCG, -icount shift=0: differences of a clock that counts instructions".into(),
            format!("writes: instructions; pins of {mebibytes} MiB: thousands of instructions"),
        ],
        ..Samples::default()
    };
    for (kernel, variable, append) in [
        (WITHOUT, "PINWB_KERNEL_NOPINWB", None),
        (WITH, "PINWB_KERNEL", None),
        (OFF, "PINWB_KERNEL", Some("pinwb=off")),
    ] {
        eprintln!("harness: counting instructions, {}", kernel_name(kernel));
        let dir = log.join(format!("instructions-{kernel}"));
        fs::create_dir_all(&dir)?;
        let arguments = ["instructions", "--mebibytes", &mebibytes];
        let (said, outcome) =
            count_instructions(Some(&image(variable)?), append, &arguments, &dir)?;
        add_guest(&mut samples, kernel, &said, &outcome)?;
    }
    Ok(samples)
}

/// Adds what a guest printed, if nothing went wrong in it.
fn add_guest(samples: &mut Samples, kernel: &str, said: &str, outcome: &Outcome) -> Result<()> {
    outcome.complain();
    let console = outcome.console.display();
    if !outcome.splats.is_empty() || !outcome.wrong.is_empty() {
        bail!("what was measured does not count; console in {console}");
    }
    samples
        .add(kernel, 1, said)
        .with_context(|| format!("console in {console}"))
}

/// Runs the benchmark in a guest whose clock counts instructions; returns what it says.
pub fn count_instructions(
    kernel: Option<&Path>,
    append: Option<&str>,
    arguments: &[&str],
    log: &Path,
) -> Result<(String, Outcome)> {
    let config = Config {
        kernel: kernel.map(Path::to_owned),
        append: append.map(String::from).into_iter().collect(),
        cpus: 1,
        count_instructions: true,
        measures: true,
        timeout: Duration::from_secs(1800),
        silence: Duration::from_secs(600),
        ..Config::default()
    };
    run_in_guest(&config, programs::BENCH, arguments, log)
}

fn run_in_guest(
    config: &Config,
    program: &str,
    arguments: &[&str],
    log: &Path,
) -> Result<(String, Outcome)> {
    let job = Job {
        argv: [program]
            .iter()
            .chain(arguments)
            .map(|argument| argument.to_string())
            .collect(),
        ..Job::default()
    };
    let (mut said, mut shown) = (Vec::new(), 0);
    let outcome = qemu::boot(config, &job, log, &mut |stream, bytes| match stream {
        Stream::Out => {
            said.extend_from_slice(bytes);
            // What is not a result is progress.
            while let Some(len) = said[shown..].iter().position(|&byte| byte == b'\n') {
                let line = &said[shown..shown + len];
                if !line.starts_with(b"bench\t") {
                    eprintln!("{}", String::from_utf8_lossy(line));
                }
                shown += len + 1;
            }
        }
        Stream::Err => eprint!("{}", String::from_utf8_lossy(bytes)),
    })?;
    if let Some(complaint) = outcome.end.complaint() {
        outcome.complain();
        bail!("{complaint}; console in {}", outcome.console.display());
    }
    Ok((String::from_utf8_lossy(&said).into_owned(), outcome))
}

fn image(variable: &str) -> Result<PathBuf> {
    let path = cache::set(variable).with_context(|| format!("{variable} is not set"))?;
    if !path.is_file() {
        bail!("no kernel at {} ({variable})", path.display());
    }
    Ok(path)
}

fn kernel_name(kernel: &str) -> &'static str {
    match kernel {
        WITHOUT => "CONFIG_PINWB=n",
        WITH => "CONFIG_PINWB=y",
        SMP => "two CPUs",
        _ => "pinwb=off",
    }
}
