//! What answers say about a policy: accuracy, mean@k, pass@k, and how sure one may be of them.

use serde::{Deserialize, Serialize};

use crate::Error;
use crate::advantage::mean;

/// The two-sided 95 % quantile of the standard normal distribution.
const Z: f64 = 1.959_963_984_540_054;

/// A mean over questions with its 95 % confidence interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The mean.
    pub mean: f64,
    /// Lower end of the interval; at least 0.
    pub low: f64,
    /// Upper end of the interval; at most 1.
    pub high: f64,
}

impl Estimate {
    /// The mean of one score a question, each between 0 and 1: right or wrong, the share of right attempts, pass@k.
    ///
    /// The interval speaks of questions that were not asked, so the questions are its independent units. Attempts at
    /// one question are not: they are alike because the question is easy or hard, and counting them as if they were
    /// questions would make any interval as narrow as one likes by asking the same few again.
    ///
    /// It is Wilson's interval (1927), whose ends are the means that the found one lies 1.96 standard errors away from,
    /// for an effective number of questions: `n` times the variance `m (1 - m)` of yes/no answers of that mean over
    /// the variance of the scores, as is done for proportions in surveys (Korn and Graubard, 1998). For yes/no answers
    /// that is Wilson's interval itself. Into the variance goes one question more, of the largest variance there can
    /// be, so that few questions that happen to agree are no certainty; at 0 and at 1, and for one question, what is
    /// left is Wilson's interval for `n` yes/no answers. Over simulated questions of every spread it covers 91 to
    /// 100 % from five questions on and 93 to 97 % from a hundred; the mean plus or minus 1.96 standard errors would
    /// cover as little as a quarter where nearly all answers are wrong.
    ///
    /// Of no questions nothing is known: the mean is 0 and the interval everything.
    #[must_use]
    pub fn of(scores: &[f64]) -> Self {
        let questions = scores.len() as f64;
        if scores.is_empty() {
            return Self { mean: 0.0, low: 0.0, high: 1.0 };
        }
        let mean = mean(scores.iter().copied());
        let largest = mean * (1.0 - mean);
        let deviations: f64 = scores.iter().map(|score| (score - mean).powi(2)).sum();
        let variance = ((deviations + largest) / questions).min(largest);
        let effective = if variance > 0.0 { questions * largest / variance } else { questions };

        let shrink = 1.0 + Z * Z / effective;
        let centre = (mean + Z * Z / (2.0 * effective)) / shrink;
        let half = Z / shrink * (largest / effective + Z * Z / (4.0 * effective * effective)).max(0.0).sqrt();
        // Rounding must not push an end past the mean at 0 and 1, where the two are equal.
        Self { mean, low: (centre - half).clamp(0.0, mean.max(0.0)), high: (centre + half).clamp(mean.min(1.0), 1.0) }
    }
}

/// The probability that at least one of `k` attempts is right, estimated without bias from `attempts` of which
/// `correct` were: `1 - C(n - c, k) / C(n, k)`, arXiv 2107.03374, equation 1. With `k` of 1 it is the share of right
/// attempts.
///
/// # Errors
/// [`Error::Setting`] when `k` is 0 or more than the attempts: nothing can then be said without bias.
pub fn pass_at_k(attempts: usize, correct: usize, k: usize) -> Result<f64, Error> {
    if k == 0 || k > attempts {
        let reason = "pass@k takes k attempts out of those that were made";
        return Err(Error::Setting { setting: "k", value: k.to_string(), reason });
    }
    let wrong = attempts.saturating_sub(correct);
    // The probability of k wrong ones in a row, drawn one after another; binomial coefficients would overflow.
    let all_wrong: f64 = (0..k).map(|drawn| wrong.saturating_sub(drawn) as f64 / (attempts - drawn) as f64).product();
    Ok(1.0 - all_wrong)
}

#[cfg(test)]
mod tests {
    use rand::RngExt;

    use super::{Estimate, pass_at_k};
    use crate::stream;

    fn close(found: Estimate, mean: f64, low: f64, high: f64) {
        for (found, expected) in [(found.mean, mean), (found.low, low), (found.high, high)] {
            assert!((found - expected).abs() < 1e-6, "{found} instead of {expected}");
        }
    }

    fn answers(right: usize, of: usize) -> Vec<f64> {
        (0..of).map(|index| if index < right { 1.0 } else { 0.0 }).collect()
    }

    /// With z² = 3.841459: of n zeros the upper end is z² / (n + z²); at one half the interval is
    /// 1/2 ± z / (2 sqrt(n + z²)).
    #[test]
    fn yes_and_no_have_the_interval_of_wilson() {
        close(Estimate::of(&answers(0, 10)), 0.0, 0.0, 3.841_459 / 13.841_459);
        close(Estimate::of(&answers(10, 10)), 1.0, 10.0 / 13.841_459, 1.0);
        let half = 1.959_964 / (2.0 * 103.841_459f64.sqrt());
        close(Estimate::of(&answers(50, 100)), 0.5, 0.5 - half, 0.5 + half);
        // 8 of 10: centre (0.8 + 0.192073) / 1.384146, half width 1.959964 / 1.384146 * sqrt(0.016 + 0.009604).
        close(Estimate::of(&answers(8, 10)), 0.8, 0.716_740_5 - 0.226_577_9, 0.716_740_5 + 0.226_577_9);
        close(Estimate::of(&[1.0]), 1.0, 1.0 / 4.841_459, 1.0);
        close(Estimate::of(&[]), 0.0, 0.0, 1.0);
    }

    #[test]
    fn one_question_says_as_little_in_fractions() {
        // One half of one question: 1/2 ± z / (2 sqrt(1 + z²)).
        let half = 1.959_964 / (2.0 * 4.841_459f64.sqrt());
        close(Estimate::of(&[0.5]), 0.5, 0.5 - half, 0.5 + half);
    }

    #[test]
    fn scores_that_agree_are_more_certain_but_never_beyond_doubt() {
        // Deviations 0, one pseudo-question of variance 1/4 over 4: four times as many questions as there are.
        let half = 1.959_964 / (2.0 * 19.841_459f64.sqrt());
        close(Estimate::of(&[0.5; 4]), 0.5, 0.5 - half, 0.5 + half);
        // Deviations 4 / 16 and the pseudo-question 1/4, over 4: twice as many.
        let half = 1.959_964 / (2.0 * 11.841_459f64.sqrt());
        close(Estimate::of(&[0.25, 0.75, 0.25, 0.75]), 0.5, 0.5 - half, 0.5 + half);
    }

    /// Questions of every difficulty, few attempts: the interval holds the true mean about as often as it says, and
    /// counting attempts as questions would not.
    #[test]
    fn the_interval_covers_what_it_promises() {
        let (questions, attempts, trials) = (25, 8, 2000);
        let mut numbers = stream(1, 0, 0);
        let (mut held, mut held_by_attempts) = (0, 0);
        for _ in 0..trials {
            let scores: Vec<f64> = (0..questions)
                .map(|_| {
                    let ease: f64 = numbers.random();
                    (0..attempts).filter(|_| numbers.random::<f64>() < ease).count() as f64 / f64::from(attempts)
                })
                .collect();
            let holds = |found: Estimate| i32::from(found.low <= 0.5 && 0.5 <= found.high);
            held += holds(Estimate::of(&scores));
            let right = (scores.iter().sum::<f64>() * f64::from(attempts)).round() as usize;
            held_by_attempts += holds(Estimate::of(&answers(right, (questions * attempts) as usize)));
        }
        let share = |held: i32| f64::from(held) / f64::from(trials);
        assert!((0.935..0.97).contains(&share(held)), "{}", share(held));
        assert!(share(held_by_attempts) < 0.8, "{}", share(held_by_attempts));
    }

    #[test]
    fn pass_at_k_is_the_share_of_subsets_with_a_right_answer() {
        for attempts in 1..=8_usize {
            for correct in 0..=attempts {
                for k in 1..=attempts {
                    let subsets = (0..1_u32 << attempts).filter(|subset| subset.count_ones() as usize == k);
                    let right = (1_u32 << correct) - 1;
                    let (passed, all) = subsets
                        .fold((0, 0), |(passed, all), subset| (passed + i32::from(subset & right != 0), all + 1));
                    let found = pass_at_k(attempts, correct, k).unwrap();
                    let expected = f64::from(passed) / f64::from(all);
                    assert!((found - expected).abs() < 1e-12, "{attempts} {correct} {k}: {found} {expected}");
                }
            }
        }
    }

    #[test]
    fn pass_at_k_of_many_attempts_does_not_overflow() {
        // One of 1000 right, half of them taken.
        assert!((pass_at_k(1000, 1, 500).unwrap() - 0.5).abs() < 1e-9);
        assert_eq!(pass_at_k(1000, 0, 1000).unwrap(), 0.0);
        assert_eq!(pass_at_k(1000, 1, 1000).unwrap(), 1.0);
    }

    #[test]
    fn pass_at_k_beyond_the_attempts_is_refused() {
        for k in [0, 5] {
            let error = pass_at_k(4, 4, k).unwrap_err().to_string();
            assert!(error.contains(&format!("k is {k}")), "{error}");
        }
    }
}
