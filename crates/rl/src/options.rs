use serde::{Deserialize, Serialize};

use crate::{Error, Sampling};

/// How much goes through one forward and backward pass: what memory allows. Changes the gradient only through rounding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MicroBatch {
    /// Whole groups.
    Groups(usize),
    /// Tokens, padding included: those of the prompts ([`crate::Policy::prompt_tokens`]) and, for every completion, the
    /// length of the longest. A group that is larger by itself is cut into parts that share its prompt; a completion that
    /// is larger by itself goes alone.
    Tokens(usize),
}

/// What becomes of a reward function that fails or overruns its [`crate::Deadline`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RewardFailure {
    /// The step is an error.
    #[default]
    Stop,
    /// The reward of that completion abstains; the failure is kept in [`crate::Rollout::failures`].
    Abstain,
}

/// How much is drawn and trained at a time.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Completions a prompt; at least two, as an advantage compares them.
    pub group_size: usize,
    /// How completions are drawn. After each rollout `first_stream` moves on by the completions drawn, so it is all
    /// that has to be restored to go on with the same random numbers.
    pub sampling: Sampling,
    /// Prompts that are sampled together. Results depend on it only through rounding, and not on `threads`.
    pub prompts_per_sampling_batch: usize,
    /// What becomes of a reward function that fails.
    pub reward_failure: RewardFailure,
    /// How much goes through one forward and backward pass.
    pub micro_batch: MicroBatch,
    /// Parts a rollout is cut into, one optimizer step each. With one part and one pass training is strictly on-policy.
    pub mini_batches: usize,
    /// How often a rollout is trained on.
    pub passes_per_rollout: usize,
    /// Largest norm of the gradient of all parameters together; `None` does not clip.
    pub max_gradient_norm: Option<f32>,
    /// Operating-system threads over micro-batches and sampling batches, [where they are of use](crate::Threads::on).
    /// Any number gives the same result, bit for bit, on devices whose operations are deterministic.
    pub threads: usize,
}

impl Options {
    /// One update a rollout, gradient norm at most 1, one thread, sixteen thousand tokens a pass: something to start
    /// from.
    #[must_use]
    pub fn new(group_size: usize, sampling: Sampling) -> Self {
        Self {
            group_size,
            sampling,
            prompts_per_sampling_batch: 16,
            reward_failure: RewardFailure::Stop,
            micro_batch: MicroBatch::Tokens(16_384),
            mini_batches: 1,
            passes_per_rollout: 1,
            max_gradient_norm: Some(1.0),
            threads: 1,
        }
    }

    /// Refuses what cannot be trained with.
    ///
    /// # Errors
    /// [`Error::Setting`] names the first.
    pub fn check(&self) -> Result<(), Error> {
        let at_least = |setting, value: usize, least: usize, reason| {
            if value < least { Err(Error::Setting { setting, value: value.to_string(), reason }) } else { Ok(()) }
        };
        at_least("group_size", self.group_size, 2, "an advantage compares at least two completions")?;
        at_least("sampling.max_tokens", self.sampling.max_tokens, 1, "a completion has at least one token")?;
        at_least("prompts_per_sampling_batch", self.prompts_per_sampling_batch, 1, "at least 1")?;
        let (MicroBatch::Groups(size) | MicroBatch::Tokens(size)) = self.micro_batch;
        at_least("micro_batch", size, 1, "at least 1")?;
        at_least("mini_batches", self.mini_batches, 1, "at least 1")?;
        at_least("passes_per_rollout", self.passes_per_rollout, 1, "at least 1")?;
        at_least("threads", self.threads, 1, "at least 1")?;
        let positive = |setting, value: f32, reason| {
            if value.is_finite() && value > 0.0 {
                Ok(())
            } else {
                Err(Error::Setting { setting, value: value.to_string(), reason })
            }
        };
        let reason = "training draws from the distribution it scores, so the temperature is above zero";
        positive("sampling.temperature", self.sampling.temperature, reason)?;
        self.max_gradient_norm
            .map_or(Ok(()), |norm| positive("max_gradient_norm", norm, "above zero; leave it out for no limit"))
    }
}
