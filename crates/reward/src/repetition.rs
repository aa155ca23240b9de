use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use crate::{Asked, Error, Response, Reward, Score};

/// `kind = "repetition"`: a penalty for n-grams that come again, as Open-R1 has it: `-max_penalty` times the share of
/// the n-grams that have occurred before, 1 - different / all.
///
/// N-grams are of words, divided by white space, without regard to case; a response of fewer than `ngram` words has 0.
/// A language that is written without spaces needs another measure. The idea is that of appendix C.2 of arXiv
/// 2502.03373, which punishes the tokens of each repeated n-gram where they stand.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Repetition {
    /// Words of an n-gram (3, as in Open-R1).
    pub ngram: usize,
    /// What a response without end of the same would lose (1.0, as in Open-R1).
    pub max_penalty: f32,
}

impl Default for Repetition {
    fn default() -> Self {
        Self { ngram: 3, max_penalty: 1.0 }
    }
}

impl Repetition {
    pub(crate) fn checked(self) -> Result<Self, Error> {
        if self.ngram == 0 {
            return Err(Error::setting("ngram", "has to be positive"));
        }
        if !(self.max_penalty >= 0.0 && self.max_penalty.is_finite()) {
            return Err(Error::setting(
                "max_penalty",
                "has to be a finite number, 0 or more: the penalty is subtracted",
            ));
        }
        Ok(self)
    }
}

impl Reward for Repetition {
    fn score(&self, _: &Asked<'_>, response: &Response<'_>) -> Result<Score, Error> {
        let lower = response.text.to_lowercase();
        let words: Vec<&str> = lower.split_whitespace().collect();
        let all = words.windows(self.ngram);
        let count = all.len();
        let different = all.collect::<HashSet<_>>().len();
        let repeated = (count - different) as f32 / count.max(1) as f32;
        Ok((-self.max_penalty * repeated).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::value;

    #[test]
    fn the_penalty_is_the_share_of_n_grams_that_come_again() {
        let of =
            |ngram, max_penalty, text| value(&Repetition { ngram, max_penalty }.checked().expect("in range"), text, "");
        // 'a b', 'b a', 'a b', 'b a', 'a b': two of five are new.
        assert!((of(2, 1.0, "a b A  B\na b") + 0.6).abs() < 1e-6);
        assert!((of(2, 0.5, "a b a b a b") + 0.3).abs() < 1e-6);
        assert!((of(3, 1.0, "a a a a a") + 2.0 / 3.0).abs() < 1e-6);
        for text in ["", "a a", "a b c d"] {
            assert!(of(3, 1.0, text).abs() < 1e-6, "{text}");
        }
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        assert!(Repetition { ngram: 0, max_penalty: 1.0 }.checked().is_err());
        for max_penalty in [-1.0, f32::NAN, f32::INFINITY] {
            assert!(Repetition { ngram: 3, max_penalty }.checked().is_err());
        }
    }
}
