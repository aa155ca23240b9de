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
mod autoregressive;
mod batch;
mod credit;
mod deadline;
mod error;
mod evaluation;
mod gradients;
mod in_order;
mod kl;
mod loss;
mod metrics;
mod optimizer;
mod options;
mod parallel;
mod pass;
mod policy;
mod random;
mod reward;
mod rollout;
mod rows;
mod sample;
mod schedule;
mod signals;
mod task;
#[cfg(test)]
mod tests;
mod top_entropy;
mod trainer;
mod update;

pub use advantage::{Advantage, AdvantageEstimator, Baseline, Deviation, Gdpo, Relative, Scale};
pub use aggregation::{Aggregation, Coefficients};
pub use algorithm::Algorithm;
pub use autoregressive::sample_from_logits;
pub use credit::{CreditAssigner, Uniform};
pub use deadline::Deadline;
pub use error::Error;
pub use evaluation::{Estimate, pass_at_k};
pub use gradients::clip_global_norm;
pub use kl::{KlEstimator, KlPenalty, KlPlacement};
pub use loss::{
    Bound, Cispo, Clip, LossInput, PolicyLoss, RatioLevel, Sapo, Surrogate, SurrogateInput, TokenLoss, Vespo,
};
pub use metrics::{Metrics, Timing};
pub use optimizer::adamw_with_decay_groups;
pub use options::{MicroBatch, Options, RewardFailure};
pub use parallel::{gradients_in_parallel, sample_in_parallel};
pub use policy::{Policy, Sampler, Sampling, Scores};
pub use random::stream;
pub use reward::{Overlong, Reward, RewardPart};
pub use rollout::{Completion, Group, Rollout};
pub use schedule::{Decay, Schedule};
pub use signals::{AttentionStates, Rope, SignalSet, Signals};
pub use task::Task;
pub use top_entropy::top_entropy_mask;
pub use trainer::{StepReport, Trainer, Update};
