//! How far a phase is, and how long what is left of it may take.

use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

/// A phase of a run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Phase {
    pub(super) name: &'static str,
    /// Steps done by the time this process went on with it.
    first: usize,
    /// Steps done.
    pub(super) step: usize,
    /// Steps there are at most.
    pub(super) steps: usize,
    /// When this process went on with it.
    pub(super) started: Instant,
    /// When the last step was done.
    stepped: Instant,
}

impl Phase {
    /// Goes on with a phase after `done` steps.
    pub(super) fn begin(name: &'static str, steps: usize, done: usize, now: Instant) -> Self {
        Self { name, first: done, step: done, steps, started: now, stepped: now }
    }

    /// One step is done.
    pub(super) fn step(&mut self, now: Instant) {
        self.step += 1;
        self.stepped = now;
    }

    /// How long the other steps take, should they take as long as those that this process did. None before the first.
    pub(super) fn left(&self, now: Instant) -> Option<Duration> {
        let done = self.step - self.first;
        let left = (self.steps - self.step.min(self.steps)) as f64 / done as f64;
        // More steps than there will ever be time for are none to be told.
        let left = Duration::try_from_secs_f64((self.stepped - self.started).as_secs_f64() * left).ok()?;
        Some(left.saturating_sub(now.saturating_duration_since(self.stepped)))
    }

    /// The steps that this process did, counted from 1.
    pub(super) fn of_this_process(&self) -> RangeInclusive<usize> {
        self.first + 1..=self.step
    }

    /// The share of the steps that is done, 0 to 1.
    pub(super) fn share(&self) -> f64 {
        self.step.min(self.steps) as f64 / self.steps.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_left_counts_the_steps_of_this_process_and_runs_down_between_them() {
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let mut phase = Phase::begin("reinforcement", 10, 4, began);
        assert_eq!(phase.left(at(7)), None);
        phase.step(at(20));
        phase.step(at(30));
        // Two steps took 30 s, four are left.
        assert_eq!(phase.left(at(30)), Some(Duration::from_mins(1)));
        assert_eq!(phase.left(at(42)), Some(Duration::from_secs(48)));
        assert_eq!(phase.left(at(100)), Some(Duration::ZERO));
        assert!((phase.share() - 0.6).abs() < 1e-12);
        (0..5).for_each(|_| phase.step(at(40)));
        // More steps than were announced.
        assert_eq!(phase.left(at(40)), Some(Duration::ZERO));
        assert!((phase.share() - 1.0).abs() < 1e-12);
    }
}
