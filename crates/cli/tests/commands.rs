//! Every command of the program itself, on data of one's own: a model without weights and a few pictures.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

#[path = "support/own.rs"]
mod own;

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;

use own::{Own, has, said};
use serde_json::Value;

#[test]
fn own_data_is_checked_trained_on_looked_at_and_exported() {
    let own = Own::new();
    let inspected = own.run(&["data", "inspect", "train.jsonl"], 0).out;
    has(&inspected, &["train.jsonl: 8 rows", "colour", "rows without an answer", "Question 0: which colour?"]);
    assert_eq!(own.run(&["--json", "data", "inspect", "--config", "own.toml"], 0).json()["files"][1][1], 4);

    let checked = own.run(&["check", "own.toml"], 0).out;
    has(&checked, &["8 rows to train on, 4 held-out questions", "which colour? Answer in \\boxed{}.", "image of"]);
    has(&checked, &["vision", "weights", "\"\\\\boxed{", "exact 1", "exact 0", "program/seen 0.25"]);
    assert!(!own.path("runs").exists());

    let trained = own.run(&["--json", "train", "own.toml", "--out", "run"], 0);
    let found = trained.json();
    assert_eq!(found["complete"], true);
    for line in trained.error.lines() {
        serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    }
    let metrics = own.metrics("run");
    let last = metrics.iter().rfind(|line| line["phase"] == "reinforcement").unwrap();
    for name in ["reward/mean", "reward/program", "reward/exact", "reward/program/seen"] {
        let named = last.as_object().unwrap().keys().any(|key| key.starts_with(name));
        assert!(named, "{name} in {last}");
    }
    assert!(metrics.iter().any(|line| line.get("eval/accuracy/red").is_some()), "{metrics:?}");
    // Without a supervised phase there is nothing after it to measure.
    assert!(metrics.iter().all(|line| line["phase"] != "after_supervised"));

    let rollouts = own.run(&["rollouts", "run", "--step", "all", "--sort", "reward", "--descending", "--show", "2"], 0);
    has(&rollouts.out, &["--- step", "program 1.000", "2 of 12 answers", "train.jsonl", "wanted:"]);
    let rows = own.run(&["--json", "rollouts", "run", "--most", "0.5", "--show", "0"], 0).json();
    let rows = rows.as_array().unwrap();
    assert!(rows.iter().all(|row| row["step"] == 3 && row["response"]["reward"].as_f64().unwrap() <= 0.5), "{rows:?}");
    assert!(rows.iter().all(|row| Path::new(row["images"][0].as_str().unwrap()).is_relative()));
    let none = own.run(&["rollouts", "run", "--contains", "no such text"], 0).out;
    has(&none, &["0 of 0 answers"]);
    has(&own.run(&["report", "run"], 0).out, &["run/report.html"]);
    let page = fs::read_to_string(own.path("run/report.html")).unwrap();
    has(&page, &["which colour?"]);

    for (model, dtype) in [("last", "bf16"), ("best", "f32")] {
        let out = format!("exported-{model}");
        let exported = own.run(&["export", "run", "--out", &out, "--model", model, "--dtype", dtype], 0).out;
        has(&exported, &[&out]);
        let card = fs::read_to_string(own.path(&out).join("README.md")).unwrap();
        has(&card, &["base_model: \"qwen-small\"", "train.jsonl", "[reinforcement]"]);
        // What was measured is of the model that the run ended with.
        assert_eq!(card.contains("after reinforcement learning"), model == "last", "{card}");
        for file in ["config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json"] {
            assert!(own.path(&out).join(file).is_file(), "{file}");
        }
    }
    has(&own.run(&["export", "run", "--out", "exported-last"], 1).error, &["exported-last"]);

    let measured =
        own.run(&["--json", "eval", "own.toml", "--model", "exported-best", "--answers", "answers.jsonl"], 0);
    let best = found["outcome"]["reinforcement"]["sighted"]["accuracy"]["mean"].as_f64().unwrap();
    assert!(measured.json()["sighted"]["accuracy"]["mean"].as_f64().unwrap() >= best);
    let answers = fs::read_to_string(own.path("answers.jsonl")).unwrap();
    assert_eq!(answers.lines().count(), 4);
    let answer: Value = serde_json::from_str(answers.lines().next().unwrap()).unwrap();
    assert!(answer["origin"].as_str().unwrap().starts_with("test.jsonl") && answer["right"].is_boolean(), "{answer}");

    let beyond = |base: &str, gamma: &str| {
        let extrapolation = ["--base", base, "--gamma", gamma, "--answers", "beyond.jsonl"];
        let asked = own.run(&[&["eval", "own.toml", "--model", "exported-best"], extrapolation.as_slice()].concat(), 0);
        has(&asked.out, &[&format!("exported-best, beyond {base} by {gamma}")]);
        fs::read_to_string(own.path("beyond.jsonl")).unwrap()
    };
    assert_eq!(beyond("exported-best", "50"), answers, "nothing was gained over the model itself");
    assert_eq!(beyond("exported-last", "0"), answers);
    assert_ne!(beyond("exported-last", "50"), answers);

    // There are fewer held-out questions than the configuration asks for.
    let heads = ["heads", "own.toml", "--model", "exported-last", "--out", "heads"];
    has(&own.run(&heads, 0).out, &["paired over the 4 questions", "heads/heads.toml"]);
    let judged = own.run(&[heads.as_slice(), &["--resume", "--threshold", "0.5"]].concat(), 0).out;
    has(&judged, &["paired over the 4 questions"]);

    let question = ["which colour?", "--image", "0.png", "--max-tokens", "5", "--temperature", "1", "-n", "3"];
    let drawn = own.run(&[&["--json", "generate", "exported-last"], question.as_slice()].concat(), 0).json();
    assert_eq!(drawn.as_array().unwrap().len(), 3);
    assert_eq!(drawn[0]["tokens"], 5);
    let mut chat = own.command(&["chat", "exported-last", "--max-tokens", "3", "--temperature", "0"]);
    let mut chat = chat.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let lines = "/image 0.png\nwhich colour?\nand now?\n/image gone.png\n/forget\nwhich?\n/quit\nnever\n";
    chat.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    let talked = said(chat.wait_with_output().unwrap(), 0);
    assert_eq!(talked.error.matches("cut off after 3 tokens").count(), 3, "{}", talked.error);
    has(&talked.error, &["gone.png"]);
}

#[test]
fn worked_answers_are_learnt_alone() {
    let own = Own::new();
    own.write("own.toml", &Own::config(3));
    let set = ["--set", "supervised.max_steps=2", "--set", "evaluation.every=0"];
    let trained = own.run(&[["--quiet", "sft", "own.toml", "--out", "run"].as_slice(), &set].concat(), 0);
    assert_eq!(trained.error, "");
    has(&trained.out, &["after warm-up", "4 held-out questions"]);
    assert!(!trained.out.contains("after RL"), "{}", trained.out);
    assert_eq!(own.metrics("run").iter().filter(|line| line["phase"] == "supervised").count(), 2);
    assert!(own.path("run/model/model.safetensors").is_file());
    own.run(&["export", "run", "--model", "warm-up", "--out", "out"], 0);
    let again = own.run(&["export", "run", "--model", "best", "--out", "other"], 1);
    has(&again.error, &["run has no such model"]);

    let mut rows = fs::read_to_string(own.path("train.jsonl")).unwrap();
    rows = rows.replacen("\"worked\"", "\"other\"", 1);
    own.write("train.jsonl", &rows);
    has(&own.run(&["check", "own.toml"], 1).error, &["train.jsonl", "worked"]);
    own.write("own.toml", &Own::config(0));
    has(&own.run(&["sft", "own.toml"], 2).error, &["own.toml: supervised.max_steps is 0"]);
}

#[test]
fn a_configuration_is_begun_and_what_is_wrong_with_one_is_named() {
    let own = Own::new();
    let written =
        own.run(&["init", "mine.toml", "--model", "a \"b\"", "--train", "t.jsonl", "--held-out", "h.parquet"], 0);
    has(&written.out, &["firesight check mine.toml"]);
    let text = fs::read_to_string(own.path("mine.toml")).unwrap();
    let config: toml::Table = toml::from_str(&text).unwrap();
    assert_eq!(config["model"].as_str(), Some("a \"b\""));
    assert_eq!(config["data"]["train"][0].as_str(), Some("t.jsonl"));
    assert_eq!(config["data"]["held_out"][0].as_str(), Some("h.parquet"));
    has(&own.run(&["init", "mine.toml"], 1).error, &["cannot write mine.toml"]);
    assert_eq!(fs::read_to_string(own.path("mine.toml")).unwrap(), text);

    let refused = |change: &dyn Fn(String) -> String, code, parts: &[&str]| {
        own.write("changed.toml", &change(Own::config(0)));
        has(&own.run(&["check", "changed.toml"], code).error, parts);
        assert!(!own.path("runs").exists());
    };
    refused(&|text| text.replace("group_size", "grupsize"), 2, &["changed.toml", "grupsize", "group_size"]);
    refused(&|text| text.replace("kind = \"exact\"", "kind = \"exakt\""), 2, &["changed.toml", "exakt", "exact"]);
    refused(&|text| text.replace("weight = 0.5", "wait = 0.5"), 2, &["changed.toml", "wait"]);
    refused(
        &|text| text.replace("prompts = 2", "prompts = 0"),
        2,
        &["changed.toml: reinforcement.prompts", "at least 1"],
    );
    refused(&|text| text.replace("held_out = [\"test.jsonl\"]", ""), 2, &["changed.toml: data.held_out"]);
    refused(&|text| text.replace("test.jsonl", "gone.jsonl"), 1, &["gone.jsonl"]);
    refused(&|text| text.replace("\"worked\"", "\"werked\""), 2, &["werked", "worked"]);
    refused(&|text| text.replace("\"sh\", \"reward.sh\"", "\"no-such-program\""), 2, &["program", "no-such-program"]);
    refused(&|text| text.replace("models/qwen-small", "models/none"), 1, &["models/none"]);
    refused(&|text| text.replace("device = \"flex\"", "device = \"abacus\""), 2, &["abacus", "flex"]);

    let set = |set: &str, parts: &[&str]| has(&own.run(&["check", "own.toml", "--set", set], 2).error, parts);
    set("seed", &["\"seed\" has no ="]);
    set("=1", &["no key"]);
    set("seed.x=1", &["seed is no table"]);
    set("seed=high", &["own.toml", "high"]);
    set("evaluation.exampels=1", &["exampels"]);
    has(&own.run(&["train"], 2).error, &["<CONFIG>", "Usage"]);
    has(&own.run(&["frobnicate"], 2).error, &["frobnicate"]);
}

/// A row that cannot be used is named by file, row and field; some may be left out.
#[test]
fn bad_rows_are_named_and_may_be_left_out() {
    let own = Own::new();
    let mut rows = fs::read_to_string(own.path("train.jsonl")).unwrap();
    rows.push_str(
        "{\"prompt\": 5, \"worked\": \"\"}\n{\"prompt\": \"x\", \"images\": [\"gone.png\"], \"worked\": \"x\"}\n",
    );
    own.write("train.jsonl", &rows);
    let said = own.run(&["check", "own.toml"], 1).error;
    has(&said, &["train.jsonl", "9", "prompt", "10", "gone.png"]);
    has(&own.run(&["check", "own.toml", "--skip-bad", "1"], 1).error, &["gone.png"]);
    let checked = own.run(&["check", "own.toml", "--set", "data.skip_bad=2"], 0).out;
    has(&checked, &["passed over: train.jsonl, row 9", "10 rows to train on"]);
    has(&own.run(&["data", "inspect", "train.jsonl"], 0).out, &["8 rows, 2 that cannot be used", "gone.png"]);
}

#[test]
fn help_completions_and_the_doctor_need_nothing() {
    let own = Own::new();
    let help = own.run(&["--help"], 0).out;
    let commands =
        ["init", "check", "train", "sft", "eval", "generate", "chat", "heads", "rollouts", "report", "export"];
    has(&help, &commands);
    has(&help, &["data", "doctor", "completions", "Exit codes"]);
    for shell in ["bash", "zsh", "fish"] {
        has(&own.run(&["completions", shell], 0).out, &["firesight", "rollouts"]);
    }
    let found = own.run(&["--json", "doctor"], 0).json();
    assert!(found["devices"][0]["name"] == "flex" && found["devices"][0]["product_seconds"].is_number(), "{found}");
    has(&own.run(&["doctor"], 0).out, &["processors", "flex", "GFLOP/s"]);
    has(&own.run(&["doctor", "--device", "abacus"], 1).error, &["abacus cannot be used"]);
}

#[test]
fn the_doctor_measures_a_device() {
    let own = Own::new();
    has(&own.run(&["doctor", "--deep"], 2).error, &["--device"]);
    has(&own.run(&["doctor", "--device", "flex", "--deep", "--oracle", "nowhere"], 1).error, &["nowhere/models"]);
    let found = own.run(&["--json", "doctor", "--device", "flex", "--deep"], 0).json();
    let list = |name: &str| found[name].as_array().unwrap().clone();
    // Two models; what is embedded was computed by transformers.
    let against = |reference: &str| list("agreement").iter().filter(|one| one["reference"] == reference).count();
    assert!(against("oracle") >= 6 && against("flex") == 2, "{found}");
    for one in list("agreement") {
        assert!(one["error"].as_f64().unwrap() <= one["allowed"].as_f64().unwrap(), "{one}");
    }
    assert!(list("rates").iter().all(|rate| rate["per_second"].as_f64().unwrap() > 1e6), "{found}");
    let steps = list("steps");
    assert_eq!(steps.len(), 2, "{found}");
    for step in &steps {
        assert!(step["drawn_per_second"].as_f64().unwrap() > 1.0 && step["memory"].as_f64().unwrap() > 1e6, "{step}");
        let parts = step["drawing_seconds"].as_f64().unwrap() + step["update_seconds"].as_f64().unwrap();
        assert!(parts <= step["seconds"].as_f64().unwrap(), "{step}");
        assert!(step["update_seconds"].as_f64().unwrap() > 0.05 * parts, "nothing was trained: {step}");
    }
    has(&found["left_out"].to_string(), &["Qwen2.5-VL-3B"]);
    assert!(found["hardware"].as_str().is_some_and(|name| !name.is_empty()));
}
