//! Low-rank adapters: what they compute, what training changes, and their files.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{Device, Tensor};
use firesight_rl::clip_global_norm;
use firesight_vlm::{Component, Error, LoraConfig, Prompt, QwenVl, SaveOptions, Scored, WeightProblem, parameters};
use safetensors::SafeTensors;
use support::{Tensors, case_dirs, oracle_dir, relative_error};

const ALPHA: f64 = 6.0;
const RANK: usize = 3;

fn config() -> LoraConfig {
    let target_modules = ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"].map(str::to_owned).to_vec();
    LoraConfig { rank: RANK, alpha: ALPHA, target_modules }
}

/// Model directories of the oracle, one of each family.
fn directories() -> Vec<PathBuf> {
    let mut dirs = case_dirs(&oracle_dir().join("models"));
    dirs.retain(|dir| dir.join("model.safetensors").is_file());
    assert!(dirs.len() >= 3);
    dirs
}

fn prompt() -> Prompt {
    Prompt::new(vec![5, 6, 7, 8], Vec::new(), Vec::new())
}

/// Sum of the log-probabilities of a completion, with its graph.
fn objective(model: &QwenVl) -> Tensor<1> {
    let completion: &[u32] = &[9, 10, 11, 12, 13];
    let prompt = prompt();
    let batch = [Scored { prompt: &prompt, completions: vec![completion] }];
    model.score(&batch, 1.0, &model.token_mask([]).unwrap(), None).unwrap().log_probs.sum()
}

fn logits(model: &QwenVl) -> Vec<f32> {
    model.prompt_logits(&[&prompt()]).unwrap().into_data().try_to_vec().unwrap()
}

/// Shape and values of every parameter, by its id, or of its gradient.
struct Values<'a> {
    gradients: Option<&'a GradientsParams>,
    found: BTreeMap<ParamId, (Vec<usize>, Vec<f32>)>,
}

impl ModuleVisitor for Values<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let value = match self.gradients {
            Some(gradients) => gradients.get::<D>(param.id),
            None => Some(param.val()),
        };
        if let Some(value) = value {
            let shape = value.dims().to_vec();
            self.found.insert(param.id, (shape, value.into_data().try_to_vec().unwrap()));
        }
    }
}

/// By published name; factors of adapters by their path.
fn values(model: &QwenVl, gradients: Option<&GradientsParams>) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let mut visitor = Values { gradients, found: BTreeMap::new() };
    model.visit(&mut visitor);
    let names = parameters(model).into_iter();
    names.filter_map(|parameter| Some((parameter.name, visitor.found.remove(&parameter.id)?))).collect()
}

/// `a b` of `[m, k]` and `[k, n]`, in f64.
fn product(a: impl Fn(usize, usize) -> f32, b: impl Fn(usize, usize) -> f32, [m, k, n]: [usize; 3]) -> Vec<f32> {
    let cell = |row: usize, column: usize| (0..k).map(|i| f64::from(a(row, i)) * f64::from(b(i, column))).sum::<f64>();
    (0..m)
        .flat_map(|row| (0..n).map(move |column| (row, column)))
        .map(|(row, column)| cell(row, column) as f32)
        .collect()
}

/// Two steps of AdamW, which leave no factor at zero.
fn trained(model: QwenVl) -> QwenVl {
    let mut optimizer = AdamWConfig::new().init();
    let mut model = model;
    for _ in 0..2 {
        let gradients = GradientsParams::from_grads(objective(&model).backward(), &model);
        let (gradients, _) = clip_global_norm(&model, gradients, None).unwrap();
        model = optimizer.step(1e-2, model, gradients);
    }
    model
}

#[test]
fn a_fresh_adapter_changes_nothing_and_a_trained_one_nothing_but_itself() {
    for dir in directories() {
        let base = QwenVl::from_dir(&dir, &Device::flex()).unwrap().train();
        let fresh = base.clone().with_lora(&config(), true, 0).unwrap();
        assert_eq!(logits(&fresh.valid()), logits(&base.valid()));
        let adapted = trained(fresh.clone());
        assert!(relative_error(&logits(&adapted.valid()), &logits(&base.valid())) > 1e-3);
        let (before, after) = (values(&fresh, None), values(&adapted, None));
        for parameter in parameters(&adapted) {
            let same = before[&parameter.name] == after[&parameter.name];
            // A text never reaches the vision tower, so nothing there moved; weight decay is off.
            let reached = parameter.component == Component::Decoder;
            assert_eq!(parameter.trainable, parameter.adapter, "{}", parameter.name);
            assert!(same || parameter.adapter, "{} changed", parameter.name);
            assert!(!(same && parameter.adapter && reached), "{} did not change", parameter.name);
        }
    }
}

/// Adapters of Qwen2.5-VL from before transformers 4.52 name its layers as its files do.
#[test]
fn published_names_are_read_as_well() {
    let mut read = 0;
    for dir in directories() {
        let base = QwenVl::from_dir(&dir, &Device::flex()).unwrap().train();
        let adapted = trained(base.clone().with_lora(&config(), true, 2).unwrap());
        let parent = tempfile::tempdir().unwrap();
        let adapter = parent.path().join("adapter");
        adapted.save_adapter(&adapter, "base").unwrap();
        if adapted.config().model_type != "qwen2_5_vl" {
            continue;
        }
        let file = adapter.join("adapter_model.safetensors");
        let bytes = std::fs::read(&file).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let renamed = tensors.tensors().into_iter().map(|(name, view)| {
            (name.replace("model.language_model.", "model.").replace("model.visual.", "visual."), view)
        });
        std::fs::write(&file, safetensors::serialize(renamed.collect::<Vec<_>>(), None).unwrap()).unwrap();
        let again = base.with_adapter(&adapter).unwrap();
        assert_eq!(logits(&again.valid()), logits(&adapted.valid()));
        read += 1;
    }
    assert!(read > 0);
}

/// Against the gradient of the merged weight `W + scale * a b`: `da = scale * G bT`, `db = scale * aT G`.
#[test]
fn gradients_of_the_factors_follow_from_that_of_the_merged_weight() {
    for dir in directories() {
        let base = QwenVl::from_dir(&dir, &Device::flex()).unwrap().train();
        let adapted = trained(base.with_lora(&config(), false, 1).unwrap());
        let merged = adapted.valid().materialize();
        let merged = merged.train().unfreeze();
        let full = GradientsParams::from_grads(objective(&merged).backward(), &merged);
        let full = values(&merged, Some(&full));
        let found = GradientsParams::from_grads(objective(&adapted).backward(), &adapted);
        let (found, factors) = (values(&adapted, Some(&found)), values(&adapted, None));
        assert!(found.keys().all(|name| name.contains(".lora.")), "a frozen weight has a gradient");
        let mut compared = 0;
        for (name, (shape, a)) in &factors {
            let Some(weight) = name.strip_suffix(".lora.a") else { continue };
            let (inputs, b_name) = (shape[0], format!("{weight}.lora.b"));
            let (b_shape, b) = &factors[&b_name];
            let (outputs, scale) = (b_shape[1], (ALPHA / RANK as f64) as f32);
            let gradient = &full[weight].1;
            let [a, b] = [a, b].map(|values| values.iter().map(|value| value * scale).collect::<Vec<f32>>());
            let da = product(|i, o| gradient[i * outputs + o], |o, r| b[r * outputs + o], [inputs, outputs, RANK]);
            let db = product(|r, i| a[i * RANK + r], |i, o| gradient[i * outputs + o], [RANK, inputs, outputs]);
            for (name, expected) in [(name, da), (&b_name, db)] {
                let error = relative_error(&found[name].1, &expected);
                assert!(error < 1e-4, "{}: {name}: {error:.1e}", dir.display());
                compared += 1;
            }
        }
        assert!(compared >= 20, "only {compared} factors compared");
    }
}

#[test]
fn adapters_and_merged_weights_survive_their_files() {
    for dir in directories() {
        let base = QwenVl::from_dir(&dir, &Device::flex()).unwrap().train();
        let adapted = trained(base.clone().with_lora(&config(), true, 2).unwrap());
        let expected = logits(&adapted.valid());
        let parent = tempfile::tempdir().unwrap();
        let (adapter, merged) = (parent.path().join("adapter"), parent.path().join("merged"));
        adapted.save_adapter(&adapter, "somewhere/base").unwrap();
        let again = base.clone().with_adapter(&adapter).unwrap();
        assert_eq!(logits(&again.valid()), expected);
        // To be asked only, without autodiff.
        let asked = QwenVl::from_dir(&dir, &Device::flex()).unwrap().with_adapter(&adapter).unwrap();
        assert_eq!(logits(&asked), expected);
        assert_eq!(again.lora().unwrap().rank, RANK);

        adapted.save(&merged, &dir, SaveOptions::default()).unwrap();
        let merged = QwenVl::from_dir(&merged, &Device::flex()).unwrap();
        assert!(relative_error(&logits(&merged), &expected) < 1e-6);

        // PEFT's layout: A is [rank, inputs], B [outputs, rank], named after the layers as transformers holds them.
        let file = Tensors::read(&adapter.join("adapter_model.safetensors"));
        let decoder = if merged.config().vision_config.is_some() { "model.language_model" } else { "model" };
        let layer = format!("base_model.model.{decoder}.layers.0.self_attn.q_proj");
        let (hidden, text) = (merged.config().text_config.hidden_size, &merged.config().text_config);
        assert_eq!(file.f32(&format!("{layer}.lora_A.weight")).0, [RANK, hidden]);
        assert_eq!(file.f32(&format!("{layer}.lora_B.weight")).0, [text.num_attention_heads * text.head_dim, RANK]);
        let written = support::json(&adapter.join("adapter_config.json"));
        assert_eq!(
            (&written["peft_type"], &written["r"], &written["lora_alpha"]),
            (&"LORA".into(), &3.into(), &6.0.into())
        );
        assert!(
            written["target_modules"].as_array().unwrap().iter().any(|name| layer.ends_with(name.as_str().unwrap()))
        );
    }
}

#[test]
fn what_does_not_fit_is_named() {
    let dir = &directories()[0];
    let base = QwenVl::from_dir(dir, &Device::flex()).unwrap().train();
    let stranger = LoraConfig { target_modules: vec!["c_attn".into()], ..config() };
    let error = base.clone().with_lora(&stranger, false, 0).unwrap_err().to_string();
    assert!(error.contains("c_attn") && error.contains("q_proj"), "{error}");
    for useless in [
        LoraConfig { rank: 0, ..config() },
        LoraConfig { alpha: f64::NAN, ..config() },
        LoraConfig { target_modules: Vec::new(), ..config() },
        // A layer of the vision tower alone, which stays as it is.
        LoraConfig { target_modules: vec!["qkv".into()], ..config() },
    ] {
        assert!(matches!(base.clone().with_lora(&useless, false, 0), Err(Error::Lora { .. })), "{useless:?}");
    }

    let parent = tempfile::tempdir().unwrap();
    let adapter = parent.path().join("adapter");
    assert!(matches!(base.save_adapter(&adapter, "base"), Err(Error::Lora { .. })));
    base.clone().with_lora(&config(), false, 0).unwrap().save_adapter(&adapter, "base").unwrap();
    let config = adapter.join("adapter_config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    for (from, to, field) in [
        ("\"use_dora\": false", "\"use_dora\": true", "use_dora"),
        ("\"LORA\"", "\"IA3\"", "peft_type"),
        ("\"bias\": \"none\"", "\"bias\": \"all\"", "bias"),
    ] {
        assert!(text.contains(from), "{text}");
        std::fs::write(&config, text.replace(from, to)).unwrap();
        let error = base.clone().with_adapter(&adapter).unwrap_err().to_string();
        assert!(error.contains("adapter_config.json") && error.contains(field), "{error}");
    }
    std::fs::write(&config, text.replace("\"r\": 3", "\"r\": 4")).unwrap();
    let error = base.clone().with_adapter(&adapter).unwrap_err();
    let Error::Weights { problems, .. } = &error else { panic!("{error}") };
    assert!(problems.len() >= 10 && problems.iter().all(|problem| matches!(problem, WeightProblem::Shape { .. })));
    std::fs::write(&config, text).unwrap();
    // What an adapter holds beside the factors would be missed.
    let file = adapter.join("adapter_model.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let known = tensors.names()[0].to_owned();
    let stranger = known.replace(".weight", ".bias");
    let mut more = tensors.tensors();
    more.push((stranger.clone(), tensors.tensor(&known).unwrap()));
    std::fs::write(&file, safetensors::serialize(more, None).unwrap()).unwrap();
    match base.clone().with_adapter(&adapter).unwrap_err() {
        Error::Weights { problems, .. } => assert_eq!(problems, [WeightProblem::Superfluous { name: stranger }]),
        other => panic!("{other}"),
    }
    let name = Path::new("nowhere");
    assert!(base.with_adapter(name).unwrap_err().to_string().contains("nowhere"));
}

#[test]
fn frozen_components_have_no_gradient() {
    let dir = directories().into_iter().find(|dir| dir.join("preprocessor_config.json").is_file()).unwrap();
    let model = QwenVl::from_dir(&dir, &Device::flex()).unwrap().train().with_frozen(&[Component::Vision]);
    for parameter in parameters(&model) {
        assert_eq!(parameter.trainable, parameter.component != Component::Vision, "{}", parameter.name);
    }
    let gradients = GradientsParams::from_grads(objective(&model).backward(), &model);
    assert!(values(&model, Some(&gradients)).len() > 10);
}

#[test]
fn a_head_is_masked_with_its_part_of_the_adapters() {
    for dir in directories() {
        let base = QwenVl::from_dir(&dir, &Device::flex()).unwrap().train();
        let adapted = trained(base.clone().with_lora(&config(), true, 0).unwrap());
        let masked = adapted.without_head(1).unwrap();
        let merged = adapted.valid().materialize();
        assert!(masked.lora().is_none() && parameters(&masked).iter().all(|parameter| !parameter.adapter));
        assert_eq!(logits(&masked), logits(&merged.without_head(1).unwrap()));
        for (name, other) in [("adapters", base.without_head(1).unwrap()), ("head", merged)] {
            assert!(relative_error(&logits(&masked), &logits(&other)) > 1e-3, "without {name}");
        }
    }
}
