//! Image preprocessing against transformers with the torchvision backend, and decoding against Pillow.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::{Path, PathBuf};

use firesight_vlm::{Error, ImageProcessor, read_image, read_image_size, smart_resize};
use support::{Tensors, json, oracle_dir};

/// `preprocessor_config.json` of the processors that wrote `expected_<name>_hub.safetensors`.
const PROCESSORS: [(&str, &str); 2] = [
    (
        "qwen2_5_vl",
        r#"{"min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
            "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}"#,
    ),
    (
        "qwen3_vl",
        r#"{"size": {"shortest_edge": 65536, "longest_edge": 16777216}, "patch_size": 16, "temporal_patch_size": 2,
            "merge_size": 2, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}"#,
    ),
];

fn processor(settings: &str) -> ImageProcessor {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("preprocessor_config.json"), settings).unwrap();
    ImageProcessor::from_dir(dir.path()).unwrap()
}

/// Names of the images that `file` holds tensors of, and where the images are.
fn images(file: &Tensors, dir: &Path) -> Vec<(String, PathBuf)> {
    let names = file.names().filter_map(|name| name.strip_suffix(".decoded_rgb_u8"));
    names
        .map(|name| {
            let path = ["png", "jpg"].map(|extension| dir.join(name).with_extension(extension));
            (name.to_owned(), path.into_iter().find(|path| path.exists()).unwrap())
        })
        .collect()
}

/// Bytes of an 8-bit picture and its `[height, width, 3]`.
fn picture(file: &Tensors, name: &str) -> (Vec<usize>, Vec<u8>) {
    let (shape, values) = file.i64(name);
    (shape, values.into_iter().map(|value| u8::try_from(value).unwrap()).collect())
}

#[test]
fn sizes_are_those_of_smart_resize() {
    let rows = json(&oracle_dir().join("images/smart_resize.json"));
    let rows = rows.as_array().unwrap();
    assert!(rows.len() >= 1000);
    let mut refused = 0;
    for row in rows {
        let number = |field: &str| row[field].as_u64().unwrap();
        let side = |field: &str| u32::try_from(number(field)).unwrap();
        let found = smart_resize(side("h"), side("w"), side("factor"), number("min"), number("max"));
        if let Some(expected) = row["out"].as_array() {
            let (h, w) = found.unwrap();
            assert_eq!(
                [u64::from(h), u64::from(w)].as_slice(),
                expected.iter().map(|v| v.as_u64().unwrap()).collect::<Vec<_>>(),
                "{row}"
            );
        } else {
            assert!(matches!(found, Err(Error::ImageSize { .. })), "{row}");
            refused += 1;
        }
    }
    assert!(refused > 0);
}

#[test]
fn pixel_values_are_bit_exact() {
    let dir = oracle_dir().join("images");
    let mut compared = 0;
    for (name, settings) in PROCESSORS {
        let file = dir.join(format!("expected_{name}_hub.safetensors"));
        if !file.is_file() {
            println!("no values of {name} in {}", dir.display());
            continue;
        }
        let (file, processor) = (Tensors::read(&file), processor(settings));
        for (image, path) in images(&file, &dir) {
            let decoded = read_image(&path).unwrap();
            let (shape, bytes) = picture(&file, &format!("{image}.decoded_rgb_u8"));
            assert_eq!([decoded.height() as usize, decoded.width() as usize, 3].as_slice(), shape);
            assert!(*decoded.as_raw() == bytes, "{name} {image}: decoded bytes differ");

            let processed = processor.process(&decoded).unwrap();
            let (_, grid) = file.i64(&format!("{image}.grid_thw"));
            assert_eq!([processed.grid.t, processed.grid.h, processed.grid.w].map(|n| n as i64).as_slice(), grid);
            let (shape, expected) = file.f32(&format!("{image}.pixel_values_tv"));
            assert_eq!(shape[0], processed.grid.patches());
            assert_eq!(shape[0] * shape[1], processed.pixel_values.len());
            let different = processed.pixel_values.iter().zip(&expected).filter(|(a, b)| a.to_bits() != b.to_bits());
            assert_eq!(different.count(), 0, "{name} {image}: values that differ");
            compared += expected.len();
        }
    }
    assert!(compared > 80_000, "only {compared} values compared");
}

#[test]
fn every_colour_mode_decodes_as_pillow_does() {
    // Only the repository has this file: the pictures converted to RGBA and composited on white by Pillow 13.
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/oracle/images");
    let file = Tensors::read(&dir.join("colour_modes.safetensors"));
    let images = images(&file, &dir);
    assert!(images.len() >= 5);
    for (name, path) in images {
        let decoded = read_image(&path).unwrap();
        let (shape, expected) = picture(&file, &format!("{name}.decoded_rgb_u8"));
        assert_eq!([decoded.height() as usize, decoded.width() as usize, 3].as_slice(), shape);
        let worst = decoded.as_raw().iter().zip(&expected).map(|(&a, &b)| a.abs_diff(b)).max().unwrap();
        // JPEG leaves the rounding of the inverse transform and of chroma upsampling to the decoder.
        let allowed = if path.extension().unwrap() == "jpg" { 3 } else { 0 };
        assert!(worst <= allowed, "{name}: bytes differ by up to {worst}");
    }
}

#[test]
fn sizes_and_grids_of_the_report_are_met() {
    let dir = oracle_dir().join("images");
    let report = json(&dir.join("report.json"));
    let mut compared = 0;
    for (name, settings) in PROCESSORS {
        let tiny = [("12845056", "50176"), ("65536", "4096"), ("16777216", "65536")];
        let tiny = tiny.iter().fold(settings.to_owned(), |settings, (from, to)| settings.replace(from, to));
        for (section, settings) in [("hub", settings), ("tiny", &tiny)] {
            let processor = processor(settings);
            for (file, expected) in report[format!("{name}_{section}")].as_object().unwrap() {
                let path = dir.join(file);
                let processed = processor.process(&read_image(&path).unwrap()).unwrap();
                let (width, height) = read_image_size(&path).unwrap();
                assert_eq!(processor.grid(width, height).unwrap(), processed.grid, "from the header of {file}");
                let (grid, rgb) = (processed.grid, &processed.rgb);
                assert_eq!(expected["grid"], serde_json::json!([grid.t, grid.h, grid.w]), "{name} {section} {file}");
                assert_eq!(expected["resized_hw"], serde_json::json!([rgb.height(), rgb.width()]));
                compared += 1;
            }
        }
    }
    assert!(compared >= 30, "only {compared} images compared");
}
