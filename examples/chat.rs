//! Asks a model about an image, and prints the answer as it is drawn.
//!
//! ```sh
//! cargo run --release --example chat -- MODEL_DIRECTORY --image chart.png "Which bar is the highest?"
//! ```
//!
//! The directory is one in Hugging Face layout: of Qwen2.5-VL, Qwen3-VL, Qwen2 or Qwen3, or the `model` of a run.
//! Without a question it reads one a line from the terminal, and remembers what was said.

use std::io::{BufRead, IsTerminal, Write, stderr, stdin, stdout};
use std::path::PathBuf;

use anyhow::Context;
use burn::module::Module;
use burn::tensor::FloatDType;
use clap::{Parser, ValueEnum};
use firesight_train::device;
use firesight_vlm::{
    Generation, Message, Part, ProcessedImage, Processor, QwenVl, Role, Sampling, TokenMask, read_image,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Dtype {
    F32,
    Bf16,
    F16,
}

/// Asks a vision-language model.
#[derive(Debug, Parser)]
struct Options {
    /// Model directory in Hugging Face layout.
    model: PathBuf,
    /// The question [default: read from the terminal, one a line].
    question: Option<String>,
    /// Image that the first question is about; may be given several times.
    #[arg(long)]
    image: Vec<PathBuf>,
    /// Directory of a LoRA adapter in PEFT's layout.
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// Standing instructions.
    #[arg(long)]
    system: Option<String>,
    /// Longest answer in tokens.
    #[arg(long, default_value_t = 512)]
    max_tokens: usize,
    /// 0 takes the most likely token [default: as generation_config.json says].
    #[arg(long)]
    temperature: Option<f32>,
    /// Only this many of the most likely tokens; 0 for all [default: as generation_config.json says].
    #[arg(long)]
    top_k: Option<usize>,
    /// Only the most likely tokens that have this probability together [default: as generation_config.json says].
    #[arg(long)]
    top_p: Option<f32>,
    /// Only tokens at least this share as likely as the likeliest [default: as generation_config.json says].
    #[arg(long)]
    min_p: Option<f32>,
    /// Seed of the draws.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Float type to compute in.
    #[arg(long, value_enum, default_value = "f32")]
    dtype: Dtype,
    /// flex, cuda, cuda:1... or wgpu, as far as compiled in.
    #[arg(long, default_value = "flex")]
    device: String,
}

struct Chat {
    model: QwenVl,
    processor: Processor,
    mask: TokenMask,
    sampling: Sampling,
    max_tokens: usize,
    seed: u64,
    messages: Vec<Message>,
    images: Vec<ProcessedImage>,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let dtype = match options.dtype {
        Dtype::F32 => FloatDType::F32,
        Dtype::Bf16 => FloatDType::BF16,
        Dtype::F16 => FloatDType::F16,
    };
    let processor = Processor::from_dir(&options.model)?;
    // What is wrong with an image is said before the weights are read.
    let read = |path: &PathBuf| processor.image(&read_image(path)?).with_context(|| path.display().to_string());
    let images = options.image.iter().map(read).collect::<anyhow::Result<Vec<_>>>()?;
    let mut model = QwenVl::from_dir_as(&options.model, dtype, &device(&options.device)?)?;
    if let Some(adapter) = &options.adapter {
        model = model.with_adapter(adapter)?.materialize();
    }
    let published = processor.sampling();
    let mut chat = Chat {
        mask: model.token_mask(processor.suppressed_tokens())?,
        sampling: Sampling {
            temperature: options.temperature.unwrap_or(published.temperature),
            top_k: options.top_k.unwrap_or(published.top_k),
            top_p: options.top_p.unwrap_or(published.top_p),
            min_p: options.min_p.unwrap_or(published.min_p),
        },
        max_tokens: options.max_tokens,
        seed: options.seed,
        messages: options.system.into_iter().map(Message::system).collect(),
        model,
        processor,
        images,
    };
    if let Some(question) = options.question {
        return chat.ask(question);
    }
    loop {
        if stdin().is_terminal() {
            eprint!("> ");
            stderr().flush()?;
        }
        let mut line = String::new();
        if stdin().lock().read_line(&mut line)? == 0 {
            return Ok(());
        }
        if !line.trim().is_empty() {
            chat.ask(line.trim().to_owned())?;
        }
    }
}

impl Chat {
    /// Prints the answer as it comes, and remembers both.
    fn ask(&mut self, question: String) -> anyhow::Result<()> {
        // The images belong to the first question.
        let first = self.messages.iter().all(|message| message.role == Role::System);
        let mut parts = if first { vec![Part::Image; self.images.len()] } else { Vec::new() };
        self.messages.push(if parts.is_empty() {
            Message::user(question)
        } else {
            parts.push(Part::text(question));
            Message::user(parts)
        });
        let prompt = self.processor.prompt(&self.messages, &self.images)?;
        let room = self.model.config().text_config.max_position_embeddings.saturating_sub(prompt.input_ids().len());
        let generation = Generation {
            sampling: self.sampling,
            max_new_tokens: self.max_tokens.min(room),
            stop_tokens: self.processor.stop_tokens(),
            mask: &self.mask,
            seed: self.seed,
            first_stream: self.messages.len() as u64,
        };
        let mut text = self.processor.tokenizer().text_stream();
        let mut failed = None;
        let answers = self.model.generate_streaming(&[&prompt], 1, &generation, |_, token| {
            let piece = text.push(token).map_err(anyhow::Error::from);
            let shown = piece.and_then(|piece| {
                print!("{}", piece.unwrap_or_default());
                Ok(stdout().flush()?)
            });
            failed = failed.take().or(shown.err());
        })?;
        println!();
        if let Some(error) = failed {
            return Err(error);
        }
        let answer = &answers[0][0];
        if !answer.finished {
            eprintln!("(cut off after {} tokens)", answer.tokens.len());
        }
        self.messages.push(Message::assistant(self.processor.tokenizer().decode(&answer.tokens)?));
        Ok(())
    }
}
