//! What a model, its training and its generation take, known from the configuration alone.
//!
//! The plan counts tensors: those that burn's autodiff keeps for the backward pass of each operation in `text.rs`,
//! `vision.rs` and `score.rs`, and the largest set of short-lived ones beside them. It knows these rules of burn:
//!
//! - A product keeps each factor whose partner has a gradient, a quotient both sides, `exp` and `tanh` their input. Sums,
//!   casts, slices, reshapes and products with a number keep nothing. Views share their tensor's bytes, a reshape of a
//!   transposed tensor is a copy, and what nobody else holds is overwritten in place. The operations of `fused` keep what
//!   went into them, and attention of its scores one number a query and head.
//! - What an operation kept is released once its backward step has run; steps run from the deepest to the shallowest.
//!
//! What it leaves out is small against these tensors: rotary tables, masks, indices, the nodes of the graph, the work
//! space of a matrix product, and the pixels that a prompt holds.

use std::fmt;

use burn::tensor::{DType, Device, FloatDType};
use image::RgbImage;

use crate::config::{Tower, VisionConfig};
use crate::lora::{last_name, layers};
use crate::parameters::{Component, Parameter, parameters};
use crate::vision::attention_scores;
use crate::{Grid, LoraConfig, ModelConfig, Precision, ProcessedImage, Prompt, QwenVl, fused};

/// Bytes of a float32: the type of what is trained, of norms, scores, softmax and logits, whatever the rest is computed in.
const SINGLE: u64 = 4;
/// Bytes of a candidate in the sampler: a token id and a weight.
const CANDIDATE: u64 = 16;

/// What runs at a time. All prompts are alike, and all completions have the same length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// Prompts in one forward and backward pass.
    pub prompts: usize,
    /// Prompts whose completions are drawn together.
    pub generation_prompts: usize,
    /// Completions of each prompt: the group size.
    pub completions: usize,
    /// Tokens of a prompt beside those of its images.
    pub text_tokens: usize,
    /// Images of a prompt, in patches.
    pub images: Vec<Grid>,
    /// Tokens of each completion.
    pub completion_tokens: usize,
}

impl Workload {
    /// A prompt of these sizes, of token 1 and grey images: for measuring. A model of text alone gets no images.
    #[must_use]
    pub fn prompt(&self, config: &ModelConfig) -> Prompt {
        let (mut ids, mut images, mut spans) = (vec![1; self.text_tokens], Vec::new(), Vec::new());
        let seen = config.vision_config.as_ref().zip(config.image_token_id);
        for (&grid, (vision, token)) in self.images.iter().filter_map(|grid| Some((grid, seen?))) {
            let start = ids.len();
            ids.resize(start + grid.visual_tokens(vision.spatial_merge_size), token);
            let numbers = grid.patches() * pixels_of_patch(vision) as usize;
            images.push(ProcessedImage {
                pixel_values: vec![0.0; numbers].into(),
                grid,
                rgb: RgbImage::new(1, 1).into(),
            });
            spans.push(start..ids.len());
        }
        Prompt::new(ids, images, spans)
    }
}

/// How a model is trained: its adapters where there are some, else every component that is not frozen.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Trained<'a> {
    /// Components that stay as they are; they get no adapters either. All of them means no training at all.
    pub frozen: &'a [Component],
    /// Adapters of the decoder, and of the vision tower where it is not frozen.
    pub lora: Option<&'a LoraConfig>,
    /// See [`QwenVl::with_activation_checkpointing`].
    pub activation_checkpointing: bool,
}

/// What the model runs on. In float32 a CPU keeps less for the backward pass: it has fused operations of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hardware {
    /// The CPU backend, compiled in by the feature `flex`.
    Cpu,
    /// Every other device.
    Gpu,
}

/// Bytes that a model takes on one device: one micro-batch at a time, on one thread, with AdamW and no reference policy.
///
/// Not all of it is held at once: activations go as gradients come. [`Self::generation_peak`] and
/// [`Self::training_peak`] are what has to fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Number of parameters, those of adapters included.
    pub parameters: u64,
    /// Number of those that are trained.
    pub trained_parameters: u64,
    /// All weights.
    pub weights: u64,
    /// Copies of weights while completions are drawn: of those that have an adapter, with the adapter merged into them; and
    /// in another type than float32, of all whose type is converted.
    pub merged_weights: u64,
    /// One gradient for each trained parameter.
    pub gradients: u64,
    /// AdamW's two moments for each trained parameter.
    pub optimizer: u64,
    /// Keys and values of prompts and completions while completions are drawn.
    pub kv_cache: u64,
    /// What a frozen vision tower made of the images of the prompts that are drawn from together. It stays with them:
    /// all prompts of a step hold theirs to its end.
    pub visual_features: u64,
    /// What vision tower and decoder keep for the backward pass, composed weights of adapters included.
    pub activations: u64,
    /// What the distributions over the vocabulary take in the backward pass.
    pub logits: u64,
    generation_peak: u64,
    training_peak: u64,
}

impl MemoryPlan {
    /// The plan for a model of this configuration. Nothing of it is made.
    #[must_use]
    pub fn new(
        config: &ModelConfig,
        workload: &Workload,
        trained: Trained<'_>,
        hardware: Hardware,
        precision: Precision,
    ) -> Self {
        let model = QwenVl::without_weights(config, &Device::default());
        let fused_head = hardware == Hardware::Cpu;
        let fused = fused_head && precision.compute == FloatDType::F32;
        let [bytes, stored] = [precision.compute, precision.frozen].map(|dtype| DType::from(dtype).size() as u64);
        let (parameters, layers) = (parameters(&model), layers(&model));
        Counter { config, workload, trained, bytes, stored, fused, fused_head, parameters, layers }.plan()
    }

    /// The most that is held while completions are drawn. The optimizer's moments are: they stay where they are.
    #[must_use]
    pub fn generation_peak(&self) -> u64 {
        self.generation_peak
    }

    /// The most that is held in a forward and backward pass and the optimizer's step; 0 where nothing is trained.
    #[must_use]
    pub fn training_peak(&self) -> u64 {
        self.training_peak
    }
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<20}{:>14}", "parameters", self.parameters)?;
        writeln!(f, "{:<20}{:>14}", "trained", self.trained_parameters)?;
        for (name, bytes) in [
            ("weights", self.weights),
            ("merged weights", self.merged_weights),
            ("gradients", self.gradients),
            ("optimizer", self.optimizer),
            ("KV cache", self.kv_cache),
            ("visual features", self.visual_features),
            ("activations", self.activations),
            ("logits", self.logits),
            ("generation, peak", self.generation_peak),
            ("training, peak", self.training_peak),
        ] {
            writeln!(f, "{name:<20}{:>14}", human(bytes))?;
        }
        Ok(())
    }
}

/// `1.50 GiB`, or `12.3 MiB` below one GiB.
fn human(bytes: u64) -> String {
    let mebibytes = bytes as f64 / f64::from(1 << 20);
    if mebibytes < 1024.0 { format!("{mebibytes:.1} MiB") } else { format!("{:.2} GiB", mebibytes / 1024.0) }
}

struct Counter<'a> {
    config: &'a ModelConfig,
    workload: &'a Workload,
    trained: Trained<'a>,
    /// Of one value of the type that is computed in.
    bytes: u64,
    /// Of one value of a parameter that is not trained.
    stored: u64,
    /// Whether the operations of `fused` are those of the CPU.
    fused: bool,
    /// Whether that of the output head is, which is always in float32.
    fused_head: bool,
    parameters: Vec<Parameter>,
    /// Weights of the linear layers in the towers: those that can have an adapter.
    layers: Vec<Parameter>,
}

/// What one tower takes in a micro-batch.
#[derive(Default)]
struct Tape {
    /// Kept from the forward to the backward pass.
    kept: u64,
    /// Short-lived in the backward pass of one layer: of its MLP, and of the attention that follows.
    in_mlp: u64,
    in_attention: u64,
    /// Gradients of weights that wait for the end of the backward pass beside those that are done.
    waiting: u64,
}

impl Tape {
    fn transient(&self) -> u64 {
        self.in_mlp.max(self.in_attention)
    }

    /// The same with only the input of each layer kept, and the output of the last: what its attention and its MLP keep is
    /// there while the gradient goes through it, with the product of its output and the gradient of that.
    fn checkpointed(self, layers: u64, stream: u64, attention: u64, mlp: u64) -> Self {
        Self {
            kept: (layers + 1) * stream,
            in_mlp: attention + mlp + self.in_mlp.max(2 * stream),
            in_attention: attention + self.in_attention,
            waiting: self.waiting / layers.max(1),
        }
    }
}

/// `rows` rows of each of `batches` sequences through the decoder.
struct Pass {
    batches: u64,
    rows: u64,
}

/// Sizes of the decoder.
struct Sizes {
    hidden: u64,
    inner: u64,
    /// All query heads together.
    query: u64,
    /// All key heads together.
    key: u64,
    heads: u64,
    layers: u64,
    vocabulary: u64,
}

impl Counter<'_> {
    fn plan(&self) -> MemoryPlan {
        let adapters: u64 = self.adapted().map(|(layer, rank)| rank * layer.shape.iter().sum::<usize>() as u64).sum();
        let base = count(&self.parameters);
        let trained = adapters + Component::ALL.map(|component| self.trained_weights(component)).iter().sum::<u64>();
        let weights = SINGLE * trained + self.stored * (base + adapters - trained);
        let adapted = self.adapted().map(|(layer, _)| layer.count() as u64).sum::<u64>();
        let converted = [Component::Decoder, Component::Vision].map(|component| self.converted(component));
        let merged_weights = SINGLE * adapted + converted.iter().sum::<u64>() + self.converted_head();
        let (gradients, optimizer) = (SINGLE * trained, 2 * SINGLE * trained);
        let (vision, decoder) = (self.vision(), self.decoder());
        let (kv_cache, generation) = self.generation();
        let visual_features = self.visual_features(self.workload.generation_prompts);
        let if_training = |bytes| if trained == 0 { 0 } else { bytes };
        MemoryPlan {
            parameters: base + adapters,
            trained_parameters: trained,
            weights,
            merged_weights,
            gradients,
            optimizer,
            kv_cache,
            visual_features,
            activations: if_training(vision.kept + decoder.kept),
            logits: if_training(self.distributions_at_once() * self.distributions()),
            generation_peak: weights + optimizer + merged_weights + visual_features + generation,
            training_peak: if_training(
                weights
                    + optimizer
                    + self.visual_features(self.workload.prompts)
                    + self.step(gradients, &vision, &decoder),
            ),
        }
    }

    /// The most that a step holds beside weights and moments: activations go as gradients come, so the most is at the
    /// start or the end of one of the parts that the backward pass goes through.
    fn step(&self, gradients: u64, vision: &Tape, decoder: &Tape) -> u64 {
        let sizes = self.sizes();
        let distributions = self.distributions();
        let embeddings = SINGLE * self.trained_weights(Component::Embeddings);
        // One gradient of the output head or the embedding table.
        let table = if embeddings == 0 { 0 } else { SINGLE * sizes.vocabulary * sizes.hidden };
        // At the end the table's gradients as output head and as embeddings are added: two beside their sum.
        let added = if self.config.tie_word_embeddings { 2 } else { 0 };
        let of_towers = [Component::Vision, Component::Merger].map(|component| self.trained_weights(component));
        let of_vision = SINGLE * of_towers.iter().sum::<u64>();
        let kept = vision.kept + decoder.kept + self.converted_head();
        // Without an entropy bonus nothing consumes the graph of the entropy, which keeps the log-probabilities and the
        // probabilities of the whole vocabulary until the loss goes out of scope.
        // The fused operation computes logits again, in parts, and adds up the table's gradient.
        let entropy = if self.scored_in_parts() { 0 } else { 2 * distributions };
        [
            // Backward through the distributions.
            kept + self.distributions_at_once() * distributions,
            // The head's gradient out of that of the logits.
            kept + entropy + distributions + table,
            // First layer of the backward pass, last of the forward pass.
            kept + entropy + table + decoder.transient(),
            // Last layer of the decoder's backward pass.
            vision.kept + entropy + gradients - of_vision
                + decoder.waiting
                + decoder.transient().max(vision.transient()),
            // All gradients, and those that are still to be added.
            gradients + entropy + decoder.waiting + table * added,
            // AdamW's step with the policy before it still held: one by one a new weight takes the place of a
            // gradient, with both corrected moments beside it.
            gradients + self.largest_trained(),
            self.vision_forward(self.workload.prompts),
        ]
        .into_iter()
        .max()
        .unwrap_or(0)
    }

    /// One float32 for every vocabulary entry and completion token of a micro-batch, or as many tokens of it as are
    /// scored at a time.
    fn distributions(&self) -> u64 {
        let work = self.workload;
        let rows = work.prompts * work.completions * work.completion_tokens;
        let vocabulary = self.config.text_config.vocab_size;
        let rows = if self.scored_in_parts() { rows.min(fused::rows_scored_together(vocabulary)) } else { rows };
        SINGLE * (rows * vocabulary) as u64
    }

    /// Whether logits are there for a few tokens at a time.
    fn scored_in_parts(&self) -> bool {
        self.fused_head || self.trained.activation_checkpointing
    }

    /// Logits are computed again, a part at a time, and their gradient takes their place. Or shifted logits,
    /// log-probabilities and probabilities were kept, and two gradients of that size meet.
    fn distributions_at_once(&self) -> u64 {
        if self.fused_head { 1 } else { 5 }
    }

    /// What is kept of so many attention scores: the shifted score and its exponential in float32, and for the product
    /// with the values the probability. The fused operation computes them again.
    fn scores(&self, count: u64) -> u64 {
        if self.fused { 0 } else { (2 * SINGLE + self.bytes) * count }
    }

    /// What a pass holds of attention scores that are not kept, given all of them and the keys that a query sees: scores
    /// and probabilities, or two gradients as large; or those of a few queries, in the `backward` pass twice.
    fn scores_held(&self, count: u64, keys: u64, sharing: u64, backward: bool) -> u64 {
        if self.fused {
            let queries = fused::queries_together(sharing as usize, keys as usize) as u64;
            SINGLE * count.min(queries * sharing * keys) * (1 + u64::from(backward))
        } else {
            2 * SINGLE * count
        }
    }

    /// What SwiGLU keeps for every number of its hidden state: gate and up; without the fused operation also the gate's
    /// sigmoid and their product.
    fn swiglu(&self) -> u64 {
        self.bytes * if self.fused { 2 } else { 4 }
    }

    /// What runs through the decoder in a micro-batch: prompts, and completions.
    fn passes(&self) -> [Pass; 2] {
        let work = self.workload;
        let (prompts, completions) = (work.prompts as u64, (work.prompts * work.completions) as u64);
        // The last token of a completion predicts nothing and is not run.
        let own = work.completion_tokens.saturating_sub(1) as u64;
        [Pass { batches: prompts, rows: self.prompt_tokens() }, Pass { batches: completions, rows: own }]
    }

    fn decoder(&self) -> Tape {
        let Sizes { hidden, inner, query, key, heads, layers, .. } = self.sizes();
        let bytes = self.bytes;
        let linear = |name: &str| self.has_gradient(Component::Decoder, name);
        let any = |names: &[&str]| names.iter().any(|name| self.has_gradient(Component::Decoder, name));

        // Of one token in one layer.
        let norms = self.rms_norm(hidden, Component::Decoder, any(&["q_proj", "k_proj", "v_proj"]))
            + self.rms_norm(hidden, Component::Decoder, any(&["gate_proj", "up_proj"]))
            + if self.config.text_config.qk_norm { self.rms_norm(query + key, Component::Decoder, false) } else { 0 };
        // The scaled query, key and value of the two products, and the input of the output projection.
        let attention = bytes * (query + 2 * key + query * u64::from(linear("o_proj")));
        // With the input of the down projection.
        let mlp = inner * (self.swiglu() + bytes * u64::from(linear("down_proj")));
        let token = norms + attention + mlp;

        let [prompts, completions] = self.passes();
        let (prompt, own) = (prompts.rows, completions.rows);
        let prompt_scores = prompts.batches * heads * prompt.pow(2);
        let queries = completions.batches * heads * own;
        // Put together from small operations, completions keep their query a second time, row by row for the product
        // with the prompt's keys, and a copy of the probabilities for the product with its values.
        let copies = completions.batches * own * bytes * query + queries * prompt * bytes;
        let copies = if self.fused { 0 } else { copies };
        let completion_scores = queries * (prompt + own);
        let rows = prompts.batches * prompt + completions.batches * own;
        let scores = prompt_scores + completion_scores;
        let layer = rows * token + self.scores(scores) + copies;
        // Behind the last layer there are only those that predict a token.
        let predicting = completions.batches * self.workload.completion_tokens as u64;
        let last_norm = predicting * self.rms_norm(hidden, Component::Decoder, false);

        let weights = self.layers.iter().filter(|layer| layer.component == Component::Decoder);
        let sizes =
            || weights.clone().filter(|&layer| linear(last_name(layer))).map(|layer| bytes * layer.count() as u64);
        // Weights with an adapter are composed and kept for the gradient of their input. That of the weight belongs to a
        // shallow node of its own, which comes last in the backward pass.
        let composed =
            if self.trained.lora.is_some() { sizes().sum::<u64>() } else { self.converted(Component::Decoder) };
        let tape = Tape {
            kept: layers * layer + composed,
            // Two as large as the hidden states of the SwiGLU, or as a weight.
            in_mlp: (2 * bytes * inner * rows).max(sizes().max().unwrap_or(0)),
            in_attention: self.scores_held(scores, prompt + own, query / key, true),
            waiting: composed,
        };
        let tape = if self.trained.activation_checkpointing {
            let of_attention = layer - rows * mlp + composed / layers.max(1);
            tape.checkpointed(layers, bytes * hidden * rows, of_attention, rows * mlp)
        } else {
            tape
        };
        Tape { kept: tape.kept + last_norm, ..tape }
    }

    fn vision(&self) -> Tape {
        let Some(vision) = &self.config.vision_config else { return Tape::default() };
        let bytes = self.bytes;
        let (hidden, inner) = (vision.hidden_size as u64, vision.intermediate_size as u64);
        let linear = |name: &str| self.has_gradient(Component::Vision, name);
        let patches = self.patches(self.workload.prompts);
        let scores = self.vision_scores(vision, self.workload.prompts);
        let adapted = self.adapted().filter(|(layer, _)| layer.component == Component::Vision);
        let whole = self.is_trained(Component::Vision);
        let composed = bytes * adapted.map(|(layer, _)| layer.count() as u64).sum::<u64>();
        let composed = if whole { self.converted(Component::Vision) } else { composed };
        let blocks_trained = whole || composed > 0;

        let norm = |component, read_by_linear| match &vision.tower {
            Tower::Qwen2_5 { .. } => self.rms_norm(hidden, component, read_by_linear),
            Tower::Qwen3 { .. } if self.fused => bytes * hidden * (1 + u64::from(read_by_linear)),
            // LayerNorm computes in float32 and keeps the centred input and, for its scale, the normalised one.
            Tower::Qwen3 { .. } => {
                hidden * (SINGLE * (1 + u64::from(self.is_trained(component))) + bytes * u64::from(read_by_linear))
            }
        };
        let (mlp, mergers) = match &vision.tower {
            // As in the decoder.
            Tower::Qwen2_5 { .. } => (
                norm(Component::Vision, linear("gate_proj") || linear("up_proj"))
                    + inner * (self.swiglu() + bytes * u64::from(linear("down_proj"))),
                1,
            ),
            // GELU by tanh: its input, without the fused operation also that of tanh and one plus tanh; and the input of
            // the second layer.
            Tower::Qwen3 { deepstack_visual_indexes, .. } => (
                norm(Component::Vision, linear("linear_fc1"))
                    + bytes * inner * (if self.fused { 1 } else { 3 } + u64::from(linear("linear_fc2"))),
                1 + deepstack_visual_indexes.len() as u64,
            ),
        };
        // Query, key and value, and the input of the projection.
        let attention = norm(Component::Vision, linear("qkv")) + bytes * hidden * (3 + u64::from(linear("proj")));
        let mut tape = Tape::default();
        if blocks_trained {
            let pixels = pixels_of_patch(vision);
            let depth = vision.depth as u64;
            tape.kept = patches * depth * (attention + mlp) + self.scores(scores.iter().sum()) + composed;
            let most = scores.into_iter().max().unwrap_or(0);
            tape.in_attention = self.scores_held(most, self.patches(1), 1, true);
            tape.in_mlp = 2 * bytes * inner * patches;
            if self.trained.activation_checkpointing {
                let of_attention = patches * attention + self.scores(most) + composed / depth.max(1);
                tape = tape.checkpointed(depth, bytes * hidden * patches, of_attention, patches * mlp);
            }
            tape.kept += patches * bytes * pixels * u64::from(whole || self.trained.activation_checkpointing);
        }
        let merger_trained = self.is_trained(Component::Merger);
        if blocks_trained || merger_trained {
            // Normalised patches, the input of GELU, and that of the second layer.
            let merger = norm(Component::Merger, merger_trained) + bytes * hidden * (1 + u64::from(merger_trained));
            if blocks_trained && self.trained.activation_checkpointing {
                tape.in_mlp = tape.in_mlp.max(patches * merger);
            } else {
                tape.kept += mergers * patches * merger;
            }
        }
        tape
    }

    /// What the tower takes in a forward pass that keeps nothing: in its attention the stream, its projection to query,
    /// key and value and those three apart, with scores and probabilities; in its MLP the stream, its norm and three
    /// hidden states; or at its beginning the pixels and the stream.
    fn vision_forward(&self, prompts: usize) -> u64 {
        let Some(vision) = &self.config.vision_config else { return 0 };
        // A frozen tower sees one prompt after another.
        let prompts = if self.vision_is_frozen() { prompts.min(1) } else { prompts };
        let (hidden, inner) = (vision.hidden_size as u64, vision.intermediate_size as u64);
        let row = self.bytes * self.patches(prompts);
        let scores = self.vision_scores(vision, prompts).into_iter().max().unwrap_or(0);
        let held = self.scores_held(scores, self.patches(1), 1, false);
        (row * 7 * hidden + held).max(row * (2 * hidden + 3 * inner)).max(row * (pixels_of_patch(vision) + hidden))
    }

    /// What is kept with so many prompts if the tower is frozen: visual tokens, and those of deepstack.
    fn visual_features(&self, prompts: usize) -> u64 {
        let Some(vision) = self.config.vision_config.as_ref().filter(|_| self.vision_is_frozen()) else { return 0 };
        let mergers = match &vision.tower {
            Tower::Qwen2_5 { .. } => 1,
            Tower::Qwen3 { deepstack_visual_indexes, .. } => 1 + deepstack_visual_indexes.len(),
        };
        let tokens = prompts * (self.prompt_tokens() as usize - self.workload.text_tokens);
        self.bytes * (tokens * mergers) as u64 * self.sizes().hidden
    }

    /// The cache of keys and values, and the most that generation holds beside the weights, that cache included.
    fn generation(&self) -> (u64, u64) {
        let Sizes { hidden, inner, query, key, heads, layers, vocabulary } = self.sizes();
        let bytes = self.bytes;
        let prompts = self.workload.generation_prompts as u64;
        let completions = prompts * self.workload.completions as u64;
        let (prompt, own) = (self.prompt_tokens(), self.workload.completion_tokens as u64);
        let tokens = prompts * prompt;
        let cached = 2 * bytes * key * layers;
        let (of_prompts, kv_cache) = (cached * tokens, cached * (tokens + completions * own));
        // The last layer of the prompts, with queries and keys from before the rotary embedding held to its end. In its
        // attention: the stream, the query twice more, scores and probabilities; in its MLP: the stream, its norm and
        // three hidden states.
        let sharing = query / key;
        let scores = self.scores_held(prompts * heads * prompt.pow(2), prompt, sharing, false);
        let attention = bytes * tokens * (hidden + 3 * query + key) + scores;
        let mlp = bytes * tokens * (2 * hidden + query + key + 3 * inner);
        let prefill = of_prompts + attention.max(mlp);
        // One token of every completion: the prompts' hidden states stay, logits are there as they come, on the host,
        // and of the token before; a layer holds scores three times and three hidden states.
        let logits = 3 * SINGLE * completions * vocabulary + CANDIDATE * vocabulary;
        let scores = if self.fused { 2 * SINGLE } else { 3 * SINGLE } * heads * (prompt + own);
        let layer = completions * (scores + 3 * bytes * inner);
        let decode = kv_cache + bytes * tokens * hidden + logits + layer;
        let vision = self.vision_forward(self.workload.generation_prompts);
        (kv_cache, vision.max(prefill).max(decode))
    }

    /// What RMSNorm keeps of a row of `width` values: in float32 the input, and without the fused operation the normalised
    /// input for the gradient of the scale; and the output where a linear layer reads it whose weight has a gradient.
    fn rms_norm(&self, width: u64, component: Component, read_by_linear: bool) -> u64 {
        let normalised = !self.fused && self.is_trained(component);
        width * (SINGLE * (1 + u64::from(normalised)) + self.bytes * u64::from(read_by_linear))
    }

    /// Copies in another type than float32 of the weights of a component's linear layers that are kept in float32.
    fn converted(&self, component: Component) -> u64 {
        let in_single = |layer: &&Parameter| self.is_trained(component) || self.has_adapter(layer);
        let layers = self.layers.iter().filter(|layer| layer.component == component).filter(in_single);
        if self.bytes == SINGLE { 0 } else { self.bytes * count(layers) }
    }

    /// A copy in float32 of an output head that is kept in another type.
    fn converted_head(&self) -> u64 {
        let Sizes { vocabulary, hidden, .. } = self.sizes();
        if self.stored == SINGLE || self.is_trained(Component::Embeddings) { 0 } else { SINGLE * vocabulary * hidden }
    }

    /// Attention scores of each block of the tower, over all heads and images.
    fn vision_scores(&self, vision: &VisionConfig, prompts: usize) -> Vec<u64> {
        let mut total = vec![0; vision.depth];
        for &grid in &self.workload.images {
            for (total, scores) in total.iter_mut().zip(attention_scores(vision, grid)) {
                *total += (prompts * vision.num_heads * scores) as u64;
            }
        }
        total
    }

    fn patches(&self, prompts: usize) -> u64 {
        (prompts * self.workload.images.iter().map(|grid| grid.patches()).sum::<usize>()) as u64
    }

    fn prompt_tokens(&self) -> u64 {
        let merge = self.config.vision_config.as_ref().map_or(1, |vision| vision.spatial_merge_size);
        let visual: usize = self.workload.images.iter().map(|grid| grid.visual_tokens(merge)).sum();
        (self.workload.text_tokens + visual) as u64
    }

    fn sizes(&self) -> Sizes {
        let text = &self.config.text_config;
        Sizes {
            hidden: text.hidden_size as u64,
            inner: text.intermediate_size as u64,
            query: (text.num_attention_heads * text.head_dim) as u64,
            key: (text.num_key_value_heads * text.head_dim) as u64,
            heads: text.num_attention_heads as u64,
            layers: text.num_hidden_layers as u64,
            vocabulary: text.vocab_size as u64,
        }
    }

    /// Whether the component's weights themselves are trained.
    fn is_trained(&self, component: Component) -> bool {
        self.trained.lora.is_none() && !self.trained.frozen.contains(&component)
    }

    /// Whether nothing of the vision tower is trained, mergers included.
    fn vision_is_frozen(&self) -> bool {
        let whole = self.is_trained(Component::Vision) || self.is_trained(Component::Merger);
        !whole && self.adapted().all(|(layer, _)| layer.component != Component::Vision)
    }

    /// Whether the weight of a linear layer in one of the towers has a gradient, be it its own or its adapter's.
    fn has_gradient(&self, component: Component, name: &str) -> bool {
        let targeted = |lora: &LoraConfig| lora.target_modules.iter().any(|target| target == name);
        !self.trained.frozen.contains(&component) && self.trained.lora.is_none_or(targeted)
    }

    /// Layers that have an adapter, and its rank.
    fn adapted(&self) -> impl Iterator<Item = (&Parameter, u64)> {
        let rank = self.trained.lora.map(|lora| lora.rank as u64);
        let layers = self.layers.iter().filter(|layer| self.has_adapter(layer));
        layers.filter_map(move |layer| Some((layer, rank?)))
    }

    fn has_adapter(&self, layer: &Parameter) -> bool {
        self.trained.lora.is_some() && self.has_gradient(layer.component, last_name(layer))
    }

    /// Number of the component's own weights that are trained.
    fn trained_weights(&self, component: Component) -> u64 {
        let trained = self.is_trained(component);
        count(self.parameters.iter().filter(|parameter| trained && parameter.component == component))
    }

    fn largest_trained(&self) -> u64 {
        let whole = self.parameters.iter().filter(|parameter| self.is_trained(parameter.component));
        let factor = |(layer, rank): (&Parameter, u64)| rank * layer.shape.iter().copied().max().unwrap_or(0) as u64;
        let counts = whole.map(|parameter| parameter.count() as u64).chain(self.adapted().map(factor));
        SINGLE * counts.max().unwrap_or(0)
    }
}

/// Numbers of a patch.
fn pixels_of_patch(vision: &VisionConfig) -> u64 {
    (vision.in_channels * vision.temporal_patch_size * vision.patch_size.pow(2)) as u64
}

fn count<'a>(parameters: impl IntoIterator<Item = &'a Parameter>) -> u64 {
    parameters.into_iter().map(|parameter| parameter.count() as u64).sum()
}
