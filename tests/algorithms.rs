//! The published algorithms as files: each says in full what its constructor says.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;

use firesight_rl::Algorithm;
use firesight_train::RunConfig;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The default run with another algorithm in its place, read as a user would have it.
fn with_algorithm(fragment: &str) -> Result<RunConfig, String> {
    let whole = std::fs::read_to_string(root().join("examples/configs/qwen-small.toml")).unwrap();
    let start = whole.find("[reinforcement.algorithm]").unwrap();
    let end = start + whole[start..].find("\n[evaluation]").unwrap();
    let text = format!("{}{fragment}{}", &whole[..start], &whole[end..]);
    RunConfig::from_toml(&text, Path::new("run.toml")).map_err(|error| error.to_string())
}

#[test]
fn every_preset_has_a_file_that_says_the_same() {
    let presets: BTreeMap<&str, Algorithm> = Algorithm::presets(32).into_iter().collect();
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root().join("examples/configs/algorithms")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let config = with_algorithm(&std::fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(&config.reinforcement.algorithm, &presets[&*name], "{name}");
        // What a run writes down is what it was given.
        let written = RunConfig::from_toml(&config.to_toml(), Path::new("config.toml")).unwrap();
        assert_eq!(written, config, "{name}");
        found.push(name);
    }
    found.sort();
    assert_eq!(found, presets.into_keys().collect::<Vec<_>>());
}

#[test]
fn papers_names_every_preset_and_its_file() {
    let papers = std::fs::read_to_string(root().join("PAPERS.md")).unwrap();
    for (name, _) in Algorithm::presets(32) {
        assert!(papers.contains(&format!("examples/configs/algorithms/{name}.toml")), "{name}");
    }
}

#[test]
fn what_a_file_says_wrong_is_named() {
    let grpo = std::fs::read_to_string(root().join("examples/configs/algorithms/grpo.toml")).unwrap();
    let error = |from: &str, to: &str| {
        assert!(grpo.contains(from));
        with_algorithm(&grpo.replace(from, to)).unwrap_err()
    };
    for (from, to, expected) in [
        ("\"clip\"", "\"clap\"", "unknown variant `clap`"),
        ("low = 0.2", "lower = 0.2", "unknown field `lower`"),
        ("0.04", "0.0", "kl.coefficient is 0"),
        ("\"k3\"", "\"k4\"", "unknown variant `k4`"),
        ("\"group_std\"", "\"std\"", "unknown variant `std`"),
        ("ratio =", "top_p = 0.9\nratio =", "unknown field `top_p`"),
    ] {
        let found = error(from, to);
        assert!(found.contains(expected) && found.contains("run.toml"), "{found}");
    }
}

/// Log-probabilities would not be those of what is drawn: there is no such setting, and asking for it is an error.
#[test]
fn training_refuses_to_cut_off_the_distribution_it_draws_from() {
    let text = std::fs::read_to_string(root().join("examples/configs/qwen-small.toml")).unwrap();
    for key in ["top_p = 0.9", "top_k = 20", "min_p = 0.1"] {
        let text = text.replace("temperature = 1.0\n", &format!("temperature = 1.0\n{key}\n"));
        let error = RunConfig::from_toml(&text, Path::new("run.toml")).unwrap_err().to_string();
        assert!(error.contains("unknown field") && error.contains(&key[..5]), "{error}");
    }
}
