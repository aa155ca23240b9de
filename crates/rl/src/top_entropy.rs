use crate::quantile::quantile;

/// Marks by one the tokens whose entropy is among the highest `share` of all rows, and by zero the others: not below the
/// quantile `1 - share`, interpolated linearly between neighbours (arXiv 2506.01939, section 5).
pub fn top_entropy_mask(entropies: &[Vec<f32>], share: f32) -> Vec<Vec<f32>> {
    let values = entropies.iter().flatten().copied().map(f64::from);
    let Some(threshold) = quantile(values, 1.0 - f64::from(share)) else { return vec![Vec::new(); entropies.len()] };
    let threshold = threshold as f32;
    let mark = |entropy: &f32| f32::from(u8::from(*entropy >= threshold));
    entropies.iter().map(|row| row.iter().map(mark).collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::top_entropy_mask;

    #[test]
    fn the_highest_share_of_all_rows_together_is_kept() {
        let entropies = [vec![0.1, 0.9, 0.5], vec![], vec![0.7, 0.3]];
        // Quantile 0.6 of five values lies between the third and the fourth, at 0.5 + 0.4 x 0.2.
        assert_eq!(top_entropy_mask(&entropies, 0.4), [vec![0.0, 1.0, 0.0], vec![], vec![1.0, 0.0]]);
        assert_eq!(top_entropy_mask(&entropies, 1.0), [vec![1.0; 3], vec![], vec![1.0; 2]]);
        assert_eq!(top_entropy_mask(&[vec![], vec![]], 0.2), [vec![0.0; 0], vec![]]);
    }
}
