//! Another model as a reward.

#[cfg(feature = "judge")]
mod cache;
#[cfg(feature = "judge")]
mod client;
#[cfg(feature = "judge")]
mod verdict;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{Error, Reward};

/// `kind = "judge"`: what another model says, behind an endpoint for chats like OpenAI's. It needs the cargo feature
/// `judge`; a build without it reads the configuration and refuses the reward.
///
/// ```toml
/// [[rewards]]
/// kind = "judge"
/// url = "http://localhost:8000/v1/chat/completions"
/// model = "Qwen/Qwen3-32B"
/// prompt = """
/// {{ prompt }}
/// Reference: {{ answer }}
/// Response: {{ response }}
/// Is the response right? Answer yes or no."""
/// score = "yes_no"
/// cache = "judge.jsonl"
/// ```
///
/// A request that fails for a reason that may pass (no connection, no reply in time, status 408, 429 or 5xx) is sent
/// again after `backoff_s`, twice that, four times that and so on, or when the server's `Retry-After` says, but at most
/// a minute later. Any other status is an error at once, as is a reply that no score can be read from. Proxies that the
/// environment names are not used.
///
/// With `cache`, replies are kept in a file of JSON lines, by the SHA-256 of the endpoint and the whole request: what
/// has been asked once is not asked again, in this run or another. A last line that is not complete, as a killed
/// process leaves it, is passed over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Judge {
    /// The whole address of the endpoint, in most cases one that ends in `/v1/chat/completions`.
    pub url: String,
    /// The model, by the endpoint's name for it.
    pub model: String,
    /// The environment variable with the key of the endpoint; absent, none is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key_env: Option<String>,
    /// Template (minijinja) of what the judge is told, with `prompt`, `response`, `answer` and `columns`; a name that
    /// is not there, such as `answer` where the row has none, is an error of the response.
    pub prompt: String,
    /// How the score is read from the reply; what the judge thinks, up to `</think>`, is left out.
    #[serde(default)]
    pub score: Verdict,
    /// Further fields of the request (`{ temperature = 0 }`).
    #[serde(default = "greedy")]
    pub parameters: Map<String, Value>,
    /// Seconds that one request may take (60).
    #[serde(default = "a_minute")]
    pub timeout_s: f64,
    /// How often a request is sent again (4).
    #[serde(default = "four")]
    pub retries: u32,
    /// Seconds before it is sent again for the first time (1).
    #[serde(default = "a_second")]
    pub backoff_s: f64,
    /// Requests at a time, 1 to 256 (8).
    #[serde(default = "eight")]
    pub parallel: usize,
    /// The file of replies; absent, none are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<PathBuf>,
}

/// How a score is read from the reply of a judge.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The only number, in the forms that [`crate::Numeric`] reads. A reply with several, `7/10`, is an error that
    /// quotes it: which is meant is for an expression to say.
    #[default]
    Number,
    /// 1 when the last `yes` or `no` is a yes, else 0.
    YesNo,
    /// The number in the first group of this expression, at its last match: `score = { regex = 'Score: (\d+)' }`.
    Regex(String),
}

fn greedy() -> Map<String, Value> {
    Map::from_iter([("temperature".into(), 0.into())])
}

fn a_minute() -> f64 {
    60.0
}

fn a_second() -> f64 {
    1.0
}

fn four() -> u32 {
    4
}

fn eight() -> usize {
    8
}

impl Judge {
    #[cfg(feature = "judge")]
    pub(crate) fn connect(&self) -> Result<Box<dyn Reward>, Error> {
        Ok(Box::new(client::Client::new(self)?))
    }

    #[cfg(not(feature = "judge"))]
    #[allow(clippy::unused_self)]
    pub(crate) fn connect(&self) -> Result<Box<dyn Reward>, Error> {
        Err(Error::Feature { kind: "judge", feature: "judge" })
    }
}
