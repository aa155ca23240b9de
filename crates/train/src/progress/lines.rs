//! A plain line a step.

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::{Duration, Instant};

use super::Field;
use super::phase::Phase;

/// Writes a line to the standard error stream. A run does not end because nobody listens.
pub(super) fn write(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// What a step says.
pub(super) fn step(phase: &Phase, fields: &[Field], now: Instant) -> String {
    let mut line = format!("{} {}/{}", phase.name, phase.step, phase.steps);
    for field in fields {
        if let Some(value) = field.value {
            let _ = write!(line, "  {} {value:.3}", field.name);
        }
    }
    if let Some(left) = phase.left(now) {
        let _ = write!(line, "  left {}", clock(left));
    }
    line
}

/// Minutes and seconds.
fn clock(duration: Duration) -> String {
    let seconds = duration.as_secs();
    format!("{}:{:02}", seconds / 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_a_line_of_its_known_numbers_and_the_time_left() {
        let began = Instant::now();
        let mut phase = Phase::begin("reinforcement", 300, 2, began);
        let now = began + Duration::from_millis(24_760);
        phase.step(now);
        let fields =
            [Field::new("reward", 0.5316), Field::maybe("entropy", None), Field::maybe("accuracy", Some(f64::NAN))];
        assert_eq!(
            step(&phase, &fields, now),
            "reinforcement 3/300  reward 0.532  accuracy NaN  left 122:33" // 297 steps of 24.76 s
        );
        assert_eq!(clock(Duration::from_millis(245_999)), "4:05");
    }
}
