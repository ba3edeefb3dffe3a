// SPDX-License-Identifier: GPL-2.0

//! Which workload shows what a safety step is for, and how.

use anyhow::Result;

use crate::ledger::Switch;

/// How long the copy is held back from being sent, in milliseconds: long enough for the device to complete
/// a round and for an fsync to begin.
pub const WINDOW: u32 = 60;

/// The workload in which a loss without the step is certain enough; none if no single one is.
pub fn workload(switch: &str) -> Option<&'static str> {
    match switch {
        "no_keep_dirty" => Some("overwrite"),
        "late_keep_dirty" => Some("flushed"),
        "no_hole_alloc" => Some("cut"),
        _ => None,
    }
}

/// Leaves the step out until they are dropped.
pub fn switches(switch: &str) -> Result<Vec<Switch>> {
    let mut switches = vec![Switch::knock_out(switch)?];
    if switch == "late_keep_dirty" {
        switches.push(Switch::delay("bounce_ms", WINDOW)?);
    }
    Ok(switches)
}
