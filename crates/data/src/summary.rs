//! What is in a data set, for who looks at it before a run.

use std::path::PathBuf;

use crate::scan::Spread;
use crate::{Error, ImageSource};

/// What the rows of a data set are like.
#[derive(Debug)]
#[non_exhaustive]
pub struct Summary {
    /// The files in their order.
    pub files: Vec<FileSummary>,
    /// Images of each row.
    pub images: Spread,
    /// Characters of each prompt, before the template.
    pub prompt_characters: Spread,
    /// Rows that can be used, without an answer.
    pub answers_missing: u64,
    /// Rows that can be used, without a worked answer.
    pub completions_missing: u64,
    /// Widths in pixels of the images of the sample.
    pub image_widths: Spread,
    /// Heights in pixels of the images of the sample.
    pub image_heights: Spread,
    /// Images of the sample whose size cannot be told, and why.
    pub unreadable_images: Vec<Error>,
}

/// What a file holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileSummary {
    /// The file.
    pub path: PathBuf,
    /// Rows that can be used.
    pub rows: u64,
    /// Rows that cannot be used.
    pub bad_rows: u64,
}

impl Summary {
    pub(crate) fn measure(&mut self, image: &ImageSource) {
        match image.dimensions() {
            Ok((width, height)) => {
                self.image_widths.add(width.into());
                self.image_heights.add(height.into());
            }
            Err(error) => self.unreadable_images.push(error),
        }
    }
}
