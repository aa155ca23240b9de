//! One thing to ask a model, wherever it comes from.

use std::path::PathBuf;

use firesight_vlm::Message;
use image::RgbImage;
use serde_json::{Map, Value};

/// A question, its pictures, and what a right answer is.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    /// The conversation up to where the model answers, with a part for every picture.
    pub messages: Vec<Message>,
    /// The pictures in the order of those parts, at the size they came in.
    pub images: Vec<Picture>,
    /// What is asked, as a person reads it: without instructions about the form of the answer.
    pub question: String,
    /// What rewards compare with, where there is such a thing.
    pub answer: Option<String>,
    /// A completion to imitate, the target of supervised learning.
    pub worked: Option<String>,
    /// What it counts among where accuracies are told apart, the most important first.
    pub kinds: Vec<Kind>,
    /// All columns of its row but the pictures: what rewards may look at beside the answer.
    pub columns: Map<String, Value>,
    /// Where it comes from: the heading of a chart, or a file and a row.
    pub origin: String,
}

/// A picture, and the file that it was read from if it has one of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// Its pixels.
    pub pixels: RgbImage,
    /// The file.
    pub path: Option<PathBuf>,
}

/// One of the kinds that examples are told apart by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Kind {
    /// Place among the kinds of the same sort; those of one place are in the order of their names.
    pub place: usize,
    /// Its name.
    pub name: String,
}

impl From<RgbImage> for Picture {
    fn from(pixels: RgbImage) -> Self {
        Self { pixels, path: None }
    }
}
