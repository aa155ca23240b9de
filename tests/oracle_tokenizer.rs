//! Tokenizer, chat templates and whole prompts against tokenizers and transformers.
//!
//! What needs a real vocabulary runs where the oracle holds one.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::{Path, PathBuf};

use firesight_vlm::{ChatTemplate, Message, Part, Processor, TemplateVariables, Tokenizer, read_image};
use serde_json::Value;
use support::{Tensors, case_dirs, json, oracle_dir};

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| u32::try_from(id.as_u64().unwrap()).unwrap()).collect()
}

/// The tokenizer of the oracle, or nothing where the oracle is the compact one.
fn tokenizer() -> Option<Tokenizer> {
    let dir = oracle_dir().join("tokenizer");
    dir.join("tokenizer.json").exists().then(|| Tokenizer::from_dir(&dir).unwrap())
}

#[test]
fn texts_have_the_ids_of_the_reference() {
    let Some(tokenizer) = tokenizer() else { return };
    let cases = json(&oracle_dir().join("tokenizer/qwen3_cases.json"));
    let texts = cases["cases"].as_array().unwrap();
    assert!(texts.len() >= 400);
    for case in texts {
        let text = case["text"].as_str().unwrap();
        let found = tokenizer.encode(text).unwrap();
        assert_eq!(found, ids(&case["ids"]), "{text:?}");
        assert_eq!(tokenizer.decode(&found).unwrap(), case["decoded_skip"].as_str().unwrap());
    }
    for case in cases["partial"].as_array().unwrap() {
        assert_eq!(tokenizer.token_text(ids(&case["ids"])[0]), case["decoded"].as_str().unwrap());
    }
    assert_eq!(tokenizer.token_id("<|image_pad|>"), Some(151_655));
    assert_eq!(tokenizer.vocab_size(), 151_669);
}

#[test]
fn chat_templates_render_byte_for_byte() {
    let dir = oracle_dir().join("tokenizer");
    let path = dir.join("chat_templates.json");
    let tokenizer = tokenizer();
    // A row serves as the variables of its own rendering: it holds `tools`, with keys in the order of the file.
    let ordered: Vec<TemplateVariables> = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    let rows = json(&path);
    let rows = rows.as_array().unwrap();
    assert!(rows.len() >= 60);
    for (row, ordered) in rows.iter().zip(ordered) {
        let name = row["template"].as_str().unwrap();
        let source = std::fs::read_to_string(dir.join(name).with_extension("jinja")).unwrap();
        let template = ChatTemplate::new(source, name).unwrap();
        let messages: Vec<Message> = serde_json::from_value(row["messages"].clone()).unwrap();
        let add_generation_prompt = row["kwargs"]["add_generation_prompt"].as_bool().unwrap();
        let variables =
            if row.get("tools").is_some() { ordered } else { serde_json::from_value(row["kwargs"].clone()).unwrap() };
        let text = template.render(&messages, add_generation_prompt, &variables).unwrap();
        assert_eq!(text, row["text"].as_str().unwrap(), "{name} {} {}", row["conv"], row["kwargs"]);
        if let Some(tokenizer) = &tokenizer {
            assert_eq!(tokenizer.encode(&text).unwrap(), ids(&row["ids"]));
        }
    }
}

/// Whole prompts: text and images of a case in, the reference's ids and grids out. (The pixel values of these cases were
/// resized by Pillow, which rounds differently; `oracle_images` compares with torchvision.)
#[test]
fn prompts_are_those_of_the_reference_processor() {
    let oracle = oracle_dir();
    let mut compared = 0;
    for dir in case_dirs(&oracle.join("models")) {
        // Models of text alone have no image settings, and a directory without cases is for reading weights only.
        if json(&dir.join("config.json"))["vision_config"].is_null() || !dir.join("expected").is_dir() {
            continue;
        }
        let processor = Processor::from_dir(&dir).unwrap();
        for case in case_files(&dir.join("expected")) {
            compared += compare_prompts(&processor, &case, &oracle.join("images"));
        }
    }
    assert!(compared >= 5, "only {compared} prompts compared");
}

fn case_files(dir: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|extension| extension == "json")).collect()
}

fn compare_prompts(processor: &Processor, case: &Path, images: &Path) -> usize {
    let expected = json(case);
    let Some(rows) = expected["rows"].as_array() else { return 0 };
    let mut grids = Vec::new();
    for row in rows {
        let images: Vec<_> = row["images"]
            .as_array()
            .unwrap()
            .iter()
            .map(|name| {
                let path = images.join(name.as_str().unwrap()).with_extension("png");
                processor.image(&read_image(&path).unwrap()).unwrap()
            })
            .collect();
        let mut parts = vec![Part::Image; images.len()];
        parts.push(Part::text(row["question"].as_str().unwrap()));
        let prompt = processor.prompt(&[Message::user(parts)], &images).unwrap();
        assert_eq!(prompt.input_ids(), ids(&row["prompt_ids"]), "{} {row}", case.display());
        grids.extend(prompt.images().iter().flat_map(|image| [image.grid.t, image.grid.h, image.grid.w]));
        assert_eq!(prompt.images().len(), prompt.image_spans().len());
    }
    let tensors = Tensors::read(&case.with_extension("safetensors"));
    if tensors.contains("image_grid_thw") {
        let (_, expected) = tensors.i64("image_grid_thw");
        assert_eq!(grids.iter().map(|&side| side as i64).collect::<Vec<_>>(), expected, "{}", case.display());
    }
    rows.len()
}
