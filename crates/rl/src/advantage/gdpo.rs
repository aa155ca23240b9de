use serde::{Deserialize, Serialize};

use super::{AdvantageEstimator, AdvantageInput, Deviation, mean};
use crate::Reward;

/// GDPO (arXiv 2601.05242): every part of the reward is centred and scaled in its group by itself, their weighted sum
/// once more over the batch. Different sums of parts then stay different advantages, where normalising the sum makes
/// them alike.
///
/// A part that abstains adds nothing to its completion. All rewards of a batch have their parts in the same order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Gdpo {
    /// The divisor of deviations.
    pub deviation: Deviation,
}

impl AdvantageEstimator for Gdpo {
    fn advantages(&self, batch: &AdvantageInput<'_>) -> Vec<Vec<f32>> {
        let rewards = batch.rewards;
        let sums: Vec<Vec<Option<f64>>> = rewards.iter().map(|group| self.sums(group)).collect();
        let known = || sums.iter().flatten().filter_map(|&sum| sum);
        let (mean, deviation) = (mean(known()), self.deviation.of(known()) + Deviation::EPSILON);
        let scaled = |sum: &Option<f64>| sum.map_or(0.0, |sum| ((sum - mean) / deviation) as f32);
        sums.iter().map(|group| group.iter().map(scaled).collect()).collect()
    }
}

impl Gdpo {
    /// Weighted sum of the normalised parts of each completion of a group; `None` where all parts abstain.
    fn sums(self, group: &[Reward]) -> Vec<Option<f64>> {
        let mut sums: Vec<Option<f64>> = group.iter().map(|reward| reward.total().map(|_| 0.0)).collect();
        let parts = group.iter().map(|reward| reward.parts.len()).max().unwrap_or(0);
        for part in 0..parts {
            let found = |reward: &Reward| {
                let part = reward.parts.get(part).filter(|part| part.weight != 0.0)?;
                Some((f64::from(part.value?), f64::from(part.weight)))
            };
            let values = || group.iter().filter_map(found).map(|(value, _)| value);
            let (mean, deviation) = (mean(values()), self.deviation.of(values()) + Deviation::EPSILON);
            for (sum, reward) in sums.iter_mut().zip(group) {
                if let (Some(sum), Some((value, weight))) = (sum, found(reward)) {
                    *sum += weight * (value - mean) / deviation;
                }
            }
        }
        sums
    }
}

#[cfg(test)]
mod tests {
    use super::{AdvantageEstimator, AdvantageInput, Gdpo, Reward};

    #[test]
    fn parts_are_normalised_before_they_are_summed() {
        let reward = |accuracy: f32, length: f32| Reward::of("accuracy", accuracy).and("length", Some(length), 0.5);
        // Either part is +-1 over sqrt(2) after normalising, whatever its range; their sum is +-1.5 of that, and
        // normalising over the batch gives +-1 over sqrt(2) again.
        let found = Gdpo::default().advantages(&AdvantageInput::of(&[&[reward(1.0, 100.0), reward(0.0, 0.0)]]));
        let one = 0.5f64.sqrt() as f32;
        assert!((found[0][0] - one).abs() < 1e-3 && (found[0][1] + one).abs() < 1e-3, "{found:?}");
        // Opposed parts: 1 - 0.5 of them is left, and the range of the second does not drown the first.
        let found = Gdpo::default().advantages(&AdvantageInput::of(&[&[reward(1.0, 0.0), reward(0.0, 100.0)]]));
        assert!(found[0][0] > 0.5, "{found:?}");
    }
}
