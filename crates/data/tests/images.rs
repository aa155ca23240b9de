//! Pictures come out as Python's tools would have them.
#![allow(clippy::unwrap_used)]

mod fixtures;

use std::fs;

use firesight_data::ColumnType::{List, Number, Text};
use firesight_data::{DataSet, Error, ImageSource, Layout};
use fixtures::{Writing, chain, write_jsonl};
use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;
use image::codecs::webp::WebPEncoder;
use image::{DynamicImage, ExtendedColorType, ImageBuffer, ImageEncoder, Luma, LumaA, Rgb, RgbImage, Rgba};
use serde_json::json;

/// The only image of a data set whose row holds these bytes.
fn source(bytes: &[u8]) -> ImageSource {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("data.jsonl");
    write_jsonl(&path, &[json!({"prompt": "?", "image": {"bytes": fixtures::base64(bytes), "path": "x.png"}})]);
    DataSet::open(&[path], &Layout::default(), 0).unwrap().row(0).unwrap().images.remove(0)
}

fn encoded(image: impl Into<DynamicImage>) -> Vec<u8> {
    let mut bytes = Vec::new();
    image.into().write_with_encoder(PngEncoder::new(&mut bytes)).unwrap();
    bytes
}

fn first_pixel(bytes: &[u8]) -> [u8; 3] {
    source(bytes).decode().unwrap().get_pixel(0, 0).0
}

#[test]
fn everything_becomes_rgb_of_8_bits() {
    assert_eq!(first_pixel(&encoded(ImageBuffer::from_pixel(1, 1, Luma([7_u8])))), [7, 7, 7]);
    assert_eq!(first_pixel(&encoded(ImageBuffer::from_pixel(1, 1, Luma([0x0707_u16])))), [7, 7, 7]);
    assert_eq!(first_pixel(&encoded(ImageBuffer::from_pixel(1, 1, Rgb([0xffff_u16, 0x8080, 0])))), [255, 128, 0]);
    // Alpha is dropped, not blended: what is behind a transparent pixel shows.
    assert_eq!(first_pixel(&encoded(ImageBuffer::from_pixel(1, 1, Rgba([1_u8, 2, 3, 0])))), [1, 2, 3]);
    assert_eq!(first_pixel(&encoded(ImageBuffer::from_pixel(1, 1, LumaA([9_u8, 128])))), [9, 9, 9]);
}

/// A picture whose upper left pixel is red and whose others are blue, and EXIF that says how it lies.
fn turned(orientation: u8, encoder: &mut impl FnMut(Vec<u8>, &RgbImage) -> Vec<u8>) -> RgbImage {
    let image = RgbImage::from_fn(16, 8, |x, y| Rgb(if x < 8 && y < 8 { [255, 0, 0] } else { [0, 0, 255] }));
    // TIFF in big-endian order with one entry: tag 0x0112, a short.
    let mut exif = b"MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0".to_vec();
    exif.extend([orientation, 0, 0, 0, 0, 0, 0]);
    let source = source(&encoder(exif, &image));
    let decoded = source.decode().unwrap();
    assert_eq!(source.dimensions().unwrap(), decoded.dimensions());
    decoded
}

fn assert_turned(mut encoder: impl FnMut(Vec<u8>, &RgbImage) -> Vec<u8>) {
    // Where the red half is: left, right, right, left, top, top, bottom, bottom.
    for (orientation, (size, red)) in
        (1..).zip([((16, 8), (2, 4)), ((16, 8), (13, 4)), ((16, 8), (13, 4)), ((16, 8), (2, 4))].into_iter().chain([
            ((8, 16), (4, 2)),
            ((8, 16), (4, 2)),
            ((8, 16), (4, 13)),
            ((8, 16), (4, 13)),
        ]))
    {
        let image = turned(orientation, &mut encoder);
        assert_eq!(image.dimensions(), size, "orientation {orientation}");
        let Rgb([r, _, b]) = *image.get_pixel(red.0, red.1);
        assert!(r > 200 && b < 50, "orientation {orientation}");
    }
}

#[test]
fn pictures_are_turned_as_their_exif_says() {
    assert_turned(|exif, image| {
        let mut bytes = Vec::new();
        let mut encoder = JpegEncoder::new_with_quality(&mut bytes, 95);
        encoder.set_exif_metadata(exif).unwrap();
        image.write_with_encoder(encoder).unwrap();
        bytes
    });
    assert_turned(|exif, image| {
        let mut bytes = Vec::new();
        let mut encoder = PngEncoder::new(&mut bytes);
        encoder.set_exif_metadata(exif).unwrap();
        image.write_with_encoder(encoder).unwrap();
        bytes
    });
    assert_turned(|exif, image| {
        let mut bytes = Vec::new();
        let mut encoder = WebPEncoder::new_lossless(&mut bytes);
        encoder.set_exif_metadata(exif).unwrap();
        encoder.encode(image, image.width(), image.height(), ExtendedColorType::Rgb8).unwrap();
        bytes
    });
}

#[test]
fn a_name_with_the_wrong_ending_is_no_matter() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("data.jsonl");
    let mut jpeg = Vec::new();
    RgbImage::new(3, 2).write_with_encoder(JpegEncoder::new(&mut jpeg)).unwrap();
    fs::write(scratch.path().join("1.png"), jpeg).unwrap();
    write_jsonl(&path, &[json!({"prompt": "?", "image": "1.png"})]);
    let image = DataSet::open(&[path], &Layout::default(), 0).unwrap().row(0).unwrap().images.remove(0);
    assert_eq!(image.decode().unwrap().dimensions(), (3, 2));
}

#[test]
fn what_is_no_image_or_too_large_is_an_error() {
    let png = fixtures::png(1);
    let error = chain(&source(&png[..png.len() / 2]).decode().unwrap_err());
    assert!(error.contains("data.jsonl, row 1, image 1 (x.png): "), "{error}");
    let error = chain(&source(b"nothing").decode().unwrap_err());
    assert!(error.ends_with("image 1 (x.png): The image format could not be determined"), "{error}");

    // A head that asks for 40000 times 40000 pixels.
    let mut bomb = png;
    bomb[16..24].copy_from_slice(&[0, 0, 0x9c, 0x40, 0, 0, 0x9c, 0x40]);
    let mut checksum = flate2::Crc::new();
    checksum.update(&bomb[12..29]);
    bomb[29..33].copy_from_slice(&checksum.sum().to_be_bytes());
    let error = source(&bomb).decode().unwrap_err();
    let Error::Image { source, .. } = error else { panic!("{error:?}") };
    assert!(matches!(*source, image::ImageError::Limits(_)), "{source:?}");
}

#[test]
fn the_summary_says_what_there_is() {
    let rows = |bytes: &dyn Fn(&[u8]) -> String| {
        vec![
            json!({"prompt": "é?", "images": [{"bytes": bytes(&fixtures::png(1))}], "answer": "a", "level": 1}),
            json!({"prompt": "none", "images": [], "answer": null}),
            json!({"prompt": "", "images": [], "answer": null}),
            json!({"prompt": "three", "images": [{"bytes": bytes(&fixtures::png(2))}, {"bytes": bytes(b"broken")},
                                                 {"bytes": bytes(&fixtures::png(9))}], "answer": "a"}),
        ]
    };
    let both = fixtures::Both::write(rows, Writing::default());
    for data in both.open(&Layout::default(), 1) {
        let data = data.unwrap();
        let summary = data.summary(100).unwrap();
        assert_eq!((summary.files.len(), summary.files[0].rows, summary.files[0].bad_rows), (1, 3, 1));
        assert_eq!((summary.answers_missing, summary.completions_missing), (1, 3));
        let images = summary.images;
        assert_eq!((images.count(), images.least(), images.mean(), images.greatest()), (3, 0, 4.0 / 3.0, 3));
        let characters = summary.prompt_characters;
        assert_eq!((characters.least(), characters.mean(), characters.greatest()), (2, 11.0 / 3.0, 5));
        let (widths, heights) = (summary.image_widths, summary.image_heights);
        assert_eq!((widths.count(), widths.least(), widths.greatest()), (3, 5, 13));
        assert_eq!((heights.least(), heights.greatest()), (3, 3));
        assert_eq!(summary.unreadable_images.len(), 1);
        assert!(chain(&summary.unreadable_images[0]).contains(", row 4, image 2: "));
        assert_eq!(data.summary(1).unwrap().image_widths.count(), 1);
        // Of the second half, the first row is bad and the last one is taken.
        assert_eq!(data.summary(2).unwrap().image_widths.count(), 3);
        for (name, kind) in [("answer", Text), ("images", List), ("level", Number), ("prompt", Text)] {
            assert_eq!(data.columns()[name].iter().collect::<Vec<_>>(), [&kind], "{name}");
        }
        assert_eq!(data.columns().len(), 4);
    }
}
