// SPDX-License-Identifier: GPL-2.0

//! Tables of what was measured.

use crate::samples::{Samples, Summary};

use super::parts::{Part, Reach};

/// A line of a table.
pub struct Line {
    pub title: String,
    /// What was measured.
    pub what: &'static str,
    /// It does not begin a row.
    pub continues: bool,
    pub base: Summary,
    pub with: Summary,
    pub reach: Reach,
}

impl Line {
    pub fn ratio(&self) -> f64 {
        self.with.median / self.base.median
    }
}

/// What there is of a part.
pub fn lines(part: Part, samples: &Samples) -> Vec<Line> {
    let mut lines = Vec::new();
    for row in part.rows() {
        for (i, &what) in row.what.iter().enumerate() {
            let base = samples.summary(row.base.kernel, &row.base.name, what);
            let with = samples.summary(row.with.kernel, &row.with.name, what);
            let (Some(base), Some(with)) = (base, with) else {
                continue;
            };
            let last = i + 1 == row.what.len();
            lines.push(Line {
                title: row.title.clone(),
                what,
                continues: i > 0,
                base,
                with,
                reach: if last { row.reach } else { Reach::Nothing },
            });
        }
    }
    lines
}

/// What is to be reached, and whether it is.
pub fn verdict(reach: Reach, ratio: f64) -> (String, &'static str) {
    let (text, met) = match reach {
        Reach::AtMost(limit) => (
            format!("<= {limit:.2}"),
            (ratio * 100.0).round() / 100.0 <= limit,
        ),
        Reach::Equal(share) => (
            format!("1 +- {:.1} %", share * 100.0),
            (ratio - 1.0).abs() <= share,
        ),
        Reach::Nothing => return (String::new(), ""),
    };
    (text, if met { "met" } else { "missed" })
}

/// A simple table of reStructuredText, which people can read as well.
pub fn table(part: Part, samples: &Samples) -> String {
    let [base, with] = part.columns();
    let mut cells: Vec<[String; 7]> =
        vec![["case", "", base, with, "ratio", "to reach", ""].map(String::from)];
    for line in lines(part, samples) {
        let (scale, digits) = (part.scale(line.what), part.digits(line.what));
        let cell = |s: Summary| format!("{:.digits$} ({:.1} %)", s.median * scale, s.spread);
        let (reach, met) = verdict(line.reach, line.ratio());
        cells.push([
            // An empty first cell continues the row above; a backslash is an empty one.
            if line.continues {
                "\\".into()
            } else {
                line.title.clone()
            },
            line.what.into(),
            cell(line.base),
            cell(line.with),
            match line.reach {
                Reach::Equal(_) => format!("{:.4}", line.ratio()),
                _ => format!("{:.2}", line.ratio()),
            },
            reach,
            met.into(),
        ]);
    }
    simple_table(&cells)
}

fn simple_table(lines: &[[String; 7]]) -> String {
    let width = |column: usize| {
        let longest = lines.iter().map(|l| l[column].len()).max();
        longest.unwrap_or(0).max(1)
    };
    let widths: Vec<usize> = (0..7).map(width).collect();
    let rule: Vec<String> = widths.iter().map(|&w| "=".repeat(w)).collect();
    let rule = rule.join("  ");
    let mut text = vec![rule.clone()];
    for (i, line) in lines.iter().enumerate() {
        let cells: Vec<String> = line
            .iter()
            .zip(&widths)
            .map(|(cell, &w)| format!("{cell:w$}"))
            .collect();
        text.push(cells.join("  ").trim_end().to_string());
        if i == 0 {
            text.push(rule.clone());
        }
    }
    text.push(rule);
    text.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::FASTEST;

    #[test]
    fn verdicts() {
        assert_eq!(verdict(Reach::AtMost(1.25), 1.2549).1, "met");
        assert_eq!(verdict(Reach::AtMost(1.25), 1.256).1, "missed");
        assert_eq!(verdict(Reach::AtMost(1.0), 0.9).1, "met");
        assert_eq!(verdict(Reach::Equal(0.005), 0.994).1, "missed");
        assert_eq!(verdict(Reach::Equal(0.005), 1.005).1, "met");
        assert_eq!(verdict(Reach::Nothing, 9.0).1, "");
    }

    #[test]
    fn tables() {
        let mut samples = Samples::default();
        let said = "bench\tanon\tget\t200\nbench\tanon\tput\t100\nbench\tend";
        samples.add("n", 1, said).unwrap();
        let said = said.replace("200", "230");
        samples.add("y", 1, &said).unwrap();
        let text = table(Part::Time, &samples);
        let line = |what| text.lines().find(|l| l.contains(what)).unwrap();
        let (sum, best) = (line("sum"), line(FASTEST));
        // 300 us for 16384 pages.
        for line in [sum, best] {
            assert!(
                line.contains("18.3 (0.0 %)") && line.contains("20.1 (0.0 %)"),
                "{line}"
            );
            assert!(line.contains("1.10"), "{line}");
        }
        assert!(best.ends_with("missed") && !sum.ends_with("missed"));
        assert!(!text.contains("ext4"), "not measured");
    }
}
