use nalgebra::DMatrix;

/// The entropy, in nats, of the spectrum of the covariance of features: that of its eigenvalues as shares of their sum
/// (Durian, arXiv 2602.21743). `features` are `[rows, width]`, row by row; fewer than two rows, or equal ones, have none.
#[must_use]
pub fn spectral_entropy(features: &[f32], [rows, width]: [usize; 2]) -> f64 {
    if rows < 2 || width == 0 {
        return 0.0;
    }
    let mut centred = DMatrix::from_row_iterator(rows, width, features.iter().copied().map(f64::from));
    for mut column in centred.column_iter_mut() {
        let mean = column.mean();
        column.add_scalar_mut(-mean);
    }
    // Both products have the same eigenvalues but for zeros.
    let gram = if rows < width { &centred * centred.transpose() } else { centred.transpose() * &centred };
    entropy(gram.symmetric_eigenvalues().iter().copied())
}

fn entropy(eigenvalues: impl Iterator<Item = f64> + Clone) -> f64 {
    // Rounding makes small negative numbers of zeros.
    let positive = eigenvalues.filter(|&value| value > 0.0);
    let sum: f64 = positive.clone().sum();
    positive.map(|value| -(value / sum) * (value / sum).ln()).sum()
}

#[cfg(test)]
mod tests {
    use super::{entropy, spectral_entropy};

    #[test]
    fn shares_of_three_and_one() {
        assert!((entropy([3.0, 1.0].into_iter()) - 0.562_335).abs() < 1e-6);
        // Variances of 3 and 1 along the axes, around (5, 7): as many rows as columns decide nothing.
        let (long, short) = (1.5f32.sqrt() * 2.0, 2.0f32.sqrt());
        let rows = [[5.0 + long, 7.0], [5.0 - long, 7.0], [5.0, 7.0 + short], [5.0, 7.0 - short]];
        assert!((spectral_entropy(&rows.concat(), [4, 2]) - 0.562_335).abs() < 1e-6);
        let wide: Vec<f32> = rows.iter().flat_map(|row| [row[0], 1.0, row[1], 1.0, 1.0]).collect();
        assert!((spectral_entropy(&wide, [4, 5]) - 0.562_335).abs() < 1e-6);
    }

    #[test]
    fn nothing_that_varies_has_no_entropy() {
        assert_eq!(spectral_entropy(&[1.0, 2.0], [1, 2]), 0.0);
        assert_eq!(spectral_entropy(&[1.0, 2.0, 1.0, 2.0], [2, 2]), 0.0);
        assert_eq!(spectral_entropy(&[], [0, 2]), 0.0);
        assert!(spectral_entropy(&[1.0, 2.0, 3.0, 4.0], [2, 2]).abs() < 1e-12);
    }
}
