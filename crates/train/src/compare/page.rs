//! `report.html`: a comparison on one page.

use std::collections::BTreeMap;

use serde::Serialize;

use super::findings::{Findings, Found};
use super::record::{Measured, Record};
use super::statistics::Mean;
use super::{Comparison, Variant};
use crate::config::RunConfig;
use crate::difference::added;
use crate::report::{Page, page};

const PAGE: Page = page!("compare/body.html", styles: ["compare/compare.css"], scripts: ["compare/compare.js"]);

/// Weight of the newest reward in a curve of them: it looks back over about ten steps.
const NEWEST: f64 = 0.2;

/// What the page holds.
#[derive(Serialize)]
struct Content<'a> {
    name: &'a str,
    model: String,
    version: &'static str,
    config: String,
    findings: &'a Findings,
    charts: [Chart; 3],
}

#[derive(Serialize)]
struct Chart {
    title: &'static str,
    about: &'static str,
    /// Whether values are percentages or points.
    percent: bool,
    lines: Vec<Line>,
}

/// The means over the seeds of one variant.
#[derive(Serialize)]
struct Line {
    name: String,
    steps: Vec<usize>,
    means: Vec<f64>,
    /// Standard errors; zero of a single seed.
    errors: Vec<f64>,
}

/// Values of one run after so many steps.
type Curve = Vec<(usize, f64)>;

/// The page of what there is.
pub(super) fn page_of(comparison: &Comparison, record: &Record, findings: &Findings) -> String {
    let Comparison { config, .. } = comparison;
    let lines = |points: &dyn Fn(&Found, &Measured) -> Option<Curve>| -> Vec<Line> {
        let line = |row: &Found| {
            let measured = row.seeds.iter().filter_map(|&seed| record.of(seed, &row.name));
            Line::of(&row.name, measured.filter_map(|found| points(row, found)))
        };
        findings.rows.iter().map(line).filter(|line| !line.steps.is_empty()).collect()
    };
    let base = |row: &Found, found: &Measured| record.of(found.seed, row.base.as_ref()?).map(accuracies);
    let charts = [
        Chart {
            title: "Held-out accuracy",
            about: "in percent; step 0 is the warm-up",
            percent: true,
            lines: lines(&|_, found| Some(accuracies(found))),
        },
        Chart {
            title: "Difference in held-out accuracy",
            about: "in points, to what each is compared with, paired over the seeds",
            percent: true,
            lines: lines(&|row, found| {
                let base: BTreeMap<usize, f64> = base(row, found)?.into_iter().collect();
                let minus = |(step, accuracy)| Some((step, accuracy - base.get(&step)?));
                Some(accuracies(found).into_iter().filter_map(minus).collect())
            }),
        },
        Chart {
            title: "Mean reward",
            about: "of the training prompts, a moving average over about ten steps",
            percent: false,
            lines: lines(&|_, found| Some(smoothed(&found.rewards))),
        },
    ];
    PAGE.with(&Content {
        name: &config.name,
        model: config.model.display().to_string(),
        version: env!("CARGO_PKG_VERSION"),
        config: settings(comparison),
        findings,
        charts,
    })
}

/// The configuration, and what each variant has of its own.
fn settings(Comparison { config, variants, .. }: &Comparison) -> String {
    let own = |Variant { name, reinforcement, .. }: &Variant| {
        let keys = added(config, &RunConfig { reinforcement: reinforcement.clone(), ..config.clone() });
        let keys = if keys.is_empty() { "# as above".into() } else { keys.join("\n") };
        format!("# {name}\n{keys}")
    };
    let variants: Vec<String> = variants.iter().map(own).collect();
    format!("# All runs, but for the seed and what follows\n{}\n{}\n", config.to_toml(), variants.join("\n\n"))
}

impl Line {
    fn of(name: &str, curves: impl Iterator<Item = Curve>) -> Self {
        let mut values: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
        for (step, value) in curves.flatten() {
            values.entry(step).or_default().push(value);
        }
        let found: Vec<(usize, Mean)> =
            values.into_iter().filter_map(|(step, values)| Some((step, Mean::of(&values)?))).collect();
        Self {
            name: name.into(),
            steps: found.iter().map(|(step, _)| *step).collect(),
            means: found.iter().map(|(_, mean)| mean.mean).collect(),
            errors: found.iter().map(|(_, mean)| mean.standard_error.unwrap_or(0.0)).collect(),
        }
    }
}

/// In percent, from the warm-up to the end.
fn accuracies(found: &Measured) -> Curve {
    let ends = [(0, found.warm_up), (found.rewards.len(), found.accuracy)];
    let mut points: Curve = found.accuracies.iter().copied().chain(ends).collect();
    points.sort_by_key(|(step, _)| *step);
    points.into_iter().map(|(step, share)| (step, 100.0 * share)).collect()
}

fn smoothed(rewards: &[Option<f64>]) -> Curve {
    let mut mean = None;
    let mut point = |(place, reward): (usize, &Option<f64>)| {
        let (reward, before) = ((*reward)?, mean.unwrap_or((*reward)?));
        mean = Some(before + NEWEST * (reward - before));
        Some((place + 1, mean?))
    };
    rewards.iter().enumerate().filter_map(&mut point).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::float_cmp)]

    use super::*;

    #[test]
    fn curves_are_means_over_seeds_and_rewards_are_smoothed_across_gaps() {
        let line = Line::of("a", [vec![(0, 1.0), (5, 2.0)], vec![(5, 4.0)]].into_iter());
        assert_eq!((line.steps, line.means, line.errors), (vec![0, 5], vec![1.0, 3.0], vec![0.0, 1.0]));
        assert_eq!(smoothed(&[None, Some(1.0), None, Some(0.0)]), [(2, 1.0), (4, 0.8)]);
    }
}
