//! Table 3 of the KAWHI paper (arXiv 2603.27375) on the main job: which part of the method does what, beside GRPO, GSPO
//! and DAPO without it.
//!
//! ```sh
//! cargo run --release --example ablation -- --seeds 3 --steps 100
//! ```
//!
//! Each seed has one warm-up, whose vision-critical heads are searched first; from there all rows go on with the same
//! prompts, `--threads` of them at a time. Prints a table: held-out accuracy by seed, and against its base each row's
//! mean difference over the seeds, its standard error and the p-value of a paired t-test, which is not corrected for
//! the number of rows. What is measured is kept in `results.jsonl`: the same command runs the rows that are missing,
//! each seed with them from a warm-up of its own again. DAPO is its loss and advantage here, without its dynamic
//! sampling.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::str::FromStr as _;
use std::sync::Mutex;
use std::time::Instant;

use anyhow::{Context as _, bail};
use clap::Parser;
use firesight_kawhi::{Granularity, Heads, KawhiConfig, Metric, RegionSelection};
use firesight_rl::{Algorithm, Rope};
use firesight_train::{
    Checkpoint, Credit, CreditConfig, Destination, HeadSearch, Job, Log, Progress, Run, RunConfig, State, Stop,
    reinforcement, supervised, vision_critical_heads,
};
use firesight_vlm::SaveOptions;
use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF as _, StudentsT};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The row that the parts of KAWHI are compared with; GSPO and DAPO with KAWHI, with themselves.
const BASE: &str = "GRPO";

fn base_of(row: &str) -> &str {
    row.strip_suffix(" + KAWHI").unwrap_or(BASE)
}

/// Compares the parts of KAWHI, and base algorithms, on the main job.
#[derive(Debug, Parser)]
struct Options {
    /// Seeds, counted from 0.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
    /// Begins no further seed after so many minutes.
    #[arg(long)]
    minutes: Option<f64>,
    /// Rollouts of every row [default: as in the configuration].
    #[arg(long)]
    steps: Option<usize>,
    /// A head is critical if masking it costs more than this share of the accuracy. The paper's 0.043 takes all four
    /// heads of the small model, which would make "all heads" the same row as "KAWHI".
    #[arg(long, default_value_t = 0.5)]
    threshold: f64,
    /// Held-out questions.
    #[arg(long, default_value_t = 1200)]
    questions: usize,
    /// The rows to run, by name and separated by commas, such as `GRPO,KAWHI,GSPO,GSPO + KAWHI` [default: all].
    #[arg(long, value_delimiter = ',')]
    rows: Vec<String>,
    /// Rows that run at a time, on one thread each.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Where the run directories and the results go.
    #[arg(long, default_value = "runs/ablation")]
    out: PathBuf,
}

/// What one row came to.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Measured {
    seed: u64,
    row: String,
    /// Share of right greedy answers to the held-out questions.
    accuracy: f64,
}

type Results = BTreeMap<(u64, String), f64>;

/// The rows of the table, given the heads that the paper's method compares.
fn rows(grpo: &Algorithm, max_tokens: usize, critical: &Heads) -> Vec<(&'static str, Algorithm, Credit)> {
    let with = |change: fn(&mut KawhiConfig)| {
        let mut config = KawhiConfig { heads: critical.clone(), ..KawhiConfig::default() };
        change(&mut config);
        CreditConfig::Kawhi(config).into()
    };
    let uniform = || Credit::from_str("uniform").expect("a method");
    let dapo = || Algorithm::presets(max_tokens).into_iter().find(|(name, _)| *name == "dapo").expect("a preset").1;
    vec![
        (BASE, grpo.clone(), uniform()),
        ("KAWHI", grpo.clone(), with(|_| ())),
        ("all regions", grpo.clone(), with(|config| config.regions = RegionSelection::All)),
        ("random regions", grpo.clone(), with(|config| config.regions = RegionSelection::Random)),
        ("inverse regions", grpo.clone(), with(|config| config.regions = RegionSelection::Inverse)),
        ("key-key", grpo.clone(), with(|config| config.metric = Metric::KeyKey)),
        ("sentence", grpo.clone(), with(|config| config.granularity = Granularity::Sentence)),
        ("token", grpo.clone(), with(|config| config.granularity = Granularity::Token)),
        ("all heads", grpo.clone(), with(|config| config.heads = Heads::All)),
        ("before RoPE", grpo.clone(), with(|config| config.rope = Rope::Before)),
        ("GSPO", Algorithm::gspo(), uniform()),
        ("GSPO + KAWHI", Algorithm::gspo(), with(|_| ())),
        ("DAPO", dapo(), uniform()),
        ("DAPO + KAWHI", dapo(), with(|_| ())),
    ]
}

fn main() -> anyhow::Result<()> {
    let (options, started) = (Options::parse(), Instant::now());
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut base = RunConfig::from_file(&root.join("examples/configs/qwen-small.toml"))?;
    base.model = root.join(&base.model);
    base.reinforcement.steps = options.steps.unwrap_or(base.reinforcement.steps);
    base.evaluation.examples = options.questions;
    base.threads = options.threads;
    base.checkpoint = Checkpoint { every: 0, ..base.checkpoint };
    base.log = Log { rollouts_every: 0, tensorboard: false };
    base.check()?;
    let known: Vec<&str> = names(&base);
    if let Some(unknown) = options.rows.iter().find(|name| !known.contains(&name.as_str())) {
        bail!("there is no row {unknown:?}; the rows are {}", known.join(", "));
    }
    let chosen = |name: &str| options.rows.is_empty() || options.rows.iter().any(|row| row == name);
    let chosen: Vec<&str> = known.into_iter().filter(|name| chosen(name)).collect();
    std::fs::create_dir_all(&options.out)?;
    same_experiment(&options, &base)?;
    let file = options.out.join("results.jsonl");
    let mut results = read(&file)?;
    for seed in 0..options.seeds {
        if options.minutes.is_some_and(|minutes| started.elapsed().as_secs_f64() > 60.0 * minutes) {
            break;
        }
        if chosen.iter().any(|name| !results.contains_key(&(seed, (*name).to_owned()))) {
            train(&RunConfig { seed, ..base.clone() }, &options, &chosen, &file, &mut results)?;
        }
    }
    println!("\n{}", table(&chosen, &results));
    Ok(())
}

/// Refuses results of other settings: they would be compared with these.
fn same_experiment(options: &Options, base: &RunConfig) -> anyhow::Result<()> {
    let file = options.out.join("experiment.toml");
    let config = RunConfig { threads: 1, ..base.clone() }.to_toml();
    let experiment = format!("# heads are critical from {} of the accuracy on\n{config}", options.threshold);
    if !file.exists() {
        std::fs::write(&file, experiment)?;
    } else if std::fs::read_to_string(&file)? != experiment {
        bail!("{} is of another experiment than these settings; choose another --out", file.display());
    }
    Ok(())
}

fn names(config: &RunConfig) -> Vec<&'static str> {
    let rows = rows(&config.reinforcement.algorithm, config.reinforcement.max_tokens, &Heads::All);
    rows.into_iter().map(|(name, ..)| name).collect()
}

/// Runs the rows of a seed that are not in the results.
fn train(
    config: &RunConfig,
    options: &Options,
    chosen: &[&str],
    file: &Path,
    results: &mut Results,
) -> anyhow::Result<()> {
    let seed = config.seed;
    let named = |name: &str| RunConfig { name: format!("seed{seed}-{name}"), ..config.clone() };
    let under = || Destination::Under(options.out.clone());
    let warm_up = named("warm-up");
    let job = Job::new(&warm_up)?;
    let directory = under().create(&warm_up)?;
    let model = directory.path().join("model");
    let (stop, mut progress) = (Stop::default(), Progress::detect());
    let start = State::start(job.policy(&config.trainable, seed)?);
    let policy = supervised(start, &mut Run::new(&warm_up, &job, directory, &stop, &mut progress))?.policy;
    policy.model.save(&model, &config.model, SaveOptions::default())?;
    let search = RunConfig { model, ..named("heads") };
    let search = vision_critical_heads(&search, options.threshold, &under(), &stop, &mut progress)?;
    let HeadSearch::Complete { found, .. } = search else { bail!("the search for heads was stopped") };
    let (heads, accuracy) = (found.scores.len(), 100.0 * found.baseline);
    println!("seed {seed}: {accuracy:.1} % after the warm-up; critical heads {:?} of {heads}", found.critical);
    let critical = if found.critical.is_empty() {
        println!("seed {seed}: without a critical head, KAWHI compares all of them");
        Heads::All
    } else {
        Heads::List(found.critical)
    };

    let held_out = job.held_out(&RunConfig { threads: 1, ..config.clone() });
    let mut left = rows(&config.reinforcement.algorithm, config.reinforcement.max_tokens, &critical);
    left.retain(|(name, ..)| chosen.contains(name) && !results.contains_key(&(seed, (*name).to_owned())));
    let (next, results) = (Mutex::new(left.into_iter()), Mutex::new(results));
    let worker = || -> anyhow::Result<()> {
        loop {
            let row = next.lock().expect("a worker does not panic").next();
            let Some((name, algorithm, credit)) = row else { return Ok(()) };
            let mut config = RunConfig { threads: 1, ..named(&name.replace([' ', '+'], "-")) };
            (config.reinforcement.algorithm, config.reinforcement.credit) = (algorithm, credit);
            let directory = under().create(&config)?;
            let (stop, mut progress) = (Stop::default(), Progress::silent());
            let mut run = Run::new(&config, &job, directory, &stop, &mut progress);
            let trained = reinforcement(State::start(policy.clone()), &held_out, &mut run)?;
            let accuracy = held_out.sighted(&trained.policy)?.accuracy.mean;
            let mut results = results.lock().expect("a worker does not panic");
            write(file, &Measured { seed, row: name.into(), accuracy })?;
            println!("seed {seed}: {name} {:.1} %", 100.0 * accuracy);
            results.insert((seed, name.into()), accuracy);
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..options.threads).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("a worker does not panic"))
    })
}

fn read(file: &Path) -> anyhow::Result<Results> {
    let text = if file.exists() { std::fs::read_to_string(file)? } else { String::new() };
    let line = |(number, line)| {
        let Measured { seed, row, accuracy } =
            serde_json::from_str(line).with_context(|| format!("{}:{}", file.display(), number + 1))?;
        Ok(((seed, row), accuracy))
    };
    text.lines().enumerate().map(line).collect()
}

fn write(file: &Path, measured: &Measured) -> anyhow::Result<()> {
    let mut file = std::fs::File::options().create(true).append(true).open(file)?;
    Ok(file.write_all(format!("{}\n", serde_json::to_string(measured)?).as_bytes())?)
}

/// The seeds that have a row and its base are what it is compared over.
fn table(names: &[&str], results: &Results) -> String {
    let seeds: BTreeSet<u64> = results.keys().map(|(seed, _)| *seed).collect();
    let of = |seed: u64, name: &str| results.get(&(seed, name.to_owned())).map(|accuracy| 100.0 * accuracy);
    let header: Vec<String> = seeds.iter().map(|seed| format!("seed {seed}")).collect();
    let header = format!("| row | {} | mean ± s.e. | minus | difference ± s.e. | p |", header.join(" | "));
    let mut lines = vec![header, "|---".repeat(seeds.len() + 5) + "|"];
    for name in names {
        let shown = |&seed: &u64| of(seed, name).map_or_else(String::new, |value| format!("{value:.1}"));
        let values: Vec<f64> = seeds.iter().filter_map(|&seed| of(seed, name)).collect();
        let base = if *name == BASE { "" } else { base_of(name) };
        let differences: Vec<f64> = seeds.iter().filter_map(|&seed| Some(of(seed, name)? - of(seed, base)?)).collect();
        let (mut difference, mut p) = (String::new(), String::new());
        if !differences.is_empty() {
            difference = mean_and_error(&differences, true);
            p = paired_p(&differences).map_or(p, |p| format!("{p:.2}"));
        }
        let (cells, mean) = (seeds.iter().map(shown).collect::<Vec<_>>().join(" | "), mean_and_error(&values, false));
        lines.push(format!("| {name} | {cells} | {mean} | {base} | {difference} | {p} |"));
    }
    lines.join("\n")
}

fn moments(values: &[f64]) -> (f64, Option<f64>) {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (count - 1.0);
    (mean, (values.len() > 1).then(|| (variance / count).sqrt()))
}

fn mean_and_error(values: &[f64], signed: bool) -> String {
    let (mean, error) = moments(values);
    let mean = if signed { format!("{mean:+.1}") } else { format!("{mean:.1}") };
    error.map_or(mean.clone(), |error| format!("{mean} ± {error:.1}"))
}

/// Two-sided p-value of the paired t-test: how often differences at least as large turn up where there is none.
fn paired_p(differences: &[f64]) -> Option<f64> {
    let (mean, error) = moments(differences);
    let error = error.filter(|&error| error > 0.0)?;
    let distribution = StudentsT::new(0.0, 1.0, differences.len() as f64 - 1.0).ok()?;
    Some(2.0 * distribution.sf((mean / error).abs()))
}
