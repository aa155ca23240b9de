//! Where models, reinforcement learning and KAWHI meet: the task, the run configuration, the recipe, and what a run
//! leaves on disk.

mod config;
mod device;
mod error;
mod evaluate;
mod examples;
mod held_out;
mod job;
mod policy;
mod progress;
mod recipe;
mod reinforcement;
mod rollouts;
mod run_directory;
mod samples;
mod supervised;
pub mod task;
mod tensorboard;
mod trainable;

pub use config::{CreditConfig, Data, Evaluation, Log, Reinforcement, RunConfig, Supervised, Trainable, WeightDecayOn};
pub use device::device;
pub use error::Error;
pub use evaluate::{Accuracy, greedy_correct};
pub use examples::{ChartTask, Purpose, Question, Questions};
pub use held_out::{HeldOut, HeldOutAccuracy, Sighted};
pub use job::Job;
pub use policy::{VlmPolicy, VlmPrompt};
pub use progress::{Field, Progress};
pub use recipe::{Destination, Outcome, run};
pub use reinforcement::reinforcement;
pub use run_directory::RunDirectory;
pub use supervised::supervised;
