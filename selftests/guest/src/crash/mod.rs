// SPDX-License-Identifier: GPL-2.0

//! Crash consistency: a workload runs on dm-log-writes, and what a power cut would have left is made again
//! and looked at, at every sync and at a sample of the points between.
//!
//! At each point: the image is mounted, with journal recovery; each file must be as [`model`] says; and the
//! filesystem must be sound afterwards.

mod command;
pub mod knock_out;
pub mod model;
mod random;
mod recorder;
pub mod workloads;
pub mod writer;

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context as _, Result};

pub use self::command::{run as run_command, Arguments};
use self::random::Random;
use self::recorder::{History, Recorder};
use self::workloads::{Scene, Workload};
use self::writer::Source;
use crate::context::Context;
use crate::disk;
use crate::ledger::Switch;
use crate::logwrites::{Image, Log};

/// What is to be run, and at how many points it is looked at.
pub struct Plan<'a> {
    /// Run one after the other on the same log.
    pub workloads: &'a [Workload],
    /// Stands in for what the workloads write with.
    pub source: Option<Source>,
    /// Syncs of each, about.
    pub steps: u32,
    /// Points beside the marks.
    pub points: usize,
    /// Where choices come from.
    pub seed: u64,
    /// Stop at the first point that is wrong.
    pub until_found: bool,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Points that were looked at, with the marks.
    pub points: usize,
    /// Marks among them.
    pub marks: usize,
    /// Entries of the log.
    pub entries: usize,
    /// What was wrong, one line each.
    pub faults: Vec<String>,
    /// Points with something wrong.
    pub wrong: usize,
}

/// Runs the workloads on a filesystem of [`crate::layer::Layer::LogWrites`], and looks at what power cuts leave.
/// `progress` is told how many points of how many are done. The switches are those of the workload only.
pub fn run(
    context: &Context,
    plan: &Plan<'_>,
    switches: Vec<Switch>,
    mut progress: impl FnMut(usize, usize),
) -> Result<Outcome> {
    let mut random = Random::new(plan.seed);
    // A commit, so that mkfs and mount are in the log before the first mark.
    context.create("begin")?.sync_all()?;
    let recorder = Recorder::start()?;
    for workload in plan.workloads {
        let mut scene = Scene {
            context,
            recorder: &recorder,
            random: Random::new(random.below(u64::MAX)),
            source: plan.source.unwrap_or(workload.source),
            steps: plan.steps,
        };
        (workload.run)(&mut scene).with_context(|| format!("workload {}", workload.name))?;
    }
    drop(switches);
    let history = recorder.finish();
    let log = Log::read(&disk::second()?, &history.last_mark())?;
    let points = choose(&log, &history.marks(&log), plan.points, &mut random);

    let mut outcome = Outcome {
        entries: log.entries.len(),
        ..Outcome::default()
    };
    let mut image = Image::new(context.size());
    let path = context.work().join("crash.img");
    let count = points.len();
    for point in points {
        image.replay(&log, point.entries)?;
        image.write_to(&path)?;
        let faults = look(context, &history, &point, &path);
        outcome.points += 1;
        outcome.marks += usize::from(point.is_mark);
        if !faults.is_empty() {
            outcome.wrong += 1;
            outcome.faults.push(format!(
                "after {} of {} log entries, {} mark {} ({}):",
                point.entries,
                log.entries.len(),
                if point.is_mark { "at" } else { "after" },
                point.mark,
                history.label(point.mark)
            ));
            outcome.faults.extend(faults);
            if plan.until_found {
                break;
            }
        }
        progress(outcome.points, count);
    }
    let _ = fs::remove_file(&path);
    Ok(outcome)
}

/// A time at which the power is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Point {
    /// Entries of the log that are on the disk.
    entries: usize,
    /// The last mark among them.
    mark: usize,
    /// That mark is the last of them.
    is_mark: bool,
}

/// All marks, and `more` others: those at a flush or FUA write and right before one first, because that is
/// where a commit becomes valid, and any others then.
fn choose(log: &Log, marks: &[usize], more: usize, random: &mut Random) -> Vec<Point> {
    let (Some(first), Some(last)) = (marks.first().copied(), marks.last().copied()) else {
        return Vec::new();
    };
    let barriers = log.entries[..last]
        .iter()
        .enumerate()
        .filter(|(_, entry)| entry.barrier)
        .flat_map(|(index, _)| [index, index + 1]);
    let inside = |point: &usize| (first..last).contains(point) && !marks.contains(point);
    let barriers: BTreeSet<usize> = barriers.filter(inside).collect();
    let others: BTreeSet<usize> = (first..last)
        .filter(inside)
        .filter(|point| !barriers.contains(point))
        .collect();
    // Mostly where it matters most.
    let mut chosen = sample(barriers, more - more / 4, random);
    let left = more - chosen.len();
    chosen.extend(sample(others, left, random));
    chosen.extend(marks);
    chosen
        .into_iter()
        .map(|entries| {
            let mark = marks.partition_point(|mark| *mark <= entries) - 1;
            Point {
                entries,
                mark,
                is_mark: marks[mark] == entries,
            }
        })
        .collect()
}

fn sample(from: BTreeSet<usize>, count: usize, random: &mut Random) -> BTreeSet<usize> {
    let mut from: Vec<usize> = from.into_iter().collect();
    let mut chosen = BTreeSet::new();
    while chosen.len() < count && !from.is_empty() {
        let index = random.below(from.len() as u64) as usize;
        chosen.insert(from.swap_remove(index));
    }
    chosen
}

/// Recovers an image, compares its files and checks it. Says what is wrong.
fn look(context: &Context, history: &History, point: &Point, image: &Path) -> Vec<String> {
    let stale = context.kind().exposes_stale_blocks(context.mount_options());
    let mut faults = Vec::new();
    let seen = context.with_image(image, |root| {
        for (file, allowed) in history.expected(point.mark, point.is_mark) {
            match fs::read(root.join(&file.name)) {
                Ok(bytes) => faults.extend(file.judge(allowed, Some(&bytes), stale)),
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    faults.extend(file.judge(allowed, None, stale));
                }
                Err(error) => faults.push(format!("{}: {error}", file.name)),
            }
        }
        Ok(())
    });
    faults.extend(seen.err().map(|error| format!("{error:#}")));
    faults
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logwrites::{Action, Entry};

    fn log(actions: &str) -> Log {
        let mut marks = 0;
        let entries = actions.chars().map(|action| Entry {
            position: 0,
            action: match action {
                'm' => {
                    marks += 1;
                    Action::Mark((marks - 1).to_string())
                }
                _ => Action::Write(0..0),
            },
            barrier: action == 'f',
        });
        Log::of(entries.collect())
    }

    #[test]
    fn all_marks_and_the_flushes_first() {
        let log = log("wfmwwwwfwwwwm");
        let chosen = |more| {
            choose(&log, &[3, 13], more, &mut Random::new(1))
                .iter()
                .map(|point| (point.entries, point.mark, point.is_mark))
                .collect::<Vec<_>>()
        };
        assert_eq!(chosen(0), [(3, 0, true), (13, 1, true)]);
        assert_eq!(
            chosen(2),
            [(3, 0, true), (7, 0, false), (8, 0, false), (13, 1, true)]
        );
        assert_eq!(chosen(100).len(), 11);
    }
}
