//! The fused operations as operations of the CPU backend, with their gradients.
//!
//! Gradients keep what went in and work out the rest again: that is cheaper than to write and read it.

use std::sync::Arc;

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::ops::FloatTensorOps as _;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, DispatchDevice, Flex, TensorMetadata as _, backend_extension};
use burn::tensor::{DType, Device, Tensor, TensorData};
use rayon::prelude::*;

use super::kernel::{self, Distribution, Score, over_rows, over_rows_of_two};
use super::{Scoring, Seen};

type Float = FloatTensor<Flex>;

/// Whether these loops are for tensors of this type on this device.
pub(super) fn runs_on(device: &Device, dtype: DType) -> bool {
    dtype == DType::F32 && matches!(device.clone().inner().as_dispatch(), DispatchDevice::Flex(_))
}

pub(super) fn swiglu<const D: usize>(gate: Tensor<D>, up: Tensor<D>) -> Tensor<D> {
    Tensor::from_dispatch(<Dispatch as Fused>::swiglu(gate.into_dispatch(), up.into_dispatch()))
}

pub(super) fn rms_norm<const D: usize>(x: Tensor<D>, gamma: Tensor<1>, epsilon: f32) -> Tensor<D> {
    Tensor::from_dispatch(<Dispatch as Fused>::rms_norm(x.into_dispatch(), gamma.into_dispatch(), epsilon))
}

pub(super) fn rotate(x: Tensor<4>, cos: Tensor<4>, sin: Tensor<4>) -> Tensor<4> {
    Tensor::from_dispatch(<Dispatch as Fused>::rotate(x.into_dispatch(), cos.into_dispatch(), sin.into_dispatch()))
}

pub(super) fn attend(query: Tensor<5>, prompt: [Tensor<4>; 2], own: [Tensor<5>; 2], seen: Seen) -> Tensor<5> {
    let [prompt_key, prompt_value] = prompt.map(Tensor::into_dispatch);
    let [key, value] = own.map(Tensor::into_dispatch);
    let query = query.into_dispatch();
    Tensor::from_dispatch(<Dispatch as Fused>::attend(query, prompt_key, prompt_value, key, value, seen))
}

pub(super) fn score(hidden: Tensor<2>, weight: Tensor<2>, scoring: Arc<Scoring>) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as Fused>::score(hidden.into_dispatch(), weight.into_dispatch(), scoring))
}

/// The operations; their arguments are those of the functions above.
#[backend_extension(Flex, Autodiff)]
trait Fused: Backend {
    fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self>;
    fn rms_norm(x: FloatTensor<Self>, gamma: FloatTensor<Self>, epsilon: f32) -> FloatTensor<Self>;
    fn rotate(x: FloatTensor<Self>, cos: FloatTensor<Self>, sin: FloatTensor<Self>) -> FloatTensor<Self>;
    fn attend(
        query: FloatTensor<Self>,
        prompt_key: FloatTensor<Self>,
        prompt_value: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        seen: Seen,
    ) -> FloatTensor<Self>;
    fn score(hidden: FloatTensor<Self>, weight: FloatTensor<Self>, scoring: Arc<Scoring>) -> FloatTensor<Self>;
}

impl Fused for Flex {
    fn swiglu(gate: Float, up: Float) -> Float {
        let (gate, up) = (gate.to_contiguous(), up.to_contiguous());
        let (a, b) = (values(&gate), values(&up));
        let mut out = vec![0.0; a.len()];
        over_rows(&mut out, 1, |start, out| kernel::swiglu(&a[start..][..out.len()], &b[start..][..out.len()], out));
        tensor(out, &gate)
    }

    fn rms_norm(x: Float, gamma: Float, epsilon: f32) -> Float {
        let (x, gamma) = (x.to_contiguous(), gamma.to_contiguous());
        let (values, gamma) = (values(&x), values(&gamma));
        let width = gamma.len();
        let mut out = vec![0.0; values.len()];
        over_rows(&mut out, width, |row, out| {
            kernel::rms_norm(&values[row * width..][..out.len()], gamma, epsilon, out);
        });
        tensor(out, &x)
    }

    fn rotate(x: Float, cos: Float, sin: Float) -> Float {
        rotate_heads(&x, &cos, &sin, false)
    }

    fn attend(query: Float, prompt_key: Float, prompt_value: Float, key: Float, value: Float, seen: Seen) -> Float {
        attend_forward(query, prompt_key, prompt_value, key, value, &seen).0
    }

    fn score(hidden: Float, weight: Float, scoring: Arc<Scoring>) -> Float {
        let [rows, _] = hidden.shape().dims();
        let mut out = vec![0.0; 2 * rows];
        for (start, count) in scoring.chunks() {
            let logits = chunk_of_logits(&hidden, &weight, start, count);
            let scores = scored(logits, &scoring, start).1;
            for (out, score) in out[2 * start..].chunks_exact_mut(2).zip(scores) {
                out.copy_from_slice(&[score.log_prob, score.entropy]);
            }
        }
        Float::from_data(TensorData::new(out, [rows, 2]))
    }
}

impl<C: CheckpointStrategy> Fused for Autodiff<Flex, C> {
    fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        match SwiGlu.prepare::<C>([gate.node(), up.node()]).compute_bound().stateful() {
            OpsKind::Tracked(operation) => {
                let (gate, up) = (gate.into_primitive(), up.into_primitive());
                operation.finish((gate.clone(), up.clone()), Flex::swiglu(gate, up))
            }
            OpsKind::UnTracked(operation) => operation.finish(Flex::swiglu(gate.into_primitive(), up.into_primitive())),
        }
    }

    fn rms_norm(x: FloatTensor<Self>, gamma: FloatTensor<Self>, epsilon: f32) -> FloatTensor<Self> {
        match RmsNorm.prepare::<C>([x.node(), gamma.node()]).compute_bound().stateful() {
            OpsKind::Tracked(operation) => {
                let (x, gamma) = (x.into_primitive(), gamma.into_primitive());
                operation.finish((x.clone(), gamma.clone(), epsilon), Flex::rms_norm(x, gamma, epsilon))
            }
            OpsKind::UnTracked(operation) => {
                operation.finish(Flex::rms_norm(x.into_primitive(), gamma.into_primitive(), epsilon))
            }
        }
    }

    fn rotate(x: FloatTensor<Self>, cos: FloatTensor<Self>, sin: FloatTensor<Self>) -> FloatTensor<Self> {
        let prepared = Rotate.prepare::<C>([x.node()]).compute_bound().stateful();
        let (x, cos, sin) = (x.into_primitive(), cos.into_primitive(), sin.into_primitive());
        let rotated = Flex::rotate(x, cos.clone(), sin.clone());
        match prepared {
            OpsKind::Tracked(operation) => operation.finish((cos, sin), rotated),
            OpsKind::UnTracked(operation) => operation.finish(rotated),
        }
    }

    fn attend(
        query: FloatTensor<Self>,
        prompt_key: FloatTensor<Self>,
        prompt_value: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        seen: Seen,
    ) -> FloatTensor<Self> {
        let nodes = [query.node(), prompt_key.node(), prompt_value.node(), key.node(), value.node()];
        let prepared = Attend.prepare::<C>(nodes).compute_bound().stateful();
        let given = [query, prompt_key, prompt_value, key, value].map(FloatTensor::<Self>::into_primitive);
        let [query, prompt_key, prompt_value, key, value] = given.clone();
        let (out, probabilities) = attend_forward(query, prompt_key, prompt_value, key, value, &seen);
        match prepared {
            OpsKind::Tracked(operation) => operation.finish((given, probabilities, seen), out),
            OpsKind::UnTracked(operation) => operation.finish(out),
        }
    }

    fn score(hidden: FloatTensor<Self>, weight: FloatTensor<Self>, scoring: Arc<Scoring>) -> FloatTensor<Self> {
        let prepared = ScoreTokens.prepare::<C>([hidden.node(), weight.node()]).compute_bound().stateful();
        let (hidden, weight) = (hidden.into_primitive(), weight.into_primitive());
        let scores = Flex::score(hidden.clone(), weight.clone(), scoring.clone());
        match prepared {
            OpsKind::Tracked(operation) => operation.finish((hidden, weight, scoring), scores),
            OpsKind::UnTracked(operation) => operation.finish(scores),
        }
    }
}

#[derive(Debug)]
struct SwiGlu;

impl Backward<Flex, 2> for SwiGlu {
    type State = (Float, Float);

    fn backward(self, operation: Ops<Self::State, 2>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let (gate, up) = operation.state.clone();
        let (gate, up) = (gate.to_contiguous(), up.to_contiguous());
        let mut gradient = gradients.consume::<Flex>(&operation.node).to_contiguous();
        let (a, b) = (values(&gate), values(&up));
        let mut to_gate = vec![0.0; a.len()];
        over_rows_of_two([(values_mut(&mut gradient), 1), (&mut to_gate, 1)], |start, gradient, to_gate| {
            let (a, b) = (&a[start..][..gradient.len()], &b[start..][..gradient.len()]);
            kernel::swiglu_backward(a, b, gradient, to_gate);
        });
        register(gradients, operation, [tensor(to_gate, &gate), gradient]);
    }
}

#[derive(Debug)]
struct RmsNorm;

impl Backward<Flex, 2> for RmsNorm {
    type State = (Float, Float, f32);

    fn backward(self, operation: Ops<Self::State, 2>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let (x, gamma, epsilon) = operation.state.clone();
        let (x, gamma) = (x.to_contiguous(), gamma.to_contiguous());
        let mut gradient = gradients.consume::<Flex>(&operation.node).to_contiguous();
        let (x_values, gamma_values) = (values(&x), values(&gamma));
        let width = gamma_values.len();
        let rows = kernel::rows_per_task(width);
        // Every task sums for itself, and the sums are added in their order.
        let work = |(task, gradient): (usize, &mut [f32])| {
            let mut to_gamma = vec![0.0; width];
            let x = &x_values[task * rows * width..][..gradient.len()];
            kernel::rms_norm_backward(x, gamma_values, epsilon, gradient, &mut to_gamma);
            to_gamma
        };
        let parts: Vec<Vec<f32>> =
            values_mut(&mut gradient).par_chunks_mut(rows * width).enumerate().map(work).collect();
        let mut to_gamma = vec![0.0; width];
        for part in parts {
            to_gamma.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
        }
        register(gradients, operation, [gradient, tensor(to_gamma, &gamma)]);
    }
}

#[derive(Debug)]
struct Rotate;

impl Backward<Flex, 1> for Rotate {
    type State = (Float, Float);

    fn backward(self, operation: Ops<Self::State, 1>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let (cos, sin) = operation.state.clone();
        let gradient = gradients.consume::<Flex>(&operation.node);
        register(gradients, operation, [rotate_heads(&gradient, &cos, &sin, true)]);
    }
}

/// From `[rows, tokens, heads, dim]` to `[rows, heads, tokens, dim]`, or the way `back`.
fn rotate_heads(x: &Float, cos: &Float, sin: &Float, back: bool) -> Float {
    let x = x.to_contiguous();
    let [rows, one, other, dim] = x.shape().dims();
    let (tokens, heads) = if back { (other, one) } else { (one, other) };
    let [table_rows, ..] = cos.shape().dims::<4>();
    let (cos, sin) = (cos.to_contiguous(), sin.to_contiguous());
    let (cos, sin) = (values(&cos), values(&sin));
    let given = values(&x);
    let mut out = vec![0.0; given.len()];
    over_rows(&mut out, other * one * dim, |first, out| {
        for (offset, out) in out.chunks_exact_mut(one * other * dim).enumerate() {
            let row = first + offset;
            let given = &given[row * one * other * dim..][..one * other * dim];
            // Both halves of a head have the same angles.
            let table = row * table_rows / rows * tokens * dim;
            let (cos, sin) = (&cos[table..][..tokens * dim], &sin[table..][..tokens * dim]);
            kernel::rotate(given, out, [tokens, heads], [cos, sin], back);
        }
    });
    Float::from_data(TensorData::new(out, [rows, other, one, dim]))
}

#[derive(Debug)]
struct Attend;

/// Attention probabilities: to the prompt `[prompts, key heads, completions x rows, prompt tokens]`, and to the
/// completion itself `[prompts, key heads, completions, rows, tokens]`.
type Probabilities = [Float; 2];

/// See [`super::attend`].
fn attend_forward(
    query: Float,
    prompt_key: Float,
    prompt_value: Float,
    key: Float,
    value: Float,
    seen: &Seen,
) -> (Float, Probabilities) {
    let shape = query.shape();
    let [prompts, heads, completions, rows, dim] = shape.dims();
    let [.., prompt_tokens, _] = prompt_key.shape().dims::<4>();
    let flat = [prompts, heads, completions * rows, dim];
    let mut to_prompt = product(Flex::float_reshape(query.clone(), flat.into()), transposed(prompt_key));
    let mut to_own = product(query, transposed(key));
    let [.., tokens] = to_own.shape().dims::<5>();
    let parts = [(values_mut(&mut to_prompt), prompt_tokens), (values_mut(&mut to_own), tokens)];
    over_rows_of_two(parts, |first, to_prompt, to_own| {
        for offset in 0..to_own.len() / tokens {
            let row = first + offset;
            let counts = seen.counts(row, [heads * completions * rows, rows], [prompt_tokens, tokens]);
            let one = &mut to_prompt[offset * prompt_tokens..][..prompt_tokens];
            kernel::softmax(one, &mut to_own[offset * tokens..][..tokens], counts, seen.scale);
        }
    });
    let from_own = product(to_own.clone(), value);
    let out = if prompt_tokens == 0 {
        from_own
    } else {
        let from_prompt = product(to_prompt.clone(), prompt_value);
        Flex::float_add(Flex::float_reshape(from_prompt, shape), from_own)
    };
    (out, [to_prompt, to_own])
}

impl Backward<Flex, 5> for Attend {
    type State = ([Float; 5], Probabilities, Seen);

    fn backward(self, operation: Ops<Self::State, 5>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let ([query, prompt_key, prompt_value, key, value], [p, q], seen) = operation.state.clone();
        let gradient = gradients.consume::<Flex>(&operation.node).to_contiguous();
        let [prompts, heads, completions, rows, dim] = query.shape().dims();
        let [.., prompt_tokens] = p.shape().dims::<4>();
        let [.., tokens] = q.shape().dims::<5>();
        let flat = |tensor: Float| Flex::float_reshape(tensor, [prompts, heads, completions * rows, dim].into());
        let flat_gradient = flat(gradient.clone());

        let mut to_prompt = product(flat_gradient.clone(), transposed(prompt_value));
        let mut to_own = product(gradient.clone(), transposed(value));
        let (p_values, q_values) = (values(&p), values(&q));
        let parts = [(values_mut(&mut to_prompt), prompt_tokens), (values_mut(&mut to_own), tokens)];
        over_rows_of_two(parts, |first, to_prompt, to_own| {
            for offset in 0..to_own.len() / tokens {
                let row = first + offset;
                let p = &p_values[row * prompt_tokens..][..prompt_tokens];
                let q = &q_values[row * tokens..][..tokens];
                let one = &mut to_prompt[offset * prompt_tokens..][..prompt_tokens];
                kernel::softmax_backward((p, q), one, &mut to_own[offset * tokens..][..tokens], seen.scale);
            }
        });

        let flat_query = flat(query.clone());
        let mut to_query = product(to_own.clone(), key);
        if prompt_tokens > 0 {
            let from_prompt = product(to_prompt.clone(), prompt_key);
            to_query = Flex::float_add(to_query, Flex::float_reshape(from_prompt, query.shape()));
        }
        register(
            gradients,
            operation,
            [
                to_query,
                product(transposed(to_prompt), flat_query),
                product(transposed(p), flat_gradient),
                product(transposed(to_own), query),
                product(transposed(q), gradient),
            ],
        );
    }
}

#[derive(Debug)]
struct ScoreTokens;

impl Backward<Flex, 2> for ScoreTokens {
    type State = (Float, Float, Arc<Scoring>);

    fn backward(self, operation: Ops<Self::State, 2>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let (hidden, weight, scoring) = operation.state.clone();
        let gradient = gradients.consume::<Flex>(&operation.node).to_contiguous();
        let gradient = values(&gradient);
        let [.., vocabulary] = weight.shape().dims::<2>();
        let mut to_hidden = Vec::with_capacity(hidden.shape().num_elements());
        let mut to_weight: Option<Float> = None;
        for (start, count) in scoring.chunks() {
            let (mut logits, scores) = scored(chunk_of_logits(&hidden, &weight, start, count), &scoring, start);
            over_rows(values_mut(&mut logits), vocabulary, |first, logits| {
                for (offset, logits) in logits.chunks_exact_mut(vocabulary).enumerate() {
                    let row = first + offset;
                    let gradients = (gradient[2 * (start + row)], gradient[2 * (start + row) + 1]);
                    let target = scoring.targets[start + row] as usize;
                    kernel::score_backward(logits, scoring.temperature, target, scores[row], gradients);
                }
            });
            to_hidden.extend_from_slice(values(&Flex::float_matmul(logits.clone(), transposed(weight.clone()))));
            if operation.parents[1].is_some() {
                let part = Flex::float_matmul(transposed(hidden.narrow(0, start, count)), logits);
                to_weight = Some(match to_weight {
                    Some(sum) => Flex::float_add(sum, part),
                    None => part,
                });
            }
        }
        let to_hidden = tensor(to_hidden, &hidden);
        let [hidden_node, weight_node] = operation.parents;
        if let Some(node) = hidden_node {
            gradients.register::<Flex>(node.id, to_hidden);
        }
        if let Some((node, to_weight)) = weight_node.zip(to_weight) {
            gradients.register::<Flex>(node.id, to_weight);
        }
    }
}

fn chunk_of_logits(hidden: &Float, weight: &Float, start: usize, count: usize) -> Float {
    Flex::float_matmul(hidden.narrow(0, start, count), weight.clone())
}

/// Scores of a chunk that begins at row `start`, and the logits of its distribution.
fn scored(mut logits: Float, scoring: &Scoring, start: usize) -> (Float, Vec<Score>) {
    let distribution = Distribution { bias: &scoring.bias, temperature: scoring.temperature };
    let vocabulary = scoring.bias.len();
    let rows = values_mut(&mut logits)
        .par_chunks_exact_mut(vocabulary)
        .enumerate()
        .with_min_len(kernel::rows_per_task(vocabulary));
    let scores =
        rows.map(|(row, logits)| kernel::score(logits, distribution, scoring.targets[start + row] as usize)).collect();
    (logits, scores)
}

/// A matrix product that may be empty.
fn product(left: Float, right: Float) -> Float {
    let mut shape = left.shape();
    let rank = shape.num_dims();
    shape[rank - 1] = right.shape()[rank - 1];
    if shape.num_elements() == 0 { Float::zeros(shape, DType::F32) } else { Flex::float_matmul(left, right) }
}

fn transposed(tensor: Float) -> Float {
    let rank = tensor.shape().num_dims();
    Flex::float_swap_dims(tensor, rank - 2, rank - 1)
}

/// Hands gradients to those who want them.
fn register<S, const N: usize>(gradients: &mut Gradients, operation: Ops<S, N>, found: [Float; N]) {
    for (parent, found) in operation.parents.into_iter().zip(found) {
        if let Some(parent) = parent {
            gradients.register::<Flex>(parent.id, found);
        }
    }
}

/// Values of a contiguous tensor.
fn values(tensor: &Float) -> &[f32] {
    tensor.as_slice().expect("the tensor is contiguous and of float32")
}

/// The same to work on in place; they are copied first where somebody else has them too.
fn values_mut(tensor: &mut Float) -> &mut [f32] {
    let (start, end) = tensor.layout().contiguous_offsets().expect("the tensor is contiguous");
    &mut tensor.storage_mut()[start..end]
}

/// A tensor of the shape of another.
fn tensor(values: Vec<f32>, like: &Float) -> Float {
    Float::from_data(TensorData::new(values, like.shape()))
}
