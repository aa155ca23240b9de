//! What a reward is.

use std::path::Path;

use serde_json::{Map, Value};

use crate::Error;

/// What a response is graded against: a row of the data.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The question.
    pub prompt: &'a str,
    /// The reference; rewards that compare with one fail without.
    pub answer: Option<&'a str>,
    /// The images of the question, in their order.
    pub images: &'a [Image<'a>],
    /// Whatever else is in the row.
    pub columns: &'a Map<String, Value>,
}

impl<'a> Asked<'a> {
    /// The answer.
    ///
    /// # Errors
    /// [`Error::NoAnswer`] when the row has none.
    pub fn answer(&self) -> Result<&'a str, Error> {
        self.answer.ok_or(Error::NoAnswer)
    }

    /// A column. Dots lead into structures, unless there is a column with the whole name.
    ///
    /// # Errors
    /// [`Error::Column`] when the row has none of that name.
    pub fn column(&self, name: &str) -> Result<&'a Value, Error> {
        find(self.columns, name).ok_or_else(|| Error::column(name, "is missing"))
    }
}

fn find<'a>(columns: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    columns.get(name).or_else(|| {
        let (outer, inner) = name.split_once('.')?;
        find(columns.get(outer)?.as_object()?, inner)
    })
}

/// An image of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Image<'a> {
    /// Width and height of the file, in pixels.
    pub original: (u32, u32),
    /// Width and height in which the model was shown it, in pixels.
    pub resized: (u32, u32),
    /// Where it is, if it is in a file.
    pub path: Option<&'a Path>,
}

/// What the policy wrote.
#[derive(Debug, Clone, Copy)]
pub struct Response<'a> {
    /// Its text.
    pub text: &'a str,
    /// Its length in tokens.
    pub tokens: usize,
    /// Whether it was cut off by the length limit.
    pub truncated: bool,
}

/// What a reward says of one response.
///
/// ```
/// # use firesight_reward::Score;
/// assert_eq!(Score::from(0.5), Score { value: Some(0.5), parts: Vec::new() });
/// assert_eq!(Score::abstain().value, None);
/// ```
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Score {
    /// The value, which has to be finite; `None` abstains.
    pub value: Option<f32>,
    /// Further numbers by name, which are only logged.
    pub parts: Vec<(String, Option<f32>)>,
}

impl Score {
    /// No opinion.
    #[must_use]
    pub fn abstain() -> Self {
        Self::default()
    }
}

impl From<f32> for Score {
    fn from(value: f32) -> Self {
        Self { value: Some(value), parts: Vec::new() }
    }
}

/// 1 or 0.
impl From<bool> for Score {
    fn from(right: bool) -> Self {
        f32::from(u8::from(right)).into()
    }
}

/// One thing that responses are rewarded for.
pub trait Reward: Send + Sync {
    /// Grades one response. It is called from several threads.
    ///
    /// # Errors
    /// When the grader fails or the row is of no use to it; a response that is merely wrong has a score.
    fn score(&self, asked: &Asked<'_>, response: &Response<'_>) -> Result<Score, Error>;

    /// How many responses it grades at a time, for a reward that waits for something else than the CPU; those get
    /// threads of their own. `None` computes.
    fn parallel(&self) -> Option<usize> {
        None
    }
}

/// One number of a graded response.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// Its name in the log: that of the reward, or `reward/part` for its further numbers.
    pub name: String,
    /// Its value; `None` abstains.
    pub value: Option<f32>,
    /// Its factor in the sum that is optimised; 0 is only logged.
    pub weight: f32,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn dots_lead_into_structures_unless_a_column_has_the_whole_name() {
        let columns = json!({"meta": {"box": [1], "a": {"b": 2}}, "meta.label": 3, "level": 4});
        let columns = columns.as_object().expect("it is one");
        let asked = Asked { prompt: "", answer: None, images: &[], columns };
        let value = |name| asked.column(name).ok();
        assert_eq!(value("meta.box"), Some(&json!([1])));
        assert_eq!(value("meta.a.b"), Some(&json!(2)));
        assert_eq!(value("meta.label"), Some(&json!(3)));
        assert_eq!((value("meta.b"), value("level.a"), value("box")), (None, None, None));
        let error = asked.column("meta.b").expect_err("there is none").to_string();
        assert_eq!(error, "column \"meta.b\" of the row is missing");
    }
}
