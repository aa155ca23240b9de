//! `firesight compare` on data of one's own: what it leaves, goes on with, and refuses.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

#[path = "support/own.rs"]
#[allow(dead_code)]
mod own;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use own::{Own, has, said};
use serde_json::Value;

/// Of a model that learns a little first, so that its answers differ.
fn own() -> Own {
    let own = Own::new();
    own.write("own.toml", &Own::config(2));
    own
}

fn arguments<'a>(seeds: &'a str, out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let mut all = vec!["compare", "own.toml", "--credit", "uniform,kawhi", "--seeds", seeds, "--out", out];
    all.extend(more);
    if !more.contains(&"--steps") {
        all.extend(["--steps", "2", "--every", "1"]);
    }
    all
}

/// The lines of results by seed and name, without what they cost, which is never the same twice.
fn results(own: &Own, out: &str) -> Vec<Value> {
    let text = fs::read_to_string(own.path(out).join("results.jsonl")).unwrap();
    let mut lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for line in &mut lines {
        assert!(line["seconds"].as_f64().unwrap() > 0.0, "{line}");
        line["seconds"].take();
    }
    lines.sort_by_key(|line| (line["seed"].as_u64(), line["name"].to_string()));
    lines
}

#[test]
fn a_comparison_is_done_once_and_may_grow() {
    let own = own();
    let first = own.run(&arguments("0..1", "c", &["--threads", "1"]), 0);
    has(&first.out, &["after the warm-up", "uniform", "kawhi", "4 questions", "c/report.html"]);
    has(&first.error, &["seed 0: ", "seed 1, kawhi: ", "comparison 4/4"]);
    let table = fs::read_to_string(own.path("c/table.md")).unwrap();
    has(&table, &["| kawhi ", "| uniform "]);
    let page = fs::read_to_string(own.path("c/report.html")).unwrap();
    has(&page, &["Content-Security-Policy", "\"title\":\"Held-out accuracy\"", "\"name\":\"kawhi\",\"steps\":[0,1,2]"]);
    let found = results(&own, "c");
    assert_eq!(found.len(), 4);
    for line in &found {
        let curve: Vec<u64> =
            line["accuracies"].as_array().unwrap().iter().map(|point| point[0].as_u64().unwrap()).collect();
        // The end is the accuracy of all.
        assert_eq!((curve, line["rewards"].as_array().unwrap().len()), (vec![1], 2), "{line}");
    }
    assert_eq!(found[0]["warm_up"], found[1]["warm_up"]);
    // It is the run that it would be by itself, on two threads.
    let sets = ["seed=1", "reinforcement.steps=2", "reinforcement.credit={ name = \"uniform\" }"];
    let sets = sets.iter().flat_map(|set| ["--set", set]);
    let alone = [&["--json", "train", "own.toml", "--out", "alone"][..], &sets.collect::<Vec<_>>()].concat();
    let outcome = own.run(&alone, 0).json()["outcome"].clone();
    let of = |phase: &str| outcome[phase]["sighted"]["accuracy"]["mean"].clone();
    assert_eq!((&found[3]["seed"], &found[3]["name"]), (&1.into(), &"uniform".into()));
    assert_eq!((&found[3]["warm_up"], &found[3]["accuracy"]), (&of("supervised"), &of("reinforcement")));
    let metrics = own.metrics("alone");
    let steps = metrics.iter().filter(|line| line["phase"] == "reinforcement");
    let rewards: Vec<&Value> = steps.map(|line| &line["reward/mean"]).collect();
    assert_eq!(found[3]["rewards"].as_array().unwrap().iter().collect::<Vec<_>>(), rewards);
    assert!(own.path("c/seed0-warm-up/model/model.safetensors").is_file());
    assert!(!own.path("c/seed0-kawhi/checkpoints").exists());

    // The same once more: nothing is run, and the same said.
    let kept = fs::read_to_string(own.path("c/results.jsonl")).unwrap();
    let again = own.run(&arguments("0..1", "c", &["--resume"]), 0);
    assert_eq!(again.out, first.out);
    assert!(!again.error.contains("kawhi"), "{}", again.error);
    assert_eq!(fs::read_to_string(own.path("c/results.jsonl")).unwrap(), kept);
    assert_eq!(fs::read_to_string(own.path("c/table.md")).unwrap(), table);

    // Another seed; and nothing depends on how many runs there are at a time.
    let more = own.run(&[&["--json"], &arguments("2", "c", &["--resume", "--threads", "3"])[..]].concat(), 0).json();
    assert_eq!((&more["complete"], &more["found"]["seeds"]), (&true.into(), &vec![0, 1, 2].into()));
    let [uniform, kawhi] = [0, 1].map(|row| &more["found"]["rows"][row]);
    assert_eq!(
        (&uniform["name"], &uniform["base"], &kawhi["base"]),
        (&"uniform".into(), &Value::Null, &"uniform".into())
    );
    assert!(uniform["difference"].is_null() && kawhi["difference"]["mean"].is_f64(), "{more}");
    assert!(kawhi["cost"]["mean"].as_f64().unwrap() > 0.0);
    own.run(&arguments("0..2", "side-by-side", &["--threads", "3"]), 0);
    assert_eq!(results(&own, "side-by-side"), results(&own, "c"));

    let refused = |arguments: &[&str], code, parts: &[&str]| has(&own.run(arguments, code).error, parts);
    refused(&arguments("0", "c", &[]), 1, &["c exists and is not empty"]);
    let other = arguments("0", "c", &["--resume", "--steps", "3", "--every", "1"]);
    refused(&other, 2, &["reinforcement.steps = 2", "has 3"]);
    refused(&arguments("0", "c", &["--resume", "--questions", "3"]), 2, &["evaluation.examples = 100", "has 3"]);
    let credit = |names| ["compare", "own.toml", "--seeds", "0", "--out", "new", "--credit", names];
    refused(&credit("uniform,magic"), 2, &["\"magic\"", "uniform", "kawhi"]);
    refused(&credit("kawhi,kawhi"), 2, &["kawhi twice"]);
    refused(&credit("kawhi+vppo, vppo + kawhi"), 2, &["vppo+kawhi twice"]);
    refused(&arguments("3..1", "new", &[]), 2, &["--seeds"]);
    refused(&arguments("1,1", "new", &[]), 2, &["1 twice"]);
    assert!(!own.path("new").exists());
    fs::create_dir(own.path("theirs")).unwrap();
    own.write("theirs/thesis.tex", "");
    refused(&arguments("0", "theirs", &["--resume"]), 1, &["theirs exists and is not empty"]);
}

#[test]
fn an_interrupt_ends_those_who_wait_for_a_warm_up() {
    let own = own();
    let endless = ["--threads", "2", "--set", "supervised.max_steps=1000000", "--steps", "2"];
    let mut child = own.command(&arguments("0", "c", &endless)).stderr(Stdio::null()).spawn().unwrap();
    let metrics = own.path("c/seed0-warm-up/metrics.jsonl");
    let within = |found: &mut dyn FnMut() -> bool| {
        let start = Instant::now();
        while !found() && start.elapsed() < Duration::from_mins(2) {
            sleep(Duration::from_millis(50));
        }
    };
    within(&mut || fs::metadata(&metrics).is_ok_and(|file| file.len() > 0));
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    within(&mut || child.try_wait().unwrap().is_some());
    let ended = child.try_wait().unwrap();
    if ended.is_none() {
        child.kill().unwrap();
    }
    assert!(ended.is_some_and(|status| status.success()), "{ended:?}");
}

#[test]
fn a_comparison_that_is_stopped_or_killed_goes_on() {
    let own = own();
    let steps = ["--steps", "4", "--every", "2", "--threads", "2"];
    let whole = own.run(&arguments("0..1", "whole", &steps), 0);
    let begin = || -> (Child, Box<dyn Iterator<Item = String>>) {
        let mut command: Command = own.command(&arguments("0..1", "c", &[&steps[..], &["--resume"]].concat()));
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        (child, Box::new(lines))
    };
    // Killed after the first warm-up, and after the first run; what is left of a line is no result.
    for sign in ["after the warm-up", "s a step"] {
        let (mut child, mut lines) = begin();
        assert!(lines.any(|line| line.ends_with(sign)), "{sign}");
        child.kill().unwrap();
        child.wait().unwrap();
        let file = own.path("c/results.jsonl");
        if file.exists() {
            fs::write(&file, fs::read_to_string(&file).unwrap() + "{\"seed\":0,\"na").unwrap();
        }
    }
    let (child, mut lines) = begin();
    assert!(lines.any(|line| line.ends_with("after the warm-up")));
    let interrupt = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(interrupt.success());
    lines.for_each(drop);
    let stopped = said(child.wait_with_output().unwrap(), 0).out;
    has(&stopped, &["stopped; to go on, the same command with --out c --resume"]);
    let (child, lines) = begin();
    lines.for_each(drop);
    let done = said(child.wait_with_output().unwrap(), 0).out;
    assert_eq!(results(&own, "c"), results(&own, "whole"));
    assert_eq!(done.lines().count(), whole.out.lines().count());
}
