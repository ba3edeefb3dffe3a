// SPDX-License-Identifier: GPL-2.0

//! Where tasks are in the kernel, for who wants to know why a test does not end.

use std::fs;
use std::path::Path;

/// The kernel's stack of a process or task, innermost function first.
pub fn stack(task: impl AsRef<Path>) -> String {
    fs::read_to_string(Path::new("/proc").join(task).join("stack"))
        .unwrap_or_default()
        .lines()
        .map(|line| line.rsplit(' ').next().unwrap_or(line))
        .collect::<Vec<_>>()
        .join(" ")
}

/// A line for each task of a process group: its number, name, state and stack.
pub fn of_group(group: u32) -> Vec<String> {
    let mut lines = Vec::new();
    for process in names("/proc") {
        if stat(&process).is_none_or(|(_, found)| found != group) {
            continue;
        }
        for task in names(format!("/proc/{process}/task")) {
            let task = format!("{process}/task/{task}");
            if let Some((state, _)) = stat(&task) {
                let name = fs::read_to_string(format!("/proc/{task}/comm")).unwrap_or_default();
                lines.push(format!("{task} {}: {state} {}", name.trim(), stack(&task)));
            }
        }
    }
    lines
}

fn names(directory: impl AsRef<Path>) -> Vec<String> {
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.parse::<u32>().is_ok())
        .collect()
}

/// State and process group of a process or task that still exists.
pub fn stat(task: &str) -> Option<(String, u32)> {
    let text = fs::read_to_string(format!("/proc/{task}/stat")).ok()?;
    // The name before them may have blanks and brackets of its own.
    let mut fields = text.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?.to_owned();
    let group = fields.nth(1)?.parse().ok()?;
    Some((state, group))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_this_task() {
        // SAFETY: getpgrp has no arguments and can't fail.
        let group = unsafe { libc::getpgrp() } as u32;
        let own = format!("{}/task/", std::process::id());
        assert!(of_group(group).iter().any(|line| line.starts_with(&own)));
    }
}
