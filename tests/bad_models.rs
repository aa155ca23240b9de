//! Model directories, images and prompts that cannot be used: each error names the file, key or index.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use firesight_vlm::{
    Error, Generation, Message, Processor, Prompt, QwenVl, Sampling, SaveOptions, Scored, WeightProblem, decode_image,
};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;

fn preset() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/qwen-small")
}

/// A model directory with fresh weights.
fn model_directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let config = firesight_vlm::ModelConfig::from_dir(&preset()).unwrap();
    let model = QwenVl::new(&config, 0, &Device::flex());
    model.save(directory.path(), &preset(), SaveOptions::default()).unwrap();
    directory
}

fn load(directory: &Path) -> Error {
    QwenVl::from_dir(directory, &Device::flex()).unwrap_err()
}

#[test]
fn a_missing_weight_file_is_named() {
    let directory = model_directory();
    let file = directory.path().join("model.safetensors");
    std::fs::remove_file(&file).unwrap();
    assert!(matches!(load(directory.path()), Error::WeightFile { path, .. } if path == file));
}

#[test]
fn a_truncated_weight_file_is_named() {
    let directory = model_directory();
    let file = directory.path().join("model.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    for length in [0, 4, 100, bytes.len() - 1] {
        std::fs::write(&file, &bytes[..length]).unwrap();
        assert!(matches!(load(directory.path()), Error::WeightFile { path, .. } if path == file), "{length} bytes");
    }
}

/// Rewrites the weights with what `change` makes of the name and shape of every parameter; `None` leaves it out.
fn rewrite(directory: &Path, change: impl Fn(&str, &[usize]) -> Option<(String, Vec<usize>)>) {
    let file = directory.join("model.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let kept: Vec<(String, TensorView<'_>)> = tensors
        .tensors()
        .into_iter()
        .filter_map(|(name, view)| {
            let (name, shape) = change(&name, view.shape())?;
            let data = &view.data()[..shape.iter().product::<usize>() * 4];
            Some((name, TensorView::new(view.dtype(), shape, data).unwrap()))
        })
        .collect();
    std::fs::write(&file, safetensors::serialize(kept, None).unwrap()).unwrap();
}

#[test]
fn one_error_lists_every_parameter_that_does_not_fit() {
    let directory = model_directory();
    let layer = "model.language_model.layers.1.";
    rewrite(directory.path(), |name, shape| match name.strip_prefix(layer) {
        Some("input_layernorm.weight") => None,
        Some("self_attn.q_norm.weight") => Some(("model.q_norm".into(), shape.to_vec())),
        // A linear layer: both shapes are told as published, outputs first.
        Some("mlp.up_proj.weight") => Some((name.into(), vec![shape[0] / 2, shape[1]])),
        _ => Some((name.into(), shape.to_vec())),
    });
    let error = load(directory.path());
    let Error::Weights { path, problems } = &error else { panic!("{error}") };
    assert_eq!(path, directory.path());
    let up = format!("{layer}mlp.up_proj.weight");
    let (missing, shapes) = (|name: &str| format!("{layer}{name}"), (vec![128, 128], vec![256, 128]));
    assert_eq!(
        problems[..],
        [
            WeightProblem::Shape { name: up, found: shapes.0, expected: shapes.1 },
            WeightProblem::Superfluous { name: "model.q_norm".into() },
            WeightProblem::Missing { name: missing("input_layernorm.weight") },
            WeightProblem::Missing { name: missing("self_attn.q_norm.weight") },
        ]
    );
    assert_eq!(error.to_string().lines().count(), 5, "{error}");
}

#[test]
fn a_config_that_describes_no_model_names_its_field() {
    let directory = model_directory();
    let file = directory.path().join("config.json");
    let text = std::fs::read_to_string(&file).unwrap();
    for (from, to, field) in [
        ("\"num_key_value_heads\": 2", "\"num_key_value_heads\": 3", "text_config.num_key_value_heads"),
        ("\"qwen3_vl\",\n  \"text_config\"", "\"llama\",\n  \"text_config\"", "model_type"),
        ("\"head_dim\": 32,", "\"head_dim\": 30,", "head_dim"),
    ] {
        assert!(text.contains(from), "{from}");
        std::fs::write(&file, text.replace(from, to)).unwrap();
        let error = load(directory.path()).to_string();
        assert!(error.contains("config.json") && error.contains(field), "{error}");
    }
}

#[test]
fn a_broken_image_is_named() {
    let error = decode_image(b"\x89PNG\r\n\x1a\nnot really", "row 7, image 2").unwrap_err();
    assert!(error.to_string().contains("row 7, image 2"), "{error}");
}

fn generation(mask: &firesight_vlm::TokenMask, max_new_tokens: usize) -> Generation<'_> {
    Generation { sampling: Sampling::at(1.0), max_new_tokens, stop_tokens: &[], mask, seed: 0, first_stream: 0 }
}

#[test]
fn prompts_beyond_the_context_and_tokens_beyond_the_vocabulary_are_named_by_index() {
    let config = firesight_vlm::ModelConfig::from_dir(&preset()).unwrap();
    let model = QwenVl::new(&config, 0, &Device::flex());
    let mask = model.token_mask([]).unwrap();
    let processor = Processor::from_dir(&preset()).unwrap();
    let short = processor.prompt(&[Message::user("What is the value of A?")], &[]).unwrap();
    let long = Prompt::new(vec![5; 510], Vec::new(), Vec::new());
    match model.generate(&[&short, &long], 1, &generation(&mask, 4)).unwrap_err() {
        Error::ContextLength { index, prompt, completion, context } => {
            assert_eq!((index, prompt, completion, context), (1, 510, 4, 512));
        }
        other => panic!("{other}"),
    }
    let outside = [3, 4, 384];
    let scored = Scored { prompt: &short, completions: vec![&outside] };
    match model.score(&[scored], 1.0, &mask, None).unwrap_err() {
        Error::TokenOutOfVocabulary { id, position, vocabulary } => {
            assert_eq!((id, position, vocabulary), (384, 2, 384));
        }
        other => panic!("{other}"),
    }
}

/// Guarantees 4 to 6: sampled and scored log-probabilities agree at any temperature, over the same set of tokens, and
/// placeholders are never drawn.
#[test]
fn sampled_tokens_score_as_they_were_drawn() {
    let config = firesight_vlm::ModelConfig::from_dir(&preset()).unwrap();
    let device = Device::flex();
    let model = QwenVl::new(&config, 3, &device);
    // A tiny vocabulary by mask, so that a placeholder would be drawn at once if it could be.
    let kept = [1, 2, 3, config.image_token_id.unwrap(), config.video_token_id.unwrap()];
    let mask = model.token_mask((0..384).filter(|id| !kept.contains(id))).unwrap();
    let processor = Processor::from_dir(&preset()).unwrap();
    let prompts: Vec<Prompt> = ["What is the value of A?", "Which of A B C D is highest?"]
        .iter()
        .map(|text| processor.prompt(&[Message::user(*text)], &[]).unwrap())
        .collect();
    let filtered = Sampling { top_k: 3, top_p: 0.95, min_p: 0.01, ..Sampling::at(1.2) };
    for sampling in [Sampling::at(0.6), Sampling::at(1.0), Sampling::at(1.7), filtered] {
        let temperature = sampling.temperature;
        let options = Generation { sampling, ..generation(&mask, 12) };
        let drawn = model.generate(&prompts.iter().collect::<Vec<_>>(), 4, &options).unwrap();
        let batch: Vec<Scored<'_>> = prompts
            .iter()
            .zip(&drawn)
            .map(|(prompt, group)| Scored { prompt, completions: group.iter().map(|c| c.tokens.as_slice()).collect() })
            .collect();
        let scored: Vec<f32> =
            model.score(&batch, temperature, &mask, None).unwrap().log_probs.into_data().iter::<f32>().collect();
        let sampled: Vec<f32> = drawn.iter().flatten().flat_map(|c| c.log_probs.clone()).collect();
        assert_eq!(sampled.len(), scored.len());
        for (sampled, scored) in sampled.iter().zip(&scored) {
            assert!((sampled - scored).abs() < 1e-4, "temperature {temperature}: {sampled} {scored}");
        }
        assert!(drawn.iter().flatten().flat_map(|c| &c.tokens).all(|token| [1, 2, 3].contains(token)));
        // Completions do not depend on their neighbours in the batch.
        let alone = Generation { first_stream: 4, ..options };
        assert_eq!(
            model.generate(&[&prompts[1]], 4, &alone).unwrap()[0].iter().map(|c| &c.tokens).collect::<Vec<_>>(),
            drawn[1].iter().map(|c| &c.tokens).collect::<Vec<_>>()
        );
    }
}
