//! Table 3 of the KAWHI paper (arXiv 2603.27375) on the main job: which part of the method does what, beside GRPO, GSPO
//! and DAPO without it.
//!
//! ```sh
//! cargo run --release --example ablation -- --seeds 3 --steps 100
//! ```
//!
//! Each seed has one warm-up, whose vision-critical heads are searched first; from there all rows go on with the same
//! prompts, `--threads` of them at a time. Prints the table of `firesight compare`, and leaves what that does; the same
//! command runs the rows and seeds that are missing. DAPO is its loss and advantage here, without its dynamic sampling.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::bail;
use clap::Parser;
use firesight_kawhi::{Granularity, Heads, KawhiConfig, Metric, RegionSelection};
use firesight_rl::{Algorithm, Rope};
use firesight_train::{
    Comparison, Credit, CreditConfig, Destination, Error, HeadSearch, Progress, Reinforcement, RunConfig, Stop,
    Variant, WarmUp, compare, vision_critical_heads,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The row that the parts of KAWHI are compared with; GSPO and DAPO with KAWHI, with themselves.
const BASE: &str = "GRPO";

fn base_of(row: &str) -> Option<String> {
    (row != BASE).then(|| row.strip_suffix(" + KAWHI").unwrap_or(BASE).into())
}

/// Compares the parts of KAWHI, and base algorithms, on the main job.
#[derive(Debug, Parser)]
struct Options {
    /// Seeds, counted from 0.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
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

/// The rows of the table, given the heads that the paper's method compares.
fn rows(settings: &Reinforcement, critical: &Heads) -> Vec<Variant> {
    let Reinforcement { algorithm: grpo, max_tokens, .. } = settings;
    let with = |change: fn(&mut KawhiConfig)| {
        let mut config = KawhiConfig { heads: critical.clone(), ..KawhiConfig::default() };
        change(&mut config);
        Credit::from(CreditConfig::Kawhi(config))
    };
    let uniform = || Credit::from(CreditConfig::uniform());
    let dapo = || Algorithm::presets(*max_tokens).into_iter().find(|(name, _)| *name == "dapo").expect("a preset").1;
    let rows = [
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
    ];
    let variant = |(name, algorithm, credit): (&str, _, _)| Variant {
        name: name.into(),
        base: base_of(name),
        reinforcement: Reinforcement { algorithm, credit, ..settings.clone() },
    };
    rows.into_iter().map(variant).collect()
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut config = RunConfig::from_file(&root.join("examples/configs/qwen-small.toml"))?;
    config.name = "ablation".into();
    config.model = root.join(&config.model);
    config.reinforcement.steps = options.steps.unwrap_or(config.reinforcement.steps);
    config.evaluation.examples = options.questions;
    config.threads = options.threads;
    let mut variants = rows(&config.reinforcement, &Heads::All);
    let known: Vec<&str> = variants.iter().map(|variant| variant.name.as_str()).collect();
    if let Some(unknown) = options.rows.iter().find(|name| !known.contains(&name.as_str())) {
        bail!("there is no row {unknown:?}; the rows are {}", known.join(", "));
    }
    variants.retain(|variant| options.rows.is_empty() || options.rows.contains(&variant.name));
    let comparison = Comparison {
        config,
        variants,
        seeds: (0..options.seeds).collect(),
        parameters: BTreeMap::from([("threshold".into(), options.threshold.to_string())]),
    };
    let adapt = |warm_up: WarmUp<'_>, _| with_critical_heads(warm_up, options.threshold);
    let destination = Destination::Resume(options.out);
    let found = compare(&comparison, Some(&adapt), &destination, &Stop::on_signals()?, &mut Progress::detect())?;
    println!("\n{}", found.findings.markdown());
    if !found.complete {
        println!("\nstopped; the same command goes on");
    }
    Ok(())
}

/// The rows with the heads that the model sees with after its warm-up.
fn with_critical_heads(warm_up: WarmUp<'_>, threshold: f64) -> Result<Vec<Variant>, Error> {
    let WarmUp { config, model, directory, stop } = warm_up;
    let seed = config.seed;
    let config = RunConfig { model: model.into(), ..config.clone() };
    let destination = Destination::Resume(directory.join(format!("seed{seed}-heads")));
    let search = vision_critical_heads(&config, threshold, &destination, stop, &mut Progress::silent())?;
    let HeadSearch::Complete { found, .. } = search else { return Ok(Vec::new()) };
    println!("seed {seed}: critical heads {:?} of {}", found.critical, found.scores.len());
    // Without a critical head, all are compared.
    let heads = if found.critical.is_empty() { Heads::All } else { Heads::List(found.critical) };
    Ok(rows(&config.reinforcement, &heads))
}
