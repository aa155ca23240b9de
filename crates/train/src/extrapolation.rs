//! Answers that go on from the model that training began with, beyond the trained one.

use std::path::PathBuf;

use firesight_rl::{Completion, Error, Sampler, Sampling};
use firesight_vlm::{Extrapolation, QwenVl};

use crate::policy::{VlmPolicy, VlmPrompt};

/// See [`Extrapolation`].
#[derive(Debug, Clone, PartialEq)]
pub struct ExtrapolationConfig {
    /// Directory of the model that training began with.
    pub base: PathBuf,
    /// How far beyond the trained model.
    pub gamma: f32,
    /// Where the two differ by less than this, in nats, the trained model answers alone.
    pub threshold: f32,
}

impl ExtrapolationConfig {
    /// How to draw, given the model that lies in the directory.
    pub(crate) fn beyond<'a>(&self, base: &'a QwenVl) -> Extrapolation<'a> {
        Extrapolation { base, gamma: self.gamma, threshold: self.threshold }
    }
}

/// A policy that answers with an [`Extrapolation`].
#[derive(Debug, Clone)]
pub(crate) struct Extrapolated {
    pub(crate) policy: VlmPolicy,
    pub(crate) base: QwenVl,
    pub(crate) config: ExtrapolationConfig,
}

impl Sampler<VlmPrompt> for Extrapolated {
    fn sample(
        &self,
        prompts: &[VlmPrompt],
        group_size: usize,
        sampling: Sampling,
    ) -> Result<Vec<Vec<Completion>>, Error> {
        let extrapolation = self.config.beyond(&self.base);
        let drawn = self.policy.complete(prompts, sampling, |model, prompts, generation| {
            Ok((model.generate_extrapolated(prompts, group_size, generation, &extrapolation, |_, _| {})?, ()))
        });
        Ok(drawn?.0)
    }
}
