// SPDX-License-Identifier: GPL-2.0

//! `crash` and `soak`: one long run of the guest's program, whose output is passed on.

use std::io::{self, Write};
use std::time::Duration;

use anyhow::Result;

use crate::job::Job;
use crate::qemu::{self, Config, Stream};
use crate::{cache, programs};

/// What the user asked for.
#[derive(Debug)]
pub struct Options {
    /// The command of the guest's program.
    pub command: &'static str,
    /// The filesystem.
    pub fs: String,
    /// Options for every mkfs.
    pub mkfs_opts: String,
    /// Options for every mount.
    pub mount_opts: String,
    /// Begin nothing after so many minutes.
    pub minutes: u64,
    /// Where all choices come from.
    pub seed: Option<u64>,
    /// More arguments of the guest's program.
    pub more: Vec<String>,
}

/// What is under way may take after the time is over, and the boot before, on a slow host.
const SLACK: Duration = Duration::from_secs(900);

fn arguments(options: &Options) -> Vec<String> {
    let mut argv = vec![
        programs::TEST.to_string(),
        options.command.into(),
        format!("--fs={}", options.fs),
        format!("--mkfs-opts={}", options.mkfs_opts),
        format!("--mount-opts={}", options.mount_opts),
        format!("--minutes={}", options.minutes),
    ];
    argv.extend(options.seed.map(|seed| format!("--seed={seed}")));
    argv.extend(options.more.iter().cloned());
    argv
}

/// Runs it, and returns the exit status.
pub fn session(config: &Config, options: &Options) -> Result<u8> {
    let log = cache::new_run(options.command)?;
    let config = Config {
        timeout: Duration::from_secs(60 * options.minutes) + SLACK,
        ..config.clone()
    };
    let job = Job {
        argv: arguments(options),
        ..Job::default()
    };
    let outcome = qemu::boot(&config, &job, &log, &mut |stream, bytes| {
        // A closed pipe is the reader's choice; the exit status still counts.
        let _ = match stream {
            Stream::Out => io::stdout().write_all(bytes).and(io::stdout().flush()),
            Stream::Err => io::stderr().write_all(bytes),
        };
    })?;
    outcome.complain();
    let mut wrong: Vec<String> = outcome.end.complaint().into_iter().collect();
    wrong.extend(outcome.splats.iter().map(|s| format!("splat: {}", s.title)));
    wrong.extend(outcome.wrong.iter().cloned());
    println!("console in {}", outcome.console.display());
    if wrong.is_empty() {
        return Ok(0);
    }
    println!("{}: FAILED: {}", options.command, wrong.join("; "));
    Ok(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_reach_the_guest() {
        let options = Options {
            command: "crash",
            fs: "ext4".into(),
            mkfs_opts: "-b 1024".into(),
            mount_opts: String::new(),
            minutes: 2,
            seed: Some(5),
            more: vec!["--workload=cut".into()],
        };
        assert_eq!(
            arguments(&options)[2..],
            [
                "--fs=ext4",
                "--mkfs-opts=-b 1024",
                "--mount-opts=",
                "--minutes=2",
                "--seed=5",
                "--workload=cut"
            ]
        );
    }
}
