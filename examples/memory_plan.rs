//! What a model takes to train and to draw from, before it is loaded.
//!
//! ```text
//! cargo run --release --example memory_plan -- MODEL_DIR --image 1280x960 --group 8 --prompt-tokens 200 \
//!     --completion-tokens 512
//! ```
//! Reads `config.json` and, for images, `preprocessor_config.json`; no weights have to be there. Any CPU, no time, no
//! memory. docs/memory.md says what is counted.

use std::path::PathBuf;

use anyhow::{Context, bail};
use burn::tensor::FloatDType;
use clap::Parser;
use firesight_vlm::{
    Component, Grid, Hardware, ImageProcessor, LoraConfig, MemoryPlan, ModelConfig, Precision, Trained, Workload,
};

/// Layers of the decoder that `--lora` gives adapters.
const TARGETS: [&str; 7] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

#[derive(Parser)]
struct Arguments {
    /// Directory in Hugging Face layout.
    model: PathBuf,
    /// Size in pixels of an image of each prompt, as 1280x960; once for each image.
    #[arg(long)]
    image: Vec<String>,
    /// Completions of each prompt.
    #[arg(long, default_value_t = 8)]
    group: usize,
    /// Tokens of a prompt beside its images.
    #[arg(long)]
    prompt_tokens: usize,
    /// Tokens of a completion.
    #[arg(long)]
    completion_tokens: usize,
    /// Prompts that run at a time.
    #[arg(long, default_value_t = 1)]
    prompts: usize,
    /// Trains adapters of this rank in all linear layers of the decoder instead of the weights.
    #[arg(long, value_name = "RANK")]
    lora: Option<usize>,
    /// Trains the vision tower and its merger, too; without adapters.
    #[arg(long, conflicts_with = "lora")]
    train_vision: bool,
    /// Keeps only the inputs of layers for the backward pass and computes the rest again.
    #[arg(long)]
    activation_checkpointing: bool,
    /// `bf16` or `f32`: of activations, products, and weights that are not trained; on a CPU of the latter alone.
    #[arg(long, default_value = "bf16")]
    dtype: String,
    /// For a CPU instead of a GPU.
    #[arg(long)]
    cpu: bool,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let config = ModelConfig::from_dir(&arguments.model)?;
    let workload = Workload {
        prompts: arguments.prompts,
        generation_prompts: arguments.prompts,
        completions: arguments.group,
        text_tokens: arguments.prompt_tokens,
        images: grids(&arguments)?,
        completion_tokens: arguments.completion_tokens,
    };
    let dtype = match arguments.dtype.as_str() {
        "bf16" => FloatDType::BF16,
        "f32" => FloatDType::F32,
        other => bail!("--dtype is bf16 or f32, not {other}"),
    };
    let targets = TARGETS.map(String::from).to_vec();
    let lora = arguments.lora.map(|rank| LoraConfig { rank, alpha: 2.0 * rank as f64, target_modules: targets });
    let frozen: &[Component] = if arguments.train_vision { &[] } else { &[Component::Vision, Component::Merger] };
    let (hardware, precision) = if arguments.cpu {
        (Hardware::Cpu, Precision::stored(dtype))
    } else {
        (Hardware::Gpu, Precision::mixed(dtype))
    };
    let activation_checkpointing = arguments.activation_checkpointing;
    let trained = Trained { frozen, lora: lora.as_ref(), activation_checkpointing };
    print!("{}", MemoryPlan::new(&config, &workload, trained, hardware, precision));
    Ok(())
}

/// The images' sizes in patches.
fn grids(arguments: &Arguments) -> anyhow::Result<Vec<Grid>> {
    if arguments.image.is_empty() {
        return Ok(Vec::new());
    }
    let processor = ImageProcessor::from_dir(&arguments.model)?;
    let grid = |size: &String| {
        let sides = size.split_once('x').and_then(|(width, height)| Some((width.parse().ok()?, height.parse().ok()?)));
        let (width, height) = sides.with_context(|| format!("--image is a size as 1280x960, not {size}"))?;
        Ok(processor.grid(width, height)?)
    };
    arguments.image.iter().map(grid).collect()
}
