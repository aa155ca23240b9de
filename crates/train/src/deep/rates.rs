//! How fast a device does what a step is made of.

use std::time::{Duration, Instant};

use burn::tensor::activation::{log_softmax, softmax};
use burn::tensor::{DType, Device, Distribution, FloatDType, Tensor};
use comfy_table::Table;
use serde::Serialize;

use super::{DeepDiagnosis, attempt, finish};
use crate::device::{Peaks, peaks};
use crate::table::table;

/// How fast one operation is.
#[derive(Debug, Clone, Serialize)]
pub struct Rate {
    /// The operation, and the shape it had.
    pub what: String,
    /// Float type of what it was given.
    pub dtype: &'static str,
    /// Seconds that it took, a mean over as many times as fit in a third of a second.
    pub seconds: f64,
    /// What it did in that time: floating-point operations, or bytes that had to be read or written at least.
    pub per_second: f64,
    /// `FLOP/s` or `B/s`.
    pub unit: &'static str,
    /// Share of the most that the device does of this, where that is known.
    pub share_of_peak: Option<f64>,
}

/// Sizes of the operations.
struct Sizes {
    /// Rows and columns of square matrices.
    matrix: usize,
    heads: usize,
    head_dim: usize,
    tokens: usize,
    /// Rows and words of a distribution.
    distribution: [usize; 2],
    /// Completions that are drawn at a time, and a layer that they run through.
    decoding: [usize; 3],
}

/// Those of a model of 3 billion parameters.
const LARGE: Sizes = Sizes {
    matrix: 4096,
    heads: 16,
    head_dim: 128,
    tokens: 2048,
    distribution: [512, 151_936],
    decoding: [8, 2048, 11_008],
};

/// Those of the main job's model, about.
const SMALL: Sizes =
    Sizes { matrix: 512, heads: 4, head_dim: 32, tokens: 256, distribution: [64, 8192], decoding: [8, 256, 1024] };

pub(super) fn measure(device: &Device, fast: bool, found: &mut DeepDiagnosis, progress: &mut dyn FnMut(&str)) -> Peaks {
    progress("rates");
    let peaks = if fast {
        attempt(|| Ok(peaks(device))).unwrap_or_default()
    } else {
        found.left_out.push("peaks: they are known of graphics cards alone".into());
        Peaks::default()
    };
    let sizes = if fast { LARGE } else { SMALL };
    for (dtype, name) in [(FloatDType::F32, "f32"), (FloatDType::BF16, "bf16"), (FloatDType::F16, "f16")] {
        if !device.supports_dtype(dtype) {
            found.left_out.push(format!("rates in {name}: {} does not compute in it", found.device));
            continue;
        }
        let compute = if dtype == FloatDType::F32 { peaks.single } else { peaks.half };
        for operation in [product, attention, decoding] {
            match attempt(|| Ok(operation(device, &sizes, dtype))) {
                Ok(done) => found.rates.push(done.rate(name, compute, peaks.memory)),
                Err(why) => found.left_out.push(format!("a rate in {name}: {why}")),
            }
        }
    }
    match attempt(|| Ok(distribution(device, &sizes))) {
        Ok(done) => found.rates.push(done.rate("f32", peaks.single, peaks.memory)),
        Err(why) => found.left_out.push(format!("the rate of a softmax: {why}")),
    }
    peaks
}

/// An operation that ran.
struct Done {
    what: String,
    seconds: f64,
    work: Work,
}

enum Work {
    Flops(f64),
    Bytes(f64),
}

impl Done {
    fn rate(self, dtype: &'static str, compute: Option<f64>, memory: Option<f64>) -> Rate {
        let Self { what, seconds, work } = self;
        let (amount, unit, peak) = match work {
            Work::Flops(flops) => (flops, "FLOP/s", compute),
            Work::Bytes(bytes) => (bytes, "B/s", memory),
        };
        let per_second = amount / seconds;
        Rate { what, dtype, seconds, per_second, unit, share_of_peak: peak.map(|peak| per_second / peak) }
    }
}

fn product(device: &Device, sizes: &Sizes, dtype: FloatDType) -> Done {
    let n = sizes.matrix;
    let [a, b] = [(); 2].map(|()| random([n, n], dtype, device));
    let seconds = timed(device, || a.clone().matmul(b.clone()));
    Done { what: format!("matrix product, {n} x {n} x {n}"), seconds, work: Work::Flops(2.0 * (n as f64).powi(3)) }
}

/// As the models compute it: scores and softmax in float32.
fn attention(device: &Device, sizes: &Sizes, dtype: FloatDType) -> Done {
    let Sizes { heads, head_dim, tokens, .. } = *sizes;
    let [query, key, value] = [(); 3].map(|()| random([heads, tokens, head_dim], dtype, device));
    let seconds = timed(device, || {
        let scores = query.clone().matmul(key.clone().swap_dims(1, 2)).cast(DType::F32);
        softmax(scores, 2).cast(dtype).matmul(value.clone())
    });
    let flops = 4.0 * (heads * tokens * tokens * head_dim) as f64;
    let what = format!("attention, {heads} heads of {head_dim}, {tokens} tokens");
    Done { what, seconds, work: Work::Flops(flops) }
}

/// What decoding waits for: the weights of a layer are read for a few rows.
fn decoding(device: &Device, sizes: &Sizes, dtype: FloatDType) -> Done {
    let [rows, inputs, outputs] = sizes.decoding;
    let (x, weight) = (random([rows, inputs], dtype, device), random([inputs, outputs], dtype, device));
    let seconds = timed(device, || x.clone().matmul(weight.clone()));
    let bytes = (inputs * outputs * DType::from(dtype).size()) as f64;
    let what = format!("decoding, {rows} rows through {inputs} x {outputs} weights");
    Done { what, seconds, work: Work::Bytes(bytes) }
}

fn distribution(device: &Device, sizes: &Sizes) -> Done {
    let [rows, words] = sizes.distribution;
    let logits = random([rows, words], FloatDType::F32, device);
    let seconds = timed(device, || log_softmax(logits.clone(), 1));
    let what = format!("log-softmax, {rows} x {words}");
    Done { what, seconds, work: Work::Bytes((2 * 4 * rows * words) as f64) }
}

fn random<const D: usize>(shape: [usize; D], dtype: FloatDType, device: &Device) -> Tensor<D> {
    Tensor::<D>::random(shape, Distribution::Normal(0.0, 1.0), device).cast(dtype)
}

/// Seconds of one time, of as many as take a third of a second.
fn timed<const D: usize>(device: &Device, operation: impl Fn() -> Tensor<D>) -> f64 {
    // The first ones compile and choose among kernels.
    for _ in 0..3 {
        drop(operation());
        finish(device);
    }
    let mut times = 1;
    loop {
        let start = Instant::now();
        for _ in 0..times {
            drop(operation());
        }
        finish(device);
        let elapsed = start.elapsed();
        if elapsed > Duration::from_millis(300) || times >= 1 << 20 {
            return elapsed.as_secs_f64() / f64::from(times);
        }
        times *= 2;
    }
}

pub(super) fn shown(found: &DeepDiagnosis) -> Table {
    let row = |rate: &Rate| {
        let share = rate.share_of_peak.map_or(String::new(), |share| format!("{:.0} %", 100.0 * share));
        [rate.what.clone(), rate.dtype.into(), format!("{:.3} ms", 1e3 * rate.seconds), scaled(rate), share]
    };
    table(["", "type", "takes", "rate", "of the peak"], found.rates.iter().map(row))
}

/// `1.2 TFLOP/s`.
fn scaled(Rate { per_second, unit, .. }: &Rate) -> String {
    let (divisor, prefix) = if *per_second < 1e12 { (1e9, "G") } else { (1e12, "T") };
    format!("{:.1} {prefix}{unit}", per_second / divisor)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_rate_is_work_over_time_and_a_share_of_its_own_peak() {
        let done = |work| Done { what: "work".into(), seconds: 0.5, work };
        let flops = done(Work::Flops(3e12)).rate("bf16", Some(12e12), Some(1e12));
        assert_eq!((flops.per_second, flops.share_of_peak), (6e12, Some(0.5)));
        assert_eq!(scaled(&flops), "6.0 TFLOP/s");
        let bytes = done(Work::Bytes(1e9)).rate("f32", Some(12e12), Some(4e9));
        assert_eq!((bytes.per_second, bytes.share_of_peak), (2e9, Some(0.5)));
        assert_eq!(scaled(&bytes), "2.0 GB/s");
        assert_eq!(done(Work::Bytes(1e9)).rate("f32", Some(1.0), None).share_of_peak, None);
    }
}
