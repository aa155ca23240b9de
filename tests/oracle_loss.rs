//! The loss and the advantages against TRL's own code: value, gradient with respect to the new log-probabilities and
//! metrics of every stored case that our settings can express, and a count with a reason of those they cannot.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use burn::tensor::{Device, Tensor, TensorData};
use firesight_rl::{
    AdvantageEstimator, Aggregation, Bound, Cispo, Clip, Coefficients, GroupRelative, KlPenalty, Loss, LossInput,
    RatioLevel, Sapo, Scale, Surrogate, TokenLoss,
};
use serde_json::Value;
use support::{Tensors, json, oracle_dir, relative_error};

const TOLERANCE: f64 = 1e-6;

fn directory() -> PathBuf {
    oracle_dir().join("loss")
}

/// Counts of one family of cases.
#[derive(Default)]
struct Tally {
    passed: usize,
    worst: f64,
    skipped: BTreeMap<&'static str, usize>,
}

fn print(families: &BTreeMap<String, Tally>) {
    println!("{:<28} {:>6} {:>14}  skipped", "family", "passed", "largest error");
    for (name, tally) in families {
        println!("{name:<28} {:>6} {:>14.2e}  {:?}", tally.passed, tally.worst, tally.skipped);
    }
    let (passed, skipped) = families.values().fold((0, 0), |(passed, skipped), tally| {
        (passed + tally.passed, skipped + tally.skipped.values().sum::<usize>())
    });
    println!("{passed} passed, {skipped} skipped");
}

/// The batch a case is computed on, with the mask of trained tokens applied to nothing yet.
struct Batch {
    shape: [usize; 2],
    new: Vec<f32>,
    old: Vec<f32>,
    reference: Vec<f32>,
    entropy: Vec<f32>,
    advantages: Vec<f32>,
    mask: Vec<f32>,
}

impl Batch {
    fn read(tensors: &Tensors, name: &str) -> Self {
        let read = |tensor: &str| tensors.f32(&format!("data.{name}.{tensor}")).1;
        let (shape, completion_mask) = tensors.i64(&format!("data.{name}.completion_mask"));
        let tool_mask = format!("data.{name}.tool_mask");
        let tool_mask =
            if tensors.contains(&tool_mask) { tensors.i64(&tool_mask).1 } else { vec![1; completion_mask.len()] };
        Self {
            shape: [shape[0], shape[1]],
            new: read("new_logps"),
            old: read("old_logps"),
            reference: read("ref_logps"),
            entropy: read("entropy"),
            advantages: read("advantages"),
            mask: completion_mask.iter().zip(tool_mask).map(|(&a, b)| (a * b) as f32).collect(),
        }
    }

    fn lengths(&self) -> Vec<usize> {
        self.mask.chunks(self.shape[1]).map(|row| row.iter().sum::<f32>() as usize).collect()
    }

    fn tensor(&self, values: &[f32], device: &Device) -> Tensor<2> {
        Tensor::from_data(TensorData::new(values.to_vec(), self.shape), device)
    }

    /// Mean over the trained tokens.
    fn mean(&self, values: &[f32]) -> f32 {
        let sum: f64 = values.iter().zip(&self.mask).map(|(value, mask)| f64::from(value * mask)).sum();
        (sum / self.mask.iter().map(|&mask| f64::from(mask)).sum::<f64>().max(1.0)) as f32
    }

    fn advantage(&self, token: usize) -> f32 {
        self.advantages[token / self.shape[1]]
    }
}

/// Our settings for the options of a case, or why there are none.
fn settings(options: &Value) -> Result<(Loss, Aggregation), &'static str> {
    let text = |name: &str| options[name].as_str().unwrap();
    let number = |name: &str| options[name].as_f64().unwrap() as f32;
    let ratio = if text("importance_sampling_level") == "token" { RatioLevel::Token } else { RatioLevel::Sequence };
    let clip = Clip {
        low: number("epsilon_low"),
        high: number("epsilon_high"),
        delta: options["delta"].as_f64().map(|d| d as f32),
    };
    let clip = || -> Arc<dyn Surrogate> { Arc::new(clip) };
    let kl = (number("beta") != 0.0).then(|| KlPenalty {
        coefficient: number("beta"),
        ratio_weighted: options["use_bias_correction_kl"].as_bool().unwrap(),
    });
    let max_tokens = options["max_completion_length"].as_u64().unwrap() as usize;
    let (surrogate, aggregation) = match text("loss_type") {
        "grpo" => (clip(), Aggregation::SequenceMean),
        "bnpo" if options["ga"] != 1 => return Err("a token mean over each micro-batch depends on the split"),
        "bnpo" | "dapo" => (clip(), Aggregation::TokenMean),
        "dr_grpo" => (clip(), Aggregation::Constant { max_tokens }),
        "luspo" if ratio == RatioLevel::Token || kl.is_some() => return Err("TRL averages over padding here"),
        "luspo" => (clip(), Aggregation::SequenceSum),
        "cispo" => {
            (Arc::new(Cispo { max_ratio: number("epsilon_high") }) as Arc<dyn Surrogate>, Aggregation::TokenMean)
        }
        "sapo" => {
            let sapo = Sapo {
                positive_temperature: number("sapo_temperature_pos"),
                negative_temperature: number("sapo_temperature_neg"),
            };
            (Arc::new(sapo) as Arc<dyn Surrogate>, Aggregation::SequenceMean)
        }
        _ => return Err("no such surrogate"),
    };
    if number("top_entropy_quantile") < 1.0 {
        return Err("no mask by entropy");
    }
    if !options["off_policy_mask_threshold"].is_null() {
        return Err("no off-policy mask");
    }
    if options["use_vllm"] == true {
        return Err("no separate inference engine to correct for");
    }
    Ok((Loss { ratio, surrogate, kl, entropy_bonus: number("entropy_coef") }, aggregation))
}

/// Weights of the rows at hand; TRL's gradient accumulation means that the optimizer batch is larger than they are.
fn coefficients(aggregation: Aggregation, options: &Value, batch: &Batch) -> Coefficients {
    let mut lengths = batch.lengths();
    let rows = lengths.len();
    let [micro_batches, rollout_micro_batches] =
        ["ga", "steps_per_generation"].map(|name| options[name].as_u64().unwrap() as usize);
    let rollout_tokens = options["num_items"].as_u64();
    match rollout_tokens {
        Some(total) if aggregation == Aggregation::TokenMean => {
            lengths.push(total as usize - lengths.iter().sum::<usize>());
        }
        _ => lengths.extend(vec![1; rows * (micro_batches - 1)]),
    }
    let mut coefficients = aggregation.coefficients(&lengths);
    coefficients.completions.truncate(rows);
    if rollout_tokens.is_some() && aggregation == Aggregation::TokenMean {
        // TRL counts the tokens of the whole rollout and takes an optimizer batch to hold its share of them.
        for weight in &mut coefficients.completions {
            *weight *= rollout_micro_batches as f32 / micro_batches as f32;
        }
    }
    coefficients
}

struct Outcome {
    tokens: TokenLoss,
    loss: f32,
    /// Sum of the magnitudes that the loss is the sum of: what its rounding is relative to where they cancel.
    magnitude: f32,
    gradient: Vec<f32>,
    entropy_gradient: Option<Vec<f32>>,
}

fn evaluate(batch: &Batch, options: &Value, loss: &Loss, aggregation: Aggregation) -> Outcome {
    let device = Device::flex().autodiff();
    let log_probs = batch.tensor(&batch.new, &device).require_grad();
    let entropy = batch.tensor(&batch.entropy, &device).require_grad();
    let advantages: Vec<f32> = (0..batch.new.len()).map(|token| batch.advantage(token)).collect();
    let old = if options["on_policy"] == true { &batch.new } else { &batch.old };
    let tokens = loss
        .forward(LossInput {
            log_probs: log_probs.clone(),
            old_log_probs: batch.tensor(old, &device),
            ref_log_probs: loss.kl.map(|_| batch.tensor(&batch.reference, &device)),
            entropy: entropy.clone(),
            advantages: batch.tensor(&advantages, &device),
            mask: batch.tensor(&batch.mask, &device),
        })
        .unwrap();
    let coefficients = coefficients(aggregation, options, batch);
    let total = loss.total(&tokens, &coefficients);
    let magnitude = values(&tokens.surrogate)
        .iter()
        .zip(&batch.mask)
        .enumerate()
        .map(|(token, (loss, mask))| (loss * mask).abs() * coefficients.completions[token / batch.shape[1]])
        .sum();
    let gradients = total.backward();
    let read = |tensor: &Tensor<2>| tensor.grad(&gradients).map(|gradient| gradient.into_data().try_to_vec().unwrap());
    Outcome {
        tokens,
        loss: total.into_scalar(),
        magnitude,
        gradient: read(&log_probs).unwrap(),
        entropy_gradient: read(&entropy).filter(|_| loss.entropy_bonus != 0.0),
    }
}

fn values(tensor: &Tensor<2>) -> Vec<f32> {
    tensor.clone().into_data().try_to_vec().unwrap()
}

/// Our value of each metric TRL logged.
fn metrics(batch: &Batch, loss: &Loss, outcome: &Outcome) -> BTreeMap<&'static str, f32> {
    let ratio = values(&outcome.tokens.ratio);
    let fraction = |wanted: &[Bound]| {
        let clipped = |token: usize| {
            let bound = loss.surrogate.clipped(ratio[token], batch.advantage(token));
            f32::from(u8::from(bound.is_some_and(|bound| wanted.contains(&bound))))
        };
        match loss.ratio {
            RatioLevel::Token => batch.mean(&(0..ratio.len()).map(clipped).collect::<Vec<_>>()),
            // TRL counts completions where the ratio is theirs.
            RatioLevel::Sequence => {
                (0..batch.shape[0]).map(|row| clipped(row * batch.shape[1])).sum::<f32>() / batch.shape[0] as f32
            }
        }
    };
    let mut metrics = BTreeMap::from([
        ("entropy", batch.mean(&values(&outcome.tokens.entropy))),
        ("clip_ratio/low_mean", fraction(&[Bound::Low])),
        ("clip_ratio/high_mean", fraction(&[Bound::High])),
        ("clip_ratio/region_mean", fraction(&[Bound::Low, Bound::High])),
        ("cispo_clip_ratio", fraction(&[Bound::High])),
    ]);
    if let Some(kl) = &outcome.tokens.kl {
        metrics.insert("kl", batch.mean(&values(kl)));
    }
    metrics
}

#[test]
fn losses_and_gradients() {
    let cases = json(&directory().join("loss_cases.json"));
    let tensors = Tensors::read(&directory().join("loss_cases.safetensors"));
    let mut families: BTreeMap<String, Tally> = BTreeMap::new();
    let mut failures = Vec::new();
    for case in cases.as_array().unwrap() {
        let options = &case["opts"];
        let family = format!(
            "{} {}{}",
            options["loss_type"].as_str().unwrap(),
            options["importance_sampling_level"].as_str().unwrap(),
            if options["beta"] == 0.0 { "" } else { " kl" }
        );
        let tally = families.entry(family).or_default();
        let (loss, aggregation) = match settings(options) {
            Ok(settings) => settings,
            Err(reason) => {
                *tally.skipped.entry(reason).or_default() += 1;
                continue;
            }
        };
        let id = &case["id"];
        let batch = Batch::read(&tensors, case["data"].as_str().unwrap());
        let outcome = evaluate(&batch, options, &loss, aggregation);

        let expected = tensors.f32(&format!("case.{id}.loss")).1[0];
        let mut errors = vec![
            ("loss", f64::from((outcome.loss - expected).abs() / expected.abs().max(outcome.magnitude).max(1e-6))),
            ("gradient", relative_error(&outcome.gradient, &tensors.f32(&format!("case.{id}.grad_new_logps")).1)),
        ];
        if let Some(gradient) = &outcome.entropy_gradient {
            let expected = tensors.f32(&format!("case.{id}.grad_entropy")).1;
            errors.push(("entropy gradient", relative_error(gradient, &expected)));
        }
        let found = metrics(&batch, &loss, &outcome);
        for (name, expected) in case["metrics"].as_object().unwrap() {
            if let (Some((&name, &found)), Some(expected)) = (found.get_key_value(name.as_str()), expected.as_f64()) {
                errors.push((name, relative_error(&[found], &[expected as f32])));
            }
        }
        for (what, error) in errors {
            tally.worst = tally.worst.max(error);
            if error > TOLERANCE {
                failures.push(format!("case {id}: {what} {error:.2e} {options}"));
            }
        }
        tally.passed += 1;
    }
    print(&families);
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    assert!(families.values().map(|tally| tally.passed).sum::<usize>() > 0, "no case was compared");
}

#[test]
fn advantages() {
    let cases = json(&directory().join("advantages.json"));
    let tensors = Tensors::read(&directory().join("advantages.safetensors"));
    let mut families: BTreeMap<String, Tally> = BTreeMap::new();
    for case in cases.as_array().unwrap() {
        let scale = case["scale_rewards"].as_str().unwrap();
        let tally = families.entry(scale.to_owned()).or_default();
        let (shape, parts) = tensors.f32(&format!("rewards.{}", case["rewards"].as_str().unwrap()));
        let reason = if case["aggregation"] != "sum_then_normalize" {
            Some("no normalisation of each reward by itself")
        } else if parts.iter().any(|part| part.is_nan()) {
            Some("a reward does not abstain")
        } else {
            None
        };
        if let Some(reason) = reason {
            *tally.skipped.entry(reason).or_default() += 1;
            continue;
        }
        let weights: Vec<f32> =
            case["weights"].as_array().unwrap().iter().map(|w| w.as_f64().unwrap() as f32).collect();
        let totals: Vec<f32> = parts
            .chunks(shape[1])
            .map(|row| row.iter().zip(&weights).map(|(part, weight)| part * weight).sum())
            .collect();
        let group_size = case["num_generations"].as_u64().unwrap() as usize;
        let groups: Vec<Vec<f32>> = totals.chunks(group_size).map(<[f32]>::to_vec).collect();
        let scale = match scale {
            "group" => Scale::GroupStd,
            "batch" => Scale::BatchStd,
            _ => Scale::None,
        };
        let found = GroupRelative { scale }.advantages(&groups).concat();

        let expected = tensors.f32(&format!("case.{}.advantages", case["id"])).1;
        // TRL centres in float32: its advantages carry the rounding of a reward, over the divisor.
        let deviations = match scale {
            Scale::None => vec![1.0; totals.len()],
            _ => tensors.f32(&format!("case.{}.std", case["id"])).1,
        };
        for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let largest = expected.abs().max(1e-6);
            let rounding = totals[index].abs() * f32::EPSILON / (deviations[index] + 1e-4);
            let difference = (found - expected).abs();
            assert!(
                difference <= rounding + TOLERANCE as f32 * largest,
                "case {} completion {index}: {found} {expected}",
                case["id"]
            );
            tally.worst = tally.worst.max(f64::from((difference - rounding).max(0.0) / largest));
        }
        tally.passed += 1;
    }
    print(&families);
    assert!(families.values().map(|tally| tally.passed).sum::<usize>() > 0, "no case was compared");
}
