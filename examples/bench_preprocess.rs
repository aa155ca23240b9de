//! How fast an image becomes patches, beside `benches/peers/preprocess.py`.
//!
//! ```sh
//! cargo run --release --example bench_preprocess -- MODEL_DIRECTORY PHOTO.jpg
//! ```
//!
//! Decodes, resizes and cuts the image over and over, on one thread. Prints one line of JSON.

use std::path::PathBuf;

use clap::Parser;
use cpu_time::ProcessTime;
use firesight_vlm::{ImageProcessor, decode_image};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Preprocesses one image over and over.
#[derive(Debug, Parser)]
struct Options {
    /// Directory with a `preprocessor_config.json`.
    model: PathBuf,
    /// The image.
    image: PathBuf,
    /// How often.
    #[arg(long, default_value_t = 40)]
    rounds: usize,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let processor = ImageProcessor::from_dir(&options.model)?;
    let bytes = std::fs::read(&options.image)?;
    let name = options.image.display().to_string();
    let mut parts = [0.0; 2];
    let mut patches = 0;
    for _ in 0..options.rounds {
        let clock = ProcessTime::now();
        let image = decode_image(&bytes, &name)?;
        parts[0] += clock.elapsed().as_secs_f64();
        let processed = processor.process(&image)?;
        patches = processed.grid.patches();
        parts[1] += clock.elapsed().as_secs_f64();
    }
    let [decode, all] = parts.map(|seconds| seconds / options.rounds as f64);
    println!(
        "{}",
        serde_json::json!({
            "bench": "firesight",
            "patches": patches,
            "cpu_s": { "preprocess": all, "decode": decode, "resize and cut": all - decode },
        })
    );
    Ok(())
}
