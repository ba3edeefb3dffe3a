// SPDX-License-Identifier: GPL-2.0

//! Verdicts that are kept from boot to boot, and what changed between two runs.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::output::{Storm, Verdict};

/// One test's result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Name of the test.
    pub test: String,
    /// How it came out.
    pub verdict: Verdict,
    /// How long it took.
    pub seconds: f64,
    /// Pins meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storm: Option<Storm>,
}

/// The verdicts of one way to run the tests; on disk a line each, the last one of a test counts.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    records: BTreeMap<String, Record>,
    file: File,
}

impl Store {
    /// Opens the store in `dir`, with what is in there.
    pub fn open(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
        let path = dir.join("results.jsonl");
        let records = parse(&fs::read_to_string(&path).unwrap_or_default());
        let file = OpenOptions::new().create(true).append(true).open(&path)?;
        let mut store = Store {
            dir: dir.to_path_buf(),
            records,
            file,
        };
        // A harness that was killed may have left half a line.
        store.rewrite()?;
        Ok(store)
    }

    fn rewrite(&mut self) -> Result<()> {
        let path = self.dir.join("results.jsonl");
        let new = self.dir.join("results.jsonl.new");
        let mut text = String::new();
        for record in self.records.values() {
            text.push_str(&serde_json::to_string(record)?);
            text.push('\n');
        }
        fs::write(&new, text)?;
        fs::rename(&new, &path)?;
        self.file = OpenOptions::new().append(true).open(&path)?;
        Ok(())
    }

    /// Where the store is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The result of a test, if it has one.
    pub fn get(&self, test: &str) -> Option<&Record> {
        self.records.get(test)
    }

    /// Adds a result, or replaces it.
    pub fn put(&mut self, record: Record) -> Result<()> {
        let line = serde_json::to_string(&record)? + "\n";
        self.file.write_all(line.as_bytes())?;
        self.records.insert(record.test.clone(), record);
        Ok(())
    }

    /// Forgets the results of these tests.
    pub fn forget(&mut self, tests: &[String]) -> Result<()> {
        for test in tests {
            self.records.remove(test);
            let _ = fs::remove_dir_all(self.failure(test));
        }
        self.rewrite()
    }

    /// The directory for what a failure of a test left.
    pub fn failure(&self, test: &str) -> PathBuf {
        self.dir.join("failures").join(test.replace('/', "-"))
    }
}

fn parse(text: &str) -> BTreeMap<String, Record> {
    text.lines()
        .filter_map(|line| serde_json::from_str::<Record>(line).ok())
        .map(|record| (record.test.clone(), record))
        .collect()
}

/// How many tests came out how.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub struct Counts {
    /// Passed.
    pub passed: usize,
    /// Failed.
    pub failed: usize,
    /// Can't run here.
    pub not_run: usize,
    /// Without a verdict.
    pub missing: usize,
    /// All of them together.
    pub seconds: f64,
    /// Ranges that were pinned meanwhile.
    pub pinned: u64,
}

impl Counts {
    /// Counts these tests.
    pub fn of(store: &Store, tests: &[String]) -> Self {
        let mut counts = Counts::default();
        for test in tests {
            let Some(record) = store.get(test) else {
                counts.missing += 1;
                continue;
            };
            match record.verdict {
                Verdict::Pass => counts.passed += 1,
                Verdict::Fail(_) => counts.failed += 1,
                Verdict::NotRun(_) => counts.not_run += 1,
            }
            counts.seconds += record.seconds;
            counts.pinned += record.storm.unwrap_or_default().pinned;
        }
        counts
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} passed, {} failed, {} not run",
            self.passed, self.failed, self.not_run
        )?;
        if self.missing > 0 {
            write!(f, ", {} without a verdict", self.missing)?;
        }
        write!(f, ", {}", minutes(self.seconds))?;
        if self.pinned > 0 {
            write!(f, ", {} ranges pinned", self.pinned)?;
        }
        Ok(())
    }
}

/// `M:SS`.
pub fn minutes(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    format!("{}:{:02}", seconds / 60, seconds % 60)
}

/// How a test's result compares with the baseline's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// It fails, and does not fail in the baseline.
    Regression,
    /// One side has no verdict.
    Missing,
    /// It passes in the baseline and is not run here.
    Lost,
    /// It fails in both.
    FailsInBoth,
    /// It fails in the baseline only.
    Better,
    /// Nothing to say.
    Same,
}

/// Compares a verdict with the baseline's.
pub fn compare(base: Option<&Verdict>, now: Option<&Verdict>) -> Change {
    use Verdict::{Fail, NotRun, Pass};
    match (base, now) {
        (None, _) | (_, None) => Change::Missing,
        (Some(Fail(_)), Some(Fail(_))) => Change::FailsInBoth,
        (_, Some(Fail(_))) => Change::Regression,
        (Some(Pass), Some(NotRun(_))) => Change::Lost,
        (Some(Fail(_)), Some(Pass)) => Change::Better,
        _ => Change::Same,
    }
}

/// All tests that did not come out the same, worst first.
pub fn changes<'a>(base: &Store, now: &Store, tests: &'a [String]) -> Vec<(Change, &'a str)> {
    let verdict = |store: &Store, test: &str| store.get(test).map(|r| r.verdict.clone());
    let mut changes: Vec<(Change, &str)> = tests
        .iter()
        .map(|test| {
            let change = compare(verdict(base, test).as_ref(), verdict(now, test).as_ref());
            (change, test.as_str())
        })
        .filter(|(change, _)| *change != Change::Same)
        .collect();
    changes.sort();
    changes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(test: &str, verdict: Verdict) -> Record {
        Record {
            test: test.into(),
            verdict,
            seconds: 30.0,
            storm: None,
        }
    }

    fn fail() -> Verdict {
        Verdict::Fail("x".into())
    }

    #[test]
    fn every_pair() {
        let verdicts = [
            None,
            Some(Verdict::Pass),
            Some(fail()),
            Some(Verdict::NotRun("y".into())),
        ];
        let expected = [
            [Change::Missing; 4],
            [
                Change::Missing,
                Change::Same,
                Change::Regression,
                Change::Lost,
            ],
            [
                Change::Missing,
                Change::Better,
                Change::FailsInBoth,
                Change::Same,
            ],
            [
                Change::Missing,
                Change::Same,
                Change::Regression,
                Change::Same,
            ],
        ];
        for (base, row) in verdicts.iter().zip(expected) {
            for (now, change) in verdicts.iter().zip(row) {
                assert_eq!(compare(base.as_ref(), now.as_ref()), change);
            }
        }
    }

    #[test]
    fn what_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let tests = ["generic/001", "generic/002", "generic/003"].map(String::from);
        let mut store = Store::open(dir.path()).unwrap();
        store.put(record(&tests[0], Verdict::Pass)).unwrap();
        store.put(record(&tests[1], Verdict::Pass)).unwrap();
        store.put(record(&tests[1], fail())).unwrap();
        // As after a kill in the middle of a line.
        store.file.write_all(b"{\"test\":\"gen").unwrap();
        drop(store);

        let mut store = Store::open(dir.path()).unwrap();
        assert_eq!(store.get(&tests[1]).unwrap().verdict, fail());
        let counts = Counts::of(&store, &tests);
        assert_eq!((counts.passed, counts.failed, counts.missing), (1, 1, 1));
        let text = counts.to_string();
        assert_eq!(
            text,
            "1 passed, 1 failed, 0 not run, 1 without a verdict, 1:00"
        );
        store.put(record(&tests[2], Verdict::Pass)).unwrap();
        store.forget(&tests[1..2]).unwrap();
        drop(store);
        let store = Store::open(dir.path()).unwrap();
        assert!(store.get(&tests[1]).is_none() && store.get(&tests[2]).is_some());
    }

    #[test]
    fn worst_first() {
        let dir = tempfile::tempdir().unwrap();
        let mut base = Store::open(&dir.path().join("a")).unwrap();
        let mut now = Store::open(&dir.path().join("b")).unwrap();
        let tests = ["a/1", "a/2", "a/3", "a/4"].map(String::from);
        for (test, was, is) in [
            (&tests[0], Verdict::Pass, Verdict::Pass),
            (&tests[1], fail(), Verdict::Pass),
            (&tests[2], fail(), fail()),
            (&tests[3], Verdict::Pass, fail()),
        ] {
            base.put(record(test, was)).unwrap();
            now.put(record(test, is)).unwrap();
        }
        let changes = changes(&base, &now, &tests);
        assert_eq!(
            changes,
            [
                (Change::Regression, "a/4"),
                (Change::FailsInBoth, "a/3"),
                (Change::Better, "a/2"),
            ]
        );
    }
}
