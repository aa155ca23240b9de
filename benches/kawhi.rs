//! KAWHI's share of a training step, in CPU seconds.
//!
//! ```sh
//! cargo bench --bench kawhi [-- MODEL]            # MODEL: the warm-up directory of a run of the main job
//! FIRESIGHT_ORACLE=DIR cargo bench --bench kawhi  # with the peer benchmark's workload as well
//! ```
//!
//! All that KAWHI costs is spent while completions are drawn, so rollouts are timed, with it and without it in turn, of
//! the same policy, prompts and random numbers: what two neighbours differ by is KAWHI and noise. The median of the
//! differences is put into relation to a whole step without it. The target is below one percent.
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
use firesight_kawhi::KawhiConfig;
use firesight_rl::{Algorithm, CreditAssigner, MicroBatch, Options, Sampling, Trainer, Uniform};
use firesight_train::task::Charts;
use firesight_train::{Purpose, Questions, VlmPolicy, VlmPrompt};
use firesight_vlm::{Message, ModelConfig, Part, Processor, QwenVl, has_weights, read_image};
use parity::Parity;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures KAWHI's share of a step.
#[derive(Debug, Parser)]
struct Arguments {
    /// Model directory of the main job's workload [default: fresh weights].
    model: Option<PathBuf>,
    /// Pairs of rollouts.
    #[arg(long, default_value_t = 40)]
    rounds: usize,
    /// Of every step [default: one, then two].
    #[arg(long)]
    threads: Option<usize>,
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
    for threads in arguments.threads.map_or_else(|| vec![1, 2], |threads| vec![threads]) {
        for workload in &workloads {
            measure(workload, threads, arguments.rounds)?;
        }
    }
    Ok(())
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

fn trainer(
    workload: &Workload,
    threads: usize,
    credit: impl CreditAssigner<VlmPrompt> + Send + 'static,
) -> anyhow::Result<Trainer<VlmPolicy>> {
    let algorithm = Algorithm { kl: None, ..Algorithm::grpo() };
    let options = Options { threads, ..workload.options.clone() };
    Ok(Trainer::new(workload.policy.clone(), AdamWConfig::new().init(), algorithm, credit, options)?)
}

/// CPU seconds of a rollout.
fn rollout(
    workload: &Workload,
    threads: usize,
    round: usize,
    credit: impl CreditAssigner<VlmPrompt> + Send + 'static,
) -> anyhow::Result<f64> {
    let mut trainer = trainer(workload, threads, credit)?;
    let start = ProcessTime::now();
    trainer.rollout(&Parity, &workload.prompts[round % workload.prompts.len()])?;
    Ok(start.elapsed().as_secs_f64())
}

/// CPU seconds of a step without KAWHI.
fn step(workload: &Workload, threads: usize) -> anyhow::Result<f64> {
    let mut trainer = trainer(workload, threads, Uniform)?;
    let start = ProcessTime::now();
    trainer.step(&Parity, &workload.prompts[0], 1e-4)?;
    Ok(start.elapsed().as_secs_f64())
}

fn measure(workload: &Workload, threads: usize, rounds: usize) -> anyhow::Result<()> {
    // As in a run, one for all rounds, each of which has pictures of its own.
    let kawhi = Arc::new(workload.policy.kawhi(KawhiConfig::default())?);
    rollout(workload, threads, rounds, Arc::clone(&kawhi))?;
    let mut differences = Vec::new();
    for round in 0..rounds.max(1) {
        let without = || rollout(workload, threads, round, Uniform);
        // By turns the first, so that a drift of the machine has no direction.
        let before = if round % 2 == 0 { Some(without()?) } else { None };
        let with = rollout(workload, threads, round, Arc::clone(&kawhi))?;
        differences.push(with - before.map_or_else(without, Ok)?);
    }
    let mut steps = (0..5).map(|_| step(workload, threads)).collect::<anyhow::Result<Vec<f64>>>()?;
    let quartiles = |values: &mut Vec<f64>| {
        values.sort_by(f64::total_cmp);
        [1, 2, 3].map(|quarter| values[values.len() * quarter / 4])
    };
    let ([low, median, high], [_, step, _]) = (quartiles(&mut differences), quartiles(&mut steps));
    println!(
        "{}, {threads} threads: {:.2} ms of {step:.3} CPU s, {:.2} % (quartiles {:.2} to {:.2})",
        workload.name,
        1e3 * median,
        100.0 * median / step,
        100.0 * low / step,
        100.0 * high / step
    );
    Ok(())
}
