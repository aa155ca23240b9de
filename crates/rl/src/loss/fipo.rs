use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::surrogate::above_zero;
use super::{Bound, Clip, PolicyLoss, SurrogateInput};
use crate::Error;

/// FIPO, future-KL influenced policy optimization (arXiv 2603.19835): the clipped surrogate of a token, weighted by how
/// much the policy has moved already on the tokens after it.
///
/// With D_k the log-ratio of token k, zero where the ratio exceeds `outlier`, and g = 2^(-1 / decay), the weight is
/// exp(sum over k >= t of g^(k - t) D_k) within 1 - `low` and 1 + `high`, without a gradient of its own. Where the
/// advantage is negative and the ratio above `safety`, it is within 0.8 and 1 as well. On the first update after a rollout
/// all ratios, and all weights, are one: it takes several.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Fipo {
    /// The surrogate that is weighted.
    pub clip: Clip,
    /// Tokens over which the influence of a later one halves.
    pub decay: f32,
    /// How far a weight may fall below one.
    pub low: f32,
    /// How far it may rise above one.
    pub high: f32,
    /// Ratio above which the weight of a token with a negative advantage is at most one.
    pub safety: f32,
    /// Ratio above which a token has no influence on those before it.
    pub outlier: f32,
}

impl Default for Fipo {
    /// DAPO's clip of 0.2 / 0.28; half after 32 tokens, weights from 1 to 1.2, safety 4, outliers above 10.
    fn default() -> Self {
        let clip = Clip { low: 0.2, high: 0.28, delta: None };
        Self { clip, decay: 32.0, low: 0.0, high: 0.2, safety: 4.0, outlier: 10.0 }
    }
}

impl Fipo {
    /// The weight of every token, given log-ratios that are zero on padding.
    fn weights(&self, log_ratio: Tensor<2>, advantages: &Tensor<2>) -> Tensor<2> {
        let log_ratio = log_ratio.detach();
        let ratio = log_ratio.clone().exp();
        let influence = log_ratio.mask_fill(ratio.clone().greater_scalar(self.outlier), 0.0);
        let weights = discounted(influence, (-std::f32::consts::LN_2 / self.decay).exp()).exp();
        let weights = weights.clamp(1.0 - self.low, 1.0 + self.high);
        let unsafe_to_raise = advantages.clone().lower_scalar(0.0).bool_and(ratio.greater_scalar(self.safety));
        weights.clone().mask_where(unsafe_to_raise, weights.clamp(0.8, 1.0))
    }
}

/// For every token the sum over it and those after it, each worth `discount` less a place: in as many steps as the length
/// has binary digits, each of which doubles how far the sums reach.
fn discounted(values: Tensor<2>, discount: f32) -> Tensor<2> {
    let [rows, tokens] = values.dims();
    let (mut sums, mut reach, mut factor) = (values, 1, discount);
    while reach < tokens {
        let behind = sums.clone().narrow(1, reach, tokens - reach);
        let none = Tensor::zeros([rows, reach], &sums.device());
        sums = sums + Tensor::cat(vec![behind, none], 1) * factor;
        (reach, factor) = (2 * reach, factor * factor);
    }
    sums
}

impl PolicyLoss for Fipo {
    fn token_loss(&self, input: SurrogateInput) -> Tensor<2> {
        let weights = self.weights(input.log_ratio.clone(), &input.advantages);
        self.clip.token_loss(input) * weights
    }

    fn clipped(&self, ratio: f32, advantage: f32) -> Option<Bound> {
        self.clip.clipped(ratio, advantage)
    }

    fn check(&self) -> Result<(), Error> {
        self.clip.check()?;
        above_zero("surrogate.decay", self.decay)?;
        above_zero("surrogate.safety", self.safety)?;
        above_zero("surrogate.outlier", self.outlier)?;
        Error::unless("surrogate.low", self.low, |low| (0.0..1.0).contains(&low), "from 0 to below 1")?;
        let high = |high| (0.0..f64::INFINITY).contains(&high);
        Error::unless("surrogate.high", self.high, high, "a number not below 0")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use burn::tensor::{Device, Tensor, TensorData};

    use super::{Fipo, discounted};
    use crate::{PolicyLoss as _, SurrogateInput};

    fn row(values: &[f32]) -> Tensor<2> {
        Tensor::from_data(TensorData::new(values.to_vec(), [1, values.len()]), &Device::flex().autodiff())
    }

    fn assert_close(found: &Tensor<2>, expected: &[f32]) {
        let found: Vec<f32> = found.to_data().try_to_vec().unwrap();
        let close = found.iter().zip(expected).all(|(one, other)| (one - other).abs() < 1e-6);
        assert!(found.len() == expected.len() && close, "{found:?}");
    }

    /// Half after one token.
    fn halving() -> Fipo {
        Fipo { decay: 1.0, ..Fipo::default() }
    }

    #[test]
    fn weights_look_at_the_tokens_behind() {
        assert_close(&discounted(row(&[0.1, -0.2, 0.4]), 0.5), &[0.1, 0.0, 0.4]);
        let unclamped = Fipo { low: 0.99, high: 9.0, ..halving() };
        let advantages = row(&[1.0; 3]);
        let exponents = [1.105_171, 1.0, 1.491_825];
        assert_close(&unclamped.weights(row(&[0.1, -0.2, 0.4]), &advantages), &exponents);
        assert_close(&halving().weights(row(&[0.1, -0.2, 0.4]), &advantages), &[1.105_171, 1.0, 1.2]);
        let both = Fipo { low: 0.2, ..halving() };
        assert_close(&both.weights(row(&[-0.5, 0.0]), &row(&[1.0; 2])), &[0.8, 1.0]);
        assert!((2f32.powf(-1.0 / Fipo::default().decay) - 0.978_572).abs() < 1e-6);
    }

    #[test]
    fn a_long_row_is_summed_as_one_by_one() {
        let values: Vec<f32> = (0..37).map(|at| ((at * 7) % 11) as f32 / 11.0 - 0.4).collect();
        let mut expected = values.clone();
        for at in (0..36).rev() {
            expected[at] += 0.9 * expected[at + 1];
        }
        let found: Vec<f32> = discounted(row(&values), 0.9).to_data().try_to_vec().unwrap();
        assert!(found.iter().zip(&expected).all(|(one, other)| (one - other).abs() < 1e-5), "{found:?}");
    }

    #[test]
    fn outliers_have_no_influence_and_what_is_punished_is_not_raised() {
        let outlier = 11f32.ln();
        assert_close(&halving().weights(row(&[0.0, outlier]), &row(&[1.0, 1.0])), &[1.0, 1.0]);
        let moved = 5f32.ln();
        assert_close(&halving().weights(row(&[0.0, moved]), &row(&[-1.0, -1.0])), &[1.2, 1.0]);
        assert_close(&halving().weights(row(&[0.0, moved]), &row(&[-1.0, 1.0])), &[1.2, 1.2]);
    }

    #[test]
    fn weights_have_no_gradient_of_their_own() {
        let log_ratio = row(&[0.05, -0.02, 0.1]).require_grad();
        let input = |log_ratio: Tensor<2>| SurrogateInput {
            log_probs: log_ratio.clone(),
            ratio: log_ratio.clone().exp(),
            log_ratio,
            advantages: row(&[1.0, -1.0, 2.0]),
        };
        let fipo = halving();
        let gradient = |loss: Tensor<2>| log_ratio.grad(&loss.sum().backward()).unwrap();
        let found = gradient(fipo.token_loss(input(log_ratio.clone())));
        let weights = fipo.weights(log_ratio.clone(), &row(&[1.0, -1.0, 2.0])).inner();
        let expected = gradient(fipo.clip.token_loss(input(log_ratio.clone()))) * weights;
        assert_close(&found, &expected.to_data().try_to_vec::<f32>().unwrap());
    }
}
