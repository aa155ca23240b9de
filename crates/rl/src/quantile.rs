/// The quantile of `values` at `share`, interpolated linearly between neighbours; `None` of nothing.
pub(crate) fn quantile(values: impl Iterator<Item = f64>, share: f64) -> Option<f64> {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_unstable_by(f64::total_cmp);
    let rank = share.clamp(0.0, 1.0) * sorted.len().checked_sub(1)? as f64;
    let (below, above) = (sorted[rank.floor() as usize], sorted[rank.ceil() as usize]);
    Some(below + (above - below) * rank.fract())
}

#[cfg(test)]
mod tests {
    use super::quantile;

    #[test]
    fn values_are_interpolated() {
        let of = |share| quantile([0.5, 0.1, 0.9].into_iter(), share);
        assert_eq!([of(0.0), of(0.5), of(0.75), of(1.0)], [Some(0.1), Some(0.5), Some(0.7), Some(0.9)]);
        assert_eq!(quantile(std::iter::empty(), 0.5), None);
    }
}
