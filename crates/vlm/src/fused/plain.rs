//! The fused operations in operations of the tensor library: for every device, and what the tests hold the others to.
//!
//! Scores and softmax are computed in float32, everything else in the float type of what goes in.

use std::ops::Range;

use burn::tensor::activation::{log_softmax, silu, softmax};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use super::{Scoring, Span};
use crate::probe::indices;

/// Added to the scores of positions that must not be seen. Finite, so that a row without any visible position stays
/// free of NaN.
const MASKED: f32 = -1e30;

pub(super) fn swiglu<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    silu(gate) * up
}

/// Written out because the gradient of burn's own is, but on the CPU, that of the approximation by the hyperbolic
/// tangent: 3e-4 off (burn 0.22.1).
pub(super) fn gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    let dtype = x.dtype();
    let x = x.cast(DType::F32);
    let share = (x.clone() / std::f32::consts::SQRT_2).erf() + 1.0;
    (x * share * 0.5).cast(dtype)
}

pub(super) fn rms_norm<const D: usize>(x: Tensor<D>, gamma: Tensor<1>, epsilon: f64) -> Tensor<D> {
    let dtype = x.dtype();
    let x = x.cast(DType::F32);
    let root = (x.clone().square().mean_dim(D - 1) + epsilon).sqrt();
    (x / root * gamma.unsqueeze()).cast(dtype)
}

pub(super) fn rotate(x: Tensor<3>, cos: &Tensor<2>, sin: &Tensor<2>) -> Tensor<3> {
    let [_, _, dim] = x.dims();
    let table = |table: &Tensor<2>| table.clone().cast(x.dtype()).unsqueeze_dim::<3>(1);
    let (cos, sin) = (table(cos), table(sin));
    let first = x.clone().narrow(2, 0, dim / 2);
    let second = x.clone().narrow(2, dim / 2, dim / 2);
    let turned = Tensor::cat(vec![second.neg(), first], 2);
    x * cos + turned * sin
}

/// Spans as a rectangle: those of a prompt are its columns, all as long as the longest.
#[derive(Debug)]
pub(super) struct Padded {
    prompts: usize,
    columns: usize,
    queries: Rows,
    own: Rows,
    prompt: Rows,
    /// Where the queries lie in the rectangle.
    back: Rows,
    /// Added to scores: `[prompts, columns, queries, own]`, one for all prompts and columns if they are alike; `None`
    /// where nothing is hidden.
    own_mask: Option<Tensor<4>>,
    /// `[prompts, prompt tokens]`.
    prompt_mask: Option<Tensor<2>>,
}

impl Padded {
    /// Prompts and the completions behind them make rectangles of their own.
    pub(super) fn of(spans: &[Span], causal: bool, device: &Device) -> Vec<Self> {
        let alike = spans.chunk_by(|span, next| span.prompt.is_empty() == next.prompt.is_empty());
        alike.map(|spans| Self::new(spans, causal, device)).collect()
    }

    fn new(spans: &[Span], causal: bool, device: &Device) -> Self {
        let of_prompts: Vec<&[Span]> = spans.chunk_by(Span::same_prompt).collect();
        let columns = of_prompts.iter().map(|spans| spans.len()).max().unwrap_or(0);
        let nothing = Span { queries: 0..0, own: 0..0, prompt: 0..0 };
        let cells: Vec<&Span> = of_prompts
            .iter()
            .flat_map(|spans| (0..columns).map(|column| spans.get(column).unwrap_or(&nothing)))
            .collect();
        let queries = Rows::padded(cells.iter().map(|span| &span.queries), device);
        let own = Rows::padded(cells.iter().map(|span| &span.own), device);
        let prompt = Rows::padded(of_prompts.iter().map(|spans| &spans[0].prompt), device);
        let back = cells.iter().enumerate().flat_map(|(cell, span)| {
            let start = cell * queries.each;
            start..start + span.queries.len()
        });
        let back = Rows::new(&back.collect::<Vec<_>>(), 1, device);
        let seen = |span: &Span| {
            let (queries, own) = (span.queries.len(), span.own.len());
            (0..queries).map(|query| if causal { own - queries + query + 1 } else { own }).collect::<Vec<_>>()
        };
        let mut seen: Vec<Vec<usize>> = cells.iter().map(|span| seen(span)).collect();
        let mut shape = [of_prompts.len(), columns, queries.each, own.each];
        if seen.iter().all(|cell| *cell == seen[0]) {
            seen.truncate(1);
            (shape[0], shape[1]) = (1, 1);
        }
        let prompts = of_prompts.iter().map(|spans| spans[0].prompt.len());
        let prompt_mask = mask(&prompts.collect::<Vec<_>>(), [of_prompts.len(), prompt.each], device);
        // Queries that pad a column see nothing.
        let seen = seen.iter().flat_map(|cell| (0..queries.each).map(|query| cell.get(query).copied().unwrap_or(0)));
        let own_mask = mask(&seen.collect::<Vec<_>>(), shape, device);
        Self { prompts: of_prompts.len(), columns, queries, own, prompt, back, own_mask, prompt_mask }
    }

    /// Rows of the rectangle that no query fills.
    pub(super) fn padding(&self) -> usize {
        self.queries.count - self.back.count
    }
}

/// Hides all but the first so many keys of every row; `None` when all of them have all.
fn mask<const D: usize>(seen: &[usize], shape: [usize; D], device: &Device) -> Option<Tensor<D>> {
    let keys = shape[D - 1];
    let hidden = |seen: usize| (0..keys).map(move |key| if key < seen { 0.0 } else { MASKED });
    let values = || seen.iter().copied().flat_map(hidden).collect::<Vec<f32>>();
    seen.iter().any(|&seen| seen < keys).then(|| Tensor::from_data(TensorData::new(values(), shape), device))
}

/// Rows of a tensor, side by side in another.
#[derive(Debug)]
struct Rows {
    /// Of a cell.
    each: usize,
    count: usize,
    /// The first of them where they lie side by side already.
    start: Option<usize>,
    from: Tensor<1, Int>,
}

impl Rows {
    fn new(from: &[usize], each: usize, device: &Device) -> Self {
        let side_by_side = |&start: &usize| from.iter().copied().eq(start..start + from.len());
        let start = from.first().copied().filter(side_by_side);
        Self { each, count: from.len(), start, from: indices(from, device) }
    }

    /// Ranges, each padded to the longest.
    fn padded<'a>(ranges: impl Iterator<Item = &'a Range<usize>> + Clone, device: &Device) -> Self {
        let each = ranges.clone().map(ExactSizeIterator::len).max().unwrap_or(0);
        // What pads a range is hidden, or nobody reads it: any row will do.
        let rows = |range: &Range<usize>| range.clone().chain(std::iter::repeat(0)).take(each);
        Self::new(&ranges.flat_map(rows).collect::<Vec<_>>(), each, device)
    }

    fn of<const D: usize>(&self, tensor: Tensor<D>) -> Tensor<D> {
        match self.start {
            Some(0) if tensor.dims()[0] == self.count => tensor,
            Some(start) => tensor.narrow(0, start, self.count),
            None => tensor.select(0, self.from.clone()),
        }
    }
}

pub(super) fn attend(
    query: &Tensor<3>,
    prompt: Option<&[Tensor<3>; 2]>,
    own: &[Tensor<3>; 2],
    scale: f32,
    padded: &[Padded],
) -> Tensor<3> {
    let mixed = |padded: &Padded| {
        let prompt = (padded.prompt.each > 0).then(|| prompt.unwrap_or(own).clone());
        attend_in(query.clone(), prompt, own.clone(), scale, padded)
    };
    match padded {
        [only] => mixed(only),
        _ => Tensor::cat(padded.iter().map(mixed).collect(), 0),
    }
}

fn attend_in(
    query: Tensor<3>,
    prompt: Option<[Tensor<3>; 2]>,
    own: [Tensor<3>; 2],
    scale: f32,
    padded: &Padded,
) -> Tensor<3> {
    let ([_, query_heads, dim], [_, heads, _]) = (query.dims(), own[0].dims());
    let sharing = query_heads / heads;
    let Padded { prompts, columns, .. } = *padded;
    let (queries, tokens, prompt_tokens) = (padded.queries.each, padded.own.each, padded.prompt.each);
    let rows = sharing * queries;
    let [key, value] =
        own.map(|own| padded.own.of(own).reshape([prompts, columns, tokens, heads, dim]).permute([0, 3, 1, 2, 4]));
    let query = (padded.queries.of(query) * scale)
        .reshape([prompts, columns, queries, heads, sharing, dim])
        .permute([0, 3, 1, 4, 2, 5])
        .reshape([prompts, heads, columns, rows, dim]);

    let mut scores = query.clone().matmul(key.swap_dims(3, 4)).cast(DType::F32);
    if let Some(mask) = &padded.own_mask {
        let cells = scores.reshape([prompts, heads, columns, sharing, queries, tokens]);
        let mask = mask.clone().unsqueeze_dim::<5>(1).unsqueeze_dim::<6>(3);
        scores = (cells + mask).reshape([prompts, heads, columns, rows, tokens]);
    }
    let mixed = if let Some(prompt) = prompt {
        // All completions of a prompt are rows of one product with its keys: nothing is repeated.
        let [prompt_key, prompt_value] =
            prompt.map(|prompt| padded.prompt.of(prompt).reshape([prompts, prompt_tokens, heads, dim]).swap_dims(1, 2));
        let flat = [prompts, heads, columns * rows, dim];
        let mut to_prompt = query.reshape(flat).matmul(prompt_key.swap_dims(2, 3)).cast(DType::F32);
        if let Some(mask) = &padded.prompt_mask {
            to_prompt = to_prompt + mask.clone().reshape([prompts, 1, 1, prompt_tokens]);
        }
        let to_prompt = to_prompt.reshape([prompts, heads, columns, rows, prompt_tokens]);
        let probabilities = softmax(Tensor::cat(vec![to_prompt, scores], 4), 4).cast(value.dtype());
        let from_prompt = probabilities
            .clone()
            .narrow(4, 0, prompt_tokens)
            .reshape([prompts, heads, columns * rows, prompt_tokens])
            .matmul(prompt_value)
            .reshape([prompts, heads, columns, rows, dim]);
        from_prompt + probabilities.narrow(4, prompt_tokens, tokens).matmul(value)
    } else {
        softmax(scores, 4).cast(value.dtype()).matmul(value)
    };
    let mixed = mixed.reshape([prompts, heads, columns, sharing, queries, dim]).permute([0, 2, 4, 1, 3, 5]).reshape([
        prompts * columns * queries,
        query_heads,
        dim,
    ]);
    padded.back.of(mixed)
}

pub(super) fn score(hidden: &Tensor<2>, weight: &Tensor<2>, scoring: &Scoring) -> Tensor<2> {
    let device = hidden.device();
    let bias = Tensor::<1>::from_data(TensorData::new(scoring.bias.to_vec(), [scoring.bias.len()]), &device);
    let part = |rows: Range<usize>| {
        let logits = hidden.clone().narrow(0, rows.start, rows.len()).matmul(weight.clone()).cast(DType::F32);
        let distribution = log_softmax(logits / scoring.temperature + bias.clone().unsqueeze(), 1);
        let targets: Vec<i64> = scoring.targets[rows.clone()].iter().map(|&id| i64::from(id)).collect();
        let targets = Tensor::<2, Int>::from_data(TensorData::new(targets, [rows.len(), 1]), &device);
        let entropy = (distribution.clone().exp() * distribution.clone()).sum_dim(1).neg();
        Tensor::cat(vec![distribution.gather(1, targets), entropy], 1)
    };
    Tensor::cat(scoring.chunks().map(part).collect(), 0)
}
