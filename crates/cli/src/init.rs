//! `firesight init`.

use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::Args;
use clap::builder::PossibleValuesParser;
use serde_json::json;

use crate::output::Output;

/// What there is to begin with: a name, and the configuration.
const RECIPES: [(&str, &str); 10] = [
    ("own", include_str!("../recipes/own.toml")),
    ("geometry3k", include_str!("../recipes/geometry3k.toml")),
    ("chartqa", include_str!("../recipes/chartqa.toml")),
    ("clevr-count", include_str!("../recipes/clevr-count.toml")),
    ("kawhi-grpo-qwen2.5-vl-7b", include_str!("../recipes/kawhi-grpo-qwen2.5-vl-7b.toml")),
    ("kawhi-grpo-qwen3-vl-4b", include_str!("../recipes/kawhi-grpo-qwen3-vl-4b.toml")),
    ("kawhi-dapo-qwen2.5-vl-7b", include_str!("../recipes/kawhi-dapo-qwen2.5-vl-7b.toml")),
    ("kawhi-dapo-qwen3-vl-4b", include_str!("../recipes/kawhi-dapo-qwen3-vl-4b.toml")),
    ("kawhi-gspo-qwen2.5-vl-7b", include_str!("../recipes/kawhi-gspo-qwen2.5-vl-7b.toml")),
    ("kawhi-gspo-qwen3-vl-4b", include_str!("../recipes/kawhi-gspo-qwen3-vl-4b.toml")),
];

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// File to write; must not exist yet.
    #[arg(default_value = "run.toml")]
    file: PathBuf,
    /// What to begin with.
    #[arg(long, default_value = "own", value_parser = recipes())]
    recipe: String,
    /// Model directory in Hugging Face layout.
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// File of training rows, .jsonl or .parquet.
    #[arg(long, value_name = "FILE")]
    train: Option<PathBuf>,
    /// File of rows that training never sees.
    #[arg(long, value_name = "FILE")]
    held_out: Option<PathBuf>,
}

fn recipes() -> PossibleValuesParser {
    RECIPES.map(|(name, _)| name).to_vec().into()
}

pub(crate) fn run(arguments: Arguments, output: Output) -> anyhow::Result<()> {
    let Arguments { file, recipe, model, train, held_out } = arguments;
    let Some((_, text)) = RECIPES.into_iter().find(|(name, _)| *name == recipe) else { bail!("no recipe {recipe}") };
    let mut text = text.to_owned();
    for (key, value, list) in [("model", model, false), ("train", train, true), ("held_out", held_out, true)] {
        if let Some(path) = value {
            text = with_path(&text, key, &path.display().to_string(), list);
        }
    }
    let written = File::create_new(&file).and_then(|mut to| to.write_all(text.as_bytes()));
    written.with_context(|| format!("cannot write {}", file.display()))?;
    let next = format!("wrote {0}; next: firesight check {0}", file.display());
    output.result(&json!({ "file": file }), next)
}

/// The text with another path in the line of a key, whose comment stays.
fn with_path(text: &str, key: &str, path: &str, list: bool) -> String {
    let quoted = toml::Value::from(path).to_string();
    let value = if list { format!("[{quoted}]") } else { quoted };
    let start = format!("{key} = ");
    let line = |line: &str| match line.strip_prefix(&start) {
        Some(rest) => {
            let comment = rest.find(" #").map_or("", |at| &rest[at..]);
            format!("{start}{value}{comment}\n")
        }
        None => format!("{line}\n"),
    };
    text.lines().map(line).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::path::Path;

    use firesight_train::RunConfig;

    use super::*;

    #[test]
    fn every_recipe_is_a_configuration_that_takes_other_paths() {
        for (name, text) in RECIPES {
            let config = RunConfig::from_toml(text, Path::new(name)).unwrap();
            assert_eq!(config.name, name);
            assert!(text.lines().all(|line| line.len() <= 160), "{name}");
            let other = with_path(text, "model", "a \"b\"", false);
            let other = with_path(&with_path(&other, "train", "c", true), "held_out", "d", true);
            let other: toml::Table = toml::from_str(&other).unwrap();
            assert_eq!(other["model"].as_str(), Some("a \"b\""), "{name}");
            for (key, path) in [("train", "c"), ("held_out", "d")] {
                assert_eq!(other["data"][key].as_array().unwrap()[..], [path.into()], "{name}");
            }
            // Comments stay.
            let comments = |text: &str| text.matches('#').count();
            assert_eq!(comments(&with_path(text, "model", "m", false)), comments(text), "{name}");
        }
    }

    #[test]
    fn every_recipe_in_the_directory_is_listed() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes");
        let mut files: Vec<String> = std::fs::read_dir(directory)
            .unwrap()
            .map(|file| file.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
            .collect();
        let mut listed = RECIPES.map(|(name, _)| name.to_owned()).to_vec();
        files.sort();
        listed.sort();
        assert_eq!(files, listed);
    }
}
