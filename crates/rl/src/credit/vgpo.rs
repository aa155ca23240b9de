use std::sync::Arc;

use burn::tensor::{Int, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use super::min_max::min_max;
use super::{CreditAssigner, CreditBatch, CreditInput, Evidence, TokenCredit};
use crate::error::check_count;
use crate::{Error, Group, SignalSet, Signals};

/// VGPO, visually-guided policy optimization (arXiv 2604.09349): a token counts more the closer its final hidden state is
/// to the mean of the image's, late tokens that look at the image more still, and a completion more the more its tokens
/// look.
///
/// The focus of a token, the cosine of the two states, is mapped to [0, 1] ([`Focus`]). Late in the completion the tokens
/// of the highest focus are raised by up to `strength`. Within a completion the result is spread over [0, 1] and centred
/// at a factor of one; their sum, spread over the completions of a prompt, gives a factor for the completion likewise, at
/// least 0.9, so that the mean of a group may lie above one. (Eq. 9 is said to sum what is not spread yet.)
/// The published code groups completions by their place in a shuffled batch, and spreads focus over whatever lies on one
/// device; here groups are those of prompts, and focus is spread over the rollout.
///
/// A completion of a prompt without images keeps its advantage. The paper's run: DAPO, 8 completions a prompt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Vgpo {
    /// How much the last token of a completion is raised.
    pub strength: f64,
    /// Share of a completion from which on tokens are raised.
    pub start: f64,
    /// Share of those tokens that are: the ones of the highest focus, at least one.
    pub share: f64,
    /// How the rise grows.
    pub schedule: Compensation,
    /// How cosines become focus.
    pub focus: Focus,
}

/// How cosines become focus between 0 and 1.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Focus {
    /// Least 0 and largest 1 over the rollout, as the published code means to.
    #[default]
    MinMax,
    /// (cosine + 1) / 2, as the paper's eq. 4 is said to read.
    Shifted,
}

/// How the rise of late tokens grows with their place t, from 0 to 1, in the completion.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Compensation {
    /// As t.
    #[default]
    Linear,
    /// As a power of t.
    Exponential {
        /// The power.
        exponent: f64,
    },
    /// Whole from a place on.
    Step {
        /// The place.
        from: f64,
    },
}

impl Compensation {
    fn at(self, place: f64) -> f64 {
        match self {
            Self::Linear => place,
            Self::Exponential { exponent } => place.powf(exponent),
            Self::Step { from } => f64::from(u8::from(place >= from)),
        }
    }
}

impl Default for Vgpo {
    /// 0.3 from the middle on, for a fifth of the tokens; the settings of the published run.
    fn default() -> Self {
        Self { strength: 0.3, start: 0.5, share: 0.2, schedule: Compensation::Linear, focus: Focus::MinMax }
    }
}

impl Vgpo {
    /// Focus with late tokens raised.
    fn compensated(&self, focus: &[f64]) -> Vec<f64> {
        let last = focus.len().saturating_sub(1).max(1) as f64;
        let place = |token: usize| token as f64 / last;
        let late: Vec<usize> = (0..focus.len()).filter(|&token| place(token) >= self.start).collect();
        let mut highest: Vec<f64> = late.iter().map(|&token| focus[token]).collect();
        highest.sort_unstable_by(|one, other| other.total_cmp(one));
        let rank = ((self.share * late.len() as f64 + 1e-9) as usize).max(1);
        let Some(&threshold) = highest.get(rank - 1) else { return focus.to_vec() };
        let mut raised = focus.to_vec();
        for token in late.into_iter().filter(|&token| focus[token] >= threshold) {
            raised[token] *= 1.0 + self.strength * self.schedule.at(place(token));
        }
        raised
    }
}

/// One plus the distance to the mean, within bounds.
fn centred(values: &[f64], least: f64) -> Vec<f64> {
    let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
    values.iter().map(|value| (1.0 + value - mean).clamp(least, 2.0)).collect()
}

/// Factors of the completions of one prompt by how much their tokens look at the image.
fn of_completions(sums: &[f64]) -> Vec<f64> {
    centred(&min_max(sums, 0.0), 0.9)
}

impl<P> CreditAssigner<P> for Vgpo {
    fn name(&self) -> &'static str {
        "vgpo"
    }

    fn signals(&self, _: &[&P]) -> Result<SignalSet, Error> {
        Ok(SignalSet { hidden: true, ..SignalSet::default() })
    }

    fn reduce(&self, groups: &[Group<P>], signals: &Signals) -> Result<Vec<Evidence>, Error> {
        let missing = || Error::MissingSignal { signal: "final hidden states".into() };
        let hidden = signals.hidden.as_ref().ok_or_else(missing)?;
        check_count("groups with hidden states", hidden.visual.len(), groups.len())?;
        let lengths = |group: &Group<P>| group.completions.iter().map(|answer| answer.tokens.len()).collect::<Vec<_>>();
        let tokens: usize = groups.iter().flat_map(lengths).sum();
        let [found, width] = hidden.response.dims();
        check_count("tokens with hidden states", found, tokens)?;
        let cosines = if tokens == 0 { Vec::new() } else { cosines(groups, &hidden.response, &hidden.visual, width)? };
        let mut cosines = cosines.into_iter();
        let mut evidence = Vec::new();
        for (group, visual) in groups.iter().zip(&hidden.visual) {
            let visual_tokens: Arc<[usize]> = (0..visual.dims()[0]).collect();
            for length in lengths(group) {
                let focus: Vec<f32> = cosines.by_ref().take(length).collect();
                let focus = if visual_tokens.is_empty() { Vec::new() } else { focus };
                evidence.push(Evidence::by_token(focus, visual_tokens.clone()));
            }
        }
        Ok(evidence)
    }

    fn assign(&self, rollout: &CreditBatch<'_, P>) -> Result<Vec<TokenCredit>, Error> {
        let cosines = |input: &CreditInput<'_, P>| -> Result<Vec<f64>, Error> {
            let missing = || Error::MissingSignal { signal: "the focus of tokens".into() };
            Ok(input.evidence.ok_or_else(missing)?.alignment.iter().copied().map(f64::from).collect())
        };
        let cosines = rollout.completions.iter().map(cosines).collect::<Result<Vec<_>, _>>()?;
        let focus: Vec<f64> = match self.focus {
            Focus::MinMax => min_max(&cosines.concat(), 0.0),
            Focus::Shifted => cosines.concat().iter().map(|cosine| f64::midpoint(*cosine, 1.0)).collect(),
        };
        let mut focus = focus.as_slice();
        let mut spread = Vec::with_capacity(cosines.len());
        for cosines in &cosines {
            let (own, rest) = focus.split_at(cosines.len());
            focus = rest;
            spread.push(min_max(&self.compensated(own), 0.0));
        }
        let mut credit = Vec::with_capacity(spread.len());
        for group in rollout.completions.chunk_by(|one, other| one.group == other.group) {
            let spread = &spread[credit.len()..credit.len() + group.len()];
            let sums: Vec<f64> = spread.iter().map(|spread| spread.iter().sum()).collect();
            for ((input, spread), factor) in group.iter().zip(spread).zip(of_completions(&sums)) {
                let weights: Vec<f32> = if spread.is_empty() {
                    vec![1.0; input.completion.tokens.len()]
                } else {
                    centred(spread, 0.1).into_iter().map(|token| (token * factor) as f32).collect()
                };
                credit.push(TokenCredit { weights, kept: None, evidence: input.evidence.cloned() });
            }
        }
        Ok(credit)
    }

    fn check(&self) -> Result<(), Error> {
        let not_below_zero = |value| (0.0..f64::INFINITY).contains(&value);
        Error::unless("vgpo.strength", self.strength, not_below_zero, "a number not below 0")?;
        Error::unless("vgpo.start", self.start, |start| (0.0..=1.0).contains(&start), "a number from 0 to 1")?;
        Error::unless_share("vgpo.share", self.share)?;
        let (setting, value) = match self.schedule {
            Compensation::Linear => return Ok(()),
            Compensation::Exponential { exponent } => ("vgpo.schedule.exponential.exponent", exponent),
            Compensation::Step { from } => ("vgpo.schedule.step.from", from),
        };
        Error::unless(setting, value, not_below_zero, "a number not below 0")
    }
}

/// The cosine of each response state with the mean of its prompt's visual states.
fn cosines<P>(
    groups: &[Group<P>],
    response: &Tensor<2>,
    visual: &[Tensor<2>],
    width: usize,
) -> Result<Vec<f32>, Error> {
    let device = response.device();
    let mean = |visual: &Tensor<2>| match visual.dims()[0] {
        0 => Tensor::zeros([1, width], &device),
        _ => visual.clone().mean_dim(0),
    };
    let means = Tensor::cat(visual.iter().map(mean).collect(), 0);
    let of_tokens = |(index, group): (usize, &Group<P>)| {
        let tokens = group.completions.iter().map(|completion| completion.tokens.len()).sum();
        std::iter::repeat_n(index as i64, tokens)
    };
    let rows: Vec<i64> = groups.iter().enumerate().flat_map(of_tokens).collect();
    let rows = Tensor::<1, Int>::from_data(TensorData::new(rows.clone(), [rows.len()]), &device);
    let unit = |x: Tensor<2>| {
        let norm = x.clone().powi_scalar(2).sum_dim(1).sqrt().clamp_min(1e-8);
        x / norm
    };
    let product = (unit(response.clone()) * unit(means).select(0, rows)).sum_dim(1);
    product.try_into_vec_as::<f32>().map_err(|error| Error::Policy(Box::new(error)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use burn::tensor::{Device, Tensor};

    use super::{Compensation, Focus, Vgpo, centred, cosines, min_max, of_completions};
    use crate::credit::testing::{Row, assert_weights, close, weights};
    use crate::{Completion, CreditAssigner as _, Group, HiddenStates, Signals};

    #[test]
    fn late_tokens_that_look_are_raised() {
        let found = Vgpo::default().compensated(&[0.2, 0.4, 0.6, 0.5]);
        close(&found, &[0.2, 0.4, 0.72, 0.5]);
        let spread = min_max(&found, 0.0);
        close(&spread, &[0.0, 0.384_615, 1.0, 0.576_923]);
        close(&centred(&spread, 0.1), &[0.509_615, 0.894_231, 1.509_615, 1.086_538]);
        close(&[spread.iter().sum()], &[1.961_538]);
        close(&of_completions(&[1.961_538, 1.0]), &[1.5, 0.9]);
    }

    #[test]
    fn of_the_late_tokens_a_share_rounded_down_is_raised() {
        let focus = [0.9, 0.1, 0.2, 0.3, 0.4, 0.8, 0.5, 0.7, 0.6, 0.2];
        // Two of the five from the middle on, by 0.3 of 5/9 and of 7/9.
        let found = Vgpo { share: 0.5, ..Vgpo::default() }.compensated(&focus);
        close(&found, &[0.9, 0.1, 0.2, 0.3, 0.4, 0.933_333, 0.5, 0.863_333, 0.6, 0.2]);
    }

    #[test]
    fn the_rise_may_grow_otherwise() {
        let with = |schedule| Vgpo { schedule, ..Vgpo::default() }.compensated(&[0.2, 0.4, 0.6, 0.5]);
        close(&with(Compensation::Exponential { exponent: 2.0 }), &[0.2, 0.4, 0.6 * (1.0 + 0.3 * 4.0 / 9.0), 0.5]);
        close(&with(Compensation::Step { from: 0.5 }), &[0.2, 0.4, 0.78, 0.5]);
        close(&with(Compensation::Step { from: 0.9 }), &[0.2, 0.4, 0.6, 0.5]);
        // One token, or none, has nothing to be compared with.
        close(&Vgpo::default().compensated(&[0.4]), &[0.4]);
        assert!(Vgpo::default().compensated(&[]).is_empty());
    }

    fn row(group: usize, focus: &[f32]) -> Row {
        Row { group, alignment: Some(focus.to_vec()), ..Row::of(focus.len()) }
    }

    #[test]
    fn groups_are_those_of_prompts() {
        let (first, second) = ([0.0, 0.2, 1.0], [0.1, 0.9, 0.2]);
        let rows = [row(0, &first), row(1, &first), row(1, &second), row(1, &second)];
        let found = weights(&Vgpo::default(), &rows);
        // Alone in its group, a completion is compared with no other.
        let alone = weights(&Vgpo::default(), &rows[..1]).remove(0);
        assert_eq!(found[0], alone);
        // The same tokens in the middle of a group of three look more than the others of it.
        assert!(found[1].iter().zip(&found[0]).any(|(one, other)| (one - other).abs() > 1e-3), "{found:?}");
    }

    #[test]
    fn focus_is_spread_over_the_rollout() {
        let rows = [row(0, &[0.0, 0.2, 1.0]), row(1, &[0.4, 0.6, 0.5]), row(1, &[0.3, 0.5, 0.2])];
        // The extremes are in the first group, and the rise of late tokens is of what they make of the others.
        let expected: [&[f64]; 3] = [
            &[0.615_385, 0.769_231, 1.615_385],
            &[0.827_586, 2.327_586, 1.344_828],
            &[0.76, 1.42, 0.52],
        ];
        assert_weights(&Vgpo::default(), &rows, &expected);
        let shifted = Vgpo { focus: Focus::Shifted, ..Vgpo::default() };
        assert_ne!(weights(&shifted, &rows), weights(&Vgpo::default(), &rows));
    }

    #[test]
    fn completions_without_images_keep_their_advantage() {
        let rows = [Row { alignment: Some(Vec::new()), ..Row::of(2) }, row(1, &[0.1, 0.5])];
        assert_eq!(weights(&Vgpo::default(), &rows)[0], [1.0; 2]);
    }

    #[test]
    fn focus_is_the_cosine_with_the_mean_of_the_image() {
        let device = Device::flex();
        let group = |tokens: usize| Group {
            prompt: (),
            completions: vec![Completion { tokens: vec![0; tokens], ..Completion::default() }],
            rewards: Vec::new(),
        };
        let groups = [group(2), group(1)];
        let response = Tensor::from_data([[3.0, 4.0], [-1.0, 0.0], [2.0, 0.0]], &device);
        let visual = vec![Tensor::from_data([[3.0, 0.0], [5.0, 6.0]], &device), Tensor::zeros([0, 2], &device)];
        let found = cosines(&groups, &response, &visual, 2).unwrap();
        close(&found.iter().copied().map(f64::from).collect::<Vec<_>>(), &[0.96, -0.8, 0.0]);
        let hidden = Some(HiddenStates { response, visual });
        let evidence = Vgpo::default().reduce(&groups, &Signals { hidden, ..Signals::default() }).unwrap();
        assert_eq!(evidence[0].alignment.len(), 2);
        assert_eq!(&*evidence[0].visual_tokens, [0, 1]);
        assert!(evidence[1].alignment.is_empty());
    }
}
