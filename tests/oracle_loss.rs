//! The loss and the advantages against TRL's own code: value, gradient with respect to the new log-probabilities and
//! metrics of every stored case that our settings can express, and a count with a reason of those they cannot.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::path::PathBuf;

use burn::tensor::{Device, Tensor, TensorData};
use firesight_rl::{
    Advantage, AdvantageEstimator, AdvantageInput, Aggregation, Algorithm, Bound, Cispo, Clip, Coefficients, Gdpo,
    KlPenalty, KlPlacement, LossInput, PolicyLoss, RatioLevel, Relative, Reward, Sapo, Scale, Surrogate, TokenLoss,
    Vespo, top_entropy_mask,
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
    /// Largest relative errors: of the value, of gradients, of metrics.
    worst: [f64; 3],
    skipped: BTreeMap<&'static str, usize>,
}

fn print(families: &BTreeMap<String, Tally>) {
    println!("{:<32} {:>6} {:>9} {:>9} {:>9}  skipped", "family", "passed", "value", "gradient", "metrics");
    for (name, Tally { passed, worst: [value, gradient, metrics], skipped }) in families {
        println!("{name:<32} {passed:>6} {value:>9.1e} {gradient:>9.1e} {metrics:>9.1e}  {skipped:?}");
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
    /// Whether tokens between others, which a tool wrote, are not trained on.
    has_gaps: bool,
    /// Ratio of the trained engine's to the sampling engine's probability of each token, where the two differ.
    engine_ratio: Vec<f32>,
}

impl Batch {
    fn read(tensors: &Tensors, name: &str) -> Self {
        let read = |tensor: &str| tensors.f32(&format!("data.{name}.{tensor}")).1;
        let (shape, completion_mask) = tensors.i64(&format!("data.{name}.completion_mask"));
        let tool_mask_name = format!("data.{name}.tool_mask");
        let has_gaps = tensors.contains(&tool_mask_name);
        let tool_mask = if has_gaps { tensors.i64(&tool_mask_name).1 } else { vec![1; completion_mask.len()] };
        Self {
            shape: [shape[0], shape[1]],
            new: read("new_logps"),
            old: read("old_logps"),
            reference: read("ref_logps"),
            entropy: read("entropy"),
            advantages: read("advantages"),
            mask: completion_mask.iter().zip(tool_mask).map(|(&a, b)| (a * b) as f32).collect(),
            has_gaps,
            engine_ratio: read("importance_sampling_ratio"),
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
fn settings(options: &Value, batch: &Batch) -> Result<Algorithm, &'static str> {
    let text = |name: &str| options[name].as_str().unwrap();
    let number = |name: &str| options[name].as_f64().unwrap() as f32;
    let some = |name: &str| options[name].as_f64().map(|value| value as f32);
    let ratio = if text("importance_sampling_level") == "token" { RatioLevel::Token } else { RatioLevel::Sequence };
    let clip = Surrogate::Clip(Clip { low: number("epsilon_low"), high: number("epsilon_high"), delta: some("delta") });
    let weighted = options["use_bias_correction_kl"] == true;
    let placement = if weighted { KlPlacement::RatioWeightedLoss } else { KlPlacement::Loss };
    let kl = (number("beta") != 0.0).then(|| KlPenalty { placement, ..KlPenalty::new(number("beta")) });
    let max_tokens = options["max_completion_length"].as_u64().unwrap() as usize;
    let top_entropy = Some(number("top_entropy_quantile")).filter(|&share| share < 1.0);
    // TRL multiplies a sequence's mean loss by its length; what differs between its tokens it averages with padding.
    let differs = ratio == RatioLevel::Token || kl.is_some() || top_entropy.is_some() || options["use_vllm"] == true;
    let (surrogate, aggregation) = match text("loss_type") {
        "grpo" => (clip, Aggregation::SequenceMean),
        "bnpo" if options["ga"] != 1 => return Err("a token mean over each micro-batch depends on the split"),
        "bnpo" | "dapo" => (clip, Aggregation::TokenMean),
        "dr_grpo" => (clip, Aggregation::Constant { max_tokens }),
        "luspo" if differs => return Err("TRL averages over padding here"),
        "luspo" => (clip, Aggregation::SequenceSum),
        "cispo" => (Surrogate::Cispo(Cispo { max_ratio: number("epsilon_high") }), Aggregation::TokenMean),
        "sapo" => {
            let sapo = Sapo {
                positive_temperature: number("sapo_temperature_pos"),
                negative_temperature: number("sapo_temperature_neg"),
            };
            (Surrogate::Sapo(sapo), Aggregation::SequenceMean)
        }
        "vespo" if options["use_vllm"] == true && batch.has_gaps => {
            return Err("TRL counts the tokens between, which are not trained on, in the weight of the completion");
        }
        "vespo" => {
            let vespo = Vespo {
                positive_power: number("vespo_k_pos"),
                positive_decay: number("vespo_lambda_pos"),
                negative_power: number("vespo_k_neg"),
                negative_decay: number("vespo_lambda_neg"),
            };
            (Surrogate::Vespo(vespo), Aggregation::TokenMean)
        }
        _ => return Err("no such surrogate"),
    };
    Ok(Algorithm {
        ratio,
        surrogate,
        aggregation,
        kl,
        entropy_bonus: number("entropy_coef"),
        top_entropy,
        off_policy_threshold: some("off_policy_mask_threshold"),
        ..Algorithm::grpo()
    })
}

/// Weights of the rows at hand; TRL's gradient accumulation means that the optimizer batch is larger than they are.
fn coefficients(aggregation: Aggregation, options: &Value, batch: &Batch, kept: Option<&[f32]>) -> Coefficients {
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
    if let Some(kept) = kept {
        // The bonus is the mean over the tokens that are kept.
        coefficients.entropy = 1.0 / kept.iter().sum::<f32>();
    }
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

fn evaluate(batch: &Batch, options: &Value, algorithm: &Algorithm) -> Outcome {
    let device = Device::flex().autodiff();
    let log_probs = batch.tensor(&batch.new, &device).require_grad();
    let entropy = batch.tensor(&batch.entropy, &device).require_grad();
    let mut advantages: Vec<f32> = (0..batch.new.len()).map(|token| batch.advantage(token)).collect();
    let mut old = if options["on_policy"] == true { &batch.new } else { &batch.old }.clone();
    if options["use_vllm"] == true {
        // The correction for another engine is a weight of each token, as credit is; VESPO takes it into its own weight,
        // which is that of the completion from the sampling engine to the policy.
        let tokens = old.iter_mut().zip(&mut advantages).zip(&batch.engine_ratio);
        for ((old, advantage), ratio) in tokens {
            match algorithm.surrogate {
                Surrogate::Vespo(_) => *old -= ratio.ln(),
                _ => *advantage *= ratio,
            }
        }
    }
    let kept = algorithm.top_entropy.map(|share| {
        let trained =
            |row: usize| (row * batch.shape[1]..(row + 1) * batch.shape[1]).filter(|&at| batch.mask[at] > 0.0);
        let rows: Vec<Vec<f32>> =
            (0..batch.shape[0]).map(|row| trained(row).map(|at| batch.entropy[at]).collect()).collect();
        let mut kept = vec![0.0; batch.mask.len()];
        for (row, marks) in top_entropy_mask(&rows, share).into_iter().enumerate() {
            trained(row).zip(marks).for_each(|(at, mark)| kept[at] = mark);
        }
        kept
    });
    let tokens = algorithm
        .token_loss(LossInput {
            log_probs: log_probs.clone(),
            old_log_probs: batch.tensor(&old, &device),
            ref_log_probs: algorithm.kl.map(|_| batch.tensor(&batch.reference, &device)),
            entropy: entropy.clone(),
            advantages: batch.tensor(&advantages, &device),
            mask: batch.tensor(&batch.mask, &device),
            kept: kept.as_ref().map(|kept| batch.tensor(kept, &device)),
            expert: None,
        })
        .unwrap();
    let coefficients = coefficients(algorithm.aggregation, options, batch, kept.as_deref());
    let total = algorithm.total_loss(&tokens, &coefficients);
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
        entropy_gradient: read(&entropy).filter(|_| algorithm.entropy_bonus != 0.0),
    }
}

/// Relative error of a gradient: of every token, and of every completion where TRL has another one for its tokens.
///
/// Where the ratio is the completion's and its tokens weigh differently, TRL spreads the weight of each token over all of
/// them. In the token form of GSPO each keeps its own; the sum over a completion is the same.
fn gradient_error(algorithm: &Algorithm, options: &Value, batch: &Batch, found: &[f32], expected: &[f32]) -> f64 {
    let bounded = matches!(algorithm.surrogate, Surrogate::Clip(_) | Surrogate::Sapo(_));
    let tokens_differ = algorithm.top_entropy.is_some() || options["use_vllm"] == true;
    if bounded && tokens_differ && algorithm.ratio == RatioLevel::Sequence {
        let by_completion =
            |gradient: &[f32]| gradient.chunks(batch.shape[1]).map(|row| row.iter().sum()).collect::<Vec<f32>>();
        return relative_error(&by_completion(found), &by_completion(expected));
    }
    relative_error(found, expected)
}

fn values(tensor: &Tensor<2>) -> Vec<f32> {
    tensor.clone().into_data().try_to_vec().unwrap()
}

/// Our value of each metric TRL logged.
fn metrics(batch: &Batch, algorithm: &Algorithm, outcome: &Outcome) -> BTreeMap<&'static str, f32> {
    let ratio = values(&outcome.tokens.ratio);
    let fraction = |wanted: &[Bound]| {
        let clipped = |token: usize| {
            let bound = algorithm.surrogate.clipped(ratio[token], batch.advantage(token));
            f32::from(u8::from(bound.is_some_and(|bound| wanted.contains(&bound))))
        };
        match algorithm.ratio {
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
        let batch = Batch::read(&tensors, case["data"].as_str().unwrap());
        let algorithm = match settings(options, &batch) {
            Ok(algorithm) => algorithm,
            Err(reason) => {
                *tally.skipped.entry(reason).or_default() += 1;
                continue;
            }
        };
        let id = &case["id"];
        let outcome = evaluate(&batch, options, &algorithm);

        let expected = tensors.f32(&format!("case.{id}.loss")).1[0];
        let expected_gradient = tensors.f32(&format!("case.{id}.grad_new_logps")).1;
        let mut errors = vec![
            ("loss", f64::from((outcome.loss - expected).abs() / expected.abs().max(outcome.magnitude).max(1e-6))),
            ("gradient", gradient_error(&algorithm, options, &batch, &outcome.gradient, &expected_gradient)),
        ];
        if let Some(gradient) = &outcome.entropy_gradient {
            let expected = tensors.f32(&format!("case.{id}.grad_entropy")).1;
            errors.push(("entropy gradient", relative_error(gradient, &expected)));
        }
        let found = metrics(&batch, &algorithm, &outcome);
        for (name, expected) in case["metrics"].as_object().unwrap() {
            if let (Some((&name, &found)), Some(expected)) = (found.get_key_value(name.as_str()), expected.as_f64()) {
                errors.push((name, relative_error(&[found], &[expected as f32])));
            }
        }
        for (what, error) in errors {
            let column = match what {
                "loss" => 0,
                "gradient" | "entropy gradient" => 1,
                _ => 2,
            };
            tally.worst[column] = tally.worst[column].max(error);
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

/// The rounding that normalised parts carry in float32, in units of its epsilon: that of the reward over the deviation of
/// the part in its group, and that of the quotient.
fn rounding_of_parts(group: &[Reward], index: usize) -> f64 {
    let rounding = |part: usize| {
        let value = |reward: &Reward| reward.parts[part].value.map(f64::from);
        let known: Vec<f64> = group.iter().filter_map(value).collect();
        let count = known.len() as f64;
        let mean = known.iter().sum::<f64>() / count;
        let squares: f64 = known.iter().map(|value| (value - mean).powi(2)).sum();
        let divisor = (squares / (count - 1.0).max(1.0)).sqrt() + 1e-4;
        let value = value(&group[index])?;
        Some(f64::from(group[index].parts[part].weight) * (value.abs() + (value - mean).abs()) / divisor)
    };
    (0..group[index].parts.len()).filter_map(rounding).sum()
}

#[test]
fn advantages() {
    let cases = json(&directory().join("advantages.json"));
    let tensors = Tensors::read(&directory().join("advantages.safetensors"));
    let mut families: BTreeMap<String, Tally> = BTreeMap::new();
    for case in cases.as_array().unwrap() {
        let scale = case["scale_rewards"].as_str().unwrap();
        let aggregation = case["aggregation"].as_str().unwrap();
        let tally = families.entry(format!("{} {aggregation}", case["rewards"].as_str().unwrap())).or_default();
        let (shape, parts) = tensors.f32(&format!("rewards.{}", case["rewards"].as_str().unwrap()));
        let weights: Vec<f32> =
            case["weights"].as_array().unwrap().iter().map(|w| w.as_f64().unwrap() as f32).collect();
        let reward = |row: &[f32]| {
            row.iter().zip(&weights).fold(Reward::abstain(), |reward, (value, &weight)| {
                reward.and("part", Some(*value).filter(|value| !value.is_nan()), weight)
            })
        };
        let rewards: Vec<Reward> = parts.chunks(shape[1]).map(reward).collect();
        let group_size = case["num_generations"].as_u64().unwrap() as usize;
        let groups: Vec<&[Reward]> = rewards.chunks(group_size).collect();
        let scale = match scale {
            "group" => Scale::GroupStd,
            "batch" => Scale::BatchStd,
            _ => Scale::None,
        };
        let estimator = match aggregation {
            "sum_then_normalize" => Advantage::Relative(Relative { scale, ..Relative::default() }),
            // TRL's scale has no say here.
            _ => Advantage::Gdpo(Gdpo::default()),
        };
        let found = estimator.advantages(&AdvantageInput::of(&groups)).concat();

        let expected = tensors.f32(&format!("case.{}.advantages", case["id"])).1;
        // TRL centres in float32: its advantages carry the rounding of a reward, over the divisor.
        let deviations = match (&estimator, scale) {
            (Advantage::Relative(_), Scale::None) => vec![1.0; rewards.len()],
            _ => tensors.f32(&format!("case.{}.std", case["id"])).1,
        };
        let magnitude = expected.iter().fold(1e-6f32, |largest, advantage| largest.max(advantage.abs()));
        for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let largest = expected.abs().max(1e-6);
            let of_sum = match estimator {
                Advantage::Relative(_) => f64::from(rewards[index].total().unwrap_or(0.0).abs()),
                _ => rounding_of_parts(groups[index / group_size], index % group_size),
            };
            // The deviation of fewer than two rewards is NaN there.
            let rounding = (of_sum as f32 * f32::EPSILON / (deviations[index] + 1e-4)).max(0.0);
            let difference = (found - expected).abs();
            assert!(
                difference <= rounding + TOLERANCE as f32 * largest,
                "case {} completion {index}: {found} {expected}",
                case["id"]
            );
            tally.worst[0] = tally.worst[0].max(f64::from(difference / magnitude));
        }
        tally.passed += 1;
    }
    print(&families);
    assert!(families.values().map(|tally| tally.passed).sum::<usize>() > 0, "no case was compared");
}
