//! `firesight report`.

use std::path::PathBuf;

use clap::Args;
use firesight_train::write_report;
use serde_json::json;

use crate::output::Output;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The run directory.
    run: PathBuf,
}

pub(crate) fn run(arguments: &Arguments, output: Output) -> anyhow::Result<()> {
    let report = write_report(&arguments.run)?;
    output.result(&json!({ "report": report }), report.display())
}
