//! Where models, reinforcement learning and KAWHI meet: the task, the run configuration, the recipe, and what a run
//! leaves on disk.

mod checkpoint;
mod config;
mod device;
mod difference;
mod error;
mod evaluate;
mod examples;
mod files;
mod heads;
mod held_out;
mod job;
mod outcome;
mod policy;
mod progress;
mod recipe;
mod reinforcement;
mod report;
mod rollouts;
mod run;
mod run_directory;
mod samples;
mod state;
mod stop;
mod supervised;
pub mod task;
mod tensorboard;
mod trainable;

pub use config::{
    Checkpoint, CreditConfig, Data, Evaluation, Log, Reinforcement, RunConfig, Supervised, Trainable, WeightDecayOn,
};
pub use device::device;
pub use error::Error;
pub use evaluate::{Accuracy, greedy_correct};
pub use examples::{ChartTask, Purpose, Question, Questions};
pub use firesight_kawhi::VisionCriticalHeads;
pub use heads::{HeadSearch, heads_table, vision_critical_heads};
pub use held_out::{HeldOut, HeldOutAccuracy, Sighted};
pub use job::Job;
pub use outcome::Outcome;
pub use policy::{VlmPolicy, VlmPrompt};
pub use progress::{Field, Progress};
pub use recipe::{Destination, Ending, run};
pub use reinforcement::{peak_memory, reinforcement};
pub use report::write_report;
pub use run::Run;
pub use run_directory::RunDirectory;
pub use state::{Best, Position, ReinforcementPosition, State, SupervisedPosition};
pub use stop::Stop;
pub use supervised::supervised;
