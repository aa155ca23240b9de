//! What tests of rewards have in common.

use serde_json::{Map, Value};

use crate::{Asked, Error, Response, Reward};

pub(crate) fn nothing() -> Map<String, Value> {
    Map::new()
}

pub(crate) fn asked<'a>(answer: &'a str, columns: &'a Map<String, Value>) -> Asked<'a> {
    Asked { prompt: "", answer: Some(answer), images: &[], columns }
}

pub(crate) fn response(text: &str) -> Response<'_> {
    Response { text, tokens: 0, truncated: false }
}

/// What a reward gives a text for an answer.
pub(crate) fn value(reward: &impl Reward, text: &str, answer: &str) -> f32 {
    scored(reward, text, answer).expect("a score")
}

pub(crate) fn scored(reward: &impl Reward, text: &str, answer: &str) -> Result<f32, Error> {
    Ok(reward.score(&asked(answer, &nothing()), &response(text))?.value.expect("a value"))
}
