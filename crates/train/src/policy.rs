//! The bridge between the model and the trainer: a vision-language model as a policy.

use std::sync::Arc;

use burn::module::Module;
use burn::tensor::Tensor;
use firesight_kawhi::{ImageView, Kawhi, KawhiConfig, VisualPrompt};
use firesight_rl::{
    AttentionStates, Capability, Completion, Continuation, Error, Group, HiddenStates, Policy, Positions,
    ResponseStates, Rope, Sampler, Sampling, Scores, SignalSet, Signals, View,
};
use firesight_vlm::{
    AttentionPoint, AttentionProbe, Generated, Generation, Grid, ImageChange, LastAttention, LastHidden, Probe, Probed,
    Processor, Prompt, QwenVl, Scored, TokenMask,
};

/// A vision-language model with what it takes to speak: its tokenizer, its stop tokens, and the tokens it may not say.
#[derive(Module, Debug)]
pub struct VlmPolicy {
    /// The model.
    pub model: QwenVl,
    #[module(skip)]
    speech: Arc<Speech>,
}

#[derive(Debug)]
struct Speech {
    processor: Arc<Processor>,
    mask: TokenMask,
}

/// A rendered prompt with its images; clones share them.
#[derive(Debug, Clone)]
pub struct VlmPrompt {
    prompt: Arc<Prompt>,
    /// Side of a visual token in pixels.
    cell: usize,
}

impl VlmPrompt {
    /// `cell` is the side of a visual token in pixels.
    #[must_use]
    pub fn new(prompt: Prompt, cell: usize) -> Self {
        Self { prompt: Arc::new(prompt), cell }
    }

    /// The same prompt, which learns for itself what a frozen vision tower makes of its images, and takes it along when
    /// it goes.
    #[must_use]
    pub(crate) fn passing(&self) -> Self {
        Self { prompt: Arc::new(Prompt::clone(&self.prompt)), cell: self.cell }
    }

    /// The sizes of its images as the model sees them, `(width, height)` in pixels.
    pub(crate) fn image_sizes(&self) -> impl Iterator<Item = (u32, u32)> {
        self.prompt.images().iter().map(|image| image.rgb.dimensions())
    }

    /// Patches of its images.
    pub(crate) fn grids(&self) -> Vec<Grid> {
        self.prompt.images().iter().map(|image| image.grid).collect()
    }

    /// How many of its tokens stand for images.
    pub(crate) fn image_tokens(&self) -> usize {
        self.prompt.image_spans().iter().map(ExactSizeIterator::len).sum()
    }

    /// Its token ids, image placeholders expanded.
    #[must_use]
    pub fn tokens(&self) -> &[u32] {
        self.prompt.input_ids()
    }
}

impl VisualPrompt for VlmPrompt {
    fn images(&self) -> Vec<ImageView<'_>> {
        self.prompt
            .images()
            .iter()
            .map(|image| ImageView {
                width: image.rgb.width() as usize,
                height: image.rgb.height() as usize,
                pixels: image.rgb.as_raw(),
                cell: self.cell,
            })
            .collect()
    }
}

impl VlmPolicy {
    /// A policy that stops where its checkpoint says, and never says a placeholder of an image, padding, or an id that
    /// the tokenizer does not have.
    ///
    /// # Errors
    /// When the tokenizer has ids that the model has no embedding for.
    pub fn new(model: QwenVl, processor: Arc<Processor>) -> Result<Self, firesight_vlm::Error> {
        Self::suppressing(model, processor, [])
    }

    /// One that never says these tokens either.
    ///
    /// # Errors
    /// As [`Self::new`], and when the model has no such token.
    pub fn suppressing(
        model: QwenVl,
        processor: Arc<Processor>,
        tokens: impl IntoIterator<Item = u32>,
    ) -> Result<Self, firesight_vlm::Error> {
        let mask = model.token_mask(processor.suppressed_tokens().chain(tokens))?;
        Ok(Self { model, speech: Arc::new(Speech { processor, mask }) })
    }

    /// A copy that speaks without the query heads of index `head`; see [`QwenVl::without_head`].
    ///
    /// # Errors
    /// When the model has no such head.
    pub fn without_head(&self, head: usize) -> Result<Self, firesight_vlm::Error> {
        Ok(Self { model: self.model.without_head(head)?, speech: self.speech.clone() })
    }

    /// KAWHI that reads what this policy says.
    ///
    /// # Errors
    /// When the configuration is out of range, or names a file of heads that cannot be used.
    pub fn kawhi(&self, config: KawhiConfig) -> Result<Kawhi, firesight_kawhi::Error> {
        let processor = self.processor().clone();
        // The end of the turn has no text, so it is no paragraph of its own.
        Kawhi::new(config, move |token| text_of(&processor, token))
    }

    /// What renders prompts and decodes completions.
    #[must_use]
    pub fn processor(&self) -> &Arc<Processor> {
        &self.speech.processor
    }

    /// Completions as `draw` draws them, with what else it returns.
    pub(crate) fn complete<T>(
        &self,
        prompts: &[VlmPrompt],
        sampling: Sampling,
        draw: impl FnOnce(&QwenVl, &[&Prompt], &Generation<'_>) -> Result<(Vec<Vec<Generated>>, T), firesight_vlm::Error>,
    ) -> Result<(Vec<Vec<Completion>>, T), Error> {
        let prompts: Vec<&Prompt> = prompts.iter().map(|prompt| &*prompt.prompt).collect();
        let generation = Generation {
            sampling: firesight_vlm::Sampling::at(sampling.temperature),
            max_new_tokens: sampling.max_tokens,
            stop_tokens: self.speech.processor.stop_tokens(),
            mask: &self.speech.mask,
            seed: sampling.seed,
            first_stream: sampling.first_stream,
        };
        let (generated, more) =
            draw(&self.model, &prompts, &generation).map_err(|error| Error::Policy(error.into()))?;
        let complete = |drawn: Generated| {
            let text =
                self.speech.processor.tokenizer().decode(&drawn.tokens).map_err(|error| Error::Policy(error.into()))?;
            Ok(Completion {
                tokens: drawn.tokens,
                log_probs: drawn.log_probs,
                text,
                truncated: !drawn.finished,
                ..Completion::default()
            })
        };
        let group = |group: Vec<_>| group.into_iter().map(complete).collect::<Result<_, Error>>();
        Ok((generated.into_iter().map(group).collect::<Result<_, _>>()?, more))
    }
}

impl Policy for VlmPolicy {
    type Prompt = VlmPrompt;

    fn prompt_tokens(&self, prompt: &VlmPrompt) -> usize {
        prompt.tokens().len()
    }

    fn score(&self, groups: &[Group<VlmPrompt>], temperature: f32, signals: &SignalSet) -> Result<Scores, Error> {
        let batch: Vec<Scored<'_>> = groups
            .iter()
            .map(|group| Scored {
                prompt: &group.prompt.prompt,
                completions: group.completions.iter().map(|completion| completion.tokens.as_slice()).collect(),
            })
            .collect();
        let scores = self
            .model
            .score(&batch, temperature, &self.speech.mask, Some(&probe(signals)))
            .map_err(|error| Error::Policy(error.into()))?;
        let firesight_vlm::Positions { used, padding } = scores.positions;
        Ok(Scores {
            log_probs: scores.log_probs,
            entropy: scores.entropy,
            signals: found(scores.probed),
            positions: Positions { used, padding },
            continuation: scores.recomputation.map(|rest| Continuation::new(move |gradients| rest.backward(gradients))),
        })
    }

    fn offers(&self, capability: &Capability) -> Result<(), String> {
        offers(self.model.config().vision_config.is_some(), capability)
    }

    fn changed(&self, prompt: &VlmPrompt, view: &View, seed: u64, index: u64) -> Result<VlmPrompt, Error> {
        let change = image_change(view).map_err(|reason| Error::Policy(reason.into()))?;
        let changed = self.processor().changed(&prompt.prompt, &change, seed, index);
        Ok(VlmPrompt::new(changed.map_err(|error| Error::Policy(error.into()))?, prompt.cell))
    }

    fn token_text(&self, token: u32) -> String {
        text_of(self.processor(), token)
    }

    fn features(&self, prompt: &VlmPrompt) -> Result<Vec<Tensor<2>>, Error> {
        self.model.image_features(&prompt.prompt).map_err(|error| Error::Policy(error.into()))
    }
}

/// The text of one token. Decoding skips special tokens, and a policy says no token that the tokenizer does not have.
fn text_of(processor: &Processor, token: u32) -> String {
    processor.tokenizer().decode(&[token]).unwrap_or_default()
}

/// Whether a vision-language model, or one of text alone, can do what a method wants of it.
pub(crate) fn offers(sees: bool, capability: &Capability) -> Result<(), String> {
    match capability {
        Capability::Entropy | Capability::TopPEntropy | Capability::Texts => Ok(()),
        _ if !sees => Err("it is a model of text alone".into()),
        Capability::View(view) => image_change(view).map(|_| ()),
        Capability::Attention | Capability::ImageAttention | Capability::Hidden | Capability::Features => Ok(()),
    }
}

/// The change of images that a view names.
fn image_change(view: &View) -> Result<ImageChange, String> {
    // Its parameters are those of the change, which says what it does not know.
    let mut table: toml::Table = view.parameters.iter().map(|(name, &value)| (name.clone(), number(value))).collect();
    table.insert("name".into(), view.name.clone().into());
    let change: ImageChange = table.try_into().map_err(|error: toml::de::Error| error.message().to_owned())?;
    change.check().map_err(|(field, problem)| format!("{field} {problem}"))?;
    Ok(change)
}

/// A number as a file has it, where pixels are whole.
fn number(value: f64) -> toml::Value {
    if value.fract() == 0.0 && value.abs() < 1e9 { (value as i64).into() } else { value.into() }
}

impl Sampler<VlmPrompt> for VlmPolicy {
    fn sample(
        &self,
        prompts: &[VlmPrompt],
        group_size: usize,
        sampling: Sampling,
    ) -> Result<Vec<Vec<Completion>>, Error> {
        Ok(self.sample_with_signals(prompts, group_size, sampling, &SignalSet::default())?.0)
    }

    fn sample_with_signals(
        &self,
        prompts: &[VlmPrompt],
        group_size: usize,
        sampling: Sampling,
        signals: &SignalSet,
    ) -> Result<(Vec<Vec<Completion>>, Signals), Error> {
        let probe = probe(signals);
        let (groups, probed) = self.complete(prompts, sampling, |model, prompts, generation| {
            model.generate_probed(prompts, group_size, generation, &probe)
        })?;
        Ok((groups, found(probed)))
    }
}

/// What the trainer asks for, in the words of the model.
fn probe(signals: &SignalSet) -> Probe {
    let attention = signals.attention.as_ref().map(|asked| AttentionProbe {
        point: match asked.rope {
            Rope::After => AttentionPoint::AfterRope,
            Rope::Before => AttentionPoint::BeforeRope,
        },
        response: match asked.response {
            ResponseStates::Queries => firesight_vlm::ResponseStates::Queries,
            ResponseStates::Keys => firesight_vlm::ResponseStates::Keys,
        },
        heads: asked.heads.clone(),
        visual_tokens: asked.visual_tokens.clone(),
    });
    let SignalSet { entropy, top_p_entropy, image_attention, hidden, .. } = *signals;
    Probe { attention, image_attention, entropy, top_p_entropy, hidden }
}

fn found(probed: Probed) -> Signals {
    let Probed { attention, image_attention, entropy, top_p_entropy, hidden } = probed;
    let attention = attention.map(|LastAttention { response, visual_keys, key_heads }| AttentionStates {
        response,
        visual_keys,
        key_heads,
    });
    let hidden = hidden.map(|LastHidden { response, visual }| HiddenStates { response, visual });
    Signals { attention, image_attention, entropy, top_p_entropy, hidden }
}
