// SPDX-License-Identifier: GPL-2.0

//! `stress`: random histories of pinned files in one long-lived guest.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::cache;
use crate::job::Job;
use crate::place::Place;
use crate::programs;
use crate::qemu::{self, Config, End, Outcome, Stream};

/// What the user asked for.
#[derive(clap::Args, Debug)]
pub struct Options {
    #[command(flatten)]
    place: Place,
    /// Run at least so many minutes
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// Run at least so many operations
    #[arg(long, default_value_t = 1_000_000)]
    ops: u64,
    /// Where randomness starts; by default the clock says
    #[arg(long)]
    seed: Option<u64>,
    /// Leave out one safety step of the kernel
    #[arg(long, value_name = "NAME")]
    knock_out: Option<String>,
    /// Do this history again instead
    #[arg(long, value_name = "FILE")]
    replay: Option<PathBuf>,
    /// More for `pinwb-test stress`
    #[arg(last = true)]
    more: Vec<String>,
}

/// MiB of the filesystem: what is imaged for a power cut should be small.
const SIZE: u32 = 64;
/// Slower than this, in operations a second, is stuck.
const SLOWEST: u64 = 50;
/// For booting, and for making a failing history short.
const MARGIN: u64 = 900;
/// The kernel takes no argument above 128 KiB.
const PIECE: usize = 100 << 10;

/// What the guest prints around a history that fails.
const BEGINS: &str = "stress: history begins";
const ENDS: &str = "stress: history ends";

/// Cuts a text at line ends.
fn pieces(text: &str) -> Vec<String> {
    let mut pieces: Vec<String> = Vec::new();
    for line in text.lines() {
        match pieces.last_mut() {
            Some(last) if last.len() + line.len() < PIECE => {
                last.push('\n');
                last.push_str(line);
            }
            _ => pieces.push(line.to_string()),
        }
    }
    pieces
}

fn argv(options: &Options) -> Result<Vec<String>> {
    let mut argv: Vec<String> = vec![programs::TEST.into(), "stress".into()];
    argv.extend(options.place.arguments());
    argv.extend([
        format!("--size-mib={SIZE}"),
        format!("--minutes={}", options.minutes),
        format!("--ops={}", options.ops),
    ]);
    if let Some(seed) = options.seed {
        argv.push(format!("--seed={seed}"));
    }
    if let Some(name) = &options.knock_out {
        argv.push(format!("--knock-out={name}"));
    }
    if let Some(path) = &options.replay {
        let text =
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        argv.extend(pieces(&text).iter().map(|p| format!("--history={p}")));
    }
    argv.extend_from_slice(&options.more);
    Ok(argv)
}

/// The history in the guest's output, if there is one.
fn history(output: &str) -> Option<String> {
    let (_, rest) = output.split_once(BEGINS)?;
    let (history, _) = rest.split_once(ENDS)?;
    Some(history.trim_start().to_string())
}

/// Why the run is not a success.
fn wrong(outcome: &Outcome) -> Option<String> {
    if let Some(splat) = outcome.splats.first() {
        return Some(format!("splat: {}", splat.title));
    }
    if let Some(wrong) = outcome.wrong.first() {
        return Some(wrong.clone());
    }
    match outcome.end {
        End::Exit(1) => Some("see above".to_string()),
        _ => outcome.end.complaint(),
    }
}

/// Runs it; returns the exit status.
pub fn stress(config: &Config, options: &Options) -> Result<u8> {
    let log = cache::new_run("stress")?;
    let seconds = (options.minutes * 60.0) as u64 + options.ops / SLOWEST + MARGIN;
    let config = Config {
        timeout: Duration::from_secs(seconds),
        silence: Duration::from_secs(MARGIN),
        ..config.clone()
    };
    let job = Job {
        argv: argv(options)?,
        ..Job::default()
    };
    let mut file = File::create(log.join("stdout.log"))?;
    let mut output = Vec::new();
    let outcome = qemu::boot(&config, &job, &log, &mut |stream, bytes| {
        // A closed pipe is the reader's choice; the exit status still counts.
        let _ = match stream {
            Stream::Out => {
                output.extend_from_slice(bytes);
                let _ = file.write_all(bytes);
                io::stdout().write_all(bytes).and(io::stdout().flush())
            }
            Stream::Err => io::stderr().write_all(bytes),
        };
    })?;
    outcome.complain();
    if let Some(history) = history(&String::from_utf8_lossy(&output)) {
        let path = log.join("history.jsonl");
        fs::write(&path, history)?;
        println!("the history is in {}; --replay takes it", path.display());
    }
    match wrong(&outcome) {
        None => {
            println!("PASSED; logs in {}", log.display());
            Ok(0)
        }
        Some(why) => {
            println!("FAILED: {why}; logs in {}", log.display());
            Ok(1)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_is_found() {
        let output = "x\nstress: history begins\n{\"a\":1}\n{}\nstress: history ends\ny\n";
        assert_eq!(history(output).unwrap(), "{\"a\":1}\n{}\n");
        assert_eq!(history("stress: history begins\n{}\n"), None);
    }

    #[test]
    fn long_histories_travel_in_pieces() {
        let line = "x".repeat(PIECE / 3);
        let text = [line.as_str(); 5].join("\n");
        let pieces = pieces(&text);
        assert!(pieces.len() > 1 && pieces.iter().all(|piece| piece.len() <= PIECE));
        assert_eq!(pieces.join("\n"), text);
    }
}
