//! From image files to what the vision encoder reads: decoding, resizing, normalising, cutting into patches.
//!
//! The arithmetic is that of `Qwen2VLImageProcessor` of transformers with the torchvision backend, bit for bit.

use std::borrow::Cow;
use std::io::{BufRead, Cursor, Seek};
use std::path::Path;
use std::sync::Arc;

use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageError, ImageReader, RgbImage};
use serde::Deserialize;

use crate::Error;

/// Longest side over shortest side that the processor accepts.
const MAX_ASPECT_RATIO: f64 = 200.0;
/// Pillow's number for bicubic, as written in `resample`.
const PILLOW_BICUBIC: u32 = 3;
const CHANNELS: usize = 3;

/// Size of an image in patches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Grid {
    /// Temporal patches; 1 for a still image.
    pub t: usize,
    /// Patches from top to bottom.
    pub h: usize,
    /// Patches from left to right.
    pub w: usize,
}

impl Grid {
    /// Patches in all: `t * h * w`.
    #[must_use]
    pub fn patches(self) -> usize {
        self.t * self.h * self.w
    }

    /// Tokens that the image takes in a prompt when `merge * merge` patches become one.
    #[must_use]
    pub fn visual_tokens(self, merge: usize) -> usize {
        self.patches() / (merge * merge)
    }
}

/// An image as the encoder reads it. Clones share the pixels.
#[derive(Debug, Clone)]
pub struct ProcessedImage {
    /// Normalised pixels, `[patches, channels * temporal_patch_size * patch_size * patch_size]` row by row.
    ///
    /// Patches that merge into one visual token are neighbours: rows follow `(h / merge, w / merge, merge, merge)`,
    /// columns `(channel, time, y, x)`.
    pub pixel_values: Arc<[f32]>,
    /// Patches along each axis.
    pub grid: Grid,
    /// The resized picture that `pixel_values` were cut from.
    pub rgb: Arc<RgbImage>,
}

/// Resizes, normalises and cuts images as `preprocessor_config.json` says.
#[derive(Debug, Clone)]
pub struct ImageProcessor {
    min_pixels: u64,
    max_pixels: u64,
    patch_size: usize,
    temporal_patch_size: usize,
    merge_size: usize,
    /// Normalised value of each 8-bit level, per channel.
    levels: Box<[[f32; 256]; CHANNELS]>,
}

/// The fields of `preprocessor_config.json` that matter here.
#[derive(Deserialize)]
struct Settings {
    size: Option<PixelRange>,
    min_pixels: Option<u64>,
    max_pixels: Option<u64>,
    patch_size: usize,
    temporal_patch_size: usize,
    merge_size: usize,
    image_mean: [f32; CHANNELS],
    image_std: [f32; CHANNELS],
    resample: Option<u32>,
}

/// `size`: pixel counts, whatever the names say.
#[derive(Deserialize)]
struct PixelRange {
    shortest_edge: Option<u64>,
    longest_edge: Option<u64>,
}

/// `processor_config.json`, where newer versions of transformers write the same fields.
#[derive(Deserialize)]
struct NestedSettings {
    image_processor: Settings,
}

impl ImageProcessor {
    /// Reads `preprocessor_config.json`, or else the `image_processor` of `processor_config.json`.
    ///
    /// The pixel range is `min_pixels` and `max_pixels` where they are given, else `size.shortest_edge` and
    /// `size.longest_edge`, which hold pixel counts too.
    ///
    /// # Errors
    /// When neither file is there, or it describes a processor that cannot work.
    pub fn from_dir(dir: &Path) -> Result<Self, Error> {
        let path = dir.join("preprocessor_config.json");
        let nested = dir.join("processor_config.json");
        let (path, settings) = if !path.exists() && nested.exists() {
            let settings = crate::read_json::<NestedSettings>(&nested)?.image_processor;
            (nested, settings)
        } else {
            let settings = crate::read_json(&path)?;
            (path, settings)
        };
        Self::from_settings(&settings).map_err(|(field, problem)| Error::Config { path, field: field.into(), problem })
    }

    fn from_settings(settings: &Settings) -> Result<Self, (&'static str, String)> {
        let size = settings.size.as_ref();
        let min_pixels = settings.min_pixels.or(size.and_then(|size| size.shortest_edge));
        let max_pixels = settings.max_pixels.or(size.and_then(|size| size.longest_edge));
        let (Some(min_pixels), Some(max_pixels)) = (min_pixels, max_pixels) else {
            return Err(("size", "states no pixel range, and min_pixels and max_pixels are missing".into()));
        };
        if min_pixels > max_pixels {
            return Err(("size", format!("asks for at least {min_pixels} and at most {max_pixels} pixels")));
        }
        if settings.patch_size == 0 || settings.temporal_patch_size == 0 || settings.merge_size == 0 {
            return Err(("patch_size", "and temporal_patch_size and merge_size must be positive".into()));
        }
        if !settings.image_std.iter().all(|&std| std > 0.0) {
            return Err(("image_std", format!("must be positive, not {:?}", settings.image_std)));
        }
        if let Some(resample) = settings.resample.filter(|&resample| resample != PILLOW_BICUBIC) {
            return Err(("resample", format!("is {resample}; supported: {PILLOW_BICUBIC} (bicubic)")));
        }
        let mut levels = Box::new([[0.0; 256]; CHANNELS]);
        for ((levels, mean), std) in levels.iter_mut().zip(settings.image_mean).zip(settings.image_std) {
            // The reference folds the division by 255 into mean and deviation; another order of operations rounds
            // differently.
            let (mean, std) = (mean * 255.0, std * 255.0);
            for (level, value) in levels.iter_mut().enumerate() {
                *value = (level as f32 - mean) / std;
            }
        }
        Ok(Self {
            min_pixels,
            max_pixels,
            patch_size: settings.patch_size,
            temporal_patch_size: settings.temporal_patch_size,
            merge_size: settings.merge_size,
            levels,
        })
    }

    /// The same processor with other bounds for the pixels of a resized image, where they are given.
    ///
    /// # Errors
    /// The bound and what is wrong with it, when the lower one is above the upper one.
    pub fn with_pixels(self, min_pixels: Option<u64>, max_pixels: Option<u64>) -> Result<Self, (&'static str, String)> {
        let (least, most) = (min_pixels.unwrap_or(self.min_pixels), max_pixels.unwrap_or(self.max_pixels));
        let bound = if max_pixels.is_some() { ("max_pixels", most) } else { ("min_pixels", least) };
        if least > most {
            return Err((bound.0, format!("is {}: images have at least {least} and at most {most} pixels", bound.1)));
        }
        Ok(Self { min_pixels: least, max_pixels: most, ..self })
    }

    /// Side of a patch in pixels.
    #[must_use]
    pub fn patch_size(&self) -> usize {
        self.patch_size
    }

    /// Frames per patch; a still image is repeated.
    #[must_use]
    pub fn temporal_patch_size(&self) -> usize {
        self.temporal_patch_size
    }

    /// Patches per side of one visual token.
    #[must_use]
    pub fn merge_size(&self) -> usize {
        self.merge_size
    }

    /// Size, `(width, height)` in pixels, that an image of this size is resized to.
    ///
    /// # Errors
    /// [`Error::ImageSize`] as for [`smart_resize`].
    pub fn target_size(&self, width: u32, height: u32) -> Result<(u32, u32), Error> {
        let factor = (self.patch_size * self.merge_size) as u32;
        let (height, width) = smart_resize(height, width, factor, self.min_pixels, self.max_pixels)?;
        Ok((width, height))
    }

    /// Patches that an image of this size becomes; with [`read_image_size`] known without decoding it.
    ///
    /// # Errors
    /// [`Error::ImageSize`] as for [`smart_resize`].
    pub fn grid(&self, width: u32, height: u32) -> Result<Grid, Error> {
        let (width, height) = self.target_size(width, height)?;
        Ok(Grid { t: 1, h: height as usize / self.patch_size, w: width as usize / self.patch_size })
    }

    /// Resizes, normalises and cuts an image into patches. An image of the target size is not resized.
    ///
    /// # Errors
    /// [`Error::ImageSize`] as for [`smart_resize`].
    pub fn process(&self, image: &RgbImage) -> Result<ProcessedImage, Error> {
        let (width, height) = self.target_size(image.width(), image.height())?;
        // Two calls, because one would go vertically first, and the reference goes horizontally first: the rounding to
        // 8 bits in between makes the order visible.
        let rgb = resize(Cow::Borrowed(image), width, image.height())?;
        let rgb = resize(rgb, width, height)?.into_owned();
        let grid = self.grid(image.width(), image.height())?;
        Ok(ProcessedImage { pixel_values: self.patches(&rgb, grid).into(), grid, rgb: Arc::new(rgb) })
    }

    /// Patches of a picture of the size that `grid` says.
    pub(crate) fn patches(&self, rgb: &RgbImage, grid: Grid) -> Vec<f32> {
        let (size, merge, width) = (self.patch_size, self.merge_size, rgb.width() as usize);
        let bytes = rgb.as_raw();
        let mut values = Vec::with_capacity(grid.patches() * CHANNELS * self.temporal_patch_size * size * size);
        for block_y in (0..grid.h).step_by(merge) {
            for block_x in (0..grid.w).step_by(merge) {
                for (y, x) in (block_y..block_y + merge).flat_map(|y| (block_x..block_x + merge).map(move |x| (y, x))) {
                    for (channel, levels) in self.levels.iter().enumerate() {
                        let frame = values.len();
                        for line in y * size..(y + 1) * size {
                            let first = (line * width + x * size) * CHANNELS + channel;
                            let line = bytes[first..].iter().step_by(CHANNELS).take(size);
                            values.extend(line.map(|&level| levels[usize::from(level)]));
                        }
                        for _ in 1..self.temporal_patch_size {
                            values.extend_from_within(frame..frame + size * size);
                        }
                    }
                }
            }
        }
        values
    }
}

/// Size, `(height, width)` in pixels, to resize an image to: multiples of `factor`, between `min_pixels` and
/// `max_pixels` in all, the aspect ratio kept as well as that allows.
///
/// Halves round to even, as Python's `round` does: 70 pixels at a factor of 28 become 56.
///
/// # Errors
/// [`Error::ImageSize`] when a side is zero, or one side is more than 200 times the other.
pub fn smart_resize(
    height: u32,
    width: u32,
    factor: u32,
    min_pixels: u64,
    max_pixels: u64,
) -> Result<(u32, u32), Error> {
    let refuse = |problem: String| Err(Error::ImageSize { width, height, problem });
    if height == 0 || width == 0 {
        return refuse("it has no pixels".into());
    }
    let (h, w, factor) = (f64::from(height), f64::from(width), f64::from(factor));
    if h.max(w) / h.min(w) > MAX_ASPECT_RATIO {
        return refuse(format!("one side is more than {MAX_ASPECT_RATIO} times the other"));
    }
    let (min_pixels, max_pixels) = (min_pixels as f64, max_pixels as f64);
    let mut size = [h, w].map(|side| (side / factor).round_ties_even() * factor);
    if size[0] * size[1] > max_pixels {
        let shrink = (h * w / max_pixels).sqrt();
        size = [h, w].map(|side| ((side / shrink / factor).floor() * factor).max(factor));
    } else if size[0] * size[1] < min_pixels {
        let grow = (min_pixels / (h * w)).sqrt();
        size = [h, w].map(|side| (side * grow / factor).ceil() * factor);
    }
    let [h, w] = size;
    if h == 0.0 || w == 0.0 {
        // Only a processor without a lower bound gets here.
        return refuse(format!("it is smaller than half of {factor} pixels"));
    }
    Ok((h as u32, w as u32))
}

/// One bicubic pass with antialiasing (a = -0.5), rounded to 8 bits.
fn resize(image: Cow<'_, RgbImage>, width: u32, height: u32) -> Result<Cow<'_, RgbImage>, Error> {
    if image.dimensions() == (width, height) {
        return Ok(image);
    }
    let refuse = |problem: String| Error::ImageSize { width: image.width(), height: image.height(), problem };
    let (mut target, options) = (RgbImage::new(width, height), ResizeOptions::new().use_alpha(false));
    let options = options.resize_alg(ResizeAlg::Convolution(FilterType::CatmullRom));
    let source = TypedImageRef::<U8x3>::from_buffer(image.width(), image.height(), image.as_raw());
    let source = source.map_err(|error| refuse(error.to_string()))?;
    let mut view = TypedImage::from_buffer(width, height, &mut target).map_err(|error| refuse(error.to_string()))?;
    // By type: else the code for all kinds of pixels would be part of every program.
    Resizer::new().resize_typed(&source, &mut view, &options).map_err(|error| refuse(error.to_string()))?;
    Ok(Cow::Owned(target))
}

/// Reads and decodes an image file: PNG, JPEG or WebP by its content, whatever the file is called.
///
/// See [`decode_image`].
///
/// # Errors
/// [`Error::Io`] when the file cannot be read, [`Error::ImageDecode`] when it does not decode; both name the file.
pub fn read_image(path: &Path) -> Result<RgbImage, Error> {
    let bytes = std::fs::read(path).map_err(|source| Error::Io { path: path.into(), source })?;
    decode_image(&bytes, &path.display().to_string())
}

/// Size of an image file, `(width, height)` in pixels as [`read_image`] would give it, from its header alone.
///
/// # Errors
/// [`Error::Io`] when the file cannot be read, [`Error::ImageDecode`] when it has no header of an image.
pub fn read_image_size(path: &Path) -> Result<(u32, u32), Error> {
    let reader = ImageReader::open(path).map_err(|source| Error::Io { path: path.into(), source })?;
    size(reader).map_err(|source| Error::ImageDecode { name: path.display().to_string(), source })
}

fn size(reader: ImageReader<impl BufRead + Seek>) -> Result<(u32, u32), ImageError> {
    let mut decoder = reader.with_guessed_format()?.into_decoder()?;
    let (width, height) = decoder.dimensions();
    // A camera held upright notes a quarter turn.
    Ok(match decoder.orientation()? {
        Orientation::Rotate90 | Orientation::Rotate270 | Orientation::Rotate90FlipH | Orientation::Rotate270FlipH => {
            (height, width)
        }
        _ => (width, height),
    })
}

/// Decodes an image of any colour mode into 8-bit RGB.
///
/// Transparency is composited on white, and the orientation that a camera noted in the file is applied. Images that
/// need more than 512 MiB decoded are refused. `name` is what errors call the image.
///
/// # Errors
/// [`Error::ImageDecode`] when the bytes are no image, are damaged, or decode to too large an image.
pub fn decode_image(bytes: &[u8], name: &str) -> Result<RgbImage, Error> {
    decode(bytes).map_err(|source| Error::ImageDecode { name: name.into(), source })
}

fn decode(bytes: &[u8]) -> Result<RgbImage, ImageError> {
    let mut limits = image::Limits::default();
    let mut decoder = ImageReader::new(Cursor::new(bytes)).with_guessed_format()?.into_decoder()?;
    limits.reserve(decoder.total_bytes())?;
    decoder.set_limits(limits)?;
    let orientation = decoder.orientation()?;
    let mut image = DynamicImage::from_decoder(decoder)?;
    image.apply_orientation(orientation);
    Ok(if image.color().has_alpha() { on_white(image) } else { image.into_rgb8() })
}

/// `alpha * colour + (1 - alpha) * white`, rounded; Pillow's `alpha_composite` gives the same bytes.
fn on_white(image: DynamicImage) -> RgbImage {
    let image = image.into_rgba8();
    let mut rgb = RgbImage::new(image.width(), image.height());
    for (target, source) in rgb.pixels_mut().zip(image.pixels()) {
        let alpha = u32::from(source[3]);
        target.0 = [source[0], source[1], source[2]]
            .map(|level| ((u32::from(level) * alpha + 255 * (255 - alpha) + 127) / 255) as u8);
    }
    rgb
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use image::{ImageFormat, Luma, LumaA, Rgb, RgbaImage};

    use super::*;

    const QWEN3_VL: &str = r#"{"size": {"shortest_edge": 16, "longest_edge": 1024}, "patch_size": 2,
        "temporal_patch_size": 2, "merge_size": 2, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}"#;

    fn processor(json: &str) -> Result<ImageProcessor, (&'static str, String)> {
        ImageProcessor::from_settings(&serde_json::from_str(json).unwrap())
    }

    fn encoded(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image.into().write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    #[test]
    fn sizes_round_to_even_and_respect_the_pixel_range() {
        // 70 / 28 = 2.5 rounds to 2, 98 / 28 = 3.5 to 4.
        assert_eq!(smart_resize(70, 98, 28, 3136, 50176).unwrap(), (56, 112));
        // 100 x 100 pixels are too many for 64 x 64 and too few for 160 x 160.
        assert_eq!(smart_resize(100, 100, 32, 1024, 4096).unwrap(), (64, 64));
        assert_eq!(smart_resize(100, 100, 32, 25600, 65536).unwrap(), (160, 160));
    }

    #[test]
    fn impossible_sizes_are_refused() {
        for (height, width, word) in [(0, 5, "no pixels"), (5, 0, "no pixels"), (1, 201, "200 times"), (201, 1, "200")]
        {
            let error = smart_resize(height, width, 28, 3136, 50176).unwrap_err();
            assert!(matches!(error, Error::ImageSize { width: w, height: h, .. } if (w, h) == (width, height)));
            assert!(error.to_string().contains(word), "{error}");
        }
        assert!(smart_resize(1, 200, 28, 3136, 50176).is_ok());
        assert!(smart_resize(1, 1, 28, 0, 50176).is_err());
    }

    #[test]
    fn patches_follow_merge_blocks_and_repeat_in_time() {
        // 8 x 4 pixels, patches of 2, blocks of 2: red counts pixels in reading order.
        let image = RgbImage::from_fn(8, 4, |x, y| Rgb([(y * 8 + x) as u8, 0, 255]));
        let processed = processor(QWEN3_VL).unwrap().process(&image).unwrap();
        assert_eq!(processed.grid, Grid { t: 1, h: 2, w: 4 });
        assert_eq!(processed.grid.visual_tokens(2), 2);
        assert_eq!(*processed.rgb, image);
        let columns = CHANNELS * 2 * 2 * 2;
        assert_eq!(processed.pixel_values.len(), 8 * columns);
        let value = |level: f32| (level - 127.5) / 127.5;
        // Top left pixels of the patches of the first block, then of the second.
        let firsts = [0.0, 2.0, 16.0, 18.0, 4.0, 6.0, 20.0, 22.0].map(value);
        assert_eq!(processed.pixel_values.iter().step_by(columns).copied().collect::<Vec<_>>(), firsts);
        let red = [0.0, 1.0, 8.0, 9.0].map(value);
        assert_eq!(processed.pixel_values[..4], red);
        assert_eq!(processed.pixel_values[4..8], red);
        assert_eq!(processed.pixel_values[8..16], [-1.0; 8]);
        assert_eq!(processed.pixel_values[16..24], [1.0; 8]);
    }

    #[test]
    fn resizing_goes_horizontally_first() {
        // A bright column beside a dark one overshoots when shrunk; the clamp to 8 bits between the passes then
        // depends on the order.
        let image = RgbImage::from_fn(40, 40, |x, y| Rgb([if (x * 7 + y * 3) % 5 < 2 { 255 } else { 0 }; 3]));
        let processed = processor(QWEN3_VL).unwrap().process(&image).unwrap();
        assert_eq!(processed.rgb.dimensions(), (32, 32));
        let expected = resize(resize(Cow::Borrowed(&image), 32, 40).unwrap(), 32, 32).unwrap().into_owned();
        assert_eq!(*processed.rgb, expected);
        let vertical_first = resize(resize(Cow::Borrowed(&image), 40, 32).unwrap(), 32, 32).unwrap().into_owned();
        assert_ne!(*processed.rgb, vertical_first);
    }

    #[test]
    fn grey_and_transparent_images_become_rgb_on_white() {
        let grey = image::GrayImage::from_pixel(2, 1, Luma([7]));
        assert_eq!(decode_image(&encoded(grey, ImageFormat::Png), "grey").unwrap().as_raw(), &[7; 6]);
        // Three fifths of 101 and two fifths of white, 60.6 + 102, rounds up.
        let faint = image::GrayAlphaImage::from_pixel(1, 1, LumaA([101, 153]));
        assert_eq!(decode_image(&encoded(faint, ImageFormat::Png), "faint").unwrap().as_raw(), &[163; 3]);
        let mut rgba = RgbaImage::new(2, 1);
        rgba.put_pixel(1, 0, image::Rgba([1, 2, 3, 255]));
        for format in [ImageFormat::Png, ImageFormat::WebP] {
            let rgb = decode_image(&encoded(rgba.clone(), format), "rgba").unwrap();
            assert_eq!(rgb.as_raw(), &[255, 255, 255, 1, 2, 3]);
        }
    }

    #[test]
    fn broken_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("broken.png");
        let bytes = encoded(RgbImage::new(30, 30), ImageFormat::Png);
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        let error = read_image(&path).unwrap_err();
        assert!(matches!(error, Error::ImageDecode { .. }) && error.to_string().contains("broken.png"), "{error}");
        let error = read_image(&dir.path().join("absent.png")).unwrap_err();
        assert!(matches!(error, Error::Io { .. }) && error.to_string().contains("absent.png"), "{error}");
        assert!(decode_image(b"not an image", "row 3").unwrap_err().to_string().contains("row 3"));
        assert!(decode_image(b"", "row 4").is_err());
    }

    #[test]
    fn a_small_file_cannot_ask_for_endless_memory() {
        // The header of a PNG of 60000 x 60000 RGBA pixels, 14 GB decoded.
        let mut bytes = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\xea\x60\0\0\xea\x60\x08\x06\0\0\0".to_vec();
        bytes.extend(crc32(&bytes[12..]).to_be_bytes());
        bytes.extend(b"\0\0\0\0IDAT\x35\xaf\x06\x1e");
        let error = decode_image(&bytes, "bomb").unwrap_err();
        assert!(matches!(error, Error::ImageDecode { source: ImageError::Limits(_), .. }), "{error:?}");
    }

    fn crc32(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(u32::MAX, |crc, &byte| {
            (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 })
        })
    }

    #[test]
    fn the_pixel_range_is_read_under_both_names() {
        let by_size = processor(QWEN3_VL).unwrap();
        let by_pixels = QWEN3_VL.replace(
            r#""size": {"shortest_edge": 16, "longest_edge": 1024}"#,
            r#""size": {"shortest_edge": 1, "longest_edge": 1}, "min_pixels": 16, "max_pixels": 1024"#,
        );
        let by_pixels = processor(&by_pixels).unwrap();
        assert_eq!((by_size.min_pixels, by_size.max_pixels), (16, 1024));
        assert_eq!((by_pixels.min_pixels, by_pixels.max_pixels), (16, 1024));
    }

    #[test]
    fn both_config_files_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let error = ImageProcessor::from_dir(dir.path()).unwrap_err();
        assert!(error.to_string().contains("preprocessor_config.json"), "{error}");
        let nested = format!(r#"{{"image_processor": {QWEN3_VL}}}"#);
        std::fs::write(dir.path().join("processor_config.json"), nested).unwrap();
        assert_eq!(ImageProcessor::from_dir(dir.path()).unwrap().patch_size(), 2);
        let flat = QWEN3_VL.replace(r#""patch_size": 2"#, r#""patch_size": 4"#);
        std::fs::write(dir.path().join("preprocessor_config.json"), flat).unwrap();
        assert_eq!(ImageProcessor::from_dir(dir.path()).unwrap().patch_size(), 4);
    }

    #[test]
    fn impossible_settings_are_refused_by_field() {
        for (from, to, field) in [
            (r#""shortest_edge": 16"#, r#""shortest_edge": 2048"#, "size"),
            (r#""shortest_edge": 16, "#, "", "size"),
            (r#""merge_size": 2"#, r#""merge_size": 0"#, "patch_size"),
            (r#""image_std": [0.5"#, r#""image_std": [0.0"#, "image_std"),
            (r#""merge_size": 2"#, r#""merge_size": 2, "resample": 2"#, "resample"),
        ] {
            assert_eq!(processor(&QWEN3_VL.replace(from, to)).unwrap_err().0, field);
        }
    }

    #[test]
    fn a_picture_taken_sideways_is_turned_and_so_is_its_size() {
        let jpeg = encoded(RgbImage::new(24, 8), ImageFormat::Jpeg);
        // Right after the marker that starts the file, a note of one entry: orientation (0x0112), a short: 6.
        let entry = [0x12, 0x01, 3, 0, 1, 0, 0, 0, 6, 0, 0, 0];
        let note = [&b"Exif\0\0II*\0\x08\0\0\0\x01\0"[..], &entry, &[0; 4]].concat();
        let segment = [&[0xff, 0xe1, 0, note.len() as u8 + 2][..], &note].concat();
        let turned = [&jpeg[..2], &segment, &jpeg[2..]].concat();
        for (bytes, expected) in [(jpeg, (24, 8)), (turned, (8, 24))] {
            assert_eq!(decode_image(&bytes, "").unwrap().dimensions(), expected);
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), &bytes).unwrap();
            assert_eq!(read_image_size(file.path()).unwrap(), expected);
        }
        let error = read_image_size(Path::new("nowhere.png")).unwrap_err();
        assert!(matches!(error, Error::Io { .. }), "{error}");
    }
}
