//! What KAWHI makes of a response: the weight of every paragraph, and the visual tokens that it was compared with.
//!
//! ```sh
//! cargo run --release --example kawhi_weights -- chart.png runs/qwen-small/model "Read A3 B1 C5 D2
//!
//! so C5 A3: 5-3=2
//!
//! \boxed{2}"
//! ```
//!
//! The directory is one in Hugging Face layout, of Qwen2.5-VL or Qwen3-VL. Prints the response with every paragraph on
//! a ground as dark as it weighs, and writes a picture of the image as the vision encoder sees it: the outlines of the
//! key regions in orange, the chosen visual tokens as they are, the others dimmed. A second on a small model. The last
//! line names the picture.

use std::io::Read as _;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use burn::tensor::Device;
use clap::Parser;
use console::style;
use firesight_kawhi::{Heads, ImageView, KawhiConfig, Regions, VisualPrompt as _, sguf};
use firesight_rl::{Completion, CreditAssigner as _, Group, Policy as _, TokenCredit, assign_from_signals};
use firesight_train::{VlmPolicy, VlmPrompt};
use firesight_vlm::{Message, ModelConfig, Part, Processor, QwenVl, has_weights, read_image};
use image::{Rgb, RgbImage};

/// Of the picture at least, in pixels, unless the image is larger anyway.
const LONGER_SIDE: usize = 768;

/// Shows what KAWHI makes of a response to an image.
#[derive(Debug, Parser)]
struct Options {
    /// The image.
    image: PathBuf,
    /// Model directory in Hugging Face layout.
    model: PathBuf,
    /// The response, with blank lines between its paragraphs; `-` reads it from the standard input.
    response: String,
    /// What the response answers.
    #[arg(long, default_value = "")]
    question: String,
    /// The vision-critical heads, a file that `firesight heads` writes [default: all heads].
    #[arg(long)]
    heads: Option<PathBuf>,
    /// The picture.
    #[arg(long, default_value = "kawhi_weights.png")]
    out: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let mut response = options.response;
    if response == "-" {
        response.clear();
        std::io::stdin().read_to_string(&mut response)?;
    }
    let processor = Arc::new(Processor::from_dir(&options.model)?);
    let model = if has_weights(&options.model) {
        QwenVl::from_dir(&options.model, &Device::flex())?
    } else {
        println!("{} has no weights: fresh ones, which attend to nothing in particular", options.model.display());
        QwenVl::new(&ModelConfig::from_dir(&options.model)?, 0, &Device::flex())
    };
    let policy = VlmPolicy::new(model, processor.clone())?;

    let images = processor.image_processor()?;
    let message = Message::user(vec![Part::Image, Part::text(&options.question)]);
    let image = processor.image(&read_image(&options.image)?)?;
    let prompt = VlmPrompt::new(processor.prompt(&[message], &[image])?, images.patch_size() * images.merge_size());
    let mut tokens = processor.tokenizer().encode(&response)?;
    ensure!(!tokens.is_empty(), "the response is empty");
    tokens.push(processor.eos_token_id());
    let completion = Completion { tokens, ..Completion::default() };

    let heads = options.heads.map_or(Heads::All, Heads::Critical);
    let kawhi = policy.kawhi(KawhiConfig { heads, ..KawhiConfig::default() })?;
    let signals = kawhi.signals(&[&prompt])?;
    let groups = [Group { prompt, completions: vec![completion], rewards: Vec::new() }];
    let scores = policy.score(&groups, 1.0, &signals)?;
    let credit = assign_from_signals(&kawhi, &groups, &scores.signals)?.remove(0);

    print_paragraphs(&processor, &groups[0].completions[0].tokens, &credit)?;
    let view = groups[0].prompt.images()[0];
    let regions = sguf(&view, &kawhi.config().sguf)?;
    let chosen = &credit.evidence.context("KAWHI says what it went by")?.visual_tokens;
    println!("{} of {} visual tokens are compared with", chosen.len(), regions.key.len());
    overlay(&view, &regions, chosen)?.save(&options.out).with_context(|| options.out.display().to_string())?;
    println!("{}", options.out.display());
    Ok(())
}

/// Paragraphs with their weight and mean alignment; the heavier, the darker the ground.
fn print_paragraphs(processor: &Processor, tokens: &[u32], credit: &TokenCredit) -> anyhow::Result<()> {
    let evidence = credit.evidence.as_ref().context("KAWHI says what it went by")?;
    println!("weight  alignment  tokens");
    for span in &evidence.segments {
        let weight = credit.weights[span.start];
        let alignment = evidence.alignment[span.clone()].iter().sum::<f32>() / span.len() as f32;
        // 254 to 236 of the 256 colours are greys from light to dark.
        let grey = 254 - (18.0 * weight.clamp(0.0, 1.0)).round() as u8;
        let ink = if grey > 244 { 16 } else { 231 };
        println!("{weight:6.3}  {alignment:+9.4}  {:6}", span.len());
        for line in processor.tokenizer().decode(&tokens[span.clone()])?.lines().filter(|line| !line.trim().is_empty())
        {
            println!("    {}", style(format!(" {line} ")).color256(ink).on_color256(grey));
        }
    }
    Ok(())
}

/// The image with what was not chosen dimmed, and an edge wherever one component of the key regions meets another cell.
fn overlay(view: &ImageView<'_>, regions: &Regions, chosen: &[usize]) -> anyhow::Result<RgbImage> {
    let (rows, columns) = regions.structure.grid;
    let region = |row: usize, column: usize| {
        let cell = (row < rows && column < columns).then(|| row * columns + column)?;
        regions.structured[cell].then(|| regions.component[cell])
    };
    // A small image is drawn larger, so that an edge is thin.
    let scale = (LONGER_SIDE / view.width.max(view.height)).max(1);
    let cell = view.cell * scale;
    let source = RgbImage::from_raw(view.width as u32, view.height as u32, view.pixels.to_vec());
    let source = source.context("an image has its pixels")?;
    let picture = RgbImage::from_fn((view.width * scale) as u32, (view.height * scale) as u32, |x, y| {
        let (column, row) = (x as usize / cell, y as usize / cell);
        // Two pixels at each side of a cell.
        let beside = |at: u32, index: usize| match at as usize % cell {
            0 | 1 => index.wrapping_sub(1),
            offset if offset + 2 >= cell => index + 1,
            _ => index,
        };
        let here = region(row, column);
        let Rgb(colour) = *source.get_pixel(x / scale as u32, y / scale as u32);
        if here != region(row, beside(x, column)) || here != region(beside(y, row), column) {
            Rgb([230, 80, 0])
        } else if chosen.binary_search(&(row * columns + column)).is_ok() {
            Rgb(colour)
        } else {
            Rgb(colour.map(|value| value / 3))
        }
    });
    Ok(picture)
}
