use crate::{Error, Group, SignalSet, Signals};

/// Splits the advantage of a completion over its tokens.
///
/// A method names the signals it wants and reads them; it never sees the model.
pub trait CreditAssigner<P>: Sync {
    /// What [`Self::weights`] needs from the scoring pass.
    fn signals(&self) -> SignalSet;

    /// One weight per completion token; completions of all groups one after another.
    ///
    /// # Errors
    /// When a signal is missing or has another shape than the groups.
    fn weights(&self, groups: &[Group<P>], signals: &Signals) -> Result<Vec<Vec<f32>>, Error>;
}

impl<P, C: CreditAssigner<P> + Send + ?Sized> CreditAssigner<P> for Box<C> {
    fn signals(&self) -> SignalSet {
        (**self).signals()
    }

    fn weights(&self, groups: &[Group<P>], signals: &Signals) -> Result<Vec<Vec<f32>>, Error> {
        (**self).weights(groups, signals)
    }
}

/// Every token gets the whole advantage: the base algorithm unchanged.
#[derive(Debug, Clone, Copy, Default)]
pub struct Uniform;

impl<P> CreditAssigner<P> for Uniform {
    fn signals(&self) -> SignalSet {
        SignalSet::default()
    }

    fn weights(&self, groups: &[Group<P>], _: &Signals) -> Result<Vec<Vec<f32>>, Error> {
        Ok(groups
            .iter()
            .flat_map(|group| &group.completions)
            .map(|completion| vec![1.0; completion.tokens.len()])
            .collect())
    }
}
