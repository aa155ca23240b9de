//! Which visual tokens of an image KAWHI takes for its key regions.
//!
//! ```text
//! cargo run --example kawhi_weights -- [IMAGE] [CELL] [OVERLAY.png]
//! ```
//!
//! Prints a map of the cells and writes an overlay in which all but the key cells are dimmed. A cell is one visual
//! token: 28 pixels for Qwen2.5-VL (the default), 32 for Qwen3-VL. Any CPU, well under a second. The last line names
//! the overlay.

use std::path::PathBuf;

use anyhow::{Context, ensure};
use firesight_kawhi::{ImageView, SgufConfig, sguf};
use image::{Rgb, RgbImage};

/// A right triangle with two labels, shown when no image is named.
const TRIANGLE: &[u8] = include_bytes!("../tests/fixtures/oracle/kawhi/triangle.png");

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let image = match arguments.next() {
        Some(path) => image::open(&path).with_context(|| format!("cannot read {path}"))?,
        None => image::load_from_memory(TRIANGLE)?,
    };
    let cell: u32 = arguments.next().map_or(Ok(28), |cell| cell.parse()).context("CELL is a number of pixels")?;
    let overlay = arguments.next().map_or_else(|| std::env::temp_dir().join("kawhi_weights.png"), PathBuf::from);
    ensure!(cell > 0 && image.width() >= cell && image.height() >= cell, "the image has no cell of {cell} pixels");

    // An encoder would resize to whole cells; here the rest at the right and the bottom is cut off.
    let pixels = image.crop_imm(0, 0, image.width() / cell * cell, image.height() / cell * cell).to_rgb8();
    let (width, height) = pixels.dimensions();
    let view =
        ImageView { width: width as usize, height: height as usize, pixels: pixels.as_raw(), cell: cell as usize };
    let regions = sguf(&view, &SgufConfig::default())?;

    let (rows, columns) = regions.structure.grid;
    println!("{width} x {height} pixels, {rows} x {columns} visual tokens, {} components", regions.energy.len());
    println!("# structured   + kept at random   . left out");
    for row in 0..rows {
        let symbol = |cell: usize| match (regions.structured[cell], regions.key[cell]) {
            (true, _) => '#',
            (false, true) => '+',
            (false, false) => '.',
        };
        println!("{}", (row * columns..(row + 1) * columns).flat_map(|cell| [symbol(cell), ' ']).collect::<String>());
    }
    let key = regions.key.iter().filter(|&&key| key).count();
    println!("{key} of {} visual tokens are key tokens", regions.key.len());
    ensure!(key > 0, "some token is always selected");

    let drawn = RgbImage::from_fn(width, height, |x, y| {
        let at = (y / cell) as usize * columns + (x / cell) as usize;
        let Rgb(colour) = *pixels.get_pixel(x, y);
        let edge = x % cell == 0 || y % cell == 0;
        match (regions.structured[at], regions.key[at]) {
            (true, _) if edge => Rgb([230, 80, 0]),
            (false, true) if edge => Rgb([0, 110, 200]),
            (_, true) => Rgb(colour),
            _ => Rgb(colour.map(|value| value / 3)),
        }
    });
    drawn.save(&overlay).with_context(|| format!("cannot write {}", overlay.display()))?;
    println!("overlay in {}", overlay.display());
    Ok(())
}
