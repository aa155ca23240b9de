//! Operations that the CPU computes in one go: linear layers, norms, activations, rotation, attention, and the score of a
//! token.
//!
//! Each is there twice: in operations of the tensor library, for every device and float type, in [`plain`] where the
//! library has no such operation; and, on the CPU in float32, as loops of our own with gradients worked out by hand. The
//! profile behind them is in `docs/performance.md`: put together from small operations, these took more time than all
//! matrix products.

#[cfg(feature = "flex")]
mod attention;
#[cfg(feature = "flex")]
mod cpu;
#[cfg(feature = "flex")]
mod kernel;
mod plain;
#[cfg(feature = "flex")]
mod product;

use std::ops::Range;
use std::sync::Arc;

use burn::module::Param;
use burn::nn::{LayerNorm, Linear, RmsNorm};
use burn::tensor::{DType, Device, Tensor};

/// Whether the operations are the CPU's own.
pub(crate) fn runs_on(device: &Device, dtype: DType) -> bool {
    #[cfg(feature = "flex")]
    return cpu::runs_on(device, dtype);
    #[cfg(not(feature = "flex"))]
    {
        let _ = (device, dtype);
        false
    }
}

/// `silu(gate) * up`, the inner half of SwiGLU (arXiv 2002.05202).
pub(crate) fn swiglu<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    #[cfg(feature = "flex")]
    if runs_on(&gate.device(), gate.dtype()) {
        return cpu::swiglu(gate, up);
    }
    plain::swiglu(gate, up)
}

/// Root-mean-square normalisation along the last axis (arXiv 1910.07467), in float32.
pub(crate) fn rms_norm<const D: usize>(norm: &RmsNorm, x: Tensor<D>) -> Tensor<D> {
    let gamma = norm.gamma.val().cast(DType::F32);
    #[cfg(feature = "flex")]
    if runs_on(&x.device(), x.dtype()) {
        return cpu::rms_norm(x, gamma, norm.epsilon as f32);
    }
    plain::rms_norm(x, gamma, norm.epsilon)
}

/// Layer normalisation along the last axis (arXiv 1607.06450), in float32. `epsilon` is that of the norm, which does not
/// tell it.
pub(crate) fn layer_norm<const D: usize>(norm: &LayerNorm, epsilon: f64, x: Tensor<D>) -> Tensor<D> {
    let gamma = norm.gamma.val().cast(DType::F32);
    let beta = norm.beta.as_ref().map(|beta| beta.val().cast(DType::F32));
    #[cfg(feature = "flex")]
    if let Some(beta) = beta.clone().filter(|_| runs_on(&x.device(), x.dtype())) {
        return cpu::layer_norm(x, gamma, beta, epsilon as f32);
    }
    let dtype = x.dtype();
    burn::tensor::module::layer_norm(x.cast(DType::F32), gamma, beta, epsilon).cast(dtype)
}

/// GELU in its approximation by the hyperbolic tangent (arXiv 1606.08415).
pub(crate) fn gelu_approximate<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    #[cfg(feature = "flex")]
    if runs_on(&x.device(), x.dtype()) {
        return cpu::gelu(x);
    }
    burn::tensor::activation::gelu_approximate(x)
}

/// GELU (arXiv 1606.08415).
pub(crate) fn gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    #[cfg(feature = "flex")]
    if runs_on(&x.device(), x.dtype()) {
        return burn::tensor::activation::gelu(x);
    }
    plain::gelu(x)
}

/// A linear layer.
///
/// # Shapes
/// - `x`: `[rows, inputs]`
/// - returns `[rows, outputs]`
pub(crate) fn linear(layer: &Linear, x: Tensor<2>) -> Tensor<2> {
    project(x, layer.weight.val(), layer.bias.as_ref().map(Param::val))
}

/// `x` times `weight`, and the bias added, all in the type of `x`.
///
/// # Shapes
/// - `x`: `[rows, inputs]`
/// - `weight`: `[inputs, outputs]`
pub(crate) fn project(x: Tensor<2>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<2> {
    let dtype = x.dtype();
    let (weight, bias) = (weight.cast(dtype), bias.map(|bias| bias.cast(dtype)));
    #[cfg(feature = "flex")]
    if runs_on(&x.device(), x.dtype()) {
        return match bias {
            Some(bias) => cpu::affine(x, weight, bias),
            None => cpu::linear(x, weight),
        };
    }
    burn::tensor::module::linear(x, weight, bias)
}

/// Rotary position embedding (arXiv 2104.09864) in rotate-half convention.
///
/// # Shapes
/// - `x`: `[tokens, heads, dim]`
/// - `cos`, `sin`: `[tokens, dim]`
pub(crate) fn rotate(x: Tensor<3>, cos: &Tensor<2>, sin: &Tensor<2>) -> Tensor<3> {
    #[cfg(feature = "flex")]
    if runs_on(&x.device(), x.dtype()) {
        return cpu::rotate(x, cos.clone(), sin.clone());
    }
    plain::rotate(x, cos, sin)
}

/// Queries that follow each other, and the keys that they see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Span {
    /// Rows of the queries; spans have all of them, in order.
    pub(crate) queries: Range<usize>,
    /// Rows of the keys of their own.
    pub(crate) own: Range<usize>,
    /// Rows of the keys of their prompt; there may be none. Prompts lie in tensors of their own, or where they run beside
    /// their completions, in those of `own`.
    pub(crate) prompt: Range<usize>,
}

impl Span {
    /// Whether a span and the next have their prompt in common.
    fn same_prompt(&self, next: &Self) -> bool {
        !self.prompt.is_empty() && self.prompt == next.prompt
    }
}

/// What the queries of an attention see.
#[derive(Debug, Clone)]
pub(crate) struct Attended {
    seen: Seen,
    /// Only where it is needed.
    padded: Option<Arc<[plain::Padded]>>,
}

/// What attention itself goes by; the tiles are for the CPU.
#[derive(Debug, Clone)]
struct Seen {
    /// Of scores, before the softmax.
    scale: f32,
    #[cfg(feature = "flex")]
    tiles: Arc<[Vec<attention::Tile>]>,
}

impl Attended {
    /// For queries of this type, of `heads` query heads for every key head. `causal`: the queries of a span are the last
    /// of the tokens that its own keys belong to, and see of these themselves and those before.
    #[cfg_attr(not(feature = "flex"), expect(unused_variables, reason = "the CPU alone asks"))]
    pub(crate) fn new(
        device: &Device,
        dtype: DType,
        spans: &[Span],
        causal: bool,
        heads: usize,
        head_dim: usize,
    ) -> Self {
        let scale = (head_dim as f32).powf(-0.5);
        let on_cpu = runs_on(device, dtype);
        Self {
            seen: Seen {
                scale,
                #[cfg(feature = "flex")]
                tiles: if on_cpu { attention::tiles(spans, causal, heads).into() } else { Arc::default() },
            },
            padded: (!on_cpu).then(|| plain::Padded::of(spans, causal, device).into()),
        }
    }

    /// Token positions that its padding adds to those of the queries.
    pub(crate) fn padding(&self) -> usize {
        self.padded.iter().flat_map(|padded| padded.iter()).map(plain::Padded::padding).sum()
    }
}

/// Queries whose scores the CPU computes together, `sharing` of them with one key head: as many as let these stay in its
/// cache with all that is read beside them, but enough for matrix products to be worth their while.
pub(crate) fn queries_together(sharing: usize, keys: usize) -> usize {
    ((1 << 18) / (sharing * keys).max(1)).clamp(16, 256)
}

/// Attention to a prompt and to one's own tokens under one softmax.
///
/// # Shapes
/// - `query`: `[queries, query heads, dim]`
/// - `prompt`: key and value, `[prompt tokens, key heads, dim]`; `None` where prompts lie in `own`
/// - `own`: key and value, `[tokens, key heads, dim]`
/// - returns the shape of `query`
pub(crate) fn attend(
    query: Tensor<3>,
    prompt: Option<[Tensor<3>; 2]>,
    own: [Tensor<3>; 2],
    attended: &Attended,
) -> Tensor<3> {
    match &attended.padded {
        Some(padded) => plain::attend(&query, prompt.as_ref(), &own, attended.seen.scale, padded),
        #[cfg(feature = "flex")]
        None => {
            let [_, heads, dim] = own[0].dims();
            let nothing = || Tensor::zeros([0, heads, dim], &query.device());
            let prompt = prompt.unwrap_or_else(|| [nothing(), nothing()]);
            cpu::attend(query, prompt, own, attended.seen.clone())
        }
        #[cfg(not(feature = "flex"))]
        None => unreachable!("only the CPU's own attention needs no padding"),
    }
}

/// How tokens are scored.
#[derive(Debug, Clone)]
pub(crate) struct Scoring {
    /// For every row the token whose log-probability is wanted.
    pub(crate) targets: Vec<u32>,
    /// Added to the logits after they are divided by the temperature: one for every token of the vocabulary.
    pub(crate) bias: Arc<[f32]>,
    pub(crate) temperature: f32,
}

impl Scoring {
    /// Rows of the parts in which logits are computed: they need never exist as a whole.
    pub(crate) fn chunks(&self) -> impl Iterator<Item = Range<usize>> {
        let rows = rows_scored_together(self.bias.len());
        let count = self.targets.len();
        (0..count).step_by(rows).map(move |start| start..count.min(start + rows))
    }

    /// Some of the rows.
    pub(crate) fn part(&self, rows: Range<usize>) -> Self {
        Self { targets: self.targets[rows].to_vec(), bias: self.bias.clone(), temperature: self.temperature }
    }
}

/// Rows whose logits exist at a time: 64 MiB of them, but enough for matrix products to be worth their while.
pub(crate) fn rows_scored_together(vocabulary: usize) -> usize {
    ((1 << 24) / vocabulary.max(1)).clamp(64, 1024)
}

/// Log-probability of every row's target, and the entropy of its distribution: `[rows, 2]`, in float32.
///
/// # Shapes
/// - `hidden`: `[rows, hidden_size]`
/// - `weight`: `[hidden_size, vocabulary]`
pub(crate) fn score(hidden: Tensor<2>, weight: Tensor<2>, scoring: Scoring) -> Tensor<2> {
    let scoring = Arc::new(scoring);
    #[cfg(feature = "flex")]
    if runs_on(&hidden.device(), hidden.dtype()) {
        return cpu::score(hidden, weight, scoring);
    }
    plain::score(&hidden, &weight, &scoring)
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::cell::RefCell;

    use burn::nn::{LayerNormConfig, RmsNormConfig};
    use burn::tensor::{Device, TensorData};
    use rand::SeedableRng as _;
    use rand_chacha::ChaCha8Rng;
    use rand_distr::{Distribution as _, StandardNormal};

    use super::*;

    thread_local! {
        /// A test has a thread of its own, so its numbers are always the same: bounds as close as these are not held by
        /// all that may be drawn.
        static RANDOM: RefCell<ChaCha8Rng> = RefCell::new(ChaCha8Rng::seed_from_u64(0));
    }

    fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
        let values: Vec<f32> =
            RANDOM.with_borrow_mut(|random| StandardNormal.sample_iter(random).take(shape.iter().product()).collect());
        Tensor::from_data(TensorData::new(values, shape), &Device::flex().autodiff()).require_grad()
    }

    fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
        tensor.into_data().iter::<f32>().collect()
    }

    fn close(found: &[f32], expected: &[f32], what: &str) {
        assert_eq!(found.len(), expected.len(), "{what}");
        let largest = expected.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
        for (found, expected) in found.iter().zip(expected) {
            assert!(
                (found - expected).abs() <= 2e-6 * largest,
                "{what}: {found} is not {expected}, of {largest} at most"
            );
        }
    }

    /// Holds the value and all gradients of an operation to those of the plain one.
    fn compare<const D: usize, const N: usize>(
        what: &str,
        given: [&dyn Given; N],
        fused: impl Fn() -> Tensor<D>,
        plain: impl Fn() -> Tensor<D>,
    ) {
        let (found, expected) = (fused(), plain());
        close(&values(found.clone()), &values(expected.clone()), what);
        // Gradients that differ from place to place.
        let weights = random(expected.dims()).detach();
        let [found, expected] = [found, expected].map(|tensor| (tensor * weights.clone()).sum().backward());
        for (number, given) in given.iter().enumerate() {
            close(&given.gradient(&found), &given.gradient(&expected), &format!("{what}, gradient {number}"));
        }
    }

    /// A tensor of whatever rank.
    trait Given {
        fn gradient(&self, gradients: &burn::tensor::Gradients) -> Vec<f32>;
    }

    impl<const D: usize> Given for Tensor<D> {
        fn gradient(&self, gradients: &burn::tensor::Gradients) -> Vec<f32> {
            values(self.grad(gradients).unwrap())
        }
    }

    #[test]
    fn swiglu_is_the_plain_one() {
        for shape in [[1, 9], [3, 7], [50, 700]] {
            let (gate, up) = ((random(shape) * 4.0).detach().require_grad(), random(shape));
            let fused = || swiglu(gate.clone(), up.clone());
            compare("swiglu", [&gate, &up], fused, || plain::swiglu(gate.clone(), up.clone()));
        }
    }

    #[test]
    fn rms_norm_is_the_plain_one() {
        for shape in [[1, 2, 3], [2, 3, 33], [5, 40, 200]] {
            let mut norm = RmsNormConfig::new(shape[2]).with_epsilon(1e-6).init(&Device::flex().autodiff());
            let (x, gamma) = (random(shape), random([shape[2]]));
            norm.gamma = Param::from_tensor(gamma.clone());
            compare("rms_norm", [&x, &gamma], || rms_norm(&norm, x.clone()), || norm.forward(x.clone()));
        }
    }

    #[test]
    fn layer_norm_is_the_plain_one() {
        // What comes out of two numbers hardly depends on them: they would be one too few.
        for shape in [[1, 1, 5], [2, 3, 33], [5, 40, 200]] {
            let mut norm = LayerNormConfig::new(shape[2]).with_epsilon(1e-6).init(&Device::flex().autodiff());
            let (x, gamma, beta) = (random(shape) + 0.5, random([shape[2]]), random([shape[2]]));
            let x = x.detach().require_grad();
            norm.gamma = Param::from_tensor(gamma.clone());
            norm.beta = Some(Param::from_tensor(beta.clone()));
            let plain = || norm.forward(x.clone());
            compare("layer_norm", [&x, &gamma, &beta], || layer_norm(&norm, 1e-6, x.clone()), plain);
        }
    }

    #[test]
    fn gelu_is_the_plain_one() {
        for length in [9, 40_000] {
            // From -8 to 8: the plain one loses digits where it is small, so there has to be something large.
            let values: Vec<f32> = (0..length).map(|i| (i * 37 % 161) as f32 / 10.0 - 8.0).collect();
            let x = Tensor::<1>::from_floats(values.as_slice(), &Device::flex().autodiff()).require_grad();
            let plain = || burn::tensor::activation::gelu_approximate(x.clone());
            compare("gelu_approximate", [&x], || gelu_approximate(x.clone()), plain);
            compare("gelu", [&x], || gelu(x.clone()), || plain::gelu(x.clone()));
        }
    }

    #[test]
    fn linear_layers_are_the_plain_ones() {
        for [rows, inputs, outputs] in [[1, 1, 1], [7, 33, 20], [300, 40, 65]] {
            let (x, weight, bias) = (random([rows, inputs]), random([inputs, outputs]), random([outputs]));
            // A matrix that lies in memory the other way round.
            let turned = random([outputs, inputs]);
            let plain = |weight: Tensor<2>, bias| burn::tensor::module::linear(x.clone(), weight, bias);
            let fused = || project(x.clone(), weight.clone(), None);
            compare("linear", [&x, &weight], fused, || plain(weight.clone(), None));
            let fused = || project(x.clone(), turned.clone().transpose(), Some(bias.clone()));
            let plain = || plain(turned.clone().transpose(), Some(bias.clone()));
            compare("affine", [&x, &turned, &bias], fused, plain);
        }
    }

    #[test]
    fn rotation_is_the_plain_one() {
        for (tokens, heads) in [(1, 1), (11, 3), (900, 5)] {
            let x = random([tokens, heads, 8]);
            let angles = random([tokens, 4]).inner() * 3.0;
            let table = |half: Tensor<2>| Tensor::from_inner(Tensor::cat(vec![half.clone(), half], 1));
            let (cos, sin) = (table(angles.clone().cos()), table(angles.sin()));
            let plain = || plain::rotate(x.clone(), &cos, &sin);
            compare("rotate", [&x], || rotate(x.clone(), &cos, &sin), plain);
        }
    }

    /// Completions of so many new tokens, for each of some prompts of so many; each completion has tokens before the
    /// new ones, and there may be keys that nobody sees.
    fn spans(prompts: &[(usize, &[usize])], before: usize, gap: usize) -> Vec<Span> {
        let (mut spans, mut prompt_start, mut query, mut key) = (Vec::new(), 0, 0, 0);
        for &(prompt, completions) in prompts {
            for &new in completions {
                let own = key..key + before + new;
                spans.push(Span { queries: query..query + new, own, prompt: prompt_start..prompt_start + prompt });
                query += new;
                key += before + new + gap;
            }
            prompt_start += prompt;
        }
        spans
    }

    /// Prompts of so many tokens, and behind all of them their completions.
    fn side_by_side(prompts: &[(usize, &[usize])]) -> Vec<Span> {
        let mut spans = Vec::new();
        let mut row = 0;
        let mut push = |length: usize, prompt: Range<usize>| {
            let rows = row..row + length;
            row += length;
            spans.push(Span { queries: rows.clone(), own: rows.clone(), prompt });
            rows
        };
        let rows: Vec<Range<usize>> = prompts.iter().map(|&(prompt, _)| push(prompt, 0..0)).collect();
        for (prompt, (_, completions)) in rows.into_iter().zip(prompts) {
            for &completion in *completions {
                push(completion, prompt.clone());
            }
        }
        spans
    }

    #[test]
    fn attention_to_prompts_that_run_beside_is_the_plain_one() {
        let (heads, dim) = (2, 5);
        for (spans, sharing) in [
            (side_by_side(&[(7, &[6, 3, 6]), (4, &[1]), (1, &[5, 2])]), 2),
            (side_by_side(&[(5, &[]), (3, &[4])]), 1),
            (side_by_side(&[(700, &[300, 10]), (40, &[17; 8])]), 4),
        ] {
            let queries = spans[spans.len() - 1].queries.end;
            let query = random([queries, heads * sharing, dim]);
            let [key, value] = [(); 2].map(|()| random([queries, heads, dim]));
            let own = || [key.clone(), value.clone()];
            let seen = Attended::new(&query.device(), DType::F32, &spans, true, sharing, dim);
            let padded = plain::Padded::of(&spans, true, &query.device());
            let plain = || plain::attend(&query, None, &own(), seen.seen.scale, &padded);
            compare("attend", [&query, &key, &value], || attend(query.clone(), None, own(), &seen), plain);
        }
    }

    #[test]
    fn attention_is_the_plain_one() {
        let (heads, dim) = (2, 5);
        for (spans, sharing) in [
            (spans(&[(7, &[6, 3, 6]), (4, &[1]), (1, &[5, 2])], 0, 0), 2),
            (spans(&[(9, &[1, 1]), (9, &[1, 1])], 4, 3), 3),
            (spans(&[(3, &[4])], 2, 0), 1),
            (spans(&[(40, &[40; 8]), (33, &[17; 8])], 0, 0), 4),
            // Several tiles of a prompt.
            (spans(&[(900, &[300, 280, 10])], 0, 0), 4),
            (spans(&[(0, &[30, 30, 30, 2, 7])], 0, 0), 2),
            (spans(&[(0, &[700]), (0, &[5])], 0, 0), 1),
        ] {
            let last = &spans[spans.len() - 1];
            let (queries, prompt_tokens) = (last.queries.end, last.prompt.end);
            let tokens = spans.iter().map(|span| span.own.end).max().unwrap();
            let query = random([queries, heads * sharing, dim]);
            let [key, value] = [(); 2].map(|()| random([tokens, heads, dim]));
            let [prompt_key, prompt_value] = [(); 2].map(|()| random([prompt_tokens.max(1), heads, dim]));
            let prompt = || (prompt_tokens > 0).then(|| [prompt_key.clone(), prompt_value.clone()]);
            let own = || [key.clone(), value.clone()];
            for causal in [true, false] {
                let seen = Attended::new(&query.device(), DType::F32, &spans, causal, sharing, dim);
                let padded = plain::Padded::of(&spans, causal, &query.device());
                let fused = || attend(query.clone(), prompt(), own(), &seen);
                let plain = || plain::attend(&query, prompt().as_ref(), &own(), seen.seen.scale, &padded);
                if prompt_tokens == 0 {
                    compare("attend", [&query, &key, &value], fused, plain);
                } else {
                    compare("attend", [&query, &prompt_key, &prompt_value, &key, &value], fused, plain);
                }
            }
        }
    }

    #[test]
    fn padding_is_what_no_query_fills() {
        let device = Device::flex();
        let padding = |spans: &[Span]| {
            let rectangles = plain::Padded::of(spans, true, &device);
            rectangles.iter().map(plain::Padded::padding).sum::<usize>()
        };
        assert_eq!(padding(&spans(&[(3, &[5, 5]), (2, &[5, 5])], 0, 0)), 0);
        // Two prompts of three completions of six tokens, of which there are 6 + 3 + 2 + 4.
        assert_eq!(padding(&spans(&[(3, &[6, 3, 2]), (2, &[4])], 0, 0)), 36 - 15);
        // Prompts beside them are no longer for that.
        assert_eq!(padding(&side_by_side(&[(3, &[6, 3, 2]), (2, &[4])])), 1 + 36 - 15);
        let seen = Attended::new(&device, DType::F32, &spans(&[(3, &[6, 3])], 0, 0), true, 1, 4);
        assert_eq!(seen.padding(), 0);
    }

    #[test]
    fn scores_are_the_plain_ones() {
        for (rows, width, vocabulary, temperature) in [(1, 3, 2, 1.0), (70, 9, 41, 0.7), (2500, 4, 30, 1.3)] {
            let (hidden, weight) = (random([rows, width]), random([width, vocabulary]));
            let scoring = || Scoring {
                targets: (0..rows).map(|row| 2 * (row % (vocabulary / 2)) as u32).collect(),
                bias: (0..vocabulary).map(|id| if id % 3 == 1 { -1e9 } else { 0.0 }).collect::<Vec<f32>>().into(),
                temperature,
            };
            let fused = || score(hidden.clone(), weight.clone(), scoring());
            let plain = || plain::score(&hidden, &weight, &scoring());
            compare("score", [&hidden, &weight], fused, plain);
        }
    }
}
