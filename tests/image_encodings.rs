//! Guarantee 12: no second image encoding unless the settings need one. The vision tower logs every image it encodes.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use burn::module::{Module, ModuleVisitor, Param, ParamGroup};
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::{Device, Tensor};
use firesight_kawhi::{KawhiConfig, RegionSelection};
use firesight_rl::{
    Algorithm, Completion, CreditAssigner, CreditList, Group, KlPenalty, KlPlacement, MicroBatch, Options, Policy,
    Reward, RewardFailure, Sampler, Sampling, SignalSet, Threads, Trainer, Uniform,
};
use firesight_train::task::Charts;
use firesight_train::{BoxFrame, Grader, Greedy, Purpose, Question, Questions, RunConfig, VlmPolicy, VlmPrompt};
use firesight_vlm::{Component, LoraConfig, ModelConfig, Processor, QwenVl, parameters};
use log::{LevelFilter, Log, Metadata, Record};

const PROMPTS: usize = 4;
const SAMPLING: Sampling = Sampling { temperature: 0.8, max_tokens: 6, seed: 5, first_stream: 0 };

/// Counts what the vision tower logs.
struct Counter(AtomicUsize);

static COUNTER: Counter = Counter(AtomicUsize::new(0));
/// Held by every test: another one at the same time would count its images, too.
static ALONE: Mutex<()> = Mutex::new(());

impl Log for Counter {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "firesight_vlm::vision"
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn flush(&self) {}
}

fn alone() -> MutexGuard<'static, ()> {
    let alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    // Only the first test gets to set it.
    let _ = log::set_logger(&COUNTER);
    log::set_max_level(LevelFilter::Trace);
    alone
}

/// Images that were encoded since the last call.
fn encoded() -> usize {
    COUNTER.0.swap(0, Ordering::SeqCst)
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Tower {
    Frozen,
    FrozenWithLora,
    Trained,
    TrainedWithLora,
}

fn policy(family: &str, seed: u64, tower: Tower) -> VlmPolicy {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(family);
    let model = QwenVl::new(&ModelConfig::from_dir(&directory).unwrap(), seed, &Device::flex().autodiff());
    let names = ["q_proj", "v_proj", "down_proj", "proj"].map(str::to_owned);
    let lora = |count| LoraConfig { rank: 4, alpha: 8.0, target_modules: names[..count].to_vec() };
    let model = match tower {
        Tower::Frozen => model.with_frozen(&[Component::Vision, Component::Merger]),
        Tower::FrozenWithLora => model.with_lora(&lora(3), false, 0).unwrap(),
        Tower::Trained => model,
        Tower::TrainedWithLora => model.with_lora(&lora(4), true, 0).unwrap(),
    };
    VlmPolicy::new(model, Arc::new(Processor::from_dir(&directory).unwrap())).unwrap()
}

fn questions(policy: &VlmPolicy) -> Vec<Question> {
    let questions = Questions::new(Charts::new().unwrap(), policy.processor().clone(), 0);
    questions.batch(Purpose::Reinforcement, 0, PROMPTS).unwrap()
}

fn grader() -> Grader {
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/configs/qwen-small.toml");
    Grader::new(&RunConfig::from_file(&config).unwrap().rewards, BoxFrame::Thousand).unwrap()
}

fn prompts(policy: &VlmPolicy) -> Vec<VlmPrompt> {
    questions(policy).into_iter().map(|question| question.prompt).collect()
}

fn kawhi(policy: &VlmPolicy, regions: RegionSelection) -> Box<dyn CreditAssigner<VlmPrompt> + Send> {
    Box::new(policy.kawhi(KawhiConfig { regions, ..KawhiConfig::default() }).unwrap())
}

/// A trainer of strictly on-policy steps without anything that costs a pass of its own.
fn trainer(policy: VlmPolicy, change: impl FnOnce(&mut Algorithm, &mut Options)) -> Trainer<VlmPolicy> {
    let mut algorithm = Algorithm { kl: None, ..Algorithm::grpo() };
    let mut options = Options {
        prompts_per_sampling_batch: 3,
        micro_batch: MicroBatch::Groups(1),
        threads: 2,
        ..Options::new(4, SAMPLING)
    };
    change(&mut algorithm, &mut options);
    Trainer::new(policy, AdamWConfig::new().init(), algorithm, Uniform, options).unwrap()
}

/// A step in which every group has something to learn from.
fn step(trainer: &mut Trainer<VlmPolicy>) {
    let mut groups = trainer.rollout(&grader(), &questions(&trainer.policy)).unwrap().groups;
    for group in &mut groups {
        group.rewards = (0..4).map(|index| Reward::of("index", index as f32)).collect();
    }
    trainer.update(&groups, 1e-3).unwrap();
}

type Change = fn(&mut Algorithm, &mut Options);

/// What makes further passes, and how many of them.
const SETTINGS: [(&str, usize, Change); 8] = [
    ("on-policy", 0, |_, _| ()),
    ("penalty in the loss", 1, |algorithm, _| algorithm.kl = Some(KlPenalty::new(0.1))),
    ("penalty in the reward", 1, |algorithm, _| {
        algorithm.kl = Some(KlPenalty { placement: KlPlacement::Reward, ..KlPenalty::new(0.1) });
    }),
    ("kawhi, one mini-batch", 0, |_, _| ()),
    // The passes that draw hand out what credit is read from.
    ("kawhi, two mini-batches", 0, |_, options| options.mini_batches = 2),
    ("kawhi with VisionZip", 0, |_, _| ()),
    ("two passes", 1, |_, options| options.passes_per_rollout = 2),
    // Room for a prompt and one completion: every group is cut into its four completions.
    ("parts of groups", 3, |_, options| options.micro_batch = MicroBatch::Tokens(1)),
];

#[test]
fn a_frozen_tower_encodes_an_image_once_and_a_trained_one_only_where_a_pass_needs_it() {
    let _alone = alone();
    for family in ["qwen-small", "qwen2.5-small"] {
        for tower in [Tower::Frozen, Tower::FrozenWithLora, Tower::Trained, Tower::TrainedWithLora] {
            for (name, further_passes, change) in SETTINGS {
                let mut trainer = trainer(policy(family, 0, tower), change);
                if name.starts_with("kawhi") {
                    let zip = name.ends_with("VisionZip");
                    let regions = if zip { RegionSelection::VisionZip } else { RegionSelection::Sguf };
                    trainer.credit = CreditList::of(kawhi(&trainer.policy, regions));
                }
                encoded();
                // The second step has a policy that moved, and new prompts.
                for _ in 0..2 {
                    step(&mut trainer);
                    let frozen = matches!(tower, Tower::Frozen | Tower::FrozenWithLora);
                    let each = if frozen { 1 } else { 2 + further_passes };
                    assert_eq!(encoded(), each * PROMPTS, "{family}, {tower:?}, {name}");
                }
            }
        }
    }
}

/// One completion a prompt.
fn groups(prompts: &[VlmPrompt]) -> Vec<Group<VlmPrompt>> {
    let completion = Completion { tokens: vec![5, 6, 7], ..Completion::default() };
    let group = |prompt: &VlmPrompt| Group {
        prompt: prompt.clone(),
        completions: vec![completion.clone()],
        rewards: Vec::new(),
    };
    prompts.iter().map(group).collect()
}

/// Their log-probabilities.
fn score(policy: &VlmPolicy, prompts: &[VlmPrompt]) -> Tensor<2> {
    policy.score(&groups(prompts), 1.0, &SignalSet::default()).unwrap().log_probs
}

fn values(tensor: Tensor<2>) -> Vec<f32> {
    tensor.into_data().try_to_vec().unwrap()
}

/// All that a visitor finds: values, or gradients where there are some.
struct Flat<'a> {
    gradients: Option<&'a GradientsParams>,
    found: Vec<f32>,
}

impl ModuleVisitor for Flat<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let tensor = self.gradients.map_or_else(|| Some(param.val()), |gradients| gradients.get::<D>(param.id));
        self.found.extend(tensor.into_iter().flat_map(|tensor| tensor.into_data().try_to_vec::<f32>().unwrap()));
    }
}

fn flat(model: &QwenVl, gradients: Option<&GradientsParams>) -> Vec<f32> {
    let mut flat = Flat { gradients, found: Vec::new() };
    model.visit(&mut flat);
    flat.found
}

#[test]
fn kept_features_change_neither_log_probabilities_nor_gradients() {
    let _alone = alone();
    for family in ["qwen-small", "qwen2.5-small"] {
        let trained = policy(family, 0, Tower::Trained);
        let (mut kept, mut plain) = (trained.clone(), trained.clone());
        let towers = [Component::Vision, Component::Merger];
        kept.model = kept.model.with_frozen(&towers);
        // A model whose towers are frozen by burn alone keeps nothing.
        let ids = parameters(&trained.model).into_iter().filter(|parameter| towers.contains(&parameter.component));
        plain.model = plain.model.freeze_group(ParamGroup::from_ids(ids.map(|parameter| parameter.id).collect()));
        let prompts = prompts(&kept);
        encoded();
        kept.valid().materialize().sample(&prompts, 2, SAMPLING).unwrap();
        assert_eq!(encoded(), PROMPTS);
        let [found, expected] = [&kept, &plain].map(|policy| {
            let log_probs = score(policy, &prompts);
            let gradients = GradientsParams::from_grads(log_probs.clone().sum().backward(), &policy.model);
            (values(log_probs), flat(&policy.model, Some(&gradients)), encoded())
        });
        assert_eq!((found.2, expected.2), (0, PROMPTS));
        for (what, found, expected) in [("log-probabilities", found.0, expected.0), ("gradients", found.1, expected.1)]
        {
            assert!(found.len() == expected.len() && expected.iter().any(|value| *value != 0.0));
            let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|value| value * value).sum::<f32>().sqrt();
            let error =
                norm(&mut found.iter().zip(&expected).map(|(a, b)| a - b)) / norm(&mut expected.iter().copied());
            println!("{family} {what}: {error:.1e}");
            assert!(error < 1e-6, "{family} {what}: {error:.1e}");
        }
    }
}

/// Bits of a result must not tell which pass came first, what was beside a prompt then, or the number of threads.
#[test]
fn the_first_pass_leaves_no_trace() {
    let _alone = alone();
    let policy = policy("qwen2.5-small", 0, Tower::Frozen);
    let alone_first = values(score(&policy, &prompts(&policy)[1..2]));
    let prompts = prompts(&policy);
    policy.valid().materialize().sample(&prompts, 2, SAMPLING).unwrap();
    assert_eq!(values(score(&policy, &prompts[1..2])), alone_first);

    let weights = [1, 2].map(|threads| {
        let mut trainer = trainer(policy.clone(), |_, options| {
            options.threads = threads;
            options.micro_batch = MicroBatch::Tokens(1);
        });
        step(&mut trainer);
        step(&mut trainer);
        flat(&trainer.policy.model, None)
    });
    assert!(weights[0] == weights[1], "threads show");
    assert!(weights[0] != flat(&policy.model, None), "nothing was learnt");
}

#[test]
fn a_prompt_that_one_model_has_seen_is_new_to_another() {
    let _alone = alone();
    let [one, other] = [0, 1].map(|seed| policy("qwen-small", seed, Tower::Frozen));
    let shared = prompts(&one);
    score(&one, &shared);
    let expected = values(score(&other, &prompts(&other)));
    encoded();
    for _ in 0..2 {
        assert_eq!(values(score(&other, &shared)), expected);
    }
    assert_eq!(encoded(), 2 * PROMPTS);
    score(&one, &shared);
    assert_eq!(encoded(), 0);

    // An unfrozen tower runs again, with gradients and without.
    let thawed = one.unfreeze();
    let gradients = GradientsParams::from_grads(score(&thawed, &shared).sum().backward(), &thawed.model);
    assert_eq!(flat(&thawed.model, Some(&gradients)).len(), flat(&thawed.model, None).len());
    score(&thawed.valid().materialize(), &shared);
    assert_eq!(encoded(), 2 * PROMPTS);
}

/// Held-out prompts live as long as a run, and their features would fill the device.
#[test]
fn evaluations_keep_nothing() {
    let _alone = alone();
    let policy = policy("qwen-small", 0, Tower::Frozen).valid();
    let questions = questions(&policy);
    let grader = grader();
    let greedy = Greedy { grader: &grader, failure: RewardFailure::Stop, max_tokens: 4, threads: Threads::Own(1) };
    encoded();
    for _ in 0..2 {
        greedy.correct(&policy, &questions).unwrap();
        assert_eq!(encoded(), PROMPTS);
    }
}

/// A frozen tower that was not asked for attention at first is asked again, once, and says what a trained one does.
#[test]
fn attention_that_is_asked_for_later_is_that_of_the_same_images() {
    let _alone = alone();
    for family in ["qwen-small", "qwen2.5-small"] {
        let [frozen, trained] = [Tower::Frozen, Tower::Trained].map(|tower| policy(family, 0, tower));
        let prompts = prompts(&frozen);
        let attention = |policy: &VlmPolicy, image_attention| -> Option<Vec<Vec<f32>>> {
            let signals = SignalSet { image_attention, ..SignalSet::default() };
            let found = policy.score(&groups(&prompts), 1.0, &signals).unwrap().signals.image_attention?;
            Some(found.into_iter().map(|found| found.into_data().iter::<f32>().collect()).collect())
        };
        encoded();
        assert!(attention(&frozen, false).is_none());
        let found = attention(&frozen, true).unwrap();
        assert_eq!(encoded(), 2 * PROMPTS);
        assert_eq!(attention(&frozen, true).unwrap(), found);
        assert_eq!(encoded(), 0);
        for (found, expected) in found.iter().zip(attention(&trained, true).unwrap()) {
            assert_eq!(found.len(), expected.len());
            assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-6), "{found:?} {expected:?}");
        }
    }
}
