//! Ranges that settings of several kinds have in common.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::Error;

/// A time of `range` seconds.
pub(crate) fn seconds(key: &'static str, value: f64, range: RangeInclusive<f64>) -> Result<Duration, Error> {
    let problem = || format!("has to be {} to {} seconds", range.start(), range.end());
    if range.contains(&value) { Ok(Duration::from_secs_f64(value)) } else { Err(Error::setting(key, problem())) }
}

/// A deadline: up to a day.
pub(crate) fn deadline(key: &'static str, value: f64) -> Result<Duration, Error> {
    seconds(key, value, 0.001..=86_400.0)
}

/// How many things happen at a time: each has a thread.
pub(crate) fn at_a_time(key: &'static str, value: usize) -> Result<usize, Error> {
    if (1..=256).contains(&value) { Ok(value) } else { Err(Error::setting(key, "has to be 1 to 256")) }
}
