//! Activation checkpointing changes what is kept, not what is computed: for every case of every model directory in the
//! oracle, whatever of the model is trained. Scores are the same bit for bit, gradients but for the last: burn goes back
//! through nodes in the order of their depth, which is another one in the graph of a single layer, and a sum of three is
//! not the same in every order.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Device, FloatDType, Tensor};
use firesight_vlm::{
    AttentionPoint, AttentionProbe, Component, LoraConfig, Probe, QwenVl, ResponseStates, Scored, parameters,
};
use support::models::{Case, everything, models, scored, values};

/// What the order of a sum changes in float32.
const TOLERANCE: f64 = 2e-6;
/// And in float16, which rounds by 5e-4, for sums over 1,500 tokens: the root of their number times that. Without one of
/// the parts a third would be missing.
const HALF_TOLERANCE: f64 = 2e-2;

/// Gradients by the name of the parameter; adapters have the name of what they belong to.
struct Collect<'a> {
    gradients: &'a GradientsParams,
    path: Vec<String>,
    found: BTreeMap<String, Vec<f32>>,
}

impl ModuleVisitor for Collect<'_> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = self.gradients.get::<D>(param.id) {
            self.found.insert(self.path.join("."), values(gradient));
        }
    }
}

struct Found {
    /// Log-probabilities and entropies, and what the probe saw, one tensor after another.
    scores: Vec<Vec<f32>>,
    gradients: BTreeMap<String, Vec<f32>>,
}

fn has_images(batch: &[Scored<'_>]) -> bool {
    batch.iter().any(|item| !item.prompt.images().is_empty())
}

/// Scores of a batch, its signals, and the gradient of a loss that weighs every token and every entropy differently.
fn run(model: &QwenVl, batch: &[Scored<'_>]) -> Found {
    let attention = AttentionProbe {
        point: AttentionPoint::AfterRope,
        response: ResponseStates::Queries,
        heads: None,
        visual_tokens: None,
    };
    let probe = Probe { attention: Some(attention), image_attention: has_images(batch), ..Probe::default() };
    let mut scores = model.score(batch, 0.8, &everything(model), Some(&probe)).unwrap();
    let [rows, tokens] = scores.log_probs.dims();
    let weights = Tensor::<1>::from_floats(
        (0..rows * tokens).map(|i| (i * 29 % 17) as f32 / 17.0 - 0.4).collect::<Vec<_>>().as_slice(),
        &Device::flex(),
    )
    .reshape([rows, tokens]);
    let loss = (scores.log_probs.clone() * weights.clone()).sum() + (scores.entropy.clone() * weights.flip([1])).sum();
    let probed = std::mem::take(&mut scores.probed);
    let attention = probed.attention.unwrap();
    let received = probed.image_attention.into_iter().flatten().map(values);
    let states = attention.visual_keys.into_iter().chain([attention.response]).map(values);
    let of_tokens = [values(scores.log_probs.clone()), values(scores.entropy.clone())];
    let gradients = scores.backward(&loss, model);
    let mut collect = Collect { gradients: &gradients, path: Vec::new(), found: BTreeMap::new() };
    model.visit(&mut collect);
    Found { scores: of_tokens.into_iter().chain(states).chain(received).collect(), gradients: collect.found }
}

/// Without the CPU's own operations, which are for float32, the head runs again as well, part by part.
#[test]
fn so_they_are_in_half_precision() {
    for (dir, cases) in models() {
        let model = QwenVl::from_dir_as(&dir, FloatDType::F16, &Device::flex().autodiff()).unwrap().train();
        let checkpointed = model.clone().with_activation_checkpointing(true);
        for case in &cases {
            let tokens: usize = case.rows.iter().map(|(_, completion)| completion.len()).sum();
            // More than the 1,024 of a part.
            let times = 1500 / tokens + 1;
            let group = |(prompt, completion)| Scored { prompt, completions: vec![completion; times] };
            let batch: Vec<Scored<'_>> =
                case.rows.iter().map(|(prompt, row)| group((prompt, row.as_slice()))).collect();
            let (found, expected) = (run(&checkpointed, &batch), run(&model, &batch));
            compare(&found, &expected, [HALF_TOLERANCE; 2], &format!("{} in float16", case.name));
        }
    }
}

#[test]
fn gradients_are_those_of_one_graph() {
    let lora = |layers: &[&str]| LoraConfig {
        rank: 2,
        alpha: 4.0,
        target_modules: layers.iter().map(ToString::to_string).collect(),
    };
    let towers = [Component::Vision, Component::Merger];
    let mut with_images = 0;
    for (dir, cases) in models() {
        let load = || QwenVl::from_dir(&dir, &Device::flex().autodiff()).unwrap();
        let whole = load().train();
        let vision = whole.config().vision_config.is_some();
        let mut choices = vec![
            ("everything", whole),
            ("adapters", load().with_lora(&lora(&["q_proj", "down_proj"]), false, 3).unwrap()),
            ("embeddings alone", load().train().with_frozen(&[&towers[..], &[Component::Decoder]].concat())),
        ];
        if vision {
            choices.push(("all but the tower", load().train().with_frozen(&towers)));
            choices.push(("all but the blocks", load().train().with_frozen(&[Component::Vision])));
            choices.push(("the tower alone", load().train().with_frozen(&[Component::Decoder, Component::Embeddings])));
            choices.push(("adapters in the tower", load().with_lora(&lora(&["v_proj", "qkv"]), true, 3).unwrap()));
        }
        for (choice, model) in choices {
            let checkpointed = model.clone().with_activation_checkpointing(true);
            // A tower has nothing to learn of text.
            let sees = |case: &&Case| choice != "the tower alone" || has_images(&scored(case));
            for case in cases.iter().filter(sees) {
                let batch = scored(case);
                with_images += usize::from(has_images(&batch));
                let (found, expected) = (run(&checkpointed, &batch), run(&model, &batch));
                let trained = parameters(&model).iter().filter(|parameter| parameter.trainable).count();
                assert!(!expected.gradients.is_empty() && expected.gradients.len() <= trained, "{choice}");
                compare(&found, &expected, [0.0, TOLERANCE], &format!("{} {choice}", case.name));
            }
        }
    }
    assert!(with_images > 0, "no case with images");
}

/// Holds scores and signals to one tolerance, gradients to another.
fn compare(found: &Found, expected: &Found, tolerances: [f64; 2], what: &str) {
    let [of_scores, of_gradients] = tolerances;
    assert_eq!(found.scores.len(), expected.scores.len(), "{what}");
    for (number, (found, expected)) in found.scores.iter().zip(&expected.scores).enumerate() {
        let error = support::relative_error(found, expected);
        assert!(error <= of_scores, "{what}: scores or signals, tensor {number}: off by {error:.1e}");
    }
    let names = |found: &Found| found.gradients.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(found), names(expected), "{what}");
    for (name, expected) in &expected.gradients {
        let error = support::relative_error(&found.gradients[name], expected);
        assert!(error <= of_gradients, "{what}: gradient of {name} is off by {error:.1e}");
    }
}
