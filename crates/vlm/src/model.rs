//! A vision-language model: vision tower, decoder and output head, and how a prompt with images runs through them.

use std::iter::repeat;
use std::ops::Range;

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{DType, Device, Tensor};

use crate::config::ModelConfig;
use crate::features::FrozenVision;
use crate::fused::{Scoring, score};
use crate::initialize::initialize;
use crate::lora::LoraConfig;
use crate::probe::{Probe, Probed, Tap, indices};
use crate::processor::Prompt;
use crate::rope::Position;
use crate::text::{NewTokens, PromptStates, TextModel, ranges};
use crate::vision::{VisionFeatures, VisionTower};
use crate::{Error, ProcessedImage};

/// A Qwen vision-language model.
///
/// The paths of its parameters are the names of the published weights.
#[derive(Module, Debug)]
pub struct QwenVl {
    model: Backbone,
    /// `None` when the head is the embedding table.
    lm_head: Option<Linear>,
    #[module(skip)]
    config: ModelConfig,
    /// What its adapters are, where it has some.
    #[module(skip)]
    pub(crate) lora: Option<LoraConfig>,
    /// Where its vision tower was frozen.
    #[module(skip)]
    pub(crate) frozen_vision: Option<FrozenVision>,
}

#[derive(Module, Debug)]
struct Backbone {
    visual: Option<VisionTower>,
    language_model: TextModel,
}

/// Token ids that are neither sampled nor given any probability.
///
/// Sampler and scorer must use the same mask; then log-probabilities of the two agree.
#[derive(Debug, Clone)]
pub struct TokenMask {
    allowed: Vec<bool>,
}

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

/// Prompts that have run through the model, ready for completions.
pub(crate) struct EncodedPrompts {
    pub(crate) states: PromptStates,
    /// Position of each prompt's first completion token.
    pub(crate) next_positions: Vec<u32>,
    /// See [`Probed::image_attention`].
    pub(crate) image_attention: Option<Vec<Tensor<1>>>,
}

impl TokenMask {
    /// Every id below `vocabulary` but the `suppressed` ones.
    ///
    /// # Errors
    /// When a suppressed id is outside the vocabulary.
    pub fn new(vocabulary: usize, suppressed: impl IntoIterator<Item = u32>) -> Result<Self, Error> {
        let mut allowed = vec![true; vocabulary];
        for (position, id) in suppressed.into_iter().enumerate() {
            *allowed.get_mut(id as usize).ok_or(Error::TokenOutOfVocabulary { id, position, vocabulary })? = false;
        }
        Ok(Self { allowed })
    }

    /// Whether `id` can be sampled.
    #[must_use]
    pub fn allows(&self, id: usize) -> bool {
        self.allowed[id]
    }

    /// What to add to logits.
    fn bias(&self) -> Vec<f32> {
        // Finite, so that zero probability times its logarithm is zero and not NaN.
        const SUPPRESSED: f32 = -1e9;
        self.allowed.iter().map(|&allowed| if allowed { 0.0 } else { SUPPRESSED }).collect()
    }
}

impl QwenVl {
    /// A model with fresh weights: a function of `config` and `seed` alone, the same on every device.
    #[must_use]
    pub fn new(config: &ModelConfig, seed: u64, device: &Device) -> Self {
        initialize(Self::new_lazy(config, device), config, seed)
    }

    /// A model whose parameters have shapes but no values yet.
    pub(crate) fn new_lazy(config: &ModelConfig, device: &Device) -> Self {
        let text = &config.text_config;
        Self {
            model: Backbone {
                visual: config.vision_config.as_ref().map(|vision| VisionTower::new(vision, device)),
                language_model: TextModel::new(text, device),
            },
            lm_head: (!config.tie_word_embeddings)
                .then(|| LinearConfig::new(text.hidden_size, text.vocab_size).with_bias(false).init(device)),
            config: config.clone(),
            lora: None,
            frozen_vision: None,
        }
    }

    /// The configuration it was made from.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// A mask that suppresses the placeholders of images and videos and `others` (padding, ids beyond the tokenizer's
    /// vocabulary).
    ///
    /// # Errors
    /// When an id is outside the vocabulary.
    pub fn token_mask(&self, others: impl IntoIterator<Item = u32>) -> Result<TokenMask, Error> {
        let config = &self.config;
        TokenMask::new(config.text_config.vocab_size, config.vision_token_ids().chain(others))
    }

    /// What the vision tower makes of images; the same images always give the same features.
    ///
    /// # Panics
    /// When `images` is empty.
    ///
    /// # Errors
    /// [`Error::NoVision`] for a model of text alone.
    pub fn encode_images(&self, images: &[&ProcessedImage]) -> Result<VisionFeatures, Error> {
        assert!(!images.is_empty(), "nothing to encode");
        Ok(self.tower()?.forward(images, false))
    }

    pub(crate) fn tower(&self) -> Result<&VisionTower, Error> {
        self.model.visual.as_ref().ok_or_else(|| Error::NoVision { model: self.config.model_type.clone() })
    }

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
        let encoded = self.encode_prompts(&prompts, probe)?;
        let device = encoded.states.hidden.device();
        let attention = probe.and_then(|probe| probe.attention.as_ref());

        // The last token of a completion predicts nothing, so it runs only when its query is wanted.
        let fed = |completion: &[u32]| completion.len().saturating_sub(usize::from(attention.is_none()));
        let completions: Vec<(usize, &[u32])> = batch
            .iter()
            .enumerate()
            .flat_map(|(prompt, item)| item.completions.iter().map(move |&completion| (prompt, completion)))
            .collect();
        let new: Vec<NewTokens> = completions
            .iter()
            .map(|&(prompt, completion)| NewTokens {
                prompt,
                position: encoded.next_positions[prompt],
                count: fed(completion),
            })
            .collect();
        let rows = ranges(new.iter().map(|new| new.count));
        let mut tap = attention.map(|attention| Tap::new(attention, self.text().heads(), &device));
        let mut hidden = last_hidden(&encoded);
        let mut positions = Positions { used: encoded.states.hidden.dims()[0], padding: encoded.states.padding };
        if rows.last().is_some_and(|rows| rows.end > 0) {
            let ids = completions.iter().flat_map(|(_, completion)| completion[..fed(completion)].iter().copied());
            let embeddings = self.text().embed(ids, &device);
            positions.used += embeddings.dims()[0];
            let (completed, padding) = self.text().complete(&encoded.states, embeddings, &new, None, tap.as_mut());
            positions.padding += padding;
            hidden = Tensor::cat(vec![hidden, completed], 0);
        }

        // The state before a token predicts it.
        let tokens = completions.iter().map(|(_, completion)| completion.len()).max().unwrap_or(0);
        let mut states = Vec::new();
        let mut targets = Vec::new();
        let mut slots = vec![0; completions.len() * tokens];
        for (index, (&(prompt, completion), rows)) in completions.iter().zip(&rows).enumerate() {
            for (t, &id) in completion.iter().enumerate() {
                states.push(if t == 0 { prompt } else { batch.len() + rows.start + t - 1 });
                targets.push(id);
                slots[index * tokens + t] = targets.len();
            }
        }
        let scoring = Scoring { targets, bias: mask.bias(), temperature };
        let scores = score(hidden.select(0, indices(&states, &device)), self.head(), scoring);
        // Slot 0 is the padding's zero.
        let slots = indices(&slots, &device);
        let spread = |values: Tensor<2>| {
            Tensor::cat(vec![Tensor::zeros([1, 1], &device), values], 0)
                .select(0, slots.clone())
                .reshape([completions.len(), tokens])
        };
        let taken = attention.zip(tap.and_then(|tap| tap.taken.into_iter().next()));
        let attention = taken.map(|(attention, response)| {
            let visual_keys = attention.visual_keys(&prompts, &encoded.states);
            attention.found(visual_keys, self.text().heads(), response)
        });
        Ok(CompletionScores {
            log_probs: spread(scores.clone().narrow(1, 0, 1)),
            entropy: spread(scores.narrow(1, 1, 1)),
            positions,
            probed: Probed { attention, image_attention: encoded.image_attention },
        })
    }

    /// Logits of hidden states `[rows, hidden_size]`: `[rows, vocab_size]`, in float32.
    pub(crate) fn logits(&self, hidden: Tensor<2>) -> Tensor<2> {
        hidden.matmul(self.head()).cast(DType::F32)
    }

    /// The output head: `[hidden_size, vocab_size]`.
    fn head(&self) -> Tensor<2> {
        match &self.lm_head {
            Some(head) => head.weight.val(),
            None => self.model.language_model.embed_tokens.weight.val().transpose(),
        }
    }

    /// Logits of the whole of each prompt, `[prompts, tokens, vocab_size]`, rows right-padded.
    ///
    /// # Panics
    /// When `prompts` is empty.
    ///
    /// # Errors
    /// When a token id is outside the vocabulary or a prompt is longer than the context.
    pub fn prompt_logits(&self, prompts: &[&Prompt]) -> Result<Tensor<3>, Error> {
        assert!(!prompts.is_empty(), "nothing to run");
        let states = self.encode_prompts(prompts, None)?.states;
        let vocabulary = self.config.text_config.vocab_size;
        let longest = states.rows.iter().map(ExactSizeIterator::len).max().unwrap_or(0);
        // What pads a row is the logits of some token or other.
        let padded = |rows: &Range<usize>| rows.clone().chain(repeat(0)).take(longest);
        let rows: Vec<usize> = states.rows.iter().flat_map(padded).collect();
        let hidden = states.hidden.clone().select(0, indices(&rows, &states.hidden.device()));
        Ok(self.logits(hidden).reshape([prompts.len(), longest, vocabulary]))
    }

    pub(crate) fn text(&self) -> &TextModel {
        &self.model.language_model
    }

    pub(crate) fn check_length(&self, index: usize, prompt: &Prompt, completion: usize) -> Result<(), Error> {
        let context = self.config.text_config.max_position_embeddings;
        let prompt = prompt.input_ids().len();
        if prompt + completion > context {
            return Err(Error::ContextLength { index, prompt, completion, context });
        }
        Ok(())
    }

    fn check_tokens(&self, ids: &[u32]) -> Result<(), Error> {
        let vocabulary = self.config.text_config.vocab_size;
        match ids.iter().position(|&id| id as usize >= vocabulary) {
            Some(position) => Err(Error::TokenOutOfVocabulary { id: ids[position], position, vocabulary }),
            None => Ok(()),
        }
    }

    /// Images through the vision tower, prompts through the decoder: each once.
    pub(crate) fn encode_prompts(&self, prompts: &[&Prompt], probe: Option<&Probe>) -> Result<EncodedPrompts, Error> {
        for (index, prompt) in prompts.iter().enumerate() {
            if prompt.input_ids().is_empty() {
                return Err(Error::EmptyPrompt { index });
            }
            self.check_length(index, prompt, 0)?;
            self.check_tokens(prompt.input_ids())?;
        }
        if let Some(probe) = probe {
            probe.check(prompts, self.text().heads())?;
        }
        let text = self.text();
        let device = text.embed_tokens.weight.val().device();
        let lengths: Vec<usize> = prompts.iter().map(|prompt| prompt.input_ids().len()).collect();
        let rows = ranges(lengths.iter().copied());
        let count = lengths.iter().sum();

        let mut positions = vec![[0; 3]; count];
        let mut next_positions = Vec::with_capacity(prompts.len());
        // Row of the visual features for every token, counted from 1; 0 for text.
        let mut visual = vec![0; count];
        let mut visual_tokens = 0;
        for (rows, prompt) in rows.iter().zip(prompts) {
            next_positions.push(self.fill_positions(prompt, &mut positions[rows.clone()]));
            for position in prompt.image_spans().iter().cloned().flatten() {
                visual_tokens += 1;
                visual[rows.start + position] = visual_tokens;
            }
        }
        let ids = prompts.iter().flat_map(|prompt| prompt.input_ids().iter().copied());
        let mut embeddings = text.embed(ids, &device);
        let mut deepstack = Vec::new();
        let mut image_attention = None;
        let wants_attention = probe.is_some_and(|probe| probe.image_attention);
        if let Some(features) = self.visual_features(prompts, wants_attention, &device)? {
            image_attention = features.attention.map(|attention| of_prompts(prompts, &attention));
            // Text rows pick themselves, image rows pick from the features behind them.
            let sources: Vec<usize> =
                visual.iter().enumerate().map(|(row, &v)| if v == 0 { row } else { count + v - 1 }).collect();
            embeddings = Tensor::cat(vec![embeddings, features.tokens], 0).select(0, indices(&sources, &device));
            let visual = indices(&visual, &device);
            let level = |level: Tensor<2>| {
                let nothing = Tensor::zeros([1, level.dims()[1]], (&device, level.dtype()));
                Tensor::cat(vec![nothing, level], 0).select(0, visual.clone())
            };
            deepstack = features.deepstack.into_iter().map(level).collect();
        }
        let before_rope = probe.is_some_and(Probe::before_rope);
        let states = text.prompt(embeddings, &lengths, &positions, deepstack, before_rope);
        Ok(EncodedPrompts { states, next_positions, image_attention })
    }

    /// Multimodal positions of a prompt; returns the position of what follows it.
    ///
    /// Text advances by one on all axes; an image stands still in time, spreads its visual tokens over height and
    /// width, and advances by its longer side.
    fn fill_positions(&self, prompt: &Prompt, positions: &mut [Position]) -> u32 {
        let merge = self.config.vision_config.as_ref().map_or(1, |vision| vision.spatial_merge_size);
        let mut spans = prompt.image_spans().iter().zip(prompt.images()).peekable();
        let (mut at, mut next) = (0, 0);
        while at < prompt.input_ids().len() {
            if let Some((span, image)) = spans.next_if(|(span, _)| span.start == at) {
                let (height, width) = (image.grid.h / merge, image.grid.w / merge);
                for (offset, position) in positions[span.clone()].iter_mut().enumerate() {
                    let (row, column) = (offset / width % height, offset % width);
                    *position = [next, next + row as u32, next + column as u32];
                }
                next += height.max(width) as u32;
                at = span.end;
            } else {
                positions[at] = [next; 3];
                next += 1;
                at += 1;
            }
        }
        next
    }
}

/// Hidden state of each prompt's last token: `[prompts, hidden_size]`.
pub(crate) fn last_hidden(encoded: &EncodedPrompts) -> Tensor<2> {
    let states = &encoded.states;
    let last: Vec<usize> = states.rows.iter().map(|rows| rows.end - 1).collect();
    states.hidden.clone().select(0, indices(&last, &states.hidden.device()))
}

/// A value a visual token, cut where prompts end.
fn of_prompts(prompts: &[&Prompt], values: &Tensor<1>) -> Vec<Tensor<1>> {
    let mut start = 0;
    let mut cut = |prompt: &&Prompt| {
        let count = prompt.image_spans().iter().map(ExactSizeIterator::len).sum();
        start += count;
        if count == 0 { Tensor::zeros([0], &values.device()) } else { values.clone().narrow(0, start - count, count) }
    };
    prompts.iter().map(&mut cut).collect()
}
