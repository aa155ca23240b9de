//! What a comparison says.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Comparison;
use super::record::Record;
use super::statistics::{Mean, paired_t_test};

/// What a comparison has found so far.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Findings {
    /// Steps of every run.
    pub steps: usize,
    /// Held-out questions.
    pub questions: usize,
    /// Seeds with a result.
    pub seeds: Vec<u64>,
    /// Accuracy of the policies that all variants go on from.
    pub warm_up: Option<Mean>,
    /// The variants.
    pub rows: Vec<Found>,
}

/// What is found of one variant.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Found {
    /// Its name.
    pub name: String,
    /// Its seeds with a result.
    pub seeds: Vec<u64>,
    /// Share of right greedy answers to the held-out questions, over the seeds.
    pub accuracy: Option<Mean>,
    /// The variant that it is compared with.
    pub base: Option<String>,
    /// Its accuracy minus that, paired over the seeds that have both.
    pub difference: Option<Mean>,
    /// Two-sided p-value of the paired t-test, not corrected for the number of variants.
    pub p: Option<f64>,
    /// Answers of all its seeds that could not be graded, and count as not right.
    pub ungraded: usize,
    /// What a step costs, as a multiple of what one of the base does.
    pub cost: Option<Mean>,
}

impl Findings {
    /// Of all results, the variants of `comparison` first.
    pub(super) fn of(record: &Record, comparison: &Comparison) -> Self {
        let seeds: Vec<u64> = record.seeds().into_iter().collect();
        let warm_ups: BTreeMap<u64, f64> = record.measured.iter().map(|found| (found.seed, found.warm_up)).collect();
        let warm_ups: Vec<f64> = warm_ups.into_values().collect();
        let mut names: Vec<(&str, Option<&str>)> = Vec::new();
        let asked = comparison.variants.iter().map(|variant| (&variant.name, &variant.base));
        for (name, base) in asked.chain(record.measured.iter().map(|found| (&found.name, &found.base))) {
            if names.iter().all(|(known, _)| known != name) {
                names.push((name, base.as_deref()));
            }
        }
        let rows = names.into_iter().map(|(name, base)| found(name, base, &seeds, record)).collect();
        let Comparison { config, .. } = comparison;
        let steps = config.reinforcement.steps;
        // There may be fewer than are asked for.
        let questions = record.measured.first().map_or(config.evaluation.examples, |found| found.questions);
        Self { steps, questions, warm_up: Mean::of(&warm_ups), rows, seeds }
    }
}

fn found(name: &str, base: Option<&str>, seeds: &[u64], record: &Record) -> Found {
    let results = || seeds.iter().filter_map(|&seed| record.of(seed, name));
    let pairs = || results().filter_map(|found| Some((found, record.of(found.seed, base?)?)));
    let differences: Vec<f64> = pairs().map(|(found, base)| found.accuracy - base.accuracy).collect();
    let costs: Vec<f64> = pairs().map(|(found, base)| found.cost() / base.cost()).collect();
    let accuracies: Vec<f64> = results().map(|found| found.accuracy).collect();
    Found {
        name: name.into(),
        seeds: results().map(|found| found.seed).collect(),
        accuracy: Mean::of(&accuracies),
        base: base.map(Into::into),
        difference: Mean::of(&differences),
        p: paired_t_test(&differences),
        ungraded: results().map(|found| found.ungraded).sum(),
        cost: Mean::of(&costs),
    }
}
