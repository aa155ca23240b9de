use serde::{Deserialize, Serialize};

use crate::{
    Advantage, AdvantageEstimator, Aggregation, Baseline, Cispo, Clip, Error, Filter, Fipo, Gdpo, Group, GroupFilter,
    KlEstimator, KlPenalty, KlPlacement, Overlong, PolicyLoss, RatioLevel, Relative, Reward, Sapo, Scale, Surrogate,
    Tgrl, Vespo,
};

/// An algorithm: a point in the space of independent choices. The constructors name the published points; every field
/// may be changed afterwards, and all of it can be read from a file.
///
/// Settings of the papers that are no part of an algorithm in this sense (group size, learning rate, lengths) are given
/// with each constructor for orientation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Algorithm {
    /// Rewards to advantages.
    pub advantage: Advantage,
    /// Where the importance ratio is taken.
    pub ratio: RatioLevel,
    /// What is made of it.
    pub surrogate: Surrogate,
    /// Token losses to one number.
    pub aggregation: Aggregation,
    /// Distance to a reference policy; `None` means that no reference policy exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kl: Option<KlPenalty>,
    /// Coefficient of the mean entropy over all tokens, which is subtracted from the loss; `0` turns it off.
    #[serde(default)]
    pub entropy_bonus: f32,
    /// Share of the tokens, those of the highest entropy, that keep their surrogate and their part of the entropy
    /// bonus; the others still count where losses are averaged (the 80/20 rule, arXiv 2506.01939, section 5: 0.2). The
    /// entropy is that of the sampling policy, the threshold that of the whole optimizer batch; where the sampler does
    /// not hand entropies out it costs one scoring pass without gradients. `None` is all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_entropy: Option<f32>,
    /// Drops the surrogate of completions with a negative advantage whose tokens became less likely than this since
    /// they were drawn, as the mean of log old - log new, in nats (off-policy sequence masking of DeepSeek-V3.2, arXiv
    /// 2512.02556, section 3.1). `None` keeps all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub off_policy_threshold: Option<f32>,
    /// Leaves completions that were cut off at the length limit out of the loss: their tokens are no tokens of the
    /// batch (DAPO, arXiv 2503.14476, section 3.4: overlong filtering). They still count in the baseline.
    #[serde(default)]
    pub mask_truncated: bool,
    /// Punishes length softly before the limit is reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlong: Option<Overlong>,
    /// Which groups are learnt from, and how much; their factors are multiplied.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<Filter>,
    /// Lets what a stronger model answered join groups that fail. `None` never does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expert: Option<Tgrl>,
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
            advantage: Advantage::Relative(Relative::default()),
            ratio: RatioLevel::Token,
            surrogate: Surrogate::Clip(Clip { low: 0.2, high: 0.2, delta: None }),
            aggregation: Aggregation::SequenceMean,
            kl: Some(KlPenalty::new(0.04)),
            entropy_bonus: 0.0,
            top_entropy: None,
            off_policy_threshold: None,
            mask_truncated: false,
            overlong: None,
            filters: Vec::new(),
            expert: None,
        }
    }

    /// Decoupled clip and dynamic sampling policy optimization (arXiv 2503.14476).
    ///
    /// GRPO with clip 0.2 / 0.28, mean over all tokens of the optimizer batch and no KL penalty. The paper's other two
    /// parts are [`crate::Trainer::dynamic_rollout`] and [`Overlong`], whose lengths are the task's. Its run: 16
    /// completions a prompt, 512 prompts a rollout, 16 updates, learning rate 1e-6.
    #[must_use]
    pub fn dapo() -> Self {
        Self {
            surrogate: Surrogate::Clip(Clip { low: 0.2, high: 0.28, delta: None }),
            aggregation: Aggregation::TokenMean,
            kl: None,
            ..Self::grpo()
        }
    }

    /// GRPO done right: neither the deviation of the group nor the length of the answer biases the gradient (arXiv
    /// 2503.20783).
    ///
    /// Group mean, no scale, token ratio, clip 0.2, sum over tokens over the constant `max_tokens`, no KL penalty. Its
    /// run: 8 completions a prompt, learning rate 1e-6.
    #[must_use]
    pub fn dr_grpo(max_tokens: usize) -> Self {
        Self {
            advantage: Advantage::Relative(Relative { scale: Scale::None, ..Relative::default() }),
            aggregation: Aggregation::Constant { max_tokens },
            kl: None,
            ..Self::grpo()
        }
    }

    /// Group sequence policy optimization (arXiv 2507.18071), in its token form.
    ///
    /// Group mean and deviation, sequence ratio, clip 3e-4 / 4e-4, mean over each sequence, no KL penalty. The bounds
    /// are small because a mean log-ratio hardly moves; the paper makes four updates a rollout.
    #[must_use]
    pub fn gspo() -> Self {
        Self {
            ratio: RatioLevel::Sequence,
            surrogate: Surrogate::Clip(Clip { low: 3e-4, high: 4e-4, delta: None }),
            kl: None,
            ..Self::grpo()
        }
    }

    /// Length-unbiased sequence policy optimization (arXiv 2602.05261): GSPO whose sequences weigh as much as they are
    /// long.
    ///
    /// Clip 2e-3 / 2.5e-3 (section 5.1), sum over each sequence, no KL penalty.
    #[must_use]
    pub fn luspo() -> Self {
        Self {
            surrogate: Surrogate::Clip(Clip { low: 2e-3, high: 2.5e-3, delta: None }),
            aggregation: Aggregation::SequenceSum,
            ..Self::gspo()
        }
    }

    /// Reinforce leave-one-out (arXiv 2402.14740).
    ///
    /// The mean of the others as baseline, no scale, sum over each sequence, k1 penalty of 0.03 in the reward. The paper
    /// takes one update a rollout, where the ratio is one and the clip of 0.2, kept for those who take more, is idle.
    /// Its run: 2 or 4 completions a prompt, batch 512, learning rate 1e-6.
    #[must_use]
    pub fn rloo() -> Self {
        Self {
            advantage: Advantage::Relative(Relative {
                baseline: Baseline::LeaveOneOut,
                scale: Scale::None,
                ..Relative::default()
            }),
            aggregation: Aggregation::SequenceSum,
            kl: Some(KlPenalty { estimator: KlEstimator::K1, placement: KlPlacement::Reward, ..KlPenalty::new(0.03) }),
            ..Self::grpo()
        }
    }

    /// REINFORCE++ (arXiv 2501.03262): advantages normalised over the batch, for any number of completions a prompt
    /// from two on.
    ///
    /// Batch mean and deviation, clip 0.2, mean over all tokens, k1 penalty in the reward, whose 0.01 is our choice. The
    /// paper charges each token with the penalty of the tokens from it on; here a completion is charged with all of its
    /// own.
    #[must_use]
    pub fn reinforce_plus_plus() -> Self {
        Self {
            advantage: Advantage::Relative(Relative {
                baseline: Baseline::BatchMean,
                scale: Scale::BatchStd,
                ..Relative::default()
            }),
            aggregation: Aggregation::TokenMean,
            kl: Some(KlPenalty { estimator: KlEstimator::K1, placement: KlPlacement::Reward, ..KlPenalty::new(0.01) }),
            ..Self::grpo()
        }
    }

    /// REINFORCE++ with a group baseline (arXiv 2501.03262): for tasks where whole groups succeed or fail.
    ///
    /// Group mean, deviation of all centred rewards, clip 0.2, mean over all tokens, k2 penalty in the loss, whose
    /// 0.01 is our choice.
    #[must_use]
    pub fn reinforce_plus_plus_baseline() -> Self {
        Self {
            advantage: Advantage::Relative(Relative { scale: Scale::CentredStd, ..Relative::default() }),
            aggregation: Aggregation::TokenMean,
            kl: Some(KlPenalty { estimator: KlEstimator::K2, ..KlPenalty::new(0.01) }),
            ..Self::grpo()
        }
    }

    /// Clipped importance sampling weights (MiniMax-M1, arXiv 2506.13585).
    ///
    /// GRPO's advantage, bounded ratio held constant, mean over all tokens, no KL penalty. The paper tunes the bound and
    /// does not print it; 5 is a value in use (ScaleRL, arXiv 2510.13786, finds it insensitive).
    #[must_use]
    pub fn cispo() -> Self {
        Self { surrogate: Surrogate::Cispo(Cispo { max_ratio: 5.0 }), ..Self::dapo() }
    }

    /// Soft adaptive policy optimization (arXiv 2511.20347).
    ///
    /// GRPO's advantage, token ratio, sigmoid gate with temperatures 1.0 / 1.05, mean over each sequence, no KL penalty.
    #[must_use]
    pub fn sapo() -> Self {
        Self { surrogate: Surrogate::Sapo(Sapo::default()), kl: None, ..Self::grpo() }
    }

    /// Future-KL influenced policy optimization (arXiv 2603.19835): DAPO with the surrogate of [`Fipo`].
    ///
    /// The paper makes several updates a rollout, as the first has nothing to go by.
    #[must_use]
    pub fn fipo() -> Self {
        Self { surrogate: Surrogate::Fipo(Fipo::default()), ..Self::dapo() }
    }

    /// Variational sequence-level soft policy optimization (arXiv 2602.10693).
    ///
    /// GRPO's advantage, gamma weight of the whole sequence with 2 / 3 and 3 / 2, mean over all tokens, no KL penalty.
    #[must_use]
    pub fn vespo() -> Self {
        Self { surrogate: Surrogate::Vespo(Vespo::default()), ..Self::dapo() }
    }

    /// Group reward-decoupled normalization policy optimization (arXiv 2601.05242): GRPO for rewards of several parts.
    #[must_use]
    pub fn gdpo() -> Self {
        Self { advantage: Advantage::Gdpo(Gdpo::default()), ..Self::grpo() }
    }

    /// All of these by name, in the order of the documentation. `max_tokens` is Dr. GRPO's constant.
    #[must_use]
    pub fn presets(max_tokens: usize) -> Vec<(&'static str, Self)> {
        vec![
            ("grpo", Self::grpo()),
            ("dapo", Self::dapo()),
            ("dr_grpo", Self::dr_grpo(max_tokens)),
            ("gspo", Self::gspo()),
            ("luspo", Self::luspo()),
            ("rloo", Self::rloo()),
            ("reinforce_plus_plus", Self::reinforce_plus_plus()),
            ("reinforce_plus_plus_baseline", Self::reinforce_plus_plus_baseline()),
            ("cispo", Self::cispo()),
            ("sapo", Self::sapo()),
            ("fipo", Self::fipo()),
            ("vespo", Self::vespo()),
            ("gdpo", Self::gdpo()),
        ]
    }

    /// The product of what the filters say of the completions that a policy drew for a group.
    pub(crate) fn filtered<P>(&self, group: &Group<P>) -> Result<f32, Error> {
        let rewards: Vec<Reward> = group.drawn().map(|(_, reward)| reward.clone()).collect();
        self.filters.iter().try_fold(1.0, |factor, filter| Ok(factor * filter.factor(&rewards)?))
    }

    /// Refuses settings that mean nothing.
    ///
    /// # Errors
    /// [`Error::Setting`] names the first.
    pub fn check(&self) -> Result<(), Error> {
        let refuse = |setting, value: String, reason| Err(Error::Setting { setting, value, reason });
        if let Some(KlPenalty { coefficient, refresh_every, .. }) = self.kl {
            let positive = |value: f64| value.is_finite() && value > 0.0;
            Error::unless("kl.coefficient", coefficient, positive, "above zero; leave kl out for no penalty")?;
            if refresh_every == Some(0) {
                return refuse("kl.refresh_every", "0".into(), "at least 1; leave it out to keep the first reference");
            }
        }
        Error::unless("entropy_bonus", self.entropy_bonus, f64::is_finite, "a number")?;
        if let Some(share) = self.top_entropy {
            Error::unless_share("top_entropy", share)?;
        }
        if let Some(threshold) = self.off_policy_threshold {
            Error::unless("off_policy_threshold", threshold, f64::is_finite, "a number of nats")?;
        }
        if let Some(Overlong { max_tokens, buffer, weight }) = self.overlong {
            if buffer > max_tokens {
                return refuse("overlong.buffer", buffer.to_string(), "at most overlong.max_tokens");
            }
            Error::unless("overlong.weight", weight, f64::is_finite, "a number")?;
        }
        if let Some(expert) = self.expert {
            expert.check()?;
        }
        self.filters.iter().try_for_each(GroupFilter::check)?;
        self.advantage.check()?;
        self.surrogate.check()
    }
}
