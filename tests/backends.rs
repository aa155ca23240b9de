//! Another device against the CPU: a step with KAWHI, drawing, and ten steps of the main job. `tests/backends.sh` runs it
//! on wgpu, together with the oracle's cases on that device.
//!
//! `FIRESIGHT_DEVICE=cuda cargo test --workspace --features cuda --test backends -- --include-ignored --nocapture`
#![allow(clippy::unwrap_used)]

#[path = "support/metrics.rs"]
mod metrics;
#[path = "support/parity.rs"]
mod parity;
mod support;

use std::path::Path;
use std::sync::Arc;

use burn::module::Module as _;
use burn::optim::AdamWConfig;
use burn::tensor::activation::{log_softmax, softmax};
use burn::tensor::{DType, Device, IndexingUpdateOp, Int, Tensor};
use firesight_kawhi::{Granularity, KawhiConfig, SgufConfig};
use firesight_rl::{Algorithm, Group, MicroBatch, Options, Sampler as _, Sampling, Trainer, Update};
use firesight_train::task::{Charts, Picture};
use firesight_train::{
    Destination, Ending, Progress, Purpose, Questions, RunConfig, Stop, VlmPolicy, VlmPrompt, device, run,
};
use firesight_vlm::{ModelConfig, Processor, QwenVl};
use metrics::metrics;
use parity::Parity;
use support::models::weights;
use support::{device_name, relative_error, tolerance};

const FAMILIES: [&str; 2] = ["qwen-small", "qwen2.5-small"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn policy(family: &str, device: &Device) -> VlmPolicy {
    let directory = root().join("models").join(family);
    let model = QwenVl::new(&ModelConfig::from_dir(&directory).unwrap(), 0, &device.clone().autodiff());
    VlmPolicy::new(model, Arc::new(Processor::from_dir(&directory).unwrap())).unwrap()
}

fn cpu() -> Device {
    device("flex").unwrap()
}

fn other() -> Device {
    assert_ne!(device_name(), "flex", "FIRESIGHT_DEVICE has to name another device than the CPU");
    support::device()
}

fn sampling() -> Sampling {
    Sampling { temperature: 1.0, max_tokens: 12, seed: 2, first_stream: 0 }
}

fn prompts(policy: &VlmPolicy) -> Vec<VlmPrompt> {
    let questions = Questions::new(Charts::new().unwrap(), policy.processor().clone(), 0);
    let questions = questions.batch(Purpose::Reinforcement, 0, 3).unwrap();
    questions.into_iter().map(|question| question.prompt).collect()
}

fn trainer(policy: VlmPolicy) -> Trainer<VlmPolicy> {
    let config = KawhiConfig {
        // Leaves nothing to chance: SGUF keeps no cell of a weak component.
        sguf: SgufConfig { r_skip: 1.0, ..SgufConfig::default() },
        // A model this fresh writes no paragraphs.
        granularity: Granularity::Token,
        ..KawhiConfig::default()
    };
    let credit = policy.kawhi(config).unwrap();
    let options = Options {
        prompts_per_sampling_batch: 2,
        micro_batch: MicroBatch::Groups(2),
        mini_batches: 2,
        ..Options::new(4, sampling())
    };
    // An epsilon above the noise of gradients that are zero but for rounding, which AdamW would blow up to whole steps.
    let optimizer = AdamWConfig::new().with_epsilon(1e-3).init();
    Trainer::new(policy, optimizer, Algorithm { kl: None, ..Algorithm::grpo() }, credit, options).unwrap()
}

fn check(what: &str, found: &[f32], expected: &[f32]) {
    let error = relative_error(found, expected);
    println!("{what:60} {error:.1e}");
    assert!(error < tolerance(), "{what}: relative error {error:.2e}");
}

/// One update of the same rollout: its report, and how far the weights moved.
fn updated(family: &str, device: &Device, groups: &[Group<VlmPrompt>]) -> (Update, Vec<f32>) {
    let mut trainer = trainer(policy(family, device));
    let before = weights(&trainer.policy);
    let update = trainer.update(groups, 1e-3).unwrap();
    let after = weights(&trainer.policy);
    (update, after.iter().zip(&before).map(|(after, before)| after - before).collect())
}

/// What backends are free to do differently, and what this project takes to be the same.
#[test]
#[ignore = "needs another device than the CPU"]
fn operations_that_backends_differ_in_agree() {
    type Found = Vec<(&'static str, Vec<f32>)>;
    let on = |device: &Device| -> Found {
        let floats = |tensor: Tensor<2>| tensor.into_data().iter::<f32>().collect::<Vec<f32>>();
        let integers =
            |tensor: Tensor<2, Int>| tensor.into_data().iter::<i64>().map(|i| i as f32).collect::<Vec<f32>>();
        let x = Tensor::<2>::from_floats([[1.5, -2.0, 3.25, 3.25], [0.0, -0.5, -7.0, 1e-3]], device);
        let rows = Tensor::<2, Int>::from_ints([[3, 0, 0, 1], [2, 2, 2, 2]], device);
        let line = Tensor::<1, Int>::from_ints([1, 0, 1, 1, 0], device);
        let settings = device.settings();
        println!("{device:?}: {:?}, {:?}, {:?}", settings.float_dtype, settings.int_dtype, settings.bool_dtype);
        for dtype in [DType::F64, DType::F16, DType::BF16, DType::I64, DType::I8, DType::U8] {
            println!("    {dtype:?}: {}", device.supports_dtype(dtype));
        }
        let leaf = Tensor::<2>::from_data(x.to_data(), &device.clone().autodiff()).require_grad();
        let used = leaf.clone().select(0, Tensor::from_data(line.to_data(), &device.clone().autodiff()));
        let squares = used.square().sum().backward();
        vec![
            ("gather", floats(x.clone().gather(1, rows.clone()))),
            // Token ids of a vocabulary do not fit sixteen bits, and positions in pixels do not fit eight.
            ("large integers", integers(rows.clone() * 151_936 + 65_537)),
            ("integer division", integers((rows.clone() - 2) / 2)),
            ("integers as floats", floats(rows.clone().float() / 3.0)),
            ("scatter of repeated indices", floats(x.zeros_like().scatter(1, rows, x.clone(), IndexingUpdateOp::Add))),
            ("select of repeated rows", floats(x.clone().select(0, line))),
            ("gradient of that", floats(leaf.grad(&squares).unwrap())),
            ("the first of equals", integers(x.clone().argmax(1))),
            ("mask_fill", floats(x.clone().mask_fill(x.clone().lower_elem(0.0), -1e30))),
            ("softmax of masked", floats(softmax(x.clone().mask_fill(x.clone().lower_elem(0.0), -1e30), 1))),
            (
                "softmax of minus infinity",
                floats(softmax(x.clone().mask_fill(x.clone().lower_elem(0.0), f32::NEG_INFINITY), 1)),
            ),
            ("log_softmax", floats(log_softmax(x.clone() * 30.0, 1))),
            ("exp, where it is tiny", floats((x.clone() * 12.0 - 40.0).exp())),
            ("erf", floats(x.clone().erf())),
            ("not a number", integers(x.clone().log().is_nan().int())),
            ("infinity", integers((x.clone() / 0.0).is_inf().int())),
        ]
    };
    let (expected, found) = (on(&cpu()), on(&other()));
    for ((what, expected), (_, found)) in expected.iter().zip(&found) {
        check(what, found, expected);
    }
}

#[test]
#[ignore = "needs another device than the CPU"]
fn a_kawhi_step_is_that_of_the_cpu() {
    for family in FAMILIES {
        let mut drawing = trainer(policy(family, &cpu()));
        let drawn = prompts(&drawing.policy);
        let mut groups = drawing.rollout(&Parity, &drawn).unwrap().groups;
        // Found while drawing, on the CPU; each device is to find it itself.
        groups.iter_mut().flat_map(|group| &mut group.completions).for_each(|completion| completion.observed = None);
        let (expected, expected_change) = updated(family, &cpu(), &groups);
        let (found, change) = updated(family, &other(), &groups);
        assert_eq!(found.optimizer_steps, 2);
        let credit = |update: &Update| -> Vec<f32> {
            update.credit.iter().flatten().flat_map(|credit| credit.weights.iter().copied()).collect()
        };
        assert!(credit(&expected).iter().any(|&weight| weight < 0.9), "KAWHI has nothing to tell apart");
        check(&format!("{family}: weights of credit"), &credit(&found), &credit(&expected));
        for name in ["loss/policy", "grad/norm", "entropy/mean"] {
            let value = |update: &Update| update.metrics.iter().find(|(found, _)| found == name).unwrap().1 as f32;
            check(&format!("{family}: {name}"), &[value(&found)], &[value(&expected)]);
        }
        check(&format!("{family}: change of all weights"), &change, &expected_change);
    }
}

#[test]
#[ignore = "needs another device than the CPU"]
fn drawn_completions_are_those_of_the_cpu() {
    for family in FAMILIES {
        let [expected, found] = [cpu(), other()].map(|device| {
            let policy = policy(family, &device).valid();
            policy.sample(&prompts(&policy), 4, sampling()).unwrap().concat()
        });
        let tokens: usize = expected.iter().map(|completion| completion.tokens.len()).sum();
        println!("{family}: {tokens} drawn tokens");
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!(found.tokens, expected.tokens, "{family}");
        }
        let log_probs = |completions: &[firesight_rl::Completion]| -> Vec<f32> {
            completions.iter().flat_map(|completion| completion.log_probs.iter().copied()).collect()
        };
        check(&format!("{family}: log-probabilities of drawn tokens"), &log_probs(&found), &log_probs(&expected));
    }
}

/// The main job, cut down to ten steps of few examples. A model this fresh earns no reward, so here it earns one for
/// whatever tells completions apart.
fn small(device: &str) -> RunConfig {
    let root = root();
    let mut config = RunConfig::from_file_with(
        &root.join("examples/configs/qwen-small.toml"),
        &[r#"rewards=[{ kind = "exact", name = "accuracy" }, { kind = "format", regex = '(?s).*[a-m02468]' }]"#.into()],
    )
    .unwrap();
    config.model = root.join(&config.model);
    config.device = device.into();
    config.threads = 1;
    config.supervised.stages = vec![Picture::ALL.to_vec()];
    config.supervised.max_steps = 5;
    config.supervised.batch_size = 4;
    config.supervised.micro_batch = 4;
    config.supervised.stop_accuracy = None;
    config.supervised.check_every = 0;
    config.reinforcement.steps = 5;
    config.reinforcement.prompts = 4;
    config.reinforcement.group_size = 4;
    // The worked answers of the warm-up have to fit.
    config.reinforcement.max_tokens = 40;
    config.reinforcement.micro_batch = MicroBatch::Groups(2);
    config.evaluation.examples = 4;
    config.evaluation.samples = 0;
    config
}

/// Says how a device lays tokens out, and nothing about the policy.
const OF_LAYOUT: &str = "tokens/padding_fraction";
/// Numbers that say how far sampler and scorer are apart, or two policies: mostly rounding in steps as small as these.
const OF_ROUNDING: [&str; 3] = ["rollout/log_prob_diff", "ratio/", "kl/"];

#[test]
#[ignore = "needs another device than the CPU"]
fn ten_steps_of_the_main_job_are_those_of_the_cpu() {
    let name = device_name();
    assert_ne!(name, "flex", "FIRESIGHT_DEVICE has to name another device than the CPU");
    let scratch = tempfile::tempdir().unwrap();
    let [expected, found] = ["flex", &name].map(|device| {
        let directory = scratch.path().join(device);
        let destination = Destination::Exactly(directory.clone());
        let ending = run(&small(device), &destination, &Stop::default(), &mut Progress::silent()).unwrap();
        assert!(matches!(ending, Ending::Complete(_)), "{ending:?}");
        metrics(&directory)
    });
    assert_eq!(found.len(), expected.len());
    let (mut trained, mut wrong) = (0, Vec::new());
    for (found, expected) in found.iter().zip(&expected) {
        let (phase, step) = (expected["phase"].as_str().unwrap_or_default(), expected["step"].as_u64().unwrap_or(0));
        for (key, expected) in expected.as_object().unwrap().iter().filter(|(key, _)| *key != OF_LAYOUT) {
            let (Some(expected), Some(found)) = (expected.as_f64(), found[key].as_f64()) else {
                assert_eq!(found[key], *expected, "{key}");
                continue;
            };
            let allowed = if OF_ROUNDING.iter().any(|prefix| key.starts_with(prefix)) { 1e-4 } else { 0.0 };
            let difference = (found - expected).abs();
            println!("{phase:>14} {step:>2} {key:40} {expected:>14.7} {difference:.1e}");
            if difference.is_nan() || difference > allowed + tolerance() * expected.abs() + 1e-6 {
                wrong.push(format!("{phase} {step} {key}: {found}, not {expected}"));
            }
        }
        trained += usize::from(expected["grad/norm"].as_f64().is_some_and(|norm| norm > 0.0));
    }
    assert_eq!(trained, 10, "every step moves the policy");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
