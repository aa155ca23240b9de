//! Programs as rewards.

mod process;
mod reply;
mod worker;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{Asked, Error, Response, Reward, Score, setting};
use reply::Reply;
use worker::Worker;

/// `kind = "command"`: what a program says, in whatever language.
///
/// The program is started once a worker and asked over and over: one line of JSON on its standard input per response,
/// one line of JSON on its standard output per answer, in order and not held back in a buffer (`flush=True` in Python).
/// It ends when its input does. A request is
///
/// ```json
/// {"id": 7, "prompt": "...", "response": "...", "answer": "...", "images": ["a.png", null], "columns": {},
///  "tokens": 12, "truncated": false}
/// ```
///
/// where `answer` may be null, and an image that is in no file is. A reply is
///
/// | reply | what it means |
/// |---|---|
/// | a number, true or false | the value |
/// | null | the reward abstains |
/// | an object | the value under `score`, `overall` or `reward`, the first of them that is there |
/// | `{"error": "..."}` | no reward, for a reason; an error of this response |
///
/// What else is in an object, numbers, true, false or null, is logged as `name/part` with weight 0. An object may give
/// the `id` of the request back, which is then compared.
///
/// A worker that ends, takes longer than `timeout_s`, writes what is no reply, more than a mebibyte in a line, or a
/// line that nobody asked for is killed, on Unix with all processes of its group; the response goes to a fresh one
/// `retries` times, and is an error after that, with the last lines that the program wrote to its standard error. A
/// process that leaves the group of its worker is out of reach. Workers end with the reward: their input does, and what
/// has not ended a second later is killed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Command {
    /// The program and its arguments, as they are: there is no shell.
    pub command: Vec<String>,
    /// Processes side by side, 1 to 256 (1).
    #[serde(default = "one")]
    pub workers: usize,
    /// Seconds that a reply may take, with the start of the program where it comes to that (30).
    #[serde(default = "half_a_minute")]
    pub timeout_s: f64,
    /// How often a response is tried again with a fresh process (1).
    #[serde(default = "one")]
    pub retries: usize,
    /// Where the program runs; absent, where the run does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<PathBuf>,
}

fn one() -> usize {
    1
}

fn half_a_minute() -> f64 {
    30.0
}

impl Command {
    /// Starts one worker, so that a program that is not there is found out now; the others start when they are needed.
    pub(crate) fn start(&self) -> Result<Programs, Error> {
        if self.command.first().is_none_or(String::is_empty) {
            return Err(Error::setting("command", "has to name a program"));
        }
        if let Some(directory) = self.directory.as_deref().filter(|directory| !directory.is_dir()) {
            return Err(Error::setting("directory", format!("is no directory: {}", directory.display())));
        }
        let workers = setting::at_a_time("workers", self.workers)?;
        let limit = setting::deadline("timeout_s", self.timeout_s)?;
        let (back, free) = channel();
        let programs = Programs { command: self.clone(), limit, next: AtomicU64::new(0), free: Mutex::new(free), back };
        programs.give_back(Some(programs.worker()?));
        (1..workers).for_each(|_| programs.give_back(None));
        Ok(programs)
    }
}

/// The workers of a program.
#[derive(Debug)]
pub(crate) struct Programs {
    command: Command,
    limit: Duration,
    /// Number of the next request.
    next: AtomicU64,
    /// Workers with nothing to do; `None` is one that has to be started.
    free: Mutex<Receiver<Option<Worker>>>,
    back: Sender<Option<Worker>>,
}

impl Reward for Programs {
    fn score(&self, asked: &Asked<'_>, response: &Response<'_>) -> Result<Score, Error> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let images = asked.images.iter().map(|image| image.path.map(|path| path.to_string_lossy()));
        let images: Vec<_> = images.collect();
        let request = json!({
            "id": id, "prompt": asked.prompt, "response": response.text, "answer": asked.answer,
            "images": images,
            "columns": asked.columns, "tokens": response.tokens, "truncated": response.truncated,
        });
        let mut loan = self.lend();
        let mut last = self.ask(&mut loan.worker, id, &request.to_string());
        for _ in 0..self.command.retries {
            match last {
                Err(Error::Program { .. }) => last = self.ask(&mut loan.worker, id, &request.to_string()),
                _ => break,
            }
        }
        last
    }

    fn parallel(&self) -> Option<usize> {
        Some(self.command.workers)
    }
}

impl Programs {
    fn worker(&self) -> Result<Worker, Error> {
        let reason = |reason| Error::Start { program: self.command.command[0].clone(), reason };
        Worker::start(&self.command.command, self.command.directory.as_deref()).map_err(reason)
    }

    /// Asks a worker, a fresh one if there is none. Afterwards there is none if it did not answer as it should.
    fn ask(&self, worker: &mut Option<Worker>, id: u64, request: &str) -> Result<Score, Error> {
        let mut asked = worker.take().map_or_else(|| self.worker(), Ok)?;
        let reply = asked.ask(request, self.limit).and_then(|line| Reply::read(&line, id));
        match reply {
            Ok(reply) => {
                *worker = Some(asked);
                match reply {
                    Reply::Score(score) => Ok(score),
                    Reply::Error(message) => {
                        Err(Error::ProgramSays { program: self.command.command[0].clone(), message })
                    }
                }
            }
            Err(problem) => {
                let (problem, stderr) = asked.end(problem);
                Err(Error::Program { program: self.command.command[0].clone(), problem, stderr })
            }
        }
    }

    /// Waits for a worker with nothing to do.
    fn lend(&self) -> Loan<'_> {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        Loan { worker: free.recv().ok().flatten(), programs: self }
    }

    fn give_back(&self, worker: Option<Worker>) {
        // The other end is in `self`.
        let _ = self.back.send(worker);
    }
}

/// A worker that is given back whatever happens: nobody waits for it in vain.
struct Loan<'a> {
    worker: Option<Worker>,
    programs: &'a Programs,
}

impl Drop for Loan<'_> {
    fn drop(&mut self) {
        self.programs.give_back(self.worker.take());
    }
}

#[cfg(all(test, unix))]
mod tests;
