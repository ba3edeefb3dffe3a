// SPDX-License-Identifier: GPL-2.0

//! Random histories of a few files: devices that write through pins, stores, system calls, and a model of
//! what each file must contain, which is compared with the disk after each sync.
//!
//! Rounds alternate. In one, a single worker has the filesystem for itself and nothing writes back but what
//! it calls; it may freeze and unmount. In the next, several workers with files of their own run at once,
//! while the flusher writes back without pause and all caches are dropped again and again. A worker's
//! history depends on the seed, the round and its number alone, so it can be done again, and made shorter.

mod generate;
mod history;
mod mismatch;
mod model;
mod op;
mod pressure;
mod shrink;
mod subject;
mod tally;
mod worker;

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{bail, Context as _, Result};
use clap::Args;

use self::generate::Generator;
pub use self::history::report_failure;
use self::history::{as_mismatch, parse_history, play, replay_as_told, Failure, Header};
pub use self::mismatch::Kind;
use self::pressure::Pressure;
use self::tally::Tally;
use self::worker::{Pattern, Worker};
use crate::context::Context;
use crate::ledger::Switch;

/// How long, how much, and from which seed.
#[derive(Args, Clone, Debug)]
pub struct Arguments {
    /// Run at least so many minutes
    #[arg(long, default_value_t = 10.0)]
    pub minutes: f64,
    /// Run at least so many operations
    #[arg(long, default_value_t = 1_000_000)]
    pub ops: u64,
    /// Where randomness starts; by default the clock says
    #[arg(long)]
    pub seed: Option<u64>,
    /// The first round
    #[arg(long, default_value_t = 0)]
    pub round: u64,
    /// Workers in the rounds that have several
    #[arg(long, default_value_t = 2)]
    pub workers: u64,
    /// Leave out one safety step of the kernel
    #[arg(long, value_name = "NAME")]
    pub knock_out: Option<String>,
    /// Never take this step, to see past a bug that is known; may be given more than once
    #[arg(long, value_name = "STEP")]
    pub without: Vec<String>,
    /// Do a history again instead, as it was printed; several are one in parts
    #[arg(long, value_name = "LINES")]
    pub history: Vec<String>,
    /// The same from a file
    #[arg(long, value_name = "FILE")]
    pub replay: Option<PathBuf>,
}

/// What to run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where randomness starts.
    pub seed: u64,
    /// The first round.
    pub round: u64,
    /// Not less than this.
    pub time: Duration,
    /// Not less than this.
    pub ops: u64,
    /// Workers in the rounds that have several; at least one.
    pub workers: u64,
    /// Steps that are never taken, by name.
    pub without: Vec<String>,
}

/// What came of a run.
#[derive(Debug)]
pub struct Outcome {
    /// What was done.
    pub tally: Tally,
    /// How long it took.
    pub elapsed: Duration,
    /// Rounds.
    pub rounds: u64,
    /// Images of a power cut, remounts with fsck between the rounds.
    pub checkpoints: u64,
    /// The first failure, which ended the run.
    pub failure: Option<Failure>,
}

/// Steps of one history.
const STEPS: usize = 2000;
/// Files of one worker.
const FILES: usize = 3;
/// Every so many rounds with several workers end in a power cut and a remount.
const CHECKPOINT: u64 = 4;
const PROGRESS: Duration = Duration::from_secs(10);
/// Makes up a history and plays it.
fn explore<'a>(
    context: &'a Context,
    pattern: &'a Pattern,
    header: &Header,
    without: &[String],
    done: &AtomicU64,
    stop: &AtomicBool,
) -> std::result::Result<Worker<'a>, Failure> {
    let mut generator =
        Generator::new(header.seed_of_history(), !header.pressure, without.to_vec());
    let mut steps = Vec::new();
    let played = play(context, pattern, header, done, |worker| {
        if steps.len() >= STEPS || stop.load(Ordering::Relaxed) {
            return None;
        }
        let step = generator.step(worker);
        steps.push(step.clone());
        Some(step)
    });
    played.map_err(|error| {
        stop.store(true, Ordering::Relaxed);
        Failure {
            header: header.clone(),
            steps,
            mismatch: as_mismatch(error),
        }
    })
}

/// Runs rounds until there was enough of them, or one failed.
pub fn run(context: &Context, plan: &Plan) -> Result<Outcome> {
    pressure::quiet()?;
    let pattern = Pattern::new()?;
    let start = Instant::now();
    let done = AtomicU64::new(0);
    let mut outcome = Outcome {
        tally: Tally::default(),
        elapsed: Duration::ZERO,
        rounds: 0,
        checkpoints: 0,
        failure: None,
    };
    let mut said = start;
    loop {
        let elapsed = start.elapsed();
        let ops = done.load(Ordering::Relaxed);
        if elapsed >= plan.time && ops >= plan.ops || outcome.failure.is_some() {
            outcome.elapsed = elapsed;
            return Ok(outcome);
        }
        if said.elapsed() >= PROGRESS {
            said = Instant::now();
            println!("{}", progress(plan, elapsed, ops, &outcome));
        }
        let round = plan.round + outcome.rounds;
        round_of(context, &pattern, plan, round, &done, &mut outcome)?;
        outcome.rounds += 1;
    }
}

fn round_of(
    context: &Context,
    pattern: &Pattern,
    plan: &Plan,
    round: u64,
    done: &AtomicU64,
    outcome: &mut Outcome,
) -> Result<()> {
    let alone = round % 2 == 0;
    let count = if alone { 1 } else { plan.workers };
    let pressure = (!alone).then(Pressure::start).transpose()?;
    let stop = AtomicBool::new(false);
    let played: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..count)
            .map(|worker| {
                let header = Header {
                    seed: plan.seed,
                    round,
                    worker,
                    files: FILES,
                    pressure: !alone,
                };
                let stop = &stop;
                scope.spawn(move || explore(context, pattern, &header, &plan.without, done, stop))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join()).collect()
    });
    drop(pressure);
    let mut workers = Vec::new();
    for played in played {
        match played {
            Ok(Ok(worker)) => workers.push(worker),
            Ok(Err(failure)) => outcome.failure = outcome.failure.take().or(Some(failure)),
            Err(_) => bail!("a worker of round {round} panicked"),
        }
    }
    if outcome.failure.is_none() && !alone && round / 2 % CHECKPOINT == CHECKPOINT - 1 {
        let keep_pins = round / 2 / CHECKPOINT % 2 == 0;
        worker::power_cut(context, &workers.iter().collect::<Vec<_>>())
            .and_then(|()| worker::remount(context, &mut workers, keep_pins))
            .with_context(|| format!("after round {round} of seed {}", plan.seed))?;
        outcome.checkpoints += 1;
    }
    for worker in workers {
        outcome.tally.add(&worker.finish(round % 3 == 0)?);
    }
    Ok(())
}

fn progress(plan: &Plan, elapsed: Duration, ops: u64, outcome: &Outcome) -> String {
    let seconds = elapsed.as_secs_f64();
    let rate = ops as f64 / seconds.max(0.001);
    let by_ops = plan.ops.saturating_sub(ops) as f64 / rate.max(0.001);
    let by_time = plan.time.saturating_sub(elapsed).as_secs_f64();
    format!(
        "stress: {seconds:.0} s, {ops} operations ({rate:.0}/s), {} comparisons with the disk, round {}, \
         {:.0} s to go",
        outcome.tally.compared,
        plan.round + outcome.rounds,
        by_ops.max(by_time)
    )
}

/// One line for each kind of step.
fn print_mix(tally: &Tally) {
    let total = tally.total().max(1);
    let mut counts: Vec<_> = tally.counts.iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(count.steps));
    for (name, count) in counts {
        let share = count.steps as f64 * 100.0 / total as f64;
        let mean = count.time.as_secs_f64() * 1e6 / count.steps.max(1) as f64;
        println!(
            "stress: {name:<14} {:>9}  {share:>5.1} %  {mean:>9.0} us each",
            count.steps
        );
    }
}

/// A seed that is another one each time.
pub fn seed_of_clock() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |time| time.as_nanos() as u64)
        % 1_000_000_000
}

/// Runs as told and prints what comes of it. Returns true if all was well.
pub fn command(context: &Context, arguments: &Arguments) -> Result<bool> {
    pressure::quiet()?;
    let _switch = arguments
        .knock_out
        .as_deref()
        .map(Switch::knock_out)
        .transpose()?;
    let mut history = arguments.history.join("\n");
    if let Some(path) = &arguments.replay {
        history = fs::read_to_string(path)?;
    }
    if !history.is_empty() {
        return replay_text(context, &history);
    }
    let plan = Plan {
        seed: arguments.seed.unwrap_or_else(seed_of_clock),
        round: arguments.round,
        time: Duration::from_secs_f64(arguments.minutes * 60.0),
        ops: arguments.ops,
        workers: arguments.workers.max(1),
        without: arguments.without.clone(),
    };
    println!("stress: seed {}", plan.seed);
    let outcome = run(context, &plan)?;
    if let Some(failure) = &outcome.failure {
        report_failure(context, failure)?;
        return Ok(false);
    }
    print_mix(&outcome.tally);
    println!("{}", verdict(&plan, &outcome));
    Ok(true)
}

/// What was done, in one line.
pub fn verdict(plan: &Plan, outcome: &Outcome) -> String {
    let seconds = outcome.elapsed.as_secs_f64();
    let total = outcome.tally.total();
    format!(
        "stress: seed {}: {total} operations in {seconds:.0} s ({:.0}/s), {} rounds, {} comparisons with the \
         disk, {} power cuts, {} remounts, {} writes by devices to orphans; {}",
        plan.seed,
        total as f64 / seconds.max(0.001),
        outcome.rounds,
        outcome.tally.compared,
        outcome.checkpoints + outcome.tally.steps("power_cut"),
        outcome.checkpoints + outcome.tally.steps("remount"),
        outcome.tally.orphaned_dma,
        match outcome.failure {
            Some(_) => "a mismatch",
            None => "no mismatch",
        }
    )
}

/// Plays a history that is given as text. Returns true if all was well.
pub fn replay_text(context: &Context, text: &str) -> Result<bool> {
    pressure::quiet()?;
    let (header, steps) = parse_history(text)?;
    let pattern = Pattern::new()?;
    let found = replay_as_told(context, &pattern, &header, &steps)?;
    match &found {
        Some(mismatch) => println!("stress: {} steps: {mismatch}", steps.len()),
        None => println!("stress: {} steps, no mismatch", steps.len()),
    }
    Ok(found.is_none())
}
