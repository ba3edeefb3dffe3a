// SPDX-License-Identifier: GPL-2.0

//! Long random histories of the ledger, against plain arithmetic, with proptest.
//!
//! `entry.rs`, `ledger.rs` and `radix.rs` are the files of the kernel, with the tables in their real
//! size. What fails is shrunk to the shortest history that does.

extern crate self as kernel;

#[path = "../../../../rust/pinwb/entry.rs"]
mod entry;
#[path = "../../../../rust/pinwb/ledger.rs"]
#[allow(dead_code, reason = "the kernel's own ledger has no part in this")]
mod ledger;
#[path = "../../../../rust/pinwb/radix.rs"]
#[allow(dead_code, reason = "as with the ledger")]
mod radix;

#[path = "kernel.rs"]
mod kernel_crate;
mod reference;

use kernel_crate::{alloc, bindings, prelude, sync};

use std::env;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use clap::Parser;
use pinwb_models::report::{self, Model, Options, Outcome};
use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};

/// The environment variable with the seed of an earlier run.
const SEED: &str = "PINWB_MODELS_SEED";

/// Operations in a history, and how many histories.
struct Size {
    operations: usize,
    histories: u32,
}

fn main() -> Result<ExitCode> {
    let options = Options::parse();
    let seed = match env::var(SEED) {
        Ok(seed) => seed
            .parse()
            .with_context(|| format!("{SEED} is a number"))?,
        Err(_) => SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs(),
    };
    let size = match options.quick {
        true => Size {
            operations: 300,
            histories: 300,
        },
        false => Size {
            operations: 3_000,
            histories: 1_000,
        },
    };
    let models = vec![
        Model::new("ledger: entries add and subtract like numbers", || {
            run(
                seed,
                100 * size.histories,
                "pairs",
                reference::entries(),
                reference::check_entry,
            )
        }),
        Model::new("ledger: histories of one 2 MiB region", || {
            let histories = reference::histories(reference::near(), size.operations);
            run(
                seed,
                size.histories,
                "histories",
                histories,
                reference::check,
            )
        }),
        Model::new(
            "ledger: histories all over memory, and without any left",
            || {
                let histories = reference::histories(reference::far(), size.operations);
                run(
                    seed,
                    size.histories,
                    "histories",
                    histories,
                    reference::check,
                )
            },
        ),
    ];

    report::run("histories", &options, models)
}

fn run<S: Strategy>(
    seed: u64,
    cases: u32,
    what: &str,
    strategy: S,
    check: impl Fn(S::Value) -> Result<(), TestCaseError>,
) -> Outcome {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());

    let config = Config {
        cases,
        failure_persistence: None,
        max_shrink_iters: 100_000,
        ..Config::default()
    };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let result = TestRunner::new_with_rng(config, rng).run(&strategy, check);

    match result {
        Ok(()) => Outcome::Pass(format!("{cases} {what}, seed {seed}")),
        Err(error) => Outcome::Fail(format!("with {SEED}={seed}: {error}")),
    }
}
