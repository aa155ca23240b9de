use serde::{Deserialize, Serialize};

use super::{AdvantageEstimator, AdvantageInput, Deviation, mean};
use crate::quantile::quantile;
use crate::{Error, Reward};

/// Durian, difficulty-aware group normalisation (arXiv 2602.21743): prompts of similar difficulty share a standard
/// deviation, so that a group of one right and seven wrong answers is not blown up by its own.
///
/// Difficulty is told twice: by the [spectral entropy](super::spectral_entropy) of what a prompt shows, in bins of a
/// quarter, a half and a quarter of the groups, and by how likely its completions are (eq. 14), in bins of equally many.
/// The advantage is a sum of three: the reward minus the mean of its group, over the deviation of the group, of its bin by
/// entropy, and of its bin by confidence, weighted. Groups whose rewards are all equal have no part in a deviation, though
/// in the quantiles that bound the bins.
///
/// The paper takes the entropy of the patch features of the policy's vision tower. What a policy hands out is its own to
/// say; `firesight-train` has those that the decoder gets, after the tower's merger.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Durian {
    /// Weight of the advantage by the group's own deviation.
    pub own: f64,
    /// Of that by the bin of its entropy.
    pub perceptual: f64,
    /// Of that by the bin of its confidence.
    pub confidence: f64,
    /// Bins by confidence.
    pub bins: usize,
    /// Takes the mean log-probability of a token for confidence. The paper sums them, which follows length.
    pub mean_log_prob: bool,
}

impl Default for Durian {
    /// 0.4, 0.3, 0.3, the best of the paper's settings on MathVerse, and 12 bins, the least of its good ones; it declares
    /// no default.
    fn default() -> Self {
        Self { own: 0.4, perceptual: 0.3, confidence: 0.3, bins: 12, mean_log_prob: false }
    }
}

impl AdvantageEstimator for Durian {
    fn advantages(&self, batch: &AdvantageInput<'_>) -> Vec<Vec<f32>> {
        let total = |reward: &Reward| reward.total().map(f64::from);
        let groups: Vec<Vec<Option<f64>>> =
            batch.rewards.iter().map(|group| group.iter().map(total).collect()).collect();
        let entropies = batch.perceptual_entropy.unwrap_or_default();
        // Of groups that nobody knows anything about, all are alike.
        let by_entropy = if entropies.is_empty() { vec![0; groups.len()] } else { thirds(entropies) };
        let by_confidence = quantile_bins(&self.confidences(batch, groups.len()), self.bins);
        let of_bins = |bins: &[usize]| -> Vec<f64> {
            let count = bins.iter().max().map_or(0, |last| last + 1);
            let of_bin = |bin| {
                let members = groups.iter().zip(bins).filter(|(_, other)| **other == bin).map(|(group, _)| group);
                let uneven = members.filter(|group| known(group).any(|value| Some(value) != known(group).next()));
                Deviation::Sample.of(uneven.flat_map(|group| known(group)))
            };
            (0..count).map(of_bin).collect()
        };
        let (perceptual, confident) = (of_bins(&by_entropy), of_bins(&by_confidence));
        let advantages = |(index, group): (usize, &Vec<Option<f64>>)| {
            let (centre, own) = (mean(known(group)), Deviation::Sample.of(known(group)));
            let parts = [
                (self.own, own),
                (self.perceptual, perceptual[by_entropy[index]]),
                (self.confidence, confident[by_confidence[index]]),
            ];
            let factor: f64 = parts.iter().filter(|(_, std)| *std > 0.0).map(|(weight, std)| weight / std).sum();
            group.iter().map(|value| value.map_or(0.0, |value| ((value - centre) * factor) as f32)).collect()
        };
        groups.iter().enumerate().map(advantages).collect()
    }

    fn reads_features(&self) -> bool {
        self.perceptual != 0.0
    }

    fn check(&self) -> Result<(), Error> {
        let weight = |value| (0.0..f64::INFINITY).contains(&value);
        for (setting, value) in [
            ("advantage.own", self.own),
            ("advantage.perceptual", self.perceptual),
            ("advantage.confidence", self.confidence),
        ] {
            Error::unless(setting, value, weight, "a number not below 0")?;
        }
        Error::unless("advantage.bins", self.bins as f64, |bins| bins >= 1.0, "at least 1")
    }
}

impl Durian {
    /// How likely each group's completions are: a mean over them.
    fn confidences(&self, batch: &AdvantageInput<'_>, groups: usize) -> Vec<f64> {
        if batch.log_probs.is_empty() {
            return vec![0.0; groups];
        }
        let of_completion = |log_probs: &&[f32]| {
            let sum: f64 = log_probs.iter().copied().map(f64::from).sum();
            if self.mean_log_prob { sum / log_probs.len().max(1) as f64 } else { sum }
        };
        let drawn = |group: &Vec<&[f32]>| mean(group.iter().filter(|row| !row.is_empty()).map(of_completion));
        batch.log_probs.iter().map(drawn).collect()
    }
}

fn known(group: &[Option<f64>]) -> impl Iterator<Item = f64> + Clone {
    group.iter().filter_map(|&value| value)
}

/// Bins up to the first quartile, between, and from the third on.
fn thirds(values: &[f64]) -> Vec<usize> {
    let at = |share| quantile(values.iter().copied(), share).unwrap_or(0.0);
    let (low, high) = (at(0.25), at(0.75));
    values.iter().map(|&value| usize::from(value > low) + usize::from(value > low && value >= high)).collect()
}

/// Bins of equally many values, but for equal ones, which share a bin.
fn quantile_bins(values: &[f64], bins: usize) -> Vec<usize> {
    let edges: Vec<f64> =
        (1..bins).filter_map(|edge| quantile(values.iter().copied(), edge as f64 / bins as f64)).collect();
    values.iter().map(|value| edges.partition_point(|edge| edge < value)).collect()
}

#[cfg(test)]
mod tests {
    use super::{Durian, quantile_bins, thirds};
    use crate::{AdvantageEstimator as _, AdvantageInput, Reward};

    fn rewards(groups: &[&[f32]]) -> Vec<Vec<Reward>> {
        groups.iter().map(|group| group.iter().map(|&value| Reward::of("right", value)).collect()).collect()
    }

    fn assert_close(found: &[f32], expected: &[f32]) {
        assert!(found.iter().zip(expected).all(|(one, other)| (one - other).abs() < 1e-6), "{found:?}");
    }

    #[test]
    fn two_prompts_of_one_bin_share_a_deviation() {
        // The third has equal rewards, and no part in any deviation.
        let rewards = rewards(&[&[1.0, 1.0, 1.0, 0.0], &[1.0, 0.0, 0.0, 0.0], &[1.0; 4]]);
        let rewards: Vec<&[Reward]> = rewards.iter().map(Vec::as_slice).collect();
        let input = AdvantageInput::of(&rewards);
        let found = |own, perceptual, confidence| {
            Durian { own, perceptual, confidence, bins: 1, ..Durian::default() }.advantages(&input)
        };
        assert_close(&found(0.0, 1.0, 0.0)[0], &[0.467_707, 0.467_707, 0.467_707, -1.403_122]);
        assert_close(&found(1.0, 0.0, 0.0)[0], &[0.5, 0.5, 0.5, -1.5]);
        assert_close(&found(0.4, 0.3, 0.3)[0], &[0.480_624, 0.480_624, 0.480_624, -1.441_873]);
        assert_eq!(found(0.4, 0.3, 0.3)[2], [0.0; 4]);
    }

    #[test]
    fn bins_are_by_entropy_and_by_confidence() {
        assert_eq!(thirds(&[0.1, 0.9, 0.4, 0.5, 0.6]), [0, 2, 0, 1, 2]);
        assert_eq!(thirds(&[0.3; 4]), [0; 4]);
        assert_eq!(quantile_bins(&[-4.0, -1.0, -3.0, -2.0], 2), [0, 1, 0, 1]);
        assert_eq!(quantile_bins(&[-1.0; 3], 4), [0; 3]);
        let rewards = rewards(&[&[1.0, 0.0], &[1.0, 0.0], &[4.0, 0.0], &[4.0, 0.0]]);
        let rewards: Vec<&[Reward]> = rewards.iter().map(Vec::as_slice).collect();
        let (sure, unsure) = ([-0.1f32].as_slice(), [-0.2f32; 30].as_slice());
        let log_probs = [vec![sure; 2], vec![sure; 2], vec![unsure; 2], vec![unsure; 2]];
        let entropies = [0.1, 0.1, 0.9, 0.9];
        let input = AdvantageInput { rewards: &rewards, log_probs: &log_probs, perceptual_entropy: Some(&entropies) };
        let one_bin_each = Durian { own: 0.0, perceptual: 0.5, confidence: 0.5, bins: 2, ..Durian::default() };
        let found = one_bin_each.advantages(&input);
        // Each kind by itself: deviations of (1, 0, 1, 0) and (4, 0, 4, 0).
        assert_close(&found.concat(), &[[0.866_025, -0.866_025]; 4].concat());
        // Bins by entropy that have a group of each kind: deviations of (1, 0, 4, 0).
        let entropies = [0.1, 0.9, 0.1, 0.9];
        let input = AdvantageInput { perceptual_entropy: Some(&entropies), ..input };
        let by = |perceptual, confidence| {
            Durian { perceptual, confidence, ..one_bin_each.clone() }.advantages(&input).concat()
        };
        let (small, large) = ([0.264_135, -0.264_135], [1.056_541, -1.056_541]);
        assert_close(&by(1.0, 0.0), &[small, small, large, large].concat());
        assert_close(&by(0.0, 1.0), &[[0.866_025, -0.866_025]; 4].concat());
    }

    #[test]
    fn confidence_is_a_sum_over_tokens_or_a_mean_and_an_expert_has_none() {
        let (short, long) = ([-0.3f32].as_slice(), [-0.2f32; 30].as_slice());
        let log_probs = [vec![short, &[]], vec![long, long]];
        let input = AdvantageInput { log_probs: &log_probs, ..AdvantageInput::of(&[]) };
        let found = |mean_log_prob| {
            let durian = Durian { mean_log_prob, ..Durian::default() };
            durian.confidences(&input, 2).into_iter().map(|value| value as f32).collect::<Vec<_>>()
        };
        assert_close(&found(false), &[-0.3, -6.0]);
        assert_close(&found(true), &[-0.3, -0.2]);
    }
}
