//! The whole run, small: what it leaves on disk, that a seed decides it, and what it says of bad input.
#![allow(clippy::unwrap_used)]

#[path = "support/metrics.rs"]
mod metrics;

use std::path::{Path, PathBuf};

use firesight_rl::{Algorithm, KlPenalty, MicroBatch};
use firesight_train::task::Picture;
use firesight_train::{
    Destination, Ending, Error, Evaluation, Log, Outcome, Progress, RunConfig, Stop, Trainable, run,
};
use firesight_vlm::{LoraConfig, QwenVl, SaveOptions};
use metrics::metrics;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The main job, cut down to seconds. A model this fresh earns no reward, so its policy updates are empty; what they do
/// is tested in `vlm_training.rs`.
fn small() -> RunConfig {
    let mut config = RunConfig::from_file(&root().join("examples/configs/qwen-small.toml")).unwrap();
    config.model = root().join(&config.model);
    config.threads = 2;
    config.supervised.stages = vec![Picture::ALL.to_vec()];
    config.supervised.max_steps = 6;
    config.supervised.batch_size = 8;
    config.supervised.micro_batch = 4;
    config.supervised.check_every = 3;
    config.supervised.check_examples = 8;
    config.reinforcement.steps = 2;
    config.reinforcement.prompts = 8;
    config.reinforcement.micro_batch = MicroBatch::Groups(2);
    config.evaluation.examples = 16;
    config.evaluation.every = 1;
    config.evaluation.samples = 2;
    config
}

fn trained(config: &RunConfig, directory: &Path) -> Outcome {
    let ending = started(config, &Destination::Exactly(directory.into())).unwrap();
    let Ending::Complete(outcome) = ending else { panic!("{ending:?}") };
    *outcome
}

fn started(config: &RunConfig, destination: &Destination) -> Result<Ending, Error> {
    run(config, destination, &Stop::default(), &mut Progress::silent())
}

/// Every parameter, bit for bit; the file's metadata come in no fixed order.
fn weights(directory: &Path) -> Vec<(String, Vec<u8>)> {
    let bytes = std::fs::read(directory.join("model/model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Vec<_> = file.tensors().into_iter().map(|(name, view)| (name, view.data().to_vec())).collect();
    tensors.sort();
    tensors
}

#[test]
fn a_seed_decides_the_run_and_neither_threads_nor_looks_at_it_do() {
    let scratch = tempfile::tempdir().unwrap();
    let directory = |name: &str| -> PathBuf { scratch.path().join(name) };
    trained(&small(), &directory("two-threads"));
    trained(&RunConfig { threads: 1, ..small() }, &directory("one-thread"));
    assert_eq!(metrics(&directory("two-threads")), metrics(&directory("one-thread")));
    assert!(weights(&directory("two-threads")) == weights(&directory("one-thread")), "weights differ");

    let mut watched = small();
    watched.evaluation = Evaluation { attempts: 3, pass_at: vec![1, 3], blind: true, ..watched.evaluation };
    watched.log = Log { rollouts_every: 1, tensorboard: false };
    trained(&watched, &directory("watched"));
    let unmeasured = |name: &str| -> Vec<serde_json::Value> {
        let mut lines = metrics(&directory(name));
        for line in &mut lines {
            line.as_object_mut().unwrap().retain(|name, _| !name.starts_with("eval/"));
        }
        lines
    };
    assert_eq!(unmeasured("two-threads"), unmeasured("watched"));
    assert!(weights(&directory("two-threads")) == weights(&directory("watched")), "weights differ");
    for line in metrics(&directory("watched")).iter().filter(|line| line["eval/accuracy"].is_number()) {
        for name in ["mean_at_3", "pass_at_1", "pass_at_3", "pass_at_3_low", "blind_accuracy", "accuracy_high"] {
            assert!(line[format!("eval/{name}")].is_number(), "{name}: {line}");
        }
    }

    trained(&RunConfig { seed: 1, ..small() }, &directory("other-seed"));
    assert_ne!(metrics(&directory("two-threads")), metrics(&directory("other-seed")));
}

#[test]
fn a_run_leaves_everything_in_its_directory() {
    let scratch = tempfile::tempdir().unwrap();
    let directory = scratch.path().join("run");
    let mut config = small();
    config.reinforcement.credit = "uniform".parse().unwrap();
    config.reinforcement.algorithm = Algorithm { kl: Some(KlPenalty::new(0.01)), ..Algorithm::gspo() };
    let outcome = trained(&config, &directory);
    assert_eq!(outcome.directory, directory);
    assert!(outcome.table().contains("after RL"));

    assert_eq!(RunConfig::from_file(&directory.join("config.toml")).unwrap(), config);
    let metrics = metrics(&directory);
    assert!(metrics.iter().any(|line| line["phase"] == "reinforcement" && line["reward/mean"].is_number()));
    let rollouts = ["rollouts/step0001.jsonl.gz", "rollouts/step0002.jsonl.gz", "events.out.tfevents.firesight"];
    for name in ["report.html", "samples/step0001-0.png", "samples/step0002-1.txt"].into_iter().chain(rollouts) {
        assert!(directory.join(name).is_file(), "{name}");
    }
    let device = burn::tensor::Device::flex();
    QwenVl::from_dir(&directory.join("model"), &device).unwrap();

    // A second run does not touch the first.
    let before = std::fs::read(directory.join("metrics.jsonl")).unwrap();
    let again = started(&config, &Destination::Exactly(directory.clone()));
    assert!(matches!(again, Err(Error::RunDirectoryExists { path }) if path == directory));
    assert_eq!(std::fs::read(directory.join("metrics.jsonl")).unwrap(), before);
}

#[test]
fn a_run_changes_what_is_trainable_and_nothing_else() {
    let scratch = tempfile::tempdir().unwrap();
    let directory = |name: &str| -> PathBuf { scratch.path().join(name) };
    let mut config = RunConfig { trainable: Trainable::default(), ..small() };
    config.reinforcement.steps = 1;
    config.evaluation.every = 0;
    let fresh = started(&config, &Destination::Exactly(directory("frozen"))).unwrap_err();
    assert!(fresh.to_string().contains("trainable.freeze_vision_tower"), "{fresh}");

    trained(&RunConfig { trainable: small().trainable, ..config.clone() }, &directory("base"));
    config.model = directory("base/model");
    trained(&config, &directory("frozen"));
    let target_modules = vec!["q_proj".into(), "down_proj".into()];
    config.trainable.lora = Some(LoraConfig { rank: 4, alpha: 8.0, target_modules });
    trained(&config, &directory("lora"));

    let base = weights(&directory("base"));
    let changed = |name: &str| -> Vec<String> {
        let after = weights(&directory(name));
        assert_eq!(base.len(), after.len());
        base.iter().zip(&after).filter(|(a, b)| a != b).map(|(a, _)| a.0.clone()).collect()
    };
    let (frozen, lora) = (changed("frozen"), changed("lora"));
    let decoder = base.iter().filter(|(name, _)| !name.starts_with("model.visual.")).count();
    assert!(frozen.len() == decoder && frozen.iter().all(|name| !name.starts_with("model.visual.")), "{frozen:?}");
    let targeted = |name: &String| name.ends_with(".q_proj.weight") || name.ends_with(".mlp.down_proj.weight");
    assert!(lora.len() == 6 && lora.iter().all(targeted), "{lora:?}");

    // The adapters alone make the same model of the one they started from.
    let device = burn::tensor::Device::flex();
    let adapted = QwenVl::from_dir(&config.model, &device).unwrap().with_adapter(&directory("lora/adapter")).unwrap();
    adapted.save(&directory("again/model"), &config.model, SaveOptions::default()).unwrap();
    assert!(weights(&directory("again")) == weights(&directory("lora")), "merged weights differ");
}

fn config_error(from: &str, to: &str) -> String {
    let path = root().join("examples/configs/qwen-small.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{from}");
    RunConfig::from_toml(&text.replace(from, to), &path).unwrap_err().to_string()
}

#[test]
fn a_bad_configuration_is_named_by_file_and_key() {
    for (from, to, expected) in [
        ("seed = 0", "sead = 0", "sead"),
        ("group_size = 8", "group_sise = 8", "group_sise"),
        ("group_size = 8", "group_size = 1", "reinforcement.group_size is 1"),
        ("stop_accuracy = 0.35", "stop_accuracy = 35", "supervised.stop_accuracy is 35"),
        ("# lora = { rank = 16, alpha = 32", "lora = { rank = 0, alpha = 32", "trainable.lora rank must be at least 1"),
        ("name = \"kawhi\"", "name = \"kawhy\"", "kawhy"),
        ("name = \"kawhi\"", "name = \"kawhi\", taw = 1", "taw"),
        ("name = \"kawhi\"", "name = \"uniform\", tau = 1", "tau"),
        ("temperature = 1.0", "temperature = 0.0", "reinforcement.temperature"),
        ("mini_batches = 2", "mini_batches = 5", "reinforcement.mini_batches"),
        ("groups = 8", "groups = 0", "reinforcement.micro_batch"),
        ("rollouts_every", "rollout_every", "rollout_every"),
        ("peak = 2e-4", "peak = -2e-4", "reinforcement.schedule peak is -0.0002"),
        ("peak = 2e-3", "decay = \"sine\", peak = 2e-3", "sine"),
        ("peak = 2e-3", "decay = \"constant\", peak = 2e-3", "supervised.schedule final_share is 0.3"),
        ("pass_at = []", "pass_at = [1]", "evaluation.pass_at is [1]"),
        ("attempts = 0 ", "attempts = \"many\"", "attempts"),
    ] {
        let error = config_error(from, to);
        assert!(error.contains("qwen-small.toml") && error.contains(expected), "{to}: {error}");
    }
}

#[test]
fn an_unknown_device_is_named_with_those_there_are() {
    let scratch = tempfile::tempdir().unwrap();
    let config = RunConfig { device: "abacus".into(), ..small() };
    let error = started(&config, &Destination::Under(scratch.path().into())).unwrap_err();
    assert!(error.to_string().contains("abacus") && error.to_string().contains("flex"), "{error}");
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0, "a run that never began left a directory");
}
