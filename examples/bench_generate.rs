//! How fast completions are drawn.
//!
//! ```sh
//! RAYON_NUM_THREADS=1 cargo run --release --example bench_generate -- MODEL_DIRECTORY PROMPTS.json --suppress-from 998
//! ```
//!
//! `PROMPTS.json` is a list of `{"image": path beside the model, "question": text}`. Every round takes the next four
//! prompts and draws eight completions of 64 tokens for each. Prints one line of JSON.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context;
use burn::tensor::Device;
use clap::Parser;
use cpu_time::ProcessTime;
use firesight_vlm::{Generation, Message, Part, Processor, Prompt, QwenVl, Sampling, read_image};
use serde::Deserialize;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Draws completions and counts tokens.
#[derive(Debug, Parser)]
struct Options {
    /// Model directory in Hugging Face layout.
    model: PathBuf,
    /// Questions about images.
    prompts: PathBuf,
    /// Rounds after one that does not count.
    #[arg(long, default_value_t = 6)]
    rounds: usize,
    /// Prompts a round.
    #[arg(long, default_value_t = 4)]
    batch: usize,
    /// Completions a prompt.
    #[arg(long, default_value_t = 8)]
    group: usize,
    /// Tokens of every completion.
    #[arg(long, default_value_t = 64)]
    tokens: usize,
    /// Never draw this token or any after it: the ones that end a completion.
    #[arg(long)]
    suppress_from: Option<u32>,
}

#[derive(Deserialize)]
struct Question {
    image: PathBuf,
    question: String,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let processor = Processor::from_dir(&options.model)?;
    let model = QwenVl::from_dir(&options.model, &Device::flex())?;
    let text = std::fs::read_to_string(&options.prompts).with_context(|| options.prompts.display().to_string())?;
    let questions: Vec<Question> = serde_json::from_str(&text)?;
    let prompt = |Question { image, question }: &Question| -> anyhow::Result<Prompt> {
        let image = processor.image(&read_image(&options.model.join(image))?)?;
        Ok(processor.prompt(&[Message::user(vec![Part::Image, Part::text(question)])], &[image])?)
    };
    let prompts = questions.iter().map(prompt).collect::<anyhow::Result<Vec<_>>>()?;
    let rows = model.config().text_config.vocab_size as u32;
    let mask = model.token_mask(options.suppress_from.map_or(0..0, |first| first..rows))?;

    let (mut wall, mut cpu) = (Vec::new(), Vec::new());
    for round in 0..=options.rounds {
        let batch: Vec<&Prompt> = prompts.iter().cycle().skip(round * options.batch).take(options.batch).collect();
        let generation = Generation {
            sampling: Sampling::at(1.0),
            max_new_tokens: options.tokens,
            stop_tokens: &[],
            mask: &mask,
            seed: round as u64,
            first_stream: 0,
        };
        let (clock, time) = (Instant::now(), ProcessTime::now());
        let drawn = model.generate(&batch, options.group, &generation)?;
        anyhow::ensure!(drawn.iter().flatten().all(|completion| completion.tokens.len() == options.tokens));
        if round > 0 {
            wall.push(clock.elapsed().as_secs_f64());
            cpu.push(time.elapsed().as_secs_f64());
        }
    }
    let median = |values: &mut Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let (wall, cpu) = (median(&mut wall), median(&mut cpu));
    let tokens = (options.batch * options.group * options.tokens) as f64;
    println!(
        "{}",
        serde_json::json!({
            "bench": "firesight",
            "wall_median_s": { "generate": wall },
            "cpu_s": { "generate": cpu },
            "tokens_per_cpu_s": tokens / cpu,
        })
    );
    Ok(())
}
