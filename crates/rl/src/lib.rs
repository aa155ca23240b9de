//! Reinforcement learning with verifiable rewards for any burn module.
//!
//! # In one page
//!
//! A model joins by two traits: [`Policy`] says, differentiably, how likely completions are, and [`Sampler`] draws
//! some; for a model that gives logits token by token, both are a call. A problem joins by [`Task`], which renders
//! prompts and grades answers. Here a table of digits learns to count:
//!
//! ```
//! use burn::module::{Module, Param};
//! use burn::tensor::{Device, Int, Tensor};
//! use firesight_rl::*;
//!
//! #[derive(Module, Debug)]
//! struct Table {
//!     next: Param<Tensor<2>>,
//! }
//!
//! impl Table {
//!     /// Logits of the digit after each prompt and the tokens that followed it: `[rows, 10]`.
//!     fn logits(&self, rows: &[(&u32, &[u32])]) -> Tensor<2> {
//!         let last = rows.iter().map(|(prompt, tokens)| i64::from(*tokens.last().unwrap_or(prompt)));
//!         let last = Tensor::<1, Int>::from_data(&*last.collect::<Vec<_>>(), &self.next.val().device());
//!         self.next.val().select(0, last)
//!     }
//! }
//!
//! impl Policy for Table {
//!     type Prompt = u32;
//!
//!     fn score(&self, groups: &[Group<u32>], temperature: f32, _: &SignalSet) -> Result<Scores, Error> {
//!         // One row for every token that was drawn: what stood before it.
//!         let answers = groups.iter().flat_map(|group| group.completions.iter().map(|answer| (&group.prompt, answer)));
//!         let rows = answers.flat_map(|(prompt, answer)| (0..answer.tokens.len()).map(move |n| (prompt, &answer.tokens[..n])));
//!         Scores::from_logits(self.logits(&rows.collect::<Vec<_>>()), groups, temperature)
//!     }
//! }
//!
//! impl Sampler<u32> for Table {
//!     fn sample(&self, prompts: &[u32], group_size: usize, sampling: Sampling) -> Result<Vec<Vec<Completion>>, Error> {
//!         sample_from_logits(prompts, group_size, sampling, None, |rows| self.logits(rows))
//!     }
//! }
//!
//! /// After 3 come 4, 5 and 6.
//! struct Count;
//!
//! impl Task for Count {
//!     type Sample = u32;
//!     type Prompt = u32;
//!
//!     fn prompt(&self, first: &u32) -> Result<u32, TaskError> {
//!         Ok(*first)
//!     }
//!
//!     fn reward(&self, first: &u32, answer: &Completion) -> Result<Reward, TaskError> {
//!         let right = answer.tokens.iter().zip(first + 1..).filter(|(found, right)| **found == right % 10).count();
//!         Ok(Reward::of("right", right as f32 / answer.tokens.len() as f32))
//!     }
//! }
//!
//! let device = Device::flex().autodiff();
//! let policy = Table { next: Param::from_tensor(Tensor::zeros([10, 10], &device)) };
//! let optimizer = burn::optim::AdamWConfig::new().init();
//! let sampling = Sampling { temperature: 1.0, max_tokens: 3, seed: 0, first_stream: 0 };
//! let mut trainer = Trainer::new(policy, optimizer, Algorithm::dapo(), Uniform, Options::new(16, sampling))?;
//!
//! let first_digits: Vec<u32> = (0..10).collect();
//! let mut reward = 0.0;
//! for _ in 0..60 {
//!     let report = trainer.step(&Count, &first_digits, 0.1)?;
//!     reward = report.metric("reward/mean").unwrap_or(0.0);
//! }
//! assert!(reward > 0.9);
//! # Ok::<(), Error>(())
//! ```
//!
//! # A step
//!
//! [`Trainer::step`] is two halves, which may be called by themselves. [`Trainer::rollout`] samples a group of
//! completions per prompt and grades them ([`Trainer::dynamic_rollout`] until their rewards differ).
//! [`Trainer::update`] turns rewards into advantages, splits them over tokens, and takes an optimizer step for every
//! mini-batch: loss x coefficient, backward, over micro-batches; clip the gradient's global norm; optimizer.
//! [`StepReport`] has everything that was drawn, decided and measured.
//!
//! Decisions are made on the host, gradients on the device: rewards, advantages, credit and aggregation weights are
//! plain numbers that can be printed and computed by hand.
//!
//! # Algorithms
//!
//! An [`Algorithm`] is a point in a space of independent choices; its constructors name the published ones, and all of
//! it can be read from a file:
//!
//! | choice | values |
//! |---|---|
//! | [`Advantage`] | [`Relative`]: a [`Baseline`] over a [`Scale`]; [`Gdpo`]: every part of the reward by itself; [`Durian`]; [`Paco`] |
//! | [`RatioLevel`] | token; sequence, in token form |
//! | [`Surrogate`] | [`Clip`], with dual clip; [`Cispo`]; [`Sapo`]; [`Fipo`]; [`Vespo`] |
//! | [`Aggregation`] | mean of sequence means; mean of tokens; constant; sum |
//! | [`KlPenalty`] | none; k1, k2, k3 in the loss, weighted by the ratio, or in the reward; with a reference that moves |
//! | entropy | a bonus; only the tokens of the highest |
//! | completions | mask the truncated; mask the stale; punish the overlong ([`Overlong`]) |
//! | groups | a [`Filter`] says how much each is learnt from; an expert joins those that fail ([`Tgrl`]) |
//! | [`CreditAssigner`] | how an advantage is split over the tokens of a completion: the methods of [`credit`], or a product |
//!
//! Each of [`PolicyLoss`], [`AdvantageEstimator`], [`GroupFilter`] and [`CreditAssigner`] is a trait that may be
//! implemented elsewhere.
//!
//! # What a step guarantees
//!
//! 1. Any split of an optimizer batch into micro-batches gives the same gradient, up to rounding.
//! 2. Uniform credit is the base algorithm. A constant added to all rewards of a group changes nothing. With equal token
//!    advantages the token form of GSPO is its sequence form.
//! 3. Losses and gradients agree with finite differences and with TRL's code.
//! 4. Log-probabilities of the sampler and of the scorer are compared at every step (`rollout/log_prob_diff_max`).
//! 5. Both are at the sampling temperature; there is no top-p or top-k to make them differ.
//! 6. Sampler and scorer draw from the same set of tokens: a policy's duty, and minus infinity's in
//!    [`sample_from_logits`].
//! 7. Tokens that were drawn are the tokens that are trained on; nothing is decoded and encoded again.
//! 8. The same seed gives the same run, on any number of threads, and a [`Trainer`] put back goes on as if it had never
//!    stopped; bit for bit where the device's operations are deterministic.
//! 9. A group whose rewards are all equal contributes nothing under a group baseline, and is counted
//!    (`reward/zero_std_fraction`). A batch of only such groups updates nothing and says so.
//! 10. A reward, loss or gradient that is not finite stops the update before the optimizer and is named.
//! 11. A reward function that fails, panics or overruns its [`Deadline`] is an error or an abstention, never a zero.
//! 12. No reference policy, no pass before the update and no signal that the settings do not need.
//!
//! The crate knows no image, no tokenizer, no file and no backend.
// Tests compare numbers that have to agree bit for bit.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::float_cmp))]

mod advantage;
mod aggregation;
mod algorithm;
mod autoregressive;
mod batch;
mod beforehand;
pub mod credit;
mod deadline;
mod error;
mod evaluation;
mod expert;
mod filter;
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
mod pool;
mod quantile;
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

pub use advantage::{
    Advantage, AdvantageEstimator, AdvantageInput, Baseline, Deviation, Durian, Gdpo, Paco, Relative, Scale, Tame,
    spectral_entropy,
};
pub use aggregation::{Aggregation, Coefficients};
pub use algorithm::Algorithm;
pub use autoregressive::sample_from_logits;
pub use credit::{
    CreditAssigner, CreditBatch, CreditInput, CreditList, CreditMethod, Evidence, Observed, TokenCredit, Uniform,
    assign_from_signals,
};
pub use deadline::Deadline;
pub use error::Error;
pub use evaluation::{Estimate, pass_at_k};
pub use expert::Tgrl;
pub use filter::{Filter, GroupFilter, Pearl};
pub use gradients::clip_global_norm;
pub use kl::{KlEstimator, KlPenalty, KlPlacement};
pub use loss::{
    Bound, Cispo, Clip, Fipo, LossInput, PolicyLoss, RatioLevel, Sapo, Surrogate, SurrogateInput, TokenLoss, Vespo,
};
pub use metrics::{Metrics, Timing};
pub use optimizer::adamw_with_decay_groups;
pub use options::{MicroBatch, Options, RewardFailure};
pub use parallel::{gradients_in_parallel, sample_in_parallel};
pub use policy::{Continuation, Policy, Positions, Sampler, Sampling, Scores};
pub use pool::{Threads, in_pool_of_one};
pub use random::stream;
pub use reward::{Overlong, Reward, RewardPart};
pub use rollout::{Completion, Group, Rollout};
pub use schedule::{Decay, Schedule};
pub use signals::{
    AttentionRequest, AttentionStates, Capability, HiddenStates, ResponseStates, Rope, SignalSet, Signals, View,
};
pub use task::{Task, TaskError};
pub use top_entropy::top_entropy_mask;
pub use trainer::{StepReport, Trainer, Update};
