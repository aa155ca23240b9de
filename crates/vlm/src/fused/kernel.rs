//! The loops of the fused operations, over rows of float32.
//!
//! They are compiled for the widest vectors that the processor has. The order of all additions is fixed, so the numbers
//! depend neither on the width of the vectors nor on the number of threads.

// What is not inlined is not compiled for the processor's vectors, and the macro that does it wants lifetimes by name.
#![allow(clippy::inline_always, clippy::elidable_lifetime_names, clippy::needless_lifetimes)]

use pulp::Simd;
use rayon::prelude::*;

/// Partial sums of a row: as many as the widest vectors hold, and some more to hide their latency.
const LANES: usize = 32;

/// Numbers that are worth a task of their own.
const TASK: usize = 1 << 14;

/// Rows of this length in a task.
pub(super) fn rows_per_task(length: usize) -> usize {
    (TASK / length.max(1)).max(1)
}

/// Runs `work` over the rows of `out`, several at a time: it gets the first row's number and the rows.
pub(super) fn over_rows(out: &mut [f32], length: usize, work: impl Fn(usize, &mut [f32]) + Sync) {
    let rows = rows_per_task(length);
    if out.len() <= 2 * TASK {
        work(0, out);
    } else {
        out.par_chunks_mut(rows * length).enumerate().for_each(|(task, out)| work(task * rows, out));
    }
}

/// The same over two arrays of the same rows.
pub(super) fn over_rows_of_two(
    [(one, length), (other, other_length)]: [(&mut [f32], usize); 2],
    work: impl Fn(usize, &mut [f32], &mut [f32]) + Sync,
) {
    let rows = rows_per_task(length + other_length);
    if length == 0 {
        over_rows(other, other_length, |row, other| work(row, &mut [], other));
    } else if one.len() + other.len() <= 2 * TASK {
        work(0, one, other);
    } else {
        let others = other.par_chunks_mut(rows * other_length);
        let both = one.par_chunks_mut(rows * length).zip(others).enumerate();
        both.for_each(|(task, (one, other))| work(task * rows, one, other));
    }
}

/// e to the power of x, within 2 units in the last place; 0 below -87.
#[inline(always)]
fn exp(x: f32) -> f32 {
    const LOWEST: f32 = -87.0;
    const HIGHEST: f32 = 88.0;
    // Adding it leaves an integer in the lowest bits of the mantissa.
    const INTEGER: f32 = 12_582_912.0;
    // The logarithm of two in two parts, the first of few bits, so that its multiples are exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let limited = x.clamp(LOWEST, HIGHEST);
    let shifted = limited * std::f32::consts::LOG2_E + INTEGER;
    let power = shifted - INTEGER;
    let rest = limited - power * LN_2_HIGH - power * LN_2_LOW;
    // Taylor's series, its last terms adjusted to the interval.
    let series = 1.987_569_1e-4;
    let series = series * rest + 1.398_199_9e-3;
    let series = series * rest + 8.333_452e-3;
    let series = series * rest + 4.166_579_6e-2;
    let series = series * rest + 1.666_666_6e-1;
    let series = series * rest + 0.5;
    let root = series * rest * rest + rest + 1.0;
    let scale = f32::from_bits(shifted.to_bits().wrapping_sub(INTEGER.to_bits()).wrapping_add(127) << 23);
    if x < LOWEST { 0.0 } else { root * scale }
}

/// Sums of what `terms` makes of the elements.
#[inline(always)]
fn sums<const N: usize>(length: usize, terms: impl Fn(usize) -> [f32; N]) -> [f32; N] {
    let mut lanes = [[0.0f32; LANES]; N];
    let whole = length / LANES * LANES;
    for start in (0..whole).step_by(LANES) {
        for lane in 0..LANES {
            for (lanes, term) in lanes.iter_mut().zip(terms(start + lane)) {
                lanes[lane] += term;
            }
        }
    }
    for index in whole..length {
        for (lanes, term) in lanes.iter_mut().zip(terms(index)) {
            lanes[index - whole] += term;
        }
    }
    lanes.map(total)
}

/// The sum of all lanes, halves upon halves.
#[inline(always)]
fn total(lanes: [f32; LANES]) -> f32 {
    let lanes: [f32; 16] = std::array::from_fn(|lane| lanes[lane] + lanes[lane + 16]);
    let lanes: [f32; 8] = std::array::from_fn(|lane| lanes[lane] + lanes[lane + 8]);
    let lanes: [f32; 4] = std::array::from_fn(|lane| lanes[lane] + lanes[lane + 4]);
    (lanes[0] + lanes[2]) + (lanes[1] + lanes[3])
}

#[inline(always)]
fn sum(length: usize, term: impl Fn(usize) -> f32) -> f32 {
    sums(length, |index| [term(index)])[0]
}

/// The largest; what is no number is passed over.
#[inline(always)]
fn largest(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    let larger = |a: f32, b: f32| if a > b { a } else { b };
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, value);
        }
    }
    for (lane, &value) in lanes.iter_mut().zip(rest) {
        *lane = larger(*lane, value);
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, larger)
}

/// `silu(gate) * up`.
#[pulp::with_simd(swiglu = pulp::Arch::new())]
#[inline(always)]
pub(super) fn swiglu_with_simd<'a, S: Simd>(_simd: S, gate: &'a [f32], up: &'a [f32], out: &'a mut [f32]) {
    for ((out, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
        *out = gate / (1.0 + exp(-gate)) * up;
    }
}

/// Gradients of [`swiglu`]; that of `up` takes the place of the gradient of its result.
#[pulp::with_simd(swiglu_backward = pulp::Arch::new())]
#[inline(always)]
pub(super) fn swiglu_backward_with_simd<'a, S: Simd>(
    _simd: S,
    gate: &'a [f32],
    up: &'a [f32],
    gradient: &'a mut [f32],
    to_gate: &'a mut [f32],
) {
    for (((gradient, to_gate), &gate), &up) in gradient.iter_mut().zip(to_gate).zip(gate).zip(up) {
        let sigmoid = 1.0 / (1.0 + exp(-gate));
        let silu = gate * sigmoid;
        *to_gate = *gradient * up * (sigmoid + silu * (1.0 - sigmoid));
        *gradient *= silu;
    }
}

/// Twice the argument of the hyperbolic tangent in GELU's approximation, and its derivative.
#[inline(always)]
fn gelu_argument(x: f32) -> (f32, f32) {
    // Twice the root of 2 over pi.
    const FACTOR: f32 = 1.595_769;
    const CUBIC: f32 = 0.044_715;
    (FACTOR * x * (1.0 + CUBIC * x * x), FACTOR * (1.0 + 3.0 * CUBIC * x * x))
}

/// `x / 2 * (1 + tanh(..))`, which is x times a sigmoid.
#[pulp::with_simd(gelu = pulp::Arch::new())]
#[inline(always)]
pub(super) fn gelu_with_simd<'a, S: Simd>(_simd: S, x: &'a [f32], out: &'a mut [f32]) {
    for (out, &x) in out.iter_mut().zip(x) {
        *out = x / (1.0 + exp(-gelu_argument(x).0));
    }
}

/// Gradient of [`gelu`], in place of the gradient of its result.
#[pulp::with_simd(gelu_backward = pulp::Arch::new())]
#[inline(always)]
pub(super) fn gelu_backward_with_simd<'a, S: Simd>(_simd: S, x: &'a [f32], gradient: &'a mut [f32]) {
    for (gradient, &x) in gradient.iter_mut().zip(x) {
        let (argument, slope) = gelu_argument(x);
        let sigmoid = 1.0 / (1.0 + exp(-argument));
        *gradient *= sigmoid + x * sigmoid * (1.0 - sigmoid) * slope;
    }
}

/// `(x - mean) / sqrt(variance + epsilon) * gamma + beta`, row by row of gamma's length.
#[pulp::with_simd(layer_norm = pulp::Arch::new())]
#[inline(always)]
pub(super) fn layer_norm_with_simd<'a, S: Simd>(
    _simd: S,
    x: &'a [f32],
    [gamma, beta]: [&'a [f32]; 2],
    epsilon: f32,
    out: &'a mut [f32],
) {
    let width = gamma.len();
    for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
        let (mean, factor) = moments(x, epsilon);
        for (((out, &x), &gamma), &beta) in out.iter_mut().zip(x).zip(gamma).zip(beta) {
            *out = (x - mean) * factor * gamma + beta;
        }
    }
}

/// The mean, and one over the standard deviation.
#[inline(always)]
fn moments(x: &[f32], epsilon: f32) -> (f32, f32) {
    let width = x.len() as f32;
    let mean = sum(x.len(), |i| x[i]) / width;
    let variance = sum(x.len(), |i| (x[i] - mean) * (x[i] - mean)) / width;
    (mean, 1.0 / (variance + epsilon).sqrt())
}

/// Gradients of [`layer_norm`]; that of `x` takes the place of the gradient of its result, those of `gamma` and `beta`
/// are added.
#[pulp::with_simd(layer_norm_backward = pulp::Arch::new())]
#[inline(always)]
pub(super) fn layer_norm_backward_with_simd<'a, S: Simd>(
    _simd: S,
    x: &'a [f32],
    gamma: &'a [f32],
    epsilon: f32,
    gradient: &'a mut [f32],
    [to_gamma, to_beta]: [&'a mut [f32]; 2],
) {
    let width = gamma.len();
    for (x, gradient) in x.chunks_exact(width).zip(gradient.chunks_exact_mut(width)) {
        let (gradient, to_gamma, to_beta) = (&mut gradient[..width], &mut to_gamma[..width], &mut to_beta[..width]);
        let (mean, factor) = moments(x, epsilon);
        let [all, along] = sums(width, |i| {
            let scaled = gradient[i] * gamma[i];
            [scaled, scaled * (x[i] - mean)]
        });
        let (all, along) = (all / width as f32, along * factor * factor / width as f32);
        for i in 0..width {
            to_gamma[i] += gradient[i] * (x[i] - mean) * factor;
            to_beta[i] += gradient[i];
            gradient[i] = factor * (gradient[i] * gamma[i] - all - (x[i] - mean) * along);
        }
    }
}

/// `x / sqrt(mean(x^2) + epsilon) * gamma`, row by row of gamma's length.
#[pulp::with_simd(rms_norm = pulp::Arch::new())]
#[inline(always)]
pub(super) fn rms_norm_with_simd<'a, S: Simd>(
    _simd: S,
    x: &'a [f32],
    gamma: &'a [f32],
    epsilon: f32,
    out: &'a mut [f32],
) {
    let width = gamma.len();
    for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
        let factor = inverse_rms(x, epsilon);
        for ((out, &x), &gamma) in out.iter_mut().zip(x).zip(gamma) {
            *out = x * factor * gamma;
        }
    }
}

#[inline(always)]
fn inverse_rms(x: &[f32], epsilon: f32) -> f32 {
    1.0 / (sum(x.len(), |i| x[i] * x[i]) / x.len() as f32 + epsilon).sqrt()
}

/// Gradients of [`rms_norm`]; that of `x` takes the place of the gradient of its result, that of `gamma` is added.
#[pulp::with_simd(rms_norm_backward = pulp::Arch::new())]
#[inline(always)]
pub(super) fn rms_norm_backward_with_simd<'a, S: Simd>(
    _simd: S,
    x: &'a [f32],
    gamma: &'a [f32],
    epsilon: f32,
    gradient: &'a mut [f32],
    to_gamma: &'a mut [f32],
) {
    let width = gamma.len();
    for (x, gradient) in x.chunks_exact(width).zip(gradient.chunks_exact_mut(width)) {
        let (gradient, to_gamma) = (&mut gradient[..width], &mut to_gamma[..width]);
        let factor = inverse_rms(x, epsilon);
        let along = sum(width, |i| gradient[i] * gamma[i] * x[i]) * factor * factor / width as f32;
        for i in 0..width {
            to_gamma[i] += gradient[i] * x[i] * factor;
            gradient[i] = factor * (gradient[i] * gamma[i] - x[i] * along);
        }
    }
}

/// Rotates the heads of tokens by the angles of each, or turns them `back`. The tables are `[tokens, dim]`; both halves
/// of a head have the same angles.
#[pulp::with_simd(rotate = pulp::Arch::new())]
#[inline(always)]
pub(super) fn rotate_with_simd<'a, S: Simd>(
    _simd: S,
    given: &'a [f32],
    out: &'a mut [f32],
    dim: usize,
    [cos, sin]: [&'a [f32]; 2],
    back: bool,
) {
    let half = dim / 2;
    let direction = if back { -1.0 } else { 1.0 };
    let tokens = cos.len() / dim;
    let width = given.len() / tokens.max(1);
    for token in 0..tokens {
        let (cos, sin) = (&cos[token * dim..][..half], &sin[token * dim..][..half]);
        let (given, out) = (&given[token * width..][..width], &mut out[token * width..][..width]);
        for (given, out) in given.chunks_exact(dim).zip(out.chunks_exact_mut(dim)) {
            let (x, y) = given.split_at(half);
            let (out_x, out_y) = out.split_at_mut(half);
            let (y, out_y) = (&y[..half], &mut out_y[..half]);
            for i in 0..half {
                let sin = sin[i] * direction;
                out_x[i] = x[i] * cos[i] - y[i] * sin;
                out_y[i] = y[i] * cos[i] + x[i] * sin;
            }
        }
    }
}

/// Elements by which rows of scores are rounded up, so that they have no odd ends.
pub(super) const ROUND: usize = 16;

/// The beginning of a row of scores that counts, rounded up with what no exponential is left of; the rest becomes zero.
#[inline(always)]
fn counted(row: &mut [f32], count: usize) -> &mut [[f32; ROUND]] {
    let (row, rest) = row.split_at_mut(count.next_multiple_of(ROUND));
    rest.fill(0.0);
    row[count..].fill(f32::NEG_INFINITY);
    row.as_chunks_mut().0
}

/// One softmax over two parts of a row of scores, in place. The parts have lengths that are multiples of [`ROUND`]; of
/// each only the beginning counts, and the rest becomes zero. Returns the logarithm of the sum of exponentials.
#[pulp::with_simd(softmax = pulp::Arch::new())]
#[inline(always)]
pub(super) fn softmax_with_simd<'a, S: Simd>(
    _simd: S,
    one: &'a mut [f32],
    other: &'a mut [f32],
    counts: [usize; 2],
) -> f32 {
    let mut parts = [counted(one, counts[0]), counted(other, counts[1])];
    let mut lanes = [f32::NEG_INFINITY; ROUND];
    for value in parts.iter().flat_map(|part| part.iter()) {
        for (lane, &value) in lanes.iter_mut().zip(value) {
            *lane = if *lane > value { *lane } else { value };
        }
    }
    let highest = largest(&lanes);
    let mut lanes = [0.0; LANES];
    for value in parts.iter_mut().flat_map(|part| part.iter_mut()) {
        for (lane, value) in lanes.iter_mut().zip(value) {
            *value = exp(*value - highest);
            *lane += *value;
        }
    }
    let total = total(lanes);
    let factor = 1.0 / total;
    for value in parts.iter_mut().flat_map(|part| part.as_flattened_mut()) {
        *value *= factor;
    }
    highest + total.ln()
}

/// The result of [`softmax`] over again, given the logarithm that it returned.
#[pulp::with_simd(softmax_again = pulp::Arch::new())]
#[inline(always)]
pub(super) fn softmax_again_with_simd<'a, S: Simd>(
    _simd: S,
    one: &'a mut [f32],
    other: &'a mut [f32],
    counts: [usize; 2],
    log_total: f32,
) {
    for (part, count) in [(one, counts[0]), (other, counts[1])] {
        for value in counted(part, count).as_flattened_mut() {
            *value = exp(*value - log_total);
        }
    }
}

/// Gradient of [`softmax`] with respect to the scores, in place of those with respect to its result. What does not count
/// of the probabilities is zero, and becomes so of the gradients.
#[pulp::with_simd(softmax_backward = pulp::Arch::new())]
#[inline(always)]
pub(super) fn softmax_backward_with_simd<'a, S: Simd>(
    _simd: S,
    probabilities: (&'a [f32], &'a [f32]),
    one: &'a mut [f32],
    other: &'a mut [f32],
    counts: [usize; 2],
) {
    let mut lanes = [0.0; LANES];
    let parts = [(one, probabilities.0, counts[0]), (other, probabilities.1, counts[1])];
    let parts = parts.map(|(gradients, probabilities, count)| {
        let (gradients, rest) = gradients.split_at_mut(count.next_multiple_of(ROUND));
        rest.fill(0.0);
        let gradients = gradients.as_chunks_mut::<ROUND>().0;
        let probabilities = &probabilities.as_chunks::<ROUND>().0[..gradients.len()];
        for (gradient, probability) in gradients.iter().zip(probabilities) {
            for lane in 0..ROUND {
                lanes[lane] += gradient[lane] * probability[lane];
            }
        }
        (gradients, probabilities)
    });
    let mean = total(lanes);
    for (gradients, probabilities) in parts {
        for (gradient, &probability) in gradients.as_flattened_mut().iter_mut().zip(probabilities.as_flattened()) {
            *gradient = probability * (*gradient - mean);
        }
    }
}

/// Adds up rows of the length of `sums`.
#[pulp::with_simd(add_rows = pulp::Arch::new())]
#[inline(always)]
pub(super) fn add_rows_with_simd<'a, S: Simd>(_simd: S, rows: &'a [f32], sums: &'a mut [f32]) {
    for row in rows.chunks_exact(sums.len()) {
        for (sum, &value) in sums.iter_mut().zip(row) {
            *sum += value;
        }
    }
}

/// What a row of logits says of its target.
#[derive(Clone, Copy)]
pub(super) struct Score {
    pub(super) log_prob: f32,
    pub(super) entropy: f32,
    highest: f32,
    log_total: f32,
}

/// How logits become a distribution: divided by the temperature, then the bias is added.
#[derive(Clone, Copy)]
pub(super) struct Distribution<'a> {
    pub(super) bias: &'a [f32],
    pub(super) temperature: f32,
}

/// Leaves in place of the logits those of the distribution.
#[pulp::with_simd(score = pulp::Arch::new())]
#[inline(always)]
pub(super) fn score_with_simd<'a, S: Simd>(
    _simd: S,
    logits: &'a mut [f32],
    distribution: Distribution<'a>,
    target: usize,
) -> Score {
    let bias = &distribution.bias[..logits.len()];
    let factor = 1.0 / distribution.temperature;
    for (logit, &bias) in logits.iter_mut().zip(bias) {
        *logit = *logit * factor + bias;
    }
    let highest = largest(logits);
    let [total, moment] = sums(logits.len(), |i| {
        let below = logits[i] - highest;
        let weight = exp(below);
        [weight, weight * below]
    });
    let log_total = total.ln();
    Score { log_prob: logits[target] - highest - log_total, entropy: log_total - moment / total, highest, log_total }
}

/// Gradient of [`score`] with respect to the logits, in place of those that it left there. `gradients` are those with
/// respect to the log-probability and the entropy.
#[pulp::with_simd(score_backward = pulp::Arch::new())]
#[inline(always)]
pub(super) fn score_backward_with_simd<'a, S: Simd>(
    _simd: S,
    logits: &'a mut [f32],
    temperature: f32,
    target: usize,
    score: Score,
    gradients: (f32, f32),
) {
    let factor = 1.0 / temperature;
    let (to_log_prob, to_entropy) = (gradients.0 * factor, gradients.1 * factor);
    for logit in &mut *logits {
        let log_prob = *logit - score.highest - score.log_total;
        *logit = -exp(log_prob) * (to_log_prob + to_entropy * (log_prob + score.entropy));
    }
    logits[target] += to_log_prob;
}

#[cfg(test)]
mod tests {
    #![allow(clippy::float_cmp)]
    use super::*;

    #[test]
    fn exp_agrees_with_the_standard_library() {
        for step in -87_000..88_000 {
            let x = step as f32 / 1000.0;
            let expected = f64::from(x).exp();
            assert!((f64::from(exp(x)) / expected - 1.0).abs() < 3e-7, "{x}");
        }
        assert_eq!([exp(0.0), exp(-87.5), exp(-1e30), exp(f32::NEG_INFINITY)], [1.0, 0.0, 0.0, 0.0]);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn sums_take_every_element_once() {
        for length in [0, 1, 31, 32, 33, 100] {
            assert_eq!(sums(length, |i| [i as f32, 1.0]), [(0..length).sum::<usize>() as f32, length as f32]);
        }
    }

    #[test]
    fn the_largest_is_found_wherever_it_is() {
        for length in [1, 5, 32, 70] {
            for place in 0..length {
                let values: Vec<f32> = (0..length).map(|i| if i == place { 3.0 } else { -1.0 - i as f32 }).collect();
                assert_eq!(largest(&values), 3.0);
            }
        }
        assert_eq!(largest(&[]), f32::NEG_INFINITY);
    }
}
