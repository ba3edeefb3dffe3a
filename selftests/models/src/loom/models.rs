// SPDX-License-Identifier: GPL-2.0

//! What is checked: the scenarios, and what must break them.

use std::panic;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use pinwb_models::report::{Model, Outcome};

use crate::debug::{self, Knockout};
use crate::memory::{self, Weakness};
use crate::scenarios::{ledger, lru, protocol};

/// What is taken away from a scenario.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Without {
    /// A step of the protocol.
    Step(Knockout),
    /// A property of memory.
    Memory(Weakness),
}

/// A scenario that must fail.
pub(crate) struct Break {
    /// What is taken away.
    pub(crate) without: Without,
    /// In words.
    pub(crate) name: &'static str,
    /// With one of these in its message the scenario must fail.
    pub(crate) says: &'static [&'static str],
}

/// Who runs at the same time, and what must be true.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    /// One execution.
    pub(crate) run: fn(),
    pub(crate) breaks: &'static [Break],
    /// How often threads may be interrupted where they could go on; [`None`] for any number.
    pub(crate) preemptions: Option<usize>,
}

/// As [`Scenario::preemptions`], in the short slice and where a failure is looked for.
const FEW_PREEMPTIONS: usize = 2;
/// Steps of one execution: more is a loop that does not end.
const MAX_BRANCHES: usize = 10_000;

static INTERLEAVINGS: AtomicUsize = AtomicUsize::new(0);

/// All scenarios, each followed by those that must break it.
pub(crate) fn all(quick: bool) -> Vec<Model<'static>> {
    let scenarios = [ledger::SCENARIOS, protocol::SCENARIOS, lru::SCENARIOS];

    scenarios
        .into_iter()
        .flatten()
        .flat_map(|scenario| {
            let holds = Model::new(scenario.name, move || holds(scenario, quick));
            let breaks = scenario.breaks.iter().map(move |broken| {
                let name = format!("{}; {}", scenario.name, broken.name);

                Model::new(name, move || breaks(scenario, broken))
            });

            std::iter::once(holds).chain(breaks)
        })
        .collect()
}

fn holds(scenario: &Scenario, quick: bool) -> Outcome {
    let preemptions = match quick {
        true => Some(FEW_PREEMPTIONS),
        false => scenario.preemptions,
    };
    let failure = explore(scenario.run, preemptions);
    let count = INTERLEAVINGS.load(Ordering::Relaxed);

    match (failure, preemptions) {
        (Some(failure), _) => Outcome::Fail(format!("interleaving {count}: {failure}")),
        (None, Some(n)) => {
            Outcome::Pass(format!("{count} interleavings with up to {n} preemptions"))
        }
        (None, None) => Outcome::Pass(format!("all {count} interleavings")),
    }
}

fn breaks(scenario: &Scenario, broken: &Break) -> Outcome {
    match broken.without {
        Without::Step(knockout) => debug::knock_out(knockout),
        Without::Memory(weakness) => memory::weaken(weakness),
    }
    let failure = explore(scenario.run, Some(FEW_PREEMPTIONS));
    debug::knock_out(Knockout::None);
    memory::weaken(Weakness::None);

    let count = INTERLEAVINGS.load(Ordering::Relaxed);
    match failure {
        None => Outcome::Fail(format!("none of {count} interleavings failed")),
        Some(text) if broken.says.iter().any(|s| text.contains(s)) => {
            let line = text.lines().next().unwrap_or_default();

            Outcome::Pass(format!("found in interleaving {count} ({line})"))
        }
        Some(text) => Outcome::Fail(format!("failed for another reason: {text}")),
    }
}

/// Runs a scenario in all interleavings until one fails. Returns the failure.
fn explore(run: fn(), preemptions: Option<usize>) -> Option<String> {
    let mut builder = loom::model::Builder::new();

    builder.max_branches = MAX_BRANCHES;
    builder.preemption_bound = preemptions;
    builder.max_duration = None::<Duration>;
    INTERLEAVINGS.store(0, Ordering::Relaxed);

    let hook = panic::take_hook();
    panic::set_hook(Box::new(|_| {}));
    let result = panic::catch_unwind(move || {
        builder.check(move || {
            INTERLEAVINGS.fetch_add(1, Ordering::Relaxed);
            run();
        });
    });
    panic::set_hook(hook);

    let payload = result.err()?;
    let text = payload
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| payload.downcast_ref::<&str>().map(|s| s.to_string()));

    Some(text.unwrap_or_else(|| "a panic without words".to_string()))
}
