//! The default job: a small chart of real numbers, a question about it, an answer that can be checked.
//!
//! A picture has four items, labelled A to D from left to right: the bars of a bar chart, the markers of a line chart,
//! or four real handwritten digits. The worked answer has three paragraphs: every item read off, one line of reasoning,
//! and the boxed result, as in
//!
//! ```text
//! Read A3 B1 C5 D2
//!
//! so C5 A3: 5-3=2
//!
//! \boxed{2}
//! ```
//!
//! The numbers under the charts come from public tables embedded in the crate (`data/README.md` lists them). Held-out
//! examples use other tables and other digits than training examples.

mod chart;
#[cfg(test)]
mod contact_sheet;
mod digits;
mod question;
mod sheet;
mod tables;

use std::sync::Arc;

use image::RgbImage;
use rand::SeedableRng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use digits::Digits;
use tables::Tables;

pub use question::Question;
pub(crate) use sheet::{FONT_FAMILY, register_font};
pub use sheet::{PICTURE_HEIGHT, PICTURE_WIDTH};

/// Items in a picture.
pub const ITEMS: usize = 4;

/// The letters of the items, left to right.
pub const LETTERS: [char; ITEMS] = ['A', 'B', 'C', 'D'];

/// Highest value an item can have: the top of a chart's axis, and the largest digit drawn.
pub const HIGHEST_LEVEL: u8 = 5;

/// Which tables and digits an example may draw on; the two share none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// For supervised and reinforcement learning.
    Train,
    /// For measuring.
    HeldOut,
}

/// What an example shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Picture {
    /// A bar chart.
    Bars,
    /// Markers, joined by a line, on stems, or alone.
    Line,
    /// Four handwritten digits.
    Digits,
}

impl Picture {
    /// Every kind of picture.
    pub const ALL: [Self; 3] = [Self::Bars, Self::Line, Self::Digits];

    /// The name in configurations and metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Bars => "bars",
            Self::Line => "line",
            Self::Digits => "digits",
        }
    }
}

/// One picture, one question, and what a correct completion looks like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// The picture at full size, [`PICTURE_WIDTH`] x [`PICTURE_HEIGHT`] pixels.
    pub image: RgbImage,
    /// The question in English, without any instruction about the format.
    pub question: String,
    /// What the box has to hold: a number, or the letter of an item.
    pub answer: String,
    /// A completion of three paragraphs that ends in the boxed answer: the target of supervised learning.
    pub worked: String,
    /// What the picture shows.
    pub picture: Picture,
    /// What is asked.
    pub kind: Question,
    /// Where the numbers come from; also written above the picture.
    pub title: String,
    /// What A to D stand for: countries, sectors, days, years, or positions in the digit collection. Not in the
    /// picture.
    pub items: [String; ITEMS],
    /// The values of A to D, each at most [`HIGHEST_LEVEL`].
    pub values: [u8; ITEMS],
}

/// Four numbered things to draw.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Reading {
    title: String,
    items: [String; ITEMS],
    values: [u8; ITEMS],
}

/// Why the embedded data cannot be used. None of these happens with the data the crate is built with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A table has a row that cannot be read.
    #[error("embedded table {table}: {problem}")]
    Table {
        /// File name under `data`.
        table: &'static str,
        /// The row and what is wrong with it.
        problem: String,
    },
    /// The collection of handwritten digits cannot be read.
    #[error("embedded digits: {problem}")]
    Digits {
        /// The row and what is wrong with it.
        problem: String,
    },
    /// The font cannot be used, or drawing with it failed.
    #[error("drawing: {problem}")]
    Draw {
        /// What the drawing library said.
        problem: String,
    },
    /// [`Charts::with_pictures`] was given nothing to draw.
    #[error("the list of pictures to draw is empty")]
    NoPictures,
}

/// An endless, reproducible supply of [`Example`]s. Clones share the embedded data.
#[derive(Debug, Clone)]
pub struct Charts {
    tables: Arc<Tables>,
    digits: Arc<Digits>,
    pictures: Vec<Picture>,
}

impl Charts {
    /// Reads the embedded tables, digits and font once. Examples show every kind of [`Picture`], equally often.
    ///
    /// # Errors
    /// When embedded data is damaged.
    pub fn new() -> Result<Self, Error> {
        sheet::register_font()?;
        Ok(Self {
            tables: Arc::new(Tables::read()?),
            digits: Arc::new(Digits::read()?),
            pictures: Picture::ALL.to_vec(),
        })
    }

    /// Restricts the examples to `pictures`, drawn equally often; a kind listed twice is drawn twice as often.
    ///
    /// # Errors
    /// [`Error::NoPictures`] when the list is empty.
    pub fn with_pictures(self, pictures: Vec<Picture>) -> Result<Self, Error> {
        if pictures.is_empty() {
            return Err(Error::NoPictures);
        }
        Ok(Self { pictures, ..self })
    }

    /// The example number `index` of a split.
    ///
    /// It depends on `split`, `seed`, `index` and the list of pictures, and on nothing else: not on the order in which
    /// examples are asked for, nor on how many. Every [`Question`] is equally likely. A question for the highest or the
    /// lowest item is only asked where one item is.
    ///
    /// # Panics
    /// Never with the embedded data: drawing happens in memory with the font that [`Charts::new`] checked.
    #[must_use]
    pub fn example(&self, split: Split, seed: u64, index: u64) -> Example {
        let mut random = random(split, seed, index);
        let picture = *self.pictures.choose(&mut random).expect("the list of pictures is never empty");
        let kind = *Question::ALL.choose(&mut random).expect("there are questions");
        let (reading, glyphs, asked) = loop {
            let (reading, glyphs) = match picture {
                Picture::Bars | Picture::Line => (self.tables.reading(split, &mut random), None),
                Picture::Digits => {
                    let (reading, glyphs) = self.digits.reading(split, &mut random);
                    (reading, Some(glyphs))
                }
            };
            if let Some(asked) = question::ask(kind, picture, reading.values, &mut random) {
                break (reading, glyphs, asked);
            }
        };
        let image = match (picture, glyphs) {
            (Picture::Digits, Some(glyphs)) => digits::draw(&reading, &glyphs, &mut random),
            (Picture::Line, _) => chart::draw_line(&reading, &mut random),
            (_, _) => chart::draw_bars(&reading, &mut random),
        }
        .expect("drawing in memory with a registered font does not fail");
        Example {
            image,
            question: asked.question,
            answer: asked.answer,
            worked: asked.worked,
            picture,
            kind,
            title: reading.title,
            items: reading.items,
            values: reading.values,
        }
    }
}

/// A generator of its own for every example: the key of the cipher holds the split, the seed and the index side by
/// side.
fn random(split: Split, seed: u64, index: u64) -> ChaCha8Rng {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&index.to_le_bytes());
    key[16] = match split {
        Split::Train => 0,
        Split::HeldOut => 1,
    };
    ChaCha8Rng::from_seed(key)
}
