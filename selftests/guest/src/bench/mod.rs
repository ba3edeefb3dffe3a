// SPDX-License-Identifier: GPL-2.0

//! Measurements of what waits for a disk, beside pins and beside none, for the benchmark of the harness.

pub mod latency;
pub mod reclaim;
pub mod writer;

/// Prints the values of one case.
fn report(case: &str, what: &str, values: &[u64]) {
    let values: Vec<String> = values.iter().map(u64::to_string).collect();
    println!("bench\t{case}\t{what}\t{}", values.join(" "));
}

/// Says that no case is missing.
fn report_end() {
    println!("bench\tend");
}
