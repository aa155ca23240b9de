use burn::tensor::Tensor;

use super::{Bound, Surrogate};

/// The clipped surrogate of PPO: -min(r A, clip(r, 1 - low, 1 + high) A) (arXiv 1707.06347, eq. 7).
///
/// Different bounds are DAPO's clip-higher (arXiv 2503.14476, eq. 8).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Clip {
    /// The lower bound is `1 - low`.
    pub low: f32,
    /// The upper bound is `1 + high`.
    pub high: f32,
    /// Upper bound on the ratio of tokens with a negative advantage, which the minimum leaves unbounded: two-sided
    /// clipping (INTELLECT-2, arXiv 2505.07291). Larger than `1 + high`.
    pub delta: Option<f32>,
}

impl Surrogate for Clip {
    fn token_loss(&self, _: Tensor<2>, ratio: Tensor<2>, advantages: Tensor<2>) -> Tensor<2> {
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
}
