// SPDX-License-Identifier: GPL-2.0

//! Measures pins. Runs as root inside a guest of the kernel under test: as PID 1 of a UML kernel
//! (`uml`, `writeback`), or as the job of an x86 guest whose clock counts instructions
//! (`instructions`).
//!
//! Prints lines of `bench`, a case, what was measured, and the values, separated by tabs; the last
//! line is `bench`, `end`. Everything else on standard output is for people.

mod file;
mod gup;
mod instructions;
mod uml;
mod unused;
mod writeback;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Measures pins, inside a guest
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// As PID 1 of a UML kernel: time gup_test -L, and power off
    Uml(uml::Options),
    /// As PID 1 of a UML kernel: time fsync of a file that is pinned, and power off
    Writeback(writeback::Options),
    /// In a guest whose time stamp counter counts instructions
    Instructions(instructions::Options),
    /// In such a guest, what files pay that were never pinned
    Unused(unused::Options),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Uml(options) => uml::run(|| uml::measure(&options)),
        Command::Writeback(options) => uml::run(|| writeback::measure(&options)),
        Command::Instructions(options) => instructions::run(&options),
        Command::Unused(options) => unused::run(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pinwb-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Prints the values of one case.
fn report(case: &str, what: &str, values: &[u64]) {
    let values: Vec<String> = values.iter().map(u64::to_string).collect();
    println!("bench\t{case}\t{what}\t{}", values.join(" "));
}

/// Says that no case is missing.
fn report_end() {
    println!("bench\tend");
}

/// Microseconds or instructions that a number of pins took.
#[derive(Default)]
struct Series {
    get: Vec<u64>,
    put: Vec<u64>,
}

impl Series {
    fn extend(&mut self, more: Series) {
        self.get.extend(more.get);
        self.put.extend(more.put);
    }

    fn report(&self, case: &str) -> Result<()> {
        anyhow::ensure!(
            !self.get.is_empty() && self.get.len() == self.put.len(),
            "{case}: nothing was measured"
        );
        report(case, "get", &self.get);
        report(case, "put", &self.put);
        Ok(())
    }
}
