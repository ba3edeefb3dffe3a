// SPDX-License-Identifier: GPL-2.0

//! What the kernel counts of dirty memory, machine-wide and for each device.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};

/// Pages that are pinned and dirty, and so exempt from the dirty limits.
pub const PINNED: &str = "nr_file_pinned";

/// A counter of `/proc/vmstat`, with what the CPUs have not added to it yet.
pub fn number(name: &str) -> Result<u64> {
    fs::write("/proc/sys/vm/stat_refresh", "1").context("vm.stat_refresh")?;
    fs::read_to_string("/proc/vmstat")?
        .lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(found, _)| *found == name)
        .with_context(|| format!("/proc/vmstat has no {name}"))?
        .1
        .parse()
        .context("not a number")
}

/// A line of `/proc/meminfo`, in bytes.
pub fn memory(name: &str) -> Result<u64> {
    kilobytes(&fs::read_to_string("/proc/meminfo")?, name)
}

/// A line of the statistics of all backing devices together, in bytes. Each CPU of each device holds back
/// up to 64 KiB or so.
pub fn devices(name: &str) -> Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir("/sys/kernel/debug/bdi")? {
        // A device may go between the two.
        if let Ok(text) = fs::read_to_string(entry?.path().join("stats")) {
            sum += kilobytes(&text, name)?;
        }
    }
    Ok(sum)
}

fn kilobytes(text: &str, name: &str) -> Result<u64> {
    let value = text
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(found, _)| *found == name)
        .with_context(|| format!("there is no {name}"))?
        .1;
    let number = value
        .trim()
        .strip_suffix("kB")
        .with_context(|| format!("{name} is not in kB"))?;
    Ok(number.trim().parse::<u64>()? << 10)
}

/// Waits until no page is counted as pinned any more; some owners release theirs from a work queue.
pub fn wait_until_unpinned(limit: Duration) -> Result<()> {
    let end = Instant::now() + limit;
    loop {
        let left = number(PINNED)?;
        if left == 0 {
            return Ok(());
        }
        if Instant::now() >= end {
            bail!("{PINNED} is {left} with no pins left");
        }
        thread::sleep(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kilobytes_are_bytes() {
        let text = "BdiWriteback:                0 kB\nBdiPinned:          8192 kB\nb_dirty:  1\n";
        assert_eq!(kilobytes(text, "BdiPinned").unwrap(), 8 << 20);
        assert!(kilobytes(text, "b_dirty").is_err());
        assert!(kilobytes(text, "absent").is_err());
    }
}
