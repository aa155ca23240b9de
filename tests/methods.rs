//! Every credit method inside real training steps of a vision-language model: what is asked for arrives, weights are
//! sound, and nothing depends on how a rollout is cut up or where its signals come from.
#![allow(clippy::unwrap_used)]

#[path = "support/parity.rs"]
mod parity;

use std::path::Path;
use std::sync::Arc;

use burn::optim::AdamWConfig;
use burn::tensor::Device;
use firesight_kawhi::{Granularity, KawhiConfig};
use firesight_rl::{
    Advantage, Algorithm, CreditList, Durian, MicroBatch, Options, Policy as _, Sampling, StepReport, Tgrl, Trainer,
    spectral_entropy,
};
use firesight_train::task::Charts;
use firesight_train::{Credit, CreditConfig, Job, Purpose, Questions, RunConfig, VlmPolicy, VlmPrompt};
use firesight_vlm::{ModelConfig, Processor, QwenVl};
use parity::Parity;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn policy() -> VlmPolicy {
    let directory = root().join("models/qwen-small");
    let model = QwenVl::new(&ModelConfig::from_dir(&directory).unwrap(), 0, &Device::flex().autodiff());
    VlmPolicy::new(model, Arc::new(Processor::from_dir(&directory).unwrap())).unwrap()
}

fn prompts(policy: &VlmPolicy) -> Vec<VlmPrompt> {
    let questions = Questions::new(Charts::new().unwrap(), policy.processor().clone(), 0);
    questions.batch(Purpose::Reinforcement, 0, 4).unwrap().into_iter().map(|question| question.prompt).collect()
}

fn options() -> Options {
    let sampling = Sampling { temperature: 1.0, max_tokens: 12, seed: 2, first_stream: 0 };
    Options { micro_batch: MicroBatch::Groups(2), threads: 2, ..Options::new(4, sampling) }
}

fn trainer(credit: &Credit, options: Options) -> Trainer<VlmPolicy> {
    let policy = policy();
    let methods: CreditList<VlmPrompt> = credit.assigners(&policy).unwrap();
    let algorithm = Algorithm { kl: None, ..Algorithm::grpo() };
    Trainer::with_methods(policy, AdamWConfig::new().init(), algorithm, methods, options).unwrap()
}

fn step(credit: &Credit, options: Options) -> StepReport<VlmPrompt> {
    let mut trainer = trainer(credit, options);
    let prompts = prompts(&trainer.policy);
    trainer.step(&Parity, &prompts, 1e-3).unwrap()
}

fn weights(report: &StepReport<VlmPrompt>) -> Vec<Vec<f32>> {
    report.credit.iter().flatten().map(|credit| credit.weights.clone()).collect()
}

fn assert_close(found: &[Vec<f32>], expected: &[Vec<f32>], tolerance: f32, name: &str) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!(found.len(), expected.len());
        let close = |(one, other): (&f32, &f32)| (one - other).abs() < tolerance;
        assert!(found.iter().zip(expected).all(close), "{name}: {found:?} instead of {expected:?}");
    }
}

#[test]
fn every_method_weighs_every_token_of_a_step() {
    // Fresh weights write no paragraphs.
    let kawhi = KawhiConfig { granularity: Granularity::Token, ..KawhiConfig::default() };
    let mut all = vec![Credit::from(CreditConfig::Kawhi(kawhi))];
    let others = CreditConfig::presets().into_iter().filter(|method| method.name() != "kawhi");
    all.extend(others.map(Credit::from));
    all.push("kawhi+vppo+delta_log_p".parse().unwrap());
    for credit in all {
        let name = credit.name();
        let report = step(&credit, options());
        let found = weights(&report);
        let completions = || report.groups.iter().flat_map(|group| &group.completions);
        assert!(completions().zip(&found).all(|(answer, weights)| answer.tokens.len() == weights.len()), "{name}");
        assert!(found.iter().flatten().all(|weight| weight.is_finite() && *weight >= 0.0), "{name}: {found:?}");
        let varied = found.iter().flatten().any(|weight| (weight - found[0][0]).abs() > 1e-4);
        assert_eq!(varied, name != "uniform", "{name}: {found:?}");
        // What lies on the log does not depend on it.
        let difference = report.metric("rollout/log_prob_diff_max").unwrap();
        assert!(difference < 1e-4, "{name}: {difference}");
        // Cut otherwise, on one thread, and in two updates: the same weights, as they are those of the rollout.
        let cut = Options { micro_batch: MicroBatch::Tokens(200), mini_batches: 2, threads: 1, ..options() };
        assert_close(&weights(&step(&credit, cut)), &found, 1e-4, &name);
    }
}

#[test]
fn what_drawing_sees_is_what_scoring_sees() {
    for name in ["ft_rl", "vgpo", "kawhi"] {
        let mut trainer = trainer(&name.parse().unwrap(), options());
        let prompts = prompts(&trainer.policy);
        let mut groups = trainer.rollout(&Parity, &prompts).unwrap().groups;
        let before = (trainer.policy.clone(), trainer.optimizer.clone());
        let drawn = trainer.update(&groups, 1e-3).unwrap().credit.concat();
        (trainer.policy, trainer.optimizer) = before;
        groups.iter_mut().flat_map(|group| &mut group.completions).for_each(|completion| {
            assert!(completion.observed.take().is_some(), "{name}");
        });
        let scored = trainer.update(&groups, 1e-3).unwrap().credit.concat();
        let weights = |credit: &[firesight_rl::TokenCredit]| -> Vec<Vec<f32>> {
            credit.iter().map(|credit| credit.weights.clone()).collect()
        };
        assert_close(&weights(&scored), &weights(&drawn), 1e-4, name);
    }
}

#[test]
fn a_changed_view_is_the_same_for_the_same_rollout_and_another_for_the_next() {
    let credit: Credit = "vppo".parse().unwrap();
    let run = |steps: u64| {
        let mut trainer = trainer(&credit, options());
        trainer.steps = steps;
        let prompts = prompts(&trainer.policy);
        weights(&trainer.step(&Parity, &prompts, 1e-3).unwrap())
    };
    assert_eq!(run(0), run(0));
    assert_ne!(run(0), run(1));
}

#[test]
fn durian_reads_what_the_tower_makes_of_the_images() {
    let mut trainer = trainer(&"uniform".parse().unwrap(), options());
    trainer.algorithm.advantage = Advantage::Durian(Durian::default());
    let prompts = prompts(&trainer.policy);
    for prompt in &prompts {
        let features = trainer.policy.features(prompt).unwrap();
        assert_eq!(features.len(), 1);
        let dims = features[0].dims();
        let values: Vec<f32> = features[0].to_data().try_to_vec().unwrap();
        let entropy = spectral_entropy(&values, dims);
        assert!(entropy > 0.0 && entropy < (dims[0] as f64 - 1.0).ln() + 1e-9, "{entropy} of {dims:?}");
    }
    let report = trainer.step(&Parity, &prompts, 1e-3).unwrap();
    for group in &report.advantages {
        assert!(group.iter().sum::<f32>().abs() < 1e-5 && group.iter().any(|&advantage| advantage != 0.0));
    }
}

#[test]
fn worked_answers_are_the_expert_of_groups_that_fail() {
    let mut config = RunConfig::from_file(&root().join("examples/configs/qwen-small.toml")).unwrap();
    config.model = root().join("models/qwen-small");
    config.reinforcement.algorithm.expert = Some(Tgrl::default());
    let job = Job::new(&config).unwrap();
    let mut trainer = trainer(&"uniform".parse().unwrap(), options());
    trainer.algorithm.expert = Some(Tgrl::default());
    let questions = job.questions.batch(Purpose::Reinforcement, 0, 3).unwrap();
    // Fresh weights answer nothing right.
    let report = trainer.step(&*job.grader, &questions, 1e-3).unwrap();
    for (group, question) in report.groups.iter().zip(&questions) {
        assert_eq!(group.completions.len(), 5);
        let expert = &group.completions[4];
        assert!(expert.expert && question.example.worked.as_ref() == Some(&expert.text));
        assert!(group.rewards[4].is_right() && expert.log_probs.iter().all(|&log_prob| log_prob < 0.0));
    }
    assert_eq!((report.metric("rollout/experts"), report.metric("reward/mean")), (Some(3.0), Some(0.0)));
}
