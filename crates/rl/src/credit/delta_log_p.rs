use serde::{Deserialize, Serialize};

use super::{CreditAssigner, CreditBatch, TokenCredit};
use crate::Error;

/// Delta-log-p reweighting (arXiv 2603.22117): A'_t = (1 + alpha (1 - p_t)) A_t with p_t the probability that the token
/// was drawn with. Unlikely tokens, where the change that RL makes is concentrated, count more.
///
/// The formula is known to us second-hand, alpha only by the range of the weights it gives, 1.1 to 1.2. The paper's
/// decoding rule is `firesight_vlm::Extrapolation`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DeltaLogP {
    /// What a token of probability zero gets on top.
    pub alpha: f32,
}

impl Default for DeltaLogP {
    /// 0.2, the upper end of what the range of weights allows.
    fn default() -> Self {
        Self { alpha: 0.2 }
    }
}

impl<P> CreditAssigner<P> for DeltaLogP {
    fn name(&self) -> &'static str {
        "delta_log_p"
    }

    fn assign(&self, rollout: &CreditBatch<'_, P>) -> Result<Vec<TokenCredit>, Error> {
        let weight = |log_prob: &f32| 1.0 - self.alpha * log_prob.min(0.0).exp_m1();
        let weights = rollout.completions.iter().map(|input| input.completion.log_probs.iter().map(weight));
        Ok(weights.map(|weights| weights.collect::<Vec<_>>().into()).collect())
    }

    fn check(&self) -> Result<(), Error> {
        Error::unless("delta_log_p.alpha", self.alpha, |alpha| alpha >= 0.0, "a number not below 0")
    }
}

#[cfg(test)]
mod tests {
    use super::DeltaLogP;
    use crate::credit::testing::{Row, assert_weights};

    #[test]
    fn unlikely_tokens_count_more() {
        let rows = [Row { log_probs: vec![0.9f32.ln(), 0.1f32.ln()], ..Row::of(2) }];
        assert_weights(&DeltaLogP { alpha: 0.2 }, &rows, &[&[1.02, 1.18]]);
    }
}
