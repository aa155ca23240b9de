use serde::{Deserialize, Serialize};

use super::min_max::min_max;
use super::{CreditAssigner, CreditBatch, Evidence, TokenCredit};
use crate::{Error, SignalSet, View};

/// VPPO (arXiv 2510.09285): the tokens of each completion that depend most on the image have a gradient, and completions
/// that depend on it more have a larger one.
///
/// The dependency of a token is the k3 estimate d = exp(x) - x - 1 of the KL divergence, with x the log-probability under
/// a changed image minus the one it was drawn with, as in the published code; the paper writes a divergence over the whole
/// vocabulary. The loss is a mean over the tokens that are kept. A completion's advantage is scaled by its mean
/// dependency, least 0 and largest 1 over the rollout, so that the scales start at `least_scale` and have mean one. The
/// published code takes extremes and means over what happens to lie on one device; here they are over the rollout.
///
/// The paper's run: DAPO with an entropy penalty of 0.06 (`entropy_bonus = -0.06`), 8 completions a prompt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Vppo {
    /// Share of the tokens of a completion that are kept.
    pub share: f64,
    /// Scale of the completion that depends least on the image.
    pub least_scale: f64,
    /// What is done to the image.
    pub view: View,
}

impl Default for Vppo {
    /// 0.4 of the tokens, scales from 0.9, half of the patches blackened.
    fn default() -> Self {
        Self { share: 0.4, least_scale: 0.9, view: View::named("blacken") }
    }
}

impl<P> CreditAssigner<P> for Vppo {
    fn name(&self) -> &'static str {
        "vppo"
    }

    fn signals(&self, _: &[&P]) -> Result<SignalSet, Error> {
        Ok(SignalSet { views: vec![self.view.clone()], ..SignalSet::default() })
    }

    fn assign(&self, rollout: &CreditBatch<'_, P>) -> Result<Vec<TokenCredit>, Error> {
        let mut dependencies = Vec::with_capacity(rollout.completions.len());
        for input in &rollout.completions {
            let changed = input.under(&self.view)?;
            dependencies.push(dependency(&input.completion.log_probs, changed));
        }
        let mean = |values: &Vec<f64>| values.iter().sum::<f64>() / values.len().max(1) as f64;
        let scales = scales(&dependencies.iter().map(mean).collect::<Vec<_>>(), self.least_scale);
        let credit = |(dependency, scale): (Vec<f64>, f64)| {
            let kept = most(&dependency, self.share);
            TokenCredit {
                weights: kept.iter().map(|&kept| if kept { scale as f32 } else { 0.0 }).collect(),
                kept: Some(kept),
                evidence: Some(Evidence::by_token(dependency.iter().map(|&d| d as f32).collect(), [].into())),
            }
        };
        Ok(dependencies.into_iter().zip(scales).map(credit).collect())
    }

    fn check(&self) -> Result<(), Error> {
        Error::unless_share("vppo.share", self.share)?;
        let reason = "a number from 0 to 1";
        Error::unless("vppo.least_scale", self.least_scale, |scale| (0.0..=1.0).contains(&scale), reason)
    }
}

/// How much each token depends on the image.
fn dependency(drawn: &[f32], changed: &[f32]) -> Vec<f64> {
    let of_token = |(&drawn, &changed): (&f32, &f32)| {
        let x = (f64::from(changed) - f64::from(drawn)).clamp(-20.0, 20.0);
        (x.exp_m1() - x).clamp(0.0, 10.0)
    };
    drawn.iter().zip(changed).map(of_token).collect()
}

/// The share of the values, rounded up, that are highest; the first of equal ones.
fn most(values: &[f64], share: f64) -> Vec<bool> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&one, &other| values[other].total_cmp(&values[one]));
    // A product such as 0.07 x 100 lies a hair above the whole number that it is.
    let count = (share * values.len() as f64 - 1e-9).ceil() as usize;
    let mut kept = vec![false; values.len()];
    order.into_iter().take(count).for_each(|token| kept[token] = true);
    kept
}

/// The scale of each completion of the rollout by its mean dependency.
fn scales(means: &[f64], least: f64) -> Vec<f64> {
    // Where all are alike there is nothing to scale.
    let spread = min_max(means, 1e-6);
    let mean = spread.iter().sum::<f64>() / spread.len().max(1) as f64;
    if mean == 0.0 {
        return vec![1.0; means.len()];
    }
    let range = (1.0 - least) / (mean + 1e-8);
    spread.into_iter().map(|place| least + place * range).collect()
}

#[cfg(test)]
mod tests {
    use super::{Vppo, dependency, most, scales};
    use crate::View;
    use crate::credit::testing::{Row, close, credit};

    const DRAWN: [f32; 4] = [-0.1, -0.5, -0.2, -1.0];
    const CHANGED: [f32; 4] = [-2.1, -0.5, -0.7, -1.1];

    #[test]
    fn dependency_is_the_k3_estimate() {
        let found = dependency(&DRAWN, &CHANGED);
        close(&found, &[1.135_335, 0.0, 0.106_531, 0.004_837]);
        close(&[found.iter().sum::<f64>() / 4.0], &[0.311_676]);
        assert_eq!(most(&found, 0.4), [true, false, true, false]);
        assert_eq!(most(&[0.1, 0.3, 0.2], 0.4), [false, true, true], "rounded up");
        // Unlikely as can be, and the other way round.
        assert_eq!(dependency(&[-60.0, 0.0], &[0.0, -60.0]), [10.0, 10.0]);
        assert_eq!(most(&[0.0; 100], 0.07).iter().filter(|&&kept| kept).count(), 7);
    }

    #[test]
    fn scales_are_over_all_completions_and_have_mean_one() {
        let found = scales(&[0.1, 0.2, 0.5], 0.9);
        close(&found, &[0.9, 0.96, 1.14]);
        assert_eq!(scales(&[0.3, 0.3], 0.9), [1.0; 2]);
        // Extremes of each half by itself would give other ones.
        let halves = [scales(&[0.1, 0.2], 0.9), scales(&[0.5, 0.3], 0.9)].concat();
        let whole = scales(&[0.1, 0.2, 0.5, 0.3], 0.9);
        assert!((whole.iter().sum::<f64>() / 4.0 - 1.0).abs() < 1e-6 && (whole[1] - halves[1]).abs() > 0.1);
    }

    #[test]
    fn kept_tokens_have_the_scale_of_their_completion() {
        let row = |changed: &[f32]| Row {
            log_probs: DRAWN.to_vec(),
            views: vec![(View::named("blacken"), changed.to_vec())],
            ..Row::of(4)
        };
        let found = credit(&Vppo::default(), &[row(&CHANGED), row(&DRAWN)]);
        assert_eq!(found[0].kept, Some(vec![true, false, true, false]));
        assert_eq!(found[1].kept, Some(vec![true, true, false, false]));
        let weights: Vec<f64> = found.iter().flat_map(|credit| &credit.weights).map(|&weight| weight.into()).collect();
        close(&weights, &[1.1, 0.0, 1.1, 0.0, 0.9, 0.9, 0.0, 0.0]);
    }
}
