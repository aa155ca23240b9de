use crate::{Error, Observed, Reward, Timing};

/// One sampled answer, as tokens: what the loss trains on is what was sampled, never text encoded again.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Completion {
    /// Token ids, the end-of-sequence token included when there is one.
    pub tokens: Vec<u32>,
    /// Log-probability of each token under the sampler, at the sampling temperature.
    pub log_probs: Vec<f32>,
    /// Decoded text without special tokens: what rewards read.
    pub text: String,
    /// Whether generation stopped at the length limit instead of at an end-of-sequence token.
    pub truncated: bool,
    /// What was seen of it as it was drawn, where credit asked for something and the sampler hands it out; `None` leaves
    /// it to a scoring pass.
    pub observed: Option<Observed>,
    /// Whether somebody else wrote it, see [`crate::Tgrl`].
    pub expert: bool,
}

/// One prompt with its completions and their rewards.
///
/// A group is a type and not an index array: the prompt is stored, encoded and prefilled once.
#[derive(Debug, Clone)]
pub struct Group<P> {
    /// What the completions answer.
    pub prompt: P,
    /// The answers.
    pub completions: Vec<Completion>,
    /// One reward for each completion; empty until graded.
    pub rewards: Vec<Reward>,
}

impl<P> Group<P> {
    /// Whether no two completions have different totals, so that there is nothing to compare.
    #[must_use]
    pub fn rewards_are_equal(&self) -> bool {
        let mut totals = self.rewards.iter().filter_map(Reward::total);
        totals.next().is_none_or(|first| totals.all(|total| total - first == 0.0))
    }

    /// The completions that the policy drew with their rewards, without an expert's that joined them. Nothing until
    /// they are graded.
    pub fn drawn(&self) -> impl Iterator<Item = (&Completion, &Reward)> + Clone {
        self.completions.iter().zip(&self.rewards).filter(|(completion, _)| !completion.expert)
    }
}

/// Prompts with completions and rewards, not yet trained on.
#[derive(Debug)]
pub struct Rollout<P> {
    /// One group a sample, in the order of the samples.
    pub groups: Vec<Group<P>>,
    /// Prompts that were drawn for them; more than there are groups where some were dropped.
    pub drawn: usize,
    /// Rewards that failed and became abstentions.
    pub failures: Vec<Error>,
    /// Time spent on them.
    pub timing: Timing,
}
