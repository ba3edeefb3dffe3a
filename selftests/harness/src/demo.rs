// SPDX-License-Identifier: GPL-2.0

//! `demo`: the same RDMA into a mapped file twice, on the kernel as it is today and with pinned
//! writeback.

use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::job::Job;
use crate::qemu::{self, Config, End, Outcome, Stream};
use crate::tap::{Parser, Verdict};
use crate::{cache, programs};

/// Each has its rows.
const FILESYSTEMS: [&str; 3] = ["ext4", "xfs", "btrfs"];

/// Rounds of RDMA, fsync and comparison that a proof takes.
const ROUNDS: u64 = 3;

/// What `pinwb-test demo --json` says, one line.
#[derive(Debug, Clone, Deserialize)]
struct Said {
    refused: bool,
    #[serde(default)]
    message: String,
    #[serde(default)]
    mb_per_s: f64,
    #[serde(default)]
    fsync_p50_ms: f64,
    #[serde(default)]
    fsync_p99_ms: f64,
    #[serde(default)]
    bounced_bytes: u64,
    #[serde(default)]
    mismatches: u64,
    #[serde(default)]
    rounds: u64,
}

/// One boot.
struct Row {
    name: &'static str,
    fs: &'static str,
    said: Option<Said>,
    /// Why there is nothing to show, or why what there is does not count.
    wrong: Option<String>,
}

impl Row {
    fn refused(&self) -> bool {
        self.wrong.is_none() && self.said.as_ref().is_some_and(|s| s.refused)
    }

    fn works(&self) -> bool {
        self.wrong.is_none()
            && self.said.as_ref().is_some_and(|s| {
                !s.refused && s.mismatches == 0 && s.rounds >= ROUNDS && s.bounced_bytes > 0
            })
    }

    fn cells(&self) -> [String; 8] {
        let [name, fs] = [self.name, self.fs].map(String::from);
        let dash = || "-".to_string();
        match &self.said {
            Some(s) if !s.refused => [
                name,
                fs,
                if self.works() { "works" } else { "FAILS" }.to_string(),
                format!("{:.1}", s.mb_per_s),
                format!("{:.1} ms", s.fsync_p50_ms),
                format!("{:.1} ms", s.fsync_p99_ms),
                s.bounced_bytes.to_string(),
                s.mismatches.to_string(),
            ],
            said => {
                let result = if said.is_some() { "refused" } else { "FAILS" };
                [
                    name,
                    fs,
                    result.into(),
                    dash(),
                    dash(),
                    dash(),
                    dash(),
                    dash(),
                ]
            }
        }
    }
}

/// Runs it; returns the exit status.
pub fn demo(config: &Config) -> Result<u8> {
    let mut rows = Vec::new();
    for fs in FILESYSTEMS {
        rows.push(row("pinwb=off", fs, &["pinwb=off"], config)?);
        rows.push(row("pinwb", fs, &[], config)?);
    }
    print!("{}", table(&rows));
    let mut good = true;
    for pair in rows.chunks_exact(2) {
        good &= pair[0].refused() && pair[1].works();
        println!("{}: {}", pair[0].fs, verdict(&pair[0], &pair[1]));
    }
    println!();
    for fs in FILESYSTEMS {
        let said = tools(fs, config)?;
        for (test, what) in TOOLS {
            let works = passed(&said, test);
            good &= works;
            let result = if works { "works" } else { "FAILS" };
            println!("{what:<38}  {fs:<5}  {result}");
        }
    }
    Ok(u8::from(!good))
}

/// Programs that everybody has, under syncs: the guest's tests that run them, and what they are.
const TOOLS: [(&str, &str); 2] = [
    (
        "perftest.write_bw_under_sync",
        "ib_write_bw --mmap, both ends pinned",
    ),
    ("fio.read", "fio, fixed buffers in a mapped file"),
];

/// What the tests of the tools say, in TAP; nothing if the guest had a splat.
fn tools(fs: &str, config: &Config) -> Result<String> {
    eprintln!("harness: pinwb: ib_write_bw and fio on a new {fs} ...");
    let log = cache::new_run(&format!("demo-tools-{fs}"))?;
    let mut argv = [programs::TEST, "run", "--fs", fs]
        .map(String::from)
        .to_vec();
    for (test, _) in TOOLS {
        argv.extend(["--filter", test].map(String::from));
    }
    let (outcome, said, errors) = boot(config, argv, &log)?;
    if outcome.end != End::Exit(0) {
        eprint!("{said}{errors}");
    }
    Ok(if outcome.splats.is_empty() && outcome.wrong.is_empty() {
        said
    } else {
        String::new()
    })
}

/// True if a test ran and passed.
fn passed(tap: &str, test: &str) -> bool {
    let mut parser = Parser::default();
    for line in tap.lines() {
        parser.line(line);
    }
    let mut tests = parser.tests.iter();
    tests.any(|ran| ran.name == test && ran.verdict == Verdict::Pass)
}

/// Boots a guest for one command; returns how it ended and what the command said.
fn boot(config: &Config, argv: Vec<String>, log: &Path) -> Result<(Outcome, String, String)> {
    let job = Job {
        argv,
        ..Job::default()
    };
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let outcome = qemu::boot(config, &job, log, &mut |stream, bytes| match stream {
        Stream::Out => out.extend_from_slice(bytes),
        Stream::Err => err.extend_from_slice(bytes),
    })?;
    outcome.complain();
    let [out, err] = [out, err].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    Ok((outcome, out, err))
}

fn row(name: &'static str, fs: &'static str, append: &[&str], config: &Config) -> Result<Row> {
    eprintln!("harness: {name}: RDMA into a mapped file on a new {fs} ...");
    let log = cache::new_run(&format!("demo-{name}-{fs}"))?;
    let mut config = config.clone();
    config.append.extend(append.iter().map(|a| a.to_string()));
    let argv = [programs::TEST, "demo", "--json", "--fs", fs].map(String::from);
    let (outcome, out, err) =
        boot(&config, argv.to_vec(), &log).with_context(|| format!("boot with {name}"))?;
    let said = out
        .lines()
        .rev()
        .find_map(|line| serde_json::from_str(line).ok());
    let wrong = if let Some(splat) = outcome.splats.first() {
        Some(format!("splat: {}", splat.title))
    } else if let Some(wrong) = outcome.wrong.first() {
        Some(wrong.clone())
    } else if outcome.end != End::Exit(0) || said.is_none() {
        let end = outcome.end.complaint().unwrap_or("no result".into());
        Some(format!("{end}: {}", err.trim()))
    } else {
        None
    };
    Ok(Row {
        name,
        fs,
        said,
        wrong,
    })
}

fn table(rows: &[Row]) -> String {
    let head = [
        "kernel",
        "filesystem",
        "result",
        "MB/s",
        "fsync p50",
        "fsync p99",
        "bytes bounced",
        "mismatches",
    ]
    .map(String::from);
    let mut lines = vec![head];
    lines.extend(rows.iter().map(Row::cells));
    let width = |column: usize| lines.iter().map(|l| l[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..lines[0].len()).map(width).collect();
    let mut text = String::from("\n");
    for line in &lines {
        let cells: Vec<String> = line
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text.push('\n');
    for row in rows {
        if let Some(said) = row.said.as_ref().filter(|s| s.refused) {
            text.push_str(&format!("{}: {}\n", row.name, said.message));
        }
        if let Some(wrong) = &row.wrong {
            text.push_str(&format!("{}: {wrong}\n", row.name));
        }
    }
    text
}

fn verdict(off: &Row, on: &Row) -> String {
    if !off.refused() {
        return "FAILED: without pinned writeback the kernel should have refused".into();
    }
    match &on.said {
        Some(s) if on.works() => format!(
            "Refused without pinned writeback; with it, every byte was on the disk after each of \
             {} fsyncs.",
            s.rounds
        ),
        Some(s) if s.refused => "FAILED: refused with pinned writeback, too".into(),
        Some(s) if s.mismatches > 0 => {
            format!("FAILED: {} sectors are not on the disk", s.mismatches)
        }
        Some(s) if s.rounds < ROUNDS => format!("FAILED: only {} rounds", s.rounds),
        Some(s) if s.bounced_bytes == 0 => "FAILED: nothing was bounced: nothing is proven".into(),
        _ => "FAILED: see above".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(json: &str) -> Option<Said> {
        Some(serde_json::from_str(json).unwrap())
    }

    fn rows(on: &str) -> [Row; 2] {
        let off = r#"{"refused":true,"message":"EFAULT"}"#;
        [("pinwb=off", off), ("pinwb", on)].map(|(name, json)| Row {
            name,
            fs: "ext4",
            said: said(json),
            wrong: None,
        })
    }

    const GOOD: &str = r#"{"refused":false,"message":"","mb_per_s":41.5,"fsync_p50_ms":12.0,
        "fsync_p99_ms":40.25,"fsyncs":9,"bounced_bytes":201326592,"mismatches":0,"rounds":3}"#;

    #[test]
    fn good() {
        let rows = rows(GOOD);
        assert!(rows[0].refused() && rows[1].works());
        assert!(verdict(&rows[0], &rows[1]).starts_with("Refused without"));
        let table = table(&rows);
        assert!(
            table.contains("pinwb=off  ext4        refused  -"),
            "{table}"
        );
        assert!(table.contains("41.5"), "{table}");
        assert!(table.contains("pinwb=off: EFAULT"), "{table}");
    }

    #[test]
    fn tools_that_passed() {
        let tap = "ok 1 - perftest.write_bw_under_sync\nok 2 - fio.read # SKIP no fio\n";
        assert!(passed(tap, "perftest.write_bw_under_sync"));
        assert!(!passed(tap, "fio.read"));
        assert!(!passed("not ok 1 - fio.read\n", "fio.read"));
        assert!(!passed("", "fio.read"));
    }

    #[test]
    fn nothing_short_of_it() {
        for (from, to) in [
            ("\"mismatches\":0", "\"mismatches\":1"),
            ("\"rounds\":3", "\"rounds\":2"),
            ("201326592", "0"),
            ("\"refused\":false", "\"refused\":true"),
        ] {
            let rows = rows(&GOOD.replace(from, to));
            assert!(!rows[1].works(), "{to}");
            assert!(verdict(&rows[0], &rows[1]).starts_with("FAILED"), "{to}");
        }
        let mut splat = rows(GOOD);
        splat[1].wrong = Some("splat: BUG".into());
        assert!(!splat[1].works());
        assert_eq!(verdict(&splat[0], &splat[1]), "FAILED: see above");
    }
}
