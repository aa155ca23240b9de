//! Pictures inside a page.

use std::path::Path;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use image::RgbImage;
use image::codecs::jpeg::JpegEncoder;
use image::imageops::{FilterType, resize};
use serde::Serialize;

use crate::Error;
use crate::files::io;
use crate::rollouts::png;

/// Larger pictures are scaled down to this many pixels: more than a page has room for.
const PIXELS: f64 = 1e6;
/// Bytes of so many pixels, should nothing about them be compressible.
const MOST: u64 = 3 * PIXELS as u64;

/// A picture as the page has it.
#[derive(Serialize)]
pub(super) struct Picture {
    /// The file, as a data URI.
    source: String,
    /// In pixels.
    width: u32,
    /// In pixels.
    height: u32,
}

impl Picture {
    /// Bytes that [`Self::read`] makes of a file, or a little more; none of one that is missing.
    pub(super) fn bytes(path: &Path) -> u64 {
        let file = path.metadata().map_or(0, |file| file.len());
        // Base64 has four characters for three bytes.
        4 * file.min(MOST).div_ceil(3)
    }

    /// Reads a PNG file.
    pub(super) fn read(path: &Path) -> Result<Self, Error> {
        let file = std::fs::read(path).map_err(|source| io(path, source))?;
        let broken = |source| Error::Picture { path: path.into(), source };
        let picture = image::load_from_memory(&file).map_err(broken)?;
        let pixels = f64::from(picture.width()) * f64::from(picture.height());
        if pixels <= PIXELS {
            return Ok(Self::new("png", &file, picture.width(), picture.height()));
        }
        let side = |side: u32| ((f64::from(side) * (PIXELS / pixels).sqrt()) as u32).max(1);
        let picture = resize(&picture.to_rgb8(), side(picture.width()), side(picture.height()), FilterType::Triangle);
        let (png, jpeg) = (png(&picture), jpeg(&picture).map_err(broken)?);
        let (kind, file) = if jpeg.len() < png.len() { ("jpeg", jpeg) } else { ("png", png) };
        Ok(Self::new(kind, &file, picture.width(), picture.height()))
    }

    fn new(kind: &str, file: &[u8], width: u32, height: u32) -> Self {
        Self { source: format!("data:image/{kind};base64,{}", BASE64_STANDARD.encode(file)), width, height }
    }
}

fn jpeg(picture: &RgbImage) -> Result<Vec<u8>, image::ImageError> {
    let mut file = Vec::new();
    picture.write_with_encoder(JpegEncoder::new_with_quality(&mut file, 85))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn decoded(picture: &Picture) -> RgbImage {
        let (_, data) = picture.source.split_once("base64,").unwrap();
        image::load_from_memory(&BASE64_STANDARD.decode(data).unwrap()).unwrap().to_rgb8()
    }

    #[test]
    fn small_pictures_stay_as_they_are_and_large_ones_shrink() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("a.png");
        let noise = |x: u32, y: u32| {
            let mixed = (x.wrapping_mul(0x9e37_79b9) ^ y.wrapping_mul(0x85eb_ca6b)).wrapping_mul(0xc2b2_ae35);
            image::Rgb([(mixed >> 8) as u8, (mixed >> 16) as u8, (mixed >> 24) as u8])
        };
        for (picture, kind, (width, height)) in [
            (RgbImage::from_fn(7, 5, noise), "png", (7, 5)),
            (RgbImage::from_fn(1000, 1000, noise), "png", (1000, 1000)),
            (RgbImage::from_fn(4000, 1000, noise), "jpeg", (2000, 500)),
            (RgbImage::from_pixel(1000, 4000, image::Rgb([9, 99, 199])), "png", (500, 2000)),
        ] {
            std::fs::write(&path, png(&picture)).unwrap();
            let found = Picture::read(&path).unwrap();
            assert!(found.source.starts_with(&format!("data:image/{kind};base64,")));
            assert_eq!((found.width, found.height), (width, height));
            assert_eq!(decoded(&found).dimensions(), (width, height));
            let (_, data) = found.source.split_once("base64,").unwrap();
            assert!((data.len() as u64..=4 * PIXELS as u64 + 4).contains(&Picture::bytes(&path)));
            if (width, height) == picture.dimensions() {
                assert!(decoded(&found) == picture);
                assert_eq!(Picture::bytes(&path), data.len() as u64);
            }
        }
        assert_eq!(Picture::bytes(&scratch.path().join("missing.png")), 0);
        std::fs::write(&path, "no picture").unwrap();
        let error = Picture::read(&path).err().unwrap();
        assert!(error.to_string().contains("a.png"), "{error}");
    }
}
