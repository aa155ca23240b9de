//! How long a training step takes, beside the Python programs that do the same work (`benches/peers/step.py`).
//!
//! ```sh
//! cargo run --release --example bench_step -- MODEL_DIRECTORY --threads 1
//! ```
//!
//! GRPO on the questions of `data/prompts.json` in the model directory, a list of `{"image": path beside the model,
//! "question": text}`: step `s` takes the next `--prompts` of them, draws `--group` completions of exactly `--new` tokens
//! for each and trains on them once, with AdamW at 1e-4 and a gradient norm of at most 1. Decoding and preparing the
//! images is part of the step. Prints one line of JSON.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use burn::module::Module as _;
use burn::optim::AdamWConfig;
use burn::tensor::Device;
use clap::Parser;
use cpu_time::ProcessTime;
use firesight_rl::{Algorithm, Completion, MicroBatch, Options, Reward, Sampling, Task, TaskError, Trainer, Uniform};
use firesight_train::{VlmPolicy, VlmPrompt, peak_memory};
use firesight_vlm::{Message, Part, Processor, QwenVl, read_image};
use rayon::prelude::*;
use serde::Deserialize;
use serde_json::json;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Trains for a few steps and prints how long they took.
#[derive(Debug, Parser)]
struct Arguments {
    /// Model directory in Hugging Face layout, with `data/prompts.json`.
    model: PathBuf,
    /// Steps that count.
    #[arg(long, default_value_t = 6)]
    steps: usize,
    /// Steps before them.
    #[arg(long, default_value_t = 1)]
    warmup: usize,
    /// Threads.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Prompts a step.
    #[arg(long, default_value_t = 4)]
    prompts: usize,
    /// Completions a prompt.
    #[arg(long, default_value_t = 8)]
    group: usize,
    /// Tokens of every completion.
    #[arg(long, default_value_t = 64)]
    new: usize,
    /// Never draw this token or any after it: the ones that end a completion.
    #[arg(long, default_value_t = 998)]
    suppress_from: u32,
    /// Groups that go through one forward and backward pass, on every thread.
    #[arg(long, default_value_t = 1)]
    micro_batch: usize,
    /// Keep only the inputs of layers for the backward pass, and compute the rest again.
    #[arg(long)]
    activation_checkpointing: bool,
}

#[derive(Deserialize)]
struct Question {
    image: PathBuf,
    question: String,
}

/// The share of characters that are different, as the other programs reward it.
struct Variety {
    tokens: usize,
}

impl Task for Variety {
    type Sample = VlmPrompt;
    type Prompt = VlmPrompt;

    fn prompt(&self, prompt: &VlmPrompt) -> Result<VlmPrompt, TaskError> {
        Ok(prompt.clone())
    }

    fn reward(&self, _: &VlmPrompt, completion: &Completion) -> Result<Reward, TaskError> {
        let different: std::collections::BTreeSet<char> = completion.text.chars().collect();
        Ok(Reward::of("variety", different.len() as f32 / self.tokens as f32))
    }
}

/// Wall-clock and CPU seconds.
#[derive(Clone, Copy)]
struct Seconds {
    wall: f64,
    cpu: f64,
}

fn timed<T>(work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<(T, Seconds)> {
    let (wall, cpu) = (Instant::now(), ProcessTime::now());
    let found = work()?;
    Ok((found, Seconds { wall: wall.elapsed().as_secs_f64(), cpu: cpu.elapsed().as_secs_f64() }))
}

/// One step, phase by phase.
struct Step {
    /// Of the phases that lie apart: preparing, drawing with grading, training.
    prepare: Seconds,
    rollout: Seconds,
    train: Seconds,
    reward: Duration,
    forward: Duration,
    backward: Duration,
    optimizer: Duration,
}

fn main() -> anyhow::Result<()> {
    let start = Instant::now();
    let arguments = Arguments::parse();
    // Images are prepared on rayon's own threads; a step has its own.
    rayon::ThreadPoolBuilder::new().num_threads(arguments.threads).build_global()?;
    let mut trainer = trainer(&arguments)?;
    let questions = questions(&arguments.model)?;
    let started = start.elapsed();

    let task = Variety { tokens: arguments.new };
    let mut steps = Vec::new();
    let (mut loss, mut norm, mut prompt_tokens) = (0.0, 0.0, 0);
    for step in 0..arguments.warmup + arguments.steps {
        let rows = questions.iter().cycle().skip(step * arguments.prompts).take(arguments.prompts);
        let rows: Vec<&Question> = rows.collect();
        let processor = trainer.policy.processor().clone();
        let (prompts, prepare) = timed(|| {
            rows.par_iter().map(|row| prompt(&processor, &arguments.model, row)).collect::<anyhow::Result<Vec<_>>>()
        })?;
        prompt_tokens = prompts.iter().map(|prompt| prompt.tokens().len()).sum();
        let (rollout, drawing) = timed(|| Ok(trainer.rollout(&task, &prompts)?))?;
        let full = |completion: &Completion| completion.tokens.len() == arguments.new;
        ensure!(rollout.groups.iter().flat_map(|group| &group.completions).all(full), "a completion ended early");
        let (update, train) = timed(|| Ok(trainer.update(&rollout.groups, 1e-4)?))?;
        let metric =
            |name| update.metrics.iter().find(|(found, _)| found == name).map_or(f64::NAN, |(_, value)| *value);
        (loss, norm) = (metric("loss/policy"), metric("grad/norm"));
        steps.push(Step {
            prepare,
            rollout: drawing,
            train,
            reward: rollout.timing.reward,
            forward: update.timing.score,
            backward: update.timing.update,
            optimizer: update.timing.optimizer,
        });
    }
    let steps = &steps[arguments.warmup..];
    let sorted = |value: &dyn Fn(&Step) -> f64| {
        let mut values: Vec<f64> = steps.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        values
    };
    let median = |value: &dyn Fn(&Step) -> f64| {
        let values = sorted(value);
        f64::midpoint(values[(values.len() - 1) / 2], values[values.len() / 2])
    };
    let whole = |step: &Step| step.prepare.wall + step.rollout.wall + step.train.wall;
    let generate = |step: &Step| step.rollout.wall - step.reward.as_secs_f64();
    let completion_tokens = arguments.prompts * arguments.group * arguments.new;
    println!(
        "{}",
        json!({
            "bench": "firesight",
            "threads": arguments.threads,
            "step_s_median": median(&whole),
            "step_s_min": sorted(&whole)[0],
            "step_s_all": steps.iter().map(whole).collect::<Vec<_>>(),
            "cpu_step_s_median": median(&|step| step.prepare.cpu + step.rollout.cpu + step.train.cpu),
            "wall_median_s": {
                "prep": median(&|step| step.prepare.wall),
                "generate": median(&generate),
                "reward": median(&|step| step.reward.as_secs_f64()),
                "forward": median(&|step| step.forward.as_secs_f64()),
                "backward": median(&|step| step.backward.as_secs_f64()),
                "optimizer": median(&|step| step.optimizer.as_secs_f64()),
            },
            "cpu_s": {
                "prep": median(&|step| step.prepare.cpu),
                // Grading included: it is done in microseconds.
                "generate": median(&|step| step.rollout.cpu),
                "train": median(&|step| step.train.cpu),
            },
            "gen_tok_per_s": completion_tokens as f64 / median(&generate),
            "train_tok_per_s": (prompt_tokens * arguments.group + completion_tokens) as f64 / median(&|step| step.train.wall),
            "completion_tokens_per_step": completion_tokens,
            // Counted as the other programs do, to which every completion has a prompt of its own.
            "total_tokens_per_step": prompt_tokens * arguments.group + completion_tokens,
            "startup_to_first_step_s": started.as_secs_f64(),
            "peak_rss_mb": peak_memory().map(|bytes| bytes / 1024.0 / 1024.0),
            "all_full_length": true,
            "loss": loss,
            "grad_norm": norm,
        })
    );
    Ok(())
}

fn trainer(arguments: &Arguments) -> anyhow::Result<Trainer<VlmPolicy>> {
    let model = QwenVl::from_dir(&arguments.model, &Device::flex().autodiff())?.train();
    let model = model.with_activation_checkpointing(arguments.activation_checkpointing);
    let processor = Arc::new(Processor::from_dir(&arguments.model)?);
    let vocabulary = model.config().text_config.vocab_size as u32;
    let policy = VlmPolicy::suppressing(model, processor, arguments.suppress_from..vocabulary)?;
    let sampling = Sampling { temperature: 1.0, max_tokens: arguments.new, seed: 0, first_stream: 0 };
    let options = Options {
        // As many batches as threads.
        prompts_per_sampling_batch: arguments.prompts.div_ceil(arguments.threads.max(1)),
        micro_batch: MicroBatch::Groups(arguments.micro_batch),
        threads: arguments.threads,
        ..Options::new(arguments.group, sampling)
    };
    let optimizer = AdamWConfig::new().with_weight_decay(0.0).with_epsilon(1e-8).init();
    Ok(Trainer::new(policy, optimizer, Algorithm { kl: None, ..Algorithm::grpo() }, Uniform, options)?)
}

fn questions(model: &Path) -> anyhow::Result<Vec<Question>> {
    let path = model.join("data/prompts.json");
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}

fn prompt(processor: &Processor, model: &Path, row: &Question) -> anyhow::Result<VlmPrompt> {
    let images = processor.image_processor()?;
    let cell = images.patch_size() * images.merge_size();
    let image = processor.image(&read_image(&model.join(&row.image))?)?;
    let message = Message::user(vec![Part::Image, Part::text(&row.question)]);
    Ok(VlmPrompt::new(processor.prompt(&[message], &[image])?, cell))
}
