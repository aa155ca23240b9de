use serde::{Deserialize, Serialize};

use super::{CreditAssigner, CreditBatch, TokenCredit};
use crate::{Error, SignalSet, top_entropy_mask};

/// FT-RL, the 80/20 rule (arXiv 2506.01939, section 5): only the tokens of the highest entropy have a gradient. The
/// threshold is a quantile of all tokens of the rollout; the others still count where losses are averaged.
///
/// [`Algorithm::top_entropy`](crate::Algorithm::top_entropy) is the same with a threshold for each mini-batch, and takes
/// the other tokens out of an entropy bonus too.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FtRl {
    /// Share of the tokens that count.
    pub share: f32,
}

impl Default for FtRl {
    /// The paper's 0.2.
    fn default() -> Self {
        Self { share: 0.2 }
    }
}

impl<P> CreditAssigner<P> for FtRl {
    fn name(&self) -> &'static str {
        "ft_rl"
    }

    fn signals(&self, _: &[&P]) -> Result<SignalSet, Error> {
        Ok(SignalSet { entropy: true, ..SignalSet::default() })
    }

    fn assign(&self, rollout: &CreditBatch<'_, P>) -> Result<Vec<TokenCredit>, Error> {
        let entropies: Vec<Vec<f32>> = rollout.completions.iter().map(|input| input.entropy.to_vec()).collect();
        Ok(top_entropy_mask(&entropies, self.share).into_iter().map(TokenCredit::from).collect())
    }

    fn check(&self) -> Result<(), Error> {
        Error::unless_share("ft_rl.share", self.share)
    }
}

#[cfg(test)]
mod tests {
    use super::FtRl;
    use crate::credit::testing::{Row, weights};

    #[test]
    fn a_fifth_of_the_tokens_of_all_completions_counts() {
        let rows = [
            Row { entropy: vec![0.1, 0.9, 0.2, 0.3], ..Row::of(4) },
            Row { entropy: vec![0.0, 0.05, 1.5, 0.3, 0.4, 0.6], ..Row::of(6) },
        ];
        assert_eq!(weights(&FtRl::default(), &rows), [vec![0.0, 1.0, 0.0, 0.0], vec![0.0, 0.0, 1.0, 0.0, 0.0, 0.0]]);
    }
}
