//! What a person sees while a run goes on: a bar per phase on a terminal, a plain line a step elsewhere.

use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// A number shown beside the bar.
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

/// Progress of a run, on the standard error stream.
#[derive(Debug)]
pub struct Progress {
    kind: Kind,
    phase: &'static str,
    /// Steps done by the time the phase was gone on with.
    first: usize,
    step: usize,
    steps: usize,
    started: Instant,
}

#[derive(Debug)]
enum Kind {
    Bar(ProgressBar),
    Lines,
    Silent,
}

impl Progress {
    /// Bars when the standard error stream is a terminal, else lines.
    #[must_use]
    pub fn detect() -> Self {
        Self::new(if std::io::stderr().is_terminal() { Kind::Bar(ProgressBar::hidden()) } else { Kind::Lines })
    }

    /// Nothing at all.
    #[must_use]
    pub fn silent() -> Self {
        Self::new(Kind::Silent)
    }

    fn new(kind: Kind) -> Self {
        Self { kind, phase: "", first: 0, step: 0, steps: 0, started: Instant::now() }
    }

    /// Begins a phase of at most `steps` steps, or goes on with it after `done` of them.
    pub fn phase(&mut self, name: &'static str, steps: usize, done: usize) {
        (self.phase, self.first, self.step, self.steps) = (name, done, done, steps);
        self.started = Instant::now();
        if let Kind::Bar(bar) = &mut self.kind {
            let style = ProgressStyle::with_template(
                "{prefix:14} {bar:30} {pos:>4}/{len:<4} {elapsed:>4}  left {eta:<4} {msg}",
            );
            *bar = ProgressBar::new(steps as u64).with_prefix(name).with_position(done as u64);
            bar.reset_eta();
            if let Ok(style) = style {
                bar.set_style(style);
            }
        }
    }

    /// One step is done.
    pub fn step(&mut self, fields: &[Field]) {
        self.step += 1;
        let mut shown = String::new();
        for field in fields {
            if let Some(value) = field.value {
                let _ = write!(shown, "  {} {value:.3}", field.name);
            }
        }
        match &self.kind {
            Kind::Bar(bar) => {
                bar.set_message(shown.trim_start().to_owned());
                bar.inc(1);
            }
            Kind::Lines => {
                let elapsed = self.started.elapsed();
                let left = (self.steps - self.step.min(self.steps)) as f64 / (self.step - self.first) as f64;
                let left = elapsed.mul_f64(left);
                eprintln!("{} {}/{}{shown}  left {}", self.phase, self.step, self.steps, clock(left));
            }
            Kind::Silent => {}
        }
    }

    /// The phase is over, at whatever step.
    pub fn finish(&mut self) {
        if let Kind::Bar(bar) = &self.kind {
            bar.abandon();
        }
    }

    /// A line beside the progress.
    pub fn note(&self, text: &str) {
        match &self.kind {
            Kind::Bar(bar) => bar.suspend(|| eprintln!("{text}")),
            Kind::Lines => eprintln!("{text}"),
            Kind::Silent => {}
        }
    }
}

fn clock(duration: Duration) -> String {
    let seconds = duration.as_secs();
    format!("{}:{:02}", seconds / 60, seconds % 60)
}
