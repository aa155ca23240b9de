//! Reinforcement learning with verifiable rewards for any burn module.
//!
//! A model joins by implementing [`Policy`] (how likely is a completion, differentiably) and [`Sampler`] (draw some);
//! a problem joins by implementing [`Task`] (render a prompt, grade an answer). [`Trainer::step`] does the rest:
//!
//! sample a group of completions per prompt -> grade -> group advantages -> credit per token -> loss x coefficient,
//! backward, over micro-batches -> clip the gradient's global norm -> optimizer.
//!
//! An [`Algorithm`] is a point in a space of independent choices: [`AdvantageEstimator`] and [`Scale`], [`RatioLevel`],
//! [`Surrogate`], [`Aggregation`], [`KlPenalty`]; its constructors name the published ones. A [`CreditAssigner`] splits
//! an advantage over the tokens of a completion by what it sees of the scoring pass.
//!
//! The crate knows no image, no tokenizer, no file and no backend.
// Tests compare numbers that have to agree bit for bit.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::float_cmp))]

mod advantage;
mod aggregation;
mod algorithm;
mod batch;
mod credit;
mod error;
mod evaluation;
mod gradients;
mod in_order;
mod kl;
mod loss;
mod metrics;
mod parallel;
mod policy;
mod random;
mod rollout;
mod schedule;
mod signals;
mod task;
#[cfg(test)]
mod tests;
mod trainer;
mod update;

pub use advantage::{AdvantageEstimator, GroupRelative, Scale};
pub use aggregation::{Aggregation, Coefficients};
pub use algorithm::Algorithm;
pub use credit::{CreditAssigner, Uniform};
pub use error::Error;
pub use evaluation::{Estimate, pass_at_k};
pub use gradients::clip_global_norm;
pub use kl::{KlPenalty, k3};
pub use loss::{Bound, Cispo, Clip, Loss, LossInput, RatioLevel, Sapo, Surrogate, TokenLoss};
pub use metrics::{Metrics, Timing};
pub use parallel::{gradients_in_parallel, sample_in_parallel};
pub use policy::{Policy, Sampler, Sampling, Scores};
pub use random::stream;
pub use rollout::{Completion, Group, Reward};
pub use schedule::{Decay, Schedule};
pub use signals::{AttentionStates, Rope, SignalSet, Signals};
pub use task::Task;
pub use trainer::{Options, Rollout, StepReport, Trainer, Update};
