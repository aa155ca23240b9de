//! `firesight eval`.

use std::path::PathBuf;

use clap::Args;
use firesight_train::{ExtrapolationConfig, accuracy_table, evaluate};

use crate::configuration::HeldOut;
use crate::extrapolation::Extrapolation;
use crate::output::Output;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    held_out: HeldOut,
    #[command(flatten)]
    extrapolation: Extrapolation,
    /// File for the answers, a line of JSON for each question.
    #[arg(long)]
    answers: Option<PathBuf>,
}

pub(crate) fn run(arguments: Arguments, output: Output) -> anyhow::Result<()> {
    let Arguments { held_out, extrapolation, answers } = arguments;
    let (config, extrapolation) = (held_out.read()?, extrapolation.config());
    let found = evaluate(&config, extrapolation.as_ref(), answers.as_deref(), &mut output.progress())?;
    let beyond =
        extrapolation.map(|ExtrapolationConfig { base, gamma, .. }| format!(", beyond {} by {gamma}", base.display()));
    let name = format!("{}{}", config.model.display(), beyond.unwrap_or_default());
    let table = accuracy_table(&[(&name, &found, None)]);
    output.result(&found, table)
}
