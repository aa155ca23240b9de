//! Credit methods on numbers worked out elsewhere.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use super::{CreditAssigner, CreditBatch, CreditInput, Evidence, TokenCredit};
use crate::{Completion, View};

/// What is known of a completion.
#[derive(Default)]
pub(crate) struct Row {
    pub(crate) group: usize,
    pub(crate) log_probs: Vec<f32>,
    pub(crate) entropy: Vec<f32>,
    pub(crate) top_p_entropy: Vec<f32>,
    pub(crate) alignment: Option<Vec<f32>>,
    pub(crate) texts: Vec<Arc<str>>,
    pub(crate) views: Vec<(View, Vec<f32>)>,
    pub(crate) without: Option<Vec<f32>>,
}

impl Row {
    /// One of so many tokens, each of probability one.
    pub(crate) fn of(tokens: usize) -> Self {
        Self { log_probs: vec![0.0; tokens], ..Self::default() }
    }
}

/// The credit of completions; all have the views of the first.
pub(crate) fn credit(method: &impl CreditAssigner<()>, rows: &[Row]) -> Vec<TokenCredit> {
    let completion = |row: &Row| Completion {
        tokens: vec![0; row.log_probs.len()],
        log_probs: row.log_probs.clone(),
        ..Completion::default()
    };
    let completions: Vec<Completion> = rows.iter().map(completion).collect();
    let evidence = |row: &Row| Some(Evidence::by_token(row.alignment.clone()?, [].into()));
    let evidence: Vec<Option<Evidence>> = rows.iter().map(evidence).collect();
    let view = |at: usize| (rows[0].views[at].0.clone(), rows.iter().map(|row| row.views[at].1.clone()).collect());
    let views: Vec<(View, Vec<Vec<f32>>)> = (0..rows[0].views.len()).map(view).collect();
    let mut inputs = Vec::with_capacity(rows.len());
    for (at, row) in rows.iter().enumerate() {
        inputs.push(CreditInput {
            advantage: 1.0,
            entropy: &row.entropy,
            top_p_entropy: &row.top_p_entropy,
            evidence: evidence[at].as_ref(),
            texts: &row.texts,
            views: &views,
            without: row.without.as_deref(),
            row: at,
            ..CreditInput::of(&(), row.group, &completions[at])
        });
    }
    let batch = CreditBatch { completions: inputs, seed: 0, step: 0 };
    let found = method.assign(&batch).unwrap();
    for (found, row) in found.iter().zip(rows) {
        assert_eq!(found.weights.len(), row.log_probs.len());
        assert!(found.weights.iter().all(|weight| weight.is_finite() && *weight >= 0.0), "{found:?}");
    }
    found
}

pub(crate) fn weights(method: &impl CreditAssigner<()>, rows: &[Row]) -> Vec<Vec<f32>> {
    credit(method, rows).into_iter().map(|credit| credit.weights).collect()
}

pub(crate) fn assert_weights(method: &impl CreditAssigner<()>, rows: &[Row], expected: &[&[f64]]) {
    for (found, expected) in weights(method, rows).iter().zip(expected) {
        close(&found.iter().copied().map(f64::from).collect::<Vec<_>>(), expected);
    }
}

/// Equal to a millionth, which is also what the expected values are rounded to.
pub(crate) fn close(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (one, other) in found.iter().zip(expected) {
        assert!((one - other).abs() < 1e-6, "{found:?} instead of {expected:?}");
    }
}
