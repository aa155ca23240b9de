use std::path::PathBuf;

/// What can go wrong in a run, beyond the errors of the model, the trainer and the task.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or directory could not be read or written.
    #[error("cannot access {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
    /// A configuration that is no TOML of the expected form.
    #[error("{path}: {reason}")]
    Toml {
        /// The file.
        path: PathBuf,
        /// Line, key and reason.
        reason: Box<toml::de::Error>,
    },
    /// A configuration value out of range.
    #[error("{path}: {key} {problem}")]
    Config {
        /// The file.
        path: PathBuf,
        /// Dotted key.
        key: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// A setting out of range.
    #[error("{key} {problem}")]
    Setting {
        /// Dotted key.
        key: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// A value given beside the configuration that cannot be put into it.
    #[error("{text:?} {problem}")]
    Override {
        /// What was given.
        text: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A device that this build does not have.
    #[error("device {name:?} is not available; this build has: {available}")]
    Device {
        /// What was asked for.
        name: String,
        /// What there is.
        available: String,
    },
    /// A device that this machine does not have.
    #[error("device {name:?} cannot be used: {problem}")]
    AbsentDevice {
        /// What was asked for.
        name: String,
        /// What is missing.
        problem: String,
    },
    /// The run directory holds something already.
    #[error("{path} exists and is not empty; a run never overwrites another")]
    RunDirectoryExists {
        /// The directory.
        path: PathBuf,
    },
    /// A directory that no run was begun in.
    #[error("{path} is no run directory: it has no config.toml")]
    NoRun {
        /// The directory.
        path: PathBuf,
    },
    /// A run that has not kept the model that is asked for.
    #[error("{path} has no such model: neither its directory nor a checkpoint is there")]
    NoModel {
        /// The run directory.
        path: PathBuf,
    },
    /// A line of a file of a run that cannot be read.
    #[error("{path}, line {line}: {problem}")]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// A file that is no picture.
    #[error("{path} is no picture")]
    Picture {
        /// The file.
        path: PathBuf,
        /// What the decoder found.
        #[source]
        source: image::ImageError,
    },
    /// A run directory that another process is at work in.
    #[error("{path} is in use by another process")]
    RunDirectoryBusy {
        /// The directory.
        path: PathBuf,
    },
    /// A run that was begun with another configuration than it is to go on with.
    #[error("{path} holds a run with {key} = {begun}; the configuration to go on with has {given}")]
    OtherConfiguration {
        /// The directory.
        path: PathBuf,
        /// Dotted key of the first difference.
        key: String,
        /// Its value in the run.
        begun: String,
        /// Its value now.
        given: String,
    },
    /// A checkpoint that cannot be written, or gone on from.
    #[error("checkpoint file {path}: {problem}")]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Signals cannot be listened to.
    #[error("cannot listen to the signals that stop a run")]
    Signals(#[from] ctrlc::Error),
    /// The model.
    #[error(transparent)]
    Model(#[from] firesight_vlm::Error),
    /// The trainer.
    #[error(transparent)]
    Trainer(#[from] firesight_rl::Error),
    /// An update was refused; what it was to learn from and the policy as it was have been kept.
    #[error("reinforcement step {step}: the update failed; its batch is in {batch}, the policy before it in {policy}")]
    Update {
        /// The step, counted from 1.
        step: usize,
        /// File with the prompts, completions and rewards.
        batch: PathBuf,
        /// Model directory.
        policy: PathBuf,
        /// Which number was not finite, or what else went wrong.
        #[source]
        source: firesight_rl::Error,
    },
    /// An example that the model's processor refuses.
    #[error("{origin}: the example cannot be shown to the model")]
    Example {
        /// Where it comes from.
        origin: String,
        /// What is wrong with it.
        source: firesight_vlm::Error,
    },
    /// A prompt that leaves no room for the longest completion.
    #[error(
        "{origin}: the prompt has {tokens} tokens; with reinforcement.max_tokens behind it the model takes {longest}"
    )]
    PromptLength {
        /// Where it comes from.
        origin: String,
        /// Its tokens, those of images included.
        tokens: usize,
        /// The most that it may have.
        longest: usize,
    },
    /// An example without a worked answer, in the supervised phase.
    #[error("{origin}: there is no worked answer to learn from; data.layout.columns.completion names their column")]
    NoTarget {
        /// Where it comes from.
        origin: String,
    },
    /// The data.
    #[error(transparent)]
    Data(#[from] firesight_data::Error),
    /// The rewards of the configuration.
    #[error(transparent)]
    Rewards(#[from] firesight_reward::Error),
    /// The reward of one completion.
    #[error("{origin}: an answer could not be graded")]
    Reward {
        /// Where its example comes from.
        origin: String,
        /// Why.
        source: firesight_reward::Error,
    },
    /// The credit assigner.
    #[error(transparent)]
    Kawhi(#[from] firesight_kawhi::Error),
    /// The task.
    #[error(transparent)]
    Task(#[from] crate::task::Error),
    /// A worked answer is longer than the longest completion.
    #[error("{origin}: the worked answer {text:?} has {tokens} tokens; reinforcement.max_tokens is {limit}")]
    TargetLength {
        /// Where its example comes from.
        origin: String,
        /// The answer.
        text: String,
        /// Its tokens, the end of the turn included.
        tokens: usize,
        /// The limit.
        limit: usize,
    },
}

/// An error with all of its causes.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
