use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::{Error, Reward};

/// TGRL, trajectory-guided reinforcement learning (arXiv 2603.26126): the completion of a stronger model joins a group
/// that fails often enough, before advantages are taken, if it is right.
///
/// **Which groups it joins and how its tokens are shaped is inferred**, as no section on method could be read: the
/// objective of a token of probability p under the policy is f(p) A with f(p) = p / (p + gamma), which is that of LUFFY
/// (arXiv 2504.14945). It has no ratio and no clip, as the policy did not draw it, and a gradient also where p is small.
/// Credit leaves it alone.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tgrl {
    /// Largest share of right completions of a group that an expert joins.
    pub max_right: f32,
    /// The gamma of the shaping.
    pub gamma: f32,
}

impl Default for Tgrl {
    /// Groups without a single right completion; gamma 0.1.
    fn default() -> Self {
        Self { max_right: 0.0, gamma: 0.1 }
    }
}

impl Tgrl {
    /// Whether a group fails often enough; one of which nobody could grade a completion does not.
    pub(crate) fn wants(self, rewards: &[Reward]) -> bool {
        let graded = || rewards.iter().filter(|reward| reward.total().is_some());
        let right = graded().filter(|reward| reward.is_right()).count();
        graded().count() > 0 && right as f32 <= self.max_right * graded().count() as f32
    }

    /// Loss of every token of an expert: `[completions, tokens]`.
    pub(crate) fn token_loss(self, log_probs: Tensor<2>, advantages: Tensor<2>) -> Tensor<2> {
        let probability = log_probs.exp();
        (probability.clone() / (probability + self.gamma) * advantages).neg()
    }

    pub(crate) fn check(self) -> Result<(), Error> {
        let share = |value| (0.0..1.0).contains(&value);
        Error::unless("expert.max_right", self.max_right, share, "a share from 0 to below 1")?;
        Error::unless("expert.gamma", self.gamma, |gamma| gamma > 0.0 && gamma.is_finite(), "above zero")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use burn::tensor::{Device, Tensor};

    use super::Tgrl;
    use crate::Reward;

    #[test]
    fn unlikely_tokens_of_an_expert_are_held_back() {
        let device = Device::flex().autodiff();
        let log_probs = Tensor::<2>::from_data([[0.05f32.ln(), 0.9f32.ln()]], &device).require_grad();
        let loss = Tgrl::default().token_loss(log_probs.clone(), Tensor::ones([1, 2], &device));
        let found: Vec<f32> = loss.to_data().try_to_vec().unwrap();
        assert!((found[0] + 1.0 / 3.0).abs() < 1e-6 && (found[1] + 0.9).abs() < 1e-6, "{found:?}");
        // d f / d log p = gamma p / (p + gamma)^2.
        let gradient: Vec<f32> = log_probs.grad(&loss.sum().backward()).unwrap().into_data().try_to_vec().unwrap();
        assert!((gradient[0] + 0.005 / 0.0225).abs() < 1e-6 && (gradient[1] + 0.09).abs() < 1e-6, "{gradient:?}");
    }

    #[test]
    fn an_expert_joins_groups_that_fail() {
        let group = |right: usize| -> Vec<Reward> {
            (0..4).map(|at| Reward::of("right", f32::from(u8::from(at < right)))).collect()
        };
        assert!(Tgrl::default().wants(&group(0)) && !Tgrl::default().wants(&group(1)));
        let lenient = Tgrl { max_right: 0.25, ..Tgrl::default() };
        assert!(lenient.wants(&group(1)) && !lenient.wants(&group(2)));
        assert!(!Tgrl::default().wants(&[Reward::abstain()]));
    }
}
