// SPDX-License-Identifier: GPL-2.0

//! Finds what must not be in a console log.
//!
//! A test that provokes a message says so in the log itself, through `/dev/kmsg`:
//! `pinwb-expect: <regex>` permits lines that match until `pinwb-expect-end`; permits add up.
//! A permitted line that opens a splat permits all of that splat.
//!
//! KCSAN finds races all over a kernel that has never been clean of them. Only a race with a function of
//! ours among its frames is a splat.

use regex::{Regex, RegexSet};

/// Lines shown before and after a splat.
const BEFORE: usize = 5;
const AFTER: usize = 40;
/// A report is over after this many lines, end mark or not.
const REPORT: usize = 120;

/// Lines that open a report, usually with a trace.
const REPORTS: &[&str] = &[
    r"\bWARNING: ",
    r"\bBUG: ",
    r"\bkernel BUG at ",
    r"\bOops\b",
    r"\bKASAN: ",
    r"\bKCSAN: ",
    r"\bKFENCE: ",
    r"\bUBSAN: ",
    r"possible circular locking",
    r"possible recursive locking",
    r"inconsistent lock state",
    r"possible irq lock inversion",
    r"bad unlock balance",
    r"held lock freed",
    r"suspicious RCU usage",
    r"lock held when returning to user space",
    r"INFO: task .* blocked",
    r"INFO: trying to register non-static key",
    r"rcu: INFO: ",
    r"rcu:.*detected .*stall",
    r"soft lockup",
    r"hard LOCKUP",
    r"sleeping function called",
    r"scheduling while atomic",
    r"general protection",
    r"unable to handle",
    r"\bCall Trace:",
    r"Kernel panic",
    r"Bad page state",
    r"Bad page map",
    r"refcount_t: ",
    r"list_(add|del) corruption",
    r"rust_kernel: panicked|rust: panicked|\bpanicked at ",
];

/// Lines that stand alone.
const MESSAGES: &[&str] = &[
    r"\bEXT4-fs error",
    r"\bEXT4-fs \(.*\): .*(This should not happen|Delayed block allocation failed)",
    r"\bXFS .*(Assertion failed|Corruption|Internal error|Filesystem has been shut down)",
    r"\bBTRFS (error|critical)",
    r"\bBTRFS: (error|Transaction aborted)",
    r"\bBuffer I/O error",
    r"\bI/O error, dev ",
    r"Out of memory: Killed process",
];

const RACE: &str = "BUG: KCSAN: data-race";
/// Names in the frames of a race that is ours.
const OURS: &str = r"pinwb|longterm";
/// What is around each of KCSAN's reports.
const RULER: &str = "==================";

/// One thing that must not be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Splat {
    /// Number of its first line, from 1.
    pub line: usize,
    /// Its first line.
    pub title: String,
    /// It opens a report of the kernel; else it is a message, as a broken disk may cause as well.
    pub report: bool,
    /// The lines around it.
    pub lines: Vec<String>,
}

/// All splats of a console log, and what is wrong with its permits.
pub fn scan(log: &str) -> (Vec<Splat>, Vec<String>) {
    let reports = RegexSet::new(REPORTS).expect("constants");
    let messages = RegexSet::new(MESSAGES).expect("constants");
    let lines: Vec<&str> = log.lines().map(|l| l.trim_end_matches('\r')).collect();
    let mut splats: Vec<Splat> = Vec::new();
    let ours = Regex::new(OURS).expect("a constant");
    let mut wrong = Vec::new();
    let mut permits: Vec<Regex> = Vec::new();
    // Up to here the lines are those of a report that was judged by its first line.
    let mut report_end = 0;

    for (at, line) in lines.iter().enumerate() {
        if let Some((_, text)) = line.split_once("pinwb-expect: ") {
            match Regex::new(text.trim()) {
                Ok(permit) => permits.push(permit),
                Err(_) => wrong.push(format!("line {}: bad permit {text:?}", at + 1)),
            }
            continue;
        }
        if line.contains("pinwb-expect-end") {
            permits.clear();
            continue;
        }
        let opens = reports.is_match(line);
        if at < report_end || !(opens || messages.is_match(line)) {
            continue;
        }
        let mut end = lines.len().min(at + 6);
        if opens {
            let last = lines.len().min(at + REPORT);
            let trace = (at..last).find(|&i| lines[i].contains("Call Trace:"));
            if let Some(trace) = trace {
                let stop = |i: &usize| {
                    lines[*i].contains("---[ end trace") || lines[*i].contains("</TASK>")
                };
                let close = (trace..last).find(stop);
                report_end = close.unwrap_or(last);
                end = close.map_or(lines.len().min(at + AFTER), |i| i + 1);
            }
        }
        if permits.iter().any(|p| p.is_match(line)) {
            continue;
        }
        if line.contains(RACE) {
            let report = lines[at..].iter().take_while(|l| !l.contains(RULER));
            let (len, is_ours) = report.fold((0, false), |(len, found), line| {
                (len + 1, found || ours.is_match(line))
            });
            report_end = at + len;
            end = report_end;
            if !is_ours {
                continue;
            }
        }
        splats.push(Splat {
            line: at + 1,
            title: line.trim().to_string(),
            report: opens,
            lines: lines[at.saturating_sub(BEFORE)..end]
                .iter()
                .map(|l| l.to_string())
                .collect(),
        });
    }
    if !permits.is_empty() {
        wrong.push("pinwb-expect without pinwb-expect-end".to_string());
    }
    (splats, wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WARN: &str = "\
[    1.0] EXT4-fs (vdb): mounted filesystem
[    2.0] ------------[ cut here ]------------
[    2.0] WARNING: CPU: 0 PID: 7 at fs/ext4/inode.c:4 ext4_dirty_folio+0x1/0x2
[    2.0] RIP: 0010:ext4_dirty_folio+0x1/0x2
[    2.0] Call Trace:
[    2.0]  <TASK>
[    2.0]  unpin+0x1/0x2
[    2.0]  </TASK>
[    2.0] ---[ end trace 0000000000000000 ]---
[    3.0] fine again
";

    #[test]
    fn clean() {
        let log = "Linux version 7.2\n[ 1.0] EXT4-fs (vdb): mounted filesystem\nOopsie daisy\n\
                   [ 1.0] rcu: Hierarchical RCU implementation.\n[ 2.0] debug: warning: not this";
        assert_eq!(scan(log), (vec![], vec![]));
    }

    #[test]
    fn one_report_is_one_splat() {
        let (splats, wrong) = scan(WARN);
        assert_eq!(splats.len(), 1);
        assert_eq!(splats[0].line, 3);
        assert!(splats[0].title.contains("ext4_dirty_folio"));
        assert!(splats[0].lines.first().unwrap().contains("mounted"));
        assert!(splats[0].lines.last().unwrap().contains("</TASK>"));
        assert!(wrong.is_empty());
        assert_eq!(scan(&[WARN, WARN].concat()).0.len(), 2);
    }

    #[test]
    fn every_kind() {
        for line in [
            "BUG: KASAN: slab-use-after-free in f",
            "kernel BUG at mm/gup.c:1!",
            "Oops: Oops: 0002 [#1]",
            "BUG: KCSAN: data-race in f / pinwb_g",
            "UBSAN: shift-out-of-bounds in f.c:1:2",
            "WARNING: possible circular locking dependency detected",
            "WARNING: inconsistent lock state",
            "WARNING: possible recursive locking detected",
            "INFO: task fsync:12 blocked for more than 120 seconds.",
            "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
            "EXT4-fs error (device vdb): ext4_lookup:1: inode #2: comm ls: bad",
            "traps: x[1] general protection fault ip:1",
            "Call Trace:",
            "Kernel panic - not syncing: Attempted to kill init!",
            "watchdog: BUG: soft lockup - CPU#0 stuck for 22s!",
            "BUG: sleeping function called from invalid context at mm/x.c:1",
            "rust_kernel: panicked at mm/pinwb/ledger.rs:1:1:",
        ] {
            assert_eq!(scan(&format!("[  1.0] {line}")).0.len(), 1, "{line}");
        }
    }

    #[test]
    fn permits() {
        let permit = "[ 1.5] pinwb-expect: ext4_dirty_folio\n";
        let end = "[ 9.0] pinwb-expect-end\n";
        assert_eq!(scan(&[permit, WARN, end].concat()), (vec![], vec![]));
        // A message does not hide what follows it.
        let error = "[ 1.0] EXT4-fs error (device vdb): x\n";
        let permit_error = "pinwb-expect: EXT4-fs error\n";
        assert_eq!(scan(&[permit_error, error, WARN, end].concat()).0.len(), 1);
        // Only what matches, and only until the end of it.
        let other = "[ 1.5] pinwb-expect: xfs_.*\n";
        assert_eq!(scan(&[other, WARN, end].concat()).0.len(), 1);
        assert_eq!(scan(&[permit, end, WARN].concat()).0.len(), 1);
        // A permit that stays open is a mistake.
        assert_eq!(scan(&[permit, WARN].concat()).1.len(), 1);
        assert_eq!(scan("pinwb-expect: (\n").1.len(), 1);
    }

    #[test]
    fn races() {
        let report = |frame: &str| {
            format!(
                "[ 1.0] {RULER}\n[ 1.0] BUG: KCSAN: data-race in jbd2_a / jbd2_b\n\
                 [ 1.0] write to 0xff of 8 bytes by task 1 on cpu 0:\n[ 1.0]  {frame}+0x1/0x2\n\
                 [ 1.0] Call Trace:\n[ 1.0] {RULER}\n"
            )
        };
        assert_eq!(scan(&report("jbd2_a")).0.len(), 0);
        assert_eq!(scan(&report("pinwb_admit_ready")).0.len(), 1);
        // One that is not ours doesn't hide one that is.
        let both = [report("jbd2_a"), report("unpin_longterm_pages")].concat();
        assert_eq!(scan(&both).0.len(), 1);
        assert_eq!(scan(&both).0[0].line, 8);
    }

    #[test]
    fn messages_without_a_trace_are_counted_each() {
        let line = "[ 1.0] EXT4-fs error (device vdb): x\n";
        assert_eq!(scan(&line.repeat(3)).0.len(), 3);
    }
}
