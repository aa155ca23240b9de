//! Data of one's own, and the program to try on it.

#[path = "../../../../tests/support/metrics.rs"]
mod metrics;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use metrics::metrics;
use serde_json::{Value, json};
use tempfile::TempDir;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// A directory with twelve questions about pictures of one colour, the last four held out, and a configuration that
/// trains on them with a program for a reward.
pub(crate) struct Own {
    scratch: TempDir,
}

const CONFIG: &str = r#"
name = "own"
model = "{model}"
seed = 0
device = "flex"
threads = 2

[trainable]
freeze_vision_tower = false

[data]
source = "files"
train = ["train.jsonl"]
held_out = ["test.jsonl"]
kinds = ["colour"]

[data.layout]
columns = { completion = "worked" }
template = "{{ prompt }} Answer in \\boxed{}."

[[rewards]]
kind = "command"
name = "program"
command = ["sh", "reward.sh"]
timeout_s = 20

[[rewards]]
kind = "exact"
weight = 0.5

[supervised]
max_steps = {supervised}
batch_size = 4
micro_batch = 2
schedule = { peak = 1e-3, decay = "constant" }
weight_decay = 0.0

[reinforcement]
steps = 3
prompts = 2
group_size = 2
mini_batches = 1
micro_batch = { groups = 1 }
temperature = 1.0
max_tokens = 24
schedule = { peak = 1e-3, decay = "constant" }
weight_decay = 0.0
credit = { name = "kawhi" }

[reinforcement.algorithm]
advantage = { name = "relative" }
ratio = "token"
surrogate = { name = "clip", low = 0.2, high = 0.28 }
aggregation = "sequence_mean"

[evaluation]
examples = 100
every = 1
samples = 1

[log]
rollouts_every = 1

[checkpoint]
every = 0
keep = 2
"#;

/// Worth 1 if the response, as JSON has it, is of even length, else 0: from a model that says anything, one as likely as
/// the other. `{harm}` comes before every answer.
const REWARD: &str = r#"while read -r line; do
    {harm}
    response=${line#*\"response\":\"}
    response=${response%%\",\"answer\"*}
    if [ $((${#response} % 2)) -eq 0 ]; then echo '{"score": 1, "seen": 0.25}'; else echo 0; fi
done
"#;

impl Own {
    pub(crate) fn new() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let own = Self { scratch };
        let colours = [("red", [200, 0, 0]), ("green", [0, 200, 0]), ("blue", [0, 0, 200])];
        let mut rows = Vec::new();
        for index in 0..12_u32 {
            let (name, colour) = colours[index as usize % 3];
            let picture = image::RgbImage::from_pixel(64 + 8 * index, 64, image::Rgb(colour));
            picture.save(own.path(&format!("{index}.png"))).unwrap();
            let image = format!("{index}.png");
            let question = format!("Question {index}: which colour?");
            rows.push(json!({
                "prompt": question, "images": [image], "answer": name, "colour": name,
                "worked": format!("\\boxed{{{name}}}"),
            }));
        }
        own.write_rows("train.jsonl", &rows[..8]);
        own.write_rows("test.jsonl", &rows[8..]);
        own.write("reward.sh", &Self::reward(":"));
        own.write("own.toml", &Self::config(0));
        own
    }

    pub(crate) fn config(supervised: usize) -> String {
        let model = root().join("models/qwen-small").display().to_string();
        CONFIG.replace("{model}", &model).replace("{supervised}", &supervised.to_string())
    }

    /// The reward program, which does `harm` before every answer.
    pub(crate) fn reward(harm: &str) -> String {
        REWARD.replace("{harm}", harm)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn write_rows(&self, name: &str, rows: &[Value]) {
        let text = rows.iter().fold(String::new(), |mut text, row| {
            writeln!(text, "{row}").unwrap();
            text
        });
        self.write(name, &text);
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_firesight"));
        command.args(arguments).current_dir(self.scratch.path());
        command
    }

    /// Runs it to its end with this exit code.
    pub(crate) fn run(&self, arguments: &[&str], code: i32) -> Said {
        said(self.command(arguments).output().unwrap(), code)
    }

    pub(crate) fn metrics(&self, run: &str) -> Vec<Value> {
        metrics(&self.path(run))
    }
}

/// What a program said.
pub(crate) struct Said {
    pub(crate) out: String,
    pub(crate) error: String,
}

pub(crate) fn said(output: Output, code: i32) -> Said {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let said = Said { out: text(output.stdout), error: text(output.stderr) };
    assert_eq!(output.status.code(), Some(code), "{}\n{}", said.out, said.error);
    said
}

impl Said {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {}", self.out))
    }
}

pub(crate) fn has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
}
