//! Which box of a response stands for which box of the data.

use pathfinding::kuhn_munkres::kuhn_munkres;
use pathfinding::matrix::Matrix;

/// Worth of a pair beside its overlap: more than the overlaps of all pairs together, so that more pairs are always
/// better.
const PAIR: i64 = 1 << 44;
/// Steps of an overlap.
const STEPS: f64 = (1 << 28) as f64;

/// The overlaps of the pairs of a one-to-one assignment: as many pairs with an overlap above 0 as possible, and then
/// the largest overlap in all (the Hungarian algorithm).
pub(super) fn pairs<T>(found: &[T], expected: &[T], overlap: impl Fn(&T, &T) -> f64) -> Vec<f64> {
    // The library wants no more rows than columns.
    let flip = found.len() > expected.len();
    let (rows, columns) = if flip { (expected.len(), found.len()) } else { (found.len(), expected.len()) };
    let of = |row: usize, column: usize| {
        let (of_found, of_expected) = if flip { (column, row) } else { (row, column) };
        overlap(&found[of_found], &expected[of_expected])
    };
    let worth = |overlap: f64| if overlap > 0.0 { PAIR + (overlap * STEPS) as i64 } else { 0 };
    let weights = Matrix::from_fn(rows, columns, |(row, column)| worth(of(row, column)));
    let (_, assignment) = kuhn_munkres(&weights);
    assignment.into_iter().enumerate().map(|(row, column)| of(row, column)).filter(|overlap| *overlap > 0.0).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The most pairs, and the largest overlap with so many, over all assignments.
    fn best(table: &[Vec<f64>], row: usize, taken: &mut Vec<bool>) -> (usize, f64) {
        let Some(overlaps) = table.get(row) else { return (0, 0.0) };
        let mut found = best(table, row + 1, taken);
        for (column, overlap) in overlaps.iter().enumerate() {
            if *overlap > 0.0 && !taken[column] {
                taken[column] = true;
                let (count, sum) = best(table, row + 1, taken);
                taken[column] = false;
                if (count + 1, sum + overlap) > found {
                    found = (count + 1, sum + overlap);
                }
            }
        }
        found
    }

    fn of_table(table: &[Vec<f64>]) -> Vec<f64> {
        let rows: Vec<usize> = (0..table.len()).collect();
        let columns: Vec<usize> = (0..table[0].len()).collect();
        pairs(&rows, &columns, |&row, &column| table[row][column])
    }

    #[test]
    fn more_pairs_are_better_than_better_ones() {
        assert_eq!(of_table(&[vec![1.0, 0.5], vec![0.5, 0.0]]), [0.5, 0.5]);
        assert_eq!(of_table(&[vec![0.9, 0.6], vec![0.6, 0.9]]), [0.9, 0.9]);
        assert_eq!(of_table(&[vec![0.0, 0.0]]), [0.0; 0]);
        // Neither the first of a row, nor the last.
        assert_eq!(of_table(&[vec![0.2, 0.9], vec![0.8, 0.3]]), [0.9, 0.8]);
        assert_eq!(of_table(&[vec![0.2, 0.9, 0.1]]), [0.9]);
    }

    proptest! {
        #[test]
        fn no_assignment_is_better(
            table in (1_usize..5, 1_usize..5).prop_flat_map(|(rows, columns)| {
                prop::collection::vec(prop::collection::vec(prop_oneof![Just(0.0), 0.0..1.0], columns), rows)
            })
        ) {
            let found = of_table(&table);
            let (count, sum) = best(&table, 0, &mut vec![false; table[0].len()]);
            prop_assert_eq!(found.len(), count);
            prop_assert!((found.iter().sum::<f64>() - sum).abs() < 1e-6);
        }
    }
}
