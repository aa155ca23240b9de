use std::ops::Range;
use std::sync::Arc;

use crate::{Error, Group, SignalSet, Signals};

/// Splits the advantage of a completion over its tokens.
///
/// A method names the signals it wants and reads them; it never sees the model.
pub trait CreditAssigner<P>: Sync {
    /// What [`Self::assign`] needs to see of completions of these prompts.
    ///
    /// # Errors
    /// When a prompt is nothing the method can work with.
    fn signals(&self, prompts: &[&P]) -> Result<SignalSet, Error>;

    /// Credit of every completion, those of all groups one after another, given the signals that were asked for.
    ///
    /// Groups may not be graded yet: where the sampler hands out the signals, credit is assigned as completions are
    /// drawn.
    ///
    /// # Errors
    /// When a signal is missing or has another shape than the groups.
    fn assign(&self, groups: &[Group<P>], signals: &Signals) -> Result<Vec<TokenCredit>, Error>;
}

/// How the advantage of a completion is split over its tokens.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TokenCredit {
    /// For every token the factor of the advantage.
    pub weights: Vec<f32>,
    /// What the weights were made of, for those who want to look; methods that look at nothing have none.
    pub evidence: Option<Evidence>,
}

/// What a method that compares a response with an image went by.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Evidence {
    /// Ranges of tokens that have one weight each; they partition the completion.
    pub segments: Vec<Range<usize>>,
    /// How closely each token attends to the visual tokens.
    pub alignment: Vec<f32>,
    /// The visual tokens that the completion was compared with, in the order of the prompt.
    pub visual_tokens: Arc<[usize]>,
}

impl From<Vec<f32>> for TokenCredit {
    fn from(weights: Vec<f32>) -> Self {
        Self { weights, evidence: None }
    }
}

macro_rules! forward_to_contents {
    ($($pointer:ident),*) => {$(
        impl<P, C: CreditAssigner<P> + Send + ?Sized> CreditAssigner<P> for $pointer<C> {
            fn signals(&self, prompts: &[&P]) -> Result<SignalSet, Error> {
                (**self).signals(prompts)
            }

            fn assign(&self, groups: &[Group<P>], signals: &Signals) -> Result<Vec<TokenCredit>, Error> {
                (**self).assign(groups, signals)
            }
        }
    )*};
}

forward_to_contents!(Box, Arc);

/// Every token gets the whole advantage: the base algorithm unchanged.
#[derive(Debug, Clone, Copy, Default)]
pub struct Uniform;

impl<P> CreditAssigner<P> for Uniform {
    fn signals(&self, _: &[&P]) -> Result<SignalSet, Error> {
        Ok(SignalSet::default())
    }

    fn assign(&self, groups: &[Group<P>], _: &Signals) -> Result<Vec<TokenCredit>, Error> {
        Ok(groups
            .iter()
            .flat_map(|group| &group.completions)
            .map(|completion| vec![1.0; completion.tokens.len()].into())
            .collect())
    }
}
