//! KAWHI's share of a training step: the CPU seconds of steps with it over those of the same steps without it.
//!
//! ```sh
//! cargo bench --bench kawhi [-- MODEL]            # MODEL: the warm-up directory of a run of the main job
//! FIRESIGHT_ORACLE=DIR cargo bench --bench kawhi  # with the peer benchmark's workload as well
//! ```
//!
//! A step with KAWHI and one without draw the same completions from the same policy, in turn, so that what they differ
//! by is KAWHI and noise. Two figures: the median of the ratios of neighbours, with its quartiles, and the ratio of the
//! two arms' lower quartiles, which the load of the machine reaches least. The target is below one percent.
//! `time/credit_s` leaves out what the passes that draw do more: taking states, and running last tokens.
#![allow(missing_docs)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use burn::module::Module as _;
use burn::optim::AdamWConfig;
use burn::tensor::Device;
use clap::Parser;
use cpu_time::ProcessTime;
use firesight_kawhi::KawhiConfig;
use firesight_rl::{
    Algorithm, Completion, CreditAssigner, MicroBatch, Options, Reward, Sampling, Task, TaskError, Trainer, Uniform,
};
use firesight_train::task::Charts;
use firesight_train::{Purpose, Questions, VlmPolicy, VlmPrompt};
use firesight_vlm::{Message, ModelConfig, Part, Processor, QwenVl, has_weights, read_image};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures KAWHI's share of a step.
#[derive(Debug, Parser)]
struct Arguments {
    /// Model directory of the main job's workload [default: fresh weights].
    model: Option<PathBuf>,
    /// Pairs of steps.
    #[arg(long, default_value_t = 25)]
    rounds: usize,
    /// Of every step [default: one, then two].
    #[arg(long)]
    threads: Option<usize>,
    /// As cargo says to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Debug, Clone, Copy)]
enum Arm {
    With,
    Without,
}

/// Rewards that differ within every group, so that every group is trained on.
struct Parity;

impl Task for Parity {
    type Sample = VlmPrompt;
    type Prompt = VlmPrompt;

    fn prompt(&self, prompt: &VlmPrompt) -> Result<VlmPrompt, TaskError> {
        Ok(prompt.clone())
    }

    fn reward(&self, _: &VlmPrompt, completion: &Completion) -> Result<Reward, TaskError> {
        Ok(Reward::of("parity", completion.tokens.iter().sum::<u32>() as f32 % 7.0))
    }
}

struct Workload {
    name: &'static str,
    policy: VlmPolicy,
    prompts: Vec<VlmPrompt>,
    options: Options,
}

fn main() -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let arguments = Arguments::parse();
    let mut workloads = vec![main_job(&arguments.model.unwrap_or_else(|| root.join("models/qwen-small")))?];
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
fn main_job(model: &Path) -> anyhow::Result<Workload> {
    let policy = policy(model)?;
    let questions = Questions::new(Charts::new()?, policy.processor().clone(), 0);
    let prompts = questions.batch(Purpose::Reinforcement, 0, 32)?.into_iter().map(|question| question.prompt).collect();
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
    let prompts = rows[..4].iter().map(prompt).collect::<anyhow::Result<_>>()?;
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

/// What one step took.
struct Taken {
    cpu_s: f64,
    /// Share of `time/credit_s`.
    credit: f64,
    tokens: f64,
}

fn step(workload: &Workload, threads: usize, arm: Arm) -> anyhow::Result<Taken> {
    let Workload { policy, prompts, options, .. } = workload;
    // A new one every time: a run sees an image once.
    let credit: Box<dyn CreditAssigner<VlmPrompt> + Send> = match arm {
        Arm::With => Box::new(policy.kawhi(KawhiConfig::default())?),
        Arm::Without => Box::new(Uniform),
    };
    let algorithm = Algorithm { kl: None, ..Algorithm::grpo() };
    let options = Options { threads, ..options.clone() };
    let mut trainer = Trainer::new(policy.clone(), AdamWConfig::new().init(), algorithm, credit, options)?;
    let start = ProcessTime::now();
    let report = trainer.step(&Parity, prompts, 1e-4)?;
    let cpu_s = start.elapsed().as_secs_f64();
    let metric = |name| report.metric(name).context(name);
    Ok(Taken {
        cpu_s,
        credit: metric("time/credit_s")? / metric("time/step_s")?,
        tokens: metric("completion/length_mean")?,
    })
}

fn measure(workload: &Workload, threads: usize, rounds: usize) -> anyhow::Result<()> {
    step(workload, threads, Arm::With)?;
    let (mut ratios, mut shares) = (Vec::new(), Vec::new());
    let (mut arm, mut base) = (Vec::new(), Vec::new());
    let mut length = 0.0;
    for round in 0..rounds.max(1) {
        // By turns the first, so that a drift of the machine has no direction.
        let before = if round % 2 == 0 { Some(step(workload, threads, Arm::Without)?) } else { None };
        let with = step(workload, threads, Arm::With)?;
        let without = before.map_or_else(|| step(workload, threads, Arm::Without), Ok)?;
        ratios.push(100.0 * (with.cpu_s / without.cpu_s - 1.0));
        shares.push(100.0 * with.credit);
        arm.push(with.cpu_s);
        base.push(without.cpu_s);
        length = with.tokens;
    }
    let quartiles = |values: &mut Vec<f64>| {
        values.sort_by(f64::total_cmp);
        [1, 2, 3].map(|quarter| values[values.len() * quarter / 4])
    };
    let ([low, median, high], [_, share, _]) = (quartiles(&mut ratios), quartiles(&mut shares));
    let ([arm, ..], [base, ..]) = (quartiles(&mut arm), quartiles(&mut base));
    println!(
        "{}, {threads} threads: {base:.3} CPU s a step without KAWHI, {arm:.3} with it, {:+.2} % (lower quartiles); \
         neighbours {median:+.2} % ({low:+.2} to {high:+.2}); time/credit_s is {share:.2} % of time/step_s \
         ({length:.1} tokens a completion)",
        workload.name,
        100.0 * (arm / base - 1.0)
    );
    Ok(())
}
