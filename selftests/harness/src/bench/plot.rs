// SPDX-License-Identifier: GPL-2.0

//! Plots of what was measured: a bar from 1 to the ratio of each line of a table.

use anyhow::{anyhow, Result};
use plotters::coord::combinators::IntoLogRange;
use plotters::prelude::*;

use crate::samples::Samples;

use super::parts::{Part, Reach};
use super::table::{lines, verdict, Line};

const WIDTH: u32 = 900;
const LINE: u32 = 20;
const TITLES: u32 = 340;
const SCALE: u32 = 45;
/// For a ratio, at the right of its title.
const NUMBER: u32 = 40;
const MARGIN: u32 = 12;

const MET: RGBColor = RGBColor(0x2e, 0x7d, 0x32);
const MISSED: RGBColor = RGBColor(0xc6, 0x28, 0x28);
const SHOWN: RGBColor = RGBColor(0x60, 0x7d, 0x8b);

fn color(line: &Line) -> RGBColor {
    match verdict(line.reach, line.ratio()).1 {
        "met" => MET,
        "missed" => MISSED,
        _ => SHOWN,
    }
}

/// The largest ratio that reaches what is to be reached.
fn limit(reach: Reach) -> Option<f64> {
    match reach {
        Reach::AtMost(limit) => Some(limit),
        Reach::Equal(share) => Some(1.0 + share),
        Reach::Nothing => None,
    }
}

/// An SVG file.
pub fn svg(part: Part, samples: &Samples) -> Result<String> {
    let lines = lines(part, samples);
    let mut text = String::new();
    draw(part, &lines, &mut text).map_err(|error| anyhow!("plot of {}: {error}", part.name()))?;
    // The backend ends lines as it likes.
    let text: Vec<&str> = text.lines().map(str::trim_end).collect();
    Ok(text.join("\n") + "\n")
}

type Drawn = std::result::Result<(), Box<dyn std::error::Error>>;

fn draw(part: Part, lines: &[Line], text: &mut String) -> Drawn {
    let count = lines.len() as u32;
    let ratios = || lines.iter().map(Line::ratio).filter(|r| *r > 0.0);
    let low = ratios().fold(0.9, f64::min) / 1.1;
    let high = ratios().fold(1.25, f64::max) * 1.1;

    let root = SVGBackend::with_string(text, (WIDTH, count * LINE + SCALE + 2 * MARGIN))
        .into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .margin(MARGIN)
        .x_label_area_size(SCALE)
        .y_label_area_size(TITLES)
        .build_cartesian_2d((low..high).log_scale(), 0.0..f64::from(count))?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .y_labels(0)
        .x_label_formatter(&|ratio| format!("{ratio:.2}"))
        .x_desc(format!("{} / {}", part.columns()[1], part.columns()[0]))
        .draw()?;
    // From top to bottom.
    let place = |nth: usize| f64::from(count) - nth as f64;
    chart.draw_series(lines.iter().enumerate().map(|(nth, line)| {
        let ratio = line.ratio().max(low);
        let top = place(nth);
        Rectangle::new([(1.0, top - 0.2), (ratio, top - 0.8)], color(line).filled())
    }))?;
    let limits = lines.iter().enumerate();
    chart.draw_series(limits.filter_map(|(nth, line)| {
        let (limit, top) = (limit(line.reach)?, place(nth));
        let mark = vec![(limit, top - 0.05), (limit, top - 0.95)];
        Some(PathElement::new(mark, BLACK.stroke_width(2)))
    }))?;
    let font = ("sans-serif", 13).into_font();
    for (nth, line) in lines.iter().enumerate() {
        let y = MARGIN + nth as u32 * LINE + 4;
        let title = format!("{}: {}", line.title, line.what);
        root.draw_text(&title, &font.color(&BLACK), (MARGIN as i32, y as i32))?;
        let ratio = format!("{:.2}", line.ratio());
        let left = (MARGIN + TITLES - NUMBER) as i32;
        root.draw_text(&ratio, &font.color(&color(line)), (left, y as i32))?;
    }
    root.present()?;
    Ok(())
}
