use std::fmt::Display;

use crate::Capability;

/// Everything that can go wrong between a sample and an optimizer step.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting that cannot be trained with.
    #[error("{setting} is {value}: {reason}")]
    Setting {
        /// Its name.
        setting: &'static str,
        /// What it is set to.
        value: String,
        /// What it has to be, and why.
        reason: &'static str,
    },
    /// The policy or the sampler failed.
    #[error("the policy failed")]
    Policy(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The task could not render the prompt of a sample.
    #[error("sample {sample} has no prompt")]
    Prompt {
        /// Index of the sample in the batch.
        sample: usize,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The reward function failed.
    #[error("the reward of completion {completion} of group {group} failed")]
    Reward {
        /// Index of the group in the batch.
        group: usize,
        /// Index of the completion in the group.
        completion: usize,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The completion of an expert could not be had or graded.
    #[error("the expert's answer to sample {sample} failed")]
    Expert {
        /// Index of the sample in the batch.
        sample: usize,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A credit assigner failed.
    #[error("the credit assigner failed")]
    Credit(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The policy cannot do what a method wants of it.
    #[error("{method} needs {capability}, which this policy does not offer: {reason}")]
    Capability {
        /// The method, by name.
        method: String,
        /// What it wants.
        capability: Box<Capability>,
        /// Why it cannot be had.
        reason: String,
    },
    /// Two credit methods want different states, of which a pass hands out one.
    #[error("{method} wants other {capability} than a method before it")]
    Conflict {
        /// The second method, by name.
        method: String,
        /// What they do not agree on.
        capability: Box<Capability>,
    },
    /// A signal that was asked for did not come, or one is read that was not asked for.
    #[error("there are no {signal}")]
    MissingSignal {
        /// What they are.
        signal: String,
    },
    /// Credit that is no number, or would turn an advantage around.
    #[error(
        "{method} gives token {token} of completion {completion} the weight {weight}; it has to be finite and not below 0"
    )]
    CreditWeight {
        /// The method, by name.
        method: String,
        /// Index of the completion among those it was asked about.
        completion: usize,
        /// Index of the token in the completion.
        token: usize,
        /// The weight.
        weight: f32,
    },
    /// A credit assigner returned a weight vector of the wrong length.
    #[error("completion {completion} has {expected} tokens but got {found} credit weights")]
    CreditLength {
        /// Index of the completion among those it was asked about.
        completion: usize,
        /// Weights returned.
        found: usize,
        /// Tokens in the completion.
        expected: usize,
    },
    /// Something that has to come once for each of another thing does not.
    #[error("{expected} {what} expected, {found} found")]
    Count {
        /// What is counted.
        what: &'static str,
        /// How many there are.
        found: usize,
        /// How many there have to be.
        expected: usize,
    },
    /// A scoring pass returned a tensor that does not fit the completions.
    #[error("scores have shape {found:?}, which does not cover {expected:?} completions and tokens")]
    ScoreShape {
        /// Shape of the scores.
        found: [usize; 2],
        /// Completions, and tokens of the longest.
        expected: [usize; 2],
    },
    /// A KL penalty without a reference policy to measure against.
    #[error("the loss has a KL penalty, but there are no log-probabilities of a reference policy")]
    MissingReference,
    /// The logits of a policy are no distribution: one is NaN, or all are minus infinity.
    #[error("the logits for completion {completion} of prompt {prompt} are no distribution")]
    NonFiniteLogits {
        /// Index of the prompt.
        prompt: usize,
        /// Index of the completion among those of the prompt.
        completion: usize,
    },
    /// The scores carry no gradients, so nothing can be trained.
    #[error("the scores of the policy carry no gradients; it has to live on an autodiff device and require gradients")]
    NotDifferentiable,
    /// The system starts no more threads.
    #[error("threads cannot be started")]
    Threads(#[source] rayon::ThreadPoolBuildError),
    /// A reward is NaN or infinite; nothing was updated.
    #[error("the reward of completion {completion} of group {group} is not finite")]
    NonFiniteReward {
        /// Index of the group in the batch.
        group: usize,
        /// Index of the completion in the group.
        completion: usize,
    },
    /// An advantage is NaN or infinite; nothing was updated.
    #[error("the advantage of completion {completion} of group {group} is not finite")]
    NonFiniteAdvantage {
        /// Index of the group in the batch.
        group: usize,
        /// Index of the completion in the group.
        completion: usize,
    },
    /// The loss of a token is NaN or infinite; the optimizer step was not taken.
    #[error("the loss of token {token} of completion {completion} of group {group} is not finite, step refused")]
    NonFiniteLoss {
        /// Index of the group in the batch.
        group: usize,
        /// Index of the completion in the group.
        completion: usize,
        /// Index of the token in the completion.
        token: usize,
    },
    /// A gradient is NaN, infinite or too large to be squared; the optimizer step was not taken.
    #[error("the gradient of {parameter} is not finite, step refused")]
    NonFiniteGradient {
        /// Path of the parameter in the module.
        parameter: String,
    },
}

impl Error {
    /// Refuses a setting that is not `sound`.
    pub(crate) fn unless<V: Copy + Display + Into<f64>>(
        setting: &'static str,
        value: V,
        sound: impl Fn(f64) -> bool,
        reason: &'static str,
    ) -> Result<(), Self> {
        // As it was written: a float32 has other digits as a float64.
        if sound(value.into()) { Ok(()) } else { Err(Self::Setting { setting, value: value.to_string(), reason }) }
    }

    /// Refuses a setting that is not above 0 and at most 1.
    pub(crate) fn unless_share(setting: &'static str, value: impl Copy + Display + Into<f64>) -> Result<(), Self> {
        Self::unless(setting, value, |share| share > 0.0 && share <= 1.0, "a share above 0 and at most 1")
    }
}

/// Refuses any other number of things than there has to be.
pub(crate) fn check_count(what: &'static str, found: usize, expected: usize) -> Result<(), Error> {
    if found == expected { Ok(()) } else { Err(Error::Count { what, found, expected }) }
}
