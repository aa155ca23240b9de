//! The `firesight` command.

mod heads;

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use firesight_train::{Destination, Ending, Progress, RunConfig, Stop, run, write_report};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Reinforcement learning with verifiable rewards for vision-language models.
#[derive(Debug, Parser)]
#[command(version, name = "firesight")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs a configuration: warm-up, reinforcement learning, evaluation, export.
    ///
    /// Ctrl-C, or the signal to terminate, ends it after the step it is at, to go on from there later with --resume; a
    /// second one ends it at once, to go on from its last checkpoint.
    Train {
        /// The configuration, a TOML file.
        config: PathBuf,
        /// Run directory; must not hold anything yet [default: one under runs, named after the run].
        #[arg(long)]
        out: Option<PathBuf>,
        /// Goes on with the run in the run directory; if none was begun there, one begins.
        #[arg(long, requires = "out")]
        resume: bool,
    },
    /// Makes the report of a run again, report.html in its directory, and prints its path.
    Report {
        /// The run directory.
        run: PathBuf,
    },
    /// Searches for the heads that a model sees with: answers held-out questions without one head after the other.
    ///
    /// Writes heads.png, and heads.toml, which a configuration reads by
    /// credit = { name = "kawhi", heads = { critical = "heads.toml" } }. Ctrl-C, or the signal to terminate, ends it
    /// after the head it is at.
    Heads(heads::Arguments),
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Heads(arguments) => heads::run(arguments)?,
        Command::Train { config: path, out, resume } => {
            let config = RunConfig::from_file(&path)?;
            match run(&config, &Destination::of(out, resume), &Stop::on_signals()?, &mut Progress::detect())? {
                Ending::Complete(outcome) => println!("{}", outcome.table()),
                Ending::Stopped { directory } => println!(
                    "stopped; to go on: firesight train {} --out {} --resume",
                    path.display(),
                    directory.display()
                ),
            }
        }
        Command::Report { run } => println!("{}", write_report(&run)?.display()),
    }
    Ok(())
}
