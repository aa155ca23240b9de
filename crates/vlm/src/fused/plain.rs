//! The fused operations in operations of the tensor library: for every device, and what the tests hold the others to.
//!
//! Scores and softmax are computed in float32, everything else in the float type of what goes in.

use burn::tensor::activation::{log_softmax, silu, softmax};
use burn::tensor::{Bool, DType, Device, Int, Tensor, TensorData};

use super::Scoring;

/// Added to the scores of positions that must not be seen. Finite, so that a row without any visible position stays
/// free of NaN.
const MASKED: f32 = -1e30;

pub(crate) fn swiglu<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    silu(gate) * up
}

pub(crate) fn rotate(x: Tensor<4>, cos: &Tensor<4>, sin: &Tensor<4>) -> Tensor<4> {
    let [rows, tokens, heads, dim] = x.dims();
    // Every row of the tables for its rows of x.
    let dtype = x.dtype();
    let table = |table: &Tensor<4>| {
        let [table_rows, ..] = table.dims();
        table.clone().cast(dtype).unsqueeze_dim::<5>(1).expand([table_rows, rows / table_rows, tokens, 1, dim])
    };
    let x = x.reshape([cos.dims()[0], rows / cos.dims()[0], tokens, heads, dim]);
    let first = x.clone().narrow(4, 0, dim / 2);
    let second = x.clone().narrow(4, dim / 2, dim / 2);
    let turned = Tensor::cat(vec![second.neg(), first], 4);
    (x * table(cos) + turned * table(sin)).reshape([rows, tokens, heads, dim]).swap_dims(1, 2)
}

/// What hides keys, added to their scores.
#[derive(Debug, Clone, Default)]
pub(crate) struct Masks {
    /// `[prompts, 1, 1, prompt tokens]`; `None` when no prompt is padded.
    prompt: Option<Tensor<4>>,
    /// `[new tokens, tokens]`; `None` when every row sees every key of its own.
    own: Option<Tensor<2>>,
}

impl Masks {
    pub(crate) fn new(prompts: &[usize], prompt_tokens: usize, causal: Option<[usize; 2]>, device: &Device) -> Self {
        let padded = prompts.iter().any(|&length| length < prompt_tokens);
        let hidden = |&length: &usize| (0..prompt_tokens).map(move |i| if i < length { 0.0 } else { MASKED });
        let values = || prompts.iter().flat_map(hidden).collect::<Vec<f32>>();
        let shape = [prompts.len(), 1, 1, prompt_tokens];
        Self {
            prompt: padded.then(|| Tensor::from_data(TensorData::new(values(), shape), device)),
            own: causal.filter(|&[new, _]| new > 1).map(|[new, tokens]| causal_mask(new, tokens, device)),
        }
    }
}

/// `[queries, keys]` of zeros and [`MASKED`]; the last query sees every key.
fn causal_mask(queries: usize, keys: usize, device: &Device) -> Tensor<2> {
    let hidden = Tensor::<2, Bool>::tril_mask([queries, keys], (keys - queries) as i64, device);
    Tensor::zeros([queries, keys], device).mask_fill(hidden, MASKED)
}

pub(crate) fn attend(
    query: Tensor<5>,
    [prompt_key, prompt_value]: [Tensor<4>; 2],
    [key, value]: [Tensor<5>; 2],
    scale: f32,
    masks: &Masks,
) -> Tensor<5> {
    let [prompts, heads, completions, rows, dim] = query.dims();
    let (prompt_tokens, tokens) = (prompt_key.dims()[2], key.dims()[3]);
    let query = query * scale;

    let mut scores = query.clone().matmul(key.swap_dims(3, 4)).cast(DType::F32);
    if let Some(mask) = &masks.own {
        let [new, _] = mask.dims();
        let repeated = [prompts, heads, completions * (rows / new), new, tokens];
        scores =
            (scores.reshape(repeated) + mask.clone().unsqueeze()).reshape([prompts, heads, completions, rows, tokens]);
    }
    if prompt_tokens == 0 {
        return softmax(scores, 4).cast(value.dtype()).matmul(value);
    }
    // All completions of a prompt are rows of one product with its keys: nothing is repeated.
    let flat = [prompts, heads, completions * rows, dim];
    let mut to_prompt = query.reshape(flat).matmul(prompt_key.swap_dims(2, 3)).cast(DType::F32);
    if let Some(mask) = &masks.prompt {
        to_prompt = to_prompt + mask.clone();
    }
    let to_prompt = to_prompt.reshape([prompts, heads, completions, rows, prompt_tokens]);
    let probabilities = softmax(Tensor::cat(vec![to_prompt, scores], 4), 4).cast(value.dtype());
    let from_prompt = probabilities
        .clone()
        .narrow(4, 0, prompt_tokens)
        .reshape([prompts, heads, completions * rows, prompt_tokens])
        .matmul(prompt_value)
        .reshape([prompts, heads, completions, rows, dim]);
    from_prompt + probabilities.narrow(4, prompt_tokens, tokens).matmul(value)
}

pub(crate) fn score(hidden: &Tensor<2>, weight: &Tensor<2>, scoring: &Scoring) -> Tensor<2> {
    let device = hidden.device();
    let bias = Tensor::<1>::from_data(TensorData::new(scoring.bias.clone(), [scoring.bias.len()]), &device);
    let part = |(start, count): (usize, usize)| {
        let logits = hidden.clone().narrow(0, start, count).matmul(weight.clone()).cast(DType::F32);
        let distribution = log_softmax(logits / scoring.temperature + bias.clone().unsqueeze(), 1);
        let targets: Vec<i64> = scoring.targets[start..start + count].iter().map(|&id| i64::from(id)).collect();
        let targets = Tensor::<2, Int>::from_data(TensorData::new(targets, [count, 1]), &device);
        let entropy = (distribution.clone().exp() * distribution.clone()).sum_dim(1).neg();
        Tensor::cat(vec![distribution.gather(1, targets), entropy], 1)
    };
    Tensor::cat(scoring.chunks().map(part).collect(), 0)
}
