//! Rewards to advantages.

mod durian;
mod gdpo;
mod paco;
mod relative;
mod spectrum;

use std::fmt::Debug;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use durian::Durian;
pub use gdpo::Gdpo;
pub use paco::{Paco, Tame};
pub use relative::{Baseline, Relative, Scale};
pub use spectrum::spectral_entropy;

use crate::{Error, Reward};

/// Turns the rewards of a whole batch of groups into one advantage per completion, on the host.
pub trait AdvantageEstimator: Debug + Send + Sync {
    /// The advantages, in the shape of the rewards. A completion whose reward abstains has advantage zero and no part in
    /// any mean or deviation.
    fn advantages(&self, batch: &AdvantageInput<'_>) -> Vec<Vec<f32>>;

    /// Whether it reads [`AdvantageInput::perceptual_entropy`].
    fn reads_features(&self) -> bool {
        false
    }

    /// Refuses settings that mean nothing.
    ///
    /// # Errors
    /// [`Error::Setting`] names the first.
    fn check(&self) -> Result<(), Error> {
        Ok(())
    }
}

/// What advantages are made of: the groups of a rollout.
#[derive(Debug, Clone, Copy)]
pub struct AdvantageInput<'a> {
    /// `rewards[g][i]` is the reward of completion `i` of group `g`.
    pub rewards: &'a [&'a [Reward]],
    /// `log_probs[g][i]` are those of its tokens under the policy that drew them; an expert's completion has none.
    pub log_probs: &'a [Vec<&'a [f32]>],
    /// For every group the [spectral entropy](spectral_entropy) of what its prompt shows; where
    /// [`AdvantageEstimator::reads_features`].
    pub perceptual_entropy: Option<&'a [f64]>,
}

impl<'a> AdvantageInput<'a> {
    /// Rewards of which nothing else is known.
    #[must_use]
    pub fn of(rewards: &'a [&'a [Reward]]) -> Self {
        Self { rewards, log_probs: &[], perceptual_entropy: None }
    }
}

/// Somebody's own estimators are the same when they are one and the same object.
impl PartialEq for dyn AdvantageEstimator {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::addr_eq(self, other)
    }
}

/// The advantage estimators. In a file: `{ name = "relative", baseline = "group_mean", scale = "group_std" }`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case")]
pub enum Advantage {
    /// See [`Relative`].
    Relative(Relative),
    /// See [`Gdpo`].
    Gdpo(Gdpo),
    /// See [`Durian`].
    Durian(Durian),
    /// See [`Paco`].
    Paco(Paco),
    /// Somebody's own; it has no form in a file.
    #[serde(skip)]
    Custom(Arc<dyn AdvantageEstimator>),
}

impl Advantage {
    fn chosen(&self) -> &dyn AdvantageEstimator {
        match self {
            Self::Relative(estimator) => estimator,
            Self::Gdpo(estimator) => estimator,
            Self::Durian(estimator) => estimator,
            Self::Paco(estimator) => estimator,
            Self::Custom(estimator) => estimator.as_ref(),
        }
    }
}

impl AdvantageEstimator for Advantage {
    fn advantages(&self, batch: &AdvantageInput<'_>) -> Vec<Vec<f32>> {
        self.chosen().advantages(batch)
    }

    fn reads_features(&self) -> bool {
        self.chosen().reads_features()
    }

    fn check(&self) -> Result<(), Error> {
        self.chosen().check()
    }
}

/// The divisor of the variance that a standard deviation is the root of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Deviation {
    /// n - 1, as TRL and verl have it.
    #[default]
    Sample,
    /// n, as the formulas of GRPO and KAWHI (arXiv 2603.27375, eq. 1) read. Makes every advantage of a group of n
    /// larger by sqrt(n / (n - 1)), 7 % at n = 8.
    Population,
}

impl Deviation {
    /// Added to a standard deviation before dividing; TRL's.
    pub const EPSILON: f64 = 1e-4;

    /// Standard deviation; zero of fewer than two values.
    pub(crate) fn of(self, values: impl Iterator<Item = f64> + Clone) -> f64 {
        let count = values.clone().count();
        if count < 2 {
            return 0.0;
        }
        let mean = mean(values.clone());
        let divisor = match self {
            Self::Sample => count - 1,
            Self::Population => count,
        };
        (values.map(|value| (value - mean).powi(2)).sum::<f64>() / divisor as f64).sqrt()
    }
}

/// Mean; zero of nothing. A sum of equal `f32` values is exact in `f64`, which is what makes their mean equal to them.
pub(crate) fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0usize), |(sum, count), value| (sum + value, count + 1));
    if count == 0 { 0.0 } else { sum / count as f64 }
}
