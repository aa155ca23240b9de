//! The decoder: grouped-query attention with multimodal rotary positions, SwiGLU, RMSNorm.
//!
//! A prompt runs through it once, however many completions it has: these attend to the prompt's keys and values and to
//! their own. It is the attention of one long sequence per completion, computed without repeating the prompt. Scoring
//! runs prompts and completions side by side ([`TextModel::layer`]); drawing runs the prompts ([`TextModel::prompt`]), and
//! then a token of each completion at a time ([`TextModel::decode`]).
//!
//! Tokens lie one after another, prompt by prompt and completion by completion, each as long as it is: nothing is padded.
//!
//! Field names are those of the published weights.

use std::ops::Range;

use burn::module::Module;
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig, RmsNorm, RmsNormConfig};
use burn::tensor::{DType, Device, IndexingUpdateOp, Int, Tensor, TensorData};

use crate::config::TextConfig;
use crate::fused::{Attended, Span, attend, linear, rms_norm, swiglu};
use crate::probe::{AttentionPoint, Tap, indices};
use crate::rope::{MultimodalRope, Position, Rotary};
use crate::sequence::Sequence;
use crate::vision::VisionFeatures;

/// The decoder without its output head.
#[derive(Module, Debug)]
pub(crate) struct TextModel {
    pub(crate) embed_tokens: Embedding,
    layers: Vec<DecoderLayer>,
    norm: RmsNorm,
    #[module(skip)]
    rope: MultimodalRope,
    /// Of the residual stream.
    #[module(skip)]
    pub(crate) dtype: DType,
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
    /// Keys of the last layer, where a probe wants them.
    pub(crate) last_key: Option<Tensor<3>>,
    /// Where the tokens of each prompt lie.
    pub(crate) rows: Vec<Range<usize>>,
}

/// The token of a completion that runs through the decoder next.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NewToken {
    /// Number of its prompt. Completions of a prompt follow each other.
    pub(crate) prompt: usize,
    /// Position of the completion's first token.
    pub(crate) position: u32,
}

/// Keys and values that completions have produced so far, in preallocated tensors: decoding appends to them. All
/// completions in it have the same length.
pub(crate) struct CompletionCache {
    /// Per layer, `[completions, capacity, key heads, head_dim]`.
    layers: Vec<[Tensor<4>; 2]>,
    capacity: usize,
    length: usize,
}

/// What the layers go by when a sequence runs through them.
#[derive(Debug)]
pub(crate) struct Pass {
    rotary: Rotary,
    attended: Attended,
    /// Rows of visual tokens.
    visual: Tensor<1, Int>,
}

impl Pass {
    /// Rows of padding that are computed beside those of the sequence.
    pub(crate) fn padding(&self) -> usize {
        self.attended.padding()
    }
}

impl TextModel {
    pub(crate) fn new(config: &TextConfig, device: &Device) -> Self {
        Self {
            embed_tokens: EmbeddingConfig::new(config.vocab_size, config.hidden_size).init(device),
            layers: (0..config.num_hidden_layers).map(|_| DecoderLayer::new(config, device)).collect(),
            norm: norm(config.hidden_size, config, device),
            rope: MultimodalRope::new(config),
            dtype: DType::F32,
        }
    }

    /// Embeddings of tokens: `[tokens, hidden_size]`.
    pub(crate) fn embed(&self, ids: impl IntoIterator<Item = u32>) -> Tensor<2> {
        let ids: Vec<i64> = ids.into_iter().map(i64::from).collect();
        let count = ids.len();
        let ids =
            Tensor::<2, Int>::from_data(TensorData::new(ids, [1, count]), &self.embed_tokens.weight.val().device());
        self.embed_tokens.forward(ids).squeeze_dim(0).cast(self.dtype)
    }

    /// Embeddings of a sequence, with what the vision tower made of the images where these stand.
    pub(crate) fn embed_sequence(&self, sequence: &Sequence, pass: &Pass, visual: Option<Tensor<2>>) -> Tensor<2> {
        let embeddings = self.embed(sequence.ids.iter().copied());
        match visual {
            Some(visual) => embeddings.select_assign(0, pass.visual.clone(), visual, IndexingUpdateOp::Assign),
            None => embeddings,
        }
    }

    pub(crate) fn pass(&self, sequence: &Sequence) -> Pass {
        let device = self.embed_tokens.weight.val().device().without_autodiff();
        let Heads { dim, .. } = self.heads();
        Pass {
            rotary: self.rope.tables(&sequence.positions, &device),
            attended: Attended::new(&device, self.dtype, &sequence.spans, true, self.heads().sharing(), dim),
            visual: indices(&sequence.visual, &device),
        }
    }

    pub(crate) fn depth(&self) -> usize {
        self.layers.len()
    }

    /// Runs a layer over a sequence, `[tokens, hidden_size]`, and adds `deepstack`, `[visual tokens, hidden_size]`, to its
    /// visual tokens. `observe` sees what attention makes of the stream.
    pub(crate) fn layer(
        &self,
        index: usize,
        x: Tensor<2>,
        pass: &Pass,
        deepstack: Option<Tensor<2>>,
        observe: impl FnOnce(&Projected),
    ) -> Tensor<2> {
        let layer = &self.layers[index];
        let projected = layer.project(x.clone(), &pass.rotary);
        observe(&projected);
        let Projected { query_after_rope, key_value: KeyValue { key, value }, .. } = projected;
        let x = layer.finish(x, attend(query_after_rope, None, [key, value], &pass.attended));
        match deepstack {
            Some(features) => x.select_assign(0, pass.visual.clone(), features, IndexingUpdateOp::Add),
            None => x,
        }
    }

    /// The norm behind the last layer, in float32 for the output head.
    pub(crate) fn normalise(&self, x: Tensor<2>) -> Tensor<2> {
        rms_norm(&self.norm, x.cast(DType::F32))
    }

    /// Runs prompts. Keeps the last layer's keys at `point`.
    pub(crate) fn prompt(
        &self,
        sequence: Sequence,
        features: Option<VisionFeatures>,
        point: Option<AttentionPoint>,
    ) -> PromptStates {
        let pass = self.pass(&sequence);
        let (visual, deepstack) = features.map_or((None, Vec::new()), |found| (Some(found.tokens), found.deepstack));
        let mut deepstack = deepstack.into_iter();
        let mut x = self.embed_sequence(&sequence, &pass, visual);
        let mut layers = Vec::with_capacity(self.depth());
        let mut last_key = None;
        for index in 0..self.depth() {
            x = self.layer(index, x, &pass, deepstack.next(), |projected| {
                layers.push(projected.key_value.clone());
                last_key = point.map(|point| projected.key(point).clone());
            });
        }
        PromptStates { hidden: self.normalise(x), layers, last_key, rows: sequence.prompts }
    }

    /// Runs the next token of each completion behind its prompt and the cache, which they are appended to, and returns the
    /// final hidden states, normalised. `tap` takes its states.
    ///
    /// `embeddings` is `[completions, hidden_size]`.
    pub(crate) fn decode(
        &self,
        prompt: &PromptStates,
        embeddings: Tensor<2>,
        tokens: &[NewToken],
        cache: &mut CompletionCache,
        mut tap: Option<&mut Tap>,
    ) -> Tensor<2> {
        let step = self.step(prompt, &embeddings, tokens, cache);
        let mut x = embeddings;
        for (index, layer) in self.layers.iter().enumerate() {
            let projected = layer.project(x.clone(), &step.rotary);
            if let Some(tap) = tap.as_deref_mut().filter(|_| index + 1 == self.layers.len()) {
                tap.take(&projected);
            }
            x = step.finish(index, layer, x, projected, cache);
        }
        cache.length += 1;
        self.normalise(x)
    }

    /// Only what `tap` takes of the tokens that [`Self::decode`] would run.
    pub(crate) fn only_tap(
        &self,
        prompt: &PromptStates,
        embeddings: Tensor<2>,
        tokens: &[NewToken],
        cache: &mut CompletionCache,
        tap: &mut Tap,
    ) {
        let step = self.step(prompt, &embeddings, tokens, cache);
        let mut x = embeddings;
        let Some((last, layers)) = self.layers.split_last() else { return };
        for (index, layer) in layers.iter().enumerate() {
            let projected = layer.project(x.clone(), &step.rotary);
            x = step.finish(index, layer, x, projected, cache);
        }
        tap.take(&last.project(x, &step.rotary));
    }

    fn step<'a>(
        &self,
        prompt: &'a PromptStates,
        embeddings: &Tensor<2>,
        tokens: &[NewToken],
        cache: &CompletionCache,
    ) -> Step<'a> {
        let positions: Vec<Position> = tokens.iter().map(|new| [new.position + cache.length as u32; 3]).collect();
        let device = embeddings.device();
        let rotary = self.rope.tables(&positions, &device);
        let span = |(row, new): (usize, &NewToken)| Span {
            queries: row..row + 1,
            own: row * cache.capacity..row * cache.capacity + cache.length + 1,
            prompt: prompt.rows[new.prompt].clone(),
        };
        let spans: Vec<Span> = tokens.iter().enumerate().map(span).collect();
        let Heads { dim, .. } = self.heads();
        let attended = Attended::new(&device, self.dtype, &spans, true, self.heads().sharing(), dim);
        Step { prompt, rotary, attended }
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

/// Tokens of completions on their way through the layers.
struct Step<'a> {
    prompt: &'a PromptStates,
    rotary: Rotary,
    attended: Attended,
}

impl Step<'_> {
    /// What follows the projections of a layer.
    fn finish(
        &self,
        index: usize,
        layer: &DecoderLayer,
        x: Tensor<2>,
        projected: Projected,
        cache: &mut CompletionCache,
    ) -> Tensor<2> {
        let own = cache.append(index, projected.key_value);
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

    /// Writes one layer's new keys and values behind those that are there, and returns all, room included:
    /// `[completions x capacity, key heads, head_dim]`.
    fn append(&mut self, layer: usize, new: KeyValue) -> [Tensor<3>; 2] {
        let [rows, heads, dim] = new.key.dims();
        let range = [0..rows, self.length..self.length + 1, 0..heads, 0..dim];
        for (slot, new) in self.layers[layer].iter_mut().zip([new.key, new.value]) {
            slot.inplace(|slot| slot.slice_assign(range.clone(), new.unsqueeze_dim::<4>(1)));
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

impl Projected {
    /// Keys before or after the rotary embedding.
    pub(crate) fn key(&self, point: AttentionPoint) -> &Tensor<3> {
        match point {
            AttentionPoint::BeforeRope => &self.key_before_rope,
            AttentionPoint::AfterRope => &self.key_value.key,
        }
    }

    /// Queries before or after the rotary embedding.
    pub(crate) fn query(&self, point: AttentionPoint) -> &Tensor<3> {
        match point {
            AttentionPoint::BeforeRope => &self.query_before_rope,
            AttentionPoint::AfterRope => &self.query_after_rope,
        }
    }
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
