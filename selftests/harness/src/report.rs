// SPDX-License-Identifier: GPL-2.0

//! Counts tests, and says at the end what failed and why.

use std::fs;
use std::path::Path;

use anyhow::Result;

use crate::tap::{Test, Verdict};

/// All tests of a run.
#[derive(Debug, Default)]
pub struct Report {
    tests: Vec<Test>,
}

/// How many passed, failed, were skipped.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Passed.
    pub passed: usize,
    /// Failed.
    pub failed: usize,
    /// Skipped.
    pub skipped: usize,
}

impl Report {
    /// Adds one test of `group`.
    pub fn add(&mut self, group: &str, test: Test) {
        let name = format!("{group}/{}", test.name);
        self.tests.push(Test { name, ..test });
    }

    /// Adds a failure that is not a test's own: a splat, a guest that died.
    pub fn fail(&mut self, group: &str, what: &str, context: Vec<String>) {
        let test = Test {
            name: what.to_string(),
            verdict: Verdict::Fail,
            context,
        };
        self.add(group, test);
    }

    /// The tests so far; names begin with the group's.
    pub fn tests(&self) -> &[Test] {
        &self.tests
    }

    /// The counts so far.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for test in &self.tests {
            match test.verdict {
                Verdict::Pass => counts.passed += 1,
                Verdict::Fail => counts.failed += 1,
                Verdict::Skip(_) => counts.skipped += 1,
            }
        }
        counts
    }

    /// Everything there is to say at the end; the last line holds the counts.
    pub fn summary(&self) -> String {
        let mut text = String::new();
        let mut say = |line: &str| {
            text.push_str(line);
            text.push('\n');
        };
        for test in &self.tests {
            if let Verdict::Skip(why) = &test.verdict {
                let why = if test.name.ends_with(why.as_str()) {
                    String::new()
                } else {
                    format!(": {why}")
                };
                say(&format!("skipped: {}{why}", test.name));
            }
        }
        for test in &self.tests {
            if test.verdict == Verdict::Fail {
                say(&format!("\nFAILED: {}", test.name));
                for line in &test.context {
                    say(&format!("    {line}"));
                }
            }
        }
        let Counts {
            passed,
            failed,
            skipped,
        } = self.counts();
        say("");
        match skipped {
            0 => say(&format!("{passed} passed, {failed} failed")),
            _ => say(&format!(
                "{passed} passed, {failed} failed, {skipped} skipped"
            )),
        }
        text
    }

    /// Whether the run as a whole is good: something passed and nothing failed.
    pub fn good(&self) -> bool {
        let counts = self.counts();
        counts.failed == 0 && counts.passed > 0
    }

    /// Writes all results to a file, as TAP.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut text = format!("TAP version 13\n1..{}\n", self.tests.len());
        for (i, test) in self.tests.iter().enumerate() {
            let (word, directive) = match &test.verdict {
                Verdict::Pass => ("ok", String::new()),
                Verdict::Fail => ("not ok", String::new()),
                Verdict::Skip(why) => ("ok", format!(" # SKIP {why}")),
            };
            text.push_str(&format!("{word} {} - {}{directive}\n", i + 1, test.name));
            for line in &test.context {
                text.push_str(&format!("# {}\n", line.trim_start_matches("# ")));
            }
        }
        Ok(fs::write(path, text)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn test(name: &str, verdict: Verdict) -> Test {
        Test {
            name: name.into(),
            verdict,
            context: vec!["# why".into()],
        }
    }

    fn last_line(report: &Report) -> String {
        report.summary().lines().last().unwrap().to_string()
    }

    #[test]
    fn last_lines() {
        let mut report = Report::default();
        assert!(!report.good(), "nothing ran");
        assert_eq!(last_line(&report), "0 passed, 0 failed");
        report.add("g", test("a", Verdict::Skip("no b".into())));
        assert!(!report.good(), "nothing but skips");
        report.add("g", test("b", Verdict::Pass));
        assert!(report.good());
        assert_eq!(last_line(&report), "1 passed, 0 failed, 1 skipped");
        assert!(report.summary().contains("skipped: g/a: no b"));
        report.fail("g", "console", vec!["BUG: x".into()]);
        assert!(!report.good());
        assert_eq!(last_line(&report), "1 passed, 1 failed, 1 skipped");
        assert!(report.summary().contains("FAILED: g/console\n    BUG: x"));
    }
}
