//! `firesight eval`.

use std::path::PathBuf;

use clap::Args;
use firesight_train::{accuracy_table, evaluate};

use crate::configuration::Configuration;
use crate::output::Output;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    configuration: Configuration,
    /// Model directory, with weights: that of a run, or any other [default: that of the configuration].
    #[arg(long)]
    model: Option<PathBuf>,
    /// Held-out questions [default: evaluation.examples of the configuration].
    #[arg(long)]
    questions: Option<usize>,
    /// File for the answers, a line of JSON for each question.
    #[arg(long)]
    answers: Option<PathBuf>,
}

pub(crate) fn run(arguments: Arguments, output: Output) -> anyhow::Result<()> {
    let mut config = arguments.configuration.read()?;
    config.model = arguments.model.unwrap_or(config.model);
    config.evaluation.examples = arguments.questions.unwrap_or(config.evaluation.examples);
    let found = evaluate(&config, arguments.answers.as_deref(), &mut output.progress())?;
    let table = accuracy_table(&[(&config.model.display().to_string(), &found, None)]);
    output.result(&found, table)
}
