//! transformers and PEFT read what firesight writes, and the other way round.
//!
//! Needs them installed, so it is left out unless asked for: `tests/transformers/run.sh`.
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use burn::module::Module;
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{Device, FloatDType};
use firesight_vlm::{
    LoraConfig, Message, Part, ProcessedImage, Processor, Prompt, QwenVl, SaveOptions, Scored, read_image,
};
use serde_json::{Value, json};
use support::{Tensors, case_dirs, oracle_dir, relative_error};

const TOLERANCE: f64 = 1e-4;
const TEXT: &str = "How many corners?";

/// One model of the oracle, the way it is shown a question, and the directories that are compared.
struct Subject {
    name: String,
    prompt: Prompt,
    image: Option<ProcessedImage>,
    /// What firesight computes, and the file in which transformers says what it does.
    claims: Vec<(String, Vec<f32>, PathBuf)>,
    /// Where transformers writes the model again.
    resaved: PathBuf,
}

fn logits(model: &QwenVl, prompt: &Prompt) -> Vec<f32> {
    model.prompt_logits(&[prompt]).unwrap().into_data().try_to_vec().unwrap()
}

fn prompt(processor: &Processor, image: Option<&ProcessedImage>) -> Prompt {
    let message = match image {
        Some(_) => Message::user(vec![Part::Image, Part::text(TEXT)]),
        None => Message::user(TEXT),
    };
    processor.prompt(&[message], &image.cloned().into_iter().collect::<Vec<_>>()).unwrap()
}

/// Adapters in both towers, after a step that moves both factors away from where they start.
fn adapted(model: QwenVl, prompt: &Prompt) -> QwenVl {
    let names = ["q_proj", "k_proj", "o_proj", "gate_proj", "down_proj"];
    let config = LoraConfig { rank: 4, alpha: 8.0, target_modules: names.map(str::to_owned).to_vec() };
    let mut model = model.train().with_lora(&config, true, 0).unwrap();
    let mut optimizer = AdamWConfig::new().init();
    for _ in 0..2 {
        let batch = [Scored { prompt, completions: vec![&[3, 4, 5]] }];
        let scores = model.score(&batch, 1.0, &model.token_mask([]).unwrap(), None).unwrap();
        let gradients = GradientsParams::from_grads(scores.log_probs.sum().backward(), &model);
        model = optimizer.step(3e-2, model, gradients);
    }
    model
}

fn subject(dir: &Path, work: &Path, picture: &Path, jobs: &mut Vec<Value>) -> Subject {
    let name = dir.file_name().unwrap().to_string_lossy().into_owned();
    let at = |what: &str| work.join(format!("{name}-{what}"));
    let model = QwenVl::from_dir(dir, &Device::flex()).unwrap();
    let processor = Processor::from_dir(dir).unwrap();
    let sighted = model.config().vision_config.is_some();
    let image = sighted.then(|| processor.image(&read_image(picture).unwrap()).unwrap());
    let prompt = prompt(&processor, image.as_ref());
    let (resaved, mut claims) = (at("resaved"), Vec::new());
    let mut claim = |what: &str, directory: &Path, model: &QwenVl, extra: (&str, Option<&Path>)| {
        let to = at(&format!("{what}.safetensors"));
        let mut job = json!({ "directory": directory, "text": TEXT, "to": &to });
        job["image"] = sighted.then_some(picture).map_or(Value::Null, |picture| json!(picture));
        job[extra.0] = json!(extra.1);
        jobs.push(job);
        claims.push((what.to_owned(), logits(model, &prompt), to));
    };
    claim("as published", dir, &model, ("resave", Some(&resaved)));
    let whole = SaveOptions::default();
    for (what, options) in [
        ("one file", whole),
        ("shards", SaveOptions { max_shard_bytes: 200_000, ..whole }),
        ("bfloat16", SaveOptions { dtype: FloatDType::BF16, ..whole }),
    ] {
        let copy = at(what);
        model.save(&copy, dir, options).unwrap();
        claim(what, &copy, &QwenVl::from_dir(&copy, &Device::flex()).unwrap(), ("resave", None));
    }
    let adapted = adapted(model, &prompt);
    let (adapter, merged) = (at("adapter"), at("merged"));
    adapted.save_adapter(&adapter, &dir.display().to_string()).unwrap();
    claim("adapter", dir, &adapted.valid(), ("adapter", Some(&adapter)));
    adapted.save(&merged, dir, whole).unwrap();
    claim("merged adapter", &merged, &adapted.valid(), ("resave", None));
    Subject { name, prompt, image, claims, resaved }
}

#[test]
#[ignore = "needs transformers: tests/transformers/run.sh"]
fn transformers_agrees() {
    let python = std::env::var("FIRESIGHT_PYTHON").unwrap_or_else(|_| "python3".into());
    let work = tempfile::tempdir().unwrap();
    let picture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/oracle/images/img_137x91.png");
    let mut directories = case_dirs(&oracle_dir().join("models"));
    directories.retain(|dir| dir.join("tokenizer.json").is_file());
    assert!(directories.len() >= 3);
    let mut jobs = Vec::new();
    let subjects: Vec<Subject> = directories.iter().map(|dir| subject(dir, work.path(), &picture, &mut jobs)).collect();
    let list = work.path().join("jobs.json");
    std::fs::write(&list, serde_json::to_string(&jobs).unwrap()).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transformers/reference.py");
    assert!(Command::new(python).arg(script).arg(&list).status().unwrap().success());

    for Subject { name, prompt, image, claims, resaved } in &subjects {
        for (what, found, file) in claims {
            let expected = Tensors::read(file);
            let ids: Vec<i64> = prompt.input_ids().iter().map(|&id| i64::from(id)).collect();
            assert_eq!(expected.i64("input_ids").1, ids, "{name} {what}");
            if let Some(image) = image {
                assert!(*expected.f32("pixel_values").1 == *image.pixel_values, "{name} {what}: pixel values differ");
            }
            let error = relative_error(found, &expected.f32("logits").1);
            println!("{name:24} {what:16} {:3} tokens, logits {error:.1e}", ids.len());
            assert!(error < TOLERANCE, "{name} {what}: {error:.1e}");
        }
        // What transformers writes in turn: a nested configuration, `processor_config.json`.
        let model = QwenVl::from_dir(resaved, &Device::flex()).unwrap();
        let again = self::prompt(&Processor::from_dir(resaved).unwrap(), image.as_ref());
        assert_eq!(again.input_ids(), prompt.input_ids(), "{name} written by transformers");
        let error = relative_error(&logits(&model, &again), &claims[0].1);
        assert!(error < 1e-6, "{name} written by transformers: {error:.1e}");
    }
}
