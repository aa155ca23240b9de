use std::fmt;

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::{Gradients, Tensor};

use crate::{Capability, Completion, Error, Group, SignalSet, Signals, View};

/// How completions are drawn.
///
/// There is no top-p and no top-k on purpose: log-probabilities are only those of the sampling distribution if the
/// scorer renormalises over the very set of tokens the sampler kept, and a truncated set moves with every update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Softmax temperature; `0` takes the most likely token, which is for evaluation: training refuses it.
    pub temperature: f32,
    /// Longest completion, in tokens.
    pub max_tokens: usize,
    /// Seed of the random streams. Every completion has a stream of its own, numbered from `first_stream` in the
    /// order of the output, so a completion does not depend on what is drawn beside it.
    pub seed: u64,
    /// Number of the first completion's stream.
    pub first_stream: u64,
}

/// What a scoring pass returns. Rows are completions, those of all groups one after another, right-padded.
#[derive(Debug)]
pub struct Scores {
    /// Log-probability of every completion token at the temperature asked for: `[completions, tokens]`.
    /// Carries gradients when the module lives on an autodiff device. Padding may hold any finite number.
    pub log_probs: Tensor<2>,
    /// Entropy of the distribution each token was drawn from, in nats: `[completions, tokens]`; may carry gradients.
    pub entropy: Tensor<2>,
    /// What was asked for beside them.
    pub signals: Signals,
    /// Token positions that the pass computed; none where nobody counted.
    pub positions: Positions,
    /// How the backward pass goes on behind the graph of the scores, where that does not reach all parameters; `None`
    /// where it does.
    pub continuation: Option<Continuation>,
}

impl Scores {
    /// The gradient of `loss`, which was made of these scores of `policy`.
    ///
    /// # Panics
    /// When the loss does not depend on the scores.
    #[must_use]
    pub fn backward<M: Module>(self, loss: &Tensor<1>, policy: &M) -> GradientsParams {
        let Self { log_probs, entropy, signals, continuation, .. } = self;
        // Nothing that the backward pass does not need is held in it.
        drop((log_probs, entropy, signals));
        let gradients = loss.backward();
        match continuation {
            Some(Continuation(go_on)) => go_on(gradients),
            None => GradientsParams::from_grads(gradients, policy),
        }
    }
}

/// The part of a backward pass that a policy takes into its own hands, such as activation checkpointing, which burn's
/// graph does not have: it gets the gradients of the graph of the scores and returns those of all parameters.
pub struct Continuation(Box<dyn FnOnce(Gradients) -> GradientsParams + Send>);

impl Continuation {
    /// One that does as it is told.
    pub fn new(go_on: impl FnOnce(Gradients) -> GradientsParams + Send + 'static) -> Self {
        Self(Box::new(go_on))
    }
}

impl fmt::Debug for Continuation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Continuation")
    }
}

/// Token positions that a pass computes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Positions {
    /// Of tokens.
    pub used: usize,
    /// Of nothing: they make rows as long as the longest.
    pub padding: usize,
}

/// A model that can be trained: it says, differentiably, how likely a completion is.
pub trait Policy: Module + Send {
    /// What the policy is conditioned on.
    type Prompt: Clone + Send + Sync;

    /// Tokens that a scoring pass runs for a prompt, once for all completions of a group; what
    /// [`MicroBatch::Tokens`](crate::MicroBatch::Tokens) counts beside the completions.
    fn prompt_tokens(&self, _prompt: &Self::Prompt) -> usize {
        0
    }

    /// Scores the completions of `groups` at `temperature`, over the same set of tokens that sampling draws from.
    ///
    /// # Errors
    /// When a prompt cannot be encoded or a signal is not supported.
    fn score(&self, groups: &[Group<Self::Prompt>], temperature: f32, signals: &SignalSet) -> Result<Scores, Error>;

    /// Whether the policy can do what a method wants of it, or else why not; asked before the first step. Entropies are
    /// all that a policy has to have.
    ///
    /// # Errors
    /// The reason.
    fn offers(&self, capability: &Capability) -> Result<(), String> {
        let refused = || "it does not implement it".to_owned();
        if *capability == Capability::Entropy { Ok(()) } else { Err(refused()) }
    }

    /// The prompt under a view. What is left to chance in it is that of the stream `index` of `seed`: the same numbers
    /// give the same prompt.
    ///
    /// # Errors
    /// When the policy does not offer the view, or the prompt cannot be changed.
    fn changed(&self, _prompt: &Self::Prompt, view: &View, _seed: u64, _index: u64) -> Result<Self::Prompt, Error> {
        Err(Error::MissingSignal { signal: Capability::View(view.clone()).to_string() })
    }

    /// The text of one token, empty for special tokens; anything for part of a character.
    fn token_text(&self, _token: u32) -> String {
        String::new()
    }

    /// What an encoder makes of each thing that a prompt shows, such as an image: `[features, width]`, without gradients.
    ///
    /// # Errors
    /// When the policy does not offer features, or the prompt cannot be encoded.
    fn features(&self, _prompt: &Self::Prompt) -> Result<Vec<Tensor<2>>, Error> {
        Err(Error::MissingSignal { signal: Capability::Features.to_string() })
    }
}

/// Something that draws completions; usually the policy itself, off the autodiff device.
pub trait Sampler<P> {
    /// Draws `group_size` completions for every prompt.
    ///
    /// # Errors
    /// When a prompt cannot be encoded.
    fn sample(&self, prompts: &[P], group_size: usize, sampling: Sampling) -> Result<Vec<Vec<Completion>>, Error>;

    /// The same completions, with signals of the forward passes that drew them.
    ///
    /// A sampler that cannot hand them out draws all the same and returns none, as this does unless it is implemented;
    /// the trainer then takes them from a scoring pass.
    ///
    /// # Errors
    /// Those of [`Self::sample`].
    fn sample_with_signals(
        &self,
        prompts: &[P],
        group_size: usize,
        sampling: Sampling,
        _signals: &SignalSet,
    ) -> Result<(Vec<Vec<Completion>>, Signals), Error> {
        Ok((self.sample(prompts, group_size, sampling)?, Signals::default()))
    }
}
