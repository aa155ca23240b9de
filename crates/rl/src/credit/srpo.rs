use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{CreditAssigner, CreditBatch, CreditInput, Evidence, TokenCredit};
use crate::{Error, SignalSet, View};

/// SRPO, structured role-aware policy optimization (arXiv 2605.07274): perception tokens count by what they owe to the
/// image, reasoning tokens by what they owe to the perception that was written before them.
///
/// **The weights are our reading of the abstract**, which names roles, contrasts, a shared baseline, positive weights and
/// the sign of the advantage, and no formula: d is how much more likely a perception token is with the image than with a
/// changed one, and a reasoning token behind the perception than without it, at most `bound` either way; with b the mean
/// of d over the completion, a token weighs 1 + kappa (d - b) within `least` and `most`.
///
/// Costs a pass under the changed image and one over completions without their perception.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Srpo {
    /// How much a difference of one nat weighs.
    pub kappa: f64,
    /// Least weight.
    pub least: f64,
    /// Largest weight.
    pub most: f64,
    /// Largest contrast, in nats.
    pub bound: f64,
    /// Which tokens are perception.
    pub perception: Perception,
    /// What is done to the image.
    pub view: View,
}

/// Which tokens of a completion say what is seen; the others reason.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Perception {
    /// Those before the first blank line, it included; a completion without one is perception as a whole.
    #[default]
    FirstParagraph,
    /// Those from one mark to the next other, both included; without the two there is none, and all weights are one.
    Between {
        /// What opens it, such as `<perception>`.
        open: String,
        /// What closes it.
        close: String,
    },
}

impl Perception {
    /// The tokens of these texts that say what is seen.
    fn of(&self, texts: &[Arc<str>]) -> Range<usize> {
        let text: String = texts.iter().map(AsRef::as_ref).collect();
        let bytes = match self {
            // Without a blank line the end of the turn, which has no text, belongs to it too.
            Self::FirstParagraph => 0..text.find("\n\n").map_or(usize::MAX, |at| at + 2),
            Self::Between { open, close } => {
                let start = text.find(open.as_str());
                let end = start.and_then(|start| {
                    let inside = start + open.len();
                    Some(inside + text[inside..].find(close.as_str())? + close.len())
                });
                start.zip(end).map_or(0..0, |(start, end)| start..end)
            }
        };
        // A token belongs to where it begins, so one that ends the span and goes on belongs to it.
        let starts = texts.iter().scan(0, |next, text| Some(std::mem::replace(next, *next + text.len())));
        let inside: Vec<usize> = starts
            .enumerate()
            .filter(|(_, start)| bytes.contains(start))
            .map(|(token, _)| token)
            .collect();
        inside.first().map_or(0..0, |&first| first..inside[inside.len() - 1] + 1)
    }
}

impl Default for Srpo {
    /// Our choice: 0.5 a nat, weights from 0.5 to 2, contrasts up to 5 nats, half of the patches blackened.
    fn default() -> Self {
        let view = View::named("blacken");
        Self { kappa: 0.5, least: 0.5, most: 2.0, bound: 5.0, perception: Perception::FirstParagraph, view }
    }
}

impl Srpo {
    fn weights(&self, contrasts: &[f64]) -> Vec<f32> {
        let mean = contrasts.iter().sum::<f64>() / contrasts.len().max(1) as f64;
        let weight = |contrast: &f64| (1.0 + self.kappa * (contrast - mean)).clamp(self.least, self.most) as f32;
        contrasts.iter().map(weight).collect()
    }
}

impl<P> CreditAssigner<P> for Srpo {
    fn name(&self) -> &'static str {
        "srpo"
    }

    fn signals(&self, _: &[&P]) -> Result<SignalSet, Error> {
        Ok(SignalSet { texts: true, views: vec![self.view.clone()], ..SignalSet::default() })
    }

    fn omission(&self, completion: &CreditInput<'_, P>) -> Option<Range<usize>> {
        let perception = self.perception.of(completion.texts);
        // Only what follows can miss it.
        (!perception.is_empty() && perception.end < completion.texts.len()).then_some(perception)
    }

    fn assign(&self, rollout: &CreditBatch<'_, P>) -> Result<Vec<TokenCredit>, Error> {
        let credit = |input: &CreditInput<'_, P>| {
            let drawn = &input.completion.log_probs;
            let changed = input.under(&self.view)?;
            let perception = self.perception.of(input.texts);
            let contrast = |token: usize| {
                let other = if perception.contains(&token) {
                    changed[token]
                } else {
                    input.without.map_or(drawn[token], |without| without[token])
                };
                (f64::from(drawn[token]) - f64::from(other)).clamp(-self.bound, self.bound)
            };
            let contrasts: Vec<f64> = (0..drawn.len()).map(contrast).collect();
            let weights = self.weights(&contrasts);
            let contrasts = contrasts.into_iter().map(|contrast| contrast as f32).collect();
            Ok(TokenCredit { weights, kept: None, evidence: Some(Evidence::by_token(contrasts, [].into())) })
        };
        rollout.completions.iter().map(credit).collect()
    }

    fn check(&self) -> Result<(), Error> {
        let positive = |value: f64| value > 0.0 && value.is_finite();
        Error::unless("srpo.kappa", self.kappa, |kappa| (0.0..f64::INFINITY).contains(&kappa), "a number not below 0")?;
        Error::unless("srpo.least", self.least, positive, "above zero, so that the sign of an advantage stays")?;
        let most = |most: f64| most.is_finite() && most >= self.least;
        Error::unless("srpo.most", self.most, most, "a number not below srpo.least")?;
        Error::unless("srpo.bound", self.bound, positive, "above zero")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{Perception, Srpo};
    use crate::View;
    use crate::credit::testing::{Row, assert_weights, close};

    fn texts(pieces: &[&str]) -> Vec<Arc<str>> {
        pieces.iter().map(|&piece| piece.into()).collect()
    }

    #[test]
    fn contrasts_become_weights_around_one() {
        let found = Srpo::default().weights(&[1.0, 0.2, 0.5, 0.1]);
        close(&found.iter().copied().map(f64::from).collect::<Vec<_>>(), &[1.275, 0.875, 1.025, 0.825]);
        let extreme = Srpo::default().weights(&[5.0, -5.0]);
        assert_eq!(extreme, [2.0, 0.5]);
    }

    #[test]
    fn perception_is_found_across_tokens() {
        let first = Perception::FirstParagraph;
        assert_eq!(first.of(&texts(&["a", " b\n", "\n", "c", ""])), 0..3);
        assert_eq!(first.of(&texts(&["a", "\n\nb", "c"])), 0..2);
        assert_eq!(first.of(&texts(&["a", "b", ""])), 0..3);
        assert_eq!(first.of(&texts(&[])), 0..0);
        let marks = Perception::Between { open: "<see>".into(), close: "</see>".into() };
        assert_eq!(marks.of(&texts(&["so", "<s", "ee>", "red", "</", "see", ">", " 4"])), 1..7);
        assert_eq!(marks.of(&texts(&["<see>", "red"])), 0..0);
    }

    #[test]
    fn perception_owes_to_the_image_and_reasoning_to_perception() {
        let row = Row {
            log_probs: vec![-0.5, -0.2, -0.3, -0.4],
            texts: texts(&["three", "\n\n", "3", "+1"]),
            views: vec![(View::named("blacken"), vec![-1.5, -0.4, -9.0, -9.0])],
            without: Some(vec![-0.5, -0.2, -0.8, -0.5]),
            ..Row::of(4)
        };
        assert_weights(&Srpo::default(), &[row], &[&[1.275, 0.875, 1.025, 0.825]]);
    }

    #[test]
    fn a_contrast_is_bounded() {
        let row = Row {
            log_probs: vec![-1.0, -1.0],
            texts: texts(&["a", "b"]),
            views: vec![(View::named("blacken"), vec![-41.0, -1.0])],
            ..Row::of(2)
        };
        // Within 5 nats of each other, around their mean of 2.5.
        let method = Srpo { kappa: 0.1, ..Srpo::default() };
        assert_weights(&method, &[row], &[&[1.25, 0.75]]);
    }

    #[test]
    fn without_marks_all_weights_are_one() {
        let perception = Perception::Between { open: "<see>".into(), close: "</see>".into() };
        let row = Row {
            log_probs: vec![-0.5, -0.2],
            texts: texts(&["a", "b"]),
            views: vec![(View::named("blacken"), vec![-1.5, -0.4])],
            ..Row::of(2)
        };
        assert_weights(&Srpo { perception, ..Srpo::default() }, &[row], &[&[1.0, 1.0]]);
    }
}
