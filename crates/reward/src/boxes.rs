//! Boxes in a response against those of the data.

mod matching;
mod read;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Asked, Error, Response, Reward, Score};

/// What the numbers of a box in a response mean: the policy's family decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BoxFrame {
    /// Pixels of the image as the model was shown it (Qwen2.5-VL).
    Resized,
    /// Thousandths of its width and height (Qwen3-VL).
    Thousand,
}

/// What the numbers of a box in the data mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReferenceFrame {
    /// Pixels of the image's file.
    #[default]
    Original,
    /// Pixels of the image as the model was shown it.
    Resized,
    /// Shares of its width and height, 0 to 1.
    Normalised,
}

/// `kind = "iou"`: the overlap, intersection over union, of the first box of the response with the first one of the
/// data, 0 to 1; labels do not matter. A response without a box has 0.
///
/// Boxes are `[left, top, right, bottom]`, not COCO's `[left, top, width, height]`. In a response they may be written
/// as Qwen's models do, `[{"bbox_2d": [1, 2, 3, 4], "label": "dog"}]` with or without a fence of JSON around it, as
/// `[1, 2, 3, 4]`, `[[1, 2, 3, 4], [5, 6, 7, 8]]`, or as `<box>(1,2),(3,4)</box>`. Read is what stands behind the
/// thinking, of that the last answer tags if there are some, of that the last fenced block with boxes if there is one.
/// What a cut-off list has of whole boxes counts.
///
/// The frame of the policy's family and that of the reference are converted into each other by the sizes of the image.
/// Both boxes are clipped to the image, so a box beyond its edge is as good as one that ends there. A box of a response
/// without area, say with left and right swapped, or outside of the image, overlaps with nothing, and counts as a box;
/// in the data it is an error.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Iou {
    /// The column with the reference, as JSON or a text with JSON in it, in one of the forms of a response; absent, the
    /// answer of the row.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<String>,
    /// What its numbers mean.
    pub reference: ReferenceFrame,
    /// Which image of the row the boxes are on, from 0.
    pub image: usize,
    /// With it, the value is 1 where the overlap is at least this and 0 elsewhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threshold: Option<f64>,
}

/// `kind = "detection"`: how well all boxes of the response and their labels agree with those of the data, 0 to 1.
/// Forms, frames and bad boxes are those of [`Iou`].
///
/// A box of the response and one of the data can be a pair when they overlap, by at least `threshold`, and when their
/// labels are the same, upper and lower case apart; a box of the data without a label takes any. Each box is in one
/// pair at most. Published detection metrics take the boxes of a response from the most confident to the least, but a
/// response has no confidences and its order should not matter: the pairs are as many as there can be, and of such
/// choices the one that overlaps most.
///
/// With no boxes in the data, a response without boxes has 1, any other 0.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Detection {
    /// The column with the reference; see [`Iou::column`]. A list without boxes is `[]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<String>,
    /// What its numbers mean.
    pub reference: ReferenceFrame,
    /// Which image of the row the boxes are on, from 0.
    pub image: usize,
    /// Least overlap of a pair (0.5).
    pub threshold: f64,
    /// Whether the labels of a pair have to be the same (true).
    pub labels: bool,
    /// What the pairs are worth.
    pub measure: Measure,
}

impl Default for Detection {
    fn default() -> Self {
        Self {
            column: None,
            reference: ReferenceFrame::Original,
            image: 0,
            threshold: 0.5,
            labels: true,
            measure: Measure::F1,
        }
    }
}

/// What pairs of boxes are worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// The harmonic mean of precision and recall: twice the pairs over all boxes of both sides.
    #[default]
    F1,
    /// The mean overlap: the sum over the pairs, divided by the number of boxes of the side that has more, so that
    /// boxes too many and too few count as overlap 0.
    MeanIou,
}

impl Iou {
    pub(crate) fn reading(&self, frame: BoxFrame) -> Result<Reading<Self>, Error> {
        self.threshold.map_or(Ok(()), check_threshold)?;
        Ok(Reading { reward: self.clone(), frame })
    }
}

impl Detection {
    pub(crate) fn reading(&self, frame: BoxFrame) -> Result<Reading<Self>, Error> {
        check_threshold(self.threshold)?;
        Ok(Reading { reward: self.clone(), frame })
    }
}

fn check_threshold(threshold: f64) -> Result<(), Error> {
    if (0.0..=1.0).contains(&threshold) { Ok(()) } else { Err(Error::setting("threshold", "has to be 0 to 1")) }
}

/// A reward that knows how the policy writes boxes.
#[derive(Debug)]
pub(crate) struct Reading<R> {
    reward: R,
    frame: BoxFrame,
}

impl Reward for Reading<Iou> {
    fn score(&self, asked: &Asked<'_>, response: &Response<'_>) -> Result<Score, Error> {
        let Iou { column, reference, image, threshold } = &self.reward;
        let scale = Scale::new(asked, *image)?;
        let expected = references(asked, column.as_deref(), *reference, scale)?;
        let expected = expected.first().ok_or_else(|| refuse(asked, column.as_deref(), "has no box"))?;
        let found = read::boxes(response.text);
        let iou = found.first().map_or(0.0, |found| scale.of_response(found.corners, self.frame).iou(expected.area));
        Ok(match threshold {
            Some(threshold) => (iou > 0.0 && iou >= *threshold).into(),
            None => (iou as f32).into(),
        })
    }
}

impl Reward for Reading<Detection> {
    fn score(&self, asked: &Asked<'_>, response: &Response<'_>) -> Result<Score, Error> {
        let Detection { column, reference, image, threshold, labels, measure } = &self.reward;
        let scale = Scale::new(asked, *image)?;
        let expected = references(asked, column.as_deref(), *reference, scale)?;
        let found: Vec<Labelled> = (read::boxes(response.text).into_iter())
            .map(|found| Labelled { area: scale.of_response(found.corners, self.frame), label: found.label })
            .collect();
        if expected.is_empty() || found.is_empty() {
            return Ok((expected.is_empty() && found.is_empty()).into());
        }
        let overlap = |found: &Labelled, expected: &Labelled| {
            let same = !labels || expected.label.is_none() || found.label == expected.label;
            let iou = found.area.iou(expected.area);
            if same && iou >= *threshold { iou } else { 0.0 }
        };
        let pairs = matching::pairs(&found, &expected, overlap);
        Ok(match measure {
            Measure::F1 => 2.0 * pairs.len() as f32 / (found.len() + expected.len()) as f32,
            Measure::MeanIou => (pairs.iter().sum::<f64>() / found.len().max(expected.len()) as f64) as f32,
        }
        .into())
    }
}

/// A box with a label, both as they are compared.
struct Labelled {
    area: Area,
    label: Option<String>,
}

/// The boxes of a row.
fn references(
    asked: &Asked<'_>,
    column: Option<&str>,
    frame: ReferenceFrame,
    scale: Scale,
) -> Result<Vec<Labelled>, Error> {
    let written = match column {
        Some(column) => asked.column(column)?.clone(),
        None => Value::String(asked.answer()?.into()),
    };
    let found = match &written {
        Value::String(text) => read::boxes(text),
        value => read::boxes_of(value),
    };
    // A list without boxes is one on purpose.
    let empty =
        written.as_array().is_some_and(Vec::is_empty) || written.as_str().is_some_and(|text| text.trim() == "[]");
    if found.is_empty() && !empty {
        return Err(refuse(asked, column, "has no box"));
    }
    let labelled = found.into_iter().map(|found| {
        let area = scale.of_reference(found.corners, frame);
        if area.size() > 0.0 {
            return Ok(Labelled { area, label: found.label });
        }
        Err(refuse(asked, column, &format!("has a box without area in the image: {:?}", found.corners)))
    });
    labelled.collect()
}

/// What is wrong with the reference, wherever it is.
fn refuse(asked: &Asked<'_>, column: Option<&str>, problem: &str) -> Error {
    match column {
        Some(column) => Error::column(column, problem),
        None => Error::answer(asked.answer.unwrap_or_default(), problem),
    }
}

/// The sizes of an image.
#[derive(Debug, Clone, Copy)]
struct Scale {
    original: (f64, f64),
    resized: (f64, f64),
}

impl Scale {
    fn new(asked: &Asked<'_>, index: usize) -> Result<Self, Error> {
        let refuse = |problem: String| Error::Image { index, problem };
        let image =
            asked.images.get(index).ok_or_else(|| refuse(format!("is missing: it has {}", asked.images.len())))?;
        let size = |(width, height): (u32, u32)| {
            let size = (f64::from(width), f64::from(height));
            if width > 0 && height > 0 { Ok(size) } else { Err(refuse("has no pixels".into())) }
        };
        Ok(Self { original: size(image.original)?, resized: size(image.resized)? })
    }

    fn of_response(self, corners: [f64; 4], frame: BoxFrame) -> Area {
        Area::new(
            corners,
            match frame {
                BoxFrame::Resized => self.resized,
                BoxFrame::Thousand => (1000.0, 1000.0),
            },
        )
    }

    fn of_reference(self, corners: [f64; 4], frame: ReferenceFrame) -> Area {
        Area::new(
            corners,
            match frame {
                ReferenceFrame::Original => self.original,
                ReferenceFrame::Resized => self.resized,
                ReferenceFrame::Normalised => (1.0, 1.0),
            },
        )
    }
}

/// A part of an image, in shares of its width and height. Overlaps are the same in every frame.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Area {
    left: f64,
    top: f64,
    right: f64,
    bottom: f64,
}

impl Area {
    /// What of a box is in the image.
    fn new([left, top, right, bottom]: [f64; 4], (width, height): (f64, f64)) -> Self {
        let share = |position: f64, whole: f64| (position / whole).clamp(0.0, 1.0);
        Self {
            left: share(left, width),
            top: share(top, height),
            right: share(right, width),
            bottom: share(bottom, height),
        }
    }

    fn size(self) -> f64 {
        (self.right - self.left).max(0.0) * (self.bottom - self.top).max(0.0)
    }

    fn iou(self, other: Self) -> f64 {
        let both = Self {
            left: self.left.max(other.left),
            top: self.top.max(other.top),
            right: self.right.min(other.right),
            bottom: self.bottom.min(other.bottom),
        };
        // Swapped corners have no size, and neither has what they share with another box.
        if self.size() == 0.0 || other.size() == 0.0 {
            return 0.0;
        }
        both.size() / (self.size() + other.size() - both.size())
    }
}

#[cfg(test)]
mod tests;
