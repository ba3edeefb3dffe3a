// SPDX-License-Identifier: GPL-2.0

//! The litmus tests of `selftests/models/litmus`, by the kernel's memory model, with herd7.
//!
//! Each says in its comment what herd7 has to answer: `Never` for what must not be seen, and
//! `Sometimes` for the same without the ordering that it is about.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{bail, Context, Result};
use clap::Parser;
use pinwb_models::report::{self, Model, Options, Outcome};

/// Seconds for one test.
const TIMEOUT: &str = "120";

#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    options: Options,
    /// The kernel's `tools/memory-model`.
    #[arg(long)]
    memory_model: PathBuf,
}

/// One litmus test.
struct Litmus {
    name: String,
    path: PathBuf,
    /// What herd7 has to answer.
    result: String,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let litmus = tests(&Path::new(env!("CARGO_MANIFEST_DIR")).join("litmus"))?;
    let directory = &arguments.memory_model;
    let models = match &herd(directory) {
        Ok(herd) => litmus
            .iter()
            .map(|test| {
                let herd = herd.clone();

                Model::new(&test.name, move || {
                    check(&herd, directory, test)
                        .unwrap_or_else(|error| Outcome::Fail(format!("{error:#}")))
                })
            })
            .collect(),
        Err(why) => {
            let why = format!("{} tests not run: {why}", litmus.len());

            vec![Model::new("memory model", || Outcome::Skip(why))]
        }
    };

    report::run("litmus", &arguments.options, models)
}

/// Reads what the tests say of themselves; each must.
fn tests(directory: &Path) -> Result<Vec<Litmus>> {
    let mut tests = Vec::new();

    for entry in fs::read_dir(directory).with_context(|| format!("read {}", directory.display()))? {
        let path = entry?.path();

        if path.extension().is_none_or(|e| e != "litmus") {
            continue;
        }
        let text = fs::read_to_string(&path)?;
        let name = path
            .file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let Some(result) = text.lines().find_map(|l| l.strip_prefix(" * Result: ")) else {
            bail!("{}: no line with the result", path.display());
        };

        if text.lines().next() != Some(&format!("C {name}")) {
            bail!("{}: the first line has another name", path.display());
        }
        tests.push(Litmus {
            name,
            result: result.to_string(),
            path,
        });
    }
    tests.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(tests)
}

/// The program to run, or why there is none.
fn herd(memory_model: &Path) -> Result<String, String> {
    if !memory_model.join("linux-kernel.cfg").is_file() {
        return Err(format!("no memory model in {}", memory_model.display()));
    }
    let herd = env::var("HERD7").unwrap_or_else(|_| "herd7".to_string());

    match Command::new(&herd).arg("-version").output() {
        Ok(output) if output.status.success() => Ok(herd),
        _ => Err(format!("{herd} is not installed")),
    }
}

fn check(herd: &str, memory_model: &Path, test: &Litmus) -> Result<Outcome> {
    let output = Command::new("timeout")
        .args([TIMEOUT, herd, "-conf", "linux-kernel.cfg"])
        .arg(&test.path)
        .current_dir(memory_model)
        .output()
        .context("run herd7")?;
    let said = String::from_utf8_lossy(&output.stdout);
    let observation = said
        .lines()
        .find_map(|line| line.strip_prefix(&format!("Observation {} ", test.name)));
    let Some((result, counts)) = observation.and_then(|o| o.split_once(' ')) else {
        let errors = String::from_utf8_lossy(&output.stderr);

        bail!("{herd} said nothing of it: {said}{errors}");
    };

    if result != test.result {
        return Ok(Outcome::Fail(format!(
            "{result}, and not {}: {said}",
            test.result
        )));
    }
    let executions: usize = counts
        .split(' ')
        .filter_map(|n| n.parse::<usize>().ok())
        .sum();
    Ok(Outcome::Pass(format!(
        "{} in {executions} executions",
        result.to_lowercase()
    )))
}
