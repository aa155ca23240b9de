//! Asking the endpoint.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, SystemTime};

use minijinja::value::Serde;
use minijinja::{Environment, UndefinedBehavior, Value};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use ureq::Agent;
use ureq::http::{HeaderMap, HeaderValue, Uri, header};

use super::Judge;
use super::cache::Cache;
use super::verdict::Reading;
use crate::{Asked, Error, Response, Reward, Score, setting};

/// Longest time between two tries of a request.
const LONGEST_WAIT: Duration = Duration::from_mins(1);
/// Longest reply that is read, in bytes.
const LONGEST: u64 = 10 << 20;

/// The name of the one template.
const PROMPT: &str = "prompt";

pub(super) struct Client {
    judge: Judge,
    agent: Agent,
    authorization: Option<HeaderValue>,
    templates: Environment<'static>,
    reading: Reading,
    backoff: Duration,
    cache: Option<Cache>,
}

/// A try that failed.
struct Failed {
    problem: String,
    /// Whether another may do better.
    passing: bool,
    /// What the server asks to wait.
    wait: Option<Duration>,
}

impl Client {
    pub(super) fn new(judge: &Judge) -> Result<Self, Error> {
        let uri: Option<Uri> = judge.url.parse().ok();
        if !uri.is_some_and(|uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some()) {
            return Err(Error::setting("url", "has to be a whole address, http:// or https://"));
        }
        setting::at_a_time("parallel", judge.parallel)?;
        let limit = setting::deadline("timeout_s", judge.timeout_s)?;
        let mut templates = Environment::new();
        templates.set_undefined_behavior(UndefinedBehavior::Strict);
        templates
            .add_template_owned(PROMPT, judge.prompt.clone())
            .map_err(|error| Error::setting("prompt", format!("is no template: {error}")))?;
        let agent = Agent::config_builder().timeout_global(Some(limit)).http_status_as_error(false).proxy(None).build();
        Ok(Self {
            agent: agent.new_agent(),
            authorization: judge.api_key_env.as_deref().map(authorization).transpose()?,
            templates,
            reading: Reading::new(&judge.score)?,
            backoff: setting::seconds("backoff_s", judge.backoff_s, 0.0..=60.0)?,
            cache: judge.cache.as_deref().map(Cache::open).transpose()?,
            judge: judge.clone(),
        })
    }

    fn request(&self, asked: &Asked<'_>, response: &Response<'_>) -> Result<String, Error> {
        let mut variables = BTreeMap::from([
            ("prompt", Value::from(asked.prompt)),
            ("response", Value::from(response.text)),
            ("columns", Value::from(Serde(asked.columns))),
        ]);
        variables.extend(asked.answer.map(|answer| ("answer", Value::from(answer))));
        let content = self.templates.get_template(PROMPT).and_then(|template| template.render(variables));
        let content = content.map_err(|error| self.error(format!("the prompt cannot be rendered: {error}")))?;
        let mut request = self.judge.parameters.clone();
        request.insert("model".into(), json!(self.judge.model));
        request.insert("messages".into(), json!([{"role": "user", "content": content}]));
        Ok(serde_json::Value::Object(request).to_string())
    }

    /// Sends a request until there is a reply.
    fn reply(&self, request: &str) -> Result<String, Error> {
        let mut wait = self.backoff;
        for attempt in 0.. {
            match self.send(request) {
                Ok(reply) => return Ok(reply),
                Err(failed) if failed.passing && attempt < self.judge.retries => {
                    thread::sleep(failed.wait.unwrap_or(wait).min(LONGEST_WAIT));
                    wait = wait.saturating_mul(2);
                }
                Err(failed) => return Err(self.error(failed.problem)),
            }
        }
        unreachable!("a try is the last one")
    }

    fn send(&self, request: &str) -> Result<String, Failed> {
        let passing = |error: ureq::Error| Failed { problem: error.to_string(), passing: true, wait: None };
        let mut post = self.agent.post(&self.judge.url).header(header::CONTENT_TYPE, "application/json");
        if let Some(authorization) = &self.authorization {
            post = post.header(header::AUTHORIZATION, authorization.clone());
        }
        let mut response = post.send(request).map_err(passing)?;
        let body = response.body_mut().with_config().limit(LONGEST).read_to_string();
        let status = response.status();
        let refuse = |problem: &str, body: &str, passing| {
            let shown: String = body.trim().chars().take(200).collect();
            Failed { problem: format!("{problem}: {shown}"), passing, wait: retry_after(response.headers()) }
        };
        if !status.is_success() {
            let passing = matches!(status.as_u16(), 408 | 429) || status.is_server_error();
            return Err(refuse(&format!("status {status}"), &body.unwrap_or_default(), passing));
        }
        let body = body.map_err(passing)?;
        let reply: serde_json::Value = serde_json::from_str(&body).unwrap_or_default();
        let content = reply.pointer("/choices/0/message/content").and_then(serde_json::Value::as_str);
        content.map(Into::into).ok_or_else(|| refuse("a reply without choices[0].message.content", &body, false))
    }

    fn error(&self, problem: String) -> Error {
        Error::Judge { url: self.judge.url.clone(), problem }
    }
}

impl Reward for Client {
    fn score(&self, asked: &Asked<'_>, response: &Response<'_>) -> Result<Score, Error> {
        let request = self.request(asked, response)?;
        let read = |reply: &str| {
            let shown = || reply.trim().chars().take(200).collect::<String>();
            self.reading.score(reply).ok_or_else(|| self.error(format!("a reply without one clear score: {}", shown())))
        };
        let Some(cache) = &self.cache else { return Ok(read(&self.reply(&request)?)?.into()) };
        let key = format!("{:x}", Sha256::digest(format!("{}\n{request}", self.judge.url)));
        if let Some(reply) = cache.reply(&key) {
            return Ok(read(&reply)?.into());
        }
        let reply = self.reply(&request)?;
        let score = read(&reply)?;
        cache.keep(key, reply)?;
        Ok(score.into())
    }

    fn parallel(&self) -> Option<usize> {
        Some(self.judge.parallel)
    }
}

/// The header with the key that is in an environment variable.
fn authorization(variable: &str) -> Result<HeaderValue, Error> {
    let refuse =
        |problem| Error::setting("api_key_env", format!("names the environment variable {variable}, which {problem}"));
    let key = std::env::var(variable).map_err(|_| refuse("is not set"))?;
    let mut value = HeaderValue::try_from(format!("Bearer {}", key.trim())).map_err(|_| refuse("is no key"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// The time that a server asks to wait, given in seconds or as a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    let seconds = || value.parse().ok().map(Duration::from_secs);
    // A date that is over asks for nothing.
    let date = || Some(httpdate::parse_http_date(value).ok()?.duration_since(SystemTime::now()).unwrap_or_default());
    seconds().or_else(date)
}

#[cfg(test)]
mod tests;
