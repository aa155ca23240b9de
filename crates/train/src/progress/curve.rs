//! Numbers over steps, in bounded memory.

/// Points a curve has at most: more than a terminal has dots for.
const POINTS: usize = 256;

/// The means of equally many neighbouring numbers.
#[derive(Debug, Default)]
pub(super) struct Curve {
    /// Steps and numbers.
    points: Vec<(f64, f64)>,
    /// How many numbers the last point is the mean of.
    filled: usize,
    /// Points are means of 2 to the power of this many numbers.
    halvings: u32,
}

impl Curve {
    /// Adds the number of a step. One that is not finite has no place on a curve.
    pub(super) fn push(&mut self, step: usize, value: f64) {
        if !value.is_finite() {
            return;
        }
        let full = 1 << self.halvings;
        let next = (step as f64, value);
        match self.points.last_mut() {
            Some(last) if self.filled < full => {
                self.filled += 1;
                let share = 1.0 / self.filled as f64;
                *last = (last.0 + (next.0 - last.0) * share, last.1 + (next.1 - last.1) * share);
            }
            _ => {
                if self.points.len() == POINTS {
                    let halves = self.points.chunks(2);
                    self.points =
                        halves.map(|pair| (mean(pair, |point| point.0), mean(pair, |point| point.1))).collect();
                    self.halvings += 1;
                }
                self.points.push(next);
                self.filled = 1;
            }
        }
    }

    /// Steps, ascending, and numbers.
    pub(super) fn points(&self) -> &[(f64, f64)] {
        &self.points
    }
}

fn mean(points: &[(f64, f64)], of: impl Fn(&(f64, f64)) -> f64) -> f64 {
    points.iter().map(of).sum::<f64>() / points.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_curve_is_means_of_neighbours_and_keeps_its_shape() {
        let mut curve = Curve::default();
        curve.push(1, 5.0);
        curve.push(2, f64::NAN);
        curve.push(3, 7.0);
        assert_eq!(curve.points(), [(1.0, 5.0), (3.0, 7.0)]);

        let mut curve = Curve::default();
        let mut longest = 0;
        // A saw on a slope: the slope stays, and the saw goes once more than two numbers make a point.
        for step in 1..=100_000_usize {
            curve.push(step, step as f64 + if step.is_multiple_of(2) { 1000.0 } else { -1000.0 });
            longest = longest.max(curve.points().len());
        }
        assert_eq!(longest, POINTS);
        let points = curve.points();
        assert!(points.len() > POINTS / 2, "{}", points.len());
        // 100,000 = 195 * 512 + 160.
        assert_eq!(points.len(), 196);
        for (index, &(step, value)) in points[..195].iter().enumerate() {
            let middle = 512.0 * index as f64 + 256.5;
            assert!((step - middle).abs() < 1e-6 && (value - middle).abs() < 1e-6, "{step} {value}, not {middle}");
        }
        assert!((points[195].0 - (99_840.0 + 80.5)).abs() < 1e-6, "{:?}", points[195]);
    }
}
