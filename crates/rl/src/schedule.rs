use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

use crate::Error;

/// Learning rate over the steps of a phase: a linear rise to the peak, then what [`Decay`] makes of it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// The highest learning rate.
    pub peak: f64,
    /// Steps of the rise, the last of which has the peak; without any the first step of the decay comes first.
    #[serde(default)]
    pub warmup_steps: usize,
    /// The shape of the fall.
    #[serde(default)]
    pub decay: Decay,
    /// What is left at the last step, as a share of `peak`. With 0, the default, the last step learns nothing.
    /// [`Decay::Constant`] does not read it.
    #[serde(default)]
    pub final_share: f64,
}

/// How a learning rate falls once it has been at its peak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decay {
    /// Not at all.
    Constant,
    /// In a straight line.
    #[default]
    Linear,
    /// Along half a period of a cosine (arXiv 1608.03983, eq. 5, without restarts): slowly at both ends.
    Cosine,
}

impl Schedule {
    /// Refuses values that no learning rate can have.
    ///
    /// # Errors
    /// [`Error::Setting`] names the first.
    pub fn check(&self) -> Result<(), Error> {
        let Self { peak, decay, final_share, .. } = *self;
        let refuse = |setting, value: f64, reason| Err(Error::Setting { setting, value: value.to_string(), reason });
        if !(peak.is_finite() && peak >= 0.0) {
            return refuse("peak", peak, "a number of at least 0");
        }
        if !(0.0..=1.0).contains(&final_share) {
            return refuse("final_share", final_share, "a share between 0 and 1");
        }
        if decay == Decay::Constant && final_share > 0.0 && final_share < 1.0 {
            return refuse("final_share", final_share, "the decay is constant and keeps all; leave it out");
        }
        Ok(())
    }

    /// The learning rate of `step`, counted from 0, of `steps`.
    #[must_use]
    pub fn at(&self, step: usize, steps: usize) -> f64 {
        let done = step + 1;
        if done <= self.warmup_steps {
            return self.peak * done as f64 / self.warmup_steps as f64;
        }
        let progress = (done - self.warmup_steps) as f64 / steps.saturating_sub(self.warmup_steps).max(1) as f64;
        let fallen = match self.decay {
            Decay::Constant => 0.0,
            Decay::Linear => progress,
            Decay::Cosine => 0.5 * (1.0 - (PI * progress).cos()),
        };
        self.peak * (1.0 - (1.0 - self.final_share) * fallen)
    }
}

#[cfg(test)]
mod tests {
    use super::{Decay, Schedule};

    fn schedule(decay: Decay, warmup_steps: usize, final_share: f64) -> Schedule {
        Schedule { peak: 2.0, warmup_steps, decay, final_share }
    }

    /// Every rate of a phase.
    fn expect<const STEPS: usize>(schedule: Schedule, expected: [f64; STEPS]) {
        for (step, expected) in expected.into_iter().enumerate() {
            let found = schedule.at(step, STEPS);
            assert!((found - expected).abs() < 1e-12, "{schedule:?} step {step}: {found} instead of {expected}");
        }
    }

    #[test]
    fn every_shape_from_its_rise_to_its_end() {
        expect(schedule(Decay::Constant, 2, 0.0), [1.0, 2.0, 2.0, 2.0, 2.0, 2.0]);
        expect(schedule(Decay::Linear, 2, 0.2), [1.0, 2.0, 1.6, 1.2, 0.8, 0.4]);
        // Cosines of 45, 90, 135 and 180 degrees.
        let half = 0.5f64.sqrt();
        expect(schedule(Decay::Cosine, 2, 0.0), [1.0, 2.0, 1.0 + half, 1.0, 1.0 - half, 0.0]);
        expect(schedule(Decay::Cosine, 2, 0.2), [1.0, 2.0, 1.2 + 0.8 * half, 1.2, 1.2 - 0.8 * half, 0.4]);
    }

    #[test]
    fn no_rise_at_all() {
        expect(schedule(Decay::Constant, 0, 0.0), [2.0, 2.0]);
        expect(schedule(Decay::Linear, 0, 0.0), [1.5, 1.0, 0.5, 0.0]);
        expect(schedule(Decay::Cosine, 0, 0.5), [1.5, 1.0]);
    }

    #[test]
    fn a_rise_longer_than_the_phase_never_arrives() {
        for decay in [Decay::Constant, Decay::Linear, Decay::Cosine] {
            expect(schedule(decay, 8, 0.1), [0.25, 0.5, 0.75]);
            expect(schedule(decay, 3, 0.1), [2.0 / 3.0, 4.0 / 3.0, 2.0]);
        }
    }

    #[test]
    fn a_phase_of_one_step_is_its_end() {
        expect(schedule(Decay::Constant, 0, 0.0), [2.0]);
        expect(schedule(Decay::Linear, 0, 0.25), [0.5]);
        expect(schedule(Decay::Cosine, 0, 0.25), [0.5]);
        expect(schedule(Decay::Cosine, 1, 0.25), [2.0]);
    }

    #[test]
    fn what_is_no_learning_rate_is_refused_by_name() {
        let sound = schedule(Decay::Cosine, 0, 0.5);
        for (broken, expected) in [
            (Schedule { peak: -1.0, ..sound }, Some("peak")),
            (Schedule { peak: f64::NAN, ..sound }, Some("peak")),
            (Schedule { final_share: 1.5, ..sound }, Some("final_share")),
            (Schedule { final_share: f64::NAN, ..sound }, Some("final_share")),
            (Schedule { decay: Decay::Constant, ..sound }, Some("final_share")),
            (Schedule { decay: Decay::Constant, final_share: 0.0, ..sound }, None),
            (Schedule { decay: Decay::Constant, final_share: 1.0, ..sound }, None),
            (sound, None),
        ] {
            let found = broken.check().err().map(|error| error.to_string());
            assert_eq!(found.as_deref().and_then(|error| error.split(' ').next()), expected, "{broken:?}");
        }
    }

    #[test]
    fn steps_beyond_the_phase_stay_finite() {
        assert!(schedule(Decay::Cosine, 4, 0.1).at(9, 2).is_finite());
    }
}
