//! Settings that change what a step does.

use std::sync::Arc;
use std::time::Duration;

use burn::optim::{AdamWConfig, SgdConfig};
use burn::tensor::{Device, Tensor};

use super::tiny::{ByToken, Count, Fixed, Row, Tiny, rows};
use super::{algorithms, assert_close, descent, gradient, metric, options, trainer_with};
use crate::{
    Algorithm, Cispo, Clip, CreditAssigner, CreditBatch, Error, Group, KlEstimator, KlPenalty, KlPlacement, MicroBatch,
    Options, Overlong, Policy, PolicyLoss, Sampling, Sapo, SignalSet, StepReport, Surrogate, SurrogateInput,
    TokenCredit, Trainer, Uniform, Vespo, top_entropy_mask,
};

#[test]
fn a_truncated_completion_that_is_masked_is_as_if_it_had_no_tokens() {
    let masked = |mask_truncated| Algorithm { mask_truncated, ..Algorithm::dapo() };
    let mut trainer = descent(masked(true), options());
    let mut groups = trainer.rollout(&Count, &rows(0.0)).unwrap().groups;
    let truncated = groups.iter().flat_map(|group| &group.completions).filter(|answer| answer.truncated).count();
    assert!(truncated > 0 && truncated < 32, "{truncated}");
    let gradient = |mut trainer: Trainer<Tiny>, groups: &[Group<usize>]| -> Vec<f32> {
        let before = trainer.policy.parameters();
        trainer.update(groups, 1.0).unwrap();
        before.iter().zip(trainer.policy.parameters()).map(|(before, after)| before - after).collect()
    };
    let update = descent(masked(true), options()).update(&groups, 1.0).unwrap();
    for (group, credit) in groups.iter().zip(&update.credit) {
        for (answer, credit) in group.completions.iter().zip(credit) {
            assert_eq!(credit.weights.len(), if answer.truncated { 0 } else { answer.tokens.len() });
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
fn long_completions_are_punished_in_their_reward() {
    let overlong = Overlong { max_tokens: 5, buffer: 4, weight: 2.0 };
    let mut trainer = descent(Algorithm { overlong: Some(overlong), ..Algorithm::dapo() }, options());
    let groups = trainer.rollout(&Count, &rows(0.0)).unwrap().groups;
    let plain = descent(Algorithm::dapo(), options()).rollout(&Count, &rows(0.0)).unwrap().groups;
    let mut found = Vec::new();
    for (group, plain) in groups.iter().zip(&plain) {
        for ((answer, reward), plain) in group.completions.iter().zip(&group.rewards).zip(&plain.rewards) {
            let punishment = overlong.punishment(answer.tokens.len());
            assert_eq!(reward.total().unwrap(), plain.total().unwrap() + 2.0 * punishment);
            found.push(punishment);
        }
    }
    assert!(found.contains(&-1.0) && found.contains(&0.0), "{found:?}");
}

#[test]
fn a_penalty_in_the_reward_lowers_it_by_the_divergence_of_the_completion() {
    let kl = KlPenalty { estimator: KlEstimator::K1, placement: KlPlacement::Reward, ..KlPenalty::new(0.5) };
    let algorithm = Algorithm { kl: Some(kl), ..Algorithm::dr_grpo(5) };
    let mut trainer = descent(algorithm, options());
    trainer.policy.sharpen(2.0);
    let rollout = trainer.rollout(&Count, &rows(0.0)).unwrap();
    let reference = trainer.reference.clone().unwrap();
    let scores = Policy::score(&reference, &rollout.groups, 0.7, &SignalSet::default()).unwrap();
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
    let report = StepReport::new(rollout, update, Duration::from_secs(1));
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
    let report = StepReport::new(rollout, update, Duration::from_secs(1));
    assert_eq!(metric(&report, "rollout/dropped_fraction"), 1.0);
}

#[test]
fn only_the_tokens_of_the_highest_entropy_move_the_policy() {
    let algorithm = |top_entropy| Algorithm { top_entropy, ..Algorithm::dapo() };
    let all = gradient(descent(algorithm(None), options()), &rows(0.0));
    assert_close(&gradient(descent(algorithm(Some(1.0)), options()), &rows(0.0)), &all, 1e-6);

    // By hand: credit of one for the tokens at or above the quantile of their optimizer batch, of zero for the others.
    let mut trainer = descent(algorithm(None), options());
    let groups = trainer.rollout(&Count, &rows(0.0)).unwrap().groups;
    for mini_batches in [1, 2] {
        let weights = groups.chunks(4 / mini_batches).flat_map(|groups| {
            let entropies = entropies(&trainer.policy, groups);
            let mut sorted = entropies.concat();
            sorted.sort_by(f32::total_cmp);
            let threshold = sorted[(0.6 * (sorted.len() - 1) as f64).ceil() as usize];
            entropies.into_iter().map(move |row| row.iter().map(|&h| f32::from(u8::from(h >= threshold))).collect())
        });
        let credit = Fixed(weights.collect());
        let options = Options { micro_batch: MicroBatch::Groups(4), mini_batches, ..options() };
        let trainer = descent(algorithm(Some(0.4)), options.clone());
        let by_hand = trainer_with(Algorithm::dapo(), credit, SgdConfig::new().init(), options);
        assert_close(&gradient(trainer, &rows(0.0)), &gradient(by_hand, &rows(0.0)), 1e-5);
    }
}

/// Entropy of every token that was drawn.
fn entropies(policy: &Tiny, groups: &[Group<usize>]) -> Vec<Vec<f32>> {
    let scores = policy.score(groups, 0.7, &SignalSet::default()).unwrap();
    let [_, width] = scores.entropy.dims();
    let entropies: Vec<f32> = scores.entropy.into_data().try_to_vec().unwrap();
    let answers = groups.iter().flat_map(|group| &group.completions);
    answers.zip(entropies.chunks(width)).map(|(answer, row)| row[..answer.tokens.len()].to_vec()).collect()
}

/// No policy gradient at all.
#[derive(Debug)]
struct Nothing;

impl PolicyLoss for Nothing {
    fn token_loss(&self, input: SurrogateInput) -> Tensor<2> {
        input.log_probs * 0.0
    }
}

/// Along its own gradient g a function rises by rate x |g|^2: what the bonus moves says whose gradient it is.
#[test]
fn the_bonus_is_the_mean_entropy_of_the_tokens_that_are_kept() {
    let surrogate = Surrogate::Custom(Arc::new(Nothing));
    let rate = 0.02;
    for share in [None, Some(0.4)] {
        let bonus =
            Algorithm { surrogate: surrogate.clone(), entropy_bonus: 1.0, top_entropy: share, ..Algorithm::dapo() };
        let mut trainer = descent(bonus, options());
        let groups = trainer.rollout(&Count, &rows(0.0)).unwrap().groups;
        let kept = top_entropy_mask(&entropies(&trainer.policy, &groups), share.unwrap_or(1.0));
        let tokens = kept.iter().map(Vec::len).sum::<usize>() as f32;
        let mean = |policy: &Tiny| {
            let entropies = entropies(policy, &groups).concat();
            let sum: f32 = entropies.iter().zip(kept.concat()).map(|(entropy, kept)| entropy * kept).sum();
            sum / (tokens * share.unwrap_or(1.0))
        };
        let (before, first) = (trainer.policy.parameters(), mean(&trainer.policy));
        trainer.update(&groups, f64::from(rate)).unwrap();
        let moved = before.iter().zip(trainer.policy.parameters()).map(|(a, b)| (a - b).powi(2)).sum::<f32>();
        let gained = (mean(&trainer.policy) - first) / (moved / rate);
        assert!((gained - 1.0).abs() < 0.05, "{share:?} {gained}");
    }
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
    let with = |surrogate| Algorithm { surrogate, ..Algorithm::grpo() };
    assert_eq!(refused(with(Surrogate::Cispo(Cispo { max_ratio: 0.0 }))), "surrogate.max_ratio");
    let sapo = Sapo { negative_temperature: f32::NAN, ..Sapo::default() };
    assert_eq!(refused(with(Surrogate::Sapo(sapo))), "surrogate.negative_temperature");
    let vespo = Vespo { positive_decay: -1.0, ..Vespo::default() };
    assert_eq!(refused(with(Surrogate::Vespo(vespo))), "surrogate.positive_decay");
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

#[test]
fn credit_that_is_not_one_sound_weight_a_token_is_refused() {
    struct Wrong(fn(&mut TokenCredit));
    impl CreditAssigner<usize> for Wrong {
        fn name(&self) -> &'static str {
            "wrong"
        }

        fn assign(&self, rollout: &CreditBatch<'_, usize>) -> Result<Vec<TokenCredit>, Error> {
            let mut credit = Uniform.assign(rollout)?;
            self.0(&mut credit[1]);
            Ok(credit)
        }
    }
    let refused = |change| {
        let mut trainer = trainer_with(Algorithm::dapo(), Wrong(change), SgdConfig::new().init(), options());
        trainer.step(&Count, &rows(0.0), 1.0).unwrap_err()
    };
    let error = refused(|credit| credit.weights.push(1.0));
    assert!(
        matches!(error, Error::CreditLength { completion: 1, found, expected } if found == expected + 1),
        "{error}"
    );
    let error = refused(|credit| credit.kept = Some(Vec::new()));
    assert!(matches!(error, Error::CreditLength { completion: 1, found: 0, .. }), "{error}");
    for weight in ["NaN", "inf", "-0.5"] {
        let error = refused(match weight {
            "NaN" => |credit| credit.weights[0] = f32::NAN,
            "inf" => |credit| credit.weights[0] = f32::INFINITY,
            _ => |credit| credit.weights[0] = -0.5,
        });
        let expected =
            format!("wrong gives token 0 of completion 1 the weight {weight}; it has to be finite and not below 0");
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn completions_that_nobody_looked_at_are_scored() {
    let mut trainer = trainer_with(Algorithm::dapo(), ByToken, SgdConfig::new().init(), options());
    trainer.policy.tells = true;
    let mut groups = trainer.rollout(&Count, &rows(0.0)).unwrap().groups;
    // Of one is as good as of all.
    groups[0].completions[1].observed = None;
    let update = trainer.update(&groups, 1.0).unwrap();
    assert_eq!(update.credit[0][1], ByToken::of(&groups[0].completions[1]));
}
