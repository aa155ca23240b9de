//! What credit methods add to a training step, in CPU seconds.
//!
//! ```sh
//! cargo bench --bench credit [-- MODEL]            # MODEL: the warm-up directory of a run of the main job
//! cargo bench --bench credit -- --methods kawhi,vppo+srpo
//! FIRESIGHT_ORACLE=DIR cargo bench --bench credit  # with the peer benchmark's workload as well
//! ```
//!
//! A method costs in two places. While completions are drawn: rollouts are timed, with it and without it in turn, of the
//! same policy, prompts and random numbers, so what two neighbours differ by is the method and noise; the median counts.
//! Before the update: the steps that follow say how long they were at it (`time/credit_s`), passes under a changed view
//! included; that is by a clock, which on one thread of an idle machine says the same as the processor's. Both are put
//! into relation to a whole step without credit, the second also to a forward pass over the rollout without gradients,
//! tower included. The targets: below two percent for methods without a view, below one for KAWHI, and a forward pass for
//! a view, whoever reads it.
#![allow(missing_docs)]

#[path = "../tests/support/parity.rs"]
mod parity;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use burn::module::Module as _;
use burn::optim::AdamWConfig;
use burn::tensor::Device;
use clap::Parser;
use cpu_time::ProcessTime;
use firesight_rl::{Algorithm, MicroBatch, Options, Policy as _, Sampling, SignalSet, Trainer};
use firesight_train::task::Charts;
use firesight_train::{Credit, CreditConfig, Purpose, Questions, VlmPolicy, VlmPrompt};
use firesight_vlm::{Message, ModelConfig, Part, Processor, QwenVl, has_weights, read_image};
use parity::Parity;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures what credit methods add to a step.
#[derive(Debug, Parser)]
struct Arguments {
    /// Model directory of the main job's workload [default: fresh weights].
    model: Option<PathBuf>,
    /// Pairs of rollouts.
    #[arg(long, default_value_t = 40)]
    rounds: usize,
    /// Methods, or products of some by +, separated by commas [default: all, and two that share a view].
    #[arg(long, value_delimiter = ',')]
    methods: Vec<Credit>,
    /// As cargo says to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

struct Workload {
    name: &'static str,
    policy: VlmPolicy,
    /// Of round after round, in turns.
    prompts: Vec<Vec<VlmPrompt>>,
    options: Options,
}

fn main() -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let arguments = Arguments::parse();
    let mut workloads =
        vec![main_job(&arguments.model.unwrap_or_else(|| root.join("models/qwen-small")), arguments.rounds)?];
    if let Some(oracle) = std::env::var_os("FIRESIGHT_ORACLE").map(PathBuf::from) {
        workloads.push(peer_benchmark(&oracle.join("bench"))?);
    }
    let mut methods = arguments.methods;
    if methods.is_empty() {
        methods = CreditConfig::presets().into_iter().skip(1).map(Credit::from).collect();
        methods.push("vppo+srpo".parse().map_err(anyhow::Error::msg)?);
    }
    workloads.iter().try_for_each(|workload| measure(workload, arguments.rounds, &methods))
}

/// 32 pictures, 8 completions of at most 32 tokens, two optimizer steps.
fn main_job(model: &Path, rounds: usize) -> anyhow::Result<Workload> {
    let policy = policy(model)?;
    let questions = Questions::new(Charts::new()?, policy.processor().clone(), 0);
    let round = |round| {
        let questions = questions.batch(Purpose::Reinforcement, 32 * round, 32)?;
        Ok(questions.into_iter().map(|question| question.prompt).collect())
    };
    let prompts = (0..=rounds).map(round).collect::<anyhow::Result<_>>()?;
    let sampling = Sampling { temperature: 1.0, max_tokens: 32, seed: 0, first_stream: 0 };
    let options = Options { micro_batch: MicroBatch::Groups(8), mini_batches: 2, ..Options::new(8, sampling) };
    Ok(Workload { name: "main job", policy, prompts, options })
}

/// 4 pictures, 8 completions of 64 tokens, one optimizer step, as the Python peers do it.
fn peer_benchmark(directory: &Path) -> anyhow::Result<Workload> {
    let policy = policy(directory)?;
    let processor = policy.processor();
    let images = processor.image_processor()?;
    let cell = images.patch_size() * images.merge_size();
    let text = std::fs::read_to_string(directory.join("data/prompts.json")).context("prompts.json")?;
    let rows: Vec<serde_json::Value> = serde_json::from_str(&text)?;
    let prompt = |row: &serde_json::Value| {
        let (image, question) =
            (row["image"].as_str().context("image")?, row["question"].as_str().context("question")?);
        let image = processor.image(&read_image(&directory.join(image))?)?;
        let message = Message::user(vec![Part::Image, Part::text(question)]);
        Ok(VlmPrompt::new(processor.prompt(&[message], &[image])?, cell))
    };
    let round = |rows: &[serde_json::Value]| rows.iter().map(prompt).collect::<anyhow::Result<Vec<_>>>();
    let prompts = rows.chunks(4).map(round).collect::<anyhow::Result<_>>()?;
    let sampling = Sampling { temperature: 1.0, max_tokens: 64, seed: 0, first_stream: 0 };
    let options = Options { micro_batch: MicroBatch::Groups(2), ..Options::new(8, sampling) };
    Ok(Workload { name: "peer benchmark", policy, prompts, options })
}

fn policy(directory: &Path) -> anyhow::Result<VlmPolicy> {
    let device = Device::flex().autodiff();
    let model = if has_weights(directory) {
        QwenVl::from_dir(directory, &device)?.train()
    } else {
        QwenVl::new(&ModelConfig::from_dir(directory)?, 0, &device)
    };
    Ok(VlmPolicy::new(model, Arc::new(Processor::from_dir(directory)?))?)
}

fn trainer(workload: &Workload, credit: &Credit) -> anyhow::Result<Trainer<VlmPolicy>> {
    let algorithm = Algorithm { kl: None, ..Algorithm::grpo() };
    let options = Options { threads: 1, ..workload.options.clone() };
    let policy = workload.policy.clone();
    let methods = credit.assigners(&policy)?;
    Ok(Trainer::with_methods(policy, AdamWConfig::new().init(), algorithm, methods, options)?)
}

/// CPU seconds of something.
fn timed<T>(work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<(T, f64)> {
    let start = ProcessTime::now();
    let done = work()?;
    Ok((done, start.elapsed().as_secs_f64()))
}

/// CPU seconds of a rollout, with the random numbers of every other.
fn rollout(trainer: &mut Trainer<VlmPolicy>, prompts: &[VlmPrompt]) -> anyhow::Result<f64> {
    trainer.options.sampling.first_stream = 0;
    Ok(timed(|| Ok(trainer.rollout(&Parity, prompts)?))?.1)
}

/// Lower quartile, median and upper quartile.
fn quartiles(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| values[values.len() * quarter / 4])
}

fn measure(workload: &Workload, rounds: usize, methods: &[Credit]) -> anyhow::Result<()> {
    let prompts = |round: usize| &workload.prompts[round % workload.prompts.len()];
    let uniform = "uniform".parse().map_err(anyhow::Error::msg)?;
    let (mut steps, mut passes) = (Vec::new(), Vec::new());
    for round in 0..5 {
        let mut trainer = trainer(workload, &uniform)?;
        steps.push(timed(|| Ok(trainer.step(&Parity, prompts(round), 1e-4)?))?.1);
        let groups = trainer.rollout(&Parity, prompts(round))?.groups;
        let policy = trainer.policy.valid();
        passes.push(timed(|| Ok(policy.score(&groups, 1.0, &SignalSet::default())?.log_probs.into_data()))?.1);
    }
    let ([_, step, _], [_, pass, _]) = (quartiles(steps), quartiles(passes));
    println!("{}: a step {step:.3} CPU s, a forward pass {pass:.3}", workload.name);
    for credit in methods {
        let (mut without, mut with) = (trainer(workload, &uniform)?, trainer(workload, credit)?);
        rollout(&mut with, prompts(rounds))?;
        let mut differences = Vec::new();
        for round in 0..rounds.max(1) {
            // By turns the first, so that a drift of the machine has no direction.
            let before = if round % 2 == 0 { Some(rollout(&mut without, prompts(round))?) } else { None };
            let found = rollout(&mut with, prompts(round))?;
            differences.push(found - before.map_or_else(|| rollout(&mut without, prompts(round)), Ok)?);
        }
        let updates = (0..5).map(|round| {
            let mut trainer = trainer(workload, credit)?;
            let groups = trainer.rollout(&Parity, prompts(round))?.groups;
            Ok(trainer.update(&groups, 1e-4)?.timing.credit.as_secs_f64())
        });
        let [_, update, _] = quartiles(updates.collect::<anyhow::Result<Vec<f64>>>()?);
        let [low, median, high] = quartiles(differences);
        println!(
            "  {credit}: {:.2} % of a step: {:.2} ms while drawing (quartiles {:.2} to {:.2}), {:.2} ms before the \
             update, {:.2} forward passes",
            100.0 * (median + update) / step,
            1e3 * median,
            1e3 * low,
            1e3 * high,
            1e3 * update,
            update / pass
        );
    }
    Ok(())
}
