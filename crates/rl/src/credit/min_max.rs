/// The least value becomes 0 and the largest 1; all become 0 where they lie within `tolerance` of each other, as then
/// there is nothing to tell apart.
pub(super) fn min_max(values: &[f64], tolerance: f64) -> Vec<f64> {
    let (least, largest) = values
        .iter()
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(least, largest), &value| (least.min(value), largest.max(value)));
    let range = largest - least;
    values.iter().map(|value| if range > tolerance { (value - least) / range } else { 0.0 }).collect()
}

#[cfg(test)]
mod tests {
    use super::min_max;

    #[test]
    fn values_span_the_unit_interval_or_are_zero() {
        assert_eq!(min_max(&[3.0, 1.0, 2.0], 0.0), [1.0, 0.0, 0.5]);
        assert_eq!(min_max(&[3.0, 3.0], 0.0), [0.0; 2]);
        assert_eq!(min_max(&[3.0, 3.1], 0.5), [0.0; 2]);
        assert!(min_max(&[], 0.0).is_empty());
    }
}
