//! Means over seeds, and how sure they are.

use serde::Serialize;
use statrs::distribution::{ContinuousCDF as _, StudentsT};

/// A mean and how far it may be off.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Mean {
    /// The mean.
    pub mean: f64,
    /// Its standard error; a single value has none.
    pub standard_error: Option<f64>,
}

impl Mean {
    /// That of values; nothing has none.
    #[must_use]
    pub fn of(values: &[f64]) -> Option<Self> {
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (count - 1.0);
        let standard_error = (values.len() > 1).then(|| (variance / count).sqrt());
        (!values.is_empty()).then_some(Self { mean, standard_error })
    }
}

/// Two-sided p-value of the paired t-test: how often differences at least as large turn up where there is none. None of
/// a single difference, or of several that are all the same.
#[must_use]
pub fn paired_t_test(differences: &[f64]) -> Option<f64> {
    let Mean { mean, standard_error } = Mean::of(differences)?;
    // Equal differences of shares differ in their last bits.
    let error = standard_error.filter(|&error| error > 1e-9 * mean.abs())?;
    let distribution = StudentsT::new(0.0, 1.0, differences.len() as f64 - 1.0).ok()?;
    Some(2.0 * distribution.sf((mean / error).abs()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-12, "{found} is not {expected}");
    }

    #[test]
    fn four_differences_by_hand() {
        let found = Mean::of(&[1.0, 2.0, 3.0, 4.0]).unwrap();
        // Squared deviations 2.25 + 0.25 + 0.25 + 2.25 over 3, over 4.
        close(found.mean, 2.5);
        close(found.standard_error.unwrap(), (5.0_f64 / 12.0).sqrt());
        // With three degrees of freedom the distribution has a closed form; t is the square root of 15.
        let t = 15.0_f64.sqrt();
        let angle = (t / 3.0_f64.sqrt()).atan();
        let p = 1.0 - 2.0 / std::f64::consts::PI * (angle + angle.sin() * angle.cos());
        for differences in [[1.0, 2.0, 3.0, 4.0], [-4.0, -1.0, -3.0, -2.0]] {
            close(paired_t_test(&differences).unwrap(), p);
        }
        assert!((p - 0.0305).abs() < 5e-5, "{p}");
    }

    #[test]
    fn too_little_says_nothing() {
        assert_eq!(Mean::of(&[]), None);
        assert_eq!(Mean::of(&[3.0]), Some(Mean { mean: 3.0, standard_error: None }));
        for differences in [&[][..], &[1.0], &[0.5, 0.5, 0.5], &[0.0, 0.0], &[0.23 - 0.22, 0.57 - 0.56]] {
            assert_eq!(paired_t_test(differences), None);
        }
        close(paired_t_test(&[-1.0, 1.0]).unwrap(), 1.0);
    }
}
