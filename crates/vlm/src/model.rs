//! A vision-language model: vision tower, decoder and output head, and how a prompt with images runs through them.

use std::iter::repeat;
use std::ops::Range;

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{DType, Device, FloatDType, Tensor};

use crate::config::ModelConfig;
use crate::features::FrozenVision;
use crate::initialize::initialize;
use crate::lora::LoraConfig;
use crate::probe::{Probe, indices};
use crate::processor::Prompt;
use crate::sequence::Sequence;
use crate::text::{PromptStates, TextModel};
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
    /// See [`QwenVl::with_activation_checkpointing`].
    #[module(skip)]
    pub(crate) activation_checkpointing: bool,
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
    pub(crate) fn bias(&self) -> Vec<f32> {
        // Finite, so that zero probability times its logarithm is zero and not NaN.
        const SUPPRESSED: f32 = -1e9;
        self.allowed.iter().map(|&allowed| if allowed { 0.0 } else { SUPPRESSED }).collect()
    }
}

impl QwenVl {
    /// A model with fresh weights: a function of `config` and `seed` alone, the same on every device.
    #[must_use]
    pub fn new(config: &ModelConfig, seed: u64, device: &Device) -> Self {
        initialize(Self::without_weights(config, device), config, seed)
    }

    /// A model whose parameters have shapes but no values: what [`parameters`](crate::parameters()) describes without
    /// any of them in memory.
    #[must_use]
    pub fn without_weights(config: &ModelConfig, device: &Device) -> Self {
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
            activation_checkpointing: false,
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
        Ok(self.tower()?.encode(images, false))
    }

    pub(crate) fn tower(&self) -> Result<&VisionTower, Error> {
        self.model.visual.as_ref().ok_or_else(|| Error::NoVision { model: self.config.model_type.clone() })
    }

    /// The output head, `[hidden_size, vocab_size]`, in float32: what a logit of 20 loses in bfloat16 is as large as the
    /// differences of log-probabilities that training goes by.
    pub(crate) fn head(&self) -> Tensor<2> {
        let head = match &self.lm_head {
            Some(head) => head.weight.val(),
            None => self.model.language_model.embed_tokens.weight.val().transpose(),
        };
        head.cast(DType::F32)
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
        Ok(hidden.matmul(self.head()).reshape([prompts.len(), longest, vocabulary]))
    }

    /// Where its weights are.
    pub(crate) fn device(&self) -> Device {
        self.text().embed_tokens.weight.val().device()
    }

    /// The float type of its activations and products.
    #[must_use]
    pub fn compute_dtype(&self) -> FloatDType {
        self.text().dtype.into()
    }

    /// Sets the float type of its activations and products, and nothing else.
    pub(crate) fn computing_in(mut self, dtype: FloatDType) -> Self {
        self.model.language_model.dtype = dtype.into();
        if let Some(tower) = &mut self.model.visual {
            tower.dtype = dtype.into();
        }
        self
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

    pub(crate) fn check_tokens(&self, ids: &[u32]) -> Result<(), Error> {
        let vocabulary = self.config.text_config.vocab_size;
        match ids.iter().position(|&id| id as usize >= vocabulary) {
            Some(position) => Err(Error::TokenOutOfVocabulary { id: ids[position], position, vocabulary }),
            None => Ok(()),
        }
    }

    /// Refuses prompts that cannot run, and what `probe` cannot see of them.
    pub(crate) fn check_prompts(&self, prompts: &[&Prompt], probe: Option<&Probe>) -> Result<(), Error> {
        for (index, prompt) in prompts.iter().enumerate() {
            if prompt.input_ids().is_empty() {
                return Err(Error::EmptyPrompt { index });
            }
            self.check_length(index, prompt, 0)?;
            self.check_tokens(prompt.input_ids())?;
        }
        probe.map_or(Ok(()), |probe| probe.check(prompts, self.text().heads()))
    }

    /// Prompts one after another.
    pub(crate) fn sequence(&self, prompts: &[&Prompt]) -> Sequence {
        Sequence::new(prompts, self.config.vision_config.as_ref().map_or(1, |vision| vision.spatial_merge_size))
    }

    /// Images through the vision tower, prompts through the decoder: each once.
    pub(crate) fn encode_prompts(&self, prompts: &[&Prompt], probe: Option<&Probe>) -> Result<EncodedPrompts, Error> {
        self.check_prompts(prompts, probe)?;
        let attention = probe.is_some_and(|probe| probe.image_attention);
        let features = self.visual_features(prompts, attention, None)?;
        let image_attention = attention_of_prompts(prompts, features.as_ref());
        let sequence = self.sequence(prompts);
        let next_positions = sequence.next_positions.clone();
        let point = probe.and_then(|probe| probe.attention.as_ref()).map(|attention| attention.point);
        let states = self.text().prompt(sequence, features, point);
        Ok(EncodedPrompts { states, next_positions, image_attention })
    }
}

/// Hidden state of each prompt's last token: `[prompts, hidden_size]`.
pub(crate) fn last_hidden(encoded: &EncodedPrompts) -> Tensor<2> {
    let states = &encoded.states;
    let last: Vec<usize> = states.rows.iter().map(|rows| rows.end - 1).collect();
    states.hidden.clone().select(0, indices(&last, &states.hidden.device()))
}

/// The attention that visual tokens receive, cut where prompts end.
pub(crate) fn attention_of_prompts(prompts: &[&Prompt], features: Option<&VisionFeatures>) -> Option<Vec<Tensor<1>>> {
    let values = features?.attention.as_ref()?;
    let mut start = 0;
    let mut cut = |prompt: &&Prompt| {
        let count = prompt.image_spans().iter().map(ExactSizeIterator::len).sum();
        start += count;
        if count == 0 { Tensor::zeros([0], &values.device()) } else { values.clone().narrow(0, start - count, count) }
    };
    Some(prompts.iter().map(&mut cut).collect())
}
