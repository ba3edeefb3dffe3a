// SPDX-License-Identifier: GPL-2.0

//! How a model program reports: a line for people on stdout, TAP into a file.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;

/// Options of every model program.
#[derive(Debug, Parser)]
pub struct Options {
    /// The short slice.
    #[arg(long)]
    pub quick: bool,
    /// Only models whose name contains this.
    #[arg(long)]
    pub filter: Option<String>,
    /// Append TAP to this file.
    #[arg(long)]
    pub tap: Option<PathBuf>,
}

/// How a model came out.
#[derive(Debug)]
pub enum Outcome {
    /// As expected; so much was looked at, in words.
    Pass(String),
    /// Not as expected, for this reason.
    Fail(String),
    /// Not run, for this reason.
    Skip(String),
}

/// One model of a program.
pub struct Model<'a> {
    /// Name in the results.
    pub name: String,
    /// Checks it.
    pub run: Box<dyn FnOnce() -> Outcome + 'a>,
}

impl<'a> Model<'a> {
    /// A model with a name.
    pub fn new(name: impl Into<String>, run: impl FnOnce() -> Outcome + 'a) -> Self {
        Self {
            name: name.into(),
            run: Box::new(run),
        }
    }
}

/// Runs the models that `options` ask for, one after the other.
pub fn run(program: &str, options: &Options, models: Vec<Model<'_>>) -> Result<ExitCode> {
    let wanted = |name: &str| options.filter.as_deref().is_none_or(|f| name.contains(f));
    let models: Vec<_> = models.into_iter().filter(|m| wanted(&m.name)).collect();
    let mut tap = match &options.tap {
        Some(path) => Some(
            File::options()
                .create(true)
                .append(true)
                .open(path)
                .with_context(|| format!("open {}", path.display()))?,
        ),
        None => None,
    };
    let mut say = |text: String| -> Result<()> {
        if let Some(tap) = &mut tap {
            writeln!(tap, "{text}")?;
        }
        Ok(())
    };

    say(format!("# pinwb-program: {program}\nTAP version 13"))?;
    say(format!("1..{}", models.len()))?;
    let mut good = true;
    for (i, model) in models.into_iter().enumerate() {
        let (number, name) = (i + 1, model.name);
        let start = Instant::now();
        let outcome = (model.run)();
        let seconds = seconds(start.elapsed());
        match outcome {
            Outcome::Pass(what) => {
                println!("ok      {program}: {name}: {what}, {seconds}");
                say(format!("# {what}, {seconds}\nok {number} - {name}"))?;
            }
            Outcome::Fail(why) => {
                good = false;
                println!(
                    "not ok  {program}: {name}: {seconds}\n{}",
                    indent("        ", &why)
                );
                say(format!("{}\nnot ok {number} - {name}", indent("# ", &why)))?;
            }
            Outcome::Skip(why) => {
                println!("skip    {program}: {name}: {why}");
                say(format!("ok {number} - {name} # SKIP {why}"))?;
            }
        }
    }
    Ok(ExitCode::from(u8::from(!good)))
}

fn indent(by: &str, text: &str) -> String {
    let lines: Vec<String> = text.lines().map(|l| format!("{by}{l}")).collect();
    lines.join("\n")
}

fn seconds(elapsed: Duration) -> String {
    format!("{:.1} s", elapsed.as_secs_f32())
}
