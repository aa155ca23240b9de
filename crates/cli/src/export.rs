//! `firesight export`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use firesight_train::{SaveOptions, Which, export};
use serde_json::json;

use crate::output::Output;
use crate::speech::Dtype;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The run directory.
    run: PathBuf,
    /// Directory to write; must not hold anything yet.
    #[arg(long)]
    out: PathBuf,
    /// Which of the run's models.
    #[arg(long, value_enum, default_value = "last")]
    model: Model,
    /// Float type of the weights.
    #[arg(long, value_enum, default_value = "bf16")]
    dtype: Dtype,
    /// Largest file of weights in GB; more are written in several.
    #[arg(long, default_value_t = 5.0)]
    max_shard_gb: f64,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Model {
    /// The one that the run ended with; of a run that has not ended, its latest checkpoint.
    Last,
    /// The one with the highest held-out accuracy, where evaluation.every has the run keep it.
    Best,
    /// The one before reinforcement learning.
    WarmUp,
}

pub(crate) fn run(arguments: &Arguments, output: Output) -> anyhow::Result<()> {
    let which = match arguments.model {
        Model::Last => Which::Last,
        Model::Best => Which::Best,
        Model::WarmUp => Which::WarmUp,
    };
    let max_shard_bytes = (arguments.max_shard_gb * 1e9) as u64;
    let options = SaveOptions { dtype: arguments.dtype.into(), max_shard_bytes };
    let what = export(&arguments.run, &arguments.out, which, options)?;
    let out = arguments.out.display();
    output.result(&json!({ "directory": arguments.out, "model": what }), format!("{out}: {what}"))
}
