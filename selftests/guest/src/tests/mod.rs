// SPDX-License-Identifier: GPL-2.0

//! The tests, by theme.

mod attributes;
pub mod common;
mod crash;
mod durable;
mod errors;
mod exact;
mod faults;
mod nowait;
mod options;
mod quota;
mod refuse;
mod selfcheck;
mod stable;
mod stories;
mod stress;
mod sync;
mod tools;
mod transient;

use std::fs;

use crate::tap::Test;

const THEMES: &[&[Test]] = &[
    selfcheck::TESTS,
    durable::TESTS,
    tools::TESTS,
    exact::TESTS,
    transient::TESTS,
    nowait::TESTS,
    refuse::TESTS,
    attributes::TESTS,
    stories::TESTS,
    sync::TESTS,
    stable::TESTS,
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
        let here = test.only.is_empty() || test.only == fs;
        let here = here && faults == test.name.starts_with("faults.");
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
