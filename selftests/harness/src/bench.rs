// SPDX-License-Identifier: GPL-2.0

//! `bench-pin`: what pins cost, on a kernel with the subsystem and on the same without it.
//!
//! - Time, in UML kernels, which run at the speed of the machine. They take turns, so that what
//!   else the machine does hits both.
//! - Instructions, in x86 guests whose clock counts them, for what must cost nothing.
//!
//! The tables of `Documentation/performance.rst` are made from the files in `Documentation/data`,
//! which are the results of a run; a test below checks that they are.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{bail, Context, Result};

use crate::job::Job;
use crate::qemu::{self, Config, Outcome, Stream};
use crate::samples::{Samples, Summary};
use crate::{cache, kselftests, programs, uml};

/// What the user asked for.
#[derive(Debug)]
pub struct Options {
    /// Boots of each UML kernel.
    pub boots: u32,
    /// Only one of the parts.
    pub only: Option<Part>,
    /// Put the results into the documentation.
    pub save: bool,
}

/// A part of the benchmark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// In UML
    Time,
    /// In QEMU
    Instructions,
}

impl Part {
    const ALL: [Self; 2] = [Self::Time, Self::Instructions];

    fn name(self) -> &'static str {
        match self {
            Self::Time => "time",
            Self::Instructions => "instructions",
        }
    }

    fn file(self) -> String {
        format!("bench-pin-{}.tsv", self.name())
    }

    fn rows(self) -> &'static [Row] {
        match self {
            Self::Time => TIME,
            Self::Instructions => INSTRUCTIONS,
        }
    }

    /// MiB that each round pins.
    fn mebibytes(self) -> u32 {
        match self {
            Self::Time => 64,
            Self::Instructions => 32,
        }
    }

    /// What a value is to be multiplied with. Pins are measured in microseconds, of a real clock or
    /// of one that takes a nanosecond for each instruction; they are shown in nanoseconds or
    /// instructions for each page.
    fn scale(self, what: &str) -> f64 {
        match what {
            "instructions" => 1.0,
            _ => 1000.0 / f64::from(self.mebibytes() * 256),
        }
    }

    fn heading(self) -> &'static str {
        match self {
            Self::Time => "Pins in UML, nanoseconds for each page: medians of the boots",
            Self::Instructions => "Instructions, those of pins for each page: medians",
        }
    }
}

/// The kernel without the subsystem.
const WITHOUT: &str = "n";
/// The kernel with it.
const WITH: &str = "y";
/// The same, booted with `pinwb=off`.
const OFF: &str = "off";

/// How far the measured ratio may be from what is to be reached.
#[derive(Debug, Clone, Copy)]
enum Reach {
    /// At most this, in two digits after the point.
    AtMost(f64),
    /// At most this share away from 1.
    Equal(f64),
    /// Shown for comparison.
    Nothing,
}

/// One comparison: a case on a kernel, against a case on the kernel without the subsystem.
struct Row {
    title: &'static str,
    kernel: &'static str,
    case: &'static str,
    base: &'static str,
    what: &'static [&'static str],
    reach: Reach,
}

const PINS: &[&str] = &["get", "put", "sum"];
const SUM: &[&str] = &["sum"];
const COUNT: &[&str] = &["instructions"];

const fn row(
    title: &'static str,
    kernel: &'static str,
    case: &'static str,
    base: &'static str,
    what: &'static [&'static str],
    reach: Reach,
) -> Row {
    Row {
        title,
        kernel,
        case,
        base,
        what,
        reach,
    }
}

#[rustfmt::skip]
const TIME: &[Row] = &[
    row("anonymous memory", WITH, "anon", "anon", PINS, Reach::AtMost(1.0)),
    row("the same after pins of a file", WITH, "anon-after", "anon", PINS, Reach::Nothing),
    row("shmem", WITH, "shmem", "shmem", PINS, Reach::Nothing),
    row("dirty ext4, for read", WITH, "ext4-read", "ext4-read", PINS, Reach::Nothing),
    row("dirty ext4, against shmem", WITH, "ext4", "shmem", PINS, Reach::AtMost(1.25)),
];

const EQUAL: Reach = Reach::Equal(0.005);

#[rustfmt::skip]
const INSTRUCTIONS: &[Row] = &[
    row("write(2) over a page, fsync", WITH, "write-rewrite", "write-rewrite", COUNT, EQUAL),
    row("the same, pinwb=off", OFF, "write-rewrite", "write-rewrite", COUNT, EQUAL),
    row("write(2) at EOF, fsync", WITH, "write-append", "write-append", COUNT, EQUAL),
    row("the same, pinwb=off", OFF, "write-append", "write-append", COUNT, EQUAL),
    row("get_user_pages()", WITH, "get_user_pages", "get_user_pages", SUM, EQUAL),
    row("get_user_pages_fast()", WITH, "get_user_pages_fast", "get_user_pages_fast", SUM, EQUAL),
    row("pin_user_pages()", WITH, "pin_user_pages", "pin_user_pages", SUM, EQUAL),
    row("pin_user_pages_fast()", WITH, "pin_user_pages_fast", "pin_user_pages_fast", SUM, EQUAL),
    row("long-term, anonymous", WITH, "longterm-anon", "longterm-anon", PINS, Reach::AtMost(1.0)),
    row("long-term, shmem, 4 KiB", WITH, "longterm-shmem-4k", "longterm-shmem-4k", SUM, Reach::Nothing),
    row("long-term, ext4 for read, 4 KiB", WITH, "longterm-ext4-read-4k", "longterm-ext4-read-4k", SUM, Reach::Nothing),
    row("long-term, ext4 against shmem, 4 KiB", WITH, "longterm-ext4-4k", "longterm-shmem-4k", PINS, Reach::Nothing),
    row("long-term, shmem, 2 MiB", WITH, "longterm-shmem-2m", "longterm-shmem-2m", SUM, Reach::Nothing),
    row("long-term, ext4 for read, 2 MiB", WITH, "longterm-ext4-read-2m", "longterm-ext4-read-2m", SUM, Reach::Nothing),
    row("long-term, ext4 against shmem, 2 MiB", WITH, "longterm-ext4-2m", "longterm-shmem-2m", PINS, Reach::AtMost(1.05)),
];

/// Runs it, prints the tables, and says where the numbers are.
pub fn bench_pin(options: &Options) -> Result<u8> {
    let log = cache::new_run("bench-pin")?;
    for part in Part::ALL {
        if options.only.is_some_and(|only| only != part) {
            continue;
        }
        let mut samples = match part {
            Part::Time => time(options.boots, &log)?,
            Part::Instructions => instructions(&log)?,
        };
        samples.notes.extend(machine());
        let file = log.join(part.file());
        fs::write(&file, samples.write())?;
        println!("\n{}", part.heading());
        println!("{}", table(part, &samples));
        eprintln!("harness: {}", file.display());
        if options.save {
            save(part, &samples)?;
        }
    }
    Ok(0)
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
                Duration::from_secs(300),
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
        eprintln!("harness: counting instructions, {}", column(kernel));
        let dir = log.join(format!("instructions-{kernel}"));
        fs::create_dir_all(&dir)?;
        let arguments = ["instructions", "--mebibytes", &mebibytes];
        let (said, outcome) =
            count_instructions(Some(&image(variable)?), append, &arguments, &dir)?;
        outcome.complain();
        samples
            .add(kernel, 1, &said)
            .with_context(|| format!("console in {}", outcome.console.display()))?;
    }
    Ok(samples)
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
        append: append.into_iter().map(String::from).collect(),
        cpus: 1,
        count_instructions: true,
        timeout: Duration::from_secs(1800),
        silence: Duration::from_secs(600),
        ..Config::default()
    };
    let job = Job {
        argv: [programs::BENCH]
            .iter()
            .chain(arguments)
            .map(|argument| argument.to_string())
            .collect(),
        ..Job::default()
    };
    let mut said = Vec::new();
    let outcome = qemu::boot(&config, &job, log, &mut |stream, bytes| match stream {
        Stream::Out => said.extend_from_slice(bytes),
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

/// What one has to know of the machine to read times.
fn machine() -> Vec<String> {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text
        .lines()
        .find(|l| l.starts_with("model name"))
        .and_then(|l| Some(l.split_once(':')?.1.trim()))
        .unwrap_or("unknown CPU");
    let date = cache::timestamp(cache::now());
    vec![format!("{}, {model}", date.split('-').next().unwrap_or(""))]
}

fn column(kernel: &str) -> &'static str {
    match kernel {
        WITHOUT => "CONFIG_PINWB=n",
        WITH => "CONFIG_PINWB=y",
        _ => "pinwb=off",
    }
}

fn verdict(reach: Reach, ratio: f64) -> (String, &'static str) {
    let (text, met) = match reach {
        Reach::AtMost(limit) => (
            format!("<= {limit:.2}"),
            (ratio * 100.0).round() / 100.0 <= limit,
        ),
        Reach::Equal(share) => (
            format!("1 +- {:.1} %", share * 100.0),
            (ratio - 1.0).abs() <= share,
        ),
        Reach::Nothing => return ("-".into(), "-"),
    };
    (text, if met { "met" } else { "missed" })
}

/// A simple table of reStructuredText, which people can read as well.
fn table(part: Part, samples: &Samples) -> String {
    let mut lines: Vec<[String; 7]> =
        vec![["case", "", "without", "with", "ratio", "to reach", ""].map(String::from)];
    for row in part.rows() {
        for (i, &what) in row.what.iter().enumerate() {
            let base = samples.summary(WITHOUT, row.base, what);
            let with = samples.summary(row.kernel, row.case, what);
            let (Some(base), Some(with)) = (base, with) else {
                continue;
            };
            let ratio = with.median / base.median;
            let last = i + 1 == row.what.len();
            let (reach, met) = if last {
                verdict(row.reach, ratio)
            } else {
                ("".into(), "")
            };
            let scale = part.scale(what);
            let digits = usize::from(scale < 1.0);
            let cell = |s: Summary| format!("{:.digits$} ({:.1} %)", s.median * scale, s.spread);
            lines.push([
                // An empty first cell continues the row above; a backslash is an empty one.
                if i == 0 { row.title } else { "\\" }.into(),
                what.into(),
                cell(base),
                cell(with),
                match row.reach {
                    Reach::Equal(_) => format!("{ratio:.4}"),
                    _ => format!("{ratio:.2}"),
                },
                reach,
                met.into(),
            ]);
        }
    }
    simple_table(&lines)
}

fn simple_table(lines: &[[String; 7]]) -> String {
    let width = |column: usize| {
        let longest = lines.iter().map(|l| l[column].len()).max();
        longest.unwrap_or(0).max(1)
    };
    let widths: Vec<usize> = (0..7).map(width).collect();
    let rule: Vec<String> = widths.iter().map(|&w| "=".repeat(w)).collect();
    let rule = rule.join("  ");
    let mut text = vec![rule.clone()];
    for (i, line) in lines.iter().enumerate() {
        let cells: Vec<String> = line
            .iter()
            .zip(&widths)
            .map(|(cell, &w)| format!("{cell:w$}"))
            .collect();
        text.push(cells.join("  ").trim_end().to_string());
        if i == 0 {
            text.push(rule.clone());
        }
    }
    text.push(rule);
    text.join("\n")
}

fn documentation() -> PathBuf {
    cache::selftests().join("../Documentation")
}

/// Stores the results, and makes the tables anew.
fn save(part: Part, samples: &Samples) -> Result<()> {
    let data = documentation().join("data");
    fs::create_dir_all(&data)?;
    fs::write(data.join(part.file()), samples.write())?;
    let path = documentation().join("performance.rst");
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    fs::write(&path, with_table(&text, part, samples)?)?;
    Ok(())
}

/// The document with the table of one part replaced: what is between two comments that name it.
fn with_table(text: &str, part: Part, samples: &Samples) -> Result<String> {
    let begin = format!(".. bench-pin {}\n", part.name());
    let end = format!(".. bench-pin {} end\n", part.name());
    let (before, rest) = text.split_once(&begin).context("no place for the table")?;
    let (_, after) = rest.split_once(&end).context("no end of the table")?;
    let table = table(part, samples);
    Ok(format!("{before}{begin}\n{table}\n\n{end}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts() {
        assert_eq!(verdict(Reach::AtMost(1.25), 1.2549).1, "met");
        assert_eq!(verdict(Reach::AtMost(1.25), 1.256).1, "missed");
        assert_eq!(verdict(Reach::AtMost(1.0), 0.9).1, "met");
        assert_eq!(verdict(Reach::Equal(0.005), 0.994).1, "missed");
        assert_eq!(verdict(Reach::Equal(0.005), 1.005).1, "met");
        assert_eq!(verdict(Reach::Nothing, 9.0).1, "-");
    }

    #[test]
    fn tables() {
        let mut samples = Samples::default();
        let said = "bench\tanon\tget\t200\nbench\tanon\tput\t100\nbench\tend";
        samples.add(WITHOUT, 1, said).unwrap();
        let said = said.replace("200", "230");
        samples.add(WITH, 1, &said).unwrap();
        let text = table(Part::Time, &samples);
        let sum = text.lines().find(|l| l.contains("sum")).unwrap();
        // 300 us for 16384 pages.
        assert!(
            sum.contains("18.3 (0.0 %)") && sum.contains("20.1 (0.0 %)"),
            "{sum}"
        );
        assert!(sum.contains("1.10") && sum.ends_with("missed"), "{sum}");
        assert!(!text.contains("ext4"), "not measured");

        let document = "a\n.. bench-pin time\nold\n.. bench-pin time end\nb\n";
        let new = with_table(document, Part::Time, &samples).unwrap();
        assert!(new.starts_with("a\n") && new.ends_with("b\n") && !new.contains("old"));
        assert_eq!(with_table(&new, Part::Time, &samples).unwrap(), new);
    }

    /// The tables of the documentation are what the data beside it says.
    #[test]
    fn documented() {
        let path = documentation().join("performance.rst");
        let text = fs::read_to_string(&path).unwrap();
        for part in Part::ALL {
            let data = fs::read_to_string(documentation().join("data").join(part.file())).unwrap();
            let samples = Samples::read(&data).unwrap();
            assert!(
                with_table(&text, part, &samples).unwrap() == text,
                "{} does not show Documentation/data/{}",
                path.display(),
                part.file()
            );
        }
    }
}
