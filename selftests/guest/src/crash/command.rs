// SPDX-License-Identifier: GPL-2.0

//! `crash`: passes of workload and variant until the time is over.

use std::io::Write;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{bail, Result};
use clap::Args;

use super::workloads::{self, Workload};
use super::writer::Source;
use super::{knock_out, Outcome, Plan};
use crate::fs as filesystem;
use crate::layer::Layer;
use crate::mounted::on_new_filesystem;
use crate::options::Options;

/// What the user asked for.
#[derive(Args, Clone, Debug)]
pub struct Arguments {
    /// Begin no pass after so many minutes
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// No more passes than this
    #[arg(long)]
    passes: Option<u64>,
    /// Begin with this pass, counted from 0; the same seed and pass do the same again
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Where all choices come from [default: the time]
    #[arg(long)]
    seed: Option<u64>,
    /// Only this workload
    #[arg(long)]
    workload: Option<String>,
    /// Write with this instead of what a workload uses
    #[arg(long)]
    source: Option<Source>,
    /// Only the options of the command line, not the variants of the filesystem
    #[arg(long)]
    no_variants: bool,
    /// Syncs in a workload, about
    #[arg(long, default_value_t = 8)]
    steps: u32,
    /// Points in a pass beside its marks
    #[arg(long, default_value_t = 16)]
    points: usize,
    /// Leave this safety step out, and fail unless a loss is found
    #[arg(long, value_name = "SWITCH")]
    knock_out: Option<String>,
}

/// One workload on one variant of the filesystem.
struct Pass<'a> {
    number: u64,
    workload: &'a Workload,
    mkfs: &'static str,
    mount: &'static str,
    seed: u64,
}

const PROGRESS: Duration = Duration::from_secs(10);

/// Runs it; true if all is well.
pub fn run(arguments: &Arguments, options: &Options) -> Result<bool> {
    let seed = arguments.seed.unwrap_or_else(|| {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(1, |time| time.as_secs())
    });
    println!("SEED={seed}");
    let start = Instant::now();
    let mut sum = Outcome::default();
    let mut passes = 0;
    loop {
        let late = start.elapsed() >= Duration::from_secs(60 * arguments.minutes);
        let found = arguments.knock_out.is_some() && sum.wrong > 0;
        if late && passes > 0 || found || Some(passes) == arguments.passes {
            break;
        }
        let pass = pass(arguments, options, seed, arguments.first + passes)?;
        let outcome = run_pass(arguments, options, &pass, start)?;
        passes += 1;
        sum.points += outcome.points;
        sum.marks += outcome.marks;
        sum.entries += outcome.entries;
        sum.wrong += outcome.wrong;
    }
    let figures = format!(
        "{passes} passes, {} log entries, {} points ({} of them syncs), {} of them wrong, {} s",
        sum.entries,
        sum.points,
        sum.marks,
        sum.wrong,
        start.elapsed().as_secs()
    );
    let good = match &arguments.knock_out {
        None => sum.wrong == 0 && sum.points > 0,
        Some(_) => sum.wrong > 0,
    };
    let verdict = match (&arguments.knock_out, good) {
        (None, true) => "crash: PASSED".to_owned(),
        (None, false) => "crash: FAILED".to_owned(),
        (Some(switch), true) => format!("crash: without {switch}, found as it must be"),
        (Some(switch), false) => format!("crash: FAILED: {switch} is knocked out, nothing found"),
    };
    println!("{verdict}: {figures}, SEED={seed}");
    Ok(good)
}

/// The passes go through all pairs of workload and variant before any comes again with another seed.
fn pass<'a>(
    arguments: &'a Arguments,
    options: &Options,
    seed: u64,
    number: u64,
) -> Result<Pass<'a>> {
    let only = match (&arguments.workload, &arguments.knock_out) {
        (Some(name), _) => Some(name.as_str()),
        (None, Some(switch)) => knock_out::workload(switch),
        (None, None) => None,
    };
    let workloads: Vec<&Workload> = workloads::ALL
        .iter()
        .filter(|workload| only.is_none_or(|only| workload.name == only))
        .collect();
    if workloads.is_empty() {
        bail!("no workload {}", only.unwrap_or_default());
    }
    let variants = match arguments.no_variants {
        true => &[("", "")],
        false => filesystem::by_name(&options.fs)?.variants(),
    };
    // Each round through all workloads moves on by one variant.
    let (round, index) = (
        number as usize / workloads.len(),
        number as usize % workloads.len(),
    );
    let (mkfs, mount) = variants[(round + index) % variants.len()];
    Ok(Pass {
        number,
        workload: workloads[index],
        mkfs,
        mount,
        seed: seed.wrapping_add(number),
    })
}

fn run_pass(
    arguments: &Arguments,
    options: &Options,
    pass: &Pass<'_>,
    start: Instant,
) -> Result<Outcome> {
    let mkfs = format!("{} {}", options.mkfs_opts, pass.mkfs);
    let mount = filesystem::join_options(&[&options.mount_opts, pass.mount]);
    let label = format!(
        "pass {}: {} on {} [{}] [{mount}]",
        pass.number,
        pass.workload.name,
        options.fs,
        mkfs.trim()
    );
    let begin = Instant::now();
    let mut printed = begin;
    let plan = Plan {
        workloads: std::slice::from_ref(pass.workload),
        source: arguments.source,
        steps: arguments.steps,
        points: arguments.points,
        seed: pass.seed,
        until_found: arguments.knock_out.is_some(),
    };
    let switches = match &arguments.knock_out {
        Some(switch) => knock_out::switches(switch)?,
        None => Vec::new(),
    };
    let mut looking = None;
    let outcome = on_new_filesystem(
        options,
        Layer::LogWrites,
        [pass.mkfs, pass.mount],
        |context| {
            super::run(context, &plan, switches, |done, of| {
                let looking = looking.get_or_insert_with(Instant::now);
                if printed.elapsed() < PROGRESS {
                    return;
                }
                printed = Instant::now();
                let each = looking.elapsed().as_secs_f32() / done.saturating_sub(1).max(1) as f32;
                println!(
                    "{label}: point {done} of {of}, {:.0} s left of it; {} of {} minutes",
                    each * (of - done) as f32,
                    start.elapsed().as_secs() / 60,
                    arguments.minutes
                );
                let _ = std::io::stdout().flush();
            })
        },
    )?;
    println!(
        "{label}: {} log entries, {} points, {} wrong, {:.1} s",
        outcome.entries,
        outcome.points,
        outcome.wrong,
        begin.elapsed().as_secs_f32()
    );
    for fault in &outcome.faults {
        println!("    {fault}");
    }
    if outcome.wrong > 0 {
        println!(
            "    again: --seed {} --first {} --passes 1",
            pass.seed.wrapping_sub(pass.number),
            pass.number
        );
    }
    let _ = std::io::stdout().flush();
    Ok(outcome)
}
