// SPDX-License-Identifier: GPL-2.0

//! What `check` of xfstests says, and what the guest tells the host of it.

use std::collections::BTreeSet;

use regex::Regex;
use serde::{Deserialize, Serialize};

/// How a test came out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As expected.
    Pass,
    /// Not as expected, for this reason.
    Fail(String),
    /// The test found that it cannot run here.
    NotRun(String),
}

/// What the host tells the guest to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Orders {
    /// Type of filesystem.
    pub fs: String,
    /// Options of mkfs.
    pub mkfs: String,
    /// Mount options, separated by commas.
    pub mount: String,
    /// Tests to run.
    pub tests: Vec<String>,
    /// Seconds that one of them may take.
    pub limit: u64,
    /// Pin files meanwhile, with this seed.
    pub pinstorm: Option<u64>,
    /// The debugfs switch of the step to do without.
    pub knockout: Option<String>,
}

/// What `pinwb-test pinstorm` did so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Storm {
    /// Ranges of files that were pinned.
    pub pinned: u64,
    /// Ranges whose pin was refused or that were gone.
    pub refused: u64,
    /// Writes through pins.
    pub writes: u64,
}

impl Storm {
    /// What was done between `earlier` and now.
    pub fn since(self, earlier: Storm) -> Storm {
        Storm {
            pinned: self.pinned.saturating_sub(earlier.pinned),
            refused: self.refused.saturating_sub(earlier.refused),
            writes: self.writes.saturating_sub(earlier.writes),
        }
    }
}

/// What the guest tells the host, one JSON object a line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// A line that belongs to no test.
    Note(String),
    /// A test starts.
    Start(String),
    /// A test is over.
    Done {
        /// Its name.
        test: String,
        /// How it came out.
        verdict: Verdict,
        /// How long it took.
        seconds: f64,
        /// Pins meanwhile.
        storm: Option<Storm>,
        /// What it left behind if it failed: names and contents.
        files: Vec<(String, String)>,
    },
    /// A test takes too long; the guest ends.
    Overtime {
        /// Its name.
        test: String,
        /// How long it took.
        seconds: f64,
    },
}

/// A piece of `check`'s output.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    /// A line that belongs to no test.
    Line(String),
    /// A test's name is there, the rest of its line is to come.
    Start(String),
    /// All of a test's output is there.
    Done(String, Verdict),
}

/// Takes `check`'s output apart as it comes.
pub struct Reader {
    tests: BTreeSet<String>,
    pending: Vec<u8>,
    /// The test that runs, and what was said of it.
    current: Option<(String, String)>,
}

impl Reader {
    /// A reader for a run of these tests.
    pub fn new(tests: &[String]) -> Self {
        Self {
            tests: tests.iter().cloned().collect(),
            pending: Vec::new(),
            current: None,
        }
    }

    /// Takes bytes as they come; a test's name is seen before its line is complete.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<Said> {
        let mut said = Vec::new();
        self.pending.extend_from_slice(bytes);
        while let Some(end) = self.pending.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = self.pending.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line).into_owned();
            self.line(line.trim_end_matches(['\n', '\r']), &mut said);
        }
        let start = String::from_utf8_lossy(&self.pending).into_owned();
        if let Some(name) = self.name(&start) {
            if self.current.as_ref().is_none_or(|(test, _)| *test != name) {
                self.start(name, &mut said);
            }
        }
        said
    }

    /// Ends the last test.
    pub fn finish(&mut self) -> Vec<Said> {
        let mut said = self.feed(b"\n");
        self.end(&mut said);
        said
    }

    fn name(&self, line: &str) -> Option<String> {
        let (name, _) = line.split_once(' ')?;
        self.tests.contains(name).then(|| name.to_string())
    }

    fn start(&mut self, name: String, said: &mut Vec<Said>) {
        self.end(said);
        said.push(Said::Start(name.clone()));
        self.current = Some((name, String::new()));
    }

    fn end(&mut self, said: &mut Vec<Said>) {
        if let Some((test, text)) = self.current.take() {
            said.push(Said::Done(test, judge(&text)));
        }
    }

    fn line(&mut self, line: &str, said: &mut Vec<Said>) {
        if let Some(name) = self.name(line) {
            if self.current.as_ref().is_none_or(|(test, _)| *test != name) {
                self.start(name, said);
            }
        } else if line.starts_with("Ran: ") {
            self.end(said);
        }
        match &mut self.current {
            Some((test, text)) => {
                text.push_str(line.strip_prefix(test.as_str()).unwrap_or(line));
                text.push('\n');
            }
            None if !line.is_empty() => said.push(Said::Line(line.to_string())),
            None => {}
        }
    }
}

/// The verdict in what `check` printed behind a test's name.
fn judge(text: &str) -> Verdict {
    let pass = Regex::new(r"^\s*(\d+s \.\.\. )?\s*\d+s\s*$").expect("a constant");
    let first = text.lines().next().unwrap_or_default();
    if pass.is_match(first) {
        return Verdict::Pass;
    }
    if let Some((_, why)) = text.split_once("[not run] ") {
        return Verdict::NotRun(why.trim().replace('\n', " "));
    }
    if first.contains("[expunged]") {
        return Verdict::NotRun("expunged".to_string());
    }
    let why = text.trim();
    Verdict::Fail(match why {
        "" => "check does not say why".to_string(),
        _ => why.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "\
FSTYP         -- ext4
PLATFORM      -- Linux/x86_64 pinwb 7.2.12

generic/001         4s
generic/003        5s ...  7s
generic/013        [not run] this test requires a valid $LOGWRITES_DEV
generic/020        [failed, exit status 1]- output mismatch (see /run/results/generic/020.out.bad)
    --- tests/generic/020.out\t2026-11-20 12:00:00.000000000 +0000
    +generic/001 is not the start of a test here
    ...
    (Run 'diff -u ...'  to see the entire diff)
generic/021        _check_dmesg: something found in dmesg (see /run/results/generic/021.dmesg)

generic/022       \u{20}
generic/023        - no such test?
Ran: generic/001 generic/003
Failures: generic/020
";

    fn tests() -> Vec<String> {
        ["001", "003", "013", "020", "021", "022", "023"]
            .map(|n| format!("generic/{n}"))
            .to_vec()
    }

    fn read(step: usize) -> Vec<Said> {
        let mut reader = Reader::new(&tests());
        let mut said: Vec<Said> = OUTPUT
            .as_bytes()
            .chunks(step)
            .flat_map(|chunk| reader.feed(chunk))
            .collect();
        said.extend(reader.finish());
        said
    }

    fn verdict(said: &[Said], name: &str) -> Verdict {
        let found = said.iter().find_map(|s| match s {
            Said::Done(test, verdict) if test == name => Some(verdict.clone()),
            _ => None,
        });
        found.unwrap()
    }

    #[test]
    fn all_verdicts() {
        let said = read(OUTPUT.len());
        assert_eq!(said[0], Said::Line("FSTYP         -- ext4".into()));
        assert_eq!(verdict(&said, "generic/001"), Verdict::Pass);
        assert_eq!(verdict(&said, "generic/003"), Verdict::Pass);
        let Verdict::NotRun(why) = verdict(&said, "generic/013") else {
            panic!("013 was not run");
        };
        assert_eq!(why, "this test requires a valid $LOGWRITES_DEV");
        let Verdict::Fail(why) = verdict(&said, "generic/020") else {
            panic!("020 failed");
        };
        assert!(why.starts_with("[failed, exit status 1]- output"), "{why}");
        assert!(why.ends_with("entire diff)"), "{why}");
        for name in ["generic/021", "generic/022", "generic/023"] {
            assert!(matches!(verdict(&said, name), Verdict::Fail(_)), "{name}");
        }
        let last = Said::Line("Failures: generic/020".into());
        assert_eq!(said.last(), Some(&last));
    }

    #[test]
    fn pieces_do_not_matter() {
        let whole = read(OUTPUT.len());
        for step in [1, 2, 7, 64] {
            assert_eq!(read(step), whole, "{step}");
        }
    }

    #[test]
    fn a_name_is_a_start() {
        let mut reader = Reader::new(&tests());
        assert_eq!(reader.feed(b"generic/00"), []);
        let start = [Said::Start("generic/001".into())];
        assert_eq!(reader.feed(b"1       "), start);
        assert_eq!(reader.feed(b"  "), []);
        let done = reader.finish();
        assert!(matches!(&done[..], [Said::Done(_, Verdict::Fail(_))]));
    }

    #[test]
    fn events_are_lines() {
        let event = Event::Done {
            test: "generic/001".into(),
            verdict: Verdict::Fail("a\nb".into()),
            seconds: 1.5,
            storm: Some(Storm::default()),
            files: vec![("out.bad".into(), "x\n".into())],
        };
        let line = serde_json::to_string(&event).unwrap();
        assert!(!line.contains('\n'));
        assert_eq!(serde_json::from_str::<Event>(&line).unwrap(), event);
    }
}
