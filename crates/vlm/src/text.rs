//! The decoder: grouped-query attention with multimodal rotary positions, SwiGLU, RMSNorm.
//!
//! A prompt runs through it once ([`TextModel::prompt`]), however many completions it has: completions
//! ([`TextModel::complete`]) attend to the prompt's keys and values, which are stored once a prompt, and to their own.
//! Scoring and decoding are the same code; gradients flow through both passes. This is the attention of one long
//! sequence per completion, computed without repeating the prompt.
//!
//! Field names are those of the published weights.

use std::sync::Arc;

use burn::module::Module;
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig, RmsNorm, RmsNormConfig};
use burn::tensor::{Device, Tensor};

use crate::config::TextConfig;
use crate::fused::{Attended, attend, rms_norm, swiglu};
use crate::probe::{Tap, indices};
use crate::rope::{MultimodalRope, Position, Rotary};

/// The decoder without its output head.
#[derive(Module, Debug)]
pub(crate) struct TextModel {
    pub(crate) embed_tokens: Embedding,
    layers: Vec<DecoderLayer>,
    norm: RmsNorm,
    #[module(skip)]
    rope: MultimodalRope,
}

#[derive(Module, Debug)]
struct DecoderLayer {
    input_layernorm: RmsNorm,
    self_attn: Attention,
    post_attention_layernorm: RmsNorm,
    mlp: Mlp,
}

#[derive(Module, Debug)]
struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    q_norm: Option<RmsNorm>,
    k_norm: Option<RmsNorm>,
    #[module(skip)]
    heads: Heads,
}

/// How queries share keys.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heads {
    pub(crate) query: usize,
    pub(crate) key: usize,
    pub(crate) dim: usize,
}

impl Heads {
    /// Query heads that share a key head.
    pub(crate) fn sharing(self) -> usize {
        self.query / self.key
    }
}

#[derive(Module, Debug)]
#[allow(clippy::struct_field_names, reason = "the published names")]
struct Mlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
}

/// Keys and values of one layer.
#[derive(Debug, Clone)]
pub(crate) struct KeyValue<const D: usize> {
    pub(crate) key: Tensor<D>,
    pub(crate) value: Tensor<D>,
}

/// Prompts that have run through the decoder.
#[derive(Debug, Clone)]
pub(crate) struct PromptStates {
    /// Final hidden states, normalised: `[prompts, tokens, hidden_size]`. Rows are right-padded; padding holds
    /// finite numbers without meaning.
    pub(crate) hidden: Tensor<3>,
    /// Per layer, `[prompts, key heads, tokens, head_dim]`.
    pub(crate) layers: Vec<KeyValue<4>>,
    /// Keys of the last layer before the rotary embedding, same shape; kept on request.
    pub(crate) last_key_before_rope: Option<Tensor<4>>,
    /// Tokens of every prompt.
    pub(crate) lengths: Arc<[usize]>,
}

/// Keys and values that completions have produced so far, in preallocated tensors: decoding appends to them.
pub(crate) struct CompletionCache {
    /// Per layer, `[prompts, key heads, completions, capacity, head_dim]`.
    layers: Vec<KeyValue<5>>,
    length: usize,
}

impl TextModel {
    pub(crate) fn new(config: &TextConfig, device: &Device) -> Self {
        Self {
            embed_tokens: EmbeddingConfig::new(config.vocab_size, config.hidden_size).init(device),
            layers: (0..config.num_hidden_layers).map(|_| DecoderLayer::new(config, device)).collect(),
            norm: norm(config.hidden_size, config, device),
            rope: MultimodalRope::new(config),
        }
    }

    /// Runs prompts.
    ///
    /// `embeddings` is `[prompts, tokens, hidden_size]`, right-padded to the longest of `lengths`; `positions` are
    /// given row by row for the padded rows; `deepstack[i]` is added after layer `i`.
    pub(crate) fn prompt(
        &self,
        embeddings: Tensor<3>,
        lengths: &[usize],
        positions: &[Position],
        deepstack: Vec<Tensor<3>>,
        keep_key_before_rope: bool,
    ) -> PromptStates {
        let [prompts, tokens, _] = embeddings.dims();
        let device = embeddings.device();
        let rotary = self.rope.tables(positions, prompts, &device);
        let lengths: Arc<[usize]> = lengths.into();
        // Padding comes after every real token, so that it is hidden from them without more.
        let attended = Attended::new(&embeddings, Arc::clone(&lengths), 0, Some(tokens), tokens, self.heads().dim);
        let mut deepstack = deepstack.into_iter();
        let mut layers = Vec::with_capacity(self.layers.len());
        let mut last_key_before_rope = None;
        let mut x = embeddings;
        for (index, layer) in self.layers.iter().enumerate() {
            let projected = layer.project(x.clone(), &rotary);
            let attended = layer.self_attn.attend_self(projected.query_after_rope, &projected.key_value, &attended);
            x = layer.finish(x, attended);
            if let Some(features) = deepstack.next() {
                x = x + features;
            }
            if keep_key_before_rope && index + 1 == self.layers.len() {
                last_key_before_rope = Some(projected.key_before_rope);
            }
            layers.push(projected.key_value);
        }
        PromptStates { hidden: rms_norm(&self.norm, x), layers, last_key_before_rope, lengths }
    }

    /// Runs completion tokens behind their prompts and returns the final hidden states, normalised, same shape.
    ///
    /// `embeddings` is `[prompts, completions, tokens, hidden_size]`, `positions` the first token's position of every
    /// prompt's completions. With a cache, the tokens continue those in it and are appended; without, they are the
    /// whole completions. `tap` takes its states.
    pub(crate) fn complete(
        &self,
        prompt: &PromptStates,
        embeddings: Tensor<4>,
        positions: &[u32],
        mut cache: Option<&mut CompletionCache>,
        mut tap: Option<&mut Tap>,
    ) -> Tensor<4> {
        let shape = embeddings.dims();
        let [prompts, completions, tokens, hidden] = shape;
        let pass = self.completing(prompt, &embeddings, positions, cache.as_deref());
        let mut x = embeddings.reshape([prompts * completions, tokens, hidden]);
        for (index, layer) in self.layers.iter().enumerate() {
            let projected = layer.project(x.clone(), &pass.rotary);
            if let Some(tap) = tap.as_deref_mut().filter(|_| index + 1 == self.layers.len()) {
                tap.take(&projected);
            }
            x = pass.finish(index, layer, x, projected, cache.as_deref_mut());
        }
        if let Some(cache) = cache {
            cache.length += tokens;
        }
        rms_norm(&self.norm, x).reshape(shape)
    }

    /// Only what `tap` takes of the completions that [`Self::complete`] would run.
    pub(crate) fn only_tap(
        &self,
        prompt: &PromptStates,
        embeddings: Tensor<4>,
        positions: &[u32],
        cache: &mut CompletionCache,
        tap: &mut Tap,
    ) {
        let [prompts, completions, tokens, hidden] = embeddings.dims();
        let pass = self.completing(prompt, &embeddings, positions, Some(cache));
        let mut x = embeddings.reshape([prompts * completions, tokens, hidden]);
        let Some((last, layers)) = self.layers.split_last() else { return };
        for (index, layer) in layers.iter().enumerate() {
            let projected = layer.project(x.clone(), &pass.rotary);
            x = pass.finish(index, layer, x, projected, Some(cache));
        }
        tap.take(&last.project(x, &pass.rotary));
    }

    fn completing<'a>(
        &self,
        prompt: &'a PromptStates,
        embeddings: &Tensor<4>,
        positions: &[u32],
        cache: Option<&CompletionCache>,
    ) -> Completing<'a> {
        let [prompts, completions, tokens, _] = embeddings.dims();
        let device = embeddings.device();
        let start = cache.map_or(0, |cache| cache.length);
        let positions: Vec<Position> =
            positions.iter().flat_map(|&first| (0..tokens as u32).map(move |i| [first + i; 3])).collect();
        let rotary = self.rope.tables(&positions, prompts, &device);
        let prompt_tokens = prompt.hidden.dims()[1];
        let lengths = Arc::clone(&prompt.lengths);
        let attended =
            Attended::new(embeddings, lengths, prompt_tokens, Some(tokens), start + tokens, self.heads().dim);
        Completing { prompt, prompts, completions, start, rotary, attended }
    }

    /// How many heads its layers have.
    pub(crate) fn heads(&self) -> Heads {
        self.layers.first().map_or(Heads { query: 1, key: 1, dim: 1 }, |layer| layer.self_attn.heads)
    }
}

/// Completions on their way through the layers.
struct Completing<'a> {
    prompt: &'a PromptStates,
    prompts: usize,
    completions: usize,
    /// Tokens in the cache before these.
    start: usize,
    rotary: Rotary,
    attended: Attended,
}

impl Completing<'_> {
    /// What follows the projections of a layer.
    fn finish(
        &self,
        index: usize,
        layer: &DecoderLayer,
        x: Tensor<3>,
        projected: Projected,
        cache: Option<&mut CompletionCache>,
    ) -> Tensor<3> {
        let &Self { prompts, completions, .. } = self;
        let heads = layer.self_attn.heads;
        let per_prompt = |t: Tensor<4>| {
            let [_, heads, tokens, dim] = t.dims();
            t.reshape([prompts, completions, heads, tokens, dim]).swap_dims(1, 2)
        };
        let KeyValue { key, value } = projected.key_value;
        let mut own = KeyValue { key: per_prompt(key), value: per_prompt(value) };
        if let Some(cache) = cache {
            own = cache.append(index, own, self.start);
        }
        // [prompts x completions, query heads, tokens, dim]: the query heads of a key head lie side by side.
        let query = projected.query_after_rope;
        let tokens = query.dims()[2];
        let query =
            query.reshape([prompts, completions, heads.key, heads.sharing() * tokens, heads.dim]).swap_dims(1, 2);
        let prompt = self.prompt.layers[index].clone();
        let attended = attend(query, [prompt.key, prompt.value], [own.key, own.value], &self.attended);
        let attended = attended
            .reshape([prompts, heads.key, completions, heads.sharing(), tokens * heads.dim])
            .permute([0, 2, 1, 3, 4])
            .reshape([prompts * completions, heads.query, tokens, heads.dim])
            .swap_dims(1, 2)
            .reshape([prompts * completions, tokens, heads.query * heads.dim]);
        layer.finish(x, attended)
    }
}

impl PromptStates {
    /// What [`TextModel::only_tap`] reads of some prompts, all layers but the last; of the others, a layer goes before
    /// the next is copied.
    pub(crate) fn select(mut self, prompts: &[usize]) -> Self {
        self.layers.pop();
        let lengths = prompts.iter().map(|&prompt| self.lengths[prompt]).collect();
        let prompts = indices(prompts, &self.hidden.device());
        let select = |t: Tensor<4>| t.select(0, prompts.clone());
        Self {
            hidden: self.hidden.select(0, prompts.clone()),
            layers: self
                .layers
                .into_iter()
                .map(|layer| KeyValue { key: select(layer.key), value: select(layer.value) })
                .collect(),
            last_key_before_rope: self.last_key_before_rope.map(select),
            lengths,
        }
    }
}

impl CompletionCache {
    /// Room for `capacity` tokens of `completions` completions for every prompt.
    pub(crate) fn new(prompt: &PromptStates, completions: usize, capacity: usize) -> Self {
        let layers = prompt
            .layers
            .iter()
            .map(|layer| {
                let [prompts, heads, _, dim] = layer.key.dims();
                let options = (&layer.key.device(), layer.key.dtype());
                let empty = || Tensor::zeros([prompts, heads, completions, capacity, dim], options);
                KeyValue { key: empty(), value: empty() }
            })
            .collect();
        Self { layers, length: 0 }
    }

    /// The same of the completions of some prompts.
    pub(crate) fn select(mut self, prompts: &[usize]) -> Self {
        self.layers.pop();
        let Some(prompts) = self.layers.first().map(|layer| indices(prompts, &layer.key.device())) else { return self };
        let select = |t: Tensor<5>| t.select(0, prompts.clone());
        let layers = self.layers.into_iter();
        let layers = layers.map(|layer| KeyValue { key: select(layer.key), value: select(layer.value) });
        Self { layers: layers.collect(), length: self.length }
    }

    /// Writes one layer's new keys and values at `start` and returns everything up to and with them.
    fn append(&mut self, layer: usize, new: KeyValue<5>, start: usize) -> KeyValue<5> {
        let [prompts, heads, completions, tokens, dim] = new.key.dims();
        let range = [0..prompts, 0..heads, 0..completions, start..start + tokens, 0..dim];
        let slot = &mut self.layers[layer];
        slot.key.inplace(|key| key.slice_assign(range.clone(), new.key));
        slot.value.inplace(|value| value.slice_assign(range, new.value));
        let filled = |t: &Tensor<5>| t.clone().narrow(3, 0, start + tokens);
        KeyValue { key: filled(&slot.key), value: filled(&slot.value) }
    }
}

/// What attention computes from the residual stream.
pub(crate) struct Projected {
    /// `[rows, query heads, tokens, head_dim]`.
    pub(crate) query_before_rope: Tensor<4>,
    pub(crate) query_after_rope: Tensor<4>,
    /// `[rows, key heads, tokens, head_dim]`.
    pub(crate) key_before_rope: Tensor<4>,
    pub(crate) key_value: KeyValue<4>,
}

impl DecoderLayer {
    fn new(config: &TextConfig, device: &Device) -> Self {
        let linear = |input, output| LinearConfig::new(input, output).with_bias(false).init(device);
        let qkv = |heads| {
            LinearConfig::new(config.hidden_size, heads * config.head_dim).with_bias(config.qkv_bias).init(device)
        };
        let qk_norm = || config.qk_norm.then(|| norm(config.head_dim, config, device));
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let heads = Heads { query: config.num_attention_heads, key: config.num_key_value_heads, dim: config.head_dim };
        Self {
            input_layernorm: norm(hidden, config, device),
            self_attn: Attention {
                q_proj: qkv(heads.query),
                k_proj: qkv(heads.key),
                v_proj: qkv(heads.key),
                o_proj: linear(heads.query * heads.dim, hidden),
                q_norm: qk_norm(),
                k_norm: qk_norm(),
                heads,
            },
            post_attention_layernorm: norm(hidden, config, device),
            mlp: Mlp {
                gate_proj: linear(hidden, inner),
                up_proj: linear(hidden, inner),
                down_proj: linear(inner, hidden),
            },
        }
    }

    /// Queries, keys and values of the residual stream.
    fn project(&self, x: Tensor<3>, rotary: &Rotary) -> Projected {
        self.self_attn.project(rms_norm(&self.input_layernorm, x), rotary)
    }

    /// What follows attention: the residual and the feed-forward half. `attended` is in heads, `x` in the stream.
    fn finish(&self, x: Tensor<3>, attended: Tensor<3>) -> Tensor<3> {
        let x = x + self.self_attn.o_proj.forward(attended);
        let y = rms_norm(&self.post_attention_layernorm, x.clone());
        let y = swiglu(self.mlp.gate_proj.forward(y.clone()), self.mlp.up_proj.forward(y));
        x + self.mlp.down_proj.forward(y)
    }
}

impl Attention {
    fn project(&self, x: Tensor<3>, rotary: &Rotary) -> Projected {
        let [rows, tokens, _] = x.dims();
        let heads = |t: Tensor<3>, count| t.reshape([rows, tokens, count, self.heads.dim]);
        let normed = |norm: &Option<RmsNorm>, x: Tensor<4>| match norm {
            Some(norm) => rms_norm(norm, x),
            None => x,
        };
        let query = normed(&self.q_norm, heads(self.q_proj.forward(x.clone()), self.heads.query));
        let key = normed(&self.k_norm, heads(self.k_proj.forward(x.clone()), self.heads.key));
        let value = heads(self.v_proj.forward(x), self.heads.key);
        Projected {
            query_after_rope: rotary.apply(query.clone()),
            query_before_rope: query.swap_dims(1, 2),
            key_value: KeyValue { key: rotary.apply(key.clone()), value: value.swap_dims(1, 2) },
            key_before_rope: key.swap_dims(1, 2),
        }
    }

    /// Causal attention of rows to themselves; returns `[rows, tokens, query heads x head_dim]`.
    fn attend_self(&self, query: Tensor<4>, own: &KeyValue<4>, attended: &Attended) -> Tensor<3> {
        let Heads { query: query_heads, key: key_heads, dim } = self.heads;
        let [rows, _, tokens, _] = query.dims();
        // The query heads of one key head become further rows of one matrix product.
        let query = query.reshape([rows, key_heads, 1, query_heads / key_heads * tokens, dim]);
        let nothing = || Tensor::zeros([rows, key_heads, 0, dim], (&query.device(), query.dtype()));
        let own = [&own.key, &own.value].map(|own| own.clone().unsqueeze_dim::<5>(2));
        attend(query.clone(), [nothing(), nothing()], own, attended)
            .reshape([rows, query_heads, tokens, dim])
            .swap_dims(1, 2)
            .reshape([rows, tokens, query_heads * dim])
    }
}

fn norm(width: usize, config: &TextConfig, device: &Device) -> RmsNorm {
    RmsNormConfig::new(width).with_epsilon(config.rms_norm_eps).init(device)
}
