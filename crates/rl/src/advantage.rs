use std::fmt::Debug;

/// Turns the rewards of a whole batch of groups into one advantage per completion.
pub trait AdvantageEstimator: Debug + Send + Sync {
    /// `rewards[g][i]` is the reward of completion `i` of group `g`; the result has the same shape.
    fn advantages(&self, rewards: &[Vec<f32>]) -> Vec<Vec<f32>>;
}

/// What a centred reward is divided by.
///
/// Standard deviations are those of a sample (divisor n - 1), and [`Scale::EPSILON`] is added to them. Published
/// formulas leave the divisor open or use n, which makes every advantage of a group larger by sqrt(n / (n - 1)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Scale {
    /// The standard deviation of the group (GRPO).
    #[default]
    GroupStd,
    /// The standard deviation of all rewards of the batch: groups that are nearly solved or nearly hopeless are not
    /// blown up.
    BatchStd,
    /// One (Dr. GRPO, arXiv 2503.20783: dividing by the group's deviation favours easy and hard prompts).
    None,
}

impl Scale {
    /// Added to a standard deviation before dividing.
    pub const EPSILON: f64 = 1e-4;
}

/// Reward minus the mean of its group, over a [`Scale`]: GRPO, arXiv 2402.03300, section 4.1.2.
///
/// The advantages of a group whose rewards are all equal are exactly zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GroupRelative {
    /// The divisor.
    pub scale: Scale,
}

impl AdvantageEstimator for GroupRelative {
    fn advantages(&self, rewards: &[Vec<f32>]) -> Vec<Vec<f32>> {
        let batch = || rewards.iter().flatten().map(|&reward| f64::from(reward));
        let batch_std = sample_std(batch());
        rewards
            .iter()
            .map(|group| {
                let values = || group.iter().map(|&reward| f64::from(reward));
                let mean = mean(values());
                let divisor = match self.scale {
                    Scale::GroupStd => sample_std(values()) + Scale::EPSILON,
                    Scale::BatchStd => batch_std + Scale::EPSILON,
                    Scale::None => 1.0,
                };
                values().map(|reward| ((reward - mean) / divisor) as f32).collect()
            })
            .collect()
    }
}

/// Mean; zero of nothing. A sum of equal `f32` values is exact in `f64`, which is what makes their mean equal to them.
pub(crate) fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0usize), |(sum, count), value| (sum + value, count + 1));
    if count == 0 { 0.0 } else { sum / count as f64 }
}

/// Standard deviation with divisor n - 1; zero of fewer than two values.
pub(crate) fn sample_std(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let count = values.clone().count();
    if count < 2 {
        return 0.0;
    }
    let mean = mean(values.clone());
    (values.map(|value| (value - mean).powi(2)).sum::<f64>() / (count - 1) as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::{AdvantageEstimator, GroupRelative, Scale};

    fn advantages(scale: Scale, rewards: &[&[f32]]) -> Vec<Vec<f32>> {
        GroupRelative { scale }.advantages(&rewards.iter().map(|group| group.to_vec()).collect::<Vec<_>>())
    }

    #[test]
    fn group_std_has_divisor_n_minus_one() {
        // Mean 0.25, squared deviations 3/16 + 9/16 = 3/4, over 3: std 0.5.
        let found = advantages(Scale::GroupStd, &[&[1.0, 0.0, 0.0, 0.0]]);
        assert_eq!(found, [[0.75f64, -0.25, -0.25, -0.25].map(|centred| (centred / 0.5001) as f32)]);
    }

    #[test]
    fn batch_std_is_shared_and_means_are_not() {
        // Batch 2, 0, 5, 5: mean 3, squared deviations 1 + 9 + 4 + 4 = 18, over 3: std sqrt(6).
        let found = advantages(Scale::BatchStd, &[&[2.0, 0.0], &[5.0, 5.0]]);
        let one = (1.0 / (6.0f64.sqrt() + 1e-4)) as f32;
        assert_eq!(found, [[one, -one], [0.0, 0.0]]);
    }

    #[test]
    fn no_scale_only_centres() {
        assert_eq!(advantages(Scale::None, &[&[1.0, 0.0, 0.0, 1.0]]), [[0.5, -0.5, -0.5, 0.5]]);
    }

    #[test]
    fn equal_rewards_have_no_advantage_even_where_the_value_is_no_binary_fraction() {
        assert_eq!(advantages(Scale::GroupStd, &[&[0.1; 7]]), [[0.0; 7]]);
    }

    #[test]
    fn a_constant_added_to_a_group_changes_nothing() {
        let (low, high) = ([1.0, 0.0, 0.25, 0.5], [4.0, 3.0, 3.25, 3.5]);
        assert_eq!(advantages(Scale::GroupStd, &[&low]), advantages(Scale::GroupStd, &[&high]));
    }
}
