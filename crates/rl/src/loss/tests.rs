use std::sync::Arc;

use burn::tensor::{Device, Tensor, TensorData};

use super::{Bound, Cispo, Clip, Loss, LossInput, RatioLevel, Sapo, Surrogate};
use crate::{Aggregation, KlPenalty};

const LENGTHS: [usize; 2] = [3, 2];
const NEW: [f32; 6] = [-1.2, -0.3, -2.0, -0.7, -1.1, 77.0];
const OLD: [f32; 6] = [-1.0, -0.8, -2.1, -0.75, -0.9, -55.0];
const REFERENCE: [f32; 6] = [-1.4, -0.5, -1.5, -0.6, -1.3, 9.0];
const ENTROPY: [f32; 6] = [0.5, 0.2, 1.0, 0.4, 0.9, 3.0];

fn tensor(values: &[f32], device: &Device) -> Tensor<2> {
    Tensor::from_data(TensorData::new(values.to_vec(), [2, 3]), device)
}

/// Loss and its gradient with respect to the new log-probabilities; the last place is padding and holds rubbish.
fn evaluate(loss: &Loss, aggregation: Aggregation, new: &[f32], advantages: &[f32]) -> (f32, Vec<f32>) {
    let device = Device::flex().autodiff();
    let log_probs = tensor(new, &device).require_grad();
    let input = LossInput {
        log_probs: log_probs.clone(),
        old_log_probs: tensor(&OLD, &device),
        ref_log_probs: loss.kl.map(|_| tensor(&REFERENCE, &device)),
        entropy: tensor(&ENTROPY, &device),
        advantages: tensor(advantages, &device),
        mask: tensor(&[1.0, 1.0, 1.0, 1.0, 1.0, 0.0], &device),
    };
    let tokens = loss.forward(input).unwrap();
    let total = loss.total(&tokens, &aggregation.coefficients(&LENGTHS));
    let gradient = log_probs.grad(&total.backward()).unwrap().into_data().try_to_vec().unwrap();
    (total.into_scalar(), gradient)
}

fn loss(ratio: RatioLevel, surrogate: impl Surrogate + 'static) -> Loss {
    Loss { ratio, surrogate: Arc::new(surrogate), kl: None, entropy_bonus: 0.0 }
}

const CLIP: Clip = Clip { low: 0.2, high: 0.28, delta: None };

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
    let kl = |ratio_weighted| Some(KlPenalty { coefficient: 0.3, ratio_weighted });
    let token =
        |surrogate: Arc<dyn Surrogate>, kl| Loss { ratio: RatioLevel::Token, surrogate, kl, entropy_bonus: 0.1 };
    let cases = [
        ("clip", token(Arc::new(CLIP), None), token_advantages),
        ("delta", token(Arc::new(Clip { delta: Some(1.5), ..CLIP }), None), token_advantages),
        ("kl", token(Arc::new(CLIP), kl(false)), token_advantages),
        ("weighted kl", token(Arc::new(CLIP), kl(true)), token_advantages),
        ("sapo", token(Arc::new(Sapo::default()), None), token_advantages),
        // The token form agrees with the plain derivative where the advantages of a row are equal.
        ("gspo", loss(RatioLevel::Sequence, CLIP), row_advantages),
        ("gspo weighted kl", Loss { kl: kl(true), ..loss(RatioLevel::Sequence, CLIP) }, row_advantages),
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
        &loss(RatioLevel::Token, Cispo { max_ratio: 1.2 }),
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
    let (found, gradient) =
        evaluate(&loss(RatioLevel::Token, sapo), Aggregation::SequenceSum, &OLD, &[3.0, 0.0, 0.0, -1.0, 0.0, 0.0]);
    // -(4 / 0.5) / 2 x 3 and (4 / 2) / 2 x 1, over two completions.
    assert!((found + 5.5).abs() < 1e-6, "{found}");
    for (found, expected) in gradient.iter().zip([-1.5, 0.0, 0.0, 0.5, 0.0, 0.0]) {
        assert!((found - expected).abs() < 1e-6, "{found} {expected}");
    }
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
    assert_eq!(CLIP.clipped(1.3, 1.0), Some(Bound::High));
    assert_eq!(CLIP.clipped(1.3, -1.0), None);
    assert_eq!(CLIP.clipped(0.7, -1.0), Some(Bound::Low));
    assert_eq!(CLIP.clipped(0.7, 1.0), None);
    assert_eq!(CLIP.clipped(1.3, 0.0), None);
}

#[test]
fn a_kl_penalty_without_a_reference_is_an_error() {
    let device = Device::flex();
    let ones = || tensor(&[1.0; 6], &device);
    let loss =
        Loss { kl: Some(KlPenalty { coefficient: 0.1, ratio_weighted: false }), ..loss(RatioLevel::Token, CLIP) };
    let input = LossInput {
        log_probs: ones(),
        old_log_probs: ones(),
        ref_log_probs: None,
        entropy: ones(),
        advantages: ones(),
        mask: ones(),
    };
    assert!(matches!(loss.forward(input), Err(crate::Error::MissingReference)));
}
