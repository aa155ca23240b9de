//! Matrix products over slices of float32, by the library that the tensor library uses too.
//!
//! Called directly, it writes where the result is wanted, adds to what is there, and reads matrices whose rows lie apart.
//! The tensor library makes every result twice: zeroes, then a copy of them that is aligned.

use gemm::Parallelism;

/// A matrix within a slice.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    /// From one row to the next, and from one column to the next.
    strides: [usize; 2],
}

impl<'a> Matrix<'a> {
    /// Row by row.
    pub(super) fn new(values: &'a [f32], rows: usize, columns: usize) -> Self {
        Self::strided(values, rows, columns, [columns, 1])
    }

    /// With elements that far apart.
    ///
    /// # Panics
    /// When the slice is too short.
    pub(super) fn strided(values: &'a [f32], rows: usize, columns: usize, strides: [usize; 2]) -> Self {
        assert!(span(rows, columns, strides) <= values.len(), "a matrix of {rows}x{columns} does not fit");
        Self { values, rows, columns, strides }
    }

    pub(super) fn transposed(self) -> Self {
        let Self { values, rows, columns, strides: [row, column] } = self;
        Self { values, rows: columns, columns: rows, strides: [column, row] }
    }

    pub(super) fn rows(self) -> usize {
        self.rows
    }

    pub(super) fn columns(self) -> usize {
        self.columns
    }

    /// Some of its rows.
    pub(super) fn part(self, start: usize, rows: usize) -> Self {
        assert!(start + rows <= self.rows, "{rows} rows from {start} on are more than {}", self.rows);
        let values = if rows == 0 { &[] } else { &self.values[start * self.strides[0]..] };
        Self { values, rows, ..self }
    }
}

/// Length of the slice that a matrix takes.
fn span(rows: usize, columns: usize, strides: [usize; 2]) -> usize {
    if rows == 0 || columns == 0 { 0 } else { (rows - 1) * strides[0] + (columns - 1) * strides[1] + 1 }
}

/// Whether a product is spread over the threads of the pool it is called from; the numbers are the same.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Spread {
    /// Where it is large.
    Yes,
    No,
}

/// The product of two matrices, row by row.
///
/// # Panics
/// When the matrices do not fit each other.
#[expect(unsafe_code, reason = "to clear what is written next takes a twentieth of a training step")]
pub(super) fn multiplied(left: Matrix<'_>, right: Matrix<'_>, spread: Spread) -> Vec<f32> {
    let length = left.rows * right.columns;
    let mut out = Vec::with_capacity(length);
    // SAFETY: there is room for the whole result, which nobody else knows of, and its rows lie one after another. All of
    // it is written, and nothing of it read before, since nothing is added: with no inner axis it is zeros.
    unsafe {
        multiply(out.as_mut_ptr(), [right.columns, 1], left, right, false, spread);
        out.set_len(length);
    }
    out
}

/// Writes the product of two matrices, or adds it to what is there. `strides` are those of the result.
///
/// # Panics
/// When the matrices do not fit each other or the result.
#[expect(unsafe_code, reason = "the library takes pointers")]
pub(super) fn product(
    out: &mut [f32],
    strides: [usize; 2],
    left: Matrix<'_>,
    right: Matrix<'_>,
    add: bool,
    spread: Spread,
) {
    let (rows, columns) = (left.rows, right.columns);
    assert!(span(rows, columns, strides) <= out.len(), "a result of {rows}x{columns} does not fit");
    // Elements of a result that overlap would be a race where the product is spread.
    let apart =
        if strides[0] >= strides[1] { strides[0] >= columns * strides[1] } else { strides[1] >= rows * strides[0] };
    assert!(apart || rows.min(columns) <= 1, "rows of the result overlap");
    // SAFETY: the last element of the result lies within its slice, which is initialised and borrowed mutably, so it
    // overlaps neither matrix; and its own elements do not overlap each other.
    unsafe { multiply(out.as_mut_ptr(), strides, left, right, add, spread) }
}

/// # Safety
/// `out` points to a result of these strides that nobody else reads or writes and whose elements lie apart; it is
/// initialised if something is added to it.
#[expect(unsafe_code, reason = "the library takes pointers")]
unsafe fn multiply(out: *mut f32, strides: [usize; 2], left: Matrix<'_>, right: Matrix<'_>, add: bool, spread: Spread) {
    let (rows, inner, columns) = (left.rows, left.columns, right.columns);
    assert_eq!(inner, right.rows, "the matrices do not fit");
    let parallelism = if spread == Spread::Yes { Parallelism::Rayon(0) } else { Parallelism::None };
    // SAFETY: of the result, the caller says so. What is read of the matrices lies within their slices: `strided` and
    // `part` hold the last of their elements to it, and no stride is negative.
    unsafe {
        gemm::gemm(
            rows,
            columns,
            inner,
            out,
            strides[1] as isize,
            strides[0] as isize,
            add,
            left.values.as_ptr(),
            left.strides[1] as isize,
            left.strides[0] as isize,
            right.values.as_ptr(),
            right.strides[1] as isize,
            right.strides[0] as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(length: usize) -> Vec<f32> {
        (0..length).map(|i| (i * 7 % 11) as f32 - 5.0).collect()
    }

    #[test]
    fn products_are_sums_over_the_inner_axis() {
        for (rows, inner, columns, gap) in [(1, 1, 1, 0), (3, 5, 2, 0), (7, 33, 20, 3), (70, 4, 65, 1), (2, 0, 3, 0)] {
            let (left, right) = (counted(rows * inner), counted((inner + gap) * columns));
            let matrix = Matrix::new(&left, rows, inner);
            // Column by column, with gaps.
            let transposed = Matrix::strided(&right, columns, inner, [inner + gap, 1]).transposed();
            let expected = |row: usize, column: usize| -> f32 {
                (0..inner).map(|i| left[row * inner + i] * right[column * (inner + gap) + i]).sum()
            };
            let whole = multiplied(matrix, transposed, Spread::Yes);
            assert_eq!(whole.len(), rows * columns);
            for (place, found) in whole.into_iter().enumerate() {
                let expected = expected(place / columns, place % columns);
                assert!((found - expected).abs() < 1e-4, "{found} is not {expected}");
            }
            for (add, before) in [(false, 9.0), (true, 2.0)] {
                let mut out = vec![before; rows * (columns + gap)];
                product(&mut out, [columns + gap, 1], matrix, transposed, add, Spread::Yes);
                for (place, &found) in out.iter().enumerate() {
                    let (row, column) = (place / (columns + gap), place % (columns + gap));
                    let kept = if add { before } else { 0.0 };
                    let expected = if column < columns { expected(row, column) + kept } else { before };
                    assert!((found - expected).abs() < 1e-4, "{found} is not {expected}");
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "does not fit")]
    fn a_matrix_lies_within_its_slice() {
        let _ = Matrix::strided(&[0.0; 5], 2, 3, [3, 1]);
    }

    #[test]
    #[should_panic(expected = "overlap")]
    fn rows_of_a_result_lie_apart() {
        let (left, right) = ([1.0; 4], [1.0; 4]);
        product(&mut [0.0; 4], [1, 1], Matrix::new(&left, 2, 2), Matrix::new(&right, 2, 2), false, Spread::No);
    }
}
