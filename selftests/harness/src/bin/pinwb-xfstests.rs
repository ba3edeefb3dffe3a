// SPDX-License-Identifier: GPL-2.0

//! Runs xfstests inside of the guest and tells the host about each test, see
//! [`pinwb_harness::xfstests`].

use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};
use pinwb_harness::programs;
use pinwb_harness::xfstests::output::{Event, Orders, Reader, Said, Storm, Verdict};
use pinwb_harness::xfstests::{CHECKOUT, STORM_WRAPPERS, WRAPPERS};

const TEST_DIR: &str = "/mnt/test";
const SCRATCH_MNT: &str = "/mnt/scratch";
const RESULTS: &str = "/run/results";
/// Where the storm counts what it did.
const STORM: &str = "/run/pinstorm";
/// Bytes of a file that a failed test left; of a longer one the end.
const KEEP: usize = 256 << 10;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pinwb-xfstests: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn tell(event: &Event) -> Result<()> {
    let mut line = serde_json::to_string(event)?;
    line.push('\n');
    let mut out = io::stdout().lock();
    out.write_all(line.as_bytes())?;
    Ok(out.flush()?)
}

fn run() -> Result<()> {
    let orders = std::env::args().nth(1).context("no orders")?;
    let orders: Orders = serde_json::from_str(&orders).context("parse the orders")?;
    for dir in [TEST_DIR, SCRATCH_MNT, RESULTS] {
        fs::create_dir_all(dir).with_context(|| format!("make {dir}"))?;
    }
    make_test_fs(&orders)?;
    if let Some(name) = &orders.knockout {
        let path = Path::new("/sys/kernel/debug/pinwb/knockout").join(name);
        fs::write(&path, "1").with_context(|| format!("knock out: {}", path.display()))?;
    }
    let mut storm = match orders.pinstorm {
        Some(seed) => Some(start_storm(seed)?),
        None => None,
    };
    let mut check = check(&orders).spawn().context("run check")?;
    let watched = watch(&orders, &mut check);
    if let Some(storm) = &mut storm {
        let _ = storm.kill();
        let _ = storm.wait();
    }
    watched
}

/// `check` wants to find a filesystem on the first disk; those on the second it makes itself.
fn make_test_fs(orders: &Orders) -> Result<()> {
    let device = std::env::var("PINWB_DISK0").context("no disk")?;
    let output = Command::new(format!("mkfs.{}", orders.fs))
        .args(orders.mkfs.split_whitespace())
        .arg(device)
        .output()
        .with_context(|| format!("run mkfs.{}", orders.fs))?;
    if !output.status.success() {
        bail!(
            "mkfs.{}: {}",
            orders.fs,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

fn start_storm(seed: u64) -> Result<Child> {
    Command::new(programs::TEST)
        .arg("pinstorm")
        .arg(format!("--seed={seed}"))
        .arg(format!("--counts={STORM}"))
        .arg(format!("--own={TEST_DIR}"))
        .args([TEST_DIR, SCRATCH_MNT])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .context("run the storm")
}

fn check(orders: &Orders) -> Command {
    let disk = |i: usize| std::env::var(format!("PINWB_DISK{i}")).unwrap_or_default();
    let mut command = Command::new("./check");
    command
        .current_dir(CHECKOUT)
        .env("FSTYP", &orders.fs)
        .env("TEST_DEV", disk(0))
        .env("TEST_DIR", TEST_DIR)
        .env("SCRATCH_DEV", disk(1))
        .env("SCRATCH_MNT", SCRATCH_MNT)
        .env("LOGWRITES_DEV", disk(2))
        .env("RESULT_BASE", RESULTS)
        .env("DIFF_LENGTH", "40")
        .env("HOST", "pinwb")
        // Nobody answers udev cookies in the guest.
        .env("DM_DISABLE_UDEV", "1");
    let mut path = format!("{WRAPPERS}:{}", std::env::var("PATH").unwrap_or_default());
    if orders.pinstorm.is_some() {
        path = format!("{STORM_WRAPPERS}:{path}");
        // Refused with pins: collapse and insert range; clone, dedupe and exchange to the file.
        command.env("FSX_AVOID", "-C -I -J -B -0");
    }
    command.env("PATH", path);
    if !orders.mkfs.is_empty() {
        command.env("MKFS_OPTIONS", &orders.mkfs);
    }
    if !orders.mount.is_empty() {
        let options = format!("-o {}", orders.mount);
        command.env("MOUNT_OPTIONS", &options);
        command.env("TEST_FS_MOUNT_OPTS", &options);
    }
    command
        .args(&orders.tests)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    command
}

/// The test that runs.
struct Running {
    test: String,
    since: Instant,
    storm: Option<Storm>,
}

fn watch(orders: &Orders, check: &mut Child) -> Result<()> {
    let mut out = check.stdout.take().context("check has no output")?;
    let (to, from) = mpsc::channel();
    thread::spawn(move || {
        let mut buffer = vec![0; 4096];
        while let Ok(n @ 1..) = out.read(&mut buffer) {
            if to.send(buffer[..n].to_vec()).is_err() {
                break;
            }
        }
    });
    let mut reader = Reader::new(&orders.tests);
    let mut running: Option<Running> = None;
    let limit = Duration::from_secs(orders.limit);
    loop {
        let (said, end) = match from.recv_timeout(Duration::from_secs(1)) {
            Ok(bytes) => (reader.feed(&bytes), false),
            Err(RecvTimeoutError::Timeout) => (Vec::new(), false),
            Err(RecvTimeoutError::Disconnected) => (reader.finish(), true),
        };
        for piece in said {
            report(piece, &mut running, orders.pinstorm.is_some())?;
        }
        if let Some(run) = running.as_ref().filter(|run| run.since.elapsed() > limit) {
            // Where it hangs goes to the console; nothing can be unmounted any more.
            for key in ["w", "l"] {
                let _ = fs::write("/proc/sysrq-trigger", key);
            }
            tell(&Event::Overtime {
                test: run.test.clone(),
                seconds: run.since.elapsed().as_secs_f64(),
            })?;
            return Ok(());
        }
        if end {
            check.wait()?;
            return Ok(());
        }
    }
}

fn report(said: Said, running: &mut Option<Running>, storming: bool) -> Result<()> {
    match said {
        Said::Line(line) => tell(&Event::Note(line)),
        Said::Start(test) => {
            *running = Some(Running {
                test: test.clone(),
                since: Instant::now(),
                storm: storming.then(storm),
            });
            tell(&Event::Start(test))
        }
        Said::Done(test, verdict) => {
            let left = left_behind(&test);
            let files = match verdict {
                Verdict::Fail(_) => left.iter().filter_map(|p| keep(p)).collect(),
                _ => Vec::new(),
            };
            for path in left {
                let _ = fs::remove_file(path);
            }
            let run = running.take();
            let seconds = run
                .as_ref()
                .map_or(0.0, |r| r.since.elapsed().as_secs_f64());
            let storm = run
                .and_then(|r| r.storm)
                .map(|before| storm().since(before));
            tell(&Event::Done {
                test,
                verdict,
                seconds,
                storm,
                files,
            })
        }
    }
}

fn storm() -> Storm {
    fs::read_to_string(STORM)
        .ok()
        .and_then(|text| serde_json::from_str(&text).ok())
        .unwrap_or_default()
}

/// The files of a test in the results' directory. It is in memory, so they must go.
fn left_behind(test: &str) -> Vec<PathBuf> {
    let pattern = format!("{RESULTS}/{test}.*");
    glob::glob(&pattern)
        .into_iter()
        .flatten()
        .flatten()
        .collect()
}

/// The part of a file's name behind the test's, and what is in it.
fn keep(path: &Path) -> Option<(String, String)> {
    let name = path.file_name()?.to_str()?.split_once('.')?.1.to_string();
    let bytes = fs::read(path).ok()?;
    let tail = &bytes[bytes.len().saturating_sub(KEEP)..];
    Some((name, String::from_utf8_lossy(tail).into_owned()))
}
