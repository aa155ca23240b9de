//! Writes pictures with their questions to look at:
//! `CONTACT_SHEET=/tmp cargo test -p firesight-train contact_sheet -- --ignored`.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use image::imageops::{FilterType, replace, resize};
use image::{Rgb, RgbImage};
use plotters::backend::{BitMapBackend, DrawingBackend};
use plotters::style::{BLACK, IntoFont, TextStyle};

use super::sheet::FONT_FAMILY;
use super::{Charts, PICTURE_HEIGHT, PICTURE_WIDTH, Split};

/// What the preset in `models/qwen-small` shrinks a picture to.
const CANVAS: (u32, u32) = (128, 64);
const COLUMNS: u32 = 3;
const ROWS: u32 = 8;
const GAP: u32 = 8;
const CAPTION: u32 = 40;

#[test]
#[ignore = "writes a picture for people"]
fn contact_sheet() {
    let directory = PathBuf::from(std::env::var_os("CONTACT_SHEET").unwrap());
    let charts = Charts::new().unwrap();
    for (split, name) in [(Split::Train, "train"), (Split::HeldOut, "held_out")] {
        let examples: Vec<_> = (0..u64::from(COLUMNS * ROWS)).map(|index| charts.example(split, 0, index)).collect();

        let (width, height) = (PICTURE_WIDTH + GAP, PICTURE_HEIGHT + CAPTION + GAP);
        let mut sheet = RgbImage::from_pixel(COLUMNS * width, ROWS * height, Rgb([255; 3]));
        let (enlarged_width, enlarged_height) = (4 * CANVAS.0 + GAP, 4 * CANVAS.1 + GAP);
        let mut canvases = RgbImage::from_pixel(COLUMNS * enlarged_width, ROWS * enlarged_height, Rgb([255; 3]));
        for (example, cell) in examples.iter().zip(0..) {
            let (column, row) = (cell % COLUMNS, cell / COLUMNS);
            let (x, y) = (i64::from(column * width), i64::from(row * height));
            replace(&mut sheet, &example.image, x, y);
            let worked = example.worked.replace("\n\n", " | ");
            write(&mut sheet, &example.question, (x as i32 + 4, (y as u32 + PICTURE_HEIGHT + 6) as i32));
            write(&mut sheet, &worked, (x as i32 + 4, (y as u32 + PICTURE_HEIGHT + 24) as i32));

            let canvas = resize(&example.image, CANVAS.0, CANVAS.1, FilterType::CatmullRom);
            let enlarged = resize(&canvas, 4 * CANVAS.0, 4 * CANVAS.1, FilterType::Nearest);
            replace(&mut canvases, &enlarged, (column * enlarged_width).into(), (row * enlarged_height).into());
        }
        sheet.save(directory.join(format!("{name}.png"))).unwrap();
        canvases.save(directory.join(format!("{name}_canvas.png"))).unwrap();
    }
}

fn write(sheet: &mut RgbImage, text: &str, position: (i32, i32)) {
    let size = sheet.dimensions();
    let style = TextStyle::from((FONT_FAMILY, 16).into_font()).color(&BLACK);
    BitMapBackend::with_buffer(sheet, size).draw_text(text, &style, position).unwrap();
}
