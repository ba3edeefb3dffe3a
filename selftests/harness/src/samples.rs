// SPDX-License-Identifier: GPL-2.0

//! What a benchmark measured: a text file of samples, and the numbers that sum them up.
//!
//! A file has a line for each series of values: kernel, case, what was measured, number of the
//! boot, all separated by tabs, and the values, separated by blanks. Lines that begin with `#` say
//! how it was got.

use std::fmt::Write;

use anyhow::{bail, Context, Result};

/// How a program in the guest marks a line for us.
const MARK: &str = "bench\t";

/// The fastest tenth of the rounds, as something that was measured: where a host runs at several
/// speeds, medians of two cases may be of two of them.
pub const FASTEST: &str = "best 10 %";

/// The values of one case in one boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Which kernel.
    pub kernel: String,
    /// Which case.
    pub case: String,
    /// `get` or `put` (microseconds), or `instructions`.
    pub what: String,
    /// Number of the boot, from 1 on.
    pub boot: u32,
    /// In the order in which they were measured.
    pub values: Vec<u64>,
}

/// The samples of a run.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Samples {
    /// How they were got, a line each.
    pub notes: Vec<String>,
    /// In the order in which they were measured.
    pub samples: Vec<Sample>,
}

/// The middle of some values, and how far they are apart.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    /// The median.
    pub median: f64,
    /// Distance of the quartiles, in percent of the median.
    pub spread: f64,
}

impl Samples {
    /// Adds what a guest printed.
    pub fn add(&mut self, kernel: &str, boot: u32, said: &str) -> Result<()> {
        let mut ended = false;
        // The kernel may have begun a line of the console's.
        for line in said.lines().filter_map(|l| Some(l.split_once(MARK)?.1)) {
            let fields: Vec<&str> = line.trim_end().split('\t').collect();
            match fields[..] {
                ["end"] => ended = true,
                ["error", why] => bail!("the guest says: {why}"),
                [case, what, values] => self.samples.push(Sample {
                    kernel: kernel.into(),
                    case: case.into(),
                    what: what.into(),
                    boot,
                    values: numbers(values)?,
                }),
                _ => bail!("what is {line:?}?"),
            }
        }
        if !ended {
            bail!("the guest did not come to the end");
        }
        Ok(())
    }

    /// The text of a file.
    pub fn write(&self) -> String {
        let mut text = String::from("# SPDX-License-Identifier: GPL-2.0\n");
        for note in &self.notes {
            let _ = writeln!(text, "# {note}");
        }
        for s in &self.samples {
            let values: Vec<String> = s.values.iter().map(u64::to_string).collect();
            let _ = writeln!(
                text,
                "{}\t{}\t{}\t{}\t{}",
                s.kernel,
                s.case,
                s.what,
                s.boot,
                values.join(" ")
            );
        }
        text
    }

    /// Reads the text of a file.
    pub fn read(text: &str) -> Result<Self> {
        let mut all = Self::default();
        for line in text.lines().skip(1) {
            if let Some(note) = line.strip_prefix("# ") {
                all.notes.push(note.into());
                continue;
            }
            let fields: Vec<&str> = line.split('\t').collect();
            let [kernel, case, what, boot, values] = fields[..] else {
                bail!("what is {line:?}?");
            };
            all.samples.push(Sample {
                kernel: kernel.into(),
                case: case.into(),
                what: what.into(),
                boot: boot.parse().with_context(|| format!("{line:?}"))?,
                values: numbers(values)?,
            });
        }
        Ok(all)
    }

    /// Values of a case, one list for each boot; `what` may be `sum`, of `get` and `put`.
    fn of(&self, kernel: &str, case: &str, what: &str) -> Vec<Vec<u64>> {
        if what == "sum" {
            let get = self.of(kernel, case, "get");
            let put = self.of(kernel, case, "put");
            let add = |(a, b): (&u64, &u64)| a + b;
            return get
                .iter()
                .zip(&put)
                .map(|(get, put)| get.iter().zip(put).map(add).collect())
                .collect();
        }
        self.samples
            .iter()
            .filter(|s| s.kernel == kernel && s.case == case && s.what == what)
            .map(|s| s.values.clone())
            .collect()
    }

    /// Sums up a case: over the medians of the boots if there are several of them, else over the
    /// values. [`None`] if it was not measured. [`FASTEST`] is over those values of all boots.
    pub fn summary(&self, kernel: &str, case: &str, what: &str) -> Option<Summary> {
        let boots = match what {
            FASTEST => vec![fastest(self.of(kernel, case, "sum").concat())],
            _ => self.of(kernel, case, what),
        };
        let mut points: Vec<f64> = match &boots[..] {
            [values] => values.iter().map(|&v| v as f64).collect(),
            _ => boots
                .iter()
                .filter_map(|values| {
                    let mut values: Vec<f64> = values.iter().map(|&v| v as f64).collect();
                    values.sort_by(f64::total_cmp);
                    quantile(&values, 0.5)
                })
                .collect(),
        };
        points.sort_by(f64::total_cmp);
        let median = quantile(&points, 0.5)?;
        let distance = quantile(&points, 0.75)? - quantile(&points, 0.25)?;
        Some(Summary {
            median,
            spread: 100.0 * distance / median,
        })
    }
}

/// Their smallest tenth.
fn fastest(mut values: Vec<u64>) -> Vec<u64> {
    values.sort_unstable();
    values.truncate(values.len().div_ceil(10));
    values
}

fn numbers(text: &str) -> Result<Vec<u64>> {
    text.split_whitespace()
        .map(|word| word.parse().with_context(|| format!("{word:?}")))
        .collect()
}

/// A quantile of sorted values, between two of them by proportion.
fn quantile(sorted: &[f64], q: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let place = q * last as f64;
    let (low, high) = (place.floor() as usize, place.ceil() as usize);
    Some(sorted[low] + (sorted[high] - sorted[low]) * place.fract())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> Samples {
        let mut samples = Samples {
            notes: vec!["how".into()],
            ..Samples::default()
        };
        for (boot, offset) in [(1, 0), (2, 10), (3, 50)] {
            let said = format!(
                "booted\nbench\tanon\tget\t{} {} 999\n[  0.1] bench\tanon\tput\t1 2 3\nbench\tend\n",
                100 + offset,
                102 + offset
            );
            samples.add("y", boot, &said).unwrap();
        }
        samples
    }

    #[test]
    fn quantiles() {
        assert_eq!(quantile(&[], 0.5), None);
        assert_eq!(quantile(&[7.0], 0.25), Some(7.0));
        assert_eq!(quantile(&[1.0, 2.0], 0.5), Some(1.5));
        assert_eq!(quantile(&[1.0, 2.0, 3.0, 4.0, 5.0], 0.75), Some(4.0));
    }

    #[test]
    fn medians_of_medians() {
        let samples = some();
        let get = samples.summary("y", "anon", "get").unwrap();
        assert_eq!(get.median, 112.0);
        assert_eq!(samples.summary("y", "anon", "sum").unwrap().median, 114.0);
        assert_eq!(samples.summary("n", "anon", "get"), None);
        assert_eq!(samples.summary("y", "ext4", "sum"), None);
    }

    #[test]
    fn fastest_of_all_boots() {
        let best = some().summary("y", "anon", FASTEST).unwrap();
        assert_eq!((best.median, best.spread), (101.0, 0.0));
        assert_eq!(some().summary("n", "anon", FASTEST), None);
    }

    #[test]
    fn one_boot() {
        let mut samples = Samples::default();
        let said = "bench\twrite\tinstructions\t1 2 3 4 5\nbench\tend";
        samples.add("n", 1, said).unwrap();
        let all = samples.summary("n", "write", "instructions").unwrap();
        assert_eq!((all.median, all.spread), (3.0, 100.0 * 2.0 / 3.0));
    }

    #[test]
    fn files() {
        let samples = some();
        assert_eq!(Samples::read(&samples.write()).unwrap(), samples);
    }

    #[test]
    fn guests_that_fail() {
        let mut samples = Samples::default();
        assert!(samples.add("y", 1, "bench\ta\tget\t1").is_err(), "no end");
        assert!(samples
            .add("y", 1, "bench\terror\twhy\nbench\tend")
            .is_err());
        assert!(samples.add("y", 1, "bench\ta\tget\tx\nbench\tend").is_err());
    }
}
