//! A run that is killed or stopped and gone on with is the run that never was: the command itself, on a small real job.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

#[path = "../../../tests/support/metrics.rs"]
mod metrics;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use metrics::metrics;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tempfile::TempDir;

const KILLS: usize = 20;

/// `{model}` and so on are filled in. Bars alone, which a model can guess at after a few steps: without rewards nothing
/// would be learnt, and nothing could differ.
const CONFIG: &str = r#"
name = "resume"
model = "{model}"
seed = 0
device = "flex"
threads = 2

[trainable]
freeze_vision_tower = {frozen}

[data]
source = "charts"
pictures = ["bars"]

[[rewards]]
kind = "exact"
name = "accuracy"

[supervised]
stages = [["bars"], ["bars"]]
max_steps = {supervised}
batch_size = 8
micro_batch = 4
schedule = { peak = {rate}, warmup_steps = 2, final_share = 0.5 }
weight_decay = 0.01
stop_accuracy = {stop}
check_every = 1
check_examples = 4

[reinforcement]
steps = {reinforcement}
prompts = 4
group_size = 4
dynamic_sampling = 3
mini_batches = 2
micro_batch = { tokens = 400 }
temperature = 1.0
max_tokens = 32
schedule = { peak = 2e-3, warmup_steps = 2, final_share = 0.5 }
weight_decay = 0.01
weight_decay_on = "matrices"
credit = { name = "kawhi" }

[reinforcement.algorithm]
advantage = { name = "relative" }
ratio = "token"
surrogate = { name = "clip", low = 0.2, high = 0.28 }
aggregation = "sequence_mean"
kl = { coefficient = 0.1, refresh_every = 4 }

[evaluation]
examples = 12
every = 2
samples = 1

[log]
rollouts_every = 2

[checkpoint]
every = 1
keep = 3
"#;

/// What every test starts from: a model that half-knows the task, the configuration of the job, and the job done
/// without interruption.
struct Baseline {
    scratch: TempDir,
    seconds: f64,
}

impl Baseline {
    fn get() -> &'static Self {
        static BASELINE: OnceLock<Baseline> = OnceLock::new();
        BASELINE.get_or_init(|| {
            let scratch = tempfile::tempdir().unwrap();
            let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
            let fill = |values: [(&str, &str); 6]| {
                values.iter().fold(CONFIG.to_owned(), |text, (key, value)| text.replace(&format!("{{{key}}}"), value))
            };
            let small = root.join("models/qwen-small").display().to_string();
            let warm_up = fill([
                ("model", &small),
                ("frozen", "false"),
                ("supervised", "30"),
                ("rate", "4e-3"),
                ("stop", "1.0"),
                ("reinforcement", "0"),
            ]);
            fs::write(scratch.path().join("warm-up.toml"), warm_up).unwrap();
            done(train(&scratch.path().join("warm-up.toml"), &scratch.path().join("base")));
            let base = scratch.path().join("base/warm-up").display().to_string();
            let job = fill([
                ("model", &base),
                ("frozen", "true"),
                ("supervised", "6"),
                ("rate", "1e-4"),
                // Every look passes, so that the phase ends after the two times two of its stages, before the steps do.
                ("stop", "0.0"),
                ("reinforcement", "6"),
            ]);
            fs::write(scratch.path().join("job.toml"), job).unwrap();
            let baseline = Self { scratch, seconds: 0.0 };
            let start = Instant::now();
            done(baseline.train("uninterrupted"));
            let seconds = start.elapsed().as_secs_f64();
            let whole = Run::read(&baseline.path("uninterrupted"));
            // Otherwise the comparisons would say nothing.
            let metric = |name: &str| -> f64 { whole.metrics.iter().filter_map(|line| line[name].as_f64()).sum() };
            assert!(metric("update/optimizer_steps") >= 6.0 && metric("kl/mean") > 0.0, "{:?}", whole.metrics);
            assert!(whole.checkpoint.iter().any(|(file, tensors)| file == "optimizer.bpk" && !tensors.is_empty()));
            assert!(whole.checkpoint.iter().any(|(file, tensors)| file == "reference.bpk" && !tensors.is_empty()));
            Self { seconds, ..baseline }
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    fn train(&self, directory: &str) -> Command {
        train(&self.path("job.toml"), &self.path(directory))
    }

    /// Fails unless the run in `directory` is the uninterrupted one.
    fn compare(&self, directory: &str, story: &str) {
        let (whole, found) = (Run::read(&self.path("uninterrupted")), Run::read(&self.path(directory)));
        for (expected, line) in whole.metrics.iter().zip(&found.metrics) {
            assert_eq!(line, expected, "{story}: metrics");
        }
        assert_eq!(found.metrics.len(), whole.metrics.len(), "{story}: lines of metrics");
        assert_eq!(found.position, whole.position, "{story}: position of the last checkpoint with an optimizer");
        assert!(found.rollouts == whole.rollouts, "{story}: rollouts");
        assert!(found.model == whole.model, "{story}: model");
        assert!(found.best == whole.best, "{story}: best");
        for ((name, expected), (_, tensors)) in whole.checkpoint.iter().zip(&found.checkpoint) {
            assert_eq!(tensors.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{story}: {name}");
            for (tensor, bytes) in expected {
                assert!(tensors[tensor] == *bytes, "{story}: {name}: {tensor}");
            }
        }
        let left = names(&self.path(directory));
        assert_eq!(left, names(&self.path("uninterrupted")), "{story}: files");
    }
}

fn train(config: &Path, directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_firesight"));
    command.arg("train").arg(config).arg("--out").arg(directory).arg("--resume");
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// What the command says when it ends well.
fn done(mut command: Command) -> String {
    let output = command.output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{text}");
    text
}

/// All that a finished run leaves that its configuration decides.
struct Run {
    metrics: Vec<serde_json::Value>,
    rollouts: BTreeMap<String, Vec<u8>>,
    model: BTreeMap<String, Vec<u8>>,
    best: BTreeMap<String, Vec<u8>>,
    position: toml::Table,
    /// Files of the newest checkpoint in the middle of the last phase: tensors and numbers by the path of their
    /// parameter.
    checkpoint: Vec<(String, BTreeMap<String, Vec<u8>>)>,
}

impl Run {
    fn read(directory: &Path) -> Self {
        let checkpoints = names(&directory.join("checkpoints"));
        let newest =
            checkpoints.iter().rfind(|name| directory.join("checkpoints").join(name).join("optimizer.bpk").exists());
        let checkpoint = directory.join("checkpoints").join(newest.unwrap());
        let mut position: toml::Table =
            toml::from_str(&fs::read_to_string(checkpoint.join("position.toml")).unwrap()).unwrap();
        for key in ["seconds", "metrics_bytes"] {
            position.remove(key).unwrap();
        }
        for phase in ["supervised", "reinforcement"] {
            position[phase].as_table_mut().unwrap().remove("seconds").unwrap();
        }
        let files = names(&checkpoint).into_iter().filter(|name| name != "position.toml");
        Self {
            metrics: metrics(directory),
            rollouts: names(&directory.join("rollouts"))
                .into_iter()
                .map(|name| (name.clone(), fs::read(directory.join("rollouts").join(name)).unwrap()))
                .collect(),
            model: weights(&directory.join("model")),
            best: weights(&directory.join("best")),
            position,
            checkpoint: files.map(|name| (name.clone(), tensors(&checkpoint.join(name)))).collect(),
        }
    }
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn weights(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let bytes = fs::read(directory.join("model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    file.tensors().into_iter().map(|(name, view)| (name, view.data().to_vec())).collect()
}

/// Ids of parameters are drawn by lot, so the paths that belong to them take their place.
fn tensors(file: &Path) -> BTreeMap<String, Vec<u8>> {
    let reader = burn_pack::Reader::from_file(file).unwrap();
    let paths = reader.metadata().clone();
    let renamed = |name: &str| match name.split_once('.') {
        Some((id, rest)) if paths.contains_key(id) => format!("{}.{rest}", paths[id]),
        _ => name.to_owned(),
    };
    let numbers = reader.scalars().iter().map(|(name, value)| (renamed(name), format!("{value:?}").into_bytes()));
    let mut found: BTreeMap<String, Vec<u8>> = numbers.collect();
    for name in reader.tensor_names() {
        found.insert(renamed(name), reader.tensor_data(name).unwrap());
    }
    found
}

#[test]
fn killed_at_any_moment_a_run_goes_on_as_if_nothing_had_been() {
    let baseline = Baseline::get();
    let mut random = StdRng::seed_from_u64(7);
    let (mut kills, mut number) = (0, 0);
    while kills < KILLS {
        number += 1;
        let (directory, mut story) = (format!("killed-{number}"), String::new());
        loop {
            let mut child = baseline.train(&directory).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            if kills < KILLS {
                std::thread::sleep(Duration::from_secs_f64(baseline.seconds * random.random::<f64>()));
                if child.try_wait().unwrap().is_none() {
                    child.kill().unwrap();
                }
            }
            let status = child.wait().unwrap();
            let lines = fs::read_to_string(baseline.path(&directory).join("metrics.jsonl")).unwrap_or_default();
            story = format!("{story}{status} at line {}; ", lines.lines().count());
            if status.signal().is_some() {
                kills += 1;
                continue;
            }
            assert_eq!(status.code(), Some(0), "{story}");
            break;
        }
        eprintln!("{story}");
        baseline.compare(&directory, &story);
    }
}

#[test]
fn a_damaged_checkpoint_is_passed_over() {
    let baseline = Baseline::get();
    let mut child = baseline.train("damaged").spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.starts_with("reinforcement 4/")));
    child.kill().unwrap();
    child.wait().unwrap();
    let checkpoints = baseline.path("damaged/checkpoints");
    let newest = names(&checkpoints).into_iter().rfind(|name| !name.ends_with(".partial")).unwrap();
    let file = checkpoints.join(newest).join("optimizer.bpk");
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    let text = done(baseline.train("damaged"));
    assert!(text.contains(&file.display().to_string()) && text.contains("checkpoint before it"), "{text}");
    baseline.compare("damaged", "with a damaged checkpoint");
}

#[test]
fn a_failed_update_can_be_tried_again() {
    let baseline = Baseline::get();
    // The first mini-batch throws the weights out of what a float can hold, the second finds that.
    let config = fs::read_to_string(baseline.path("job.toml")).unwrap().replace("peak = 2e-3", "peak = 1e30");
    fs::write(baseline.path("failing.toml"), config).unwrap();
    let fails = || {
        let output = train(&baseline.path("failing.toml"), &baseline.path("failing")).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        text[text.find("error: ").unwrap()..].to_owned()
    };
    let first = fails();
    assert!(first.contains("reinforcement step 1: the update failed"), "{first}");
    let metrics = metrics(&baseline.path("failing"));
    assert_eq!(fails(), first);
    assert_eq!(self::metrics(&baseline.path("failing")), metrics);
    assert!(baseline.path("failing/failed/step0001.jsonl.gz").exists());
}

fn send(signal: &str, child: &Child) {
    assert!(Command::new("kill").arg(signal).arg(child.id().to_string()).status().unwrap().success());
}

#[test]
fn asked_to_stop_a_run_ends_well_and_goes_on() {
    let baseline = Baseline::get();
    for (index, (signal, moment)) in [
        ("-INT", "supervised 2/"),
        ("-TERM", "supervised 4/"),
        ("-INT", "reinforcement 1/"),
        ("-INT", "reinforcement 4/"),
    ]
    .into_iter()
    .enumerate()
    {
        let directory = format!("stopped-{index}");
        let mut child = baseline.train(&directory).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        assert!(lines.any(|line| line.starts_with(moment)), "{moment}");
        send(signal, &child);
        let said: Vec<String> = lines.collect();
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{moment}: {text}{said:?}");
        assert!(text.contains("--resume") && text.contains(&directory), "{moment}: {text}");
        let steps = said.iter().filter(|line| line.contains("  left ")).count();
        assert!(steps <= 1, "{moment}: more than the step under way was taken: {said:?}");
        assert!(!baseline.path(&directory).join("model").exists());
        assert!(baseline.path(&directory).join("report.html").exists());

        done(baseline.train(&directory));
        baseline.compare(&directory, moment);
    }
}

#[test]
fn asked_twice_a_run_ends_at_once() {
    let baseline = Baseline::get();
    // Steps long enough to be interrupted.
    let config = fs::read_to_string(baseline.path("job.toml")).unwrap().replace("batch_size = 8", "batch_size = 400");
    fs::write(baseline.path("long.toml"), config).unwrap();
    let mut child = train(&baseline.path("long.toml"), &baseline.path("twice")).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.contains("run directory")));
    send("-INT", &child);
    assert!(lines.any(|line| line.contains("once more")));
    send("-INT", &child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[test]
fn a_complete_run_says_so_and_another_configuration_is_refused() {
    let baseline = Baseline::get();
    let before = fs::read(baseline.path("uninterrupted/metrics.jsonl")).unwrap();
    let text = done(baseline.train("uninterrupted"));
    assert!(text.contains("is complete") && text.contains("after RL"), "{text}");

    let config = fs::read_to_string(baseline.path("job.toml")).unwrap();
    fs::write(baseline.path("free.toml"), config.replace("threads = 2", "threads = 1").replace("keep = 3", "keep = 1"))
        .unwrap();
    done(train(&baseline.path("free.toml"), &baseline.path("uninterrupted")));
    fs::write(baseline.path("other.toml"), config.replace("coefficient = 0.1", "coefficient = 0.25")).unwrap();
    let refused = train(&baseline.path("other.toml"), &baseline.path("uninterrupted")).output().unwrap();
    let text = String::from_utf8_lossy(&refused.stderr);
    assert_ne!(refused.status.code(), Some(0));
    assert!(["reinforcement.algorithm.kl", "0.1", "0.25"].iter().all(|part| text.contains(part)), "{text}");
    assert_eq!(fs::read(baseline.path("uninterrupted/metrics.jsonl")).unwrap(), before);

    let nowhere =
        Command::new(env!("CARGO_BIN_EXE_firesight")).args(["train", "job.toml", "--resume"]).output().unwrap();
    assert_eq!(nowhere.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&nowhere.stderr).contains("--out"), "{nowhere:?}");
}

#[test]
fn a_report_is_made_again() {
    let baseline = Baseline::get();
    done(baseline.train("reported"));
    let path = baseline.path("reported/report.html");
    let page = fs::read(&path).unwrap();
    let report = |directory: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_firesight"));
        command.arg("report").arg(baseline.path(directory));
        command
    };
    // A run that ended between its outcome and its report makes up for it.
    for again in [baseline.train("reported"), report("reported")] {
        fs::remove_file(&path).unwrap();
        assert!(done(again).contains(&path.display().to_string()));
        assert!(fs::read(&path).unwrap() == page);
    }
    // None can be written over a directory. That is no reason for a run to fail.
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    let text = done(baseline.train("reported"));
    assert!(text.contains("no report") && text.contains("after RL"), "{text}");

    for (directory, expected) in [("reported", "report.html"), ("nowhere", "nowhere is no run directory")] {
        let output = report(directory).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && text.contains(expected), "{text}");
    }
    assert!(!baseline.path("nowhere").exists());
}

#[test]
fn two_processes_do_not_share_a_run() {
    let baseline = Baseline::get();
    let mut first = baseline.train("shared").spawn().unwrap();
    let mut lines = BufReader::new(first.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.starts_with("supervised 1/")));
    let second = baseline.train("shared").output().unwrap();
    assert_ne!(second.status.code(), Some(0));
    let text = String::from_utf8_lossy(&second.stderr);
    assert!(text.contains("in use by another process"), "{text}");
    first.kill().unwrap();
    first.wait().unwrap();
    done(baseline.train("shared"));
    baseline.compare("shared", "killed while another waited");
}
