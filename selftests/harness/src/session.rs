// SPDX-License-Identifier: GPL-2.0

//! `crash` and `soak`: one long run of the guest's program, whose output is passed on.

use std::io::{self, Write};
use std::time::Duration;

use anyhow::Result;

use crate::job::Job;
use crate::place::Place;
use crate::qemu::{self, Config, Stream};
use crate::{cache, programs};

/// What the user asked for.
#[derive(clap::Args, Debug)]
pub struct Options {
    #[command(flatten)]
    place: Place,
    /// Begin nothing after so many minutes
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// More arguments of the guest's program, see `pinwb-test help`
    #[arg(last = true)]
    pub more: Vec<String>,
}

/// What is under way may take after the time is over, and the boot before, on a slow host.
const SLACK: Duration = Duration::from_secs(900);

fn arguments(command: &str, options: &Options) -> Vec<String> {
    let mut argv = vec![programs::TEST.to_string(), command.into()];
    argv.extend(options.place.arguments());
    argv.push(format!("--minutes={}", options.minutes));
    argv.extend(options.more.iter().cloned());
    argv
}

/// Runs the command of the guest's program, and returns the exit status.
pub fn session(config: &Config, command: &str, options: &Options) -> Result<u8> {
    let log = cache::new_run(command)?;
    let config = Config {
        timeout: Duration::from_secs(60 * options.minutes) + SLACK,
        ..config.clone()
    };
    let job = Job {
        argv: arguments(command, options),
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
    println!("{command}: FAILED: {}", wrong.join("; "));
    Ok(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_reach_the_guest() {
        let options = Options {
            place: Place {
                fs: "ext4".into(),
                mkfs_opts: "-b 1024".into(),
                mount_opts: String::new(),
            },
            minutes: 2,
            more: vec!["--workload=cut".into()],
        };
        assert_eq!(
            arguments("crash", &options)[1..],
            [
                "crash",
                "--fs=ext4",
                "--mkfs-opts=-b 1024",
                "--mount-opts=",
                "--minutes=2",
                "--workload=cut"
            ]
        );
    }
}
