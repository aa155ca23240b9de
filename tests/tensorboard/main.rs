//! TensorBoard reads what firesight writes for it.
//!
//! Needs the Python package, so it is left out unless asked for: `tests/tensorboard/run.sh`.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;

use firesight_train::{RunConfig, RunDirectory};

fn agrees(run: &Path) -> bool {
    let python = std::env::var("FIRESIGHT_PYTHON").unwrap_or_else(|_| "python3".into());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tensorboard/compare.py");
    Command::new(python).arg(script).arg(run).status().unwrap().success()
}

#[test]
#[ignore = "needs TensorBoard: tests/tensorboard/run.sh"]
fn tensorboard_agrees() {
    let configuration = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/configs/qwen-small.toml");
    let config = RunConfig::from_file(&configuration).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let path: PathBuf = scratch.path().join("run");
    let mut run = RunDirectory::create(&path, &config).unwrap();
    let named = |values: &[(&str, f64)]| -> Vec<(String, f64)> {
        values.iter().map(|&(name, value)| (name.into(), value)).collect()
    };
    run.metrics("before", 0, &named(&[("eval/accuracy", 0.0), ("eval/blind_accuracy", 0.125)])).unwrap();
    for step in 1..=600_usize {
        let (step_f64, every) = (step as f64, step.is_multiple_of(10));
        let mut metrics = named(&[("loss/supervised", step_f64.recip()), ("memory/peak_bytes", 1e9 + step_f64)]);
        metrics.extend(every.then(|| ("train/accuracy".into(), step_f64 / 600.0)));
        run.metrics("supervised", step, &metrics).unwrap();
    }
    // The same steps again in another phase, a name that is not ASCII, and numbers that JSON does not have.
    for (step, value) in [(1, f64::NAN), (2, f64::INFINITY), (3, -1e-300), (4, -0.5)] {
        run.metrics("reinforcement", step, &named(&[("loss/supervised", value), ("größe", value)])).unwrap();
    }
    assert!(agrees(&path));

    // The comparison sees a number that is not there.
    let metrics = path.join("metrics.jsonl");
    let text = std::fs::read_to_string(&metrics).unwrap();
    std::fs::write(&metrics, text.replace("-0.5", "-0.75")).unwrap();
    assert!(!agrees(&path));
}
