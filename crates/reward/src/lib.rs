//! Verifiable rewards: what a response is worth against the row of data that it answers.
//!
//! The rewards of a run are a list in its configuration. Each entry has a `kind`, a `name` (its kind, unless it says
//! otherwise), a `weight` (1; 0 is only watched) and the keys of its kind:
//!
//! | kind | what it reads | value |
//! |---|---|---|
//! | [`math`](Math) | the final answer as mathematics | 1 or 0 |
//! | [`exact`](Exact) | the final answer as text | 1 or 0 |
//! | [`choice`](Choice) | the letter of a multiple choice | 1 or 0 |
//! | [`numeric`](Numeric) | the final number, within a tolerance | 1 or 0 |
//! | [`format`](Format) | the whole response, by a regular expression | 1 or 0 |
//! | [`iou`](Iou) | the first box | 0 to 1 |
//! | [`detection`](Detection) | all boxes and their labels | 0 to 1 |
//! | [`length`](Length) | the number of tokens | -1 to 0 |
//! | [`repetition`](Repetition) | n-grams of words | `-max_penalty` to 0 |
//! | [`command`](Command) | whatever a program reads | what the program says |
//! | [`judge`](Judge) | whatever another model reads | what that model says |
//!
//! ```
//! use firesight_reward::{Asked, BoxFrame, Response, RewardConfig, Rewards};
//!
//! #[derive(serde::Deserialize)]
//! struct Run {
//!     rewards: Vec<RewardConfig>,
//! }
//! let run: Run = toml::from_str(
//!     r#"
//!     rewards = [
//!         { kind = "exact", name = "accuracy" },
//!         { kind = "format", weight = 0.0, regex = '<think>.*</think>.*' },
//!     ]"#,
//! )?;
//! let rewards = Rewards::new(&run.rewards, BoxFrame::Resized)?;
//! let columns = serde_json::Map::new();
//! let asked = Asked { prompt: "1 + 1?", answer: Some("2"), images: &[], columns: &columns };
//! let response = Response { text: r"It is \boxed{2}.", tokens: 7, truncated: false };
//! let parts = rewards.grade(&[(asked, response)]).remove(0)?;
//! assert_eq!((parts[0].name.as_str(), parts[0].value, parts[0].weight), ("accuracy", Some(1.0), 1.0));
//! assert_eq!((parts[1].name.as_str(), parts[1].value, parts[1].weight), ("format", Some(0.0), 0.0));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! What is not in the list is a [`Reward`] of one's own, added by [`Rewards::with`]. `judge` needs the cargo feature of
//! that name.

mod answer;
mod boxes;
mod choice;
mod command;
mod config;
mod error;
mod exact;
mod format;
mod judge;
mod length;
pub mod math;
mod numeric;
mod repetition;
mod reward;
mod rewards;
mod setting;
#[cfg(test)]
mod testing;

pub use boxes::{BoxFrame, Detection, Iou, Measure, ReferenceFrame};
pub use choice::Choice;
pub use command::Command;
pub use config::{Math, RewardConfig, RewardKind};
pub use error::Error;
pub use exact::{AnswerFrom, Exact};
pub use format::Format;
pub use judge::{Judge, Verdict};
pub use length::Length;
pub use numeric::Numeric;
pub use repetition::Repetition;
pub use reward::{Asked, Image, Part, Response, Reward, Score};
pub use rewards::Rewards;
