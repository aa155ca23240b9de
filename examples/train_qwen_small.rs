//! A small Qwen3-VL learns to read charts and handwritten digits, from nothing, on a CPU.
//!
//! ```sh
//! cargo run --release --example train_qwen_small
//! ```
//!
//! Ends with a table of held-out accuracies, and fails if reinforcement learning did not raise them.

use std::path::{Path, PathBuf};

use anyhow::ensure;
use clap::{Parser, ValueEnum};
use firesight_kawhi::KawhiConfig;
use firesight_train::{AlgorithmConfig, CreditConfig, Destination, Progress, RunConfig, run};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Algorithm {
    Grpo,
    Gspo,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Credit {
    Uniform,
    Kawhi,
}

/// Trains a small vision-language model with reinforcement learning on real images.
#[derive(Debug, Parser)]
struct Options {
    /// What is optimised [default: as in the configuration].
    #[arg(long)]
    algorithm: Option<Algorithm>,
    /// How an advantage is split over the tokens of a completion [default: as in the configuration].
    #[arg(long)]
    credit: Option<Credit>,
    /// Seed of the run.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Rollouts of reinforcement learning [default: as in the configuration].
    #[arg(long)]
    steps: Option<usize>,
    /// flex, cuda, cuda:<index> or wgpu, as far as compiled in.
    #[arg(long, default_value = "flex")]
    device: String,
    /// Threads; changes the speed, never the result [default: all processors].
    #[arg(long)]
    threads: Option<usize>,
    /// Run directory; must not hold anything yet [default: one under runs, named after the run].
    #[arg(long)]
    out: Option<PathBuf>,
    /// Configuration to start from [default: examples/configs/qwen-small.toml].
    #[arg(long)]
    config: Option<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = options.config.unwrap_or_else(|| root.join("examples/configs/qwen-small.toml"));
    let mut config = RunConfig::from_file(&path)?;
    config.model = root.join(&config.model);
    config.seed = options.seed;
    config.device = options.device;
    config.threads = options.threads.or_else(|| std::thread::available_parallelism().ok().map(Into::into)).unwrap_or(1);
    config.reinforcement.steps = options.steps.unwrap_or(config.reinforcement.steps);
    match options.algorithm {
        Some(Algorithm::Grpo) => {
            config.reinforcement.algorithm = AlgorithmConfig::Grpo { clip_low: 0.2, clip_high: 0.28, kl: 0.0 }
        }
        Some(Algorithm::Gspo) => {
            config.reinforcement.algorithm = AlgorithmConfig::Gspo { clip_low: 3e-4, clip_high: 4e-4, kl: 0.0 }
        }
        None => {}
    }
    match options.credit {
        Some(Credit::Uniform) => config.reinforcement.credit = CreditConfig::Uniform,
        Some(Credit::Kawhi) => config.reinforcement.credit = CreditConfig::Kawhi(KawhiConfig::default()),
        None => {}
    }
    let reinforcement = &config.reinforcement;
    config.name =
        format!("qwen-small-{}-{}-seed{}", reinforcement.algorithm.name(), reinforcement.credit.name(), config.seed);

    let destination = options.out.map_or_else(|| Destination::Under("runs".into()), Destination::Exactly);
    let outcome = run(&config, &destination, &mut Progress::detect())?;
    println!("{}", outcome.table());
    let gain = outcome.reinforcement.sighted - outcome.supervised.sighted;
    ensure!(gain > 0.0, "reinforcement learning did not raise the held-out accuracy ({:+.1} points)", 100.0 * gain);
    println!("reinforcement learning raised the held-out accuracy by {:.1} points", 100.0 * gain);
    Ok(())
}
