// SPDX-License-Identifier: GPL-2.0

//! What files that were never pinned pay, in instructions: the same kernel with and without `pinwb=off`,
//! and once more with a knock-out that takes every file for one that was pinned.

use std::fs;
use std::path::Path;

use anyhow::{bail, Context, Result};

use crate::bench;
use crate::matrix::GuestTest;
use crate::qemu::Outcome;
use crate::report::Report;
use crate::samples::Samples;
use crate::tap::{Test, Verdict};

/// The group's name.
pub const GROUP: &str = "unused";

/// The counts may differ by this share.
const EQUAL: f64 = 0.005;
const KNOCK_OUT: &str = "always_sticky";
const OFF: &str = "off";
const ON: &str = "on";

/// What is counted, what of it, and whether the knock-out must show.
const CASES: &[(&str, &str, bool)] = &[
    ("rewrite-many", "instructions", true),
    ("write-rewrite", "instructions", false),
    ("write-append", "instructions", false),
    ("get_user_pages", "sum", false),
    ("get_user_pages_fast", "sum", false),
    ("pin_user_pages", "sum", false),
    ("pin_user_pages_fast", "sum", false),
    ("longterm-anon", "sum", false),
];

/// The tests of the group, for the matrix.
pub fn tests() -> Vec<GuestTest> {
    CASES
        .iter()
        .map(|(case, _, knocked_out)| GuestTest {
            name: (*case).into(),
            proves: vec!["I8".into()],
            without: if *knocked_out { KNOCK_OUT } else { "" }.into(),
            once: true,
        })
        .collect()
}

/// Boots both guests and adds what they count to the report. What else the guests have to say is for the
/// caller, who gets their outcomes.
pub fn run(kernel: Option<&Path>, log: &Path, report: &mut Report) -> Result<Vec<Outcome>> {
    let mut samples = Samples::default();
    let mut outcomes = Vec::new();
    for (name, append, more) in [
        (OFF, Some("pinwb=off"), ""),
        (ON, None, "--without always_sticky"),
    ] {
        let dir = log.join(name);
        fs::create_dir_all(&dir)?;
        let arguments: Vec<&str> = ["unused"]
            .into_iter()
            .chain(more.split_whitespace())
            .collect();
        let (said, outcome) = bench::count_instructions(kernel, append, &arguments, &dir)?;
        samples
            .add(name, 1, &said)
            .with_context(|| format!("console in {}", outcome.console.display()))?;
        outcomes.push(outcome);
    }
    fs::write(log.join("counts.tsv"), samples.write())?;
    for test in judge(&samples)? {
        report.add(GROUP, test);
    }
    Ok(outcomes)
}

fn judge(samples: &Samples) -> Result<Vec<Test>> {
    let mut tests = Vec::new();
    for (case, what, must_show) in CASES {
        let median = |kernel: &str, case: &str| -> Result<f64> {
            match samples.summary(kernel, case, what) {
                Some(summary) if summary.median > 0.0 => Ok(summary.median),
                _ => bail!("{kernel}: {case} was not counted"),
            }
        };
        let off = median(OFF, case)?;
        let mut add = |name: String, count: f64, wants_equal: bool| {
            let ratio = count / off;
            let line = format!("{count:.0} with pinwb, {off:.0} without: {ratio:.4}");
            println!("{GROUP} {name}: {line}");
            let equal = (ratio - 1.0).abs() <= EQUAL;
            tests.push(Test {
                name,
                verdict: if equal == wants_equal {
                    Verdict::Pass
                } else {
                    Verdict::Fail
                },
                context: vec![line],
            });
        };
        add((*case).into(), median(ON, case)?, true);
        if *must_show {
            let knocked_out = format!("{case} [{KNOCK_OUT}]");
            let count = median(ON, &knocked_out)?;
            add(knocked_out, count, false);
        }
    }
    Ok(tests)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(count: u32, knocked_out: &str) -> String {
        let mut text = String::new();
        for (case, what, _) in CASES {
            match *what {
                "sum" => text.push_str(&format!(
                    "bench\t{case}\tget\t{count}\nbench\t{case}\tput\t{count}\n"
                )),
                what => text.push_str(&format!("bench\t{case}\t{what}\t{count}\n")),
            }
        }
        format!("{text}{knocked_out}bench\tend\n")
    }

    #[test]
    fn verdicts() {
        let judged = |on: u32, knocked_out: u32| {
            let mut samples = Samples::default();
            let line = format!("bench\trewrite-many [{KNOCK_OUT}]\tinstructions\t{knocked_out}\n");
            samples.add(OFF, 1, &said(1000, "")).unwrap();
            samples.add(ON, 1, &said(on, &line)).unwrap();
            let tests = judge(&samples).unwrap();
            assert_eq!(tests.len(), CASES.len() + 1);
            (tests[0].verdict.clone(), tests[1].verdict.clone())
        };
        assert_eq!(judged(1005, 1006), (Verdict::Pass, Verdict::Pass));
        assert_eq!(judged(1006, 1005), (Verdict::Fail, Verdict::Fail));
        assert_eq!(judged(994, 1100), (Verdict::Fail, Verdict::Pass));
        assert!(judge(&Samples::default()).is_err());
    }
}
