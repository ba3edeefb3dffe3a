// SPDX-License-Identifier: GPL-2.0

//! A short slice of what the command `crash` does at length.

use anyhow::{bail, Result};

use crate::context::Context;
use crate::crash::{self, knock_out, workloads, Plan};
use crate::diag;
use crate::layer::Layer;
use crate::tap::Test;

pub const TESTS: &[Test] = &[
    Test::new("crash.short", short)
        .on(Layer::LogWrites)
        .timeout(300),
    Test::new("crash.knockout", knockout)
        .on(Layer::LogWrites)
        .timeout(300),
];

const SEED: u64 = 7;
const ATTEMPTS: u64 = 8;

fn plan(workloads: &[workloads::Workload]) -> Plan<'_> {
    Plan {
        workloads,
        source: None,
        steps: 2,
        points: 10,
        seed: SEED,
        until_found: false,
    }
}

fn workloads_named(names: &[&str]) -> Vec<workloads::Workload> {
    workloads::ALL
        .iter()
        .filter(|workload| names.contains(&workload.name))
        .copied()
        .collect()
}

fn short(context: &Context) -> Result<()> {
    let chosen = workloads_named(&["overwrite", "grow", "cut", "busy", "rename"]);
    let outcome = crash::run(context, &plan(&chosen), Vec::new(), |_, _| {})?;
    diag!(
        "{} log entries, {} syncs, {} points between",
        outcome.entries,
        outcome.marks,
        outcome.points - outcome.marks
    );
    for fault in &outcome.faults {
        diag!("{fault}");
    }
    match outcome.wrong {
        0 => Ok(()),
        wrong => bail!("{wrong} points of {} are wrong", outcome.points),
    }
}

/// Without keep-dirty, with it too late, or without blocks for what was cut, a power cut loses what was
/// synced, and that is found.
fn knockout(context: &Context) -> Result<()> {
    for switch in ["no_keep_dirty", "late_keep_dirty", "no_hole_alloc"] {
        let chosen: Vec<_> = knock_out::workload(switch)
            .map(|name| workloads_named(&[name]))
            .unwrap_or_default();
        // What is lost depends on who is faster.
        let mut attempts = (SEED..SEED + ATTEMPTS).map(|seed| Plan {
            steps: 6,
            points: 0,
            until_found: true,
            seed,
            ..plan(&chosen)
        });
        let faults = attempts.find_map(|plan| {
            let ran = knock_out::switches(switch)
                .and_then(|switches| crash::run(context, &plan, switches, |_, _| {}));
            match ran {
                Ok(outcome) if outcome.wrong == 0 => None,
                ran => Some(ran.map(|outcome| outcome.faults)),
            }
        });
        match faults {
            Some(faults) => diag!("as it must be with {switch}: {}", faults?.join("; ")),
            None => bail!("with {switch} nothing is lost: the test can't fail"),
        }
    }
    Ok(())
}
