//! A step, on a small model.

mod credit;
mod guarantees;
mod knobs;
mod tiny;

use burn::optim::{ModuleOptimizer, SgdConfig};
use burn::tensor::Device;

use crate::{
    Algorithm, CreditAssigner, CreditList, MicroBatch, Options, Overlong, Sampling, StepReport, Trainer, Uniform,
};
use tiny::{Count, Row, Tiny};

fn options() -> Options {
    Options {
        prompts_per_sampling_batch: 1,
        micro_batch: MicroBatch::Groups(1),
        max_gradient_norm: None,
        ..Options::new(8, Sampling { temperature: 0.7, max_tokens: 5, seed: 3, first_stream: 0 })
    }
}

fn trainer_with(
    algorithm: Algorithm,
    credit: impl CreditAssigner<usize> + Send + 'static,
    optimizer: ModuleOptimizer,
    options: Options,
) -> Trainer<Tiny> {
    Trainer::new(Tiny::new(&Device::flex().autodiff()), optimizer, algorithm, credit, options).unwrap()
}

fn trainer_with_methods(algorithm: Algorithm, credit: CreditList<usize>, options: Options) -> Trainer<Tiny> {
    let policy = Tiny::new(&Device::flex().autodiff());
    Trainer::with_methods(policy, SgdConfig::new().init(), algorithm, credit, options).unwrap()
}

/// Plain gradient descent of rate one: what the parameters lose is the gradient.
fn descent(algorithm: Algorithm, options: Options) -> Trainer<Tiny> {
    trainer_with(algorithm, Uniform, SgdConfig::new().init(), options)
}

fn metric(report: &StepReport<usize>, name: &str) -> f64 {
    report.metric(name).unwrap_or_else(|| panic!("no {name}"))
}

/// The gradient of one step over all prompts.
fn gradient(mut trainer: Trainer<Tiny>, rows: &[Row]) -> Vec<f32> {
    let before = trainer.policy.parameters();
    trainer.step(&Count, rows, 1.0).unwrap();
    before.iter().zip(trainer.policy.parameters()).map(|(before, after)| before - after).collect()
}

fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |largest, value| largest.max(value.abs()))
}

fn assert_close(found: &[f32], expected: &[f32], tolerance: f32) {
    let scale = largest(expected);
    assert!(scale > 1e-3, "nothing to compare: {scale}");
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() <= tolerance * scale, "{found} {expected}, scale {scale}");
    }
}

/// Every preset, without its penalty, and what no preset has.
fn algorithms() -> Vec<Algorithm> {
    let presets = Algorithm::presets(5).into_iter().map(|(_, preset)| Algorithm { kl: None, ..preset });
    let others = [
        Algorithm { top_entropy: Some(0.4), ..Algorithm::dapo() },
        Algorithm { mask_truncated: true, ..Algorithm::dapo() },
        Algorithm { overlong: Some(Overlong { max_tokens: 5, buffer: 4, weight: 1.0 }), ..Algorithm::dapo() },
    ];
    presets.chain(others).collect()
}
