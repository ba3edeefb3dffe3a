// SPDX-License-Identifier: GPL-2.0

//! What reclaim does to a control group half of whose memory is pinned, while its other half is short: with
//! the pinned pages on the lists that reclaim scans, and hidden from it.

use std::collections::BTreeMap;
use std::fs;
use std::time::Instant;

use anyhow::{ensure, Result};

use super::{report, report_end};
use crate::cgroup::Cgroup;
use crate::context::Context;
use crate::device::Kind;
use crate::diag;
use crate::fs as filesystem;
use crate::holder::{Holder, Orders};
use crate::layer::Layer;
use crate::ledger::{self, Switch};
use crate::map::PAGE;
use crate::mounted::on_new_filesystem;
use crate::options::Options;
use crate::stamp::Stamp;
use crate::tests::common::MIB;

/// What to measure.
#[derive(clap::Args, Debug)]
pub struct Arguments {
    /// Pin so many MiB, half of what the group has
    #[arg(long, default_value_t = 64)]
    mebibytes: u64,
    /// Read so many times in each turn
    #[arg(long, default_value_t = 6)]
    passes: u32,
    /// Turns of each
    #[arg(long, default_value_t = 5)]
    turns: u32,
}

/// Where pinned pages are, and what puts them there.
const SIDES: [(&str, Option<&str>); 2] = [("listed", Some("no_cull")), ("hidden", None)];

/// Prints, for each turn: pages scanned, pages that were evicted and read again, pinned pages that were
/// unmapped, and the time in milliseconds.
pub fn run(arguments: &Arguments, options: &Options) -> Result<()> {
    on_new_filesystem(options, Layer::Disk, ["", ""], |context| {
        measure(arguments, context)
    })
}

fn measure(arguments: &Arguments, context: &Context) -> Result<()> {
    let pinned = arguments.mebibytes * MIB;
    // What is read all the time would almost fit in beside the pins; what is read once is in its way.
    let [set, once] = [pinned / 4 * 3, pinned / 2];
    context.written("set", set, Stamp::fresh(), MIB as usize)?;
    context.written("once", once, Stamp::fresh(), MIB as usize)?;
    let mut numbers: BTreeMap<(&str, &str), Vec<u64>> = BTreeMap::new();
    for (side, without) in (0..arguments.turns).flat_map(|_| SIDES) {
        let _knocked_out = without.map(Switch::knock_out).transpose()?;
        let turn = turn(context, pinned, arguments.passes)?;
        diag!("{side}: {turn:?}");
        for (what, number) in turn {
            numbers.entry((side, what)).or_default().push(number);
        }
    }
    for ((case, what), numbers) in &numbers {
        report(case, what, numbers);
    }
    report_end();
    Ok(())
}

fn turn(context: &Context, pinned: u64, passes: u32) -> Result<[(&'static str, u64); 4]> {
    filesystem::drop_caches()?;
    context.sparse("pinned", pinned)?;
    let group = Cgroup::new("pinwb-bench", pinned * 2)?;
    let orders = Orders::new(Kind::Uring, &context.path("pinned"));
    let holder = Holder::start(group.confine(&mut orders.command()))?;
    let mapped = holder.mapped_file_bytes()?;
    ensure!(mapped >= pinned, "{mapped} bytes are mapped of {pinned}");

    let counters = || {
        let count = |name| group.number("memory.stat", name);
        anyhow::Ok([count("pgscan")?, count("workingset_refault_file")?])
    };
    let before = counters()?;
    let start = Instant::now();
    for _ in 0..passes {
        for name in ["set", "once"] {
            group.read(&context.path(name), "1M")?;
        }
    }
    let took = start.elapsed();
    let after = counters()?;
    let unmapped = mapped.saturating_sub(holder.mapped_file_bytes()?);

    drop(holder);
    ledger::wait_until_empty(10)?;
    fs::remove_file(context.path("pinned"))?;
    Ok([
        ("scanned", after[0] - before[0]),
        ("refaults", after[1] - before[1]),
        ("unmapped", unmapped / PAGE as u64),
        ("ms", took.as_millis() as u64),
    ])
}
