use serde::{Deserialize, Serialize};

/// Learning rate over the steps of a phase: a linear rise to the peak, then constant or a linear fall to the last step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// The highest learning rate.
    pub peak: f64,
    /// Steps of the rise.
    pub warmup_steps: usize,
    /// What is left at the last step, as a share of `peak`; 1 keeps it constant.
    pub final_share: f64,
}

impl Schedule {
    /// The learning rate of `step`, counted from 0, of `steps`.
    #[must_use]
    pub fn at(&self, step: usize, steps: usize) -> f64 {
        let done = step + 1;
        if done <= self.warmup_steps {
            return self.peak * done as f64 / self.warmup_steps as f64;
        }
        let progress = (done - self.warmup_steps) as f64 / steps.saturating_sub(self.warmup_steps).max(1) as f64;
        self.peak * (1.0 - (1.0 - self.final_share) * progress)
    }
}

#[cfg(test)]
mod tests {
    use super::Schedule;

    #[test]
    fn rises_and_falls() {
        let schedule = Schedule { peak: 2.0, warmup_steps: 4, final_share: 0.1 };
        let close = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-12, "{found} {expected}");
        close(schedule.at(0, 104), 0.5);
        close(schedule.at(3, 104), 2.0);
        close(schedule.at(53, 104), 2.0 * (1.0 - 0.9 * 0.5));
        close(schedule.at(103, 104), 0.2);
        let constant = Schedule { final_share: 1.0, ..schedule };
        close(constant.at(99, 100), 2.0);
    }
}
