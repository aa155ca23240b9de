//! Strips of four real handwritten digits.

use std::io::Read;

use flate2::read::GzDecoder;
use image::imageops::replace;
use image::{GrayImage, RgbImage};
use plotters::style::RGBColor;
use rand::RngExt;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

use super::sheet::{PICTURE_WIDTH, Sheet};
use super::{Error, HIGHEST_LEVEL, ITEMS, LETTERS, Reading, Split};

/// Pixels per side of a digit in the collection, and the darkest value of one.
const SIDE: u32 = 8;
const DARKEST: u8 = 16;
/// Blank pixels added around a digit, so that strokes at its edge fade out when it is enlarged.
const MARGIN: u32 = 1;

/// The collection is in the order in which it was written; its last fifth, by writers of its own, is held out.
const TRAIN_SHARE: (usize, usize) = (4, 5);

/// One handwritten digit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Glyph {
    position: usize,
    label: u8,
    ink: GrayImage,
}

/// The digits up to [`HIGHEST_LEVEL`], by split and label, so that every label is equally likely.
#[derive(Debug)]
pub(super) struct Digits {
    train: Vec<Vec<Glyph>>,
    held_out: Vec<Vec<Glyph>>,
}

impl Digits {
    pub(super) fn read() -> Result<Self, Error> {
        let damaged = |problem: String| Error::Digits { problem };
        let mut text = String::new();
        GzDecoder::new(include_bytes!("../../data/digits.csv.gz").as_slice())
            .read_to_string(&mut text)
            .map_err(|error| damaged(error.to_string()))?;
        let lines: Vec<&str> = text.lines().collect();
        let first_held_out = lines.len() * TRAIN_SHARE.0 / TRAIN_SHARE.1;
        let labels = usize::from(HIGHEST_LEVEL) + 1;
        let mut digits = Self { train: vec![Vec::new(); labels], held_out: vec![Vec::new(); labels] };
        for (position, line) in lines.into_iter().enumerate() {
            let glyph = Glyph::parse(position, line)
                .ok_or_else(|| damaged(format!("row {position} is not 64 grey values and a label: {line}")))?;
            let split = if position < first_held_out { &mut digits.train } else { &mut digits.held_out };
            if let Some(glyphs) = split.get_mut(usize::from(glyph.label)) {
                glyphs.push(glyph);
            }
        }
        if let Some(label) = digits.train.iter().chain(&digits.held_out).position(Vec::is_empty) {
            return Err(damaged(format!("a split has no digit {}", label % labels)));
        }
        Ok(digits)
    }

    /// Four digits, each label equally likely in each place.
    pub(super) fn reading(&self, split: Split, random: &mut ChaCha8Rng) -> (Reading, [&Glyph; ITEMS]) {
        let digits = match split {
            Split::Train => &self.train,
            Split::HeldOut => &self.held_out,
        };
        let glyphs = [(); ITEMS].map(|()| {
            let glyphs = digits.choose(random).expect("there is a list for every label");
            glyphs.choose(random).expect("no list is empty")
        });
        let reading = Reading {
            title: "Handwritten digits".into(),
            items: glyphs.map(|glyph| format!("digit {} of the collection", glyph.position)),
            values: glyphs.map(|glyph| glyph.label),
        };
        (reading, glyphs)
    }
}

impl Glyph {
    fn parse(position: usize, line: &str) -> Option<Self> {
        let mut values = line.split(',').map(|value| value.parse::<u8>().ok()).collect::<Option<Vec<u8>>>()?;
        let label = values.pop().filter(|&label| label <= 9)?;
        if values.len() != (SIDE * SIDE) as usize {
            return None;
        }
        let grey = values
            .into_iter()
            .map(|value| (value <= DARKEST).then(|| (u16::from(value) * 255 / u16::from(DARKEST)) as u8));
        let bare = GrayImage::from_raw(SIDE, SIDE, grey.collect::<Option<_>>()?)?;
        let mut ink = GrayImage::new(SIDE + 2 * MARGIN, SIDE + 2 * MARGIN);
        replace(&mut ink, &bare, MARGIN.into(), MARGIN.into());
        Some(Self { position, label, ink })
    }

    /// The ink at `side` x `side` pixels, row by row. Bilinear in integers, because the image library's general
    /// resampling would take most of the time of a picture.
    fn enlarged(&self, side: u32) -> Vec<u8> {
        let last = self.ink.width() - 1;
        // For every target position the pixel before it and its distance from that pixel in 256ths.
        let taps: Vec<(u32, u32)> = (0..side)
            .map(|position| {
                let centre = ((2 * position + 1) * 128 * (last + 1) / side).saturating_sub(128);
                (centre / 256, centre % 256)
            })
            .collect();
        let grey = |x: u32, y: u32| u32::from(self.ink.get_pixel(x.min(last), y.min(last)).0[0]);
        let between = |low: u32, high: u32, distance: u32| (low * (256 - distance) + high * distance) / 256;
        let pixel = |(x, dx): (u32, u32), (y, dy): (u32, u32)| {
            let above = between(grey(x, y), grey(x + 1, y), dx);
            let below = between(grey(x, y + 1), grey(x + 1, y + 1), dx);
            between(above, below, dy) as u8
        };
        taps.iter().flat_map(|&y| taps.iter().map(move |&x| pixel(x, y))).collect()
    }
}

/// Draws the strip: every digit in its quarter of the picture, in one ink, at a place and size of its own.
pub(super) fn draw(reading: &Reading, glyphs: &[&Glyph; ITEMS], random: &mut ChaCha8Rng) -> Result<RgbImage, Error> {
    const CELL: i32 = PICTURE_WIDTH as i32 / ITEMS as i32;
    const TOP: i32 = 22;
    const BOTTOM: i32 = 168;

    let mut sheet = Sheet::new(&reading.title, random)?;
    // A pen's ink is dark.
    let [red, green, blue] = [(); 3].map(|()| random.random_range(0..=90));
    let ink = RGBColor(red, green, blue);
    let strength = random.random_range(190..=255_u32);
    if random.random_bool(0.5) {
        let colour = sheet.shade(40);
        for cell in 1..ITEMS as i32 {
            let x = cell * CELL;
            sheet.rectangle((x - 1, TOP), (x + 1, BOTTOM), colour)?;
        }
    }
    for (cell, (glyph, letter)) in glyphs.iter().zip(LETTERS).enumerate() {
        let start = cell as i32 * CELL;
        let pixel = random.random_range(10.5..11.5_f32);
        let size = |pixels: u32| (pixel * pixels as f32) as i32;
        let left = start + random.random_range(0..=CELL - size(SIDE)) - size(MARGIN);
        let top = (TOP + BOTTOM - size(SIDE)) / 2 + random.random_range(-6..=6) - size(MARGIN);
        let side = size(SIDE + 2 * MARGIN) as u32;
        for (y, row) in (0..).zip(glyph.enlarged(side).chunks_exact(side as usize)) {
            for (x, &grey) in (0..).zip(row) {
                sheet.stain((left + x, top + y), ink, (u32::from(grey) * strength / 255) as u8);
            }
        }
        sheet.letter(letter, start + CELL / 2)?;
    }
    Ok(sheet.finish(random))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn splits_share_no_digit() {
        let digits = Digits::read().unwrap();
        let positions = |lists: &[Vec<Glyph>]| lists.iter().flatten().map(|glyph| glyph.position).collect::<Vec<_>>();
        let (train, held_out) = (positions(&digits.train), positions(&digits.held_out));
        assert!(train.iter().max() < held_out.iter().min());
        assert_eq!(train.len() + held_out.len(), 1083, "digits 0 to 5 of the 1,797 in the collection");
        for (label, glyphs) in digits.train.iter().enumerate().chain(digits.held_out.iter().enumerate()) {
            assert!(glyphs.len() > 30 && glyphs.iter().all(|glyph| usize::from(glyph.label) == label));
        }
    }

    #[test]
    fn enlarging_interpolates_between_pixel_centres() {
        let ink = GrayImage::from_raw(2, 2, vec![0, 200, 100, 100]).unwrap();
        let glyph = Glyph { position: 0, label: 0, ink };
        // Centres of the targets at -1/4, 1/4, 3/4 and 5/4 pixels; beyond the outer centres the edge is repeated.
        let expected = [[0, 50, 150, 200], [25, 62, 137, 175], [75, 87, 112, 125], [100, 100, 100, 100]];
        assert_eq!(glyph.enlarged(4), expected.as_flattened());
        assert_eq!(glyph.enlarged(2), [0, 200, 100, 100]);
    }

    #[test]
    fn damaged_rows_are_refused() {
        let row = |first: &str, label: &str| format!("{first}{},{label}", ",0".repeat(63));
        assert_eq!(Glyph::parse(3, &row("16", "7")).map(|glyph| (glyph.position, glyph.label)), Some((3, 7)));
        for line in [row("17", "7"), row("-1", "7"), row("1", "10"), row("1,1", "7"), "1,2,3".into(), String::new()] {
            assert_eq!(Glyph::parse(0, &line), None, "{line}");
        }
    }
}
