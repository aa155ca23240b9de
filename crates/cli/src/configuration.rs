//! The configuration of a command.

use std::path::PathBuf;

use clap::Args;
use firesight_train::RunConfig;

#[derive(Debug, Args)]
pub(crate) struct Configuration {
    /// The configuration, a TOML file.
    pub(crate) config: PathBuf,
    /// Another value for a key, as in --set reinforcement.steps=10; may be given several times.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Rows of data that may be left out because they cannot be used: another value for data.skip_bad.
    #[arg(long, value_name = "N")]
    pub(crate) skip_bad: Option<usize>,
}

/// A configuration whose held-out questions are asked of a model.
#[derive(Debug, Args)]
pub(crate) struct HeldOut {
    #[command(flatten)]
    configuration: Configuration,
    /// Model directory, with weights: that of a run, or any other [default: that of the configuration].
    #[arg(long)]
    model: Option<PathBuf>,
    /// Held-out questions [default: evaluation.examples of the configuration].
    #[arg(long)]
    questions: Option<usize>,
}

impl HeldOut {
    pub(crate) fn read(self) -> Result<RunConfig, firesight_train::Error> {
        let mut config = self.configuration.read()?;
        config.model = self.model.unwrap_or(config.model);
        config.evaluation.examples = self.questions.unwrap_or(config.evaluation.examples);
        Ok(config)
    }
}

impl Configuration {
    pub(crate) fn read(&self) -> Result<RunConfig, firesight_train::Error> {
        RunConfig::from_file_with(&self.config, &self.overrides())
    }

    /// The keys that have other values than in the file.
    pub(crate) fn overrides(&self) -> Vec<String> {
        let skip_bad = self.skip_bad.map(|rows| format!("data.skip_bad={rows}"));
        self.set.iter().cloned().chain(skip_bad).collect()
    }
}
