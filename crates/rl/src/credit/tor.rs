use rand::seq::SliceRandom as _;
use serde::{Deserialize, Serialize};

use super::{CreditAssigner, CreditBatch, TokenCredit};
use crate::{Error, SignalSet, View, stream};

/// Domain of the random streams that ties are broken by.
const TIES: u64 = 0x746f_7254;

/// ToR (arXiv 2603.25077): only reasoning tokens, those of the highest entropy, and perception tokens, those whose
/// log-probability changes most when the image is taken away, have a gradient; a token that is both counts as reasoning.
///
/// Of the tokens of all completions together, *exactly* each share is taken: most top-p entropies are exactly zero, so a
/// threshold would take all of them or none, and ties are broken at random. The formulas are known to us second-hand.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tor {
    /// Share of the tokens that count as reasoning.
    pub reasoning_share: f64,
    /// Share of the tokens that count as perception.
    pub perception_share: f64,
    /// Weight of reasoning tokens.
    pub reasoning_weight: f32,
    /// Weight of perception tokens that are not reasoning tokens.
    pub perception_weight: f32,
    /// Entropies are of the most likely tokens that have this probability together.
    pub top_p: f32,
    /// What is done to the image.
    pub view: View,
}

impl Default for Tor {
    /// 0.3 of the tokens each, weights 1 and 0.5, top-p 0.95, without the image.
    fn default() -> Self {
        Self {
            reasoning_share: 0.3,
            perception_share: 0.3,
            reasoning_weight: 1.0,
            perception_weight: 0.5,
            top_p: 0.95,
            view: View::named("remove"),
        }
    }
}

impl<P> CreditAssigner<P> for Tor {
    fn name(&self) -> &'static str {
        "tor"
    }

    fn signals(&self, _: &[&P]) -> Result<SignalSet, Error> {
        let top_p_entropy = Some(self.top_p);
        Ok(SignalSet { top_p_entropy, views: vec![self.view.clone()], ..SignalSet::default() })
    }

    fn assign(&self, rollout: &CreditBatch<'_, P>) -> Result<Vec<TokenCredit>, Error> {
        let (mut entropies, mut changes, mut lengths) = (Vec::new(), Vec::new(), Vec::new());
        for input in &rollout.completions {
            entropies.extend_from_slice(input.top_p_entropy);
            let blind = input.under(&self.view)?;
            changes.extend(input.completion.log_probs.iter().zip(blind).map(|(seen, blind)| (seen - blind).abs()));
            lengths.push(input.completion.tokens.len());
        }
        let mut order: Vec<usize> = (0..changes.len()).collect();
        order.shuffle(&mut stream(rollout.seed, TIES, rollout.step));
        let mut weights = vec![0.0; changes.len()];
        for token in highest(&changes, self.perception_share, order.clone()) {
            weights[token] = self.perception_weight;
        }
        for token in highest(&entropies, self.reasoning_share, order) {
            weights[token] = self.reasoning_weight;
        }
        let mut weights = weights.into_iter();
        Ok(lengths.into_iter().map(|length| weights.by_ref().take(length).collect::<Vec<_>>().into()).collect())
    }

    fn check(&self) -> Result<(), Error> {
        Error::unless_share("tor.reasoning_share", self.reasoning_share)?;
        Error::unless_share("tor.perception_share", self.perception_share)?;
        Error::unless_share("tor.top_p", self.top_p)?;
        let weight = |value| (0.0..f64::INFINITY).contains(&value);
        Error::unless("tor.reasoning_weight", self.reasoning_weight, weight, "a number not below 0")?;
        Error::unless("tor.perception_weight", self.perception_weight, weight, "a number not below 0")
    }
}

/// The `share` of the values that are highest; of equal ones those that come first in `order`, which has all of them.
fn highest(values: &[f32], share: f64, mut order: Vec<usize>) -> Vec<usize> {
    order.sort_by(|&one, &other| values[other].total_cmp(&values[one]));
    order.truncate((share * values.len() as f64).round() as usize);
    order
}

#[cfg(test)]
mod tests {
    use super::Tor;
    use crate::View;
    use crate::credit::testing::{Row, weights};

    fn row(entropy: &[f32], changes: &[f32]) -> Row {
        let tokens = entropy.len();
        // What the image added to the log-probability, or took from it.
        let signs = [1.0, -1.0].into_iter().cycle();
        let blind = changes.iter().zip(signs).map(|(change, sign)| -5.0 - sign * change).collect();
        Row {
            log_probs: vec![-5.0; tokens],
            top_p_entropy: entropy.to_vec(),
            views: vec![(View::named("remove"), blind)],
            ..Row::of(tokens)
        }
    }

    #[test]
    fn reasoning_counts_whole_and_perception_half() {
        let entropy = [0.0, 2.0, 0.1, 1.5, 0.2, 0.0, 0.9, 0.3, 0.05, 0.0];
        let changes = [3.0, 0.0, 0.1, 2.5, 0.0, 1.0, 0.0, 0.2, 0.0, 0.0];
        let expected = [0.5, 1.0, 0.0, 1.0, 0.0, 0.5, 1.0, 0.0, 0.0, 0.0];
        assert_eq!(weights(&Tor::default(), &[row(&entropy, &changes)]), [expected]);
        // The shares are of all completions together.
        let (first, second) = (row(&entropy[..4], &changes[..4]), row(&entropy[4..], &changes[4..]));
        assert_eq!(weights(&Tor::default(), &[first, second]), [expected[..4].to_vec(), expected[4..].to_vec()]);
    }

    #[test]
    fn of_equal_entropies_exactly_the_share_is_taken_and_not_the_first() {
        let rows = [row(&[0.0; 100], &[0.0; 100])];
        let method = Tor { perception_weight: 0.0, ..Tor::default() };
        let found = weights(&method, &rows).remove(0);
        assert_eq!(found.iter().filter(|&&weight| weight == 1.0).count(), 30);
        assert!(found[30..].contains(&1.0) && found[..30].contains(&0.0));
        assert_eq!(found, weights(&method, &rows).remove(0));
    }
}
