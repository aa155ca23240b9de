//! Models without the query heads of one index, held against transformers with hooks that mask them:
//! `tests/transformers/head_masking.py` wrote the values.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::Device;
use firesight_vlm::{Error, Prompt, QwenVl, Scored, TokenMask};
use serde::Deserialize;
use support::relative_error;

#[derive(Deserialize)]
struct Fixture {
    prompt: Vec<u32>,
    completion: Vec<u32>,
    models: BTreeMap<String, Expected>,
}

/// Log-probabilities of the completion.
#[derive(Deserialize)]
struct Expected {
    unmasked: Vec<f32>,
    /// By head.
    masked: Vec<Vec<f32>>,
}

#[test]
fn a_masked_head_contributes_nothing_in_any_layer() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let fixture: Fixture = serde_json::from_value(support::json(&fixtures.join("head_masking.json"))).unwrap();
    let prompt = Prompt::new(fixture.prompt, Vec::new(), Vec::new());
    let log_probs = |model: &QwenVl| -> Vec<f32> {
        let batch = [Scored { prompt: &prompt, completions: vec![&fixture.completion] }];
        // transformers keeps no token from being said.
        let everything = TokenMask::new(model.config().text_config.vocab_size, []).unwrap();
        let scores = model.score(&batch, 1.0, &everything, None).unwrap();
        scores.log_probs.into_data().iter::<f32>().collect()
    };
    assert_eq!(fixture.models.len(), 3);
    for (name, expected) in fixture.models {
        let model = QwenVl::from_dir(&fixtures.join("oracle/models").join(&name), &Device::flex()).unwrap();
        // The copies that run without a head share their other weights with it: it has to stay as it was.
        for (head, masked) in expected.masked.iter().enumerate() {
            let error = relative_error(&log_probs(&model.without_head(head).unwrap()), masked);
            assert!(error < 1e-5, "{name} without head {head}: relative error {error:.1e}");
        }
        let error = relative_error(&log_probs(&model), &expected.unmasked);
        assert!(error < 1e-5, "{name}: relative error {error:.1e}");
        let heads = expected.masked.len();
        let error = model.without_head(heads).err().unwrap();
        assert!(matches!(error, Error::HeadOutOfRange { head, heads: all } if (head, all) == (heads, heads)));
        assert_eq!(error.to_string(), "there is no query head 4: the layers have 4, counted from 0");
    }
}
