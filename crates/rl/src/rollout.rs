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
}

/// What a verifier says of one completion.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Reward {
    /// The number that is optimised.
    pub total: f32,
    /// Its parts by name, for the log.
    pub parts: Vec<(String, f32)>,
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
