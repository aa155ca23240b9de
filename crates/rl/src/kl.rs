use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// A penalty on the distance to the reference policy. Where there is none, no reference policy is held at all.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KlPenalty {
    /// Its coefficient (beta); above zero, since a penalty of nothing would still cost a reference model.
    pub coefficient: f32,
    /// How the divergence is estimated.
    #[serde(default)]
    pub estimator: KlEstimator,
    /// Where it is charged.
    #[serde(default)]
    pub placement: KlPlacement,
    /// Steps after which the policy as it then is becomes the reference; `None` keeps the first one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refresh_every: Option<usize>,
}

impl KlPenalty {
    /// The k3 penalty in the loss, as in GRPO.
    #[must_use]
    pub fn new(coefficient: f32) -> Self {
        Self { coefficient, estimator: KlEstimator::default(), placement: KlPlacement::default(), refresh_every: None }
    }
}

/// Estimates of KL(policy || reference) from tokens drawn from the policy, in nats, with
/// d = log reference - log policy (J. Schulman, "Approximating KL Divergence", 2020).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KlEstimator {
    /// -d: unbiased, of either sign, high variance. In the loss its gradient is that of the log-probability, which is
    /// zero in expectation on-policy: it is meant for the reward.
    K1,
    /// d^2 / 2: biased and never negative. Its gradient in the loss is that of k1 in the reward.
    K2,
    /// e^d - d - 1: unbiased and never negative (GRPO, arXiv 2402.03300, eq. 4).
    #[default]
    K3,
}

impl KlEstimator {
    /// The estimate of each token.
    ///
    /// # Shapes
    /// All `[completions, tokens]`.
    #[must_use]
    pub fn estimate(self, log_probs: Tensor<2>, ref_log_probs: Tensor<2>) -> Tensor<2> {
        let difference = ref_log_probs - log_probs;
        match self {
            Self::K1 => difference.neg(),
            Self::K2 => difference.square() / 2.0,
            Self::K3 => difference.clone().exp() - difference - 1.0,
        }
    }
}

/// Where a KL penalty is charged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KlPlacement {
    /// In the loss, token by token, aggregated like the surrogate (GRPO).
    #[default]
    Loss,
    /// In the loss, each token's estimate times the importance ratio, gradient included: unbiased for tokens drawn from
    /// the old policy (DeepSeek-V3.2, arXiv 2512.02556). The gradient differs even when both policies are the same, as
    /// the ratio's own gradient remains. At the sequence level the factor is the sequence ratio.
    RatioWeightedLoss,
    /// In the reward: the sum over a completion's tokens, under the sampling policy, is subtracted from its reward
    /// before advantages are taken (RLOO, arXiv 2402.14740; REINFORCE++, arXiv 2501.03262). It is logged as the part
    /// `kl` of the reward.
    Reward,
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Tensor};

    use super::KlEstimator;

    #[test]
    fn estimates_of_hand_computed_differences() {
        let device = Device::flex();
        // d = 0, -1, 1.
        let expected = [
            (KlEstimator::K1, [0.0, 1.0, -1.0]),
            (KlEstimator::K2, [0.0, 0.5, 0.5]),
            // 0, e^-1, e - 2.
            (KlEstimator::K3, [0.0, 0.367_879_44, 0.718_281_8]),
        ];
        for (estimator, expected) in expected {
            let policy = Tensor::<2>::from_data([[-1.0, -1.0, -2.0]], &device);
            let reference = Tensor::<2>::from_data([[-1.0, -2.0, -1.0]], &device);
            let found: Vec<f32> = estimator.estimate(policy, reference).into_data().try_to_vec().unwrap();
            for (found, expected) in found.iter().zip(expected) {
                assert!((found - expected).abs() < 1e-6, "{estimator:?} {found} {expected}");
            }
        }
    }
}
