//! Operations that the CPU computes in one go: normalisation, the gated activation, rotation, attention, and the score
//! of a token.
//!
//! Each is written twice: [`plain`], in operations of the tensor library, for every device and float type; and, on the
//! CPU in float32, as loops of our own with gradients worked out by hand. The profile behind them is in
//! `docs/performance.md`: put together from small operations, these took more time than all matrix products.

#[cfg(feature = "flex")]
mod cpu;
#[cfg(feature = "flex")]
mod kernel;
pub(crate) mod plain;

use std::sync::Arc;

use burn::nn::RmsNorm;
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

/// Root-mean-square normalisation along the last axis.
pub(crate) fn rms_norm<const D: usize>(norm: &RmsNorm, x: Tensor<D>) -> Tensor<D> {
    #[cfg(feature = "flex")]
    if runs_on(&x.device(), x.dtype()) {
        return cpu::rms_norm(x, norm.gamma.val(), norm.epsilon as f32);
    }
    norm.forward(x)
}

/// Rotary position embedding (arXiv 2104.09864) in rotate-half convention.
///
/// # Shapes
/// - `x`: `[rows, tokens, heads, dim]`
/// - `cos`, `sin`: `[table rows, tokens, 1, dim]`, each row for equally many of x's, one after another
/// - returns `[rows, heads, tokens, dim]`
pub(crate) fn rotate(x: Tensor<4>, cos: &Tensor<4>, sin: &Tensor<4>) -> Tensor<4> {
    #[cfg(feature = "flex")]
    if runs_on(&x.device(), x.dtype()) {
        return cpu::rotate(x, cos.clone(), sin.clone());
    }
    plain::rotate(x, cos, sin)
}

/// What the rows of an attention see.
#[derive(Debug, Clone)]
pub(crate) struct Attended {
    seen: Seen,
    /// Only where they are needed.
    masks: plain::Masks,
}

#[derive(Debug, Clone)]
#[cfg_attr(not(feature = "flex"), expect(dead_code, reason = "masks say the same"))]
struct Seen {
    /// Tokens of every prompt; what follows them is padding.
    prompts: Arc<[usize]>,
    /// See [`Attended::new`].
    new_tokens: Option<usize>,
    /// Of scores, before the softmax.
    scale: f32,
}

impl Attended {
    /// For queries like these: of prompts of these lengths, padded to `prompt_tokens`, and of `tokens` of one's own.
    ///
    /// With `new_tokens`, a row sees of its own tokens itself and those before it. The new tokens are then the last of
    /// the keys, and the rows are those tokens, as many times over as query heads share a key head.
    pub(crate) fn new<const D: usize>(
        like: &Tensor<D>,
        prompts: Arc<[usize]>,
        prompt_tokens: usize,
        new_tokens: Option<usize>,
        tokens: usize,
        head_dim: usize,
    ) -> Self {
        let masks = || plain::Masks::new(&prompts, prompt_tokens, new_tokens.map(|new| [new, tokens]), &like.device());
        let masks = if runs_on(&like.device(), like.dtype()) { plain::Masks::default() } else { masks() };
        Self { seen: Seen { prompts, new_tokens, scale: (head_dim as f32).powf(-0.5) }, masks }
    }
}

#[cfg(feature = "flex")]
impl Seen {
    /// Keys that a row sees: of its prompt, and of its own. There are `rows` rows for every completion, and
    /// `rows_of_prompt` for every prompt.
    fn counts(
        &self,
        row: usize,
        [rows_of_prompt, rows]: [usize; 2],
        [prompt_tokens, tokens]: [usize; 2],
    ) -> [usize; 2] {
        let own = self.new_tokens.map_or(tokens, |new| tokens - new + row % rows % new + 1);
        [if prompt_tokens == 0 { 0 } else { self.prompts[row / rows_of_prompt] }, own]
    }
}

/// Attention to a prompt and to one's own tokens under one softmax.
///
/// # Shapes
/// - `query`: `[prompts, key heads, completions, rows, dim]`
/// - `prompt`: key and value, `[prompts, key heads, prompt tokens, dim]`; there may be no prompt tokens
/// - `own`: key and value, `[prompts, key heads, completions, tokens, dim]`
/// - returns the shape of `query`
pub(crate) fn attend(query: Tensor<5>, prompt: [Tensor<4>; 2], own: [Tensor<5>; 2], attended: &Attended) -> Tensor<5> {
    #[cfg(feature = "flex")]
    if runs_on(&query.device(), query.dtype()) {
        return cpu::attend(query, prompt, own, attended.seen.clone());
    }
    plain::attend(query, prompt, own, attended.seen.scale, &attended.masks)
}

/// How tokens are scored.
#[derive(Debug)]
pub(crate) struct Scoring {
    /// For every row the token whose log-probability is wanted.
    pub(crate) targets: Vec<u32>,
    /// Added to the logits after they are divided by the temperature: one for every token of the vocabulary.
    pub(crate) bias: Vec<f32>,
    pub(crate) temperature: f32,
}

impl Scoring {
    /// First row and number of rows of the parts in which logits are computed: they never exist as a whole.
    fn chunks(&self) -> impl Iterator<Item = (usize, usize)> {
        let rows = rows_scored_together(self.bias.len());
        let count = self.targets.len();
        (0..count).step_by(rows).map(move |start| (start, rows.min(count - start)))
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

    use burn::module::Param;
    use burn::nn::RmsNormConfig;
    use burn::tensor::{Device, Distribution};

    use super::*;

    fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
        Tensor::random(shape, Distribution::Normal(0.0, 1.0), &Device::flex().autodiff()).require_grad()
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
        let weights = Tensor::random(expected.dims(), Distribution::Normal(0.0, 1.0), &expected.device());
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
        for shape in [[1, 1], [3, 7], [50, 700]] {
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
    fn rotation_is_the_plain_one() {
        for (rows, table_rows) in [(1, 1), (6, 3), (6, 1), (40, 5)] {
            let x = random([rows, 11, 3, 8]);
            let angles = Tensor::random([table_rows, 11, 1, 4], Distribution::Uniform(0.0, 7.0), &Device::flex());
            let table = |half: Tensor<4>| Tensor::from_inner(Tensor::cat(vec![half.clone(), half], 3));
            let (cos, sin) = (table(angles.clone().cos()), table(angles.sin()));
            let plain = || plain::rotate(x.clone(), &cos, &sin);
            compare("rotate", [&x], || rotate(x.clone(), &cos, &sin), plain);
        }
    }

    #[test]
    fn attention_is_the_plain_one() {
        let (heads, dim) = (2, 5);
        // Prompt lengths, completions, query heads a key head, new tokens, tokens before them.
        for (lengths, completions, sharing, new, before) in [
            (vec![7, 4, 1], 3, 2, 6, 0),
            (vec![9, 9], 2, 3, 1, 4),
            (vec![3], 1, 1, 4, 2),
            (vec![40, 33], 8, 4, 40, 0),
            (vec![], 4, 2, 30, 0),
        ] {
            let prompts = if lengths.is_empty() { 2 } else { lengths.len() };
            let prompt_tokens = lengths.iter().copied().max().unwrap_or(0);
            let tokens = new + before;
            let query = random([prompts, heads, completions, sharing * new, dim]);
            let [key, value] = [(); 2].map(|()| random([prompts, heads, completions, tokens, dim]));
            let of_prompt = || match prompt_tokens {
                0 => Tensor::zeros([prompts, heads, 0, dim], &query.device()),
                _ => random([prompts, heads, prompt_tokens, dim]),
            };
            let (prompt_key, prompt_value) = (of_prompt(), of_prompt());
            let prompt = || [prompt_key.clone(), prompt_value.clone()];
            let own = || [key.clone(), value.clone()];
            for causal in [Some(new), None] {
                let seen = Attended::new(&query, lengths.clone().into(), prompt_tokens, causal, tokens, dim);
                let masks =
                    plain::Masks::new(&lengths, prompt_tokens, causal.map(|new| [new, tokens]), &query.device());
                let scale = (dim as f32).powf(-0.5);
                let fused = || attend(query.clone(), prompt(), own(), &seen);
                let plain = || plain::attend(query.clone(), prompt(), own(), scale, &masks);
                if prompt_tokens == 0 {
                    compare("attend", [&query, &key, &value], fused, plain);
                } else {
                    compare("attend", [&query, &prompt_key, &prompt_value, &key, &value], fused, plain);
                }
            }
        }
    }

    #[test]
    fn scores_are_the_plain_ones() {
        for (rows, width, vocabulary, temperature) in [(1, 3, 2, 1.0), (70, 9, 41, 0.7), (2500, 4, 30, 1.3)] {
            let (hidden, weight) = (random([rows, width]), random([width, vocabulary]));
            let scoring = || Scoring {
                targets: (0..rows).map(|row| 2 * (row % (vocabulary / 2)) as u32).collect(),
                bias: (0..vocabulary).map(|id| if id % 3 == 1 { -1e9 } else { 0.0 }).collect(),
                temperature,
            };
            let fused = || score(hidden.clone(), weight.clone(), scoring());
            let plain = || plain::score(&hidden, &weight, &scoring());
            compare("score", [&hidden, &weight], fused, plain);
        }
    }
}
