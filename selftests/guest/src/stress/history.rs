// SPDX-License-Identifier: GPL-2.0

//! Histories: playing them, playing them again, making those that fail short, and their form as text.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::mismatch::{Kind, Mismatch};
use super::op::{Op, Step, SyncCall};
use super::pressure::Pressure;
use super::shrink;
use super::worker::{Pattern, Worker};
use crate::context::Context;
use crate::map::PAGE;

/// The first line of a history: under which conditions it ran.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Where randomness started.
    pub seed: u64,
    /// Number of the round.
    pub round: u64,
    /// Number of the worker.
    pub worker: u64,
    /// How many files it has.
    pub files: usize,
    /// The flusher and other things run in the background, and perhaps other workers.
    pub pressure: bool,
}

impl Header {
    fn prefix(&self) -> String {
        format!("w{}-", self.worker)
    }

    /// Different histories for all workers and rounds.
    pub fn seed_of_history(&self) -> u64 {
        let place = self.round << 8 | self.worker;
        self.seed ^ place.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
}

/// Steps, and why the last of them failed.
#[derive(Debug)]
pub struct Failure {
    /// The conditions.
    pub header: Header,
    /// All steps up to the one that failed. The final comparison comes after the last.
    pub steps: Vec<Step>,
    /// What is wrong.
    pub mismatch: Mismatch,
}

/// How long a failing history may be shrunk.
const SHRINK: Duration = Duration::from_secs(180);
/// How often a history of a round with several workers is done again before it counts as not failing.
const ATTEMPTS: usize = 3;

/// Plays steps until there are none, then syncs and compares everything.
pub fn play<'a>(
    context: &'a Context,
    pattern: &'a Pattern,
    header: &Header,
    done: &AtomicU64,
    mut next: impl FnMut(&Worker<'_>) -> Option<Step>,
) -> Result<Worker<'a>> {
    let mut worker = Worker::new(context, pattern, &header.prefix(), header.files)?;
    while let Some(step) = next(&worker) {
        if worker.apply(&step)? {
            done.fetch_add(1, Ordering::Relaxed);
        }
    }
    worker.sync_all(SyncCall::Fsync)?;
    Ok(worker)
}

pub fn as_mismatch(error: anyhow::Error) -> Mismatch {
    let kind = error
        .downcast_ref()
        .map_or(Kind::Error, |m: &Mismatch| m.kind);
    let text = match error.downcast_ref::<Mismatch>() {
        Some(mismatch) if error.chain().len() == 1 => mismatch.text.clone(),
        _ => format!("{error:#}"),
    };
    Mismatch { kind, text }
}

/// Plays a history that exists already; says how it fails.
fn replay(
    context: &Context,
    pattern: &Pattern,
    header: &Header,
    steps: &[Step],
) -> Option<Mismatch> {
    let mut rest = steps.iter();
    play(context, pattern, header, &AtomicU64::new(0), |_| {
        rest.next().cloned()
    })
    .and_then(|worker| worker.finish(true))
    .err()
    .map(as_mismatch)
}

/// Steps that do less than one does, and may fail as well.
fn simpler(step: &Step) -> Vec<Step> {
    let mut found: Vec<Step> = Vec::new();
    let mut consider = |op: Op| {
        let step = Step {
            op,
            file: step.file,
        };
        found.push(step);
    };
    let page = PAGE as u64;
    match step.op {
        Op::Dma { slot, at, data, .. } => {
            let (at, len) = (at / page * page, page);
            consider(Op::Dma {
                slot,
                at,
                len,
                data,
            });
        }
        Op::Write { at, len, data } => {
            let (at, end) = (at / page * page, (at + len).next_multiple_of(page));
            let len = page.min(end - at);
            consider(Op::Write { at, len, data });
        }
        Op::Pin { slot, at, .. } => {
            let (at, len) = (at / page * page, page);
            consider(Op::Pin { slot, at, len });
        }
        Op::Sync { .. } => consider(Op::Sync {
            how: SyncCall::Fsync,
        }),
        _ => {}
    }
    found.retain(|simpler| simpler != step);
    found
}

/// A failing history as short as it could be made.
pub struct Shrunk {
    /// The conditions: without pressure if it fails without.
    pub header: Header,
    /// The steps.
    pub steps: Vec<Step>,
    /// How these fail.
    pub mismatch: Mismatch,
    /// Histories that were played for it.
    pub runs: usize,
}

/// Plays a history under its conditions, more than once if what goes on in the background may matter.
pub fn replay_as_told(
    context: &Context,
    pattern: &Pattern,
    header: &Header,
    steps: &[Step],
) -> Result<Option<Mismatch>> {
    let pressure = header.pressure.then(Pressure::start).transpose()?;
    let attempts = if header.pressure { ATTEMPTS } else { 1 };
    let found = (0..attempts).find_map(|_| replay(context, pattern, header, steps));
    drop(pressure);
    Ok(found)
}

/// Makes a failing history shorter. Nothing if it doesn't fail when it is done again.
pub fn shrunk(context: &Context, failure: &Failure) -> Result<Option<Shrunk>> {
    let pattern = Pattern::new()?;
    let mut header = failure.header.clone();
    header.pressure = false;
    let same = |found: &Mismatch| found.kind == failure.mismatch.kind;
    let mut runs = 1;
    let mut last = replay_as_told(context, &pattern, &header, &failure.steps)?.filter(same);
    if last.is_none() && failure.header.pressure {
        header.pressure = true;
        runs += 1;
        last = replay_as_told(context, &pattern, &header, &failure.steps)?.filter(same);
    }
    if last.is_none() {
        return Ok(None);
    }
    let end = Instant::now() + SHRINK;
    let mut fails = |steps: &[Step]| {
        if Instant::now() >= end {
            return None;
        }
        runs += 1;
        let found = replay_as_told(context, &pattern, &header, steps).ok()?;
        let found = found.filter(same);
        let failed = found.is_some();
        last = found.or(last.take());
        Some(failed)
    };
    let steps = shrink::shrink(failure.steps.clone(), &mut fails);
    let steps = shrink::simplify(steps, simpler, &mut fails);
    Ok(last.map(|mismatch| Shrunk {
        header,
        steps,
        mismatch,
        runs,
    }))
}

const BEGINS: &str = "stress: history begins";
const ENDS: &str = "stress: history ends";

fn print_history(header: &Header, steps: &[Step]) -> Result<()> {
    println!("{BEGINS}");
    println!("{}", serde_json::to_string(header)?);
    for step in steps {
        println!("{}", serde_json::to_string(step)?);
    }
    println!("{ENDS}");
    Ok(())
}

pub fn parse_history(text: &str) -> Result<(Header, Vec<Step>)> {
    let mut lines = text.lines().filter(|line| !line.trim().is_empty());
    let first = lines.next().context("an empty history")?;
    let header = serde_json::from_str(first).with_context(|| format!("not a header: {first}"))?;
    let steps = lines
        .map(|line| serde_json::from_str(line).with_context(|| format!("not a step: {line}")))
        .collect::<Result<_>>()?;
    Ok((header, steps))
}

/// Says why a run failed, with a history that is as short as can be. Returns that.
pub fn report_failure(context: &Context, failure: &Failure) -> Result<Option<Shrunk>> {
    let header = &failure.header;
    println!(
        "stress: seed {}, round {}, worker {}, step {}: {}",
        header.seed,
        header.round,
        header.worker,
        failure.steps.len(),
        failure.mismatch
    );
    if let Some(step) = failure.steps.last() {
        println!("stress: the last step: {}", serde_json::to_string(step)?);
    }
    let shrunk = shrunk(context, failure)?;
    match &shrunk {
        Some(shrunk) => {
            println!(
                "stress: {} steps left of {}, after {} runs: {}",
                shrunk.steps.len(),
                failure.steps.len(),
                shrunk.runs,
                shrunk.mismatch
            );
            print_history(&shrunk.header, &shrunk.steps)?;
        }
        None => {
            println!("stress: does not fail when it is done again, so it was not made shorter");
            print_history(header, &failure.steps)?;
        }
    }
    Ok(shrunk)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_can_be_read_back() {
        let text = "{\"seed\":7,\"round\":2,\"worker\":1,\"files\":3,\"pressure\":true}\n\
                    {\"file\":1,\"op\":\"truncate\",\"len\":5}\n";
        let (header, steps) = parse_history(text).unwrap();
        assert_eq!(header.worker, 1);
        assert_eq!(steps[0].op, Op::Truncate { len: 5 });
        assert!(parse_history("").is_err());
        assert!(parse_history("{}").is_err());
    }

    #[test]
    fn histories_differ() {
        let header = |round, worker| Header {
            seed: 1,
            round,
            worker,
            files: 3,
            pressure: false,
        };
        let seeds = [header(0, 0), header(0, 1), header(1, 0)].map(|h| h.seed_of_history());
        assert!(seeds[0] != seeds[1] && seeds[1] != seeds[2] && seeds[0] != seeds[2]);
    }

    #[test]
    fn simpler_steps_are_other_steps() {
        let step = Step {
            file: 1,
            op: Op::Pin {
                slot: 2,
                at: 5000,
                len: 9000,
            },
        };
        let simple = simpler(&step);
        assert_eq!(simple.len(), 1);
        assert_eq!(simple[0].file, 1);
        assert!(simpler(&simple[0]).is_empty());
    }
}
