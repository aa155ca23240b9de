//! The loss of every token, before aggregation.

mod cispo;
mod clip;
mod fipo;
mod ratio;
mod sapo;
mod surrogate;
#[cfg(test)]
mod tests;
mod vespo;

use burn::tensor::{Tensor, TensorData};

pub use cispo::Cispo;
pub use clip::Clip;
pub use fipo::Fipo;
pub use ratio::RatioLevel;
pub use sapo::Sapo;
pub use surrogate::{Bound, PolicyLoss, Surrogate, SurrogateInput};
pub use vespo::Vespo;

use crate::{Algorithm, Coefficients, Error, KlPlacement};

/// What the loss of a batch is made of. Every tensor is `[completions, tokens]`, right-padded.
///
/// Padding may hold any finite number, as `mask` removes it before anything is done with it.
#[derive(Debug, Clone)]
pub struct LossInput {
    /// Log-probabilities under the policy being trained; carry gradients.
    pub log_probs: Tensor<2>,
    /// Under the policy that sampled.
    pub old_log_probs: Tensor<2>,
    /// Under the reference policy; needed with a KL penalty in the loss.
    pub ref_log_probs: Option<Tensor<2>>,
    /// Entropy of each token's distribution, in nats; carries gradients when there is an entropy bonus.
    pub entropy: Tensor<2>,
    /// Advantage of the completion times the credit weight of the token.
    pub advantages: Tensor<2>,
    /// One on the tokens that are trained on, zero elsewhere.
    pub mask: Tensor<2>,
    /// One on those of them that keep their surrogate and their entropy bonus, see [`Algorithm::top_entropy`]; `None`
    /// is all.
    pub kept: Option<Tensor<2>>,
    /// One on tokens that an expert wrote, see [`Algorithm::expert`]; `None` where there are none.
    pub expert: Option<Tensor<2>>,
}

/// The loss of every token; `[completions, tokens]`, finite on padding and to be masked there.
#[derive(Debug, Clone)]
pub struct TokenLoss {
    /// The surrogate, to be minimised.
    pub surrogate: Tensor<2>,
    /// The KL estimate without its coefficient, weighted by the ratio if so asked; with a penalty in the loss only.
    pub kl: Option<Tensor<2>>,
    /// Entropy in nats.
    pub entropy: Tensor<2>,
    /// The importance ratio.
    pub ratio: Tensor<2>,
    mask: Tensor<2>,
    kept: Option<Tensor<2>>,
}

/// Ratio x surrogate x KL x entropy: everything between log-probabilities and the loss.
impl Algorithm {
    /// Loss of every token.
    ///
    /// # Errors
    /// [`Error::MissingReference`] when there is a KL penalty in the loss and the input has no reference
    /// log-probabilities.
    pub fn token_loss(&self, input: LossInput) -> Result<TokenLoss, Error> {
        let LossInput { log_probs, old_log_probs, ref_log_probs, entropy, advantages, mask, kept, expert } = input;
        // Masking comes first: a padded log-ratio may overflow in exp, and infinity times a zero mask is NaN.
        let log_probs = log_probs * mask.clone();
        let log_ratio = log_probs.clone() - old_log_probs * mask.clone();
        let importance = self.ratio.importance(log_ratio.clone(), mask.clone());
        let penalty = self.kl.filter(|penalty| penalty.placement != KlPlacement::Reward);
        let kl = match (penalty, ref_log_probs) {
            (None, _) => None,
            (Some(_), None) => return Err(Error::MissingReference),
            (Some(penalty), Some(reference)) => {
                let estimate = penalty.estimator.estimate(log_probs.clone(), reference * mask.clone());
                let weighted = penalty.placement == KlPlacement::RatioWeightedLoss;
                Some(if weighted { estimate * importance.clone() } else { estimate })
            }
        };
        let ratio = self.ratio.token_form(log_probs.clone(), importance);
        let stale = self.off_policy_threshold.map(|threshold| {
            let divergence = log_ratio.clone().detach().neg().sum_dim(1) / mask.clone().sum_dim(1).clamp_min(1.0);
            divergence.greater_scalar(threshold).expand(mask.dims()).bool_and(advantages.clone().lower_scalar(0.0))
        });
        let of_expert = expert
            .zip(self.expert)
            .map(|(expert, tgrl)| (expert.bool(), tgrl.token_loss(log_probs.clone(), advantages.clone())));
        let terms = SurrogateInput { log_probs, log_ratio, ratio: ratio.clone(), advantages };
        let mut surrogate = self.surrogate.token_loss(terms);
        if let Some((expert, loss)) = of_expert {
            surrogate = surrogate.mask_where(expert, loss);
        }
        if let Some(stale) = stale {
            surrogate = surrogate.mask_fill(stale, 0.0);
        }
        if let Some(kept) = &kept {
            surrogate = surrogate * kept.clone();
        }
        Ok(TokenLoss { surrogate, kl, entropy, ratio, mask, kept })
    }

    /// The number to differentiate: sum over tokens of loss times weight, minus the entropy bonus.
    ///
    /// `coefficients` are those of the rows at hand, cut out of the weights of the whole optimizer batch. Returns
    /// `[1]`.
    #[must_use]
    pub fn total_loss(&self, tokens: &TokenLoss, coefficients: &Coefficients) -> Tensor<1> {
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
        let mut entropy = tokens.entropy.clone() * tokens.mask.clone();
        if let Some(kept) = &tokens.kept {
            entropy = entropy * kept.clone();
        }
        total - entropy.sum() * (self.entropy_bonus * coefficients.entropy)
    }
}
