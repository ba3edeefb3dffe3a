// SPDX-License-Identifier: GPL-2.0

//! The tests, by theme.

mod attributes;
mod btrfs;
pub mod common;
mod crash;
mod durable;
mod errors;
mod exact;
mod faults;
mod frozen;
mod limits;
mod machine;
mod nowait;
mod options;
mod quota;
mod reclaim;
mod reflink;
mod refuse;
mod selfcheck;
mod several;
mod stable;
mod stories;
mod stress;
mod sync;
mod tools;
mod trace;
mod transient;

use std::fs;

use crate::restart;
use crate::tap::{Invariant, Test};

const THEMES: &[&[Test]] = &[
    selfcheck::TESTS,
    durable::TESTS,
    tools::TESTS,
    exact::TESTS,
    transient::TESTS,
    nowait::TESTS,
    refuse::TESTS,
    attributes::TESTS,
    reflink::TESTS,
    btrfs::TESTS,
    several::TESTS,
    stories::TESTS,
    sync::TESTS,
    stable::TESTS,
    limits::TESTS,
    reclaim::TESTS,
    frozen::TESTS,
    machine::TESTS,
    trace::TESTS,
    options::TESTS,
    errors::TESTS,
    crash::TESTS,
    quota::TESTS,
    faults::TESTS,
    stress::TESTS,
];

/// Every test.
pub fn all() -> Vec<Test> {
    THEMES.concat()
}

/// The tests to run: those of the filesystem whose names contain one of the filters. With `pinwb=off` on
/// the kernel's command line that is the one test about it, and without it all others. Those of fault injection
/// run where the kernel looks for leaks, and only they do.
pub fn select(filters: &[String], fs: &str) -> Vec<Test> {
    let off = is_off();
    let faults = faults::is_leak_detector_on(&command_line());
    let mut tests = all();
    tests.retain(|test| {
        let wanted = filters.is_empty() || filters.iter().any(|f| test.name.contains(f.as_str()));
        let here = test.is_for(fs) && faults == test.name.starts_with("faults.");
        wanted && here && off == (test.name == refuse::OFF)
    });
    tests
}

fn is_off() -> bool {
    command_line()
        .split_whitespace()
        .any(|word| word == "pinwb=off")
}

fn command_line() -> String {
    fs::read_to_string("/proc/cmdline").unwrap_or_default()
}

/// A line of the list of tests.
pub struct Listed {
    pub name: &'static str,
    proves: &'static [Invariant],
    pub without: &'static str,
    without_on: &'static str,
    /// Whatever the options of the command line are, it comes to the same.
    pub once: bool,
}

impl Listed {
    /// The invariants that it is about.
    pub fn proves_names(&self, separator: &str) -> String {
        let names: Vec<String> = self.proves.iter().map(|i| format!("{i:?}")).collect();
        names.join(separator)
    }
}

/// Every test, and those that restart the machine, which a command of their own runs.
pub fn listed() -> Vec<Listed> {
    let tests = all().into_iter().map(|test| Listed {
        name: test.name,
        proves: test.proves,
        without: test.without,
        without_on: test.without_on,
        once: !test.depends_on_options(),
    });
    let restarts = restart::CASES.iter().map(|case| Listed {
        name: case.name,
        proves: restart::PROVES,
        without: case.without,
        without_on: "",
        once: true,
    });
    tests.chain(restarts).collect()
}

/// What [`listed`] has, as a table of reStructuredText.
pub fn rst() -> String {
    let mut rows = vec![["test", "proves", "fails without"].map(String::from)];
    for test in listed() {
        let or_dash = |text: String| match text.as_str() {
            "" => "-".into(),
            _ => text,
        };
        rows.push([
            format!("``{}``", test.name),
            or_dash(test.proves_names(", ")),
            or_dash(match test.without_on {
                "" => test.without.into(),
                fs => format!("{} ({fs})", test.without),
            }),
        ]);
    }
    let widths: Vec<usize> = (0..3)
        .map(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(1))
        .collect();
    let rule: Vec<String> = widths.iter().map(|width| "=".repeat(*width)).collect();
    let rule = rule.join("  ") + "\n";
    let mut text = rule.clone();
    for (index, row) in rows.iter().enumerate() {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
        if index == 0 {
            text.push_str(&rule);
        }
    }
    text + &rule
}

#[cfg(test)]
mod unit {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    fn read(path: &str) -> String {
        let top = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
        fs::read_to_string(Path::new(top).join(path)).unwrap()
    }

    #[test]
    fn names_differ() {
        let names: BTreeSet<&str> = listed().iter().map(|test| test.name).collect();
        assert_eq!(names.len(), listed().len());
    }

    #[test]
    fn documented() {
        assert!(
            read("Documentation/testing.rst").contains(&rst()),
            "Documentation/testing.rst does not show what `pinwb-test list --rst` prints"
        );
    }

    /// The kernel has each switch that a test needs, and the documentation says what it does.
    #[test]
    fn knockouts_exist() {
        let kernel = read("rust/pinwb/debug.rs");
        let text = read("Documentation/testing.rst");
        let (_, switches) = kernel.split_once("\n    switches! {").unwrap();
        let (switches, _) = switches.split_once("\n    }").unwrap();
        let names: BTreeSet<&str> = switches
            .split(": c\"")
            .skip(1)
            .filter_map(|rest| rest.split('"').next())
            .collect();
        for name in &names {
            assert!(
                text.contains(&format!("\n``{name}``\n")),
                "{name} is not documented"
            );
        }
        for test in listed().iter().filter(|test| !test.without.is_empty()) {
            assert!(
                names.contains(test.without),
                "{}: no {}",
                test.name,
                test.without
            );
        }
    }
}
