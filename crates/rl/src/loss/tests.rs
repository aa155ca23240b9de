use burn::tensor::{Device, Tensor, TensorData};

use super::{Bound, Cispo, Clip, LossInput, PolicyLoss, RatioLevel, Sapo, Surrogate, SurrogateInput, Vespo};
use crate::{Aggregation, Algorithm, KlEstimator, KlPenalty, KlPlacement};

const LENGTHS: [usize; 2] = [3, 2];
const NEW: [f32; 6] = [-1.2, -0.3, -2.0, -0.7, -1.1, 77.0];
const OLD: [f32; 6] = [-1.0, -0.8, -2.1, -0.75, -0.9, -55.0];
const REFERENCE: [f32; 6] = [-1.4, -0.5, -1.5, -0.6, -1.3, 9.0];
const ENTROPY: [f32; 6] = [0.5, 0.2, 1.0, 0.4, 0.9, 3.0];

fn tensor(values: &[f32], device: &Device) -> Tensor<2> {
    Tensor::from_data(TensorData::new(values.to_vec(), [2, 3]), device)
}

/// Loss and its gradient with respect to the new log-probabilities; the last place is padding and holds rubbish.
fn evaluate(loss: &Algorithm, aggregation: Aggregation, new: &[f32], advantages: &[f32]) -> (f32, Vec<f32>) {
    evaluate_kept(loss, aggregation, new, advantages, None)
}

fn evaluate_kept(
    loss: &Algorithm,
    aggregation: Aggregation,
    new: &[f32],
    advantages: &[f32],
    kept: Option<&[f32]>,
) -> (f32, Vec<f32>) {
    let device = Device::flex().autodiff();
    let log_probs = tensor(new, &device).require_grad();
    let input = LossInput {
        log_probs: log_probs.clone(),
        old_log_probs: tensor(&OLD, &device),
        ref_log_probs: loss.kl.map(|_| tensor(&REFERENCE, &device)),
        entropy: tensor(&ENTROPY, &device),
        advantages: tensor(advantages, &device),
        mask: tensor(&[1.0, 1.0, 1.0, 1.0, 1.0, 0.0], &device),
        kept: kept.map(|kept| tensor(kept, &device)),
        expert: None,
    };
    let tokens = loss.token_loss(input).unwrap();
    let total = loss.total_loss(&tokens, &aggregation.coefficients(&LENGTHS));
    let gradient = log_probs.grad(&total.backward()).unwrap().into_data().try_to_vec().unwrap();
    (total.into_scalar(), gradient)
}

fn loss(ratio: RatioLevel, surrogate: Surrogate) -> Algorithm {
    Algorithm { ratio, surrogate, kl: None, ..Algorithm::grpo() }
}

const BOUNDS: Clip = Clip { low: 0.2, high: 0.28, delta: None };
const CLIP: Surrogate = Surrogate::Clip(BOUNDS);

#[test]
fn one_token_by_hand() {
    // Row 0: ratios e^-0.2, e^0.5 (above 1.28, clipped), e^0.1; advantage 2. Row 1: e^0.05, e^-0.2; advantage -1.
    let (found, gradient) =
        evaluate(&loss(RatioLevel::Token, CLIP), Aggregation::TokenMean, &NEW, &[2.0, 2.0, 2.0, -1.0, -1.0, 0.0]);
    let ratios = [(-0.2f64).exp(), 1.28, 0.1f64.exp(), 0.05f64.exp(), (-0.2f64).exp()];
    let expected = [-2.0, -2.0, -2.0, 1.0, 1.0].iter().zip(ratios).map(|(sign, ratio)| sign * ratio / 5.0);
    assert!((f64::from(found) - expected.clone().sum::<f64>()).abs() < 1e-6);
    let expected: Vec<f64> = expected.chain([0.0]).collect();
    for (token, (found, expected)) in gradient.iter().zip(expected).enumerate() {
        // The clipped token has no gradient; the others have the value itself, as d exp = exp.
        let expected = if token == 1 { 0.0 } else { expected };
        assert!((f64::from(*found) - expected).abs() < 1e-6, "{token}: {found} {expected}");
    }
}

#[test]
fn gradients_agree_with_finite_differences() {
    let token_advantages = [1.5, 1.0, 0.5, -1.0, -0.7, 0.0];
    let row_advantages = [1.5, 1.5, 1.5, -1.0, -1.0, 0.0];
    let kl = |estimator, placement| Some(KlPenalty { estimator, placement, ..KlPenalty::new(0.3) });
    let token = |surrogate, kl| Algorithm { kl, entropy_bonus: 0.1, ..loss(RatioLevel::Token, surrogate) };
    let (plain, weighted) = (KlPlacement::Loss, KlPlacement::RatioWeightedLoss);
    let cases = [
        ("clip", token(CLIP, None), token_advantages),
        ("delta", token(Surrogate::Clip(Clip { delta: Some(1.5), ..BOUNDS }), None), token_advantages),
        ("k1", token(CLIP, kl(KlEstimator::K1, plain)), token_advantages),
        ("k2", token(CLIP, kl(KlEstimator::K2, plain)), token_advantages),
        ("k3", token(CLIP, kl(KlEstimator::K3, plain)), token_advantages),
        ("weighted k2", token(CLIP, kl(KlEstimator::K2, weighted)), token_advantages),
        ("weighted k3", token(CLIP, kl(KlEstimator::K3, weighted)), token_advantages),
        ("sapo", token(Surrogate::Sapo(Sapo::default()), None), token_advantages),
        // The token form agrees with the plain derivative where the advantages of a row are equal.
        ("gspo", loss(RatioLevel::Sequence, CLIP), row_advantages),
        (
            "gspo weighted k3",
            Algorithm { kl: kl(KlEstimator::K3, weighted), ..loss(RatioLevel::Sequence, CLIP) },
            row_advantages,
        ),
    ];
    let step = 2e-3;
    for (name, loss, advantages) in cases {
        for aggregation in [Aggregation::SequenceMean, Aggregation::TokenMean, Aggregation::SequenceSum] {
            let (_, gradient) = evaluate(&loss, aggregation, &NEW, &advantages);
            for token in 0..NEW.len() {
                let moved = |by: f32| {
                    let mut new = NEW;
                    new[token] += by;
                    evaluate(&loss, aggregation, &new, &advantages).0
                };
                let expected = (moved(step) - moved(-step)) / (2.0 * step);
                let found = gradient[token];
                assert!((found - expected).abs() < 5e-4, "{name} {aggregation:?} {token}: {found} {expected}");
            }
        }
    }
}

#[test]
fn cispo_keeps_the_gradient_of_a_clipped_token() {
    let (_, gradient) = evaluate(
        &loss(RatioLevel::Token, Surrogate::Cispo(Cispo { max_ratio: 1.2 })),
        Aggregation::SequenceSum,
        &NEW,
        &[2.0, 2.0, 2.0, -1.0, -1.0, 0.0],
    );
    // -min(r, 1.2) A / 2, the ratio held constant; the second token's ratio e^0.5 is bounded.
    let expected = [-(-0.2f64).exp(), -1.2, -0.1f64.exp(), 0.5 * 0.05f64.exp(), 0.5 * (-0.2f64).exp(), 0.0];
    for (found, expected) in gradient.iter().zip(expected) {
        assert!((f64::from(*found) - expected).abs() < 1e-6, "{found} {expected}");
    }
}

#[test]
fn sapo_by_hand() {
    // At r = 1 the gate is (4 / t) / 2 and its slope is one, whatever the temperature.
    let sapo = Sapo { positive_temperature: 0.5, negative_temperature: 2.0 };
    let (found, gradient) = evaluate(
        &loss(RatioLevel::Token, Surrogate::Sapo(sapo)),
        Aggregation::SequenceSum,
        &OLD,
        &[3.0, 0.0, 0.0, -1.0, 0.0, 0.0],
    );
    // -(4 / 0.5) / 2 x 3 and (4 / 2) / 2 x 1, over two completions.
    assert!((found + 5.5).abs() < 1e-6, "{found}");
    for (found, expected) in gradient.iter().zip([-1.5, 0.0, 0.0, 0.5, 0.0, 0.0]) {
        assert!((found - expected).abs() < 1e-6, "{found} {expected}");
    }
}

#[test]
fn numbers_of_the_papers() {
    let device = Device::flex();
    let row = |values: [f32; 3]| Tensor::<2>::from_data([values], &device);
    let ratio: f32 = RatioLevel::Sequence.importance(row([0.2, -0.1, 0.05]), row([1.0; 3])).into_scalar();
    assert!((ratio - 1.051_271).abs() < 1e-6, "{ratio}");
    let ratio = row([1.2; 3]);
    let input =
        SurrogateInput { log_probs: ratio.clone(), log_ratio: ratio.clone().log(), ratio, advantages: row([1.0; 3]) };
    let loss: Vec<f32> = Sapo::default().token_loss(input).into_data().try_to_vec().unwrap();
    assert!(loss.iter().all(|loss| (loss + 2.199_336).abs() < 1e-6), "{loss:?}");
}

#[test]
fn vespo_by_hand() {
    let vespo = Surrogate::Vespo(Vespo::default());
    let advantages = [2.0, 2.0, 2.0, -1.0, -1.0, 0.0];
    let (found, gradient) = evaluate(&loss(RatioLevel::Token, vespo), Aggregation::SequenceSum, &NEW, &advantages);
    // Weights of whole completions: log w is 0.4 for the first, -0.15 for the second; w^k e^(lambda (1 - w)).
    let weight = |log: f64, power: f64, decay: f64| (power * log + decay * (1.0 - log.exp())).exp();
    let weights = [weight(0.4, 2.0, 3.0), weight(-0.15, 3.0, 2.0)];
    let mut expected = 0.0;
    for token in 0..5 {
        let factor = -weights[token / 3] * f64::from(advantages[token]) / 2.0;
        expected += factor * f64::from(NEW[token]);
        assert!((f64::from(gradient[token]) - factor).abs() < 1e-6, "{token}: {} {factor}", gradient[token]);
    }
    assert!((f64::from(found) - expected).abs() < 1e-6, "{found} {expected}");
    assert_eq!(gradient[5], 0.0);
}

#[test]
fn delta_is_the_constant_of_dual_clip() {
    // Ratios e^1.2 = 3.3 and e^0.5 = 1.6 of tokens with a negative advantage, the constant 3: dual clip's
    // max(min(r A, clip(r) A), c A) is 3 where the ratio is beyond, the ratio itself where it is not.
    let new = [OLD[0] + 1.2, OLD[1] + 0.5, -2.0, -0.7, -1.1, 0.0];
    let dual = Surrogate::Clip(Clip { delta: Some(3.0), ..BOUNDS });
    let advantages = [-1.0, -1.0, 0.0, 0.0, 0.0, 0.0];
    let (found, gradient) = evaluate(&loss(RatioLevel::Token, dual), Aggregation::SequenceSum, &new, &advantages);
    assert!((found - f32::midpoint(3.0, 0.5f32.exp())).abs() < 1e-6, "{found}");
    assert_eq!(gradient[0], 0.0);
    assert!((gradient[1] - 0.5f32.exp() / 2.0).abs() < 1e-6, "{gradient:?}");
}

#[test]
fn the_off_policy_mask_drops_stale_completions_that_did_badly() {
    // Mean of log old - log new: -0.4 / 3 for the first completion, 0.15 / 2 for the second.
    let with = |threshold, advantages: &[f32]| {
        let loss = Algorithm { off_policy_threshold: Some(threshold), ..loss(RatioLevel::Token, CLIP) };
        evaluate(&loss, Aggregation::SequenceSum, &NEW, advantages).1
    };
    let without =
        |advantages: &[f32]| evaluate(&loss(RatioLevel::Token, CLIP), Aggregation::SequenceSum, &NEW, advantages).1;
    let (bad, good) = ([-1.0; 6], [1.0; 6]);
    let dropped = with(0.07, &bad);
    assert_eq!(dropped[..3], without(&bad)[..3]);
    assert_eq!(dropped[3..], [0.0; 3]);
    assert_eq!(with(0.08, &bad), without(&bad));
    assert_eq!(with(0.07, &good), without(&good));
}

#[test]
fn tokens_that_are_not_kept_lose_their_surrogate_and_their_bonus_but_not_their_penalty() {
    let kept = [1.0, 0.0, 1.0, 0.0, 1.0, 0.0];
    let advantages = [1.0; 6];
    let base = Algorithm { entropy_bonus: 0.5, ..loss(RatioLevel::Token, CLIP) };
    let penalised = Algorithm { kl: Some(KlPenalty::new(0.3)), ..base.clone() };
    let (value, gradient) = evaluate_kept(&base, Aggregation::TokenMean, &NEW, &advantages, Some(&kept));
    let (_, whole) = evaluate(&base, Aggregation::TokenMean, &NEW, &advantages);
    for token in 0..6 {
        assert_eq!(gradient[token], if kept[token] == 1.0 { whole[token] } else { 0.0 });
    }
    // Ratios of the kept tokens e^-0.2, e^0.1, e^-0.2, none of them clipped; entropies 0.5, 1.0, 0.9.
    let expected = -(2.0 * (-0.2f32).exp() + 0.1f32.exp()) / 5.0 - 0.5 * (0.5 + 1.0 + 0.9) / 5.0;
    assert!((value - expected).abs() < 1e-6, "{value} {expected}");
    let (_, gradient) = evaluate_kept(&penalised, Aggregation::TokenMean, &NEW, &advantages, Some(&kept));
    assert!(gradient[1] != 0.0 && gradient[3] != 0.0);
}

#[test]
fn gspo_with_equal_token_advantages_is_the_sequence_form() {
    let (_, gradient) =
        evaluate(&loss(RatioLevel::Sequence, CLIP), Aggregation::SequenceMean, &NEW, &[1.5, 1.5, 1.5, -1.0, -1.0, 0.0]);
    // GSPO eq. 5 and 7: d/d log p of -A s / N, s = exp(mean log-ratio), is -A s / (N T) for every token.
    let (first, second) = ((0.4f64 / 3.0).exp(), (-0.15f64 / 2.0).exp());
    let expected = [-1.5 * first / 6.0, second / 4.0];
    for (token, found) in gradient.iter().enumerate().take(5) {
        assert!((f64::from(*found) - expected[token / 3]).abs() < 1e-6, "{token}: {found} {expected:?}");
    }
}

#[test]
fn gspo_sends_each_token_its_own_advantage() {
    let (_, gradient) =
        evaluate(&loss(RatioLevel::Sequence, CLIP), Aggregation::SequenceMean, &NEW, &[3.0, 0.0, 1.0, 0.0, 0.0, 0.0]);
    let ratio = (0.4f64 / 3.0).exp();
    for (found, advantage) in gradient.iter().zip([3.0, 0.0, 1.0, 0.0, 0.0, 0.0]) {
        assert!((f64::from(*found) + advantage * ratio / 6.0).abs() < 1e-6, "{found} {advantage}");
    }
}

#[test]
fn clipped_names_the_bound_that_acts() {
    assert_eq!(BOUNDS.clipped(1.3, 1.0), Some(Bound::High));
    assert_eq!(BOUNDS.clipped(1.3, -1.0), None);
    assert_eq!(BOUNDS.clipped(0.7, -1.0), Some(Bound::Low));
    assert_eq!(BOUNDS.clipped(0.7, 1.0), None);
    assert_eq!(BOUNDS.clipped(1.3, 0.0), None);
}

#[test]
fn a_kl_penalty_without_a_reference_is_an_error() {
    let device = Device::flex();
    let ones = || tensor(&[1.0; 6], &device);
    let loss = Algorithm { kl: Some(KlPenalty::new(0.1)), ..loss(RatioLevel::Token, CLIP) };
    let input = LossInput {
        log_probs: ones(),
        old_log_probs: ones(),
        ref_log_probs: None,
        entropy: ones(),
        advantages: ones(),
        mask: ones(),
        kept: None,
        expert: None,
    };
    assert!(matches!(loss.token_loss(input), Err(crate::Error::MissingReference)));
}
