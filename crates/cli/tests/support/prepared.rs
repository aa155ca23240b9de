//! What a reader of the book has: two models, pictures with questions, a configuration, a run.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use image::{Rgb, RgbImage};

/// What of the configuration that `firesight init` writes is smaller here. What is random says nothing, however long.
const SMALLER: [(&str, &str); 8] = [
    ("\nsteps = 200 ", "\nsteps = 4 "),
    ("\nprompts = 16 ", "\nprompts = 2 "),
    ("\ngroup_size = 8 ", "\ngroup_size = 2 "),
    ("\nmax_tokens = 512 ", "\nmax_tokens = 16 "),
    ("\nexamples = 200 ", "\nexamples = 4 "),
    ("\nevery = 50 ", "\nevery = 2 "),
    ("\nrollouts_every = 10 ", "\nrollouts_every = 1 "),
    ("\nevery = 10 ", "\nevery = 1 "),
];

/// Fills a directory: `models`, `data`, `examples`, `my.toml` and `runs/own`. A model of 0.25 M parameters, which nobody
/// trained, stands in the place of Qwen2.5-VL-3B.
pub(crate) fn fill(directory: &Path, root: &Path) {
    let fixture = root.join("tests/fixtures/oracle/models/qwen2_5_vl_tied");
    for name in ["models/Qwen2.5-VL-3B-Instruct", "runs/qwen-small/warm-up"] {
        copy(&fixture, &directory.join(name));
        fs::remove_dir_all(directory.join(name).join("expected")).unwrap();
    }
    for name in ["models/qwen-small", "examples/configs/algorithms"] {
        copy(&root.join(name), &directory.join(name));
    }
    data(&directory.join("data"));
    firesight(directory, &["init", "my.toml"]);
    let mut config = fs::read_to_string(directory.join("my.toml")).unwrap();
    for (from, to) in SMALLER {
        assert_eq!(config.matches(from).count(), 1, "{from:?} in what firesight init writes");
        config = config.replace(from, to);
    }
    fs::write(directory.join("my.toml"), config).unwrap();
    firesight(directory, &["train", "my.toml"]);
    assert!(directory.join("runs/own/model").is_dir());
}

/// Twenty pictures of one to three squares of one colour, and questions about them, the last four held out.
fn data(directory: &Path) {
    fs::create_dir_all(directory.join("images")).unwrap();
    let colours = [("red", [200, 0, 0]), ("green", [0, 160, 0]), ("blue", [0, 0, 200])];
    let mut rows = [String::new(), String::new()];
    for index in 0..20_u32 {
        let (colour, rgb) = colours[index as usize % 3];
        let count = 1 + index / 3 % 3;
        let mut picture = RgbImage::from_pixel(112, 56, Rgb([255; 3]));
        let mut boxes = Vec::new();
        for left in (0..count).map(|square| 8 + 34 * square) {
            for (x, y) in (left..left + 28).flat_map(|x| (14..42).map(move |y| (x, y))) {
                picture.put_pixel(x, y, Rgb(rgb));
            }
            boxes.push(format!(r#"{{"bbox_2d": [{left}, 14, {}, 42], "label": "{colour}"}}"#, left + 28));
        }
        picture.save(directory.join(format!("images/{index}.png"))).unwrap();
        writeln!(
            rows[usize::from(index >= 16)],
            r#"{{"prompt": "What colour are the squares?", "images": ["images/{index}.png"], "answer": "{colour}", "completion": "There are {count}.\n\n\\boxed{{{colour}}}", "colour": "{colour}", "count": {count}, "options": ["red", "green", "blue"], "boxes": [{}]}}"#,
            boxes.join(", ")
        )
        .unwrap();
    }
    for (name, rows) in ["train", "test"].iter().zip(rows) {
        fs::write(directory.join(format!("{name}.jsonl")), rows).unwrap();
    }
}

fn firesight(directory: &Path, arguments: &[&str]) {
    let program = env!("CARGO_BIN_EXE_firesight");
    let output = Command::new(program).args(arguments).current_dir(directory).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Copies a directory with all that is in it.
pub(crate) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}
