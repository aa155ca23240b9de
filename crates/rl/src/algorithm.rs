use std::sync::Arc;

use crate::{AdvantageEstimator, Aggregation, Cispo, Clip, GroupRelative, KlPenalty, Loss, RatioLevel, Sapo, Scale};

/// An algorithm: a point in the space of independent choices. The constructors name the published points; every field
/// may be changed afterwards.
///
/// Settings of the papers that are no part of an algorithm in this sense (group size, learning rate, lengths, reward
/// shaping) are given with each constructor for orientation.
#[derive(Debug, Clone)]
pub struct Algorithm {
    /// Rewards to advantages.
    pub advantage: Arc<dyn AdvantageEstimator>,
    /// Log-probabilities and advantages to token losses.
    pub loss: Loss,
    /// Token losses to one number.
    pub aggregation: Aggregation,
}

impl Algorithm {
    /// Group relative policy optimization (DeepSeekMath, arXiv 2402.03300).
    ///
    /// Group mean and deviation, token ratio, clip 0.2, mean over each sequence, k3 penalty of 0.04. The paper does
    /// not print its clip range; 0.2 is PPO's and every implementation's. Its run: 64 completions a prompt, batch
    /// 1024, learning rate 1e-6, one update a rollout.
    #[must_use]
    pub fn grpo() -> Self {
        Self {
            advantage: Arc::new(GroupRelative { scale: Scale::GroupStd }),
            loss: Loss {
                ratio: RatioLevel::Token,
                surrogate: Arc::new(Clip { low: 0.2, high: 0.2, delta: None }),
                kl: Some(KlPenalty { coefficient: 0.04, ratio_weighted: false }),
                entropy_bonus: 0.0,
            },
            aggregation: Aggregation::SequenceMean,
        }
    }

    /// Decoupled clip and dynamic sampling policy optimization (arXiv 2503.14476).
    ///
    /// GRPO with clip 0.2 / 0.28, mean over all tokens of the optimizer batch and no KL penalty. The paper's other two
    /// parts, resampling groups without variance and shaping the reward of overlong answers, belong to the rollout
    /// and to the task. Its run: 16 completions a prompt, 512 prompts a rollout, 16 updates, learning rate 1e-6.
    #[must_use]
    pub fn dapo() -> Self {
        let grpo = Self::grpo();
        Self {
            loss: Loss { surrogate: Arc::new(Clip { low: 0.2, high: 0.28, delta: None }), kl: None, ..grpo.loss },
            aggregation: Aggregation::TokenMean,
            ..grpo
        }
    }

    /// GRPO done right: neither the deviation of the group nor the length of the answer biases the gradient (arXiv
    /// 2503.20783).
    ///
    /// Group mean, no scale, token ratio, clip 0.2, sum over tokens over the constant `max_tokens`, no KL penalty. Its
    /// run: 8 completions a prompt, learning rate 1e-6.
    #[must_use]
    pub fn dr_grpo(max_tokens: usize) -> Self {
        let grpo = Self::grpo();
        Self {
            advantage: Arc::new(GroupRelative { scale: Scale::None }),
            loss: Loss { kl: None, ..grpo.loss },
            aggregation: Aggregation::Constant { max_tokens },
        }
    }

    /// Group sequence policy optimization (arXiv 2507.18071), in its token form.
    ///
    /// Group mean and deviation, sequence ratio, clip 3e-4 / 4e-4, mean over each sequence, no KL penalty. The bounds
    /// are small because a mean log-ratio hardly moves; the paper makes four updates a rollout.
    #[must_use]
    pub fn gspo() -> Self {
        let grpo = Self::grpo();
        Self {
            loss: Loss {
                ratio: RatioLevel::Sequence,
                surrogate: Arc::new(Clip { low: 3e-4, high: 4e-4, delta: None }),
                kl: None,
                ..grpo.loss
            },
            ..grpo
        }
    }

    /// Clipped importance sampling weights (MiniMax-M1, arXiv 2506.13585).
    ///
    /// GRPO's advantage, bounded ratio held constant, mean over all tokens, no KL penalty. The paper tunes the bound and
    /// does not print it, so it is an argument; 5 is a value in use.
    #[must_use]
    pub fn cispo(max_ratio: f32) -> Self {
        let dapo = Self::dapo();
        Self { loss: Loss { surrogate: Arc::new(Cispo { max_ratio }), ..dapo.loss }, ..dapo }
    }

    /// Soft adaptive policy optimization (arXiv 2511.20347).
    ///
    /// GRPO's advantage, token ratio, sigmoid gate with temperatures 1.0 / 1.05, mean over each sequence, no KL penalty.
    #[must_use]
    pub fn sapo() -> Self {
        let grpo = Self::grpo();
        Self { loss: Loss { surrogate: Arc::new(Sapo::default()), kl: None, ..grpo.loss }, ..grpo }
    }
}
