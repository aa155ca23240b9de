//! The loss of every token, before aggregation.

mod cispo;
mod clip;
mod ratio;
mod sapo;
#[cfg(test)]
mod tests;

use std::fmt::Debug;
use std::sync::Arc;

use burn::tensor::{Tensor, TensorData};

pub use cispo::Cispo;
pub use clip::Clip;
pub use ratio::RatioLevel;
pub use sapo::Sapo;

use crate::{Coefficients, Error, KlPenalty, k3};

/// What the loss of a batch is made of. Every tensor is `[completions, tokens]`, right-padded.
///
/// Padding may hold any finite number, as `mask` removes it before anything is done with it.
#[derive(Debug, Clone)]
pub struct LossInput {
    /// Log-probabilities under the policy being trained; carry gradients.
    pub log_probs: Tensor<2>,
    /// Under the policy that sampled.
    pub old_log_probs: Tensor<2>,
    /// Under the reference policy; needed with a KL penalty.
    pub ref_log_probs: Option<Tensor<2>>,
    /// Entropy of each token's distribution, in nats; carries gradients when there is an entropy bonus.
    pub entropy: Tensor<2>,
    /// Advantage of the completion times the credit weight of the token.
    pub advantages: Tensor<2>,
    /// One on the tokens that are trained on, zero elsewhere.
    pub mask: Tensor<2>,
}

/// The loss of every token; `[completions, tokens]`, finite on padding and to be masked there.
#[derive(Debug, Clone)]
pub struct TokenLoss {
    /// The surrogate, to be minimised.
    pub surrogate: Tensor<2>,
    /// The KL estimate without its coefficient, weighted by the ratio if so asked; with a KL penalty only.
    pub kl: Option<Tensor<2>>,
    /// Entropy in nats.
    pub entropy: Tensor<2>,
    /// The importance ratio.
    pub ratio: Tensor<2>,
    mask: Tensor<2>,
}

/// Which bound of a surrogate keeps a token from moving further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// The lower one: the token's probability has fallen enough.
    Low,
    /// The upper one: it has risen enough.
    High,
}

/// A surrogate objective: what stands in for the policy gradient away from the sampling policy.
pub trait Surrogate: Debug + Send + Sync {
    /// Loss of every token, to be minimised. All tensors are `[completions, tokens]`; `log_probs` and `ratio` carry
    /// gradients and are zero and one on padding.
    fn token_loss(&self, log_probs: Tensor<2>, ratio: Tensor<2>, advantages: Tensor<2>) -> Tensor<2>;

    /// The bound that holds a token of this ratio and advantage, for the log.
    fn clipped(&self, ratio: f32, advantage: f32) -> Option<Bound>;
}

/// Ratio x surrogate x KL x entropy: everything between log-probabilities and token losses.
#[derive(Debug, Clone)]
pub struct Loss {
    /// Where the importance ratio is taken.
    pub ratio: RatioLevel,
    /// What is made of it.
    pub surrogate: Arc<dyn Surrogate>,
    /// Distance to a reference policy; `None` means that no reference policy exists.
    pub kl: Option<KlPenalty>,
    /// Coefficient of the mean entropy over all tokens, which is subtracted from the loss; `0` turns it off.
    pub entropy_bonus: f32,
}

impl Loss {
    /// Loss of every token.
    ///
    /// # Errors
    /// [`Error::MissingReference`] when there is a KL penalty and the input has no reference log-probabilities.
    pub fn forward(&self, input: LossInput) -> Result<TokenLoss, Error> {
        let LossInput { log_probs, old_log_probs, ref_log_probs, entropy, advantages, mask } = input;
        // Masking comes first: a padded log-ratio may overflow in exp, and infinity times a zero mask is NaN.
        let log_probs = log_probs * mask.clone();
        let log_ratio = log_probs.clone() - old_log_probs * mask.clone();
        let importance = self.ratio.importance(log_ratio, mask.clone());
        let kl = match (self.kl, ref_log_probs) {
            (None, _) => None,
            (Some(_), None) => return Err(Error::MissingReference),
            (Some(penalty), Some(reference)) => {
                let estimate = k3(log_probs.clone(), reference * mask.clone());
                Some(if penalty.ratio_weighted { estimate * importance.clone() } else { estimate })
            }
        };
        let ratio = self.ratio.token_form(log_probs.clone(), importance);
        let surrogate = self.surrogate.token_loss(log_probs, ratio.clone(), advantages);
        Ok(TokenLoss { surrogate, kl, entropy, ratio, mask })
    }

    /// The number to differentiate: sum over tokens of loss times weight, minus the entropy bonus.
    ///
    /// `coefficients` are those of the rows at hand, cut out of the weights of the whole optimizer batch. Returns
    /// `[1]`.
    #[must_use]
    pub fn total(&self, tokens: &TokenLoss, coefficients: &Coefficients) -> Tensor<1> {
        let mut loss = tokens.surrogate.clone();
        if let (Some(penalty), Some(kl)) = (self.kl, &tokens.kl) {
            loss = loss + kl.clone() * penalty.coefficient;
        }
        let rows = coefficients.completions.len();
        let weights = TensorData::new(coefficients.completions.clone(), [rows, 1]);
        let weights = Tensor::<2>::from_data(weights, &tokens.mask.device()) * tokens.mask.clone();
        let total = (loss * weights).sum();
        if self.entropy_bonus == 0.0 {
            return total;
        }
        total - (tokens.entropy.clone() * tokens.mask.clone()).sum() * (self.entropy_bonus * coefficients.entropy)
    }
}
