//! Credit assignment compared honestly: every combination of algorithm and credit, from the same warm-up, on the same
//! prompts, over several seeds.
//!
//! ```sh
//! cargo run --release --example compare -- --seeds 3
//! ```
//!
//! `--threads` arms run at a time. Prints a table.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use clap::Parser;
use firesight_kawhi::KawhiConfig;
use firesight_rl::Algorithm;
use firesight_train::{
    Checkpoint, CreditConfig, Destination, HeldOutAccuracy, Job, Progress, Run, RunConfig, State, Stop, reinforcement,
    supervised,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Compares algorithms and credit assignment on the main job.
#[derive(Debug, Parser)]
struct Options {
    /// Seeds, counted from 0.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
    /// Rollouts of every arm [default: as in the configuration].
    #[arg(long)]
    steps: Option<usize>,
    /// Arms that run at a time, on one thread each.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Where the run directories go.
    #[arg(long, default_value = "runs/compare")]
    out: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut base = RunConfig::from_file(&root.join("examples/configs/qwen-small.toml"))?;
    base.model = root.join(&base.model);
    base.reinforcement.steps = options.steps.unwrap_or(base.reinforcement.steps);
    base.threads = options.threads;
    base.checkpoint = Checkpoint { every: 0, ..base.checkpoint };
    base.check()?;
    let algorithms = [("grpo", base.reinforcement.algorithm.clone()), ("gspo", Algorithm::gspo())];
    let credits = [CreditConfig::Uniform {}, CreditConfig::Kawhi(KawhiConfig::default())];
    let arms: Vec<_> = algorithms
        .iter()
        .flat_map(|(name, algorithm)| {
            credits.iter().map(move |credit| (format!("{name} + {}", credit.name()), algorithm.clone(), credit.clone()))
        })
        .collect();

    println!("| seed | warm-up | {} |", arms.iter().map(|(name, ..)| name.as_str()).collect::<Vec<_>>().join(" | "));
    println!("|---|---|{}", "---|".repeat(arms.len()));
    let mut gains = vec![Vec::new(); arms.len()];
    for seed in 0..options.seeds {
        let mut config = RunConfig { seed, ..base.clone() };
        config.name = format!("seed{seed}-warm-up");
        let job = Job::new(&config)?;
        let directory = Destination::Under(options.out.clone()).create(&config)?;
        let (stop, mut progress) = (Stop::default(), Progress::detect());
        let start = State::start(job.policy(&config.trainable, seed)?);
        let policy = supervised(start, &mut Run::new(&config, &job, directory, &stop, &mut progress))?.policy;
        let held_out = job.held_out(&RunConfig { threads: 1, ..config.clone() })?;
        let warm_up = held_out.measure(&policy)?;

        let found: Mutex<Vec<Option<HeldOutAccuracy>>> = Mutex::new(vec![None; arms.len()]);
        let next = Mutex::new(0..arms.len());
        let worker = || -> anyhow::Result<()> {
            loop {
                let Some(index) = next.lock().ok().and_then(|mut next| next.next()) else { return Ok(()) };
                let mut config = RunConfig { threads: 1, ..config.clone() };
                let (name, algorithm, credit) = arms[index].clone();
                (config.reinforcement.algorithm, config.reinforcement.credit) = (algorithm, credit);
                config.name = format!("seed{seed}-{}", name.replace(" + ", "-"));
                let directory = Destination::Under(options.out.clone()).create(&config)?;
                let (stop, mut progress) = (Stop::default(), Progress::silent());
                let mut run = Run::new(&config, &job, directory, &stop, &mut progress);
                let trained = reinforcement(State::start(policy.clone()), &held_out, &mut run)?;
                let accuracy = held_out.measure(&trained.policy)?;
                if let Ok(mut found) = found.lock() {
                    found[index] = Some(accuracy);
                }
            }
        };
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..options.threads).map(|_| scope.spawn(worker)).collect();
            workers.into_iter().try_for_each(|worker| worker.join().expect("a worker does not panic"))
        })?;
        let found: Vec<HeldOutAccuracy> = found.into_inner()?.into_iter().flatten().collect();
        let cells: Vec<String> = std::iter::once(&warm_up).chain(&found).map(cell).collect();
        println!("| {seed} | {} |", cells.join(" | "));
        for (gains, accuracy) in gains.iter_mut().zip(found) {
            gains.push(100.0 * (accuracy.sighted.accuracy.mean - warm_up.sighted.accuracy.mean));
        }
    }
    let cells: Vec<String> = gains.iter().map(|gains| mean_and_error(gains)).collect();
    println!("| gain, mean ± s.e. | | {} |", cells.join(" | "));
    Ok(())
}

fn cell(accuracy: &HeldOutAccuracy) -> String {
    format!("{:.1} (blind {:.1})", 100.0 * accuracy.sighted.accuracy.mean, 100.0 * accuracy.blind.mean)
}

fn mean_and_error(values: &[f64]) -> String {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    if values.len() == 1 {
        return format!("{mean:+.1}");
    }
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (count - 1.0);
    format!("{mean:+.1} ± {:.1}", (variance / count).sqrt())
}
