//! Draws the learning curves of runs side by side.
//!
//! ```sh
//! cargo run --release --example learning_curves -- runs/first runs/second --out curves.png
//! ```
//!
//! Left: accuracy on new training questions during the warm-up; right: mean reward of the rollouts, averaged over ten.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::Parser;
use image::RgbImage;
use plotters::prelude::*;
use plotters::style::register_font;
use serde_json::Value;

static FONT: &[u8] = include_bytes!("../crates/train/data/DejaVuSans-ascii.ttf");
/// Rollouts that one point of the reward curve averages.
const WINDOW: usize = 10;
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 90, 180),
    RGBColor(220, 90, 0),
    RGBColor(0, 140, 90),
    RGBColor(160, 40, 140),
    RGBColor(120, 120, 0),
    RGBColor(90, 90, 90),
];

/// Draws the learning curves of runs.
#[derive(Debug, Parser)]
struct Options {
    /// Run directories.
    #[arg(required = true)]
    runs: Vec<PathBuf>,
    /// What the legend calls each [default: its directory].
    #[arg(long)]
    name: Vec<String>,
    /// The picture.
    #[arg(long, default_value = "curves.png")]
    out: PathBuf,
}

/// Points of one run.
struct Curves {
    name: String,
    accuracy: Vec<(f64, f64)>,
    reward: Vec<(f64, f64)>,
}

impl Curves {
    fn read(run: &Path, name: String) -> anyhow::Result<Self> {
        let path = run.join("metrics.jsonl");
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let rows: Vec<Value> = text
            .lines()
            .enumerate()
            .map(|(line, text)| serde_json::from_str(text).with_context(|| format!("{}:{}", path.display(), line + 1)))
            .collect::<anyhow::Result<_>>()?;
        let points = |metric: &str| -> Vec<(f64, f64)> {
            rows.iter().filter_map(|row| Some((row["step"].as_f64()?, row.get(metric)?.as_f64()?))).collect()
        };
        let mean = |window: &[(f64, f64)]| {
            let sum = window.iter().fold((0.0, 0.0), |sum, point| (sum.0 + point.0, sum.1 + point.1));
            (sum.0 / window.len() as f64, sum.1 / window.len() as f64)
        };
        let reward = points("reward/mean").windows(WINDOW).map(mean).collect();
        Ok(Self { name, accuracy: points("train/accuracy"), reward })
    }
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    ensure!(options.name.is_empty() || options.name.len() == options.runs.len(), "as many names as runs, or none");
    let name = |number: usize, run: &Path| {
        let directory = || run.file_name().unwrap_or(run.as_os_str()).to_string_lossy().into_owned();
        options.name.get(number).cloned().unwrap_or_else(directory)
    };
    let curves: Vec<Curves> = options
        .runs
        .iter()
        .enumerate()
        .map(|(number, run)| Curves::read(run, name(number, run)))
        .collect::<anyhow::Result<_>>()?;
    ensure!(register_font("sans-serif", FontStyle::Normal, FONT).is_ok(), "the font is invalid");
    let mut picture = RgbImage::new(1200, 440);
    let root = BitMapBackend::with_buffer(&mut picture, (1200, 440)).into_drawing_area();
    root.fill(&WHITE)?;
    let (left, right) = root.split_horizontally(600);
    panel(&left, "warm-up", "step", "accuracy on new questions", &curves, |curves| &curves.accuracy)?;
    panel(&right, "reinforcement learning", "rollout", "mean reward", &curves, |curves| &curves.reward)?;
    drop((left, right, root));
    picture.save(&options.out).with_context(|| options.out.display().to_string())?;
    println!("{}", options.out.display());
    Ok(())
}

fn panel(
    area: &DrawingArea<BitMapBackend<'_>, plotters::coord::Shift>,
    caption: &str,
    x: &str,
    y: &str,
    curves: &[Curves],
    points: impl Fn(&Curves) -> &Vec<(f64, f64)>,
) -> anyhow::Result<()> {
    let last = curves.iter().flat_map(&points).fold(1.0_f64, |last, point| last.max(point.0));
    let mut chart = ChartBuilder::on(area)
        .caption(caption, ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(54)
        .build_cartesian_2d(0.0..last, 0.0..1.0)?;
    chart
        .configure_mesh()
        .x_desc(x)
        .y_desc(y)
        .x_label_formatter(&|x| format!("{x:.0}"))
        .light_line_style(WHITE)
        .label_style(("sans-serif", 14))
        .draw()?;
    for (number, run) in curves.iter().enumerate() {
        let colour = COLOURS[number % COLOURS.len()];
        chart
            .draw_series(LineSeries::new(points(run).iter().copied(), colour.stroke_width(2)))?
            .label(run.name.as_str())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .label_font(("sans-serif", 14))
        .background_style(WHITE.mix(0.8))
        .draw()?;
    Ok(())
}
