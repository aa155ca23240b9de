//! The decoder: grouped-query attention with multimodal rotary positions, SwiGLU, RMSNorm.
//!
//! A prompt runs through it once ([`TextModel::prompt`]), however many completions it has: completions
//! ([`TextModel::complete`]) attend to the prompt's keys and values, which are stored once a prompt, and to their own.
//! Scoring and decoding are the same code; gradients flow through both passes. This is the attention of one long
//! sequence per completion, computed without repeating the prompt.
//!
//! Tokens lie one after another, prompt by prompt and completion by completion, each as long as it is: nothing is padded.
//!
//! Field names are those of the published weights.

use std::ops::Range;

use burn::module::Module;
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig, RmsNorm, RmsNormConfig};
use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::config::TextConfig;
use crate::fused::{Attended, Span, attend, linear, rms_norm, swiglu};
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

/// Keys and values of one layer, `[tokens, key heads, head_dim]`.
#[derive(Debug, Clone)]
pub(crate) struct KeyValue {
    pub(crate) key: Tensor<3>,
    pub(crate) value: Tensor<3>,
}

/// Prompts that have run through the decoder.
#[derive(Debug, Clone)]
pub(crate) struct PromptStates {
    /// Final hidden states, normalised: `[tokens, hidden_size]`.
    pub(crate) hidden: Tensor<2>,
    pub(crate) layers: Vec<KeyValue>,
    /// Keys of the last layer before the rotary embedding; kept on request.
    pub(crate) last_key_before_rope: Option<Tensor<3>>,
    /// Where the tokens of each prompt lie.
    pub(crate) rows: Vec<Range<usize>>,
    /// Rows of padding that were computed beside them.
    pub(crate) padding: usize,
}

/// Tokens of a completion that run through the decoder together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NewTokens {
    /// Number of its prompt. Completions of a prompt follow each other.
    pub(crate) prompt: usize,
    /// Position of the completion's first token.
    pub(crate) position: u32,
    pub(crate) count: usize,
}

/// Keys and values that completions have produced so far, in preallocated tensors: decoding appends to them. All
/// completions in it have the same length.
pub(crate) struct CompletionCache {
    /// Per layer, `[completions, capacity, key heads, head_dim]`.
    layers: Vec<[Tensor<4>; 2]>,
    capacity: usize,
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

    /// Embeddings of tokens: `[tokens, hidden_size]`.
    pub(crate) fn embed(&self, ids: impl IntoIterator<Item = u32>, device: &Device) -> Tensor<2> {
        let ids: Vec<i64> = ids.into_iter().map(i64::from).collect();
        let count = ids.len();
        let ids = Tensor::<2, Int>::from_data(TensorData::new(ids, [1, count]), device);
        self.embed_tokens.forward(ids).squeeze_dim(0)
    }

    /// Runs prompts.
    ///
    /// `embeddings` is `[tokens, hidden_size]`, those of all prompts one after another, and `positions` has as many;
    /// `deepstack[i]` is added after layer `i`.
    pub(crate) fn prompt(
        &self,
        embeddings: Tensor<2>,
        lengths: &[usize],
        positions: &[Position],
        deepstack: Vec<Tensor<2>>,
        keep_key_before_rope: bool,
    ) -> PromptStates {
        let rotary = self.rope.tables(positions, &embeddings.device());
        let rows = ranges(lengths.iter().copied());
        let span = |rows: &Range<usize>| Span { queries: rows.clone(), own: rows.clone(), prompt: 0..0 };
        let spans: Vec<Span> = rows.iter().map(span).collect();
        let attended = Attended::new(&embeddings, &spans, true, self.heads().sharing(), self.heads().dim);
        let mut deepstack = deepstack.into_iter();
        let mut layers = Vec::with_capacity(self.layers.len());
        let mut last_key_before_rope = None;
        let mut x = embeddings;
        for (index, layer) in self.layers.iter().enumerate() {
            let Projected { query_after_rope, key_value, key_before_rope, .. } = layer.project(x.clone(), &rotary);
            let own = [key_value.key.clone(), key_value.value.clone()];
            let mixed = attend(query_after_rope, None, own, &attended);
            x = layer.finish(x, mixed);
            if let Some(features) = deepstack.next() {
                x = x + features;
            }
            if keep_key_before_rope && index + 1 == self.layers.len() {
                last_key_before_rope = Some(key_before_rope);
            }
            layers.push(key_value);
        }
        let hidden = rms_norm(&self.norm, x);
        PromptStates { hidden, layers, last_key_before_rope, rows, padding: attended.padding() }
    }

    /// Runs completion tokens behind their prompts and returns the final hidden states, normalised, same shape, and how
    /// many rows of padding there were beside them.
    ///
    /// `embeddings` is `[tokens, hidden_size]`, those of all completions one after another. With a cache, the tokens
    /// continue those in it and are appended; without, they are the whole completions. `tap` takes its states.
    pub(crate) fn complete(
        &self,
        prompt: &PromptStates,
        embeddings: Tensor<2>,
        completions: &[NewTokens],
        mut cache: Option<&mut CompletionCache>,
        mut tap: Option<&mut Tap>,
    ) -> (Tensor<2>, usize) {
        let pass = self.completing(prompt, &embeddings, completions, cache.as_deref());
        let mut x = embeddings;
        for (index, layer) in self.layers.iter().enumerate() {
            let projected = layer.project(x.clone(), &pass.rotary);
            if let Some(tap) = tap.as_deref_mut().filter(|_| index + 1 == self.layers.len()) {
                tap.take(&projected);
            }
            x = pass.finish(index, layer, x, projected, cache.as_deref_mut());
        }
        if let Some(cache) = cache {
            cache.length += pass.new_tokens;
        }
        (rms_norm(&self.norm, x), pass.attended.padding())
    }

    /// Only what `tap` takes of the completions that [`Self::complete`] would run.
    pub(crate) fn only_tap(
        &self,
        prompt: &PromptStates,
        embeddings: Tensor<2>,
        completions: &[NewTokens],
        cache: &mut CompletionCache,
        tap: &mut Tap,
    ) {
        let pass = self.completing(prompt, &embeddings, completions, Some(cache));
        let mut x = embeddings;
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
        embeddings: &Tensor<2>,
        completions: &[NewTokens],
        cache: Option<&CompletionCache>,
    ) -> Completing<'a> {
        let start = cache.map_or(0, |cache| cache.length);
        let of_completion = |new: &NewTokens| {
            let first = new.position + start as u32;
            (first..first + new.count as u32).map(|position| [position; 3])
        };
        let positions: Vec<Position> = completions.iter().flat_map(of_completion).collect();
        let rotary = self.rope.tables(&positions, &embeddings.device());
        let queries = ranges(completions.iter().map(|new| new.count));
        let span = |(index, (new, queries)): (usize, (&NewTokens, Range<usize>))| {
            let own = match cache {
                Some(cache) => index * cache.capacity..index * cache.capacity + start + new.count,
                None => queries.clone(),
            };
            Span { queries, own, prompt: prompt.rows[new.prompt].clone() }
        };
        let spans: Vec<Span> = completions.iter().zip(queries).enumerate().map(span).collect();
        let attended = Attended::new(embeddings, &spans, true, self.heads().sharing(), self.heads().dim);
        Completing { prompt, start, new_tokens: completions.first().map_or(0, |new| new.count), rotary, attended }
    }

    /// How many heads its layers have.
    pub(crate) fn heads(&self) -> Heads {
        self.layers.first().map_or(Heads { query: 1, key: 1, dim: 1 }, |layer| layer.self_attn.heads)
    }
}

/// What lies one after another.
pub(crate) fn ranges(lengths: impl IntoIterator<Item = usize>) -> Vec<Range<usize>> {
    let mut end = 0;
    let range = |length| {
        end += length;
        end - length..end
    };
    lengths.into_iter().map(range).collect()
}

/// Completions on their way through the layers.
struct Completing<'a> {
    prompt: &'a PromptStates,
    /// Tokens in the cache before these.
    start: usize,
    /// Of every completion, with a cache.
    new_tokens: usize,
    rotary: Rotary,
    attended: Attended,
}

impl Completing<'_> {
    /// What follows the projections of a layer.
    fn finish(
        &self,
        index: usize,
        layer: &DecoderLayer,
        x: Tensor<2>,
        projected: Projected,
        cache: Option<&mut CompletionCache>,
    ) -> Tensor<2> {
        let own = match cache {
            Some(cache) => cache.append(index, projected.key_value, self.start, self.new_tokens),
            None => [projected.key_value.key, projected.key_value.value],
        };
        let KeyValue { key, value } = self.prompt.layers[index].clone();
        layer.finish(x, attend(projected.query_after_rope, Some([key, value]), own, &self.attended))
    }
}

impl CompletionCache {
    /// Room for `capacity` tokens of each of `completions` completions.
    pub(crate) fn new(prompt: &PromptStates, completions: usize, capacity: usize) -> Self {
        let empty = |layer: &KeyValue| {
            let [_, heads, dim] = layer.key.dims();
            let options = (&layer.key.device(), layer.key.dtype());
            [(); 2].map(|()| Tensor::zeros([completions, capacity, heads, dim], options))
        };
        Self { layers: prompt.layers.iter().map(empty).collect(), capacity, length: 0 }
    }

    /// Keeps some of the completions, in this order.
    pub(crate) fn keep(&mut self, completions: &[usize]) {
        let Some([key, _]) = self.layers.first() else { return };
        let rows = indices(completions, &key.device());
        for tensor in self.layers.iter_mut().flatten() {
            tensor.inplace(|tensor| tensor.select(0, rows.clone()));
        }
    }

    /// Writes one layer's new keys and values at `start`, and returns all, room included:
    /// `[completions x capacity, key heads, head_dim]`.
    fn append(&mut self, layer: usize, new: KeyValue, start: usize, tokens: usize) -> [Tensor<3>; 2] {
        let [rows, heads, dim] = new.key.dims();
        let range = [0..rows / tokens, start..start + tokens, 0..heads, 0..dim];
        for (slot, new) in self.layers[layer].iter_mut().zip([new.key, new.value]) {
            let new = new.reshape([rows / tokens, tokens, heads, dim]);
            slot.inplace(|slot| slot.slice_assign(range.clone(), new));
        }
        self.layers[layer].clone().map(|slot| slot.flatten(0, 1))
    }
}

/// What attention computes from the residual stream.
pub(crate) struct Projected {
    /// `[tokens, query heads, head_dim]`.
    pub(crate) query_before_rope: Tensor<3>,
    pub(crate) query_after_rope: Tensor<3>,
    /// `[tokens, key heads, head_dim]`.
    pub(crate) key_before_rope: Tensor<3>,
    pub(crate) key_value: KeyValue,
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
    fn project(&self, x: Tensor<2>, rotary: &Rotary) -> Projected {
        self.self_attn.project(rms_norm(&self.input_layernorm, x), rotary)
    }

    /// What follows attention: the residual and the feed-forward half. `mixed` is in heads, `x` in the stream.
    fn finish(&self, x: Tensor<2>, mixed: Tensor<3>) -> Tensor<2> {
        let x = x + linear(&self.self_attn.o_proj, mixed.flatten(1, 2));
        let y = rms_norm(&self.post_attention_layernorm, x.clone());
        let y = swiglu(linear(&self.mlp.gate_proj, y.clone()), linear(&self.mlp.up_proj, y));
        x + linear(&self.mlp.down_proj, y)
    }
}

impl Attention {
    fn project(&self, x: Tensor<2>, rotary: &Rotary) -> Projected {
        let [tokens, _] = x.dims();
        let heads = |t: Tensor<2>, count| t.reshape([tokens, count, self.heads.dim]);
        let normed = |norm: &Option<RmsNorm>, x: Tensor<3>| match norm {
            Some(norm) => rms_norm(norm, x),
            None => x,
        };
        let query = normed(&self.q_norm, heads(linear(&self.q_proj, x.clone()), self.heads.query));
        let key = normed(&self.k_norm, heads(linear(&self.k_proj, x.clone()), self.heads.key));
        let value = heads(linear(&self.v_proj, x), self.heads.key);
        Projected {
            query_after_rope: rotary.apply(query.clone()),
            query_before_rope: query,
            key_value: KeyValue { key: rotary.apply(key.clone()), value },
            key_before_rope: key,
        }
    }
}

fn norm(width: usize, config: &TextConfig, device: &Device) -> RmsNorm {
    RmsNormConfig::new(width).with_epsilon(config.rms_norm_eps).init(device)
}
