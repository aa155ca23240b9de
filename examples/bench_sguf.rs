//! How fast the key regions of an image are found, beside `benches/peers/sguf.py`.
//!
//! ```sh
//! cargo run --release --example bench_sguf -- PHOTO.jpg
//! ```
//!
//! Over and over, on one thread, the image decoded before. Prints one line of JSON with what was found.

use std::path::PathBuf;

use anyhow::ensure;
use clap::Parser;
use cpu_time::ProcessTime;
use firesight_kawhi::{ImageView, SgufConfig, sguf};
use firesight_vlm::read_image;

/// Finds the key regions of one image over and over.
#[derive(Debug, Parser)]
struct Options {
    /// The image; what does not fill a cell at its right and lower edges is cut off.
    image: PathBuf,
    /// Side of a visual token in pixels.
    #[arg(long, default_value_t = 28)]
    cell: u32,
    /// How often.
    #[arg(long, default_value_t = 40)]
    rounds: usize,
}

fn main() -> anyhow::Result<()> {
    let Options { image, cell, rounds } = Options::parse();
    let image = read_image(&image)?;
    ensure!(cell > 0 && image.width() >= cell && image.height() >= cell, "the image has no cell of {cell} pixels");
    let [width, height] = [image.width(), image.height()].map(|side| side / cell * cell);
    let image = image::imageops::crop_imm(&image, 0, 0, width, height).to_image();
    let view =
        ImageView { width: width as usize, height: height as usize, pixels: image.as_raw(), cell: cell as usize };
    // As in the reference, nothing is left to chance.
    let config = SgufConfig { r_skip: 1.0, ..SgufConfig::default() };
    let clock = ProcessTime::now();
    let mut regions = sguf(&view, &config)?;
    for _ in 1..rounds {
        regions = sguf(&view, &config)?;
    }
    let seconds = clock.elapsed().as_secs_f64() / rounds as f64;
    println!(
        "{}",
        serde_json::json!({
            "bench": "firesight",
            "pixels": width * height,
            "components": regions.energy.len(),
            "key_cells": regions.structured.iter().filter(|&&key| key).count(),
            "threshold": regions.threshold,
            "cpu_s": { "sguf": seconds },
        })
    );
    Ok(())
}
