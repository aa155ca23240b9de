use serde::{Deserialize, Serialize};

use super::{AdvantageEstimator, AdvantageInput, Deviation, mean};

/// What a reward is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Baseline {
    /// The mean of its group (GRPO, arXiv 2402.03300, section 4.1.2).
    #[default]
    GroupMean,
    /// The mean of the others of its group (RLOO, arXiv 2402.14740, section 2): without the bias that a reward has
    /// towards a mean it is part of. That is the centred reward times n / (n - 1).
    LeaveOneOut,
    /// The mean of the batch (REINFORCE++, arXiv 2501.03262): groups of easy prompts are raised as a whole. A group of
    /// equal rewards then has advantages.
    BatchMean,
}

/// What a centred reward is divided by; [`Deviation::EPSILON`] is added to every deviation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scale {
    /// The standard deviation of the group (GRPO).
    #[default]
    GroupStd,
    /// The standard deviation of all rewards of the batch: groups that are nearly solved or nearly hopeless are not
    /// blown up (arXiv 2508.08221).
    BatchStd,
    /// The standard deviation of all centred rewards of the batch (REINFORCE++ with a group baseline, arXiv
    /// 2501.03262): what differs between prompts does not shrink it.
    CentredStd,
    /// One (Dr. GRPO, arXiv 2503.20783: dividing by the group's deviation favours easy and hard prompts).
    None,
}

/// Total reward minus a [`Baseline`], over a [`Scale`]. Several parts of a reward are summed before.
///
/// With a baseline of the group, the advantages of a group whose rewards are all equal are exactly zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Relative {
    /// What is subtracted.
    pub baseline: Baseline,
    /// The divisor.
    pub scale: Scale,
    /// The divisor of deviations.
    pub deviation: Deviation,
}

impl AdvantageEstimator for Relative {
    fn advantages(&self, batch: &AdvantageInput<'_>) -> Vec<Vec<f32>> {
        let rewards = batch.rewards;
        let totals: Vec<Vec<Option<f64>>> =
            rewards.iter().map(|group| group.iter().map(|reward| reward.total().map(f64::from)).collect()).collect();
        let known = || totals.iter().flatten().filter_map(|&total| total);
        let batch_mean = mean(known());
        let centre = |group: &Vec<Option<f64>>| -> Vec<Option<f64>> {
            let count = group.iter().flatten().count() as f64;
            let group_mean = mean(group.iter().filter_map(|&total| total));
            let centred = |total: f64| match self.baseline {
                Baseline::GroupMean => total - group_mean,
                // A reward that is alone has no others to be compared with, and no difference to its mean either.
                Baseline::LeaveOneOut => (total - group_mean) * (count / (count - 1.0).max(1.0)),
                Baseline::BatchMean => total - batch_mean,
            };
            group.iter().map(|total| total.map(centred)).collect()
        };
        let centred: Vec<Vec<Option<f64>>> = totals.iter().map(centre).collect();
        let shared = match self.scale {
            Scale::BatchStd => self.deviation.of(known()) + Deviation::EPSILON,
            Scale::CentredStd => {
                self.deviation.of(centred.iter().flatten().filter_map(|&value| value)) + Deviation::EPSILON
            }
            Scale::GroupStd | Scale::None => 1.0,
        };
        totals
            .iter()
            .zip(centred)
            .map(|(totals, centred)| {
                let divisor = match self.scale {
                    Scale::GroupStd => self.deviation.of(totals.iter().filter_map(|&total| total)) + Deviation::EPSILON,
                    Scale::BatchStd | Scale::CentredStd | Scale::None => shared,
                };
                centred.into_iter().map(|value| value.map_or(0.0, |value| (value / divisor) as f32)).collect()
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{AdvantageEstimator, AdvantageInput, Baseline, Deviation, Relative, Scale};
    use crate::Reward;

    fn advantages_of(estimator: Relative, rewards: &[&[f32]]) -> Vec<Vec<f32>> {
        let rewards: Vec<Vec<Reward>> =
            rewards.iter().map(|group| group.iter().map(|&value| Reward::of("total", value)).collect()).collect();
        estimator.advantages(&AdvantageInput::of(&rewards.iter().map(Vec::as_slice).collect::<Vec<_>>()))
    }

    fn advantages(scale: Scale, rewards: &[&[f32]]) -> Vec<Vec<f32>> {
        advantages_of(Relative { scale, ..Relative::default() }, rewards)
    }

    #[test]
    fn group_std_has_divisor_n_minus_one() {
        // Mean 0.25, squared deviations 3/16 + 9/16 = 3/4, over 3: std 0.5.
        let found = advantages(Scale::GroupStd, &[&[1.0, 0.0, 0.0, 0.0]]);
        assert_eq!(found, [[0.75f64, -0.25, -0.25, -0.25].map(|centred| (centred / 0.5001) as f32)]);
    }

    #[test]
    fn population_deviation_has_divisor_n() {
        let estimator = Relative { deviation: Deviation::Population, ..Relative::default() };
        // Deviations of 0.5 on both sides: std 0.5.
        let one = (0.5 / 0.5001) as f32;
        assert_eq!(advantages_of(estimator, &[&[1.0, 0.0]]), [[one, -one]]);
    }

    #[test]
    fn batch_std_is_shared_and_means_are_not() {
        // Batch 2, 0, 5, 5: mean 3, squared deviations 1 + 9 + 4 + 4 = 18, over 3: std sqrt(6).
        let found = advantages(Scale::BatchStd, &[&[2.0, 0.0], &[5.0, 5.0]]);
        let one = (1.0 / (6.0f64.sqrt() + 1e-4)) as f32;
        assert_eq!(found, [[one, -one], [0.0, 0.0]]);
    }

    #[test]
    fn centred_std_does_not_see_what_differs_between_groups() {
        // Centred 1, -1, 0, 0: squared deviations 2, over 3.
        let found = advantages(Scale::CentredStd, &[&[2.0, 0.0], &[5.0, 5.0]]);
        let one = (1.0 / ((2.0f64 / 3.0).sqrt() + 1e-4)) as f32;
        assert_eq!(found, [[one, -one], [0.0, 0.0]]);
    }

    #[test]
    fn no_scale_only_centres() {
        assert_eq!(advantages(Scale::None, &[&[1.0, 0.0, 0.0, 1.0]]), [[0.5, -0.5, -0.5, 0.5]]);
    }

    #[test]
    fn leave_one_out_compares_with_the_others() {
        let estimator = Relative { baseline: Baseline::LeaveOneOut, scale: Scale::None, ..Relative::default() };
        // 3 against 0 and 0; 0 against 3 and 0.
        assert_eq!(advantages_of(estimator, &[&[3.0, 0.0, 0.0], &[2.0]]), [vec![3.0, -1.5, -1.5], vec![0.0]]);
    }

    #[test]
    fn batch_mean_leaves_a_group_its_difference_from_the_others() {
        let estimator = Relative { baseline: Baseline::BatchMean, scale: Scale::None, ..Relative::default() };
        assert_eq!(advantages_of(estimator, &[&[1.0, 1.0], &[0.0, 2.0]]), [[0.0, 0.0], [-1.0, 1.0]]);
    }

    #[test]
    fn equal_rewards_have_no_advantage_even_where_the_value_is_no_binary_fraction() {
        for baseline in [Baseline::GroupMean, Baseline::LeaveOneOut] {
            let estimator = Relative { baseline, ..Relative::default() };
            assert_eq!(advantages_of(estimator, &[&[0.1; 7]]), [[0.0; 7]]);
        }
    }

    #[test]
    fn a_constant_added_to_a_group_changes_nothing() {
        let (low, high) = ([1.0, 0.0, 0.25, 0.5], [4.0, 3.0, 3.25, 3.5]);
        assert_eq!(advantages(Scale::GroupStd, &[&low]), advantages(Scale::GroupStd, &[&high]));
    }

    #[test]
    fn who_abstains_moves_no_mean_and_gets_nothing() {
        let with = [Reward::of("a", 1.0), Reward::abstain(), Reward::of("a", 0.0)];
        let without = [Reward::of("a", 1.0), Reward::of("a", 0.0)];
        let found = Relative::default().advantages(&AdvantageInput::of(&[&with]));
        let expected = Relative::default().advantages(&AdvantageInput::of(&[&without]));
        assert_eq!(found, [[expected[0][0], 0.0, expected[0][1]]]);
        assert_eq!(
            Relative::default().advantages(&AdvantageInput::of(&[&[Reward::abstain(), Reward::abstain()]])),
            [[0.0, 0.0]]
        );
    }
}
