use serde::{Deserialize, Serialize};

/// How token losses become one number.
///
/// Every choice is a constant per completion that the lengths alone decide, so it is known before the forward pass
/// and computed once over the whole optimizer batch. Any split of that batch into micro-batches then has the same
/// gradient.
///
/// With N completions of lengths T_i, a token of completion i weighs
///
/// | | weight | from |
/// |---|---|---|
/// | [`SequenceMean`](Self::SequenceMean) | 1 / (N T_i) | GRPO, arXiv 2402.03300, eq. 3; GSPO, arXiv 2507.18071, eq. 5 |
/// | [`TokenMean`](Self::TokenMean) | 1 / sum_j T_j | DAPO, arXiv 2503.14476, eq. 8 |
/// | [`Constant`](Self::Constant) | 1 / (N L) | Dr. GRPO, arXiv 2503.20783 |
/// | [`SequenceSum`](Self::SequenceSum) | 1 / N | LUSPO, arXiv 2602.05261; RLOO, arXiv 2402.14740 |
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Aggregation {
    /// Mean over completions of the mean over their tokens: a token of a short answer weighs more.
    SequenceMean,
    /// Mean over all tokens of the optimizer batch: every token weighs the same.
    TokenMean,
    /// Sum over tokens divided by one constant length.
    Constant {
        /// The constant L, usually the longest completion allowed, in tokens.
        max_tokens: usize,
    },
    /// Mean over completions of the sum over their tokens.
    SequenceSum,
}

/// The weights of a batch, see [`Aggregation::coefficients`].
#[derive(Debug, Clone, PartialEq)]
pub struct Coefficients {
    /// Weight of each token of the surrogate and of the KL penalty, one number a completion.
    pub completions: Vec<f32>,
    /// Weight of each token of the entropy bonus, which is a mean over all tokens whatever the aggregation.
    pub entropy: f32,
}

impl Aggregation {
    /// Weights for a whole optimizer batch, given the length in tokens of all its completions.
    ///
    /// An empty completion has no tokens to weigh, but counts among the N.
    #[must_use]
    pub fn coefficients(self, lengths: &[usize]) -> Coefficients {
        let completions = lengths.len() as f64;
        let per_token = 1.0 / (lengths.iter().sum::<usize>().max(1) as f64);
        let weight = |length: usize| match self {
            Self::SequenceMean => 1.0 / (completions * length.max(1) as f64),
            Self::TokenMean => per_token,
            Self::Constant { max_tokens } => 1.0 / (completions * max_tokens.max(1) as f64),
            Self::SequenceSum => 1.0 / completions,
        };
        Coefficients {
            completions: lengths.iter().map(|&length| weight(length) as f32).collect(),
            entropy: per_token as f32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Aggregation;

    #[test]
    fn weights_of_three_completions() {
        let lengths = [4, 1, 0];
        let weights = |aggregation: Aggregation| aggregation.coefficients(&lengths).completions;
        assert_eq!(weights(Aggregation::SequenceMean), [1.0 / 12.0, 1.0 / 3.0, 1.0 / 3.0]);
        assert_eq!(weights(Aggregation::TokenMean), [0.2, 0.2, 0.2]);
        assert_eq!(weights(Aggregation::Constant { max_tokens: 8 }), [1.0 / 24.0; 3]);
        assert_eq!(weights(Aggregation::SequenceSum), [1.0 / 3.0; 3]);
        assert_eq!(Aggregation::SequenceMean.coefficients(&lengths).entropy, 0.2);
    }
}
