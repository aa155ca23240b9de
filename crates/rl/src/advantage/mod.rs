//! Rewards to advantages.

mod gdpo;
mod relative;

use std::fmt::Debug;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use gdpo::Gdpo;
pub use relative::{Baseline, Relative, Scale};

use crate::Reward;

/// Turns the rewards of a whole batch of groups into one advantage per completion, on the host.
pub trait AdvantageEstimator: Debug + Send + Sync {
    /// `rewards[g][i]` is the reward of completion `i` of group `g`; the result has the same shape. A completion whose
    /// reward abstains has advantage zero and no part in any mean or deviation.
    fn advantages(&self, rewards: &[&[Reward]]) -> Vec<Vec<f32>>;
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
    /// Somebody's own; it has no form in a file.
    #[serde(skip)]
    Custom(Arc<dyn AdvantageEstimator>),
}

impl AdvantageEstimator for Advantage {
    fn advantages(&self, rewards: &[&[Reward]]) -> Vec<Vec<f32>> {
        match self {
            Self::Relative(estimator) => estimator.advantages(rewards),
            Self::Gdpo(estimator) => estimator.advantages(rewards),
            Self::Custom(estimator) => estimator.advantages(rewards),
        }
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
