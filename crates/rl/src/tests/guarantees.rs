//! What a step guarantees, in the order of the crate's front page.

use std::error::Error as _;
use std::sync::atomic::Ordering;
use std::time::Duration;

use burn::module::Param;
use burn::optim::{AdamWConfig, SgdConfig};
use burn::tensor::{Device, Tensor};

use super::tiny::{ByToken, Count, Flat, Row, Tiny, rows};
use super::{algorithms, assert_close, descent, gradient, metric, options, trainer_with};
use crate::{
    Algorithm, Completion, Deadline, Error, KlPenalty, KlPlacement, MicroBatch, Options, Reward, RewardFailure,
    Sampler, StepReport, Task, TaskError, Trainer, Uniform,
};

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
fn a_constant_added_to_all_rewards_changes_nothing() {
    for algorithm in algorithms() {
        let trainer = || descent(algorithm.clone(), options());
        assert_eq!(gradient(trainer(), &rows(0.0)), gradient(trainer(), &rows(3.0)));
    }
}

#[test]
fn every_token_keeps_its_own_credit() {
    let focused = Algorithm { top_entropy: Some(0.5), ..Algorithm::dapo() };
    for (mini_batches, passes_per_rollout, tells, algorithm) in [
        (1, 1, false, Algorithm::dapo()),
        (2, 1, false, Algorithm::dapo()),
        (2, 2, false, Algorithm::dapo()),
        (1, 1, true, Algorithm::dapo()),
        (2, 2, true, Algorithm::dapo()),
        (2, 1, false, focused.clone()),
        (2, 1, true, focused),
    ] {
        // A prompt of 3 and two completions of 5 at most, so that groups are cut.
        let micro_batch = MicroBatch::Tokens(13);
        let options = Options { mini_batches, passes_per_rollout, micro_batch, threads: 2, ..options() };
        let asks_entropy = algorithm.top_entropy.is_some();
        let mut trainer = trainer_with(algorithm, ByToken, SgdConfig::new().init(), options);
        trainer.policy.tells = tells;
        let report = trainer.step(&Count, &rows(0.0), 0.1).unwrap();
        let drawn = report.groups.iter().flat_map(|group| &group.completions);
        assert!(drawn.clone().all(|completion| completion.observed.is_some() == (tells && !asks_entropy)));
        for (group, credit) in report.groups.iter().zip(&report.credit) {
            assert_eq!(credit, &group.completions.iter().map(ByToken::of).collect::<Vec<_>>());
        }
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
fn padding_is_a_share_of_all_positions() {
    let report = descent(Algorithm::grpo(), options()).step(&Count, &rows(0.0), 0.1).unwrap();
    assert!((metric(&report, "tokens/padding_fraction") - 0.25).abs() < 1e-12);
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
fn a_trainer_put_back_goes_on_as_if_it_had_never_stopped() {
    let kl = KlPenalty { refresh_every: Some(3), ..KlPenalty::new(0.1) };
    let algorithm = Algorithm { kl: Some(kl), ..Algorithm::grpo() };
    let options = Options { mini_batches: 2, ..options() };
    let new = || trainer_with(algorithm.clone(), Uniform, AdamWConfig::new().init(), options.clone());
    let step = |trainer: &mut Trainer<Tiny>| {
        let report = trainer.step(&Count, &rows(0.0), 0.05).unwrap();
        (report.groups.into_iter().map(|group| group.completions).collect::<Vec<_>>(), trainer.policy.parameters())
    };
    let mut whole = new();
    for _ in 0..2 {
        step(&mut whole);
    }
    let mut resumed = new();
    resumed.policy = whole.policy.clone();
    resumed.reference.clone_from(&whole.reference);
    resumed.optimizer = resumed.optimizer.load_record(whole.optimizer.to_record());
    resumed.steps = whole.steps;
    resumed.options.sampling.first_stream = whole.options.sampling.first_stream;
    for _ in 0..3 {
        assert_eq!(step(&mut resumed), step(&mut whole));
    }
    let parameters = |trainer: &Trainer<Tiny>| trainer.reference.as_ref().unwrap().parameters();
    assert_eq!(parameters(&resumed), parameters(&whole));
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
    let report = StepReport::new(rollout, update, Duration::from_secs(1));
    assert_eq!(metric(&report, "reward/abstained_fraction"), 0.25);

    // What abstains is not there: the same as a group whose rewards are all equal.
    let mut equal = rows(0.0);
    equal[1].constant = true;
    assert_eq!(
        gradient(descent(Algorithm::dapo(), options.clone()), &broken),
        gradient(descent(Algorithm::dapo(), options), &equal)
    );
}

/// Grades all completions of a rollout at once, the last first; says nothing of the last `forgotten` of them.
struct Together {
    forgotten: usize,
}

impl Task for Together {
    type Sample = Row;
    type Prompt = usize;

    fn prompt(&self, row: &Row) -> Result<usize, TaskError> {
        Ok(row.prompt)
    }

    fn reward(&self, _row: &Row, _completion: &Completion) -> Result<Reward, TaskError> {
        Err("asked for one".into())
    }

    fn rewards(&self, batch: &[(&Row, &Completion)]) -> Vec<Result<Reward, TaskError>> {
        let backwards = batch.iter().rev().map(|(row, completion)| Count.reward(row, completion));
        let mut rewards: Vec<_> = backwards.collect();
        rewards.reverse();
        rewards.truncate(batch.len() - self.forgotten);
        rewards
    }
}

#[test]
fn a_task_may_grade_a_rollout_at_once() {
    let mut broken = rows(0.0);
    broken[2].offset = -1.0;
    let rollout = |forgotten| {
        let options = Options { reward_failure: RewardFailure::Abstain, ..options() };
        descent(Algorithm::dapo(), options).rollout(&Together { forgotten }, &broken)
    };
    let options = Options { reward_failure: RewardFailure::Abstain, ..options() };
    let expected = descent(Algorithm::dapo(), options).rollout(&Count, &broken).unwrap();
    let found = rollout(0).unwrap();
    for (found, expected) in found.groups.iter().zip(&expected.groups) {
        assert_eq!(found.rewards, expected.rewards);
    }
    let places = |failures: &[Error]| failures.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(places(&found.failures), places(&expected.failures));
    let error = rollout(1).unwrap_err();
    assert!(matches!(error, Error::Count { what: "rewards", found: 31, expected: 32 }), "{error}");
}

/// Panics over the second prompt, and never comes back from the third.
struct Broken;

impl Task for Broken {
    type Sample = Row;
    type Prompt = usize;

    fn prompt(&self, row: &Row) -> Result<usize, TaskError> {
        Ok(row.prompt)
    }

    fn reward(&self, row: &Row, completion: &Completion) -> Result<Reward, TaskError> {
        match row.prompt {
            // A panic without its message on the terminal.
            1 => std::panic::resume_unwind(Box::new("a verifier with a bug")),
            2 => loop {
                std::thread::park();
            },
            _ => Count.reward(row, completion),
        }
    }
}

#[test]
fn a_reward_that_panics_or_overruns_its_deadline_is_an_error_or_an_abstention() {
    // A deadline that no machine is too slow for, and one that nothing can meet.
    for (prompt, limit, reason) in [
        (1, Duration::from_mins(10), "the reward function panicked"),
        (2, Duration::from_millis(20), "no reward within 20ms"),
    ] {
        let task = || Deadline::new(Broken, limit);
        let only = &rows(0.0)[prompt..=prompt];
        let mut trainer = descent(Algorithm::dapo(), options());
        let error = trainer.step(&task(), only, 1.0).unwrap_err();
        assert!(matches!(&error, Error::Reward { group: 0, completion: 0, .. }), "{error:?}");

        let mut trainer = descent(Algorithm::dapo(), Options { reward_failure: RewardFailure::Abstain, ..options() });
        let rollout = trainer.rollout(&task(), only).unwrap();
        assert!(rollout.groups[0].rewards.iter().all(|reward| reward.total().is_none()));
        assert_eq!(rollout.failures.len(), 8);
        assert_eq!(rollout.failures[0].source().unwrap().to_string(), reason);
    }
    // What comes in time is what the task says.
    let task = Deadline::new(Broken, Duration::from_mins(10));
    let found = descent(Algorithm::dapo(), options()).rollout(&task, &rows(0.0)[..1]).unwrap();
    let expected = descent(Algorithm::dapo(), options()).rollout(&Count, &rows(0.0)[..1]).unwrap();
    assert_eq!(found.groups[0].rewards, expected.groups[0].rewards);
}

#[test]
fn nothing_is_scored_twice_unless_the_settings_need_it() {
    let run = |algorithm: Algorithm, wants_attention, passes_per_rollout, tells| {
        let options = Options { passes_per_rollout, ..options() };
        let credit = Flat { factor: 1.0, wants_attention };
        let mut trainer = trainer_with(algorithm, credit, SgdConfig::new().init(), options);
        trainer.policy.tells = tells;
        assert_eq!(trainer.reference.is_some(), trainer.algorithm.kl.is_some());
        trainer.step(&Count, &rows(0.0), 0.1).unwrap();
        let all_told = tells && trainer.algorithm.top_entropy.is_none();
        let expected = if wants_attention && !all_told { 4 } else { 0 };
        assert_eq!(trainer.policy.signal_passes.load(Ordering::Relaxed), expected, "signals are taken once");
        trainer.policy.passes.load(Ordering::Relaxed)
    };
    let passes =
        |algorithm, wants_attention, passes_per_rollout| run(algorithm, wants_attention, passes_per_rollout, false);
    // Four groups, one each micro-batch.
    assert_eq!(passes(Algorithm::dapo(), false, 1), 4);
    assert_eq!(passes(Algorithm::dapo(), true, 1), 8, "weights are those of the whole rollout, so signals come first");
    assert_eq!(passes(Algorithm::dapo(), false, 2), 8);
    assert_eq!(passes(Algorithm::dapo(), true, 2), 12, "credit is the sampling policy's");
    assert_eq!(passes(Algorithm::grpo(), false, 1), 8, "the reference scores too");
    assert_eq!(passes(Algorithm::rloo(), false, 1), 8, "a penalty in the reward needs a reference, and no more");
    let focused = Algorithm { top_entropy: Some(0.2), ..Algorithm::dapo() };
    assert_eq!(passes(focused.clone(), true, 1), 8, "entropies and signals come out of one pass");
    assert_eq!(passes(focused.clone(), true, 2), 12);
    // Where the passes that draw tell, none is scored for credit alone.
    assert_eq!(run(Algorithm::dapo(), true, 1, true), 4);
    assert_eq!(run(Algorithm::dapo(), true, 2, true), 8);
    assert_eq!(run(focused, true, 1, true), 8, "unless they do not tell all of it");
}
