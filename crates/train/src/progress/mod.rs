//! What a person sees while a run goes on, on the standard error stream: a dashboard on a terminal, a plain line a step
//! elsewhere, or lines of JSON for another program.

mod curve;
mod dashboard;
mod harmless;
mod inline;
mod json;
mod lines;
mod phase;
mod screen;
pub(crate) mod terminal;

use std::time::Instant;

pub use harmless::harmless_lines;
use phase::Phase;
use terminal::Terminal;

/// A number that a step shows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Field {
    name: &'static str,
    value: Option<f64>,
}

impl Field {
    /// A number.
    #[must_use]
    pub fn new(name: &'static str, value: f64) -> Self {
        Self { name, value: Some(value) }
    }

    /// A number that is not known at every step.
    #[must_use]
    pub fn maybe(name: &'static str, value: Option<f64>) -> Self {
        Self { name, value }
    }
}

/// A completion that is shown, with what it answers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shown<'a> {
    /// The question without the chat template.
    pub question: &'a str,
    /// What the verifier asks for, where the task has such a thing.
    pub answer: Option<&'a str>,
    /// What the model wrote.
    pub response: &'a str,
    /// What it earned; none if the reward abstained.
    pub reward: Option<f32>,
}

/// Progress of a run, on the standard error stream. If that cannot be written to, the run goes on unseen.
#[derive(Debug)]
pub struct Progress {
    kind: Kind,
    phase: Phase,
}

#[derive(Debug)]
enum Kind {
    Dashboard(Terminal),
    Lines,
    Json,
    Silent,
}

impl Progress {
    /// The dashboard when the standard error stream is a terminal that has room for it (60 columns, 16 rows) and can
    /// move its cursor, else lines. It has no colours if the environment variable `NO_COLOR` is set and not empty
    /// (<https://no-color.org>).
    ///
    /// The dashboard stays below what else is written to the terminal, changes none of its modes, and installs a panic
    /// hook that moves it out of the way of a panic's message.
    #[must_use]
    pub fn detect() -> Self {
        Self::new(Terminal::detect().map_or(Kind::Lines, Kind::Dashboard))
    }

    /// A line a step, and a line for everything that has to be said.
    #[must_use]
    pub fn lines() -> Self {
        Self::new(Kind::Lines)
    }

    /// One object of JSON a line, whose key `event` says what it is:
    ///
    /// | `event` | other keys |
    /// |---|---|
    /// | `phase` | `name`, `steps` at most, of which `done` were done before |
    /// | `step` | `phase`, `step` counted from 1, `steps`, `fields` by name, `left_seconds` |
    /// | `rollout` | `question`, `answer`, `response`, `reward` |
    /// | `note` | `text` |
    /// | `finish` | `phase`, `step` that it came to, `steps` |
    ///
    /// What is not known is null, and a number that is not finite is a text, `"NaN"`, `"inf"` or `"-inf"`.
    #[must_use]
    pub fn json() -> Self {
        Self::new(Kind::Json)
    }

    /// Nothing at all.
    #[must_use]
    pub fn silent() -> Self {
        Self::new(Kind::Silent)
    }

    fn new(kind: Kind) -> Self {
        Self { kind, phase: Phase::begin("", 0, 0, Instant::now()) }
    }

    /// Begins a phase of at most `steps` steps, or goes on with it after `done` of them.
    pub fn phase(&mut self, name: &'static str, steps: usize, done: usize) {
        self.phase = Phase::begin(name, steps, done, Instant::now());
        match &self.kind {
            Kind::Dashboard(terminal) => terminal.phase(self.phase),
            Kind::Json => lines::write(&json::phase(&self.phase)),
            Kind::Lines | Kind::Silent => {}
        }
    }

    /// One step is done.
    pub fn step(&mut self, fields: &[Field]) {
        let now = Instant::now();
        self.phase.step(now);
        match &self.kind {
            Kind::Dashboard(terminal) => terminal.step(self.phase, fields),
            Kind::Lines => lines::write(&lines::step(&self.phase, fields, now)),
            Kind::Json => lines::write(&json::step(&self.phase, fields, now)),
            Kind::Silent => {}
        }
    }

    /// A completion of the last rollout.
    pub fn rollout(&mut self, shown: &Shown<'_>) {
        match &self.kind {
            Kind::Dashboard(terminal) => terminal.rollout(shown),
            Kind::Json => lines::write(&json::rollout(shown)),
            Kind::Lines | Kind::Silent => {}
        }
    }

    /// The phase is over, at whatever step.
    pub fn finish(&mut self) {
        match &self.kind {
            Kind::Dashboard(terminal) => terminal.finish(),
            Kind::Json => lines::write(&json::finish(&self.phase)),
            Kind::Lines | Kind::Silent => {}
        }
    }

    /// A line beside the progress.
    pub fn note(&self, text: &str) {
        match &self.kind {
            Kind::Dashboard(terminal) => terminal.note(text),
            Kind::Lines => lines::write(&harmless_lines(text)),
            Kind::Json => lines::write(&json::note(text)),
            Kind::Silent => {}
        }
    }
}
