//! `firesight data`.

use std::path::PathBuf;

use anyhow::bail;
use clap::{Args, Subcommand};
use firesight_train::{Data, Layout, inspect};

use crate::configuration::Configuration;
use crate::output::Output;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Says what is in files of rows: columns, questions, images, and every row that cannot be used.
    Inspect(Inspect),
}

#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// Files of rows, .jsonl or .parquet, or directories of them.
    #[arg(required_unless_present = "config")]
    files: Vec<PathBuf>,
    /// A configuration, whose data.layout says what the columns are, and whose files are looked at unless others are
    /// given.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Column of the question, where it has another name than prompt, messages, problem or question.
    #[arg(long, conflicts_with = "config")]
    prompt: Option<String>,
    /// Column of the answer; dots lead into structures, as in reward_model.ground_truth.
    #[arg(long, conflicts_with = "config")]
    answer: Option<String>,
    /// Column of the images.
    #[arg(long, conflicts_with = "config")]
    images: Option<String>,
}

pub(crate) fn run(command: Command, output: Output) -> anyhow::Result<()> {
    let Command::Inspect(Inspect { mut files, config, prompt, answer, images }) = command;
    let mut layout = Layout::default();
    if let Some(config) = config {
        let path = config.display().to_string();
        let Data::Files(data) = (Configuration { config, set: Vec::new(), skip_bad: None }).read()?.data else {
            bail!("{path}: data.source is charts, which has no files");
        };
        layout = data.layout;
        if files.is_empty() {
            files = data.train.into_iter().chain(data.held_out).collect();
        }
    }
    let columns = &mut layout.columns;
    for (column, given) in [(&mut columns.prompt, prompt), (&mut columns.answer, answer), (&mut columns.images, images)]
    {
        *column = given.or(column.take());
    }
    let found = inspect(&files, &layout)?;
    output.result(&found, &found)
}
