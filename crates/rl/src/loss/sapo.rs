use burn::tensor::Tensor;
use burn::tensor::activation::sigmoid;
use serde::{Deserialize, Serialize};

use super::surrogate::above_zero;
use super::{PolicyLoss, SurrogateInput};
use crate::Error;

/// SAPO: a smooth gate in place of a clip, -(4 / t) sigmoid(t (r - 1)) A, whose slope is one at r = 1 and fades on
/// both sides (arXiv 2511.20347).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sapo {
    /// Temperature t of tokens with a positive advantage.
    pub positive_temperature: f32,
    /// Temperature of all other tokens; larger fades faster.
    pub negative_temperature: f32,
}

impl Default for Sapo {
    /// The paper's 1.0 and 1.05.
    fn default() -> Self {
        Self { positive_temperature: 1.0, negative_temperature: 1.05 }
    }
}

impl PolicyLoss for Sapo {
    fn token_loss(&self, input: SurrogateInput) -> Tensor<2> {
        let SurrogateInput { ratio, advantages, .. } = input;
        let temperature = advantages
            .full_like(self.negative_temperature)
            .mask_fill(advantages.clone().greater_scalar(0.0), self.positive_temperature);
        let gate = sigmoid((ratio - 1.0) * temperature.clone()) * 4.0 / temperature;
        (gate * advantages).neg()
    }
    fn check(&self) -> Result<(), Error> {
        above_zero("surrogate.positive_temperature", self.positive_temperature)?;
        above_zero("surrogate.negative_temperature", self.negative_temperature)
    }
}
