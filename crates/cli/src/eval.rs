//! `firesight eval`.

use std::path::PathBuf;

use clap::Args;
use firesight_train::{accuracy_table, evaluate};

use crate::configuration::HeldOut;
use crate::output::Output;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    held_out: HeldOut,
    /// File for the answers, a line of JSON for each question.
    #[arg(long)]
    answers: Option<PathBuf>,
}

pub(crate) fn run(arguments: Arguments, output: Output) -> anyhow::Result<()> {
    let config = arguments.held_out.read()?;
    let found = evaluate(&config, arguments.answers.as_deref(), &mut output.progress())?;
    let table = accuracy_table(&[(&config.model.display().to_string(), &found, None)]);
    output.result(&found, table)
}
