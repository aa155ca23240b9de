use crate::Error;

/// What KAWHI asks of a prompt: its images.
pub trait VisualPrompt {
    /// Every image in the order of the prompt, the order in which its visual tokens are laid out.
    fn images(&self) -> Vec<ImageView<'_>>;
}

/// An RGB image as the vision encoder sees it, that is after resizing and before normalisation.
#[derive(Debug, Clone, Copy)]
pub struct ImageView<'a> {
    /// Width in pixels, a multiple of `cell`.
    pub width: usize,
    /// Height in pixels, a multiple of `cell`.
    pub height: usize,
    /// Interleaved sRGB bytes in raster order: `3 * width * height` of them.
    pub pixels: &'a [u8],
    /// Side of one visual token in pixels: the patch size times the merge size of the encoder.
    pub cell: usize,
}

impl ImageView<'_> {
    /// Rows and columns of visual tokens.
    ///
    /// # Errors
    /// [`Error::ImageShape`] when the pixels do not fill a whole, positive number of cells.
    pub fn grid(&self) -> Result<(usize, usize), Error> {
        let Self { width, height, pixels, cell } = *self;
        let whole = cell > 0 && width > 0 && height > 0 && width % cell == 0 && height % cell == 0;
        if whole && width.checked_mul(height).and_then(|area| area.checked_mul(3)) == Some(pixels.len()) {
            Ok((height / cell, width / cell))
        } else {
            Err(Error::ImageShape { width, height, cell, bytes: pixels.len() })
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn grid_counts_whole_cells_only() {
        let pixels = [0; 4 * 6 * 3];
        let image = ImageView { width: 6, height: 4, pixels: &pixels, cell: 2 };
        assert_eq!(image.grid().unwrap(), (2, 3));
        for wrong in [
            ImageView { cell: 4, ..image },
            ImageView { cell: 0, ..image },
            ImageView { pixels: &pixels[1..], ..image },
            ImageView { width: 0, height: 0, pixels: &[], ..image },
        ] {
            assert!(matches!(wrong.grid(), Err(Error::ImageShape { .. })), "{wrong:?}");
        }
    }
}
