// SPDX-License-Identifier: GPL-2.0

//! Invariants against filesystems: what was proved, and that it could have failed.

use std::fmt::Write;

use anyhow::{Context, Result};

use crate::report::Report;
use crate::tap::Verdict;

/// A test as the guest's test program lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestTest {
    /// Its name in TAP.
    pub name: String,
    /// The invariants that it is about: `I1` to `I8`.
    pub proves: Vec<String>,
    /// The knock-out that it runs with a second time; empty if there is none.
    pub without: String,
    /// It doesn't depend on how the filesystem was made and mounted.
    pub once: bool,
}

impl GuestTest {
    /// Parses a line of the list.
    pub fn parse(line: &str) -> Result<Self> {
        let mut fields = line.split('\t');
        let mut next = || fields.next().with_context(|| format!("odd line: {line}"));
        let (name, proves, without) = (next()?, next()?, next()?);
        Ok(Self {
            name: name.into(),
            proves: proves
                .split(',')
                .filter(|invariant| !invariant.is_empty())
                .map(String::from)
                .collect(),
            without: without.into(),
            once: fields.next() == Some("once"),
        })
    }

    /// The name of its second run.
    pub fn knocked_out(&self) -> String {
        format!("{} [{}]", self.name, self.without)
    }
}

/// What the tests of one invariant came to in one group.
#[derive(Debug, Default, PartialEq, Eq)]
struct Cell {
    passed: usize,
    failed: usize,
    skipped: usize,
}

impl Cell {
    fn add(&mut self, verdict: &Verdict) {
        match verdict {
            Verdict::Pass => self.passed += 1,
            Verdict::Fail => self.failed += 1,
            Verdict::Skip(_) => self.skipped += 1,
        }
    }

    fn word(&self, good: &str) -> String {
        match self {
            Cell {
                failed: 0,
                passed: 0,
                ..
            } => "-".into(),
            Cell {
                failed: 0, passed, ..
            } => format!("{good} {passed}"),
            Cell { failed, passed, .. } => format!("NOT {good} {failed} of {}", failed + passed),
        }
    }
}

/// The table: invariant by group, how many tests passed, and how many failed without their step as they
/// should. Empty if no such test ran.
pub fn of(tests: &[GuestTest], report: &Report) -> String {
    let mut groups: Vec<&str> = Vec::new();
    for test in report.tests() {
        let group = test.name.split('/').next().unwrap_or_default();
        if !groups.contains(&group) {
            groups.push(group);
        }
    }
    let mut invariants: Vec<&String> = tests.iter().flat_map(|test| &test.proves).collect();
    invariants.sort();
    invariants.dedup();

    let mut rows = String::new();
    for group in groups {
        for invariant in &invariants {
            let (mut plain, mut knocked_out) = (Cell::default(), Cell::default());
            for test in tests.iter().filter(|test| test.proves.contains(invariant)) {
                for ran in report.tests() {
                    let Some((_, name)) = ran.name.split_once('/').filter(|(g, _)| *g == group)
                    else {
                        continue;
                    };
                    // A group of several programs has the program's name before the test's.
                    let name = name.split_once(": ").map_or(name, |(_, name)| name);
                    if name == test.name {
                        plain.add(&ran.verdict);
                    } else if name == test.knocked_out() {
                        knocked_out.add(&ran.verdict);
                    }
                }
            }
            if plain != Cell::default() {
                let (pass, fails) = (plain.word("pass"), knocked_out.word("fails"));
                let _ = writeln!(rows, "  {invariant:<10} {group:<22} {pass:<16} {fails}");
            }
        }
    }
    if rows.is_empty() {
        return rows;
    }
    format!(
        "\n  {:<10} {:<22} {:<16} {}\n{rows}",
        "invariant", "filesystem", "tests", "knocked out"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tap::Test;

    #[test]
    fn table() {
        let lines = ["a\tI1,I4\tno_x", "b\tI4\t", "c\t\t"];
        let tests = lines.map(|line| GuestTest::parse(line).unwrap());
        let mut report = Report::default();
        let mut add = |name: &str, verdict| {
            let test = Test {
                name: name.into(),
                verdict,
                context: Vec::new(),
            };
            report.add("ext4-4k", test);
        };
        add("a", Verdict::Pass);
        add("a [no_x]", Verdict::Fail);
        add("pinwb-test: b", Verdict::Pass);
        add("c", Verdict::Fail);
        let table = of(&tests, &report);
        let rows: Vec<Vec<&str>> = table
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(
            rows[2],
            ["I1", "ext4-4k", "pass", "1", "NOT", "fails", "1", "of", "1"]
        );
        assert_eq!(
            rows[3],
            ["I4", "ext4-4k", "pass", "2", "NOT", "fails", "1", "of", "1"]
        );
        assert_eq!(rows.len(), 4);
        assert_eq!(of(&tests, &Report::default()), "");
        assert!(GuestTest::parse("a name only").is_err());
    }
}
