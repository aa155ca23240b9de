use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::sguf::{content_hash, seed_of};
use crate::{Error, ImageView, SgufConfig, sguf};

/// Chooses the visual tokens of an image that a response is compared with.
pub trait RegionSelector: Send + Sync {
    /// Whether [`Self::select`] reads the attention that visual tokens receive in the vision encoder. Who does not is a
    /// function of the image, and is asked once for each.
    fn reads_attention(&self) -> bool {
        false
    }

    /// Whether each visual token of the image is chosen, in raster order. When none is, the response is compared with
    /// all of them.
    ///
    /// `attention` is there if [`Self::reads_attention`] asks for it: one number a visual token.
    ///
    /// # Errors
    /// When the image is nothing the method can work with; [`Error::Selector`] holds any other reason.
    fn select(&self, image: &ImageView<'_>, attention: Option<&[f32]>) -> Result<Vec<bool>, Error>;
}

/// The choices of visual tokens that the paper compares (Table 3 and section 4.4 of arXiv 2603.27375).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RegionSelection {
    /// The key cells of [`sguf`].
    #[default]
    Sguf,
    /// All visual tokens.
    All,
    /// As many as SGUF chooses, at random: seeded by the configuration and the image.
    Random,
    /// Those that SGUF does not choose.
    Inverse,
    /// The half that receives most attention in the vision encoder's last full-attention layer, rounded up; of equals
    /// the first. After VisionZip (arXiv 2412.04467), without its merging of tokens.
    VisionZip,
}

/// A [`RegionSelection`] with the parameters of SGUF.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Selector {
    pub(crate) selection: RegionSelection,
    pub(crate) sguf: SgufConfig,
}

impl RegionSelector for Selector {
    fn reads_attention(&self) -> bool {
        self.selection == RegionSelection::VisionZip
    }

    fn select(&self, image: &ImageView<'_>, attention: Option<&[f32]>) -> Result<Vec<bool>, Error> {
        let (rows, columns) = image.grid()?;
        let cells = rows * columns;
        let key = || Ok::<_, Error>(sguf(image, &self.sguf)?.key);
        match self.selection {
            RegionSelection::Sguf => key(),
            RegionSelection::All => Ok(vec![true; cells]),
            RegionSelection::Random => {
                let count = key()?.into_iter().filter(|&key| key).count();
                // A stream of its own: SGUF draws from the same seed.
                let mut rng = ChaCha8Rng::from_seed(seed_of(self.sguf.seed, content_hash(image.pixels)));
                rng.set_stream(1);
                Ok(chosen(rand::seq::index::sample(&mut rng, cells, count), cells))
            }
            RegionSelection::Inverse => Ok(key()?.into_iter().map(|key| !key).collect()),
            RegionSelection::VisionZip => {
                let attention = attention.ok_or(Error::MissingSignal { signal: "image_attention" })?;
                let mut order: Vec<usize> = (0..cells).collect();
                order.sort_by(|&a, &b| attention[b].total_cmp(&attention[a]));
                Ok(chosen(order.into_iter().take(cells.div_ceil(2)), cells))
            }
        }
    }
}

fn chosen(indices: impl IntoIterator<Item = usize>, cells: usize) -> Vec<bool> {
    let mut chosen = vec![false; cells];
    for index in indices {
        chosen[index] = true;
    }
    chosen
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// White cells of 16 pixels in a row, those in `marked` with a black square in the middle, which smoothing does not
    /// carry over the edge.
    fn pixels(cells: usize, marked: &[usize]) -> Vec<u8> {
        let width = cells * 16;
        let black = |at: usize| {
            let (x, y) = (at % width, at / width);
            marked.contains(&(x / 16)) && (6..10).contains(&(x % 16)) && (6..10).contains(&y)
        };
        (0..width * 16).flat_map(|at| [if black(at) { 0 } else { 255 }; 3]).collect()
    }

    fn select(selection: RegionSelection, pixels: &[u8], seed: u64, attention: Option<&[f32]>) -> Vec<usize> {
        let image = ImageView { width: pixels.len() / 48, height: 16, pixels, cell: 16 };
        let sguf = SgufConfig { r_skip: 1.0, seed, ..SgufConfig::default() };
        let chosen = Selector { selection, sguf }.select(&image, attention).unwrap();
        (0..chosen.len()).filter(|&cell| chosen[cell]).collect()
    }

    #[test]
    fn sguf_inverse_and_all_partition_by_the_key_cells() {
        let pixels = pixels(6, &[0, 3, 4]);
        assert_eq!(select(RegionSelection::Sguf, &pixels, 0, None), [0, 3, 4]);
        assert_eq!(select(RegionSelection::Inverse, &pixels, 0, None), [1, 2, 5]);
        assert_eq!(select(RegionSelection::All, &pixels, 0, None), [0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn random_picks_as_many_as_sguf_by_seed_and_content() {
        let image = pixels(40, &[1, 5, 9, 20, 33]);
        let picked = |seed| select(RegionSelection::Random, &image, seed, None);
        assert_eq!(picked(0).len(), 5);
        assert_eq!(picked(0), picked(0));
        assert_ne!(picked(0), picked(1));
        assert_ne!(picked(0), select(RegionSelection::Random, &pixels(40, &[1, 5, 9, 20, 34]), 0, None));
        // All cells are as likely: over many seeds each is picked about 5 times in 40.
        let mut counts = [0; 40];
        for seed in 0..2000 {
            for cell in picked(seed) {
                counts[cell] += 1;
            }
        }
        assert!(counts.iter().all(|count| (190..=310).contains(count)), "{counts:?}");
    }

    #[test]
    fn vision_zip_takes_the_half_with_most_attention() {
        let pixels = pixels(5, &[0]);
        let attention = [0.1, 0.3, 0.2, 0.3, 0.0];
        assert_eq!(select(RegionSelection::VisionZip, &pixels, 0, Some(&attention)), [1, 2, 3]);
        assert_eq!(select(RegionSelection::VisionZip, &pixels, 0, Some(&[0.2; 5])), [0, 1, 2]);
        let missing = Selector { selection: RegionSelection::VisionZip, sguf: SgufConfig::default() };
        let image = ImageView { width: 80, height: 16, pixels: &pixels, cell: 16 };
        assert!(matches!(missing.select(&image, None), Err(Error::MissingSignal { signal: "image_attention" })));
        let reads = |selection| Selector { selection, sguf: SgufConfig::default() }.reads_attention();
        assert!(reads(RegionSelection::VisionZip) && !reads(RegionSelection::Sguf));
    }
}
