//! Key-Region Aligned Weighted Harmonic Incentive (KAWHI), arXiv 2603.27375: credit for reinforcement learning with
//! verifiable rewards, by how closely each paragraph of a response attends to the structure of its image.
//!
//! In reading order, with the paper's sections:
//!
//! 1. [`sguf`] (3.2, eq. 5-11) finds from the pixels alone which visual tokens carry structure: strokes, axes, symbols.
//! 2. [`alignment`] (3.3, eq. 12-13) compares the queries of the response with the keys of those visual tokens, in all
//!    heads or in those that need the image most ([`VisionCriticalHeads`]).
//! 3. [`paragraphs`] and [`paragraph_weights`] (3.4, eq. 14-15) turn the similarity into one weight per paragraph.
//! 4. [`Kawhi`] (eq. 16-17) hands the weights to the trainer, which multiplies the group advantage by them. It is a
//!    [`firesight_rl::CreditAssigner`], so GRPO, DAPO, GSPO and the rest take it unchanged.
//!
//! What the paper varies in its ablations is a switch of [`KawhiConfig`]; two choices are traits beside, so that others
//! can be made: which visual tokens count ([`RegionSelector`]) and what of a response gets a weight ([`Segmenter`]).
//!
//! The crate knows no model: it reads [`firesight_rl::AttentionStates`] and asks a prompt for nothing but its images
//! ([`VisualPrompt`]).

mod alignment;
mod config;
mod credit;
mod error;
mod heads;
mod paragraph;
mod prompt;
mod segment;
mod select;
mod sguf;
mod structure;

pub use alignment::alignment;
pub use config::{Heads, KawhiConfig, Metric, Normalize, SgufConfig, WeightConfig};
pub use credit::Kawhi;
pub use error::Error;
pub use heads::VisionCriticalHeads;
pub use paragraph::{paragraph_weights, paragraphs, token_weights};
pub use prompt::{ImageView, VisualPrompt};
pub use segment::{Granularity, Segmenter, sentences};
pub use select::{RegionSelection, RegionSelector};
pub use sguf::{Regions, sguf};
pub use structure::{Structure, structure};
