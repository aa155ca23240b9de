//! `firesight heads` on a model that half-knows the task, and killed.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::float_cmp)]

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use firesight_train::task::Picture;
use firesight_train::{
    ChartData, Data, Destination, HeadSearch, Job, Progress, RunConfig, Stop, Trainable, VisionCriticalHeads, run,
    vision_critical_heads,
};

const QUESTIONS: usize = 48;

/// A model after a few steps, by which it guesses better than it would without one of its heads, and the configuration
/// to search it with.
fn half_trained(scratch: &Path) -> RunConfig {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut config = RunConfig::from_file(&root.join("examples/configs/qwen-small.toml")).unwrap();
    config.model = root.join("models/qwen-small");
    config.data = Data::Charts(ChartData { pictures: vec![Picture::Bars] });
    config.supervised.stages = vec![vec![Picture::Bars]];
    (config.supervised.max_steps, config.supervised.batch_size, config.supervised.micro_batch) = (40, 8, 4);
    (config.supervised.schedule.peak, config.supervised.schedule.warmup_steps) = (4e-3, 2);
    (config.supervised.check_examples, config.evaluation.examples, config.reinforcement.steps) = (1, 1, 0);
    let base = scratch.join("base");
    run(&config, &Destination::Exactly(base.clone()), &Stop::default(), &mut Progress::silent()).unwrap();
    config.model = base.join("warm-up");
    config.evaluation.examples = QUESTIONS;
    config
}

#[test]
fn every_head_is_measured_without_itself_and_a_killed_search_goes_on() {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name);
    let config = half_trained(scratch.path());
    let Ok(HeadSearch::Complete { found, .. }) = vision_critical_heads(
        &config,
        0.1,
        &Destination::Exactly(path("whole")),
        &Stop::default(),
        &mut Progress::silent(),
    ) else {
        panic!("not complete")
    };
    let job = Job::new(&config).unwrap();
    let (held_out, policy) = (job.held_out(&config), job.policy(&Trainable::default(), 0).unwrap());
    assert_eq!(found.baseline, held_out.sighted(&policy).unwrap().accuracy.mean);
    for (head, &score) in found.scores.iter().enumerate() {
        assert_eq!(score, held_out.sighted(&policy.without_head(head).unwrap()).unwrap().accuracy.mean, "{head}");
    }
    // Otherwise the comparisons would say nothing.
    assert!(found.baseline > 0.0 && found.scores.iter().any(|&score| score != found.scores[0]), "{found:?}");

    // The same by the command, from another model in the configuration.
    fs::write(path("config.toml"), RunConfig { model: "nowhere".into(), ..config.clone() }.to_toml()).unwrap();
    let heads = |questions: usize| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_firesight"));
        command.arg("heads").arg(path("config.toml")).arg("--model").arg(&config.model);
        command.args(["--threshold", "0.1", "--resume", "--questions", &questions.to_string(), "--out"]);
        command.arg(path("killed")).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    };
    let mut child = heads(QUESTIONS).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.starts_with("heads 2/5")));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!path("killed/heads.toml").exists());
    let output = heads(QUESTIONS).output().unwrap();
    let [said, table] = [&output.stderr, &output.stdout].map(|text| String::from_utf8_lossy(text).into_owned());
    assert!(output.status.success() && !said.contains("heads 2/5") && said.contains("heads 5/5"), "{said}");
    let critical: Vec<String> = found.critical.iter().map(ToString::to_string).collect();
    assert!(table.contains("critical heads: ") && table.contains(&critical.join(", ")), "{table}");
    for file in ["search.toml", "heads.toml", "heads.png"] {
        assert!(fs::read(path("killed").join(file)).unwrap() == fs::read(path("whole").join(file)).unwrap(), "{file}");
    }
    assert_eq!(VisionCriticalHeads::from_file(&path("killed/heads.toml")).unwrap(), found);

    let refused = String::from_utf8(heads(7).output().unwrap().stderr).unwrap();
    assert!(refused.contains("holds a run with questions = 48; the configuration to go on with has 7"), "{refused}");
}
