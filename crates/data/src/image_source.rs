//! Images of a row: where they are, and how they are decoded.

use std::borrow::Cow;
use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageError, ImageReader, ImageResult, Limits, RgbImage};
use serde_json::Value;

use crate::record::kind;
use crate::{Error, Origin};

/// An image that is decoded when it is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageSource {
    encoded: Encoded,
    /// What the data file calls it, if it does.
    path: Option<String>,
    origin: Origin,
    number: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Encoded {
    File(PathBuf),
    Bytes(Vec<u8>),
}

impl ImageSource {
    /// The absolute path of the file that the image is read from; `None` when the data file holds the image itself.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        match &self.encoded {
            Encoded::File(path) => Some(path),
            Encoded::Bytes(_) => None,
        }
    }

    /// The image as it is stored: a PNG, JPEG or WebP file.
    ///
    /// # Errors
    /// When its file cannot be read.
    pub fn encoded(&self) -> Result<Cow<'_, [u8]>, Error> {
        match &self.encoded {
            Encoded::File(path) => match fs::read(path) {
                Ok(bytes) => Ok(bytes.into()),
                Err(source) => Err(self.error(ImageError::IoError(source))),
            },
            Encoded::Bytes(bytes) => Ok(bytes.into()),
        }
    }

    /// The image in 8-bit RGB, as Hugging Face's `datasets` and then `transformers` make it: turned as its EXIF
    /// orientation says (`Image` in `datasets` does), its alpha channel dropped rather than blended (as
    /// `convert("RGB")` does), grey repeated. 16 bits are scaled to 8, where Pillow clips those of grey at 255.
    ///
    /// # Errors
    /// When the file is no image or damaged, or takes more than 512 MiB decoded.
    pub fn decode(&self) -> Result<RgbImage, Error> {
        decode(&self.encoded()?).map_err(|source| self.error(source))
    }

    /// Width and height in pixels as [`decode`](Self::decode) gives them, from the head of the file.
    ///
    /// # Errors
    /// When that is no image's.
    pub fn dimensions(&self) -> Result<(u32, u32), Error> {
        dimensions(&self.encoded()?).map_err(|source| self.error(source))
    }

    fn error(&self, source: ImageError) -> Error {
        Error::Image { origin: self.origin.clone(), image: self.number, path: self.path.clone(), source: source.into() }
    }
}

fn decode(encoded: &[u8]) -> ImageResult<RgbImage> {
    let mut decoder = ImageReader::new(Cursor::new(encoded)).with_guessed_format()?.into_decoder()?;
    let mut limits = Limits::default();
    limits.reserve(decoder.total_bytes())?;
    decoder.set_limits(limits)?;
    let orientation = orientation(&mut decoder);
    let mut image = DynamicImage::from_decoder(decoder)?;
    image.apply_orientation(orientation);
    Ok(image.into_rgb8())
}

fn dimensions(encoded: &[u8]) -> ImageResult<(u32, u32)> {
    let mut decoder = ImageReader::new(Cursor::new(encoded)).with_guessed_format()?.into_decoder()?;
    let (width, height) = decoder.dimensions();
    Ok(match orientation(&mut decoder) {
        Orientation::Rotate90 | Orientation::Rotate270 | Orientation::Rotate90FlipH | Orientation::Rotate270FlipH => {
            (height, width)
        }
        _ => (width, height),
    })
}

/// An image whose EXIF block is damaged is shown as it lies.
fn orientation(decoder: &mut impl ImageDecoder) -> Orientation {
    decoder.orientation().unwrap_or(Orientation::NoTransforms)
}

/// An image as a file names or holds it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Given {
    pub(crate) bytes: Option<Vec<u8>>,
    /// A path, or base64 if there are no bytes.
    pub(crate) text: Option<String>,
}

/// The images of a JSON value.
pub(crate) fn from_json(value: Value) -> Result<Vec<Given>, String> {
    let items = match value {
        Value::Array(items) => items,
        item => vec![item],
    };
    let each = items.into_iter().enumerate();
    each.map(|(place, item)| one_from_json(item).map_err(|problem| of_image(place, &problem))).collect()
}

fn one_from_json(value: Value) -> Result<Given, String> {
    match value {
        Value::String(text) => Ok(Given { bytes: None, text: Some(text) }),
        Value::Object(mut fields) => {
            let mut text = |field: &str| match fields.remove(field) {
                None | Some(Value::Null) => Ok(None),
                Some(Value::String(text)) => Ok(Some(text)),
                Some(other) => Err(format!("{field} is {}, not text", kind(&other))),
            };
            let bytes = text("bytes")?.map(|bytes| from_base64(&bytes)).transpose()?;
            Ok(Given { bytes, text: text("path")? })
        }
        other => Err(format!("is {}; {EXPECTED}", kind(&other))),
    }
}

/// A longer text is not taken for a path, nor put into an error; Linux has no longer ones.
const LONGEST_PATH: usize = 4096;

/// What an image in a data file can be.
pub(crate) const EXPECTED: &str = "an image is a path, base64, or a struct with bytes or path";

pub(crate) fn from_base64(text: &str) -> Result<Vec<u8>, String> {
    STANDARD.decode(text.trim_end()).map_err(|error| format!("is no base64: {error}"))
}

/// A problem of the image at a place counted from 0.
pub(crate) fn of_image(place: usize, problem: &str) -> String {
    format!("image {} {problem}", place + 1)
}

/// Finds out where images are. Paths start from `root`, and must be files.
pub(crate) fn locate(given: Vec<Given>, root: &Path, origin: &Origin) -> Result<Vec<ImageSource>, String> {
    let each = given.into_iter().enumerate();
    each.map(|(place, Given { bytes, text })| {
        let (encoded, path) = match (bytes, text) {
            (Some(bytes), path) => (Encoded::Bytes(bytes), path),
            (None, Some(text)) => named(text, root).map_err(|problem| of_image(place, &problem))?,
            (None, None) => return Err(of_image(place, "has neither bytes nor a path")),
        };
        Ok(ImageSource { encoded, path, origin: origin.clone(), number: place + 1 })
    })
    .collect()
}

fn named(text: String, root: &Path) -> Result<(Encoded, Option<String>), String> {
    if let Some(url) = text.strip_prefix("data:") {
        let (_, data) = url.split_once(";base64,").ok_or("is a data URL without \";base64,\"")?;
        return Ok((Encoded::Bytes(from_base64(data)?), None));
    }
    if text.starts_with("http://") || text.starts_with("https://") {
        return Err(format!("is {text:?}: nothing is downloaded; give a path or the image itself"));
    }
    if is_base64_image(&text) {
        return Ok((Encoded::Bytes(from_base64(&text)?), None));
    }
    if text.len() > LONGEST_PATH {
        return Err(format!(
            "is a text of {} bytes, neither a path nor a PNG, JPEG or WebP file in base64",
            text.len()
        ));
    }
    let path = root.join(&text);
    if !path.is_file() {
        return Err(format!("is not there: no file {}", path.display()));
    }
    let path = std::path::absolute(path).map_err(|error| format!("has no absolute path: {error}"))?;
    Ok((Encoded::File(path), Some(text)))
}

/// Whether a text begins like a PNG, JPEG or WebP file in base64; no path does by chance.
fn is_base64_image(text: &str) -> bool {
    // A multiple of three bytes, so of four letters, with the longest mark of a format (WebP's, 12 bytes).
    let head = text.get(..16).and_then(|head| STANDARD.decode(head).ok());
    head.is_some_and(|head| image::guess_format(&head).is_ok_and(|format| format.reading_enabled()))
}
