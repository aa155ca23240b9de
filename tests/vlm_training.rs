//! Policy updates of the vision-language model on real pictures, with a reward that even a fresh model earns.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::sync::Arc;

use burn::optim::{AdamWConfig, ModuleOptimizer, SgdConfig};
use burn::tensor::Device;
use firesight_kawhi::KawhiConfig;
use firesight_rl::{
    Algorithm, Completion, CreditAssigner, Group, MicroBatch, Options, Policy, Reward, Sampling, StepReport, Task,
    TaskError, Trainer, Uniform, assign_from_signals,
};
use firesight_train::task::Charts;
use firesight_train::{Purpose, Question, Questions, VlmPolicy, VlmPrompt};
use firesight_vlm::{ModelConfig, Processor, QwenVl};
use support::models::weights;

/// Rewards even token ids.
struct EvenTokens;

impl Task for EvenTokens {
    type Sample = Question;
    type Prompt = VlmPrompt;

    fn prompt(&self, question: &Question) -> Result<VlmPrompt, TaskError> {
        Ok(question.prompt.clone())
    }

    fn reward(&self, _: &Question, completion: &Completion) -> Result<Reward, TaskError> {
        let even = completion.tokens.iter().filter(|&token| token % 2 == 0).count();
        Ok(Reward::of("even", even as f32 / completion.tokens.len() as f32))
    }
}

fn policy() -> VlmPolicy {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/qwen-small");
    let model = QwenVl::new(&ModelConfig::from_dir(&directory).unwrap(), 0, &Device::flex().autodiff());
    VlmPolicy::new(model, Arc::new(Processor::from_dir(&directory).unwrap())).unwrap()
}

fn credit(name: &str, policy: &VlmPolicy) -> Box<dyn CreditAssigner<VlmPrompt> + Send> {
    if name == "uniform" {
        return Box::new(Uniform);
    }
    Box::new(policy.kawhi(KawhiConfig::default()).unwrap())
}

/// Trains a fresh policy by GRPO without a penalty, on the questions that come with it.
fn trainer(
    credit_name: &str,
    mini_batches: usize,
    threads: usize,
    optimizer: ModuleOptimizer,
) -> (Trainer<VlmPolicy>, Questions) {
    let policy = policy();
    let questions = Questions::new(Charts::new().unwrap(), policy.processor().clone(), 0);
    let credit = credit(credit_name, &policy);
    let options = Options {
        prompts_per_sampling_batch: 2,
        micro_batch: MicroBatch::Groups(1),
        mini_batches,
        threads,
        ..Options::new(4, Sampling { temperature: 0.8, max_tokens: 10, seed: 5, first_stream: 0 })
    };
    let algorithm = Algorithm { kl: None, ..Algorithm::grpo() };
    (Trainer::new(policy, optimizer, algorithm, credit, options).unwrap(), questions)
}

/// Runs `steps` and returns what each reported, and the weights afterwards.
fn train(
    credit_name: &str,
    mini_batches: usize,
    threads: usize,
    steps: usize,
) -> (Vec<StepReport<VlmPrompt>>, Vec<f32>) {
    let (mut trainer, questions) = trainer(credit_name, mini_batches, threads, AdamWConfig::new().init());
    let reports = (0..steps)
        .map(|step| {
            let samples = questions.batch(Purpose::Reinforcement, step * 4, 4).unwrap();
            trainer.step(&EvenTokens, &samples, 1e-3).unwrap()
        })
        .collect();
    (reports, weights(&trainer.policy))
}

fn metric(report: &StepReport<VlmPrompt>, name: &str) -> f64 {
    report.metrics.iter().find(|(found, _)| found == name).unwrap_or_else(|| panic!("no metric {name}")).1
}

#[test]
fn sampled_and_scored_log_probs_agree_and_every_mini_batch_steps() {
    for (credit, mini_batches) in [("uniform", 1), ("kawhi", 1), ("kawhi", 2)] {
        let (reports, _) = train(credit, mini_batches, 2, 2);
        for report in &reports {
            assert_eq!(report.optimizer_steps, mini_batches);
            let difference = metric(report, "rollout/log_prob_diff_max");
            assert!(difference < 1e-4, "{credit}: {difference}");
            assert!(metric(report, "grad/norm") > 0.0);
            // On a CPU nothing is.
            assert_eq!(metric(report, "tokens/padding_fraction").to_bits(), 0);
            let credit_weights = report.credit.iter().flatten().flat_map(|credit| &credit.weights);
            let weights: Vec<f32> = credit_weights.copied().collect();
            assert!(credit == "kawhi" || weights.iter().all(|weight| weight.to_bits() == 1.0f32.to_bits()));
            assert!(!weights.is_empty() && weights.iter().all(|weight| (0.1..=1.0).contains(weight)));
        }
    }
}

/// Queries and keys of the model, regions of the picture and paragraphs of the text meet: three paragraphs share out
/// the weight of equation 15, whose mean over paragraphs is `w_min + (w_max - w_min) / 3`.
#[test]
fn paragraphs_of_a_worked_answer_get_weights_of_their_own() {
    let policy = policy();
    let questions = Questions::new(Charts::new().unwrap(), policy.processor().clone(), 0);
    let groups: Vec<Group<VlmPrompt>> = questions
        .batch(Purpose::Reinforcement, 0, 4)
        .unwrap()
        .into_iter()
        .map(|question| {
            let mut tokens =
                policy.processor().tokenizer().encode(question.example.worked.as_deref().unwrap()).unwrap();
            tokens.push(policy.processor().eos_token_id());
            let completion = Completion { tokens, ..Completion::default() };
            Group { prompt: question.prompt, completions: vec![completion], rewards: Vec::new() }
        })
        .collect();
    let kawhi = credit("kawhi", &policy);
    let prompts: Vec<&VlmPrompt> = groups.iter().map(|group| &group.prompt).collect();
    let scores = policy.score(&groups, 1.0, &kawhi.signals(&prompts).unwrap()).unwrap();
    for credit in assign_from_signals(&kawhi, &groups, &scores.signals).unwrap() {
        let weights = credit.weights;
        let paragraphs: Vec<&[f32]> = weights.chunk_by(|a, b| a.to_bits() == b.to_bits()).collect();
        assert_eq!(paragraphs.len(), 3, "{weights:?}");
        let mean = paragraphs.iter().map(|paragraph| paragraph[0]).sum::<f32>() / 3.0;
        assert!((mean - 0.4).abs() < 1e-6, "{weights:?}");
    }
}

#[test]
fn threads_change_nothing() {
    for credit in ["uniform", "kawhi"] {
        let (one, one_weights) = train(credit, 2, 1, 2);
        let (two, two_weights) = train(credit, 2, 2, 2);
        for (one, two) in one.iter().zip(&two) {
            assert_eq!(one.credit, two.credit);
            assert_eq!(one.advantages, two.advantages);
            for name in ["reward/mean", "loss/policy", "grad/norm", "entropy/mean", "ratio/max"] {
                assert_eq!(metric(one, name).to_bits(), metric(two, name).to_bits(), "{credit} {name}");
            }
        }
        assert!(one_weights == two_weights, "{credit}: weights differ");
    }
}

/// Micro-batches on two threads each go back through the layers by themselves; a whole update is the same but for the
/// order of sums.
#[test]
fn activation_checkpointing_changes_no_update() {
    let trained = |checkpointing| {
        // Without moments, which make a large step of a small gradient.
        let (mut trainer, questions) = trainer("uniform", 1, 2, SgdConfig::new().init());
        trainer.algorithm.entropy_bonus = 0.1;
        let before = weights(&trainer.policy);
        trainer.policy.model = trainer.policy.model.with_activation_checkpointing(checkpointing);
        let samples = questions.batch(Purpose::Reinforcement, 0, 4).unwrap();
        let norm = metric(&trainer.step(&EvenTokens, &samples, 1.0).unwrap(), "grad/norm");
        let change = |(after, before): (f32, f32)| after - before;
        (norm, weights(&trainer.policy).into_iter().zip(before).map(change).collect::<Vec<f32>>())
    };
    let ((norm, change), (expected_norm, expected_change)) = (trained(true), trained(false));
    assert!((norm / expected_norm - 1.0).abs() < 1e-6, "{norm} is not {expected_norm}");
    let largest = expected_change.iter().fold(0.0f32, |largest, change| largest.max(change.abs()));
    assert!(largest > 0.01, "{largest}");
    for (found, expected) in change.iter().zip(&expected_change) {
        assert!((found - expected).abs() <= 1e-5 * largest, "{found} is not {expected}, of {largest} at most");
    }
}

/// The whole path from reward to weights points the right way.
#[test]
fn the_reward_rises() {
    let (reports, _) = train("kawhi", 1, 2, 12);
    let mean = |reports: &[StepReport<VlmPrompt>]| {
        reports.iter().map(|report| metric(report, "reward/mean")).sum::<f64>() / reports.len() as f64
    };
    let (first, last) = (mean(&reports[..3]), mean(&reports[9..]));
    assert!(last > first + 0.1, "{first} -> {last}");
}
