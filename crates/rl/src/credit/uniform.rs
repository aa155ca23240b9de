use serde::{Deserialize, Serialize};

use super::{CreditAssigner, CreditBatch, TokenCredit};
use crate::Error;

/// Every token gets the whole advantage: the base algorithm unchanged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uniform;

impl<P> CreditAssigner<P> for Uniform {
    fn name(&self) -> &'static str {
        "uniform"
    }

    fn assign(&self, rollout: &CreditBatch<'_, P>) -> Result<Vec<TokenCredit>, Error> {
        Ok(rollout.completions.iter().map(|input| vec![1.0; input.completion.tokens.len()].into()).collect())
    }
}
