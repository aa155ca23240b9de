//! Where models, reinforcement learning and KAWHI meet: the task, the run configuration, the recipe, and what a run
//! leaves on disk.

mod checkpoint;
mod compare;
mod config;
mod conversation;
mod credit;
mod deep;
mod device;
mod diagnosis;
mod difference;
mod dry_run;
mod error;
mod evaluate;
mod example;
mod export;
mod extrapolation;
mod files;
mod grader;
mod heads;
mod held_out;
mod inspection;
mod job;
mod measure;
pub mod oracle;
mod outcome;
mod panics;
mod policy;
mod progress;
mod questions;
mod recipe;
mod records;
mod reinforcement;
mod report;
mod rollouts;
mod run;
mod run_directory;
mod samples;
mod source;
mod state;
mod stop;
mod supervised;
mod table;
pub mod task;
mod tensorboard;
mod trainable;

pub use compare::{
    Adapt, Compared, Comparison, Findings, Found, Mean, Variant, WarmUp, compare, credit_variants, paired_t_test,
};
pub use config::{
    ChartData, Checkpoint, Data, Dtype, Evaluation, FileData, Log, Reinforcement, RunConfig, Supervised, Trainable,
    WeightDecayOn,
};
pub use conversation::{Answer, Conversation, Speech};
pub use credit::{Credit, CreditConfig};
pub use deep::{Agreement, DeepDiagnosis, Rate, StepCost, deep_diagnosis};
pub use device::device;
pub use diagnosis::{DeviceDiagnosis, Diagnosis, diagnosis};
pub use dry_run::{DryRun, ShownGrade, ShownPrompt, dry_run};
pub use error::Error;
pub use evaluate::{Accuracy, Greedy};
pub use example::{Example, Kind, Picture};
pub use export::{Which, export};
pub use extrapolation::ExtrapolationConfig;
pub use firesight_data::{Error as DataError, Layout};
pub use firesight_kawhi::VisionCriticalHeads;
pub use firesight_reward::{BoxFrame, RewardConfig, Rewards};
pub use firesight_vlm::SaveOptions;
pub use grader::Grader;
pub use heads::{HeadSearch, heads_table, vision_critical_heads};
pub use held_out::{HeldOut, HeldOutAccuracy, Sighted};
pub use inspection::{Inspection, inspect};
pub use job::{Job, More};
pub use measure::evaluate;
pub use outcome::{Outcome, accuracy_table};
pub use policy::{VlmPolicy, VlmPrompt};
pub use progress::{Field, Progress, Shown, harmless_lines};
pub use questions::{Purpose, Question, Questions};
pub use recipe::{Destination, Ending, run, run_rewarded};
pub use reinforcement::{peak_memory, reinforcement};
pub use report::write_report;
pub use rollouts::{
    RolloutCompletion, RolloutEvidence, RolloutGroup, RolloutNumber, RolloutRegions, read_rollouts, rollout_steps,
};
pub use run::Run;
pub use run_directory::RunDirectory;
pub use source::{Files, Source};
pub use state::{Best, Position, ReinforcementPosition, State, SupervisedPosition};
pub use stop::Stop;
pub use supervised::supervised;
