//! `firesight heads`.

use std::path::PathBuf;

use clap::Args;
use console::Term;
use firesight_train::{Destination, HeadSearch, Stop, VisionCriticalHeads, heads_table, vision_critical_heads};
use serde_json::json;

use crate::configuration::HeldOut;
use crate::output::Output;

/// Characters a line, where the standard output is no terminal.
const WIDTH: u16 = 100;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    held_out: HeldOut,
    /// A head is critical if the accuracy falls by more than this share of the whole model's.
    #[arg(long, default_value_t = VisionCriticalHeads::THRESHOLD)]
    threshold: f64,
    /// Directory of the search; must not hold anything yet [default: one under runs, named after the configuration].
    #[arg(long)]
    out: Option<PathBuf>,
    /// Goes on with the search in the directory; a complete one is judged by the threshold again.
    #[arg(long, requires = "out")]
    resume: bool,
}

pub(crate) fn run(arguments: Arguments, output: Output) -> anyhow::Result<()> {
    let config = arguments.held_out.read()?;
    let destination = Destination::of(arguments.out, arguments.resume);
    let (stop, mut progress) = (Stop::on_signals()?, output.progress());
    match vision_critical_heads(&config, arguments.threshold, &destination, &stop, &mut progress)? {
        HeadSearch::Complete { found, directory } => {
            let width = Term::stdout().size_checked().map_or(WIDTH, |(_, columns)| columns);
            let file = directory.join("heads.toml");
            let table = format!("{}\n{} and heads.png", heads_table(&found, width.into()), file.display());
            output.result(&json!({ "complete": true, "directory": directory, "found": found }), table)
        }
        HeadSearch::Stopped { directory } => {
            let again = format!("stopped; to go on, the same command with --out {} --resume", directory.display());
            output.result(&json!({ "complete": false, "directory": directory }), again)
        }
    }
}
