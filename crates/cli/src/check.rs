//! `firesight check`.

use clap::Args;
use firesight_train::dry_run;

use crate::configuration::Configuration;
use crate::output::Output;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    configuration: Configuration,
}

pub(crate) fn run(arguments: &Arguments, output: Output) -> anyhow::Result<()> {
    let found = dry_run(&arguments.configuration.read()?)?;
    output.result(&found, &found)
}
