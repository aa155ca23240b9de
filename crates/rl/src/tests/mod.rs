//! The guarantees of a step, on a small model.

mod tiny;

use std::sync::atomic::Ordering;

use burn::module::Param;
use burn::optim::{AdamWConfig, ModuleOptimizer, SgdConfig};
use burn::tensor::{Device, Tensor};

use crate::{Algorithm, CreditAssigner, Error, KlPenalty, Options, Sampling, StepReport, Trainer, Uniform};
use tiny::{ByToken, Count, Flat, Row, Tiny, rows};

fn options() -> Options {
    Options {
        group_size: 8,
        sampling: Sampling { temperature: 0.7, max_tokens: 5, seed: 3, first_stream: 0 },
        prompts_per_sampling_batch: 1,
        groups_per_micro_batch: 1,
        mini_batches: 1,
        passes_per_rollout: 1,
        max_gradient_norm: None,
        threads: 1,
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

/// Plain gradient descent of rate one: what the parameters lose is the gradient.
fn descent(algorithm: Algorithm, options: Options) -> Trainer<Tiny> {
    trainer_with(algorithm, Uniform, SgdConfig::new().init(), options)
}

fn metric(report: &StepReport<usize>, name: &str) -> f64 {
    report.metrics.iter().find(|(found, _)| found == name).unwrap_or_else(|| panic!("no {name}")).1
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

fn algorithms() -> [Algorithm; 6] {
    [
        Algorithm::grpo(),
        Algorithm::dapo(),
        Algorithm::dr_grpo(5),
        Algorithm::gspo(),
        Algorithm::cispo(5.0),
        Algorithm::sapo(),
    ]
}

#[test]
fn any_split_into_micro_batches_has_the_same_gradient() {
    for mut algorithm in algorithms() {
        algorithm.loss.entropy_bonus = 0.1;
        let whole =
            gradient(descent(algorithm.clone(), Options { groups_per_micro_batch: 4, ..options() }), &rows(0.0));
        for groups_per_micro_batch in [1, 2, 3] {
            let split =
                gradient(descent(algorithm.clone(), Options { groups_per_micro_batch, ..options() }), &rows(0.0));
            assert_close(&split, &whole, 1e-5);
        }
    }
}

#[test]
fn credit_of_one_is_the_base_algorithm_and_credit_of_two_is_not() {
    let credited = |factor, wants_attention| {
        let credit = Flat { factor, wants_attention };
        gradient(trainer_with(Algorithm::dapo(), credit, SgdConfig::new().init(), options()), &rows(0.0))
    };
    let base = gradient(descent(Algorithm::dapo(), options()), &rows(0.0));
    assert_eq!(credited(1.0, false), base);
    assert_eq!(credited(1.0, true), base);
    let doubled: Vec<f32> = base.iter().map(|value| value * 2.0).collect();
    assert_close(&credited(2.0, false), &doubled, 1e-5);
}

#[test]
fn every_token_keeps_its_own_credit() {
    for (mini_batches, passes_per_rollout) in [(1, 1), (2, 1), (2, 2)] {
        let options = Options { mini_batches, passes_per_rollout, ..options() };
        let mut trainer = trainer_with(Algorithm::dapo(), ByToken, SgdConfig::new().init(), options);
        let report = trainer.step(&Count, &rows(0.0), 0.1).unwrap();
        for (group, credit) in report.groups.iter().zip(&report.credit) {
            assert_eq!(credit, &group.completions.iter().map(ByToken::of).collect::<Vec<_>>());
        }
    }
}

#[test]
fn a_constant_added_to_all_rewards_changes_nothing() {
    for algorithm in algorithms() {
        let trainer = || descent(algorithm.clone(), options());
        assert_eq!(gradient(trainer(), &rows(0.0)), gradient(trainer(), &rows(3.0)));
    }
}

#[test]
fn sampled_and_scored_log_probs_agree_at_a_temperature_other_than_one() {
    let mut trainer = descent(Algorithm::gspo(), options());
    let report = trainer.step(&Count, &rows(0.0), 0.1).unwrap();
    let (largest, mean) = (metric(&report, "rollout/log_prob_diff_max"), metric(&report, "rollout/log_prob_diff_mean"));
    assert!(largest < 1e-5 && mean <= largest, "{largest} {mean}");
    assert!((metric(&report, "ratio/mean") - 1.0).abs() < 1e-5);

    let mut wrong = descent(Algorithm::gspo(), options());
    wrong.policy.wrong_temperature = Some(1.0);
    let report = wrong.step(&Count, &rows(0.0), 0.1).unwrap();
    assert!(metric(&report, "rollout/log_prob_diff_max") > 1e-2);
}

#[test]
fn the_difference_is_measured_before_the_policy_moves() {
    let options = Options { passes_per_rollout: 3, ..options() };
    let mut trainer = trainer_with(Algorithm::dapo(), Uniform, SgdConfig::new().init(), options);
    let report = trainer.step(&Count, &rows(0.0), 1.0).unwrap();
    assert_eq!(report.optimizer_steps, 3);
    assert!(metric(&report, "rollout/log_prob_diff_max") < 1e-5);
    assert!(metric(&report, "ratio/max") > 1.05, "later passes are off-policy");
    assert!(metric(&report, "clip/high_fraction") + metric(&report, "clip/low_fraction") > 0.0);
}

#[test]
fn tokens_come_out_of_a_step_as_they_were_sampled() {
    use crate::Sampler;
    let mut trainer = descent(Algorithm::dapo(), options());
    let sampled = trainer.policy.sample(&[0, 1, 2, 3], 8, options().sampling).unwrap();
    let report = trainer.step(&Count, &rows(0.0), 0.1).unwrap();
    let trained: Vec<_> = report.groups.into_iter().map(|group| group.completions).collect();
    assert_eq!(trained, sampled);
    // The next rollout goes on with fresh streams.
    assert_eq!(trainer.options.sampling.first_stream, 32);
}

/// Parameters and metrics of three steps with everything switched on.
fn run(threads: usize) -> (Vec<f32>, Vec<Vec<(String, f64)>>) {
    let options =
        Options { threads, mini_batches: 2, passes_per_rollout: 2, max_gradient_norm: Some(0.5), ..options() };
    let credit = Flat { factor: 1.5, wants_attention: true };
    let mut trainer = trainer_with(Algorithm::grpo(), credit, AdamWConfig::new().init(), options);
    let metrics = (0..3)
        .map(|_| {
            let report = trainer.step(&Count, &rows(0.0), 0.05).unwrap();
            report
                .metrics
                .into_iter()
                .filter(|(name, _)| !name.starts_with("time/") && !name.ends_with("_per_s"))
                .collect()
        })
        .collect();
    (trainer.policy.parameters(), metrics)
}

#[test]
fn the_same_seed_gives_the_same_run_on_any_number_of_threads() {
    let one = run(1);
    assert_eq!(one, run(1));
    assert_eq!(one, run(2));
    assert_eq!(one, run(3));
    assert!(one.1[2].iter().any(|(name, value)| name == "kl/mean" && *value > 0.0));
}

#[test]
fn a_group_of_equal_rewards_contributes_nothing_but_is_counted() {
    let mixed = || {
        let mut rows = rows(0.0);
        rows[1].constant = true;
        rows
    };
    let mut trainer = descent(Algorithm::dr_grpo(5), options());
    let report = trainer.step(&Count, &mixed(), 1.0).unwrap();
    assert_eq!(metric(&report, "reward/zero_std_fraction"), 0.25);
    assert!(report.credit[1].is_empty() && report.credit[0].len() == 8);

    // Dr. GRPO divides by completions, so the other groups' gradient is what they have by themselves, 3 of 4.
    let whole = gradient(descent(Algorithm::dr_grpo(5), options()), &mixed());
    let mut alone = descent(Algorithm::dr_grpo(5), options());
    let rollout = alone.rollout(&Count, &mixed()).unwrap();
    let rest: Vec<_> = [0, 2, 3].map(|group: usize| rollout.groups[group].clone()).into();
    let before = alone.policy.parameters();
    alone.update(&rest, 1.0).unwrap();
    let rest: Vec<f32> =
        before.iter().zip(alone.policy.parameters()).map(|(before, after)| (before - after) * 0.75).collect();
    assert_close(&whole, &rest, 1e-5);
}

#[test]
fn a_batch_without_any_advantage_is_reported_and_not_trained_on() {
    let constant: Vec<Row> = rows(0.5).into_iter().map(|row| Row { constant: true, ..row }).collect();
    // A penalty would pull at the policy, and so would the optimizer's weight decay.
    let mut trainer = trainer_with(Algorithm::grpo(), Uniform, AdamWConfig::new().init(), options());
    let before = trainer.policy.parameters();
    let report = trainer.step(&Count, &constant, 1.0).unwrap();
    assert_eq!(report.optimizer_steps, 0);
    assert_eq!(metric(&report, "update/optimizer_steps"), 0.0);
    assert_eq!(metric(&report, "reward/zero_std_fraction"), 1.0);
    assert!(!report.metrics.iter().any(|(name, _)| name == "loss/policy"));
    assert_eq!(trainer.policy.parameters(), before);
}

#[test]
fn a_bad_reward_is_named_and_nothing_is_updated() {
    let mut trainer = descent(Algorithm::dapo(), options());
    let before = trainer.policy.parameters();
    let mut groups = trainer.rollout(&Count, &rows(0.0)).unwrap().groups;
    groups[2].rewards[4].total = f32::NAN;
    let error = trainer.update(&groups, 1.0).unwrap_err();
    assert!(matches!(error, Error::NonFiniteReward { group: 2, completion: 4 }), "{error:?}");
    assert_eq!(trainer.policy.parameters(), before);
}

#[test]
fn a_bad_loss_is_named_and_nothing_is_updated() {
    let mut trainer = descent(Algorithm::dapo(), options());
    let before = trainer.policy.parameters();
    let mut groups = trainer.rollout(&Count, &rows(0.0)).unwrap().groups;
    groups[0].rewards.iter_mut().for_each(|reward| reward.total = 1.0);
    groups[3].completions[5].log_probs[0] = f32::NAN;
    groups[3].rewards.iter_mut().enumerate().for_each(|(index, reward)| reward.total = index as f32);
    let error = trainer.update(&groups, 1.0).unwrap_err();
    assert!(matches!(error, Error::NonFiniteLoss { group: 3, completion: 5, token: 0 }), "{error:?}");
    assert_eq!(trainer.policy.parameters(), before);
}

#[test]
fn a_bad_gradient_is_named_by_its_parameter_and_nothing_is_updated() {
    let mut trainer = descent(Algorithm::dapo(), options());
    let device = Device::flex().autodiff();
    trainer.policy.trap = Some(Param::from_tensor(Tensor::zeros([1], &device)));
    let before = trainer.policy.parameters();
    let error = trainer.step(&Count, &rows(0.0), 1.0).unwrap_err();
    assert!(matches!(&error, Error::NonFiniteGradient { parameter } if parameter == "trap"), "{error:?}");
    assert_eq!(trainer.policy.parameters(), before);
}

#[test]
fn a_failing_reward_function_is_an_error_and_no_zero() {
    let mut trainer = descent(Algorithm::dapo(), options());
    let mut rows = rows(0.0);
    rows[1].offset = -1.0;
    let error = trainer.step(&Count, &rows, 1.0).unwrap_err();
    assert!(matches!(error, Error::Reward { group: 1, completion: 0, .. }), "{error:?}");
}

#[test]
fn nothing_is_scored_twice_unless_the_settings_need_it() {
    let passes = |algorithm: Algorithm, wants_attention, passes_per_rollout| {
        let options = Options { passes_per_rollout, ..options() };
        let credit = Flat { factor: 1.0, wants_attention };
        let mut trainer = trainer_with(algorithm, credit, SgdConfig::new().init(), options);
        assert_eq!(trainer.reference.is_some(), trainer.algorithm.loss.kl.is_some());
        trainer.step(&Count, &rows(0.0), 0.1).unwrap();
        let expected = if wants_attention { 4 } else { 0 };
        assert_eq!(trainer.policy.signal_passes.load(Ordering::Relaxed), expected, "signals are taken once");
        trainer.policy.passes.load(Ordering::Relaxed)
    };
    // Four groups, one each micro-batch.
    assert_eq!(passes(Algorithm::dapo(), false, 1), 4);
    assert_eq!(passes(Algorithm::dapo(), true, 1), 4, "signals come with the pass that trains");
    assert_eq!(passes(Algorithm::dapo(), false, 2), 8);
    assert_eq!(passes(Algorithm::dapo(), true, 2), 12, "credit is the sampling policy's");
    assert_eq!(passes(Algorithm::grpo(), false, 1), 8, "the reference scores too");
    let mut free = Algorithm::grpo();
    free.loss.kl = Some(KlPenalty { coefficient: 0.0, ratio_weighted: false });
    assert_eq!(passes(free, false, 1), 4, "a penalty of zero needs no reference");
}

#[test]
fn settings_that_cannot_train_are_refused() {
    let refused = |options: Options| {
        let policy = Tiny::new(&Device::flex().autodiff());
        match Trainer::new(policy, SgdConfig::new().init(), Algorithm::dapo(), Uniform, options) {
            Err(Error::Setting { setting, .. }) => setting,
            _ => "nothing",
        }
    };
    let sampling = Sampling { temperature: 0.0, ..options().sampling };
    assert_eq!(refused(Options { sampling, ..options() }), "sampling.temperature");
    assert_eq!(refused(Options { group_size: 1, ..options() }), "group_size");
    assert_eq!(refused(Options { threads: 0, ..options() }), "threads");
    assert_eq!(refused(options()), "nothing");
}

#[test]
fn a_policy_off_the_autodiff_device_cannot_train() {
    let policy = Tiny::new(&Device::flex());
    let mut trainer = Trainer::new(policy, SgdConfig::new().init(), Algorithm::dapo(), Uniform, options()).unwrap();
    let error = trainer.step(&Count, &rows(0.0), 1.0).unwrap_err();
    assert!(matches!(error, Error::NotDifferentiable), "{error:?}");
}

#[test]
fn the_policy_learns() {
    for algorithm in algorithms() {
        let mut trainer = trainer_with(algorithm, Uniform, AdamWConfig::new().init(), options());
        let rewards: Vec<f64> =
            (0..30).map(|_| metric(&trainer.step(&Count, &rows(0.0), 0.05).unwrap(), "reward/mean")).collect();
        assert!(rewards[29] > rewards[0] + 1.0, "{rewards:?}");
    }
}
