//! The guarantees of a step, on a small model.

mod tiny;

use std::sync::atomic::Ordering;

use burn::module::Param;
use burn::optim::{AdamWConfig, ModuleOptimizer, SgdConfig};
use burn::tensor::{Device, Tensor};

use crate::{
    Algorithm, Clip, CreditAssigner, Deadline, Error, KlEstimator, KlPenalty, KlPlacement, MicroBatch, Options,
    Overlong, Reward, RewardFailure, Sampling, StepReport, Surrogate, Task, Trainer, Uniform,
};
use tiny::{ByToken, Count, Fixed, Flat, Row, Tiny, rows};

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

#[test]
fn any_split_into_micro_batches_has_the_same_gradient() {
    let penalties = [KlPlacement::Loss, KlPlacement::RatioWeightedLoss, KlPlacement::Reward]
        .map(|placement| Algorithm { kl: Some(KlPenalty { placement, ..KlPenalty::new(0.5) }), ..Algorithm::grpo() });
    for algorithm in algorithms().into_iter().chain(penalties) {
        let algorithm = Algorithm { entropy_bonus: 0.1, ..algorithm };
        let with = |micro_batch| {
            // A reference that is somewhere else, so that the penalty has a gradient.
            let mut trainer = descent(algorithm.clone(), Options { micro_batch, ..options() });
            trainer.policy.sharpen(1.5);
            gradient(trainer, &rows(0.0))
        };
        let whole = with(MicroBatch::Groups(4));
        // 13 tokens: a prompt of 3 and two completions of 5 at most, so groups of 8 are cut.
        let splits = [1, 2, 3].map(MicroBatch::Groups).into_iter().chain([1, 13, 47, 90].map(MicroBatch::Tokens));
        for micro_batch in splits {
            assert_close(&with(micro_batch), &whole, 1e-5);
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
    groups[2].rewards[4] = Reward::of("total", f32::NAN);
    let error = trainer.update(&groups, 1.0).unwrap_err();
    assert!(matches!(error, Error::NonFiniteReward { group: 2, completion: 4 }), "{error:?}");
    assert_eq!(trainer.policy.parameters(), before);
}

#[test]
fn a_bad_loss_is_named_and_nothing_is_updated() {
    let mut trainer = descent(Algorithm::dapo(), options());
    let before = trainer.policy.parameters();
    let mut groups = trainer.rollout(&Count, &rows(0.0)).unwrap().groups;
    groups[0].rewards.iter_mut().for_each(|reward| *reward = Reward::of("total", 1.0));
    groups[3].completions[5].log_probs[0] = f32::NAN;
    groups[3].rewards.iter_mut().enumerate().for_each(|(index, reward)| *reward = Reward::of("total", index as f32));
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
fn a_failing_reward_function_abstains_where_it_may() {
    let options = Options { reward_failure: RewardFailure::Abstain, ..options() };
    let mut trainer = descent(Algorithm::dapo(), options.clone());
    let mut broken = rows(0.0);
    broken[1].offset = -1.0;
    let rollout = trainer.rollout(&Count, &broken).unwrap();
    assert_eq!(rollout.failures.len(), 8);
    assert!(matches!(rollout.failures[3], Error::Reward { group: 1, completion: 3, .. }), "{:?}", rollout.failures[3]);
    assert!(rollout.groups[1].rewards.iter().all(|reward| reward.total().is_none()));
    let update = trainer.update(&rollout.groups, 1.0).unwrap();
    assert_eq!(update.advantages[1], [0.0; 8]);
    let report = StepReport::new(rollout, update, std::time::Duration::from_secs(1));
    assert_eq!(metric(&report, "reward/abstained_fraction"), 0.25);

    // What abstains is not there: the same as a group whose rewards are all equal.
    let mut equal = rows(0.0);
    equal[1].constant = true;
    assert_eq!(
        gradient(descent(Algorithm::dapo(), options.clone()), &broken),
        gradient(descent(Algorithm::dapo(), options), &equal)
    );
}

/// Takes its time for the third prompt.
struct Slow;

impl Task for Slow {
    type Sample = Row;
    type Prompt = usize;

    fn prompt(&self, row: &Row) -> Result<usize, Box<dyn std::error::Error + Send + Sync>> {
        Ok(row.prompt)
    }

    fn reward(
        &self,
        row: &Row,
        completion: &crate::Completion,
    ) -> Result<Reward, Box<dyn std::error::Error + Send + Sync>> {
        match row.prompt {
            1 => panic!("a verifier with a bug"),
            2 => std::thread::sleep(std::time::Duration::from_mins(1)),
            _ => {}
        }
        Count.reward(row, completion)
    }
}

#[test]
fn a_reward_that_overruns_its_deadline_or_panics_is_an_error_or_an_abstention() {
    let task = || Deadline::new(Slow, std::time::Duration::from_millis(20));
    let mut trainer = descent(Algorithm::dapo(), options());
    let error = trainer.step(&task(), &rows(0.0)[2..], 1.0).unwrap_err();
    assert!(matches!(&error, Error::Reward { group: 0, completion: 0, .. }), "{error:?}");
    let mut trainer = descent(Algorithm::dapo(), Options { reward_failure: RewardFailure::Abstain, ..options() });
    let rollout = trainer.rollout(&task(), &rows(0.0)).unwrap();
    let known: Vec<bool> = rollout.groups.iter().map(|group| group.rewards[0].total().is_some()).collect();
    assert_eq!(known, [true, false, false, true]);
    let reasons: Vec<String> =
        rollout.failures.iter().map(|failure| std::error::Error::source(failure).unwrap().to_string()).collect();
    assert_eq!((&*reasons[0], &*reasons[8]), ("the reward function panicked", "no reward within 20ms"));
}

#[test]
fn a_truncated_completion_that_is_masked_is_as_if_it_had_no_tokens() {
    let masked = |mask_truncated| Algorithm { mask_truncated, ..Algorithm::dapo() };
    let mut trainer = descent(masked(true), options());
    let mut groups = trainer.rollout(&Count, &rows(0.0)).unwrap().groups;
    let truncated = groups.iter().flat_map(|group| &group.completions).filter(|answer| answer.truncated).count();
    assert!(truncated > 0 && truncated < 32, "{truncated}");
    let gradient = |mut trainer: Trainer<Tiny>, groups: &[crate::Group<usize>]| -> Vec<f32> {
        let before = trainer.policy.parameters();
        trainer.update(groups, 1.0).unwrap();
        before.iter().zip(trainer.policy.parameters()).map(|(before, after)| before - after).collect()
    };
    let update = descent(masked(true), options()).update(&groups, 1.0).unwrap();
    for (group, credit) in groups.iter().zip(&update.credit) {
        for (answer, credit) in group.completions.iter().zip(credit) {
            assert_eq!(credit.len(), if answer.truncated { 0 } else { answer.tokens.len() });
        }
    }
    let found = gradient(descent(masked(true), options()), &groups);
    assert_ne!(found, gradient(descent(masked(false), options()), &groups));
    for answer in groups.iter_mut().flat_map(|group| &mut group.completions).filter(|answer| answer.truncated) {
        (answer.tokens, answer.log_probs, answer.truncated) = (Vec::new(), Vec::new(), false);
    }
    assert_eq!(found, gradient(descent(masked(false), options()), &groups));
}

#[test]
fn a_penalty_in_the_reward_lowers_it_by_the_divergence_of_the_completion() {
    let kl = KlPenalty { estimator: KlEstimator::K1, placement: KlPlacement::Reward, ..KlPenalty::new(0.5) };
    let algorithm = Algorithm { kl: Some(kl), ..Algorithm::dr_grpo(5) };
    let mut trainer = descent(algorithm, options());
    trainer.policy.sharpen(2.0);
    let rollout = trainer.rollout(&Count, &rows(0.0)).unwrap();
    let reference = trainer.reference.clone().unwrap();
    let scores = crate::Policy::score(&reference, &rollout.groups, 0.7, crate::SignalSet::default()).unwrap();
    let [_, width] = scores.log_probs.dims();
    let reference: Vec<f32> = scores.log_probs.into_data().try_to_vec().unwrap();
    let update = trainer.update(&rollout.groups, 0.1).unwrap();

    let mut sums = Vec::new();
    for (group, (rows, advantages)) in rollout.groups.iter().zip(reference.chunks(8 * width).zip(&update.advantages)) {
        let charged: Vec<f32> = group
            .completions
            .iter()
            .zip(&group.rewards)
            .zip(rows.chunks(width))
            .map(|((answer, reward), reference)| {
                let divergence: f32 = answer.log_probs.iter().zip(reference).map(|(own, other)| own - other).sum();
                sums.push(divergence);
                reward.total().unwrap() - 0.5 * divergence
            })
            .collect();
        let mean = charged.iter().sum::<f32>() / 8.0;
        for (charged, advantage) in charged.iter().zip(advantages) {
            assert!((charged - mean - advantage).abs() < 1e-5, "{charged} {mean} {advantage}");
        }
    }
    let report = StepReport::new(rollout, update, std::time::Duration::from_secs(1));
    assert!((metric(&report, "reward/kl") - f64::from(sums.iter().sum::<f32>() / 32.0)).abs() < 1e-5);
    assert!(report.metric("loss/kl").is_none(), "the loss has no penalty");
    assert!(metric(&report, "kl/mean") > 0.0);
}

#[test]
fn the_reference_is_refreshed_when_asked_and_else_stays() {
    let reference_after = |refresh_every, steps| {
        let algorithm = Algorithm { kl: Some(KlPenalty { refresh_every, ..KlPenalty::new(0.1) }), ..Algorithm::grpo() };
        let mut trainer = descent(algorithm, options());
        let first = trainer.policy.parameters();
        for _ in 0..steps {
            trainer.step(&Count, &rows(0.0), 0.1).unwrap();
        }
        let reference = trainer.reference.as_ref().unwrap().parameters();
        (reference == first, reference == trainer.policy.parameters())
    };
    assert_eq!(reference_after(None, 4), (true, false));
    assert_eq!(reference_after(Some(2), 1), (true, false));
    assert_eq!(reference_after(Some(2), 4), (false, true));
    assert_eq!(reference_after(Some(2), 3), (false, false));
}

#[test]
fn dynamic_sampling_draws_until_rewards_differ_or_its_rounds_are_over() {
    let mut trainer = descent(Algorithm::dapo(), options());
    let mut asked = Vec::new();
    // Every second prompt gives all its completions the same reward.
    let mut supply = (0..).map(|index| Row { prompt: index % 4, offset: 0.0, constant: index % 2 == 0 });
    let (rollout, samples) = trainer
        .dynamic_rollout(&Count, 4, 9, |count| {
            asked.push(count);
            Ok::<_, Error>(supply.by_ref().take(count).collect())
        })
        .unwrap();
    assert_eq!(asked[..2], [4, 2]);
    assert_eq!(asked.iter().sum::<usize>(), rollout.drawn);
    assert_eq!((rollout.groups.len(), samples.len()), (4, 4));
    for (group, sample) in rollout.groups.iter().zip(&samples) {
        assert!(!group.rewards_are_equal() && group.prompt == sample.prompt && !sample.constant);
    }
    assert_eq!(trainer.options.sampling.first_stream, 8 * rollout.drawn as u64);

    let hopeless = |count| Ok::<_, Error>(vec![Row { prompt: 0, offset: 0.0, constant: true }; count]);
    let (rollout, _) = trainer.dynamic_rollout(&Count, 4, 3, hopeless).unwrap();
    assert_eq!((rollout.groups.len(), rollout.drawn), (0, 12));
    let update = trainer.update(&rollout.groups, 1.0).unwrap();
    assert_eq!(update.optimizer_steps, 0);
    let report = StepReport::new(rollout, update, std::time::Duration::from_secs(1));
    assert_eq!(metric(&report, "rollout/dropped_fraction"), 1.0);
}

#[test]
fn only_the_tokens_of_the_highest_entropy_move_the_policy() {
    let algorithm = |top_entropy| Algorithm { top_entropy, ..Algorithm::dapo() };
    let all = gradient(descent(algorithm(None), options()), &rows(0.0));
    assert_close(&gradient(descent(algorithm(Some(1.0)), options()), &rows(0.0)), &all, 1e-6);

    // By hand: credit of one for the tokens at or above the quantile of the whole batch, of zero for the others.
    let mut trainer = descent(algorithm(None), options());
    let groups = trainer.rollout(&Count, &rows(0.0)).unwrap().groups;
    let scores = crate::Policy::score(&trainer.policy.clone(), &groups, 0.7, crate::SignalSet::default()).unwrap();
    let [_, width] = scores.entropy.dims();
    let entropies: Vec<f32> = scores.entropy.into_data().try_to_vec().unwrap();
    let answers = groups.iter().flat_map(|group| &group.completions);
    let entropies: Vec<Vec<f32>> =
        answers.zip(entropies.chunks(width)).map(|(answer, row)| row[..answer.tokens.len()].to_vec()).collect();
    let mut sorted = entropies.concat();
    sorted.sort_by(f32::total_cmp);
    let threshold = sorted[(0.6 * (sorted.len() - 1) as f64).ceil() as usize];
    let weights = entropies.iter().map(|row| row.iter().map(|&h| f32::from(u8::from(h >= threshold))).collect());
    let credit = Fixed(weights.collect());
    let options = Options { micro_batch: MicroBatch::Groups(4), ..options() };
    let by_hand = gradient(trainer_with(Algorithm::dapo(), credit, SgdConfig::new().init(), options), &rows(0.0));
    assert_close(&gradient(descent(algorithm(Some(0.4)), self::options()), &rows(0.0)), &by_hand, 1e-5);
}

#[test]
fn nothing_is_scored_twice_unless_the_settings_need_it() {
    let passes = |algorithm: Algorithm, wants_attention, passes_per_rollout| {
        let options = Options { passes_per_rollout, ..options() };
        let credit = Flat { factor: 1.0, wants_attention };
        let mut trainer = trainer_with(algorithm, credit, SgdConfig::new().init(), options);
        assert_eq!(trainer.reference.is_some(), trainer.algorithm.kl.is_some());
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
    assert_eq!(passes(Algorithm::rloo(), true, 1), 8, "a penalty in the reward needs a reference, and no more");
    let focused = Algorithm { top_entropy: Some(0.2), ..Algorithm::dapo() };
    assert_eq!(passes(focused.clone(), true, 1), 8, "entropies are looked at before, and signals with them");
    assert_eq!(passes(focused, true, 2), 12);
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
    assert_eq!(refused(Options { micro_batch: MicroBatch::Tokens(0), ..options() }), "micro_batch");
    assert_eq!(refused(options()), "nothing");
}

#[test]
fn algorithms_that_mean_nothing_are_refused_by_name() {
    let refused = |algorithm: Algorithm| match algorithm.check() {
        Err(Error::Setting { setting, .. }) => setting,
        _ => "nothing",
    };
    for (name, preset) in Algorithm::presets(5) {
        assert_eq!(refused(preset), "nothing", "{name}");
    }
    let kl = |penalty| Algorithm { kl: Some(penalty), ..Algorithm::grpo() };
    assert_eq!(refused(kl(KlPenalty::new(0.0))), "kl.coefficient");
    assert_eq!(refused(kl(KlPenalty { refresh_every: Some(0), ..KlPenalty::new(0.1) })), "kl.refresh_every");
    assert_eq!(refused(Algorithm { top_entropy: Some(0.0), ..Algorithm::grpo() }), "top_entropy");
    let clip =
        |low, high, delta| Algorithm { surrogate: Surrogate::Clip(Clip { low, high, delta }), ..Algorithm::grpo() };
    assert_eq!(refused(clip(1.2, 0.2, None)), "surrogate.low");
    assert_eq!(refused(clip(0.2, f32::NAN, None)), "surrogate.high");
    assert_eq!(refused(clip(0.2, 0.2, Some(1.1))), "surrogate.delta");
    let overlong = Overlong { max_tokens: 4, buffer: 5, weight: 1.0 };
    assert_eq!(refused(Algorithm { overlong: Some(overlong), ..Algorithm::grpo() }), "overlong.buffer");
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
