// SPDX-License-Identifier: GPL-2.0

//! What the kernel counts of dirty memory, machine-wide and for each device.

use std::fs;
use std::time::Duration;

use anyhow::{ensure, Context, Result};

use crate::tests::common::wait_until;

/// Pages that are pinned and dirty, and so exempt from the dirty limits.
pub const PINNED: &str = "nr_file_pinned";

/// A counter of `/proc/vmstat`, with what the CPUs have not added to it yet.
pub fn number(name: &str) -> Result<u64> {
    fs::write("/proc/sys/vm/stat_refresh", "1").context("vm.stat_refresh")?;
    field(&fs::read_to_string("/proc/vmstat")?, ' ', name)?
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

/// The value behind a name, of lines that have one each.
pub fn field<'a>(text: &'a str, separator: char, name: &str) -> Result<&'a str> {
    text.lines()
        .filter_map(|line| line.split_once(separator))
        .find(|(found, _)| *found == name)
        .map(|(_, value)| value.trim())
        .with_context(|| format!("there is no {name}"))
}

/// A line with a number of kB, in bytes.
pub fn kilobytes(text: &str, name: &str) -> Result<u64> {
    let number = field(text, ':', name)?
        .strip_suffix("kB")
        .with_context(|| format!("{name} is not in kB"))?;
    Ok(number.trim().parse::<u64>()? << 10)
}

/// Waits until no page is counted as pinned any more; some owners release theirs from a work queue.
pub fn wait_until_unpinned(limit: Duration) -> Result<()> {
    let mut left = 0;
    let unpinned = wait_until(limit, || {
        left = number(PINNED)?;
        Ok(left == 0)
    })?;
    ensure!(unpinned, "{PINNED} is {left} with no pins left");
    Ok(())
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
