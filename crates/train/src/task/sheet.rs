//! The paper that pictures are drawn on: background, ink, text, shapes, grain.

use std::fmt::Display;

use image::RgbImage;
use plotters::backend::{BitMapBackend, DrawingBackend};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{FontStyle, IntoFont, RGBColor, TextStyle};
use rand::{Rng, RngExt};
use rand_chacha::ChaCha8Rng;

use super::Error;

/// Width of a picture in pixels.
pub const PICTURE_WIDTH: u32 = 384;
/// Height of a picture in pixels.
pub const PICTURE_HEIGHT: u32 = 192;

/// Height of the title's letters, of the tick labels' and of the item letters', in pixels from ascent to descent.
pub(super) const TITLE_SIZE: i32 = 15;
const TICK_SIZE: i32 = 18;
const LETTER_SIZE: i32 = 22;
/// Where the title's and the item letters' baselines lie.
const TITLE_BASELINE: i32 = 14;
/// Where the title starts.
pub(super) const TITLE_LEFT: i32 = 6;
const LETTER_BASELINE: i32 = 189;

/// Least sum over the three channels of the difference between an ink and the background.
const LEAST_CONTRAST: i32 = 306;

pub(crate) const FONT_FAMILY: &str = "firesight";
static FONT: &[u8] = include_bytes!("../../data/DejaVuSans-ascii.ttf");

/// Makes the embedded font known to the drawing library and checks that it can be drawn with.
pub(crate) fn register_font() -> Result<(), Error> {
    plotters::style::register_font(FONT_FAMILY, FontStyle::Normal, FONT)
        .map_err(|_| Error::Draw { problem: "the embedded font is invalid".into() })?;
    drawn((FONT_FAMILY, TITLE_SIZE).into_font().box_size("A")).map(|_| ())
}

fn drawn<T, E: Display>(result: Result<T, E>) -> Result<T, Error> {
    result.map_err(|error| Error::Draw { problem: error.to_string() })
}

/// A picture in the making.
pub(super) struct Sheet {
    pixels: Vec<u8>,
    background: RGBColor,
    text: RGBColor,
}

impl Sheet {
    /// Paper of a random light colour with a title at its top.
    pub(super) fn new(title: &str, random: &mut ChaCha8Rng) -> Result<Self, Error> {
        let [red, green, blue] = [(); 3].map(|()| random.random_range(217..=255));
        let grey = random.random_range(20..=60);
        let mut sheet = Self {
            pixels: [red, green, blue].repeat((PICTURE_WIDTH * PICTURE_HEIGHT) as usize),
            background: RGBColor(red, green, blue),
            text: RGBColor(grey, grey, grey),
        };
        sheet.write(title, HPos::Left, (TITLE_LEFT, TITLE_BASELINE), TITLE_SIZE)?;
        Ok(sheet)
    }

    /// A random colour that stands out from the paper.
    pub(super) fn ink(&self, random: &mut ChaCha8Rng) -> RGBColor {
        let RGBColor(r, g, b) = self.background;
        loop {
            let ink: [u8; 3] = [(); 3].map(|()| random.random_range(0..=204));
            let contrast: i32 =
                ink.iter().zip([r, g, b]).map(|(&ink, paper)| (i32::from(ink) - i32::from(paper)).abs()).sum();
            if contrast >= LEAST_CONTRAST {
                return RGBColor(ink[0], ink[1], ink[2]);
            }
        }
    }

    /// The paper's colour, `amount` darker.
    pub(super) fn shade(&self, amount: u8) -> RGBColor {
        let RGBColor(r, g, b) = self.background;
        RGBColor(r.saturating_sub(amount), g.saturating_sub(amount), b.saturating_sub(amount))
    }

    /// The colour of titles, letters and axes.
    pub(super) fn text_colour(&self) -> RGBColor {
        self.text
    }

    /// Writes an item's letter at the bottom of the picture, centred on `x`.
    pub(super) fn letter(&mut self, letter: char, x: i32) -> Result<(), Error> {
        self.write(letter.encode_utf8(&mut [0; 4]), HPos::Center, (x, LETTER_BASELINE), LETTER_SIZE)
    }

    /// Writes the label of an axis tick, ending at `x`, half as high above as below `y`.
    pub(super) fn tick_label(&mut self, level: u8, (x, y): (i32, i32)) -> Result<(), Error> {
        self.write(&level.to_string(), HPos::Right, (x, y + TICK_SIZE / 3), TICK_SIZE)
    }

    fn write(&mut self, text: &str, horizontal: HPos, (x, baseline): (i32, i32), size: i32) -> Result<(), Error> {
        let colour = self.text;
        let style =
            TextStyle::from((FONT_FAMILY, size).into_font()).color(&colour).pos(Pos::new(horizontal, VPos::Top));
        // The library puts the baseline half a size below the anchor.
        drawn(self.canvas().draw_text(text, &style, (x, baseline - size / 2)))
    }

    /// Fills the pixels from `from` up to but without `to`.
    pub(super) fn rectangle(&mut self, from: (i32, i32), to: (i32, i32), colour: RGBColor) -> Result<(), Error> {
        drawn(self.canvas().draw_rect(from, to, &colour, true))
    }

    /// A disc.
    pub(super) fn disc(&mut self, centre: (i32, i32), radius: u32, colour: RGBColor) -> Result<(), Error> {
        drawn(self.canvas().draw_circle(centre, radius, &colour, true))
    }

    /// A filled polygon.
    pub(super) fn polygon(&mut self, corners: &[(i32, i32)], colour: RGBColor) -> Result<(), Error> {
        drawn(self.canvas().fill_polygon(corners.iter().copied(), &colour))
    }

    /// A line of `width` pixels through all points.
    pub(super) fn path(&mut self, points: &[(i32, i32)], width: u32, colour: RGBColor) -> Result<(), Error> {
        use plotters::style::Color;
        drawn(self.canvas().draw_path(points.iter().copied(), &colour.stroke_width(width)))
    }

    /// Mixes `ink` into one pixel: 0 leaves it alone, 255 covers it. Pixels outside of the picture do not exist.
    pub(super) fn stain(&mut self, (x, y): (i32, i32), RGBColor(r, g, b): RGBColor, strength: u8) {
        if (0..PICTURE_WIDTH as i32).contains(&x) && (0..PICTURE_HEIGHT as i32).contains(&y) {
            let start = 3 * (y * PICTURE_WIDTH as i32 + x) as usize;
            for (pixel, ink) in self.pixels[start..start + 3].iter_mut().zip([r, g, b]) {
                let (paper, ink, strength) = (u32::from(*pixel), u32::from(ink), u32::from(strength));
                *pixel = ((paper * (255 - strength) + ink * strength + 127) / 255) as u8;
            }
        }
    }

    /// Adds a grain of random strength and gives the picture away.
    pub(super) fn finish(mut self, random: &mut ChaCha8Rng) -> RgbImage {
        let strength: i16 = random.random_range(0..=10);
        if strength > 0 {
            let mut grain = vec![0; self.pixels.len() / 3];
            random.fill_bytes(&mut grain);
            for (pixel, grain) in self.pixels.chunks_exact_mut(3).zip(grain) {
                let change = ((i16::from(grain) * (2 * strength + 1)) >> 8) - strength;
                for channel in pixel {
                    *channel = (i16::from(*channel) + change).clamp(0, 255) as u8;
                }
            }
        }
        RgbImage::from_raw(PICTURE_WIDTH, PICTURE_HEIGHT, self.pixels).expect("the buffer has three bytes a pixel")
    }

    fn canvas(&mut self) -> BitMapBackend<'_> {
        BitMapBackend::with_buffer(&mut self.pixels, (PICTURE_WIDTH, PICTURE_HEIGHT))
    }
}
