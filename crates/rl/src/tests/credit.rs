//! The seam of credit methods: what is asked for, how often, and what becomes of weights.

#![allow(clippy::unwrap_used)]

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use burn::optim::SgdConfig;
use burn::tensor::Device;

use super::tiny::{ByToken, Count, Row, Tiny, rows};
use super::{assert_close, gradient, metric, options, trainer_with, trainer_with_methods};
use crate::credit::{DeltaLogP, FtRl, Srpo, Tor, Vgpo, Vppo};
use crate::{
    Advantage, AdvantageEstimator, AdvantageInput, Aggregation, Algorithm, Capability, Completion, CreditAssigner,
    CreditBatch, CreditInput, CreditList, CreditMethod, Durian, Error, Filter, Group, MicroBatch, Options, Pearl,
    Policy as _, Relative, Reward, SignalSet, Task, TaskError, Tgrl, TokenCredit, Trainer, View, assign_from_signals,
};

fn next() -> View {
    View::named("next")
}

fn vppo() -> Vppo {
    Vppo { view: next(), ..Vppo::default() }
}

fn srpo() -> Srpo {
    Srpo { view: next(), ..Srpo::default() }
}

fn list(methods: Vec<Box<dyn CreditAssigner<usize> + Send>>) -> CreditList<usize> {
    methods.into_iter().collect()
}

fn refused(algorithm: Algorithm, credit: CreditList<usize>) -> Error {
    let policy = Tiny::new(&Device::flex().autodiff());
    Trainer::with_methods(policy, SgdConfig::new().init(), algorithm, credit, options()).err().unwrap()
}

#[test]
fn what_a_policy_lacks_is_said_at_the_start() {
    let error = refused(Algorithm::dapo(), CreditList::of(Vgpo::default()));
    assert!(matches!(&error, Error::Capability { capability, .. } if **capability == Capability::Hidden), "{error}");
    let reason = "which this policy does not offer: it is too small";
    assert_eq!(error.to_string(), format!("vgpo needs final hidden states, {reason}"));
    let error = refused(Algorithm::dapo(), CreditList::of(Vppo::default())).to_string();
    assert_eq!(error, format!("vppo needs prompts under the view blacken, {reason}"));
    let durian = Algorithm { advantage: Advantage::Durian(Durian::default()), ..Algorithm::dapo() };
    let error = refused(durian.clone(), CreditList::of(ByToken)).to_string();
    assert_eq!(error, format!("the advantage needs features of what prompts show, {reason}"));
    let blind = Durian { perceptual: 0.0, ..Durian::default() };
    trainer_with(
        Algorithm { advantage: Advantage::Durian(blind), ..durian },
        ByToken,
        SgdConfig::new().init(),
        options(),
    );
    // Settings are looked at, too.
    let error = refused(Algorithm::dapo(), CreditList::of(FtRl { share: 0.0 })).to_string();
    assert_eq!(error, "ft_rl.share is 0: a share above 0 and at most 1");
}

/// Wants entropies of another top-p than ToR.
struct Other;

impl CreditAssigner<usize> for Other {
    fn name(&self) -> &'static str {
        "other"
    }

    fn signals(&self, _: &[&usize]) -> Result<SignalSet, Error> {
        Ok(SignalSet { top_p_entropy: Some(0.5), ..SignalSet::default() })
    }

    fn assign(&self, _: &CreditBatch<'_, usize>) -> Result<Vec<TokenCredit>, Error> {
        Ok(Vec::new())
    }
}

#[test]
fn methods_that_want_different_states_are_refused() {
    let error = refused(Algorithm::dapo(), list(vec![Box::new(Tor::default()), Box::new(Other)])).to_string();
    assert_eq!(error, "other wants other top-p entropies than a method before it");
}

/// Credit and scoring passes of a step.
fn step(credit: CreditList<usize>, options: Options, tells: bool) -> (Vec<Vec<TokenCredit>>, usize) {
    let mut trainer = trainer_with_methods(Algorithm::dapo(), credit, options);
    trainer.policy.tells = tells;
    let report = trainer.step(&Count, &rows(0.0), 0.1).unwrap();
    (report.credit, trainer.policy.passes.load(Ordering::Relaxed))
}

#[test]
fn a_view_is_one_pass_whoever_reads_it() {
    let passes = |credit: CreditList<usize>| step(credit, options(), true).1;
    // Four groups, one each micro-batch.
    assert_eq!(passes(list(vec![])), 4, "the empty list is the base algorithm");
    assert_eq!(passes(CreditList::of(DeltaLogP::default())), 4, "log-probabilities are there");
    assert_eq!(passes(CreditList::of(vppo())), 8);
    assert_eq!(passes(list(vec![Box::new(vppo()), Box::new(vppo())])), 8);
    let another = View { parameters: [("jump".to_owned(), 2.0)].into(), ..next() };
    assert_eq!(passes(list(vec![Box::new(vppo()), Box::new(Vppo { view: another, ..vppo() })])), 12);
    // Token 1 is a blank line: what comes before it is left out in a pass of its own, for those who said it.
    let srpo = passes(CreditList::of(srpo()));
    assert!(srpo > 8 && srpo <= 12, "{srpo}");
    assert_eq!(passes(CreditList::of(FtRl::default())), 8, "a sampler that does not tell entropies");
}

#[test]
fn weights_do_not_depend_on_what_a_rollout_is_cut_into() {
    let random = || View { parameters: [("random".to_owned(), 1.0)].into(), ..next() };
    let all = || -> CreditList<usize> {
        let vppo = Vppo { view: random(), ..vppo() };
        list(vec![Box::new(vppo), Box::new(srpo()), Box::new(FtRl { share: 0.7 }), Box::new(ByToken)])
    };
    let with = |micro_batch, mini_batches, passes_per_rollout, threads| {
        step(all(), Options { micro_batch, mini_batches, passes_per_rollout, threads, ..options() }, false).0
    };
    let whole = with(MicroBatch::Groups(4), 1, 1, 1);
    assert!(whole.iter().flatten().any(|credit| credit.weights.iter().any(|&weight| weight > 0.0)));
    for micro_batch in [MicroBatch::Groups(1), MicroBatch::Tokens(13), MicroBatch::Tokens(47)] {
        let cut = with(micro_batch, 2, 2, 2);
        for (one, other) in whole.iter().flatten().zip(cut.iter().flatten()) {
            assert_eq!(one.kept, other.kept);
            assert!(one.weights.iter().zip(&other.weights).all(|(one, other)| (one - other).abs() < 1e-5));
        }
    }
}

#[test]
fn a_list_multiplies() {
    let alone = |credit: CreditList<usize>| step(credit, options(), true).0;
    let both = alone(list(vec![Box::new(ByToken), Box::new(DeltaLogP { alpha: 0.5 }), Box::new(vppo())]));
    let (one, two, three) = (
        alone(CreditList::of(ByToken)),
        alone(CreditList::of(DeltaLogP { alpha: 0.5 })),
        alone(CreditList::of(vppo())),
    );
    for (group, product) in both.iter().enumerate() {
        for (place, product) in product.iter().enumerate() {
            let parts = [&one[group][place], &two[group][place], &three[group][place]];
            for (token, weight) in product.weights.iter().enumerate() {
                let expected: f32 = parts.iter().map(|part| part.weights[token]).product();
                assert!((weight - expected).abs() < 1e-5 * expected.max(1.0));
            }
            assert_eq!((&product.kept, &product.evidence), (&parts[2].kept, &parts[0].evidence));
        }
    }
    // What each of them keeps stays.
    let twice = alone(list(vec![Box::new(vppo()), Box::new(First { kept: true })]));
    for (one, both) in three.iter().flatten().zip(twice.iter().flatten()) {
        let first = one.kept.iter().flatten().enumerate().map(|(token, &kept)| kept && token == 0).collect();
        assert_eq!(both.kept, Some(first));
    }
}

#[test]
fn every_step_changes_prompts_anew() {
    let view = View { parameters: [("random".to_owned(), 1.0)].into(), ..next() };
    let steps = || {
        let credit = CreditList::of(Vppo { view: view.clone(), ..vppo() });
        let mut trainer = trainer_with_methods(Algorithm::dapo(), credit, options());
        [(); 2].map(|()| {
            // The same completions of the same policy.
            trainer.options.sampling.first_stream = 0;
            trainer.step(&Count, &rows(0.0), 0.0).unwrap().credit
        })
    };
    let [first, second] = steps();
    assert_ne!(first, second);
    assert_eq!([first, second], steps());
}

#[test]
fn every_method_keeps_signs_and_masks() {
    for (name, method) in CreditMethod::presets() {
        assert_eq!(CreditAssigner::<usize>::name(&method.assigner::<usize>()), name);
        let method = match method {
            CreditMethod::Vppo(method) => CreditMethod::Vppo(Vppo { view: next(), ..method }),
            CreditMethod::Srpo(method) => CreditMethod::Srpo(Srpo { view: next(), ..method }),
            // They want what the small model has not; the large one is in the tests of the repository.
            CreditMethod::Tor(_) | CreditMethod::Vgpo(_) => continue,
            method => method,
        };
        let algorithm = Algorithm { mask_truncated: true, ..Algorithm::dapo() };
        let credit = list(vec![method.assigner()]);
        let mut trainer = trainer_with_methods(algorithm, credit, options());
        let report = trainer.step(&Count, &rows(0.0), 0.1).unwrap();
        let groups = report.groups.iter().zip(&report.credit);
        let mut some = false;
        for (completion, credit) in groups.flat_map(|(group, credit)| group.completions.iter().zip(credit)) {
            let expected = if completion.truncated { 0 } else { completion.tokens.len() };
            assert_eq!(credit.weights.len(), expected, "{name}");
            assert!(credit.weights.iter().all(|weight| weight.is_finite() && *weight >= 0.0), "{name}");
            some |= credit.weights.iter().any(|&weight| weight > 0.0);
        }
        assert!(some, "{name}");
        assert!(metric(&report, "credit/weight_mean").is_finite());
    }
}

/// The first token of every completion has weight one, and is all that is kept or is not.
struct First {
    kept: bool,
}

impl CreditAssigner<usize> for First {
    fn name(&self) -> &'static str {
        "first"
    }

    fn assign(&self, rollout: &CreditBatch<'_, usize>) -> Result<Vec<TokenCredit>, Error> {
        let credit = |input: &CreditInput<'_, usize>| {
            let first: Vec<bool> = (0..input.completion.tokens.len()).map(|token| token == 0).collect();
            let weights = first.iter().map(|&first| f32::from(u8::from(first))).collect();
            TokenCredit { weights, kept: self.kept.then_some(first), evidence: None }
        };
        Ok(rollout.completions.iter().map(credit).collect())
    }
}

#[test]
fn means_are_over_the_tokens_that_credit_keeps() {
    for aggregation in [Aggregation::SequenceMean, Aggregation::TokenMean, Aggregation::SequenceSum] {
        let trainer = |credit: CreditList<usize>| {
            let algorithm = Algorithm { aggregation, ..Algorithm::dapo() };
            trainer_with_methods(algorithm, credit, options())
        };
        let kept = gradient(trainer(CreditList::of(First { kept: true })), &rows(0.0));
        let masked = trainer(CreditList::of(First { kept: false }));
        // By hand: a first token that is all that counts weighs as many times as there are tokens.
        let mut drawn = trainer(CreditList::of(First { kept: false }));
        let groups = drawn.rollout(&Count, &rows(0.0)).unwrap().groups;
        let completions = || groups.iter().flat_map(|group| &group.completions);
        let mean = completions().map(|answer| answer.tokens.len()).sum::<usize>() as f32 / completions().count() as f32;
        let factors = completions().map(|answer| match aggregation {
            Aggregation::SequenceMean => answer.tokens.len() as f32,
            Aggregation::TokenMean => mean,
            _ => 1.0,
        });
        let weights = completions().zip(factors).map(|(answer, factor)| {
            (0..answer.tokens.len()).map(|token| if token == 0 { factor } else { 0.0 }).collect()
        });
        let by_hand = trainer(CreditList::of(super::tiny::Fixed(weights.collect())));
        assert_close(&kept, &gradient(by_hand, &rows(0.0)), 1e-5);
        let masked = gradient(masked, &rows(0.0));
        assert_eq!(aggregation == Aggregation::SequenceSum, masked == kept);
    }
}

/// Reads what [`Self::omission`] leaves.
struct Without;

impl CreditAssigner<usize> for Without {
    fn name(&self) -> &'static str {
        "without"
    }

    fn omission(&self, input: &CreditInput<'_, usize>) -> Option<Range<usize>> {
        (input.completion.tokens.len() > 2).then_some(1..2)
    }

    fn assign(&self, rollout: &CreditBatch<'_, usize>) -> Result<Vec<TokenCredit>, Error> {
        for input in &rollout.completions {
            let drawn = &input.completion.log_probs;
            let Some(without) = input.without else {
                assert!(drawn.len() <= 2);
                continue;
            };
            // What stands before it cannot miss it, and the model sees one token back.
            for token in (0..drawn.len()).filter(|&token| token != 2) {
                assert!((without[token] - drawn[token]).abs() < 1e-5);
            }
            let tokens = &input.completion.tokens;
            assert!(tokens[0] == tokens[1] || (without[2] - drawn[2]).abs() > 1e-6);
        }
        CreditAssigner::<usize>::assign(&crate::Uniform, rollout)
    }
}

#[test]
fn tokens_can_be_left_out_of_what_stands_before_the_others() {
    let (credit, passes) = step(CreditList::of(Without), options(), true);
    assert!(passes > 4 && credit.iter().flatten().any(|credit| credit.weights.len() > 2));
    // Each method reads what its own omissions leave.
    step(list(vec![Box::new(srpo()), Box::new(Without)]), options(), true);
}

/// [`Count`], where an expert knows the answer to some prompts.
struct Taught;

impl Taught {
    /// What nobody writes by chance.
    fn right(row: &Row) -> Vec<u32> {
        let own = row.prompt as u32 + 1;
        vec![5, own, 5, own, 5]
    }
}

impl Task for Taught {
    type Sample = Row;
    type Prompt = usize;

    fn prompt(&self, row: &Row) -> Result<usize, TaskError> {
        Ok(row.prompt)
    }

    fn reward(&self, row: &Row, completion: &Completion) -> Result<Reward, TaskError> {
        let right = completion.tokens == Self::right(row);
        Ok(Reward::of("right", f32::from(u8::from(right))).and("facts", Some(0.2 * row.prompt as f32), 0.0))
    }

    fn expert(&self, row: &Row) -> Result<Option<Completion>, TaskError> {
        let tokens = match row.prompt {
            0 => return Ok(None),
            // Not right.
            1 => vec![0; 5],
            _ => Self::right(row),
        };
        Ok(Some(Completion { tokens, ..Completion::default() }))
    }
}

fn expert_of_three() -> Completion {
    Taught.expert(&rows(0.0)[3]).unwrap().unwrap()
}

#[test]
fn an_expert_that_is_right_joins_a_group_that_fails() {
    let algorithm = Algorithm { expert: Some(Tgrl::default()), ..Algorithm::dapo() };
    let mut trainer = trainer_with(algorithm.clone(), vppo(), SgdConfig::new().init(), options());
    let report = trainer.step(&Taught, &rows(0.0), 0.1).unwrap();
    let sizes: Vec<usize> = report.groups.iter().map(|group| group.completions.len()).collect();
    assert_eq!(sizes, [8, 8, 9, 9], "one has no expert, one a wrong one");
    let advantages = &report.advantages[2];
    assert!(advantages[8] > 0.0 && advantages[..8].iter().all(|&advantage| advantage < 0.0), "{advantages:?}");
    assert_eq!(report.credit[2][8].weights, [1.0; 5], "credit is of what the policy says");
    let expert = &report.groups[2].completions[8];
    assert!(expert.expert && expert.log_probs.len() == 5 && expert.log_probs.iter().all(|&value| value < 0.0));
    assert_eq!((metric(&report, "rollout/experts"), metric(&report, "reward/mean")), (2.0, 0.0));
    // The policy comes to say what the expert does; by itself it has nothing to learn from.
    let learnt = |expert| {
        let algorithm = Algorithm { expert, ..algorithm.clone() };
        let mut trainer = trainer_with(algorithm, crate::Uniform, SgdConfig::new().init(), options());
        for _ in 0..20 {
            trainer.step(&Taught, &rows(0.0), 0.5).unwrap();
        }
        let group = Group { completions: vec![expert_of_three()], prompt: 3, rewards: Vec::new() };
        let scores = trainer.policy.score(&[group], 1.0, &SignalSet::default()).unwrap();
        scores.log_probs.into_data().iter::<f32>().sum::<f32>()
    };
    let (taught, alone) = (learnt(Some(Tgrl::default())), learnt(None));
    assert!(taught > alone + 1.0, "{taught} {alone}");
}

/// The base algorithm, if it is told how completions were drawn, and nothing of an expert's.
#[derive(Debug)]
struct Drawn;

impl AdvantageEstimator for Drawn {
    fn advantages(&self, batch: &AdvantageInput<'_>) -> Vec<Vec<f32>> {
        for group in batch.log_probs {
            assert!(group[..8].iter().all(|row| !row.is_empty()) && group[8..].iter().all(|row| row.is_empty()));
        }
        assert!(batch.log_probs.iter().any(|group| group.len() > 8));
        Relative::default().advantages(batch)
    }
}

#[test]
fn an_expert_was_not_drawn() {
    let advantage = Advantage::Custom(Arc::new(Drawn));
    let algorithm = Algorithm { expert: Some(Tgrl::default()), advantage, ..Algorithm::dapo() };
    let mut trainer = trainer_with(algorithm, crate::Uniform, SgdConfig::new().init(), options());
    trainer.step(&Taught, &rows(0.0), 0.1).unwrap();
}

#[test]
fn a_group_whose_checklists_fail_is_dropped_and_others_learn_as_much_as_they_see() {
    let run = |filters: Vec<Filter>| {
        let algorithm = Algorithm { filters, expert: Some(Tgrl::default()), ..Algorithm::dapo() };
        let mut trainer = trainer_with(algorithm, crate::Uniform, SgdConfig::new().init(), options());
        trainer.step(&Taught, &rows(0.0), 0.1).unwrap().advantages
    };
    let gate = |cap| Filter::Pearl(Pearl { checklist: "facts".into(), cap });
    let (base, gated) = (run(Vec::new()), run(vec![gate(0.5)]));
    for (prompt, (base, gated)) in base.iter().zip(&gated).enumerate() {
        let factor = (0.2 * prompt as f32).min(0.5);
        assert!(base.iter().zip(gated).all(|(base, gated)| (base * factor - gated).abs() < 1e-6), "{prompt}");
    }
    // Dynamic sampling asks for another group in the place of one that is dropped.
    let algorithm = Algorithm { filters: vec![gate(0.5)], ..Algorithm::dapo() };
    let mut trainer = trainer_with(algorithm, crate::Uniform, SgdConfig::new().init(), options());
    let task = Facts;
    let (rollout, _) = trainer
        .dynamic_rollout(&task, 2, 5, |count| Ok::<_, Error>(rows(0.0).into_iter().take(count).collect()))
        .unwrap();
    assert!(rollout.drawn > rollout.groups.len() && rollout.groups.iter().all(|group| group.prompt != 0));
}

/// [`Count`], with a checklist of which the first prompt has nothing right.
struct Facts;

impl Task for Facts {
    type Sample = Row;
    type Prompt = usize;

    fn prompt(&self, row: &Row) -> Result<usize, TaskError> {
        Ok(row.prompt)
    }

    fn reward(&self, row: &Row, completion: &Completion) -> Result<Reward, TaskError> {
        let facts = Some(f32::from(u8::from(row.prompt > 0)));
        Ok(Count.reward(row, completion)?.and("facts", facts, 0.0))
    }
}

#[test]
fn credit_is_looked_at_without_a_trainer() {
    let policy = Tiny::new(&Device::flex().autodiff());
    let mut trainer = Trainer::new(policy, SgdConfig::new().init(), Algorithm::dapo(), ByToken, options()).unwrap();
    let groups = trainer.rollout(&Count, &rows(0.0)[..2]).unwrap().groups;
    let found = assign_from_signals(&ByToken, &groups, &crate::Signals::default()).unwrap();
    let completions = groups.iter().flat_map(|group| &group.completions);
    assert!(found.iter().zip(completions).all(|(one, of)| *one == ByToken::of(of)));
}
