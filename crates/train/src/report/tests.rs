#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Write as _;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use flate2::Compression;
use flate2::write::GzEncoder;
use image::RgbImage;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use super::*;
use crate::files::entries;
use crate::rollouts::png;
use crate::run_directory::RunDirectory;

/// What a model could write to get out of its place.
const HOSTILE: &str = "</script><img src=x onerror=alert(1)><!--<script>\"'&amp;\u{2028}\u{0}\\u003c";

/// A run directory without anything in it but its configuration.
fn begun() -> (TempDir, RunDirectory) {
    let scratch = tempfile::tempdir().unwrap();
    let run = RunDirectory::create(scratch.path(), &RunConfig::example("models/qwen-small")).unwrap();
    (scratch, run)
}

/// A line of a rollout as the first version wrote it.
fn group(step: usize, index: usize) -> Value {
    json!({
        "step": step, "index": index, "question": format!("question {step} {index}"), "answer": "7",
        "images": [format!("images/{}.png", index % 2)], "prompt_tokens": [1, 2, 3],
        "completions": [{
            "text": "a\n\nb", "tokens": [5, 6], "log_probs": [-0.5, "-inf"], "truncated": false, "reward": 1.0,
            "parts": { "accuracy": 1.0, "format": null }, "advantage": null, "credit_weights": [0.25, 1.0],
        }],
    })
}

/// The same line in the page: without token ids, and with null for keys that it does not have.
fn shown(mut line: Value) -> Value {
    let completion = &mut line["completions"][0];
    completion.as_object_mut().unwrap().remove("tokens");
    for key in ["pieces", "evidence"] {
        completion[key] = completion.get(key).cloned().unwrap_or_default();
    }
    line.as_object_mut().unwrap().remove("prompt_tokens");
    for key in ["regions", "origin"] {
        line[key] = line.get(key).cloned().unwrap_or_default();
    }
    line
}

fn write_lines(run: &RunDirectory, name: &str, lines: &[Value]) {
    let mut file = GzEncoder::new(Vec::new(), Compression::default());
    for line in lines {
        writeln!(file, "{line}").unwrap();
    }
    run.write(name, &file.finish().unwrap()).unwrap();
}

/// The page, and what stands in it as data.
fn written(run: &RunDirectory) -> (String, Value) {
    let path = write_report(run.path()).unwrap();
    assert_eq!(path, run.path().join("report.html"));
    let page = fs::read_to_string(path).unwrap();
    let data = serde_json::from_str(between(&page, "id=\"data\">", "</script>")).unwrap();
    (page, data)
}

fn between<'a>(text: &'a str, start: &str, end: &str) -> &'a str {
    let (_, rest) = text.split_once(start).unwrap();
    rest.split_once(end).unwrap().0
}

#[test]
fn a_report_holds_all_that_a_run_wrote() {
    let mut config = RunConfig::example("models/qwen-small");
    config.seed = (1 << 53) + 1;
    let scratch = tempfile::tempdir().unwrap();
    let mut run = RunDirectory::create(scratch.path(), &config).unwrap();
    let (first, second) = (RgbImage::from_pixel(3, 2, image::Rgb([1, 2, 3])), RgbImage::new(5, 5));
    run.write("images/0.png", &png(&first)).unwrap();
    run.write("images/1.png", &png(&second)).unwrap();
    run.metrics("supervised", 1, &[("loss/supervised".into(), 2.5)]).unwrap();
    run.metrics("supervised", 2, &[("grad/norm".into(), 1.5), ("loss/supervised".into(), f64::NAN)]).unwrap();
    run.metrics("after_supervised", 2, &[("eval/accuracy".into(), 0.5)]).unwrap();
    run.metrics("reinforcement", 1, &[("reward/mean".into(), 0.25)]).unwrap();
    // Numbers of steps, not names, are in order: 10000 comes after 9999.
    let mut new = group(9999, 0);
    new["regions"] = json!([{ "rows": 1, "columns": 2, "component": [0, 1], "structured": [true, false] }]);
    new["completions"][0]["pieces"] = json!(["a\n\n", "b"]);
    new["completions"][0]["evidence"] =
        json!({ "segments": [[0, 1], [1, 2]], "alignment": [0.5, "NaN"], "visual_tokens": [0] });
    write_lines(&run, "rollouts/step9999.jsonl.gz", &[new.clone(), group(9999, 1)]);
    write_lines(&run, "rollouts/step10000.jsonl.gz", &[group(10000, 0)]);

    let (page, data) = written(&run);
    let columns = json!({ "grad/norm": [null, 1.5], "loss/supervised": [2.5, null] });
    assert_eq!(data["metrics"][0], json!({ "name": "supervised", "steps": [1, 2], "columns": columns }));
    let names: Vec<&Value> = data["metrics"].as_array().unwrap().iter().map(|phase| &phase["name"]).collect();
    assert_eq!(names, ["supervised", "after_supervised", "reinforcement"]);
    assert_eq!(data["metrics"][2]["columns"]["reward/mean"], json!([0.25]));

    assert_eq!(data["groups"], json!([shown(new), shown(group(9999, 1)), shown(group(10000, 0))]));
    assert_eq!(data["groups_written"], 3);
    for (name, picture) in [("images/0.png", first), ("images/1.png", second)] {
        let found = &data["images"][name];
        assert_eq!(found["source"], format!("data:image/png;base64,{}", BASE64_STANDARD.encode(png(&picture))));
        assert_eq!((&found["width"], &found["height"]), (&json!(picture.width()), &json!(picture.height())));
    }
    assert_eq!(data["config"], fs::read_to_string(scratch.path().join("config.toml")).unwrap());
    assert_eq!(data["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(data["seed"], "9007199254740993");
    assert_eq!((&data["outcome"], &data["preset"]), (&Value::Null, &Value::Null));

    // Again, over the one that is there: the same.
    assert_eq!(written(&run).0, page);
}

#[test]
fn nothing_that_a_model_writes_leaves_its_place() {
    let (_scratch, run) = begun();
    let harmless = written(&run).0;
    let mut line = group(1, 0);
    for key in ["question", "answer"] {
        line[key] = HOSTILE.into();
    }
    line["images"] = json!([format!("images/{}", HOSTILE.replace('/', ""))]);
    line["completions"][0]["text"] = HOSTILE.into();
    line["completions"][0]["pieces"] = json!([HOSTILE, HOSTILE]);
    line["completions"][0]["parts"] = json!({ HOSTILE: 1.0 });
    write_lines(&run, "rollouts/step0001.jsonl.gz", &[line.clone()]);

    let (page, data) = written(&run);
    let found = &data["groups"][0];
    for key in ["question", "answer", "images"] {
        assert_eq!(found[key], line[key]);
    }
    for key in ["text", "pieces", "parts"] {
        assert_eq!(found["completions"][0][key], line["completions"][0][key]);
    }
    // Around the data the page is what it is without them, and in them no element begins.
    let around = |page: &str| {
        let data = between(page, "id=\"data\">", "</script>");
        assert!(!data.contains('<'));
        page.replacen(data, "", 1)
    };
    assert_eq!(around(&page), around(&harmless));
}

#[test]
fn a_page_runs_its_own_script_and_loads_nothing() {
    let (_scratch, run) = begun();
    let page = written(&run).0;
    let policy = between(&page, "Content-Security-Policy\" content=\"", "\">");
    let hash = |text: &str| format!("'sha256-{}'", BASE64_STANDARD.encode(Sha256::digest(text)));
    let style = hash(between(&page, "<style>", "</style>"));
    let script = hash(between(&page, "\n<script>", "</script>"));
    let sources = format!("default-src 'none'; img-src data:; style-src {style}; script-src {script}");
    assert_eq!(policy, format!("{sources}; base-uri 'none'; form-action 'none'"));
}

#[test]
fn what_is_missing_is_no_error_and_what_is_broken_is_named() {
    let scratch = tempfile::tempdir().unwrap();
    let error = write_report(scratch.path()).unwrap_err();
    assert!(matches!(&error, Error::NoRun { path } if path == scratch.path()), "{error}");
    assert!(!scratch.path().join("report.html").exists());

    let (scratch, mut run) = begun();
    fs::remove_file(scratch.path().join(METRICS)).unwrap();
    let data = written(&run).1;
    assert_eq!((&data["metrics"], &data["groups"], &data["groups_written"]), (&json!([]), &json!([]), &json!(0)));

    // The picture of a group, and the end of a line that was being written.
    write_lines(&run, "rollouts/step0001.jsonl.gz", &[group(1, 0)]);
    run.metrics("supervised", 1, &[]).unwrap();
    fs::write(scratch.path().join(METRICS), "{\"phase\": \"supervised\", \"step\": 1}\n{\"phase\": \"supervi").unwrap();
    let data = written(&run).1;
    assert_eq!((&data["images"], &data["metrics"][0]["steps"]), (&json!({}), &json!([1])));

    let fails = |expected: &[&str]| {
        let error = write_report(scratch.path()).unwrap_err();
        assert!(expected.iter().all(|part| error.to_string().contains(part)), "{error}");
    };
    fs::write(scratch.path().join(METRICS), "{\"phase\": \"supervised\", \"step\": 1}\n{\"phase\": 2}\n").unwrap();
    fails(&["metrics.jsonl, line 2: "]);
    fs::remove_file(scratch.path().join(METRICS)).unwrap();
    let mut broken = group(1, 1);
    broken["completions"][0].as_object_mut().unwrap().remove("text");
    write_lines(&run, "rollouts/step0001.jsonl.gz", &[group(1, 0), broken]);
    fails(&["step0001.jsonl.gz, line 2: ", "text"]);
    run.write("rollouts/step0001.jsonl.gz", b"not compressed").unwrap();
    fails(&["step0001.jsonl.gz"]);
    run.write("outcome.toml", b"seconds = ").unwrap();
    fs::remove_file(scratch.path().join("rollouts/step0001.jsonl.gz")).unwrap();
    fails(&["outcome.toml"]);
}

#[test]
fn a_picture_is_taken_from_its_directory_alone() {
    let (scratch, run) = begun();
    let picture = png(&RgbImage::new(1, 1));
    for name in ["outside.png", "images/0.png", "images/below/0.png"] {
        run.write(name, &picture).unwrap();
    }
    let absolute = scratch.path().join("outside.png");
    for name in [
        absolute.to_str().unwrap(),
        "outside.png",
        "../outside.png",
        "images",
        "images/",
        "images/.",
        "images/..",
        "images/../outside.png",
        "images//outside.png",
        "images/0.png/",
        "images/0.png/../../outside.png",
        "images/below/0.png",
        &format!("images/{}", absolute.display()),
    ] {
        let mut line = group(1, 1);
        line["images"] = json!([name]);
        write_lines(&run, "rollouts/step0001.jsonl.gz", &[group(1, 0), line]);
        let error = write_report(scratch.path()).unwrap_err().to_string();
        assert!(error.contains("step0001.jsonl.gz, line 2: ") && error.contains(&format!("{name:?}")), "{error}");
    }
    assert!(!scratch.path().join(REPORT).exists());
    write_lines(&run, "rollouts/step0001.jsonl.gz", &[group(1, 0)]);
    let images = written(&run).1["images"].clone();
    assert_eq!(images.as_object().unwrap().keys().collect::<Vec<_>>(), ["images/0.png"]);
}

#[test]
fn a_report_has_a_temporary_name_of_its_own_and_leaves_none() {
    let (scratch, run) = begun();
    // Another writer is at work on a report of the same run.
    let other = scratch.path().join("report.html.partial");
    fs::create_dir(&other).unwrap();
    written(&run);
    fs::remove_dir(other).unwrap();

    let names = || {
        let mut names = entries(scratch.path()).unwrap();
        names.sort();
        names
    };
    let complete = names();
    let report = scratch.path().join(REPORT);
    fs::remove_file(&report).unwrap();
    fs::create_dir(&report).unwrap();
    let error = write_report(scratch.path()).unwrap_err();
    assert!(matches!(&error, Error::Io { path, .. } if *path == report), "{error}");
    assert_eq!(names(), complete);
}

#[test]
fn a_page_of_a_large_run_shows_some_prompts_of_every_step() {
    let (scratch, run) = begun();
    // Ids of tokens are not shown and take no room; a < takes that of six characters.
    let line = |step, index| {
        let mut line = group(step, index);
        line["answer"] = "<".repeat(index).into();
        line["prompt_tokens"] = json!(vec![1; 1000 * (1 + index % 3)]);
        line["completions"][0]["tokens"] = json!(vec![1; 1000]);
        line
    };
    for step in [1, 50, 100] {
        let lines: Vec<Value> = (0..32).map(|index| line(step, index)).collect();
        write_lines(&run, &format!("rollouts/step{step:04}.jsonl.gz"), &lines);
    }
    let picture = png(&RgbImage::new(100, 100));
    for name in ["images/0.png", "images/1.png"] {
        run.write(name, &picture).unwrap();
    }
    let source = BASE64_STANDARD.encode(picture).len();
    let places = |limit: usize| {
        let content = Content::read(scratch.path(), limit as u64).unwrap();
        assert_eq!(content.groups_written, 96);
        let groups = serde_json::to_value(&content.groups).unwrap();
        let places = groups.as_array().unwrap().iter();
        places.map(|group| (group["step"].as_u64().unwrap(), group["index"].as_u64().unwrap())).collect::<Vec<_>>()
    };
    let every = |stride| -> Vec<(u64, u64)> {
        let places = (0..32).step_by(stride);
        [1, 50, 100].into_iter().flat_map(|step| places.clone().map(move |place| (step, place))).collect()
    };
    // With the comma behind each.
    let bytes = |places: &[(u64, u64)]| -> usize {
        let lines = places.iter().map(|(step, index)| shown(line(*step as usize, *index as usize)).to_string());
        lines.map(|line| line.replace('<', "\\u003c").len() + 1).sum()
    };
    let all = bytes(&every(1)) + 2 * source;
    assert_eq!(places(all), every(1));
    assert!(places(all - 1).len() < 96);
    // They share one picture.
    let quarter = bytes(&every(4)) + source;
    assert_eq!(places(quarter), every(4));
    assert!(places(quarter - 1).len() < 24);
    assert_eq!(places(0), []);
}
