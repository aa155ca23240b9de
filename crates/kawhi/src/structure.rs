// What is not inlined into `Stream` is not compiled for the processor's vectors.
#![allow(clippy::inline_always)]

use std::sync::LazyLock;

use crate::{Error, ImageView};

/// What the pixels of every visual token look like, cells in raster order.
#[derive(Debug, Clone, PartialEq)]
pub struct Structure {
    /// Rows and columns of cells.
    pub grid: (usize, usize),
    /// Larger eigenvalue of each cell's structure tensor, in squared units of the unnormalised Sobel gradient.
    pub lambda_max: Vec<f64>,
    /// Smaller eigenvalue, at least 0.
    pub lambda_min: Vec<f64>,
    /// Mean smoothed CIELab lightness of each cell, 0 to 100.
    pub luminance: Vec<f64>,
}

/// The structure tensor (arXiv 2603.27375, eq. 5-6) and the lightness of every cell of an image.
///
/// Lightness is CIELab's under the sRGB transfer function and D65, smoothed by a Gaussian of `sigma` pixels that
/// reaches `floor(4 sigma + 0.5)` pixels; gradients are Sobel's. Borders are mirrored without repeating the edge pixel.
/// The image streams through a window of rows, so no plane of its size is ever stored.
///
/// # Errors
/// [`Error::ImageShape`] when the pixels do not fill a whole number of cells, [`Error::InvalidConfig`] when `sigma` is
/// no positive number.
pub fn structure(image: &ImageView<'_>, sigma: f64) -> Result<Structure, Error> {
    let (rows, columns) = image.grid()?;
    if !(sigma.is_finite() && sigma > 0.0) {
        return Err(Error::InvalidConfig { field: "sigma", expected: "positive", found: sigma });
    }
    let cells = rows * columns;
    let mut structure = Structure {
        grid: (rows, columns),
        lambda_max: Vec::with_capacity(cells),
        lambda_min: Vec::with_capacity(cells),
        luminance: Vec::with_capacity(cells),
    };
    let (smooth, sums) = (SmoothRows::new(image, sigma), ColumnSums::new(image.width));
    pulp::Arch::new().dispatch(Stream { smooth, sums, structure: &mut structure });
    Ok(structure)
}

/// A pass over all rows, compiled for several kinds of processors and run as the widest vectors of this one allow. The
/// numbers are the same bit for bit.
struct Stream<'a> {
    smooth: SmoothRows<'a>,
    sums: ColumnSums,
    structure: &'a mut Structure,
}

impl pulp::NullaryFnOnce for Stream<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { mut smooth, mut sums, structure } = self;
        let ImageView { height, cell, .. } = smooth.image;
        for y in 0..height {
            smooth.advance((y + 2).min(height));
            let (above, here, below) = (mirror(y as isize - 1, height), y, mirror(y as isize + 1, height));
            sums.add(smooth.row(above), smooth.row(here), smooth.row(below));
            if (y + 1) % cell == 0 {
                sums.finish_row_of_cells(cell, structure);
            }
        }
    }
}

/// Index of the pixel that stands at `index` when a line of `length` pixels is mirrored at the centre of its ends.
fn mirror(index: isize, length: usize) -> usize {
    if length == 1 {
        return 0;
    }
    let period = 2 * (length - 1);
    let index = index.rem_euclid(period as isize) as usize;
    index.min(period - index)
}

/// Centre and one side of a Gaussian that sums to one over both sides.
fn half_gaussian(sigma: f64) -> Vec<f64> {
    let radius = (4.0 * sigma + 0.5) as usize;
    let mut kernel: Vec<f64> = (0..=radius).map(|x| (-0.5 * (x as f64 / sigma).powi(2)).exp()).collect();
    let sum = kernel[0] + 2.0 * kernel[1..].iter().sum::<f64>();
    for value in &mut kernel {
        *value /= sum;
    }
    kernel
}

/// Smoothed lightness, row after row, keeping only the rows that a Sobel window can still reach.
struct SmoothRows<'a> {
    image: ImageView<'a>,
    kernel: Vec<f64>,
    /// One row of lightness with its mirrored ends.
    padded: Vec<f64>,
    /// The last rows smoothed along x; row y is at y modulo their number.
    across: Vec<Vec<f64>>,
    across_ready: usize,
    /// The last three rows smoothed along both axes, with a mirrored pixel at each end.
    both: [Vec<f64>; 3],
    both_ready: usize,
}

impl<'a> SmoothRows<'a> {
    fn new(image: &ImageView<'a>, sigma: f64) -> Self {
        let kernel = half_gaussian(sigma);
        let reach = 2 * (kernel.len() - 1);
        Self {
            image: *image,
            padded: vec![0.0; image.width + reach],
            across: vec![vec![0.0; image.width]; reach + 1],
            across_ready: 0,
            both: std::array::from_fn(|_| vec![0.0; image.width + 2]),
            both_ready: 0,
            kernel,
        }
    }

    fn row(&self, y: usize) -> &[f64] {
        &self.both[y % 3]
    }

    /// Makes every row before `end` available.
    #[inline(always)]
    fn advance(&mut self, end: usize) {
        let radius = self.kernel.len() - 1;
        while self.both_ready < end {
            while self.across_ready < (self.both_ready + radius + 1).min(self.image.height) {
                self.smooth_across();
            }
            self.smooth_down();
        }
    }

    #[inline(always)]
    fn smooth_across(&mut self) {
        let (width, radius) = (self.image.width, self.kernel.len() - 1);
        let y = self.across_ready;
        let pixels = &self.image.pixels[3 * width * y..3 * width * (y + 1)];
        LIGHTNESS.row(pixels, &mut self.padded[radius..radius + width]);
        for x in 1..=radius {
            self.padded[radius - x] = self.padded[radius + mirror(-(x as isize), width)];
            self.padded[radius + width - 1 + x] = self.padded[radius + mirror((width - 1 + x) as isize, width)];
        }
        let slot = y % self.across.len();
        let row = &mut self.across[slot];
        scale(row, &self.padded[radius..], self.kernel[0]);
        for x in 1..=radius {
            add_scaled(row, &self.padded[radius - x..], &self.padded[radius + x..], self.kernel[x]);
        }
        self.across_ready += 1;
    }

    #[inline(always)]
    fn smooth_down(&mut self) {
        let (width, height, y) = (self.image.width, self.image.height, self.both_ready);
        let across = |offset: isize| &self.across[mirror(y as isize + offset, height) % self.across.len()];
        let row = &mut self.both[y % 3];
        scale(&mut row[1..=width], across(0), self.kernel[0]);
        for (distance, &factor) in self.kernel.iter().enumerate().skip(1) {
            add_scaled(&mut row[1..=width], across(-(distance as isize)), across(distance as isize), factor);
        }
        row[0] = row[1 + mirror(-1, width)];
        row[width + 1] = row[1 + mirror(width as isize, width)];
        self.both_ready += 1;
    }
}

#[inline(always)]
fn scale(out: &mut [f64], input: &[f64], factor: f64) {
    for (out, input) in out.iter_mut().zip(input) {
        *out = factor * input;
    }
}

#[inline(always)]
fn add_scaled(out: &mut [f64], one: &[f64], other: &[f64], factor: f64) {
    for ((out, one), other) in out.iter_mut().zip(one).zip(other) {
        *out += factor * (one + other);
    }
}

/// Sums over the rows of the current cells, one column of pixels each: adding along x as well would forbid the
/// compiler to work on several pixels at once.
struct ColumnSums {
    xx: Vec<f64>,
    xy: Vec<f64>,
    yy: Vec<f64>,
    luminance: Vec<f64>,
}

impl ColumnSums {
    fn new(width: usize) -> Self {
        let zeros = || vec![0.0; width];
        Self { xx: zeros(), xy: zeros(), yy: zeros(), luminance: zeros() }
    }

    /// Adds a row of pixels, given with its neighbours, each with a mirrored pixel at both ends.
    #[inline(always)]
    fn add(&mut self, above: &[f64], here: &[f64], below: &[f64]) {
        let width = self.xx.len();
        let (xx, xy, yy) = (&mut self.xx[..width], &mut self.xy[..width], &mut self.yy[..width]);
        let luminance = &mut self.luminance[..width];
        let (above, here, below) = (&above[..width + 2], &here[..width + 2], &below[..width + 2]);
        for x in 0..width {
            let gx = (above[x + 2] - above[x]) + 2.0 * (here[x + 2] - here[x]) + (below[x + 2] - below[x]);
            let gy = (below[x] - above[x]) + 2.0 * (below[x + 1] - above[x + 1]) + (below[x + 2] - above[x + 2]);
            xx[x] += gx * gx;
            xy[x] += gx * gy;
            yy[x] += gy * gy;
            luminance[x] += here[x + 1];
        }
    }

    /// Appends a finished row of cells and starts the next.
    fn finish_row_of_cells(&mut self, cell: usize, structure: &mut Structure) {
        let area = (cell * cell) as f64;
        for start in (0..self.xx.len()).step_by(cell) {
            let mean = |sums: &[f64]| sums[start..start + cell].iter().sum::<f64>() / area;
            let (lambda_max, lambda_min) = eigenvalues(mean(&self.xx), mean(&self.xy), mean(&self.yy));
            structure.lambda_max.push(lambda_max);
            structure.lambda_min.push(lambda_min);
            structure.luminance.push(mean(&self.luminance));
        }
        for sums in [&mut self.xx, &mut self.xy, &mut self.yy, &mut self.luminance] {
            sums.fill(0.0);
        }
    }
}

/// Eigenvalues of `[xx, xy; xy, yy]`, larger first, the smaller one at least 0.
fn eigenvalues(xx: f64, xy: f64, yy: f64) -> (f64, f64) {
    let centre = f64::midpoint(xx, yy);
    let radius = ((xx - yy) / 2.0).hypot(xy);
    (centre + radius, (centre - radius).max(0.0))
}

/// Made once: for a small image it would be the larger part of the work.
static LIGHTNESS: LazyLock<Lightness> = LazyLock::new(Lightness::new);

/// CIELab lightness of sRGB bytes under D65.
struct Lightness {
    /// Relative luminance that each value of red, green and blue adds.
    luminance: [[f64; 256]; 3],
}

impl Lightness {
    fn new() -> Self {
        let linear = |byte: usize| {
            let value = byte as f64 / 255.0;
            if value <= 0.04045 { value / 12.92 } else { ((value + 0.055) / 1.055).powf(2.4) }
        };
        let share = [0.212_672_9, 0.715_152_2, 0.072_175_0];
        Self { luminance: share.map(|share| std::array::from_fn(|byte| share * linear(byte))) }
    }

    #[inline(always)]
    fn row(&self, pixels: &[u8], out: &mut [f64]) {
        let [red, green, blue] = &self.luminance;
        for (out, pixel) in out.iter_mut().zip(pixels.as_chunks::<3>().0) {
            *out = red[usize::from(pixel[0])] + green[usize::from(pixel[1])] + blue[usize::from(pixel[2])];
        }
        for value in out {
            *value = lightness(*value);
        }
    }
}

/// L* in 0 to 100 of a relative luminance in 0 to 1.
#[inline(always)]
fn lightness(luminance: f64) -> f64 {
    const DELTA: f64 = 6.0 / 29.0;
    let curve = cube_root(luminance);
    let line = luminance / (3.0 * DELTA * DELTA) + 4.0 / 29.0;
    116.0 * if luminance > DELTA * DELTA * DELTA { curve } else { line } - 16.0
}

/// Cube root of a positive, normal number, to about 1e-13: the standard library's is most of the cost of a megapixel,
/// and this one works on several numbers at once.
#[inline(always)]
fn cube_root(value: f64) -> f64 {
    // A third of the exponent is within 6 % of the root; each of Halley's steps then cubes the error.
    const BIAS: u32 = 715_094_163;
    let high = (value.to_bits() >> 32) as u32 / 3 + BIAS;
    let mut root = f64::from_bits(u64::from(high) << 32);
    for _ in 0..2 {
        let cube = root * root * root;
        root *= (cube + 2.0 * value) / (2.0 * cube + value);
    }
    root
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn close(found: f64, expected: f64, tolerance: f64) {
        assert!((found - expected).abs() <= tolerance, "{found} is not {expected}");
    }

    #[test]
    fn cube_root_agrees_with_the_standard_library() {
        for step in 1..=100_000 {
            let value = f64::from(step) / 100_000.0;
            close(cube_root(value) / value.cbrt(), 1.0, 1e-12);
        }
    }

    #[test]
    fn lightness_of_known_colours() {
        let table = Lightness::new();
        let mut found = [0.0; 4];
        table.row(&[0, 0, 0, 255, 255, 255, 119, 119, 119, 1, 1, 1], &mut found);
        close(found[0], 0.0, 1e-12);
        // The coefficients sum to 1.0000001.
        close(found[1], 100.0, 1e-5);
        // 119 is the byte nearest to a lightness of 50: linear 0.184475, cube root 0.569251.
        close(found[2], 50.034, 1e-3);
        // 1/255/12.92 = 3.035270e-4, below the line's end: 903.2963 times that.
        close(found[3], 0.274_175, 1e-6);
    }

    #[test]
    fn lines_are_mirrored_at_the_centre_of_the_edge_pixel() {
        let line = |length| (-4..7).map(|index| mirror(index, length)).collect::<Vec<_>>();
        assert_eq!(line(3), [0, 1, 2, 1, 0, 1, 2, 1, 0, 1, 2]);
        assert_eq!(line(2), [0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0]);
        assert_eq!(line(1), [0; 11]);
    }

    #[test]
    fn gaussian_reaches_four_sigma_and_sums_to_one() {
        let kernel = half_gaussian(1.0);
        assert_eq!(kernel.len(), 5);
        close(kernel[0] + 2.0 * kernel[1..].iter().sum::<f64>(), 1.0, 1e-15);
        close(kernel[1] / kernel[0], (-0.5f64).exp(), 1e-15);
        assert_eq!(half_gaussian(0.1).len(), 1);
    }

    #[test]
    fn eigenvalues_of_a_rotated_diagonal() {
        // (3, 4) / 5 is an eigenvector of 10, (-4, 3) / 5 of 5.
        let (max, min) = eigenvalues(0.36 * 10.0 + 0.64 * 5.0, 0.48 * 5.0, 0.64 * 10.0 + 0.36 * 5.0);
        close(max, 10.0, 1e-12);
        close(min, 5.0, 1e-12);
        // A tensor of rank one may come out a rounding below zero.
        for step in 1..1000 {
            let (x, y) = (f64::from(step) / 7.0, 3.1);
            assert!(eigenvalues(x * x, x * y, y * y).1 >= 0.0, "{x}");
        }
    }

    #[test]
    fn an_edge_has_one_direction() {
        let (long, short) = (24, 8);
        // The middle cell holds the whole edge. Its smoothed step rises by 100 k(d) between two pixels, so the Sobel
        // response is 4 * 100 (k(d) + k(d + 1)) and only pixels within the cell count.
        let kernel = half_gaussian(1.0);
        let slope = |d: isize| kernel.get(d.unsigned_abs()).copied().unwrap_or(0.0);
        let expected: f64 = (8..16).map(|x| (400.0 * (slope(x - 12) + slope(x - 11))).powi(2)).sum::<f64>() / 8.0;
        for (width, height, grid) in [(long, short, (1, 3)), (short, long, (3, 1))] {
            let along = |at: usize| if width == long { at % width } else { at / width };
            let pixels: Vec<u8> =
                (0..width * height).flat_map(|at| [if along(at) < 12 { 0 } else { 255 }; 3]).collect();
            let found = structure(&ImageView { width, height, pixels: &pixels, cell: 8 }, 1.0).unwrap();
            assert_eq!(found.grid, grid);
            close(found.lambda_max[1] / expected, 1.0, 1e-6);
            close(found.lambda_min[1], 0.0, 1e-9);
            close(found.luminance[1], 50.0, 1e-4);
        }
    }

    #[test]
    fn an_image_smaller_than_the_kernel_is_flat_where_its_pixels_are() {
        let found = structure(&ImageView { width: 2, height: 1, pixels: &[9; 6], cell: 1 }, 1.0).unwrap();
        assert_eq!((found.lambda_max, found.lambda_min), (vec![0.0; 2], vec![0.0; 2]));
    }
}
