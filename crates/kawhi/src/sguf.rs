use petgraph::unionfind::UnionFind;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use twox_hash::XxHash3_128;

use crate::{Error, ImageView, SgufConfig, Structure, structure};

/// The key regions of an image, with every stage that led to them. All vectors over cells are in raster order.
#[derive(Debug, Clone, PartialEq)]
pub struct Regions {
    /// Eigenvalues and lightness of every cell (eq. 5-6).
    pub structure: Structure,
    /// Component of every cell (eq. 8), numbered in raster order of first appearance.
    pub component: Vec<usize>,
    /// Mean of `lambda_max + lambda_min` over the cells of each component (eq. 9).
    pub energy: Vec<f64>,
    /// `beta` times the median energy of the components (eq. 10).
    pub threshold: f64,
    /// Whether the component of a cell has more energy than the threshold.
    pub structured: Vec<bool>,
    /// Whether a cell is a key cell (eq. 11): the structured ones and a random share of the others.
    pub key: Vec<bool>,
}

/// Structure-guided union-find (arXiv 2603.27375, section 3.2, Algorithm 1): the visual tokens that carry structure.
///
/// Neighbouring cells of like structure and lightness merge; components above `beta` times the median energy are key
/// regions. Of every other component, a random `1 - r_skip` share of the cells is kept, rounded to a whole number and
/// seeded by the configuration and the pixels, so that the result depends on nothing else. An image in which nothing
/// is selected, such as a small flat one, has all its cells selected.
///
/// Costs O(pixels + cells * inverse Ackermann(cells)).
///
/// # Errors
/// [`Error::ImageShape`] when the pixels do not fill a whole number of cells, [`Error::InvalidConfig`] when the
/// configuration is out of range.
pub fn sguf(image: &ImageView<'_>, config: &SgufConfig) -> Result<Regions, Error> {
    config.validate()?;
    let structure = structure(image, config.sigma)?;
    let component = components(&structure, config.delta_s, config.delta_l);
    let energy = energies(&structure, &component);
    let threshold = config.beta * median(&energy);
    let structured: Vec<bool> = component.iter().map(|&component| energy[component] > threshold).collect();
    let key = key_cells(&structured, &component, config, content_hash(image.pixels));
    Ok(Regions { structure, component, energy, threshold, structured, key })
}

/// Identifies an image among all that a run will ever see.
pub(crate) fn content_hash(pixels: &[u8]) -> u128 {
    XxHash3_128::oneshot(pixels)
}

/// Seed of what is drawn for an image.
pub(crate) fn seed_of(seed: u64, content: u128) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    bytes[8..24].copy_from_slice(&content.to_le_bytes());
    bytes
}

/// Merges neighbours (eq. 8) and numbers the components in raster order of first appearance.
fn components(structure: &Structure, delta_s: f64, delta_l: f64) -> Vec<usize> {
    let Structure { grid: (rows, columns), lambda_max, lambda_min, luminance } = structure;
    let alike = |a: usize, b: usize| {
        // Keeps the rounding noise of flat cells from counting as a difference.
        const EPSILON: f64 = 1e-6;
        let distance = (lambda_max[a] - lambda_max[b]).hypot(lambda_min[a] - lambda_min[b]);
        distance / lambda_max[a].max(lambda_max[b]).max(EPSILON) < delta_s
            && (luminance[a] - luminance[b]).abs() < delta_l
    };
    let mut sets = UnionFind::<usize>::new(rows * columns);
    for row in 0..*rows {
        for column in 0..*columns {
            let cell = row * columns + column;
            if column + 1 < *columns && alike(cell, cell + 1) {
                sets.union(cell, cell + 1);
            }
            if row + 1 < *rows && alike(cell, cell + columns) {
                sets.union(cell, cell + columns);
            }
        }
    }
    let mut number_of = vec![None; rows * columns];
    let mut count = 0;
    sets.into_labeling()
        .into_iter()
        .map(|root| {
            *number_of[root].get_or_insert_with(|| {
                count += 1;
                count - 1
            })
        })
        .collect()
}

/// Mean of both eigenvalues' sum over each component (eq. 9).
fn energies(structure: &Structure, component: &[usize]) -> Vec<f64> {
    let components = component.iter().max().map_or(0, |last| last + 1);
    let mut sums = vec![(0.0, 0.0); components];
    for ((&component, max), min) in component.iter().zip(&structure.lambda_max).zip(&structure.lambda_min) {
        let (sum, count) = &mut sums[component];
        *sum += max + min;
        *count += 1.0;
    }
    sums.into_iter().map(|(sum, count)| sum / count).collect()
}

/// Mean of the middle two for an even number of values. Images have at least one cell, so there is a value.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    f64::midpoint(sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2])
}

/// Structured cells and a random share of each other component (eq. 11).
fn key_cells(structured: &[bool], component: &[usize], config: &SgufConfig, content: u128) -> Vec<bool> {
    let mut rng = ChaCha8Rng::from_seed(seed_of(config.seed, content));

    let mut key = structured.to_vec();
    let mut weak: Vec<Vec<usize>> = vec![Vec::new(); component.iter().max().map_or(0, |last| last + 1)];
    for (cell, &component) in component.iter().enumerate().filter(|&(cell, _)| !structured[cell]) {
        weak[component].push(cell);
    }
    for cells in weak {
        let kept = ((1.0 - config.r_skip) * cells.len() as f64).round() as usize;
        for index in rand::seq::index::sample(&mut rng, cells.len(), kept) {
            key[cells[index]] = true;
        }
    }
    if !key.contains(&true) {
        key.fill(true);
    }
    key
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::float_cmp)]
    use super::*;

    fn grid(rows: usize, columns: usize, lambda_max: &[f64], luminance: &[f64]) -> Structure {
        Structure {
            grid: (rows, columns),
            lambda_max: lambda_max.to_vec(),
            lambda_min: vec![0.0; lambda_max.len()],
            luminance: luminance.to_vec(),
        }
    }

    #[test]
    fn neighbours_merge_by_strict_inequalities() {
        // |4 - 2| / 4 = 0.5 does not merge, |4 - 3| / 4 does; the two cells of 4 touch only across a corner.
        let structure = grid(2, 3, &[4.0, 2.0, 9.0, 3.0, 99.0, 5.0], &[0.0; 6]);
        assert_eq!(components(&structure, 0.5, 30.0), [0, 1, 2, 0, 3, 2]);
        // A lightness apart by exactly delta_l does not merge.
        let structure = grid(1, 3, &[1.0; 3], &[10.0, 40.0, 69.9]);
        assert_eq!(components(&structure, 0.5, 30.0), [0, 1, 1]);
    }

    #[test]
    fn neighbours_merge_across_both_eigenvalues() {
        // hypot(3, 4) / 10 = 0.5 does not merge under 0.5, and does under 0.51.
        let mut structure = grid(1, 2, &[10.0, 7.0], &[0.0; 2]);
        structure.lambda_min = vec![0.0, 4.0];
        assert_eq!(components(&structure, 0.5, 30.0), [0, 1]);
        assert_eq!(components(&structure, 0.51, 30.0), [0, 0]);
    }

    #[test]
    fn rounding_noise_of_flat_cells_merges() {
        assert_eq!(components(&grid(1, 2, &[0.0, 4e-7], &[0.0; 2]), 0.5, 30.0), [0, 0]);
        assert_eq!(components(&grid(1, 2, &[0.0, 6e-7], &[0.0; 2]), 0.5, 30.0), [0, 1]);
    }

    #[test]
    fn components_join_through_a_longer_way_round() {
        // A ring of ones around a ten: the last cell of the ring is reached from both sides.
        let structure = grid(3, 3, &[1.0, 1.0, 1.0, 1.0, 10.0, 1.0, 1.0, 1.0, 1.0], &[0.0; 9]);
        assert_eq!(components(&structure, 0.5, 30.0), [0, 0, 0, 0, 1, 0, 0, 0, 0]);
        // A U: its arms are numbered at the top and joined at the bottom.
        let structure = grid(2, 3, &[1.0, 10.0, 1.0, 1.0, 1.0, 1.0], &[0.0; 6]);
        assert_eq!(components(&structure, 0.5, 30.0), [0, 1, 0, 0, 0, 0]);
    }

    #[test]
    fn energy_is_the_mean_of_both_eigenvalues() {
        let mut structure = grid(1, 3, &[4.0, 6.0, 9.0], &[0.0; 3]);
        structure.lambda_min = vec![1.0, 3.0, 0.5];
        assert_eq!(energies(&structure, &[0, 0, 1]), [7.0, 9.5]);
    }

    #[test]
    fn median_of_even_and_odd_counts() {
        assert_eq!(median(&[5.0, 1.0, 3.0]), 3.0);
        assert_eq!(median(&[5.0, 1.0, 3.0, 4.0]), 3.5);
        assert_eq!(median(&[7.0]), 7.0);
    }

    #[test]
    fn weak_components_keep_their_share() {
        let component: Vec<usize> = [0; 10].into_iter().chain([1; 5]).chain([2; 1]).chain([3; 4]).collect();
        let structured: Vec<bool> = component.iter().map(|&component| component == 3).collect();
        let count = |r_skip, content| {
            let config = SgufConfig { r_skip, ..SgufConfig::default() };
            let key = key_cells(&structured, &component, &config, content);
            [0, 1, 2, 3].map(|wanted| component.iter().zip(&key).filter(|&(&at, &key)| at == wanted && key).count())
        };
        for content in 0..20 {
            // round(0.3 * [10, 5, 1]) = [3, 2, 0]
            assert_eq!(count(0.7, content), [3, 2, 0, 4]);
            assert_eq!(count(1.0, content), [0, 0, 0, 4]);
            assert_eq!(count(0.0, content), [10, 5, 1, 4]);
        }
    }

    #[test]
    fn the_share_depends_on_seed_and_content_only() {
        let key =
            |seed, content| key_cells(&[false; 100], &[0; 100], &SgufConfig { seed, ..SgufConfig::default() }, content);
        assert_eq!(key(1, 2), key(1, 2));
        assert_ne!(key(1, 2), key(2, 2));
        assert_ne!(key(1, 2), key(1, 3));
    }

    #[test]
    fn an_image_without_key_cells_has_all_of_them() {
        // round(0.3 * 1) = 0 cells of a single flat one.
        let flat = ImageView { width: 28, height: 28, pixels: &[128; 28 * 28 * 3], cell: 28 };
        let regions = sguf(&flat, &SgufConfig::default()).unwrap();
        assert_eq!((regions.energy, regions.threshold), (vec![0.0], 0.0));
        assert_eq!((regions.structured, regions.key), (vec![false], vec![true]));
    }

    #[test]
    fn an_image_of_one_cell_is_key_for_its_structure() {
        let pixels: Vec<u8> = (0..28 * 28).flat_map(|at| [if at % 28 < 14 { 0 } else { 255 }; 3]).collect();
        let regions =
            sguf(&ImageView { width: 28, height: 28, pixels: &pixels, cell: 28 }, &SgufConfig::default()).unwrap();
        assert_eq!((regions.component, regions.structured), (vec![0], vec![true]));
        assert_eq!(regions.threshold, 0.1 * regions.energy[0]);
    }

    #[test]
    fn errors_are_named() {
        let image = ImageView { width: 30, height: 28, pixels: &[0; 30 * 28 * 3], cell: 28 };
        assert!(matches!(sguf(&image, &SgufConfig::default()), Err(Error::ImageShape { width: 30, .. })));
        let config = SgufConfig { beta: f64::NAN, ..SgufConfig::default() };
        assert!(matches!(sguf(&image, &config), Err(Error::InvalidConfig { field: "sguf.beta", .. })));
    }
}
