//! The `firesight` command.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use firesight_train::{Destination, Progress, RunConfig, run};

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
    Train {
        /// The configuration, a TOML file.
        config: PathBuf,
        /// Run directory; must not hold anything yet [default: one under runs, named after the run].
        #[arg(long)]
        out: Option<PathBuf>,
    },
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Train { config, out } => {
            let config = RunConfig::from_file(&config)?;
            let destination = out.map_or_else(|| Destination::Under("runs".into()), Destination::Exactly);
            println!("{}", run(&config, &destination, &mut Progress::detect())?.table());
        }
    }
    Ok(())
}
