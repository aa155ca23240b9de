use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// Where the importance ratio between the trained and the sampling policy is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RatioLevel {
    /// One ratio a token (PPO, GRPO).
    #[default]
    Token,
    /// One ratio a completion: the exponential of the mean log-ratio of its tokens (GSPO, arXiv 2507.18071, eq. 7), in
    /// the token form of that paper (GSPO-token, eq. 14): the value is the completion's, the gradient of each token
    /// flows through that token. With equal token advantages both forms have the same gradient; only the token form
    /// lets token advantages differ.
    Sequence,
}

impl RatioLevel {
    /// The ratio as a plain function of the log-probabilities: `[completions, tokens]` at the token level,
    /// `[completions, 1]` at the sequence level.
    pub(super) fn importance(self, log_ratio: Tensor<2>, mask: Tensor<2>) -> Tensor<2> {
        match self {
            Self::Token => log_ratio.exp(),
            Self::Sequence => (log_ratio.sum_dim(1) / mask.sum_dim(1).clamp_min(1.0)).exp(),
        }
    }

    /// The ratio the surrogate sees, `[completions, tokens]`.
    pub(super) fn token_form(self, log_probs: Tensor<2>, importance: Tensor<2>) -> Tensor<2> {
        match self {
            Self::Token => importance,
            // A factor whose value is one and whose gradient is that of the token's log-probability.
            Self::Sequence => (log_probs.clone() - log_probs.detach()).exp() * importance.detach(),
        }
    }
}
