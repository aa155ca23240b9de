use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::surrogate::above_zero;
use super::{PolicyLoss, SurrogateInput};
use crate::Error;

/// VESPO: the policy gradient times a weight of the whole completion that is one on-policy and fades smoothly on both
/// sides: -w^k e^(lambda (1 - w)) A log p, the weight without gradient, w the product of a completion's token ratios
/// (arXiv 2602.10693, section 3.4).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vespo {
    /// Exponent k of tokens whose advantage is not negative.
    pub positive_power: f32,
    /// Decay lambda of those tokens.
    pub positive_decay: f32,
    /// Exponent of all other tokens.
    pub negative_power: f32,
    /// Decay of all other tokens.
    pub negative_decay: f32,
}

impl Default for Vespo {
    /// The paper's 2 and 3, 3 and 2.
    fn default() -> Self {
        Self { positive_power: 2.0, positive_decay: 3.0, negative_power: 3.0, negative_decay: 2.0 }
    }
}

impl Vespo {
    /// Bound on the log-ratio of a token, and above on that of a completion: e^20 is far beyond where the weight is
    /// zero.
    const LARGEST: f32 = 20.0;
    /// Smallest weight w of a completion, as in the authors' code.
    const SMALLEST: f32 = 1e-8;
}

impl PolicyLoss for Vespo {
    fn token_loss(&self, input: SurrogateInput) -> Tensor<2> {
        let SurrogateInput { log_probs, log_ratio, advantages, .. } = input;
        let log_weight = log_ratio.detach().clamp(-Self::LARGEST, Self::LARGEST).sum_dim(1);
        let log_weight = log_weight.clamp(Self::SMALLEST.ln(), Self::LARGEST);
        let negative = advantages.clone().lower_scalar(0.0);
        let of_sign = |positive: f32, other: f32| advantages.full_like(positive).mask_fill(negative.clone(), other);
        let decay = of_sign(self.positive_decay, self.negative_decay);
        let power = of_sign(self.positive_power, self.negative_power);
        let weight = (decay.clone() + power * log_weight.clone() - decay * log_weight.exp()).exp();
        (weight * advantages * log_probs).neg()
    }
    fn check(&self) -> Result<(), Error> {
        above_zero("surrogate.positive_power", self.positive_power)?;
        above_zero("surrogate.positive_decay", self.positive_decay)?;
        above_zero("surrogate.negative_power", self.negative_power)?;
        above_zero("surrogate.negative_decay", self.negative_decay)
    }
}
