//! Log-probabilities of given completions: prompts and completions run through the model side by side.

use burn::tensor::Tensor;

use crate::fused::{self, Scoring};
use crate::model::attention_of_prompts;
use crate::probe::{Probe, Probed, Tap, indices};
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
#[derive(Debug, Clone)]
pub struct CompletionScores {
    /// `[completions, tokens]`, natural logarithm, at the temperature asked for.
    pub log_probs: Tensor<2>,
    /// Entropy of the distribution each token is drawn from, in nats: `[completions, tokens]`.
    pub entropy: Tensor<2>,
    /// Token positions that were computed.
    pub positions: Positions,
    /// What else was asked for.
    pub probed: Probed,
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

impl QwenVl {
    /// Scores completions behind their prompts. Gradients flow when the model lives on an autodiff device.
    ///
    /// # Panics
    /// When `batch` is empty.
    ///
    /// # Errors
    /// When a token id is outside the vocabulary or a sequence is longer than the context.
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
        let attention = probe.and_then(|probe| probe.attention.as_ref());

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
            let fed = completion.len().saturating_sub(usize::from(attention.is_none()));
            let rows = sequence.complete(prompt, &completion[..fed]);
            states.extend([sequence.prompts[prompt].end - 1].into_iter().chain(rows).take(completion.len()));
            slots.extend((0..tokens).map(|token| if token < completion.len() { targets.len() + token + 1 } else { 0 }));
            targets.extend_from_slice(completion);
        }

        let text = self.text();
        let pass = text.pass(&sequence);
        let features = self.visual_features(&prompts, probe.is_some_and(|probe| probe.image_attention))?;
        let image_attention = attention_of_prompts(&prompts, features.as_ref());
        let (visual, deepstack) = features.map_or((None, Vec::new()), |found| (Some(found.tokens), found.deepstack));
        let mut deepstack = deepstack.into_iter();
        let mut x = text.embed_sequence(&sequence, &pass, visual);
        let device = x.device().without_autodiff();
        let mut found = None;
        for index in 0..text.depth() {
            x = text.layer(index, x, &pass, deepstack.next(), |projected| {
                if let Some(attention) = attention.filter(|_| index + 1 == text.depth()) {
                    let mut tap = Tap::new(attention, text.heads(), &device);
                    tap.take(projected, first_row..sequence.ids.len());
                    let keys = projected.key(attention.point).clone();
                    found = Some((attention.visual_keys(&prompts, &sequence.prompts, keys), tap));
                }
            });
        }
        let hidden = text.normalise(x.select(0, indices(&states, &device)));

        let scoring = Scoring { targets, bias: mask.bias(), temperature };
        let scores = fused::score(hidden, self.head(), scoring);
        // Slot 0 is the padding's zero.
        let slots = indices(&slots, &device);
        let spread = |values: Tensor<2>| {
            Tensor::cat(vec![Tensor::zeros([1, 1], &device), values], 0)
                .select(0, slots.clone())
                .reshape([count, tokens])
        };
        let attention = attention.zip(found).and_then(|(attention, (visual_keys, tap))| {
            tap.taken.into_iter().next().map(|response| attention.found(visual_keys, text.heads(), response))
        });
        Ok(CompletionScores {
            log_probs: spread(scores.clone().narrow(1, 0, 1)),
            entropy: spread(scores.narrow(1, 1, 1)),
            positions: Positions { used: sequence.ids.len(), padding: pass.padding() },
            probed: Probed { attention, image_attention },
        })
    }
}
