//! Mixed precision: bfloat16 products beside float32 weights, as a GPU computes them; and weights that are only kept in
//! bfloat16, as on a CPU.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;

use burn::module::{Module as _, ModuleVisitor, Param};
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{DType, Device, FloatDType, Tensor};
use firesight_train::oracle::{allowed_in_bf16, distance};
use firesight_vlm::{Component, Generation, LoraConfig, Precision, Prompt, QwenVl, Sampling, parameters};
use support::models::{Case, everything, models, real, scored, values, weights};

/// What the 8 bits of bfloat16 explain, less what a few layers of rounding add up to.
const HALF: f64 = 3e-2;
const BF16: Precision = Precision { compute: FloatDType::BF16, frozen: FloatDType::BF16 };

fn log_probs(model: &QwenVl, case: &Case) -> Vec<f32> {
    let scores = model.score(&scored(case), 1.0, &everything(model), None).unwrap();
    real(case, "completion_mask", &values(scores.log_probs))
}

fn gradients(model: &QwenVl, case: &Case) -> GradientsParams {
    let scores = model.score(&scored(case), 1.0, &everything(model), None).unwrap();
    let loss = scores.log_probs.clone().mean().neg();
    scores.backward(&loss, model)
}

#[derive(Default)]
struct Types(BTreeMap<String, usize>);

impl ModuleVisitor for Types {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let trained = if param.is_require_grad() { "trained" } else { "frozen" };
        *self.0.entry(format!("{trained} {:?}", param.val().dtype())).or_default() += 1;
    }
}

fn types(model: &QwenVl) -> Vec<String> {
    let mut types = Types::default();
    model.visit(&mut types);
    types.0.into_keys().collect()
}

/// The whole gradient of a model, parameter after parameter.
struct Flat<'a> {
    gradients: &'a GradientsParams,
    found: Vec<f32>,
}

impl ModuleVisitor for Flat<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        // Words alone never reach the vision tower.
        let Some(gradient) = self.gradients.get::<D>(param.id) else { return };
        assert_eq!(gradient.dtype(), DType::F32, "the optimizer works on float32 alone");
        self.found.extend(values(gradient));
    }
}

fn flat(model: &QwenVl, gradients: &GradientsParams) -> Vec<f32> {
    let mut flat = Flat { gradients, found: Vec::new() };
    model.visit(&mut flat);
    flat.found
}

#[test]
fn bfloat16_computes_the_same_model_and_trains_float32() {
    for (dir, cases) in models() {
        let single = QwenVl::from_dir(&dir, &Device::flex()).unwrap().train();
        let half = single.clone().with_precision(BF16);
        // How far off a model is whose weights alone have 8 bits.
        let rounded = QwenVl::from_dir_as(&dir, FloatDType::BF16, &Device::flex()).unwrap();
        let rounded = rounded.with_precision(Precision::F32).train();
        assert_eq!(half.compute_dtype(), FloatDType::BF16);
        assert_eq!(types(&half), ["trained F32"], "nothing is frozen");
        for checkpointing in [false, true] {
            let half = half.clone().with_activation_checkpointing(checkpointing);
            for case in &cases {
                let error = distance(&log_probs(&half, case), &log_probs(&single, case));
                let [found, expected, rounded] =
                    [&half, &single, &rounded].map(|model| flat(model, &gradients(model, case)));
                let (of_gradient, of_weights) = (distance(&found, &expected), distance(&rounded, &expected));
                println!("{:40} log-probs {error:.1e} gradient {of_gradient:.1e} {of_weights:.1e}", case.name);
                // Too good would mean that it was computed in float32.
                assert!(error > 1e-5 && error < HALF, "{}: {error:.1e}", case.name);
                let allowed = allowed_in_bf16(of_weights);
                assert!(of_gradient > 1e-5 && of_gradient < allowed, "{}: {of_gradient:.1e}", case.name);
            }
        }
    }
}

#[test]
fn sampler_and_scorer_are_apart_by_rounding_alone() {
    for (dir, cases) in models() {
        let single = QwenVl::from_dir(&dir, &Device::flex()).unwrap();
        let model = single.clone().with_precision(BF16);
        let mask = everything(&model);
        let sampling = Sampling::at(1.0);
        let drawing =
            Generation { sampling, max_new_tokens: 12, stop_tokens: &[], mask: &mask, seed: 3, first_stream: 0 };
        for case in &cases {
            let prompts: Vec<&Prompt> = case.rows.iter().map(|(prompt, _)| prompt).collect();
            let drawn: Vec<_> = model.generate(&prompts, 2, &drawing).unwrap();
            let batch: Vec<_> = prompts
                .iter()
                .zip(&drawn)
                .map(|(prompt, group)| firesight_vlm::Scored {
                    prompt,
                    completions: group.iter().map(|one| one.tokens.as_slice()).collect(),
                })
                .collect();
            let sampled: Vec<f32> = drawn.iter().flatten().flat_map(|one| one.log_probs.clone()).collect();
            let gap = |model: &QwenVl| {
                let scores = model.score(&batch, 1.0, &mask, None).unwrap();
                distance(&values(scores.log_probs), &sampled)
            };
            let (own, other) = (gap(&model), gap(&single));
            println!("{:40} bf16 {own:.1e} f32 {other:.1e}", case.name);
            assert!(own < HALF / 3.0, "{}: {own:.1e}", case.name);
        }
    }
}

#[test]
fn an_optimizer_step_is_one_of_float32() {
    let (dir, cases) = models().remove(0);
    let model = QwenVl::from_dir(&dir, &Device::flex()).unwrap().train().with_precision(BF16);
    let mut optimizer = AdamWConfig::new().init();
    // Steps far below what bfloat16 can tell apart add up.
    let step = 1e-6;
    let mut moved = model.clone();
    for _ in 0..3 {
        let gradients = gradients(&moved, &cases[0]);
        moved = optimizer.step(step, moved, gradients);
    }
    assert_eq!(types(&moved), ["trained F32"]);
    let change =
        weights(&moved).iter().zip(weights(&model)).map(|(after, before)| (after - before).abs()).fold(0.0, f32::max);
    assert!(change > 2.0 * step as f32 && change < 4.0 * step as f32, "{change:e}");
}

/// A base model that adapters are trained on takes half the memory, and computes what its rounded weights say.
#[test]
fn what_is_not_trained_is_kept_in_bfloat16() {
    let lora = LoraConfig { rank: 2, alpha: 4.0, target_modules: vec!["q_proj".into(), "down_proj".into()] };
    for (dir, cases) in models() {
        let device = Device::flex().autodiff();
        let adapted = |model: QwenVl| model.train().with_lora(&lora, false, 0).unwrap();
        let stored = adapted(QwenVl::from_dir_as(&dir, FloatDType::BF16, &device).unwrap())
            .with_precision(Precision::stored(FloatDType::BF16));
        assert_eq!(types(&stored), ["frozen BF16", "trained F32"]);
        assert!(parameters(&stored).iter().any(|parameter| parameter.adapter && parameter.trainable));
        assert_eq!(stored.compute_dtype(), FloatDType::F32);
        let rounded = adapted(QwenVl::from_dir_as(&dir, FloatDType::BF16, &device).unwrap());
        let rounded = rounded.with_precision(Precision::F32);
        assert_eq!(types(&rounded), ["frozen F32", "trained F32"]);
        for case in &cases {
            assert_eq!(log_probs(&stored, case), log_probs(&rounded, case), "{}", case.name);
            let [found, expected] = [&stored, &rounded].map(|model| {
                let gradients = gradients(model, case);
                assert_eq!(gradients.len(), 2 * 2 * model.config().text_config.num_hidden_layers);
                flat(model, &gradients)
            });
            assert!(!found.is_empty() && found == expected, "{}", case.name);
        }
    }
    // A frozen tower too.
    let (dir, _) = models().into_iter().find(|(_, cases)| cases[0].tensors.contains("pixel_values")).unwrap();
    let model = QwenVl::from_dir(&dir, &Device::flex()).unwrap().train();
    let model = model.with_frozen(&[Component::Vision, Component::Merger]).with_precision(BF16);
    assert_eq!(types(&model), ["frozen BF16", "trained F32"]);
}
