//! The fused operations as operations of the CPU backend, with their gradients.
//!
//! Gradients keep what went in and work out the rest again: that is cheaper than to write and read it.

use std::ops::Range;
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

use super::attention::{Given, ToGiven};
use super::kernel::{self, Distribution, Score, over_rows, over_rows_of_two};
use super::product::{Matrix, Spread, multiplied, product};
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

pub(super) fn gelu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    Tensor::from_dispatch(<Dispatch as Fused>::gelu(x.into_dispatch()))
}

pub(super) fn layer_norm<const D: usize>(x: Tensor<D>, gamma: Tensor<1>, beta: Tensor<1>, epsilon: f32) -> Tensor<D> {
    let (x, gamma, beta) = (x.into_dispatch(), gamma.into_dispatch(), beta.into_dispatch());
    Tensor::from_dispatch(<Dispatch as Fused>::layer_norm(x, gamma, beta, epsilon))
}

pub(super) fn rotate(x: Tensor<3>, cos: Tensor<2>, sin: Tensor<2>) -> Tensor<3> {
    Tensor::from_dispatch(<Dispatch as Fused>::rotate(x.into_dispatch(), cos.into_dispatch(), sin.into_dispatch()))
}

pub(super) fn linear(x: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as Fused>::linear(x.into_dispatch(), weight.into_dispatch()))
}

pub(super) fn affine(x: Tensor<2>, weight: Tensor<2>, bias: Tensor<1>) -> Tensor<2> {
    Tensor::from_dispatch(<Dispatch as Fused>::affine(x.into_dispatch(), weight.into_dispatch(), bias.into_dispatch()))
}

pub(super) fn attend(query: Tensor<3>, prompt: [Tensor<3>; 2], own: [Tensor<3>; 2], seen: Seen) -> Tensor<3> {
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
    fn gelu(x: FloatTensor<Self>) -> FloatTensor<Self>;
    fn layer_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        epsilon: f32,
    ) -> FloatTensor<Self>;
    fn rotate(x: FloatTensor<Self>, cos: FloatTensor<Self>, sin: FloatTensor<Self>) -> FloatTensor<Self>;
    fn linear(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self>;
    fn affine(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self>;
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

    fn gelu(x: Float) -> Float {
        let x = x.to_contiguous();
        let given = values(&x);
        let mut out = vec![0.0; given.len()];
        over_rows(&mut out, 1, |start, out| kernel::gelu(&given[start..][..out.len()], out));
        tensor(out, &x)
    }

    fn layer_norm(x: Float, gamma: Float, beta: Float, epsilon: f32) -> Float {
        let (x, gamma, beta) = (x.to_contiguous(), gamma.to_contiguous(), beta.to_contiguous());
        let (given, gamma, beta) = (values(&x), values(&gamma), values(&beta));
        let width = gamma.len();
        let mut out = vec![0.0; given.len()];
        over_rows(&mut out, width, |row, out| {
            kernel::layer_norm(&given[row * width..][..out.len()], [gamma, beta], epsilon, out);
        });
        tensor(out, &x)
    }

    fn rotate(x: Float, cos: Float, sin: Float) -> Float {
        rotate_heads(&x, &cos, &sin, false)
    }

    fn linear(x: Float, weight: Float) -> Float {
        let x = x.to_contiguous();
        let [rows, inputs] = x.shape().dims();
        let weight = strided(weight);
        let columns = matrix(&weight).columns();
        let out = multiplied(Matrix::new(values(&x), rows, inputs), matrix(&weight), Spread::Yes);
        Float::from_data(TensorData::new(out, [rows, columns]))
    }

    fn affine(x: Float, weight: Float, bias: Float) -> Float {
        let (x, bias) = (x.to_contiguous(), bias.to_contiguous());
        let [rows, inputs] = x.shape().dims();
        let (weight, bias) = (strided(weight), values(&bias));
        let mut out = bias.repeat(rows);
        let x = Matrix::new(values(&x), rows, inputs);
        product(&mut out, [bias.len(), 1], x, matrix(&weight), true, Spread::Yes);
        Float::from_data(TensorData::new(out, [rows, bias.len()]))
    }

    fn attend(query: Float, prompt_key: Float, prompt_value: Float, key: Float, value: Float, seen: Seen) -> Float {
        let given = [query, prompt_key, prompt_value, key, value].map(|tensor| tensor.to_contiguous());
        let (mixed, _) = seen.given(&given).forward(&seen.tiles);
        tensor(mixed, &given[0])
    }

    fn score(hidden: Float, weight: Float, scoring: Arc<Scoring>) -> Float {
        let hidden = hidden.to_contiguous();
        let [rows, width] = hidden.shape().dims();
        let weight = strided(weight);
        let hidden = Matrix::new(values(&hidden), rows, width);
        let mut out = vec![0.0; 2 * rows];
        let mut logits = Vec::new();
        for Range { start, end } in scoring.chunks() {
            let scores = scored(&mut logits, hidden.part(start, end - start), matrix(&weight), &scoring, start);
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

    fn gelu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        match Gelu.prepare::<C>([x.node()]).compute_bound().stateful() {
            OpsKind::Tracked(operation) => {
                let x = x.into_primitive();
                operation.finish(x.clone(), Flex::gelu(x))
            }
            OpsKind::UnTracked(operation) => operation.finish(Flex::gelu(x.into_primitive())),
        }
    }

    fn layer_norm(
        x: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        epsilon: f32,
    ) -> FloatTensor<Self> {
        let prepared = LayerNorm.prepare::<C>([x.node(), gamma.node(), beta.node()]).compute_bound().stateful();
        let (x, gamma, beta) = (x.into_primitive(), gamma.into_primitive(), beta.into_primitive());
        let normalised = Flex::layer_norm(x.clone(), gamma.clone(), beta, epsilon);
        match prepared {
            OpsKind::Tracked(operation) => operation.finish((x, gamma, epsilon), normalised),
            OpsKind::UnTracked(operation) => operation.finish(normalised),
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

    fn linear(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        match Linear.prepare::<C>([x.node(), weight.node()]).compute_bound().stateful() {
            OpsKind::Tracked(operation) => {
                let (x, weight) = (x.into_primitive(), weight.into_primitive());
                operation.finish([x.clone(), weight.clone()], Flex::linear(x, weight))
            }
            OpsKind::UnTracked(operation) => {
                operation.finish(Flex::linear(x.into_primitive(), weight.into_primitive()))
            }
        }
    }

    fn affine(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self> {
        let prepared = Affine.prepare::<C>([x.node(), weight.node(), bias.node()]).compute_bound().stateful();
        let (x, weight, bias) = (x.into_primitive(), weight.into_primitive(), bias.into_primitive());
        let out = Flex::affine(x.clone(), weight.clone(), bias);
        match prepared {
            OpsKind::Tracked(operation) => operation.finish([x, weight], out),
            OpsKind::UnTracked(operation) => operation.finish(out),
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
        let given = [query, prompt_key, prompt_value, key, value]
            .map(|tensor| FloatTensor::<Self>::into_primitive(tensor).to_contiguous());
        let (mixed, log_totals) = seen.given(&given).forward(&seen.tiles);
        let out = tensor(mixed, &given[0]);
        match prepared {
            OpsKind::Tracked(operation) => operation.finish((given, log_totals.into(), seen), out),
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
        register(gradients, operation, [Some(tensor(to_gate, &gate)), Some(gradient)]);
    }
}

#[derive(Debug)]
struct RmsNorm;

impl Backward<Flex, 2> for RmsNorm {
    type State = (Float, Float, f32);

    fn backward(self, operation: Ops<Self::State, 2>, gradients: &mut Gradients, _: &mut Checkpointer) {
        norm_backward(operation, gradients, |x, gamma, epsilon, gradient, to_gamma| {
            kernel::rms_norm_backward(x, gamma, epsilon, gradient, to_gamma);
        });
    }
}

#[derive(Debug)]
struct LayerNorm;

impl Backward<Flex, 3> for LayerNorm {
    type State = (Float, Float, f32);

    fn backward(self, operation: Ops<Self::State, 3>, gradients: &mut Gradients, _: &mut Checkpointer) {
        norm_backward(operation, gradients, |x, gamma, epsilon, gradient, sums| {
            let (to_gamma, to_beta) = sums.split_at_mut(gamma.len());
            kernel::layer_norm_backward(x, gamma, epsilon, gradient, [to_gamma, to_beta]);
        });
    }
}

/// Goes backward through a norm of rows, gamma and further parameters like it: `work` gets rows, gamma, epsilon, the
/// gradient of the result, which that of the rows takes the place of, and where to add up those of the parameters, one
/// after another.
fn norm_backward<const N: usize>(
    operation: Ops<(Float, Float, f32), N>,
    gradients: &mut Gradients,
    work: impl Fn(&[f32], &[f32], f32, &mut [f32], &mut [f32]) + Sync,
) {
    let (x, gamma, epsilon) = operation.state.clone();
    let (x, gamma) = (x.to_contiguous(), gamma.to_contiguous());
    let mut gradient = gradients.consume::<Flex>(&operation.node).to_contiguous();
    let (x, gamma_values) = (values(&x), values(&gamma));
    let width = gamma_values.len();
    let parameters = (N - 1) * width;
    let rows = kernel::rows_per_task(width);
    // Every task sums for itself, and the sums are added in their order.
    let work = |(task, gradient): (usize, &mut [f32])| {
        let mut sums = vec![0.0; parameters];
        work(&x[task * rows * width..][..gradient.len()], gamma_values, epsilon, gradient, &mut sums);
        sums
    };
    let parts: Vec<Vec<f32>> = values_mut(&mut gradient).par_chunks_mut(rows * width).enumerate().map(work).collect();
    let mut sums = vec![0.0; parameters];
    for part in parts {
        sums.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
    }
    let to_parameters = sums.chunks_exact(width).map(|sums| tensor(sums.to_vec(), &gamma));
    let mut found = std::iter::once(gradient).chain(to_parameters);
    register(gradients, operation, [(); N].map(|()| found.next()));
}

#[derive(Debug)]
struct Gelu;

impl Backward<Flex, 1> for Gelu {
    type State = Float;

    fn backward(self, operation: Ops<Self::State, 1>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let x = operation.state.to_contiguous();
        let mut gradient = gradients.consume::<Flex>(&operation.node).to_contiguous();
        let given = values(&x);
        over_rows(values_mut(&mut gradient), 1, |start, gradient| {
            kernel::gelu_backward(&given[start..][..gradient.len()], gradient);
        });
        register(gradients, operation, [Some(gradient)]);
    }
}

#[derive(Debug)]
struct Rotate;

impl Backward<Flex, 1> for Rotate {
    type State = (Float, Float);

    fn backward(self, operation: Ops<Self::State, 1>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let (cos, sin) = operation.state.clone();
        let gradient = gradients.consume::<Flex>(&operation.node);
        register(gradients, operation, [Some(rotate_heads(&gradient, &cos, &sin, true))]);
    }
}

/// Turns the heads of tokens, `[tokens, heads, dim]`, by their angles, or `back`.
fn rotate_heads(x: &Float, cos: &Float, sin: &Float, back: bool) -> Float {
    let (x, cos, sin) = (x.to_contiguous(), cos.to_contiguous(), sin.to_contiguous());
    let [_, heads, dim] = x.shape().dims();
    let (given, cos, sin) = (values(&x), values(&cos), values(&sin));
    let mut out = vec![0.0; given.len()];
    let width = heads * dim;
    over_rows(&mut out, width, |token, out| {
        let tables = [cos, sin].map(|table| &table[token * dim..][..out.len() / heads]);
        kernel::rotate(&given[token * width..][..out.len()], out, dim, tables, back);
    });
    tensor(out, &x)
}

#[derive(Debug)]
struct Linear;

impl Backward<Flex, 2> for Linear {
    type State = [Float; 2];

    fn backward(self, operation: Ops<Self::State, 2>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let gradient = gradients.consume::<Flex>(&operation.node).to_contiguous();
        let found = linear_backward(&operation, &gradient);
        register(gradients, operation, found);
    }
}

#[derive(Debug)]
struct Affine;

impl Backward<Flex, 3> for Affine {
    type State = [Float; 2];

    fn backward(self, operation: Ops<Self::State, 3>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let gradient = gradients.consume::<Flex>(&operation.node).to_contiguous();
        let [to_x, to_weight] = linear_backward(&operation, &gradient);
        let [_, columns] = gradient.shape().dims();
        let mut to_bias = vec![0.0; columns];
        kernel::add_rows(values(&gradient), &mut to_bias);
        let to_bias = Float::from_data(TensorData::new(to_bias, [columns]));
        register(gradients, operation, [to_x, to_weight, Some(to_bias)]);
    }
}

/// Gradients of a linear layer's input and weight, its first two parents, where they want them.
fn linear_backward<const N: usize>(operation: &Ops<[Float; 2], N>, gradient: &Float) -> [Option<Float>; 2] {
    let [x, weight] = operation.state.clone();
    let (x, weight) = (x.to_contiguous(), strided(weight));
    let [rows, inputs] = x.shape().dims();
    let [_, outputs] = gradient.shape().dims();
    let gradient = Matrix::new(values(gradient), rows, outputs);
    let wanted = |parent: usize| operation.parents[parent].is_some();
    let to_x = wanted(0).then(|| tensor(multiplied(gradient, matrix(&weight).transposed(), Spread::Yes), &x));
    let to_weight = wanted(1).then(|| {
        let mut to_weight = ToMatrix::new(&weight);
        to_weight.add(Matrix::new(values(&x), rows, inputs).transposed(), gradient);
        to_weight.finish()
    });
    [to_x, to_weight]
}

/// A gradient in the memory layout of its matrix, so that both can be added element by element.
struct ToMatrix {
    /// Empty before the first product.
    values: Vec<f32>,
    shape: [usize; 2],
    transposed: bool,
}

impl ToMatrix {
    fn new(matrix: &Float) -> Self {
        let transposed = matrix.layout().strides()[0] < matrix.layout().strides()[1];
        Self { values: Vec::new(), shape: matrix.shape().dims(), transposed }
    }

    fn add(&mut self, left: Matrix<'_>, right: Matrix<'_>) {
        let [rows, columns] = self.shape;
        let (left, right, columns) =
            if self.transposed { (right.transposed(), left.transposed(), rows) } else { (left, right, columns) };
        if self.values.is_empty() {
            self.values = multiplied(left, right, Spread::Yes);
        } else {
            product(&mut self.values, [columns, 1], left, right, true, Spread::Yes);
        }
    }

    fn finish(self) -> Float {
        let [rows, columns] = self.shape;
        if self.transposed {
            return transposed(Float::from_data(TensorData::new(self.values, [columns, rows])));
        }
        Float::from_data(TensorData::new(self.values, [rows, columns]))
    }
}

#[derive(Debug)]
struct Attend;

impl Seen {
    fn given<'a>(&self, given: &'a [Float; 5]) -> Given<'a> {
        let [_, query_heads, dim] = given[0].shape().dims();
        let [_, key_heads, _] = given[3].shape().dims();
        let [query, prompt_key, prompt_value, key, value] = given.each_ref().map(values);
        let scale = self.scale;
        Given { query, prompt: [prompt_key, prompt_value], own: [key, value], query_heads, key_heads, dim, scale }
    }
}

impl Backward<Flex, 5> for Attend {
    type State = ([Float; 5], Arc<[f32]>, Seen);

    fn backward(self, operation: Ops<Self::State, 5>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let (given, log_totals, seen) = operation.state.clone();
        let gradient = gradients.consume::<Flex>(&operation.node).to_contiguous();
        let found = seen.given(&given).backward(&seen.tiles, values(&gradient), &log_totals);
        let ToGiven { query, prompt: [prompt_key, prompt_value], own: [key, value] } = found;
        let mut found = [query, prompt_key, prompt_value, key, value].into_iter().zip(&given);
        let found = [(); 5].map(|()| found.next().map(|(found, given)| tensor(found, given)));
        register(gradients, operation, found);
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
        let (hidden, weight) = (hidden.to_contiguous(), strided(weight));
        let [rows, width] = hidden.shape().dims();
        let [_, vocabulary] = weight.shape().dims();
        let mut to_hidden = vec![0.0; rows * width];
        let mut to_weight = operation.parents[1].is_some().then(|| ToMatrix::new(&weight));
        let hidden_rows = Matrix::new(values(&hidden), rows, width);
        let mut logits = Vec::new();
        for Range { start, end } in scoring.chunks() {
            let hidden = hidden_rows.part(start, end - start);
            let scores = scored(&mut logits, hidden, matrix(&weight), &scoring, start);
            over_rows(&mut logits, vocabulary, |first, logits| {
                for (offset, logits) in logits.chunks_exact_mut(vocabulary).enumerate() {
                    let row = first + offset;
                    let gradients = (gradient[2 * (start + row)], gradient[2 * (start + row) + 1]);
                    let target = scoring.targets[start + row] as usize;
                    kernel::score_backward(logits, scoring.temperature, target, scores[row], gradients);
                }
            });
            let to_logits = Matrix::new(&logits, end - start, vocabulary);
            let to_hidden = &mut to_hidden[start * width..end * width];
            product(to_hidden, [width, 1], to_logits, matrix(&weight).transposed(), false, Spread::Yes);
            if let Some(to_weight) = &mut to_weight {
                to_weight.add(hidden.transposed(), to_logits);
            }
        }
        let found = [Some(tensor(to_hidden, &hidden)), to_weight.map(ToMatrix::finish)];
        register(gradients, operation, found);
    }
}

/// Scores of a chunk that begins at row `start`; leaves the logits of its distribution.
fn scored(
    logits: &mut Vec<f32>,
    hidden: Matrix<'_>,
    weight: Matrix<'_>,
    scoring: &Scoring,
    start: usize,
) -> Vec<Score> {
    let distribution = Distribution { bias: &scoring.bias, temperature: scoring.temperature };
    let vocabulary = scoring.bias.len();
    logits.resize(hidden.rows() * vocabulary, 0.0);
    product(logits, [vocabulary, 1], hidden, weight, false, Spread::Yes);
    let rows = logits.par_chunks_exact_mut(vocabulary).enumerate().with_min_len(kernel::rows_per_task(vocabulary));
    rows.map(|(row, logits)| kernel::score(logits, distribution, scoring.targets[start + row] as usize)).collect()
}

fn transposed(tensor: Float) -> Float {
    let rank = tensor.shape().num_dims();
    Flex::float_swap_dims(tensor, rank - 2, rank - 1)
}

/// Hands gradients to those who want them.
fn register<S, const N: usize>(gradients: &mut Gradients, operation: Ops<S, N>, found: [Option<Float>; N]) {
    for (parent, found) in operation.parents.into_iter().zip(found) {
        if let Some((parent, found)) = parent.zip(found) {
            gradients.register::<Flex>(parent.id, found);
        }
    }
}

/// A matrix whose strides are not negative.
fn strided(tensor: Float) -> Float {
    if tensor.layout().strides().iter().all(|&stride| stride >= 0) { tensor } else { tensor.to_contiguous() }
}

/// What [`strided`] returned, as it lies in memory.
fn matrix(tensor: &Float) -> Matrix<'_> {
    let [rows, columns] = tensor.shape().dims();
    let layout = tensor.layout();
    let strides = [0, 1].map(|axis| layout.strides()[axis].unsigned_abs());
    Matrix::strided(&tensor.storage()[layout.start_offset()..], rows, columns, strides)
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
