//! The models held against transformers: vision features, logits, log-probabilities, gradients, optimizer steps,
//! greedy tokens, for every case of every model directory in the oracle.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{FloatDType, Tensor, TensorData};
use firesight_rl::{
    Aggregation, Algorithm, Clip, KlPenalty, KlPlacement, LossInput, RatioLevel, Sapo, Surrogate, clip_global_norm,
};
use firesight_vlm::{Generation, ProcessedImage, Prompt, QwenVl, Sampling, SaveOptions, Scored, TokenMask, parameters};
use support::models::{Case, case, everything, models, real, scored, values};
use support::{Tensors, device, oracle_dir, relative_error, tolerance};

fn check(case: &Case, what: &str, found: &[f32], expected: &[f32]) {
    let error = relative_error(found, expected);
    println!("{:40} {what:42} {error:.1e}", case.name);
    assert!(error < tolerance(), "{} {what}: relative error {error:.2e}", case.name);
}

#[test]
fn vision_features() {
    let mut checked = 0;
    for (dir, cases) in models() {
        let model = QwenVl::from_dir(&dir, &device()).unwrap();
        for case in cases.iter().filter(|case| case.tensors.contains("vision.merged")) {
            checked += 1;
            let images: Vec<&ProcessedImage> = case.rows.iter().flat_map(|(prompt, _)| prompt.images()).collect();
            let features = model.encode_images(&images).unwrap();
            check(case, "vision.merged", &values(features.tokens), &case.tensors.f32("vision.merged").1);
            let levels = case.tensors.names().filter(|name| name.starts_with("vision.deepstack.")).count();
            assert_eq!(levels > 0, model.config().model_type == "qwen3_vl");
            assert_eq!(features.deepstack.len(), levels);
            for (level, found) in features.deepstack.into_iter().enumerate() {
                let name = format!("vision.deepstack.{level}");
                check(case, &name, &values(found), &case.tensors.f32(&name).1);
            }
        }
    }
    assert!(checked > 0, "no case with images");
}

#[test]
fn logits() {
    for (dir, cases) in models() {
        let model = QwenVl::from_dir(&dir, &device()).unwrap();
        for case in &cases {
            // The whole sequence as a prompt: the logits of every position.
            let sequences: Vec<Prompt> = case
                .rows
                .iter()
                .map(|(prompt, completion)| {
                    let ids = [prompt.input_ids(), completion].concat();
                    Prompt::new(ids, prompt.images().to_vec(), prompt.image_spans().to_vec())
                })
                .collect();
            let logits = model.prompt_logits(&sequences.iter().collect::<Vec<_>>()).unwrap();
            let [_, tokens, vocabulary] = logits.dims();
            let logits = values(logits);
            let found: Vec<f32> = sequences
                .iter()
                .zip(logits.chunks_exact(tokens * vocabulary))
                .flat_map(|(sequence, row)| &row[..sequence.input_ids().len() * vocabulary])
                .copied()
                .collect();
            check(case, "logits", &found, &real(case, "attention_mask", &case.tensors.f32("logits").1));
        }
    }
}

#[test]
fn completion_log_probs_and_entropy() {
    for (dir, cases) in models() {
        let model = QwenVl::from_dir(&dir, &device()).unwrap();
        for case in &cases {
            let scores = model.score(&scored(case), 1.0, &everything(&model), None).unwrap();
            let (log_probs, entropy) = (values(scores.log_probs), values(scores.entropy));
            let expected = |name| real(case, "completion_mask", &case.tensors.f32(name).1);
            check(case, "log-probs", &real(case, "completion_mask", &log_probs), &expected("completion_logps"));
            check(case, "entropy", &real(case, "completion_mask", &entropy), &expected("completion_entropy"));
        }
    }
}

/// Half precision computes the same model, to as many digits as it has: 8 bits of bfloat16, 11 of float16, less what a
/// few layers of rounding add up to.
#[test]
fn half_precision() {
    for (dir, cases) in models() {
        let types = [(FloatDType::BF16, 3e-2), (FloatDType::F16, 3e-3)];
        for (dtype, tolerance) in types.into_iter().filter(|(dtype, _)| device().supports_dtype(*dtype)) {
            let model = QwenVl::from_dir_as(&dir, dtype, &device()).unwrap();
            for case in &cases {
                let scores = model.score(&scored(case), 1.0, &everything(&model), None).unwrap();
                let found = real(case, "completion_mask", &values(scores.log_probs));
                let expected = real(case, "completion_mask", &case.tensors.f32("completion_logps").1);
                let error = relative_error(&found, &expected);
                println!("{:40} {dtype:?} log-probs {error:.1e}", case.name);
                // Too good would mean that it was computed in float32.
                assert!(error > 1e-5 && error < tolerance, "{} {dtype:?}: {error:.1e}", case.name);
                let prompts: Vec<&Prompt> = case.rows.iter().map(|(prompt, _)| prompt).collect();
                let mask = everything(&model);
                let greedy = Generation { max_new_tokens: 3, ..greedy(&mask) };
                let drawn = model.generate(&prompts, 1, &greedy).unwrap();
                assert!(drawn.iter().all(|group| group[0].log_probs.iter().all(|log_prob| log_prob.is_finite())));
            }
        }
    }
}

/// Completions that share a prompt are scored as if each had the prompt to itself.
#[test]
fn a_shared_prompt_changes_nothing() {
    for (dir, cases) in models() {
        let model = QwenVl::from_dir(&dir, &device()).unwrap();
        for case in &cases {
            let completions: Vec<&[u32]> = case.rows.iter().map(|(_, completion)| completion.as_slice()).collect();
            let score =
                |batch: Vec<Scored<'_>>| values(model.score(&batch, 0.7, &everything(&model), None).unwrap().log_probs);
            // Every prompt of the case with every completion of the case, together and one by one.
            let shared: Vec<f32> = score(
                case.rows.iter().map(|(prompt, _)| Scored { prompt, completions: completions.clone() }).collect(),
            );
            let longest = completions.iter().map(|c| c.len()).max().unwrap();
            let mut alone = Vec::new();
            for (prompt, _) in &case.rows {
                for completion in &completions {
                    let mut row = score(vec![Scored { prompt, completions: vec![completion] }]);
                    row.resize(longest, 0.0);
                    alone.extend(row);
                }
            }
            check(case, "log-probs of a shared prompt", &shared, &alone);
        }
    }
}

struct ByName<'a> {
    names: BTreeMap<ParamId, String>,
    gradients: &'a GradientsParams,
    found: BTreeMap<String, Vec<f32>>,
}

impl ModuleVisitor for ByName<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let name = self.names[&param.id].clone();
        // burn stores the weights of linear layers transposed.
        let value = self.gradients.get::<D>(param.id).map_or_else(
            || vec![0.0; param.val().shape().num_elements()],
            |gradient| values(published_layout(&name, gradient)),
        );
        self.found.insert(name, value);
    }
}

struct Parameters {
    names: BTreeMap<ParamId, String>,
    found: BTreeMap<String, Vec<f32>>,
}

impl ModuleVisitor for Parameters {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let name = self.names[&param.id].clone();
        let value = values(published_layout(&name, param.val()));
        self.found.insert(name, value);
    }
}

fn published_layout<const D: usize>(name: &str, tensor: Tensor<D>) -> Tensor<D> {
    if D == 2 && !name.contains("embed") { tensor.transpose() } else { tensor }
}

fn gradients_by_name(model: &QwenVl, gradients: &GradientsParams) -> BTreeMap<String, Vec<f32>> {
    let names = parameters(model).into_iter().map(|parameter| (parameter.id, parameter.name)).collect();
    let mut visitor = ByName { names, gradients, found: BTreeMap::new() };
    model.visit(&mut visitor);
    visitor.found
}

/// Mean cross-entropy of the completion tokens and its gradients.
fn supervised(model: &QwenVl, case: &Case) -> (f32, GradientsParams) {
    let tokens: usize = case.rows.iter().map(|(_, completion)| completion.len()).sum();
    let log_probs = model.score(&scored(case), 1.0, &everything(model), None).unwrap().log_probs;
    let loss = log_probs.sum().neg() / tokens as f32;
    let value = loss.clone().into_scalar::<f32>();
    (value, GradientsParams::from_grads(loss.backward(), model))
}

fn norm(values: &[f32]) -> f64 {
    values.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt()
}

#[test]
fn supervised_gradients() {
    for (dir, cases) in models() {
        let model = QwenVl::from_dir(&dir, &device()).unwrap().train();
        for case in &cases {
            let (loss, gradients) = supervised(&model, case);
            check(case, "loss", &[loss], &case.tensors.f32("loss").1);
            let found = gradients_by_name(&model, &gradients);
            for name in case.tensors.names().filter(|name| name.starts_with("grad.")) {
                let parameter = name.trim_start_matches("grad.");
                let found = found.get(parameter).unwrap_or_else(|| panic!("{}: no parameter {parameter}", case.name));
                check(case, name, found, &case.tensors.f32(name).1);
            }
            // Every parameter, by the norm of its gradient.
            let norms = case.summary["grad_norms"].as_object().unwrap();
            let largest = norms.values().map(|norm| norm.as_f64().unwrap_or(0.0)).fold(0.0, f64::max);
            for (parameter, expected) in norms {
                let (found, expected) = (norm(&found[parameter]), expected.as_f64().unwrap_or(0.0));
                let error = (found - expected).abs() / expected.max(1e-6 * largest);
                assert!(error < tolerance(), "{} norm of {parameter}: {found} instead of {expected}", case.name);
            }
            let total = norm(&found.values().flatten().copied().collect::<Vec<f32>>());
            check(case, "gradient norm", &[total as f32], &[case.summary["global_grad_norm"].as_f64().unwrap() as f32]);
        }
    }
}

/// The case that the oracle's optimizer steps and policy losses are about.
fn fixed_case(dir: &Path) -> Case {
    let with_images = dir.join("expected/batch_leftpad.json");
    case(dir, &if with_images.is_file() { with_images } else { dir.join("expected/batch_text.json") })
}

/// Weights whose gradient is more than rounding noise. `AdamW` divides a gradient by its own size: where it is a
/// ten-thousandth of the parameter's largest, the last bits of float32 are a hundredth of it, and decide how far the
/// weight moves. Where it is zero, the weight only decays.
fn moved_by_reason(gradient: &[f32]) -> Vec<usize> {
    let largest = gradient.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    (0..gradient.len()).filter(|&weight| gradient[weight] == 0.0 || gradient[weight].abs() > 1e-4 * largest).collect()
}

#[test]
fn adamw_steps() {
    const LEARNING_RATE: f64 = 1e-3;
    let mut checked = 0;
    for (dir, _) in models() {
        let path = dir.join("expected/adamw_5steps.safetensors");
        if !path.is_file() {
            continue;
        }
        let expected = Tensors::read(&path);
        let case = fixed_case(&dir);
        let mut model = QwenVl::from_dir(&dir, &device()).unwrap().train();
        let mut optimizer = AdamWConfig::new().with_beta_2(0.999).with_epsilon(1e-8).with_weight_decay(0.01).init();
        let (mut losses, mut norms) = (Vec::new(), Vec::new());
        let mut first_gradients = BTreeMap::new();
        for step in 0..expected.f32("losses").1.len() {
            let (loss, gradients) = supervised(&model, &case);
            if step == 0 {
                first_gradients = gradients_by_name(&model, &gradients);
            }
            let (gradients, norm) = clip_global_norm(&model, gradients, Some(1.0)).unwrap();
            losses.push(loss);
            norms.push(norm as f32);
            model = optimizer.step(LEARNING_RATE, model, gradients);
        }
        check(&case, "AdamW losses", &losses, &expected.f32("losses").1);
        check(&case, "AdamW gradient norms", &norms, &expected.f32("grad_norms_before_clip").1);
        let names = parameters(&model).into_iter().map(|parameter| (parameter.id, parameter.name)).collect();
        let mut after = Parameters { names, found: BTreeMap::new() };
        model.visit(&mut after);
        let (mut compared, mut all) = (0, 0);
        for name in expected.names().filter(|name| name.starts_with("after.")) {
            let parameter = name.trim_start_matches("after.");
            let moved = moved_by_reason(&first_gradients[parameter]);
            let kept = |values: &[f32]| -> Vec<f32> { moved.iter().map(|&weight| values[weight]).collect() };
            check(&case, name, &kept(&after.found[parameter]), &kept(&expected.f32(name).1));
            // Noise or not, a weight goes at most a full step at a time.
            for (found, expected) in after.found[parameter].iter().zip(expected.f32(name).1) {
                assert!((found - expected).abs() < 2.0 * LEARNING_RATE as f32 * losses.len() as f32, "{name}");
            }
            compared += moved.len();
            all += after.found[parameter].len();
        }
        assert!(compared * 100 > all * 85, "{}: only {compared} of {all} weights compared", case.name);
        checked += 1;
    }
    assert!(checked > 0, "no parameter after AdamW steps");
}

/// Our settings for the options of an end-to-end case; TRL's defaults where an option is not given.
fn algorithm(options: &serde_json::Value) -> Algorithm {
    let number = |name: &str, default: f64| options[name].as_f64().unwrap_or(default) as f32;
    let sequence = options["importance_sampling_level"] == "sequence";
    let clip =
        Surrogate::Clip(Clip { low: number("epsilon_low", 0.2), high: number("epsilon_high", 0.2), delta: None });
    let (surrogate, aggregation) = match options["loss_type"].as_str().unwrap() {
        "grpo" => (clip, Aggregation::SequenceMean),
        "dapo" => (clip, Aggregation::TokenMean),
        "sapo" => (Surrogate::Sapo(Sapo::default()), Aggregation::SequenceMean),
        other => panic!("unknown loss {other}"),
    };
    let beta = number("beta", 0.0);
    Algorithm {
        ratio: if sequence { RatioLevel::Sequence } else { RatioLevel::Token },
        surrogate,
        aggregation,
        kl: (beta != 0.0).then(|| KlPenalty { placement: KlPlacement::RatioWeightedLoss, ..KlPenalty::new(beta) }),
        ..Algorithm::grpo()
    }
}

/// Policy losses through the whole model, against TRL's loss code through transformers' model.
#[test]
fn policy_gradients() {
    let summaries = support::json(&oracle_dir().join("loss/grpo_e2e.json"));
    let mut checked = 0;
    for (dir, _) in models() {
        let model_name = dir.file_name().unwrap().to_str().unwrap();
        let losses: Vec<_> = summaries
            .as_object()
            .unwrap()
            .iter()
            .filter_map(|(key, summary)| {
                let name = key.strip_prefix(&format!("{model_name}/"))?;
                let path = dir.join("expected").join(format!("{name}.safetensors"));
                path.is_file().then_some((key, summary, path))
            })
            .collect();
        if losses.is_empty() {
            continue;
        }
        let base = fixed_case(&dir);
        let model = QwenVl::from_dir(&dir, &device()).unwrap().train();
        for (key, summary, path) in losses {
            checked += 1;
            let case = Case {
                name: key.clone(),
                tensors: Tensors::read(&path),
                rows: base.rows.clone(),
                summary: summary.clone(),
            };
            let algorithm = algorithm(&case.summary["opts"]);
            let temperature = case.summary["temperature"].as_f64().unwrap() as f32;
            let scores = model.score(&scored(&case), temperature, &everything(&model), None).unwrap();
            let device = scores.log_probs.device();
            let [rows, width] = scores.log_probs.dims();
            check(
                &case,
                "log-probs",
                &real(&base, "completion_mask", &values(scores.log_probs.clone())),
                &real(&base, "completion_mask", &case.tensors.f32("logps").1),
            );

            let lengths: Vec<usize> = case.rows.iter().map(|(_, completion)| completion.len()).collect();
            let per_token = |value: &dyn Fn(usize) -> f32| {
                let values: Vec<f32> = (0..rows)
                    .flat_map(|row| (0..width).map(move |token| (row, token)))
                    .map(|(row, token)| if token < lengths[row] { value(row) } else { 0.0 })
                    .collect();
                Tensor::<2>::from_data(TensorData::new(values, [rows, width]), &device)
            };
            let stored =
                |name: &str| Tensor::<2>::from_data(TensorData::new(case.tensors.f32(name).1, [rows, width]), &device);
            let advantages = case.tensors.f32("advantages").1;
            let tokens = algorithm
                .token_loss(LossInput {
                    log_probs: scores.log_probs,
                    old_log_probs: stored("old_logps"),
                    ref_log_probs: Some(stored("ref_logps")),
                    entropy: scores.entropy,
                    advantages: per_token(&|row| advantages[row]),
                    mask: per_token(&|_| 1.0),
                    kept: None,
                    expert: None,
                })
                .unwrap();
            let total = algorithm.total_loss(&tokens, &algorithm.aggregation.coefficients(&lengths));
            check(&case, "loss", &values(total.clone()), &case.tensors.f32("loss").1);
            let gradients = GradientsParams::from_grads(total.backward(), &model);
            let found = gradients_by_name(&model, &gradients);
            for name in case.tensors.names().filter(|name| name.starts_with("grad.")) {
                check(&case, name, &found[name.trim_start_matches("grad.")], &case.tensors.f32(name).1);
            }
            let total = norm(&found.values().flatten().copied().collect::<Vec<f32>>());
            check(&case, "gradient norm", &[total as f32], &[case.summary["grad_norm"].as_f64().unwrap() as f32]);
        }
    }
    assert!(checked > 0, "no end-to-end case");
}

fn greedy(mask: &TokenMask) -> Generation<'_> {
    Generation { sampling: Sampling::GREEDY, max_new_tokens: 1, stop_tokens: &[], mask, seed: 0, first_stream: 0 }
}

#[test]
fn greedy_tokens() {
    for (dir, cases) in models() {
        let model = QwenVl::from_dir(&dir, &device()).unwrap();
        let mask = everything(&model);
        for case in &cases {
            let (shape, expected) = case.tensors.i64("greedy_ids");
            let options = Generation { max_new_tokens: shape[1], ..greedy(&mask) };
            let prompts: Vec<&Prompt> = case.rows.iter().map(|(prompt, _)| prompt).collect();
            let found: Vec<i64> = model
                .generate(&prompts, 1, &options)
                .unwrap()
                .iter()
                .flat_map(|completions| completions[0].tokens.iter().map(|&id| i64::from(id)))
                .collect();
            println!("{:40} {} greedy tokens", case.name, found.len());
            assert_eq!(found, expected, "{}", case.name);
        }
    }
}

/// Name, shape and values of everything in the weight files of a directory.
fn weights(dir: &Path) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    files
        .filter(|file| file.extension().is_some_and(|extension| extension == "safetensors"))
        .flat_map(|file| {
            let tensors = Tensors::read(&file);
            tensors.names().map(|name| (name.to_owned(), tensors.f32(name))).collect::<Vec<_>>()
        })
        .collect()
}

/// Checkpoints that were written with the names that parameters have in memory, a whole file beside a stale index, and
/// a configuration without what is as in the defaults.
#[test]
fn other_ways_to_write_a_checkpoint() {
    let directories = support::case_dirs(&oracle_dir().join("models"));
    let fits = |dir: &&PathBuf| {
        support::json(&dir.join("config.json"))["model_type"] == "qwen2_5_vl" && dir.join("model.safetensors").is_file()
    };
    let dir = directories.iter().find(fits).unwrap();
    let copy = tempfile::tempdir().unwrap();
    let mut config = support::json(&dir.join("config.json"));
    config["vision_config"].as_object_mut().unwrap().remove("patch_size").unwrap();
    config["vision_config"].as_object_mut().unwrap().remove("temporal_patch_size").unwrap();
    std::fs::write(copy.path().join("config.json"), config.to_string()).unwrap();
    std::fs::write(copy.path().join("model.safetensors.index.json"), r#"{"weight_map": {"x": "gone"}}"#).unwrap();
    let bytes = std::fs::read(dir.join("model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let renamed = tensors.tensors().into_iter().map(|(name, view)| {
        let memory = match name.strip_prefix("model.") {
            Some(rest) => format!("model.language_model.{rest}"),
            None => format!("model.{name}"),
        };
        (memory, view)
    });
    let file = safetensors::serialize(renamed.collect::<Vec<_>>(), None).unwrap();
    std::fs::write(copy.path().join("model.safetensors"), file).unwrap();
    let prompt = Prompt::new(vec![1, 2, 3], Vec::new(), Vec::new());
    let logits = |dir: &Path| values(QwenVl::from_dir(dir, &device()).unwrap().prompt_logits(&[&prompt]).unwrap());
    assert_eq!(logits(copy.path()), logits(dir));
}

/// Writing and reading a model directory changes nothing, in one file or in shards; 16 bits round.
#[test]
fn weights_survive_a_round_trip() {
    const SHARD: u64 = 100_000;
    let directories = support::case_dirs(&oracle_dir().join("models"));
    assert!(!directories.is_empty());
    for dir in directories {
        let model = QwenVl::from_dir(&dir, &device()).unwrap();
        let prompt = Prompt::new(vec![1, 2, 3], Vec::new(), Vec::new());
        let published = weights(&dir);
        let (whole, shards) =
            (SaveOptions::default(), SaveOptions { max_shard_bytes: SHARD, ..SaveOptions::default() });
        for (options, rounding) in
            [(whole, 0.0), (shards, 0.0), (SaveOptions { dtype: FloatDType::BF16, ..shards }, 1.0 / 256.0)]
        {
            let parent = tempfile::tempdir().unwrap();
            let copy = parent.path().join("copy");
            model.save(&copy, &dir, options).unwrap();
            let written = weights(&copy);
            assert_eq!(written.keys().collect::<Vec<_>>(), published.keys().collect::<Vec<_>>());
            for (name, (shape, values)) in &published {
                assert_eq!(&written[name].0, shape, "{name}");
                for (found, expected) in written[name].1.iter().zip(values) {
                    assert!((found - expected).abs() <= rounding * expected.abs(), "{name}: {found} for {expected}");
                }
            }
            let index = copy.join("model.safetensors.index.json");
            assert_eq!(index.exists(), options.max_shard_bytes == SHARD);
            if index.exists() {
                let index = support::json(&index);
                let map = index["weight_map"].as_object().unwrap();
                assert!(map.keys().eq(published.keys()));
                for file in map.values().map(|file| copy.join(file.as_str().unwrap())) {
                    let length = std::fs::metadata(&file).unwrap().len();
                    let single = Tensors::read(&file).names().count() == 1;
                    assert!(single || length < SHARD + 10_000, "{} has {length} bytes", file.display());
                }
            }
            let again = QwenVl::from_dir(&copy, &device()).unwrap();
            let logits = |model: &QwenVl| values(model.prompt_logits(&[&prompt]).unwrap());
            if rounding == 0.0 {
                assert_eq!(logits(&again), logits(&model));
            }
            assert!(model.save(&copy, &dir, options).is_err(), "a directory was overwritten");
        }
    }
}
