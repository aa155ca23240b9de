use serde::{Deserialize, Serialize};

use super::{AdvantageEstimator, AdvantageInput, Deviation, Relative, Scale, mean};
use crate::quantile::quantile;
use crate::{Error, Reward};

/// The log-tamed combination of rewards of PaCo-RL (arXiv 2512.04784): a part of the reward whose values are spread widely
/// for their mean is replaced by ln(1 + r), so that it does not drown the others; then GRPO, by default with the deviation
/// of the whole batch.
///
/// A part's spread is its population deviation over its mean, over all completions of the batch. Values below zero, which
/// the paper does not have, become -ln(1 - r). The deviation that advantages are divided by is [`Relative`]'s, of a sample;
/// the published code takes the population's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Paco {
    /// Which parts are tamed.
    pub tame: Tame,
    /// What the sum of the parts goes through.
    pub relative: Relative,
}

/// The spread that a part has to exceed to be tamed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tame {
    /// The mean of all parts' spreads.
    #[default]
    AboveMean,
    /// Their median.
    AboveMedian,
    /// A number.
    Above(f64),
}

impl Default for Paco {
    /// Above the mean of the spreads; means of groups, the deviation of the batch.
    fn default() -> Self {
        Self { tame: Tame::AboveMean, relative: Relative { scale: Scale::BatchStd, ..Relative::default() } }
    }
}

impl Paco {
    /// The rewards with parts that are spread too widely tamed.
    fn tamed(&self, rewards: &[&[Reward]]) -> Vec<Vec<Reward>> {
        let mut names: Vec<&str> = Vec::new();
        let parts = || rewards.iter().copied().flatten().flat_map(|reward| &reward.parts);
        for part in parts().filter(|part| part.weight != 0.0 && part.value.is_some()) {
            if !names.contains(&part.name.as_str()) {
                names.push(&part.name);
            }
        }
        let spread = |name: &&str| {
            let values = parts().filter(|part| part.name == *name).filter_map(|part| part.value.map(f64::from));
            Deviation::Population.of(values.clone()) / (mean(values) + 1e-6)
        };
        let spreads: Vec<f64> = names.iter().map(spread).collect();
        let threshold = match self.tame {
            Tame::AboveMean => mean(spreads.iter().copied()),
            Tame::AboveMedian => quantile(spreads.iter().copied(), 0.5).unwrap_or(0.0),
            Tame::Above(threshold) => threshold,
        };
        let wide: Vec<&str> =
            names.into_iter().zip(spreads).filter(|(_, spread)| *spread > threshold).map(|(name, _)| name).collect();
        let tame = |reward: &Reward| {
            let mut reward = reward.clone();
            for part in reward.parts.iter_mut().filter(|part| wide.contains(&part.name.as_str())) {
                part.value = part.value.map(|value| value.signum() * value.abs().ln_1p());
            }
            reward
        };
        rewards.iter().map(|group| group.iter().map(tame).collect()).collect()
    }
}

impl AdvantageEstimator for Paco {
    fn advantages(&self, batch: &AdvantageInput<'_>) -> Vec<Vec<f32>> {
        let tamed = self.tamed(batch.rewards);
        let rewards: Vec<&[Reward]> = tamed.iter().map(Vec::as_slice).collect();
        self.relative.advantages(&AdvantageInput { rewards: &rewards, ..*batch })
    }

    fn check(&self) -> Result<(), Error> {
        match self.tame {
            Tame::Above(threshold) => Error::unless("advantage.tame.above", threshold, f64::is_finite, "a number"),
            Tame::AboveMean | Tame::AboveMedian => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Paco, Tame};
    use crate::{AdvantageEstimator as _, AdvantageInput, Relative, Reward, Scale};

    fn group(second: [f32; 4]) -> Vec<Reward> {
        second.iter().map(|&second| Reward::of("steady", 1.0).and("rare", Some(second), 1.0)).collect()
    }

    fn sums(paco: &Paco, group: &[Reward]) -> Vec<f32> {
        paco.tamed(&[group])[0].iter().filter_map(Reward::total).collect()
    }

    #[test]
    fn the_part_that_is_spread_too_widely_is_tamed() {
        let rewards = group([0.0, 0.0, 0.0, 4.0]);
        let found = sums(&Paco::default(), &rewards);
        assert!(found[..3] == [1.0; 3] && (found[3] - 2.609_438).abs() < 1e-6, "{found:?}");
        // The spread is 1.732051, of a mean of 0.866026.
        let above = |threshold| sums(&Paco { tame: Tame::Above(threshold), ..Paco::default() }, &rewards)[3];
        assert!(above(1.73) < 2.7 && above(1.74) == 5.0);
        assert!(sums(&Paco { tame: Tame::AboveMedian, ..Paco::default() }, &rewards)[3] < 2.7);
        // Weights come after, and parts that earn nothing tell nothing of the others.
        let weighted: Vec<Reward> = [0.0, 0.0, 0.0, 4.0]
            .map(|rare| Reward::of("steady", 1.0).and("rare", Some(rare), 2.0).and("watched", Some(rare * rare), 0.0))
            .into();
        assert!((sums(&Paco::default(), &weighted)[3] - 4.218_876).abs() < 1e-6);
        let threshold = Paco { tame: Tame::AboveMedian, ..Paco::default() };
        assert!((sums(&threshold, &weighted)[3] - 4.218_876).abs() < 1e-6);
        let below = sums(&Paco { tame: Tame::Above(-10.0), ..Paco::default() }, &group([0.0, 0.0, 0.0, -4.0]));
        assert!((below[3] - (2.0f32.ln() - 5.0f32.ln())).abs() < 1e-6, "{below:?}");
    }

    #[test]
    fn the_deviation_is_that_of_the_batch() {
        let (uneven, even) = (group([0.0, 0.0, 0.0, 4.0]), group([0.0; 4]));
        let found = Paco::default().advantages(&AdvantageInput::of(&[&uneven, &even]));
        let tamed = Paco::default().tamed(&[&uneven, &even]);
        let relative = Relative { scale: Scale::BatchStd, ..Relative::default() };
        assert_eq!(found, relative.advantages(&AdvantageInput::of(&[&tamed[0], &tamed[1]])));
        assert_eq!(found[1], [0.0; 4]);
    }
}
