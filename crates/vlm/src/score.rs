//! Log-probabilities of given completions: prompts and completions run through the model side by side.

use burn::module::Module as _;
use burn::optim::GradientsParams;
use burn::tensor::Tensor;

use crate::checkpointing::{Checkpoints, Recomputation};
use crate::features::is_trained;
use crate::fused::{self, Scoring};
use crate::model::attention_of_prompts;
use crate::probe::{LastHidden, Probe, Probed, Tap, indices, without_graph};
use crate::processor::Prompt;
use crate::{Error, QwenVl, TokenMask};

/// One prompt with the completions to score.
#[derive(Debug, Clone)]
pub struct Scored<'a> {
    /// What the completions answer; it runs through the model once.
    pub prompt: &'a Prompt,
    /// Token ids of each completion.
    pub completions: Vec<&'a [u32]>,
}

/// Log-probabilities of completions. Rows are completions, those of all prompts one after another, right-padded with
/// zeros.
#[derive(Debug)]
pub struct CompletionScores {
    /// `[completions, tokens]`, natural logarithm, at the temperature asked for.
    pub log_probs: Tensor<2>,
    /// Entropy of the distribution each token is drawn from, in nats: `[completions, tokens]`.
    pub entropy: Tensor<2>,
    /// Token positions that were computed.
    pub positions: Positions,
    /// What else was asked for.
    pub probed: Probed,
    /// With [activation checkpointing](QwenVl::with_activation_checkpointing), what follows the backward pass through the
    /// graph of these scores, which does not reach the layers; [`Self::backward`] does both.
    pub recomputation: Option<Recomputation>,
}

/// Token positions that a pass through the decoder computes. Tokens lie one after another, so on the CPU there is no
/// padding; elsewhere attention pads completions to the longest of their batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Positions {
    /// Of prompts and completions.
    pub used: usize,
    /// Beside them.
    pub padding: usize,
}

impl CompletionScores {
    /// The gradient of `loss`, which was made of these scores of `model`.
    ///
    /// # Panics
    /// When the loss does not depend on the scores.
    #[must_use]
    pub fn backward(self, loss: &Tensor<1>, model: &QwenVl) -> GradientsParams {
        let recomputation = self.recomputation;
        drop((self.log_probs, self.entropy));
        let gradients = loss.backward();
        match recomputation {
            Some(recomputation) => recomputation.backward(gradients),
            None => GradientsParams::from_grads(gradients, model),
        }
    }
}

impl QwenVl {
    /// Scores completions behind their prompts. Gradients flow when the model lives on an autodiff device:
    /// [`CompletionScores::backward`].
    ///
    /// # Panics
    /// When `batch` is empty.
    ///
    /// # Errors
    /// When a token id is outside the vocabulary, a sequence is longer than the context, or the probe asks for
    /// something that is not there or comes of drawing alone.
    pub fn score(
        &self,
        batch: &[Scored<'_>],
        temperature: f32,
        mask: &TokenMask,
        probe: Option<&Probe>,
    ) -> Result<CompletionScores, Error> {
        assert!(!batch.is_empty(), "nothing to score");
        for (index, item) in batch.iter().enumerate() {
            let longest = item.completions.iter().map(|completion| completion.len()).max().unwrap_or(0);
            self.check_length(index, item.prompt, longest)?;
            for completion in &item.completions {
                self.check_tokens(completion)?;
            }
        }
        let prompts: Vec<&Prompt> = batch.iter().map(|item| item.prompt).collect();
        self.check_prompts(&prompts, probe)?;
        if probe.is_some_and(|probe| probe.top_p_entropy.is_some()) {
            let problem = "is handed out only while completions are drawn".into();
            return Err(Error::Probe { field: "top_p_entropy", problem });
        }
        let attention = probe.and_then(|probe| probe.attention.as_ref());
        let wants_hidden = probe.is_some_and(|probe| probe.hidden);

        let device = self.device().without_autodiff();
        let mut sequence = self.sequence(&prompts);
        let first_row = sequence.ids.len();
        // The state before a token predicts it: rows of states, their tokens, and where each score goes.
        let (mut states, mut targets, mut slots) = (Vec::new(), Vec::new(), Vec::new());
        let completions =
            || batch.iter().enumerate().flat_map(|(prompt, item)| item.completions.iter().map(move |c| (prompt, *c)));
        let count = completions().count();
        let tokens = completions().map(|(_, completion)| completion.len()).max().unwrap_or(0);
        for (prompt, completion) in completions() {
            // The last token predicts nothing, so it runs only where its states are wanted.
            let fed = completion.len().saturating_sub(usize::from(attention.is_none() && !wants_hidden));
            let rows = sequence.complete(prompt, &completion[..fed]);
            states.extend([sequence.prompts[prompt].end - 1].into_iter().chain(rows).take(completion.len()));
            slots.extend((0..tokens).map(|token| if token < completion.len() { targets.len() + token + 1 } else { 0 }));
            targets.extend_from_slice(completion);
        }

        // Layers that are to run again leave no graph.
        let mut checkpoints = self.recomputes().then(Checkpoints::default);
        let off_graph = checkpoints.is_some().then(|| self.valid());
        let model = off_graph.as_ref().unwrap_or(self);
        let text = model.text();
        let pass = text.pass(&sequence);
        let image_attention = probe.is_some_and(|probe| probe.image_attention);
        let features = self.visual_features(&prompts, image_attention, checkpoints.as_mut())?;
        let image_attention = attention_of_prompts(&prompts, features.as_ref());
        let mut probed = Probed { image_attention, ..Probed::default() };
        let mut x = text.embed_sequence(&sequence, &pass, features.as_ref().map(|found| found.tokens.clone()));
        for index in 0..text.depth() {
            if let Some(checkpoints) = &mut checkpoints {
                checkpoints.layers.push(x.clone());
            }
            let deepstack = features.as_ref().and_then(|found| found.deepstack.get(index).cloned());
            x = text.layer(index, x, &pass, deepstack, |projected| {
                if let Some(attention) =
                    attention.filter(|_| index + 1 == text.depth() && first_row < sequence.ids.len())
                {
                    let completions = first_row..sequence.ids.len();
                    let response = Tap::new(attention, text.heads(), &device).states(projected, completions);
                    let keys = projected.key(attention.point).clone();
                    let visual_keys = attention.visual_keys(&prompts, &sequence.prompts, keys);
                    probed.attention = Some(attention.found(visual_keys, text.heads(), response));
                }
            });
        }
        if wants_hidden && first_row < sequence.ids.len() {
            let hidden = without_graph(text.normalise(x.clone()));
            let response = hidden.clone().narrow(0, first_row, sequence.ids.len() - first_row);
            probed.hidden = Some(LastHidden::new(response, &prompts, &sequence.prompts, &hidden));
        }
        let positions = Positions { used: sequence.ids.len(), padding: pass.padding() };
        let mut recomputation =
            checkpoints.map(|checkpoints| Recomputation::new(self, sequence, pass, features, checkpoints, x.clone()));
        let x = recomputation.as_ref().map_or(x, Recomputation::output);

        let hidden = self.text().normalise(x.select(0, indices(&states, &device)));
        let scoring = Scoring { targets, bias: mask.bias().into(), temperature };
        let scores = match &mut recomputation {
            Some(recomputation) => recomputation.score(hidden, scoring),
            None => fused::score(hidden, self.head(), scoring),
        };
        // Slot 0 is the padding's zero.
        let slots = indices(&slots, &device);
        let spread = |values: Tensor<2>| {
            Tensor::cat(vec![Tensor::zeros([1, 1], &device), values], 0)
                .select(0, slots.clone())
                .reshape([count, tokens])
        };
        Ok(CompletionScores {
            log_probs: spread(scores.clone().narrow(1, 0, 1)),
            entropy: spread(scores.narrow(1, 1, 1)),
            positions,
            probed,
            recomputation,
        })
    }

    /// Whether a scoring pass leaves its layers to be run again.
    fn recomputes(&self) -> bool {
        self.activation_checkpointing && self.device().is_autodiff() && is_trained(self)
    }
}
