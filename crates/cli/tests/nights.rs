//! What happens at night: the run stops cleanly or goes on as configured, and what it had learnt is not lost.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

#[path = "support/own.rs"]
#[allow(dead_code)]
mod own;

use std::fs;
use std::net::TcpListener;
use std::process::Command;
use std::thread;

use own::{Own, has, said};
use serde_json::Value;

/// Runs to the end undisturbed in `whole`, and returns the metrics of that.
fn undisturbed(own: &Own) -> Vec<Value> {
    own.run(&["train", "own.toml", "--out", "whole"], 0);
    own.metrics("whole")
}

/// Steps of reinforcement learning in the newest checkpoint.
fn kept(own: &Own, run: &str) -> i64 {
    let checkpoints = fs::read_dir(own.path(run).join("checkpoints")).unwrap().map(|entry| entry.unwrap().path());
    let text = fs::read_to_string(checkpoints.max().unwrap().join("position.toml")).unwrap();
    let position: toml::Table = toml::from_str(&text).unwrap();
    position["reinforcement"]["steps"].as_integer().unwrap()
}

/// A reward program that does `harm` before all answers after the first `healthy`, as long as the file `poison` is there,
/// however often it is started. Eight answers to held-out questions, with pictures and blind, come before the first step,
/// and every step has four and, but for the last, four to held-out questions.
fn harmful_after(healthy: usize, harm: &str) -> String {
    let count = "count=$(($(cat count 2>/dev/null || echo 0) + 1)); echo $count > count";
    Own::reward(&format!("if [ -e poison ]; then {count}; if [ $count -gt {healthy} ]; then {harm}; fi; fi"))
}

/// From the first answer of the second step on.
fn harmful(harm: &str) -> String {
    harmful_after(16, harm)
}

#[test]
fn a_reward_program_that_dies_stops_the_run_which_goes_on_later() {
    let own = Own::new();
    own.write("reward.sh", &harmful("echo out of luck >&2; exit 3"));
    let whole = undisturbed(&own);
    own.write("poison", "");
    let stopped = own.run(&["train", "own.toml", "--out", "run"], 1).error;
    has(&stopped, &["program", "out of luck", ".jsonl", "can go on after step 1 "]);
    assert_eq!(kept(&own, "run"), 1);
    assert!(own.metrics("run").len() < whole.len());
    fs::remove_file(own.path("poison")).unwrap();
    own.run(&["train", "own.toml", "--out", "run", "--resume"], 0);
    assert_eq!(own.metrics("run"), whole);
}

/// What a step learnt stays, though the evaluation that belongs to it has to be done again.
#[test]
fn a_reward_program_that_dies_in_an_evaluation_loses_no_step() {
    let own = Own::new();
    own.write("reward.sh", &harmful_after(22, "exit 3"));
    let whole = undisturbed(&own);
    own.write("poison", "");
    let stopped = own.run(&["train", "own.toml", "--out", "run"], 1).error;
    has(&stopped, &["program", "test.jsonl", "can go on after step 2 "]);
    assert_eq!(kept(&own, "run"), 2);
    fs::remove_file(own.path("poison")).unwrap();
    // No answer of training is asked for again but those of the third step.
    own.run(&["train", "own.toml", "--out", "run", "--resume"], 0);
    assert_eq!(own.metrics("run"), whole);
}

#[test]
fn a_reward_that_may_abstain_does() {
    let own = Own::new();
    own.write("reward.sh", &harmful("echo no more >&2; exit 3"));
    own.write("poison", "");
    // A run that stopped for it may go on without.
    own.run(&["train", "own.toml", "--out", "run"], 1);
    let abstain = ["--resume", "--set", "reinforcement.reward_failure=abstain"];
    let done = own.run(&[["train", "own.toml", "--out", "run"].as_slice(), &abstain].concat(), 0);
    has(
        &done.error,
        &["4 rewards abstain", "train.jsonl", "no more", "100.0 % of the held-out answers could not be graded"],
    );
    assert!(own.path("run/model").is_dir());
    let metrics = own.metrics("run");
    let last = metrics.iter().rfind(|line| line["phase"] == "reinforcement").unwrap();
    assert!(last.as_object().unwrap().keys().all(|name| !name.starts_with("reward/mean/")), "{last}");
}

#[test]
fn a_picture_that_vanishes_stops_the_run_or_is_passed_over() {
    let own = Own::new();
    own.write("reward.sh", &harmful("for f in 0 1 2 3 4 5 6 7; do mv $f.png gone-$f.png 2>/dev/null; done"));
    let whole = undisturbed(&own);
    let restore = || {
        for index in 0..8 {
            let _ = fs::rename(own.path(&format!("gone-{index}.png")), own.path(&format!("{index}.png")));
        }
    };
    own.write("poison", "");
    let stopped = own.run(&["train", "own.toml", "--out", "run"], 1).error;
    has(&stopped, &["train.jsonl", ".png", "can go on after step 2 "]);
    assert_eq!(kept(&own, "run"), 2);
    // Not one is left, however many may be.
    restore();
    own.write("count", "0");
    let all = own.run(&["train", "own.toml", "--out", "none", "--set", "data.skip_bad=20"], 1).error;
    has(&all, &["train.jsonl", ".png"]);
    restore();
    fs::remove_file(own.path("poison")).unwrap();
    own.run(&["train", "own.toml", "--out", "run", "--resume"], 0);
    assert_eq!(own.metrics("run"), whole);

    // Two are lost, which is tolerated: the rows behind them stand in, and a run that goes on reads what it would have.
    own.write("reward.sh", &harmful("mv 0.png gone-0.png 2>/dev/null; mv 1.png gone-1.png 2>/dev/null"));
    let tolerant = |run: &str, more: &[&str]| {
        let set = ["--set", "data.skip_bad=2", "--set", "reinforcement.steps=6"];
        own.run(&[["train", "own.toml", "--out", run].as_slice(), &set, more].concat(), 0).error
    };
    for gone in [0, 1] {
        let _ = fs::rename(own.path(&format!("{gone}.png")), own.path(&format!("gone-{gone}.png")));
    }
    let said = tolerant("tolerant", &[]);
    has(&said, &["passed over: train.jsonl, row 1", "passed over: train.jsonl, row 2"]);
    let without = own.metrics("tolerant");
    // Before they are lost, the program dies in the third step; after that they are not there.
    restore();
    own.write("reward.sh", &harmful_after(24, "exit 3"));
    own.write("count", "0");
    own.write("poison", "");
    let set = ["--set", "data.skip_bad=2", "--set", "reinforcement.steps=6"];
    own.run(&[["train", "own.toml", "--out", "parts"].as_slice(), &set].concat(), 1);
    fs::remove_file(own.path("poison")).unwrap();
    for gone in [0, 1] {
        fs::rename(own.path(&format!("{gone}.png")), own.path(&format!("gone-{gone}.png"))).unwrap();
    }
    tolerant("parts", &["--resume"]);
    let read = |run: &str| -> Vec<Value> {
        let shown = own.run(&["--json", "rollouts", run, "--step", "all", "--show", "0"], 0).json();
        let rows = shown.as_array().unwrap().iter().filter(|row| row["step"].as_u64() > Some(2));
        rows.map(|row| row["origin"].clone()).collect()
    };
    assert_eq!(read("parts"), read("tolerant"));
    assert_eq!(without.len(), own.metrics("parts").len());
}

/// A limit on the size of files is a full disk for the large ones.
#[test]
fn a_full_disk_stops_the_run_which_goes_on_later() {
    let own = Own::new();
    own.write("reward.sh", &harmful("exit 3"));
    let whole = undisturbed(&own);
    own.write("poison", "");
    own.run(&["train", "own.toml", "--out", "run"], 1);
    fs::remove_file(own.path("poison")).unwrap();
    let kept = fs::read_dir(own.path("run/checkpoints")).unwrap().count();
    let limited = "trap '' XFSZ; ulimit -f 1000; exec \"$@\"";
    let program = env!("CARGO_BIN_EXE_firesight");
    let mut command = Command::new("sh");
    command.args(["-c", limited, "sh", program, "train", "own.toml", "--out", "run", "--resume"]);
    let stopped = said(command.current_dir(own.path("")).output().unwrap(), 1).error;
    has(&stopped, &["run/"]);
    assert!(fs::read_dir(own.path("run/checkpoints")).unwrap().count() >= kept);
    own.run(&["train", "own.toml", "--out", "run", "--resume"], 0);
    assert_eq!(own.metrics("run"), whole);
}

/// The first of two mini-batches throws the weights out of what a float can hold, the second finds that.
#[test]
fn a_number_that_is_none_stops_the_run_and_leaves_what_it_came_of() {
    let own = Own::new();
    let rate = "reinforcement.schedule={ peak = 1e30, decay = \"constant\" }";
    let set = ["--set", rate, "--set", "reinforcement.mini_batches=2", "--set", "reinforcement.group_size=8"];
    let stopped = own.run(&[["train", "own.toml", "--out", "run"].as_slice(), &set].concat(), 1).error;
    has(&stopped, &["reinforcement step 1: the update failed", "not finite", "run/failed/step0001.jsonl.gz"]);
    assert!(own.path("run/failed/step0001.jsonl.gz").is_file());
    assert!(own.path("run/model-before-failure/model.safetensors").is_file());
}

/// One that takes a question and never answers.
#[test]
fn a_judge_that_times_out_stops_the_run_or_is_left_out() {
    let own = Own::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        let mut asked = Vec::new();
        while let Ok((connection, _)) = listener.accept() {
            asked.push(connection);
        }
    });
    let judge = format!(
        "rewards=[{{ kind = \"exact\" }}, {{ kind = \"judge\", url = \"http://127.0.0.1:{port}/\", model = \"m\", \
         prompt = \"{{{{ response }}}}\", timeout_s = 0.2, retries = 0, parallel = 16 }}]"
    );
    let stopped = own.run(&["train", "own.toml", "--out", "run", "--set", &judge], 1).error;
    has(&stopped, &["judge", "test.jsonl"]);
    let abstains = ["--set", "reinforcement.reward_failure=abstain", "--set", "reinforcement.steps=1"];
    let arguments = [["train", "own.toml", "--out", "other", "--set", &judge].as_slice(), &abstains].concat();
    has(&own.run(&arguments, 0).error, &["rewards abstain", "judge"]);
}
