use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::{Bound, PolicyLoss, SurrogateInput};
use crate::Error;

/// The clipped surrogate of PPO: -min(r A, clip(r, 1 - low, 1 + high) A) (arXiv 1707.06347, eq. 7).
///
/// Different bounds are DAPO's clip-higher (arXiv 2503.14476, eq. 8).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Clip {
    /// The lower bound is `1 - low`.
    pub low: f32,
    /// The upper bound is `1 + high`.
    pub high: f32,
    /// Upper bound on the ratio of tokens with a negative advantage, which the minimum leaves unbounded: the constant c
    /// of dual clip (arXiv 1912.09729, eq. 5; 3 in use), and delta of two-sided clipping (INTELLECT-2, arXiv
    /// 2505.07291), which are the same thing where it is larger than `1 + high`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delta: Option<f32>,
}

impl PolicyLoss for Clip {
    fn token_loss(&self, input: SurrogateInput) -> Tensor<2> {
        let SurrogateInput { ratio, advantages, .. } = input;
        let clipped = ratio.clone().clamp(1.0 - self.low, 1.0 + self.high) * advantages.clone();
        let free = match self.delta {
            Some(delta) => ratio.clamp_max(delta),
            None => ratio,
        } * advantages;
        free.min_pair(clipped).neg()
    }

    fn clipped(&self, ratio: f32, advantage: f32) -> Option<Bound> {
        if advantage < 0.0 && ratio < 1.0 - self.low {
            Some(Bound::Low)
        } else if advantage > 0.0 && ratio > 1.0 + self.high {
            Some(Bound::High)
        } else {
            None
        }
    }
    fn check(&self) -> Result<(), Error> {
        let refuse = |setting, value: f32, reason| Err(Error::Setting { setting, value: value.to_string(), reason });
        if !(0.0..=1.0).contains(&self.low) {
            return refuse("surrogate.low", self.low, "between 0 and 1");
        }
        if !(self.high >= 0.0 && self.high.is_finite()) {
            return refuse("surrogate.high", self.high, "at least 0");
        }
        match self.delta.filter(|delta| delta.is_nan() || *delta <= 1.0 + self.high) {
            Some(delta) => refuse("surrogate.delta", delta, "larger than 1 + surrogate.high"),
            None => Ok(()),
        }
    }
}
