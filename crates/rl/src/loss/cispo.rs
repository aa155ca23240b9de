use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::surrogate::above_zero;
use super::{Bound, PolicyLoss, SurrogateInput};
use crate::Error;

/// CISPO: a bounded ratio weighs the policy gradient and is itself held constant, so that no token loses its gradient:
/// -min(r, max_ratio) A log p, the minimum without gradient (MiniMax-M1, arXiv 2506.13585, eq. 4-5).
///
/// The paper also has a lower bound and leaves it unused.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cispo {
    /// Largest weight. The whole bound, not its distance from one.
    pub max_ratio: f32,
}

impl PolicyLoss for Cispo {
    fn token_loss(&self, input: SurrogateInput) -> Tensor<2> {
        let SurrogateInput { log_probs, ratio, advantages, .. } = input;
        (ratio.detach().clamp_max(self.max_ratio) * advantages * log_probs).neg()
    }

    fn clipped(&self, ratio: f32, advantage: f32) -> Option<Bound> {
        (advantage > 0.0 && ratio > self.max_ratio).then_some(Bound::High)
    }
    fn check(&self) -> Result<(), Error> {
        above_zero("surrogate.max_ratio", self.max_ratio)
    }
}
