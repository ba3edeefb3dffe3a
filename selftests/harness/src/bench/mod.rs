// SPDX-License-Identifier: GPL-2.0

//! `bench`: what pins cost, and what the kernel without the subsystem, or another way, costs.
//!
//! - Time, in UML kernels, which run at the speed of the machine. They take turns, so that what
//!   else the machine does hits both.
//! - Instructions, in x86 guests whose clock counts them, for what must cost nothing.
//! - What waits for a disk, in x86 guests, where only the ratio of the two sides means something.
//!
//! The tables and plots of `Documentation/performance.rst` are made from the files in
//! `Documentation/data`, which are the results of a run; a test below checks that they are.

mod measure;
mod parts;
mod plot;
mod table;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::cache;
use crate::samples::Samples;

pub use measure::count_instructions;
pub use parts::Part;

/// What the user asked for.
#[derive(Debug)]
pub struct Options {
    /// Boots of each UML kernel, where two are compared.
    pub boots: u32,
    /// Only these parts; all if there is none.
    pub only: Vec<Part>,
    /// Put the results into the documentation.
    pub save: bool,
    /// Measure nothing: make tables and plots of the documentation anew from the data beside it.
    pub redraw: bool,
}

/// Runs it, prints the tables, and says where the numbers are.
pub fn bench(options: &Options) -> Result<u8> {
    let asked = |part: &Part| options.only.is_empty() || options.only.contains(part);
    let parts = Part::ALL.into_iter().filter(asked);
    if options.redraw {
        for part in parts {
            save(part, &documented(part)?)?;
        }
        return Ok(0);
    }
    let log = cache::new_run("bench")?;
    for part in parts {
        let mut samples = measure::measure(part, options, &log)?;
        samples.notes.extend(machine());
        let file = log.join(data_file(part));
        fs::write(&file, samples.write())?;
        println!("\n{}", part.heading());
        println!("{}", table::table(part, &samples));
        eprintln!("harness: {}", file.display());
        if options.save {
            save(part, &samples)?;
        }
    }
    Ok(0)
}

/// What one has to know of the machine to read times.
fn machine() -> Vec<String> {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text
        .lines()
        .find(|l| l.starts_with("model name"))
        .and_then(|l| Some(l.split_once(':')?.1.trim()))
        .unwrap_or("unknown CPU");
    let date = cache::timestamp(cache::now());
    vec![format!("{}, {model}", date.split('-').next().unwrap_or(""))]
}

fn data_file(part: Part) -> String {
    format!("bench-{}.tsv", part.name())
}

fn plot_file(part: Part) -> String {
    format!("bench-{}.svg", part.name())
}

fn documentation() -> PathBuf {
    cache::selftests().join("../Documentation")
}

/// What the documentation has of a part.
fn documented(part: Part) -> Result<Samples> {
    let path = documentation().join("data").join(data_file(part));
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    Samples::read(&text).with_context(|| path.display().to_string())
}

/// Stores the results, and makes table and plot anew.
fn save(part: Part, samples: &Samples) -> Result<()> {
    let data = documentation().join("data");
    fs::create_dir_all(&data)?;
    fs::write(data.join(data_file(part)), samples.write())?;
    fs::write(data.join(plot_file(part)), plot::svg(part, samples)?)?;
    let path = documentation().join("performance.rst");
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    fs::write(&path, with_table(&text, part, samples)?)?;
    Ok(())
}

/// The document with the table of one part replaced: what is between two comments that name it.
fn with_table(text: &str, part: Part, samples: &Samples) -> Result<String> {
    let begin = format!(".. bench {}\n", part.name());
    let end = format!(".. bench {} end\n", part.name());
    let (before, rest) = text.split_once(&begin).context("no place for the table")?;
    let (_, after) = rest.split_once(&end).context("no end of the table")?;
    let table = table::table(part, samples);
    Ok(format!("{before}{begin}\n{table}\n\n{end}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_in_a_document() {
        let mut samples = Samples::default();
        let said = "bench\tanon\tget\t200\nbench\tanon\tput\t100\nbench\tend";
        samples.add("n", 1, said).unwrap();
        samples.add("y", 1, said).unwrap();
        let document = "a\n.. bench time\nold\n.. bench time end\nb\n";
        let new = with_table(document, Part::Time, &samples).unwrap();
        assert!(new.starts_with("a\n") && new.ends_with("b\n") && !new.contains("old"));
        assert_eq!(with_table(&new, Part::Time, &samples).unwrap(), new);
    }

    /// The tables and plots of the documentation are what the data beside it says.
    #[test]
    fn documentation_is_of_its_data() {
        let path = documentation().join("performance.rst");
        let text = fs::read_to_string(&path).unwrap();
        for part in Part::ALL {
            let data = documentation().join("data");
            let samples = documented(part).unwrap();
            assert!(
                with_table(&text, part, &samples).unwrap() == text,
                "{} does not show Documentation/data/{}",
                path.display(),
                data_file(part)
            );
            let plot = fs::read_to_string(data.join(plot_file(part))).unwrap();
            assert!(
                plot == plot::svg(part, &samples).unwrap(),
                "{} is not of {}",
                plot_file(part),
                data_file(part)
            );
        }
    }
}
