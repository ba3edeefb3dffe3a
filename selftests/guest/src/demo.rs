// SPDX-License-Identifier: GPL-2.0

//! A mapped file, a device that writes to it by RDMA, an fsync that runs meanwhile, and the raw disk.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{bail, Context as _, Result};
use serde_json::json;

use crate::context::Context;
use crate::device::{errno, Kind};
use crate::kmsg::Kmsg;
use crate::layer::Layer;
use crate::ledger::Stats;
use crate::map::Mapping;
use crate::mounted::on_new_filesystem;
use crate::options::Options;
use crate::stamp::Stamp;

const LEN: u64 = 64 << 20;
const ROUNDS: u32 = 3;

/// What the demonstration found.
#[derive(Default)]
struct Report {
    /// Why the kernel would not pin; none if it did.
    refused: Option<String>,
    seconds_of_rdma: f64,
    fsyncs: Vec<Duration>,
    bounced_bytes: u64,
    mismatches: usize,
    rounds: u32,
}

impl Report {
    fn megabytes_per_second(&self) -> f64 {
        match self.seconds_of_rdma {
            seconds if seconds > 0.0 => f64::from(self.rounds) * LEN as f64 / 1e6 / seconds,
            _ => 0.0,
        }
    }

    /// The fsync time that so many percent of all calls stayed below, in milliseconds.
    fn percentile(&self, percent: usize) -> f64 {
        let mut times = self.fsyncs.clone();
        times.sort();
        let index = (times.len() * percent).div_ceil(100).saturating_sub(1);
        times
            .get(index)
            .map_or(0.0, |time| time.as_secs_f64() * 1e3)
    }
}

fn rounded(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

/// Runs it and prints one line of JSON, or some of text.
pub fn run(as_json: bool, options: &Options) -> Result<()> {
    let report = on_new_filesystem(options, Layer::Disk, ["", ""], measure)?;
    let speed = rounded(report.megabytes_per_second());
    let (p50, p99) = (
        rounded(report.percentile(50)),
        rounded(report.percentile(99)),
    );
    if as_json {
        let line = json!({
            "refused": report.refused.is_some(),
            "message": report.refused.as_deref().unwrap_or(""),
            "mb_per_s": speed,
            "fsync_p50_ms": p50,
            "fsync_p99_ms": p99,
            "fsyncs": report.fsyncs.len(),
            "bounced_bytes": report.bounced_bytes,
            "mismatches": report.mismatches,
            "rounds": report.rounds,
        });
        println!("{line}");
    } else if let Some(message) = &report.refused {
        println!("refused: {message}");
    } else {
        println!(
            "{} rounds, {speed} MB/s, fsync p50 {p50} ms, p99 {p99} ms, {} bytes bounced, \
             {} sectors differ on the disk",
            report.rounds, report.bounced_bytes, report.mismatches
        );
    }
    Ok(())
}

fn measure(context: &Context) -> Result<Report> {
    let mut report = Report::default();
    let stamp = Stamp::fresh();
    let file = context.sparse("demo", LEN)?;
    let map = Mapping::shared(&file, 0, LEN as usize)?;
    let mut kmsg = Kmsg::follow();
    let mut device = match Kind::Verbs.attach(&map, 0..LEN) {
        Ok(device) => device,
        Err(error) if errno(&error) == Some(libc::EFAULT) => {
            let mut message = format!("{error:#}");
            if let Some(line) = kmsg.wait_for("pinwb: refused", 1) {
                message = format!("{message}; kernel: {line}");
            }
            report.refused = Some(message);
            return Ok(report);
        }
        Err(error) => return Err(error),
    };
    let bounced = || Stats::read().map_or(0, |stats| stats.get("bounced_bytes"));
    let before = bounced();
    for round in 1..=ROUNDS {
        let stamp = stamp.round(round);
        let (report, file, device) = (&mut report, &file, &mut device);
        let seconds = thread::scope(|scope| -> Result<f64> {
            let writer = scope.spawn(|| -> Result<f64> {
                let start = Instant::now();
                device.write(stamp, 0..LEN)?;
                Ok(start.elapsed().as_secs_f64())
            });
            let mut synced = Ok(());
            while synced.is_ok() && !writer.is_finished() {
                let start = Instant::now();
                synced = file.sync_all();
                report.fsyncs.push(start.elapsed());
            }
            let seconds = match writer.join() {
                Ok(seconds) => seconds?,
                Err(_) => bail!("the writer panicked"),
            };
            synced.context("fsync while RDMA runs")?;
            Ok(seconds)
        })?;
        report.seconds_of_rdma += seconds;
        let start = Instant::now();
        file.sync_all()?;
        report.fsyncs.push(start.elapsed());
        let expected = stamp.bytes(0, LEN as usize);
        report.mismatches += context.mismatches(file, 0..LEN, &expected, stamp)?;
        report.rounds += 1;
    }
    report.bounced_bytes = bounced() - before;
    device.unpin()?;
    Ok(report)
}
