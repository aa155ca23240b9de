//! A small Qwen3-VL learns to read charts and handwritten digits, from nothing, on a CPU.
//!
//! ```sh
//! cargo run --release --example train_qwen_small
//! ```
//!
//! Ends with a table of held-out accuracies, and fails if reinforcement learning did not raise them.

use std::path::{Path, PathBuf};

use anyhow::ensure;
use clap::Parser;
use clap::builder::PossibleValuesParser;
use firesight_rl::Algorithm;
use firesight_train::{Credit, Destination, Ending, Progress, RunConfig, Stop, run};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Trains a small vision-language model with reinforcement learning on real images.
#[derive(Debug, Parser)]
struct Options {
    /// A published algorithm, with the settings of its paper [default: as in the configuration].
    #[arg(long, value_parser = presets())]
    algorithm: Option<String>,
    /// How an advantage is split over the tokens of a completion: a method, such as uniform or vppo, or several joined by
    /// + [default: as in the configuration].
    #[arg(long)]
    credit: Option<Credit>,
    /// Seed of the run [default: as in the configuration].
    #[arg(long)]
    seed: Option<u64>,
    /// Rollouts of reinforcement learning [default: as in the configuration].
    #[arg(long)]
    steps: Option<usize>,
    /// flex, cuda, cuda:1..., wgpu, wgpu:1..., as far as compiled in [default: as in the configuration].
    #[arg(long)]
    device: Option<String>,
    /// Threads; changes the speed, never the result [default: all processors].
    #[arg(long)]
    threads: Option<usize>,
    /// Run directory; must not hold anything yet [default: one under runs, named after the run].
    #[arg(long)]
    out: Option<PathBuf>,
    /// Goes on with the run in the run directory; if none was begun there, one begins.
    #[arg(long, requires = "out")]
    resume: bool,
    /// Configuration to start from [default: examples/configs/qwen-small.toml].
    #[arg(long)]
    config: Option<PathBuf>,
}

fn presets() -> PossibleValuesParser {
    Algorithm::presets(1).into_iter().map(|(name, _)| name).collect::<Vec<_>>().into()
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut config = if let Some(path) = &options.config {
        RunConfig::from_file(path)?
    } else {
        let config = RunConfig::from_file(&root.join("examples/configs/qwen-small.toml"))?;
        RunConfig { model: root.join(&config.model), ..config }
    };
    config.seed = options.seed.unwrap_or(config.seed);
    config.device = options.device.unwrap_or(config.device);
    config.threads = options.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, Into::into));
    let reinforcement = &mut config.reinforcement;
    reinforcement.steps = options.steps.unwrap_or(reinforcement.steps);
    let mut presets = Algorithm::presets(reinforcement.max_tokens).into_iter();
    if let Some((name, preset)) = presets.find(|(name, _)| Some(*name) == options.algorithm.as_deref()) {
        reinforcement.algorithm = preset;
        config.name = format!("{}-{name}", config.name);
    }
    if let Some(credit) = options.credit {
        reinforcement.credit = credit;
    }
    config.name = format!("{}-{}-seed{}", config.name, reinforcement.credit.name(), config.seed);

    let destination = Destination::of(options.out, options.resume);
    let outcome = match run(&config, &destination, &Stop::on_signals()?, &mut Progress::detect())? {
        Ending::Complete(outcome) => outcome,
        Ending::Stopped { directory } => {
            println!("stopped; to go on, the same command with --out {} --resume", directory.display());
            return Ok(());
        }
    };
    println!("{}", outcome.table());
    let gain = outcome.reinforcement.sighted.accuracy.mean - outcome.supervised.sighted.accuracy.mean;
    ensure!(gain > 0.0, "reinforcement learning did not raise the held-out accuracy ({:+.1} points)", 100.0 * gain);
    println!("reinforcement learning raised the held-out accuracy by {:.1} points", 100.0 * gain);
    Ok(())
}
