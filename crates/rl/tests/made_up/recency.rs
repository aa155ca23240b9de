use serde::{Deserialize, Serialize};

use super::{CreditAssigner, CreditBatch, CreditInput, TokenCredit};
use crate::Error;

/// Late tokens count more: 1 + `slope` t / (T - 1). Made up; there is no paper.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Recency {
    /// What the last token gets on top.
    pub slope: f32,
}

impl Default for Recency {
    /// Twice as much.
    fn default() -> Self {
        Self { slope: 1.0 }
    }
}

impl<P> CreditAssigner<P> for Recency {
    fn name(&self) -> &'static str {
        "recency"
    }

    fn assign(&self, rollout: &CreditBatch<'_, P>) -> Result<Vec<TokenCredit>, Error> {
        let credit = |input: &CreditInput<'_, P>| {
            let tokens = input.completion.tokens.len();
            let weight = |token| 1.0 + self.slope * token as f32 / (tokens.max(2) - 1) as f32;
            (0..tokens).map(weight).collect::<Vec<_>>().into()
        };
        Ok(rollout.completions.iter().map(credit).collect())
    }
}
