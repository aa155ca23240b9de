//! Whole steps of reinforcement learning: of the main job, of a small model that other programs were timed with, and of
//! one as large as Qwen2.5-VL-3B.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use burn::module::Module as _;
use burn::optim::AdamWConfig;
use burn::tensor::{Device, FloatDType};
use comfy_table::Table;
use firesight_rl::{
    Algorithm, Completion, MicroBatch, Options, Reward, Sampling, StepReport, Task, TaskError, Trainer, Uniform,
};
use firesight_vlm::{Component, Grid, MemoryPlan, ModelConfig, Processor, QwenVl, Trained, Workload, parameters};
use serde::Serialize;

use super::{DeepDiagnosis, attempt, finish, unpacked};
use crate::Error;
use crate::config::{Dtype, RunConfig};
use crate::device::{Peaks, hardware, precision};
use crate::job::{Job, TOWER};
use crate::policy::{VlmPolicy, VlmPrompt};
use crate::questions::Purpose;
use crate::reinforcement::{peak_memory, trainer};
use crate::state::State;
use crate::table::table;

/// What a step took: drawing completions, grading them, and an update of all that is trained.
#[derive(Debug, Clone, Serialize)]
pub struct StepCost {
    /// The workload.
    pub what: String,
    /// Float type that it computes in.
    pub dtype: &'static str,
    /// Parameters of the model.
    pub parameters: u64,
    /// Those that are trained.
    pub trained_parameters: u64,
    /// Seconds of the step.
    pub seconds: f64,
    /// Of which for drawing.
    pub drawing_seconds: f64,
    /// Of which for forward and backward passes and the optimizer.
    pub update_seconds: f64,
    /// Seconds of the step before it, in which kernels are compiled and chosen.
    pub first_seconds: f64,
    /// Tokens drawn in a second of drawing.
    pub drawn_per_second: f64,
    /// Tokens, those of prompts included, that go through forward and backward pass in a second of the update.
    pub trained_per_second: f64,
    /// Bytes that the device holds afterwards, what it keeps for reuse included; of a CPU, the most that the process held.
    pub memory: Option<f64>,
    /// Model FLOP utilisation of the update (arXiv 2204.02311): the operations that forward and backward pass of the
    /// decoder cannot do without, over what the device could have done meanwhile.
    pub model_flop_utilisation: Option<f64>,
}

/// The files of the main job and the shapes of the other models.
const EMBEDDED: [(&str, &[u8]); 8] = [
    ("small.toml", include_bytes!("../../../../examples/configs/qwen-small.toml")),
    ("small/config.json", include_bytes!("../../../../models/qwen-small/config.json")),
    ("small/tokenizer.json", include_bytes!("../../../../models/qwen-small/tokenizer.json")),
    ("small/tokenizer_config.json", include_bytes!("../../../../models/qwen-small/tokenizer_config.json")),
    ("small/chat_template.jinja", include_bytes!("../../../../models/qwen-small/chat_template.jinja")),
    ("small/preprocessor_config.json", include_bytes!("../../../../models/qwen-small/preprocessor_config.json")),
    ("bench/config.json", include_bytes!("../../../../examples/configs/models/bench/config.json")),
    ("3b/config.json", include_bytes!("../../../../examples/configs/models/qwen2.5-vl-3b/config.json")),
];

pub(super) fn measure(
    name: &str,
    device: &Device,
    fast: bool,
    peaks: Peaks,
    found: &mut DeepDiagnosis,
    progress: &mut dyn FnMut(&str),
) -> Result<(), Error> {
    let files = unpacked(&EMBEDDED)?;
    let mut keep = |what: &str, step: Result<StepCost, String>| match step {
        Ok(step) => found.steps.push(step),
        Err(why) => found.left_out.push(format!("a step of {what}: {why}")),
    };
    progress("a step of the main job");
    keep("the main job", attempt(|| main_job(name, files.path(), peaks)));
    progress("a step of the bench workload");
    let bench =
        Shape { name: "bench", prompts: 4, text_tokens: 32, side: 8, completion_tokens: 64, saves_memory: false };
    keep("the bench workload", attempt(|| bench.step(name, device, files.path(), Dtype::F32, peaks)));
    progress("a step of a model with the shape of Qwen2.5-VL-3B");
    let large = Shape { name: "3b", prompts: 4, text_tokens: 64, side: 32, completion_tokens: 256, saves_memory: true };
    let fits = || {
        if !fast {
            return Err("a CPU would take hours".to_owned());
        }
        if !device.supports_dtype(FloatDType::BF16) {
            return Err(format!("{name} does not compute in bf16"));
        }
        let step = attempt(|| large.step(name, device, files.path(), Dtype::Bf16, peaks));
        // Its backend may have no memory left for saying so.
        step.map_err(|why| format!("{why}; its plan says {}", large.plan(name, files.path()).unwrap_or_default()))
    };
    keep("a model with the shape of Qwen2.5-VL-3B", fits());
    Ok(())
}

/// The main job as it is configured, but for what its answers are worth: those of a model this fresh are never right.
fn main_job(name: &str, files: &Path, peaks: Peaks) -> Result<StepCost, Error> {
    let mut config = RunConfig::from_file(&files.join("small.toml"))?;
    config.model = files.join("small");
    config.device = name.into();
    let job = Job::new(&config)?;
    let mut trainer = trainer(State::start(job.policy(&config.trainable, config.seed)?), &config)?;
    let prompts = config.reinforcement.prompts;
    let batch = |step| -> Result<Vec<VlmPrompt>, Error> {
        let questions = job.questions.batch(Purpose::Reinforcement, step * prompts, prompts)?;
        Ok(questions.into_iter().map(|question| question.prompt).collect())
    };
    let what = format!("the main job, {prompts} x {}, KAWHI", config.reinforcement.group_size);
    cost(what, Dtype::F32, &mut trainer, batch, peaks)
}

/// A workload of prompts that are all alike.
struct Shape {
    name: &'static str,
    prompts: usize,
    text_tokens: usize,
    /// Of the image in patches.
    side: usize,
    completion_tokens: usize,
    /// Whether the tower is frozen, and layers run again in the backward pass.
    saves_memory: bool,
}

/// Completions of a prompt.
const GROUP: usize = 8;

impl Shape {
    fn step(&self, name: &str, device: &Device, files: &Path, dtype: Dtype, peaks: Peaks) -> Result<StepCost, Error> {
        let config = ModelConfig::from_dir(&files.join(self.name))?;
        let processor = Arc::new(Processor::from_dir(&files.join("small"))?);
        // Weights of burn's own making: they are drawn on the device, which takes no time.
        let model = QwenVl::without_weights(&config, &device.clone().autodiff());
        let model = model.with_activation_checkpointing(self.saves_memory);
        let model = if self.saves_memory { model.with_frozen(&TOWER) } else { model };
        let model = model.with_precision(precision(name, dtype.into()));
        // So that every completion has its full length.
        let stops = processor.stop_tokens().to_vec();
        let policy = VlmPolicy::suppressing(model, processor, stops)?;
        let sampling = Sampling { temperature: 1.0, max_tokens: self.completion_tokens, seed: 0, first_stream: 0 };
        let options = Options { micro_batch: MicroBatch::Groups(1), ..Options::new(GROUP, sampling) };
        let algorithm = Algorithm { kl: None, ..Algorithm::grpo() };
        let mut trainer = Trainer::new(policy, AdamWConfig::new().init(), algorithm, Uniform, options)?;
        let prompt = self.workload().prompt(&config);
        let batch = |_| Ok((0..self.prompts).map(|_| VlmPrompt::new(prompt.clone(), 1)).collect());
        let length = self.completion_tokens;
        cost(format!("{}, {} x {GROUP} of {length} tokens", self.name, self.prompts), dtype, &mut trainer, batch, peaks)
    }

    fn workload(&self) -> Workload {
        Workload {
            prompts: 1,
            generation_prompts: self.prompts,
            completions: GROUP,
            text_tokens: self.text_tokens,
            images: vec![Grid { t: 1, h: self.side, w: self.side }],
            completion_tokens: self.completion_tokens,
        }
    }

    /// What the memory plan says of it.
    fn plan(&self, name: &str, files: &Path) -> Result<String, Error> {
        let config = ModelConfig::from_dir(&files.join(self.name))?;
        let trained = Trained { frozen: &TOWER, lora: None, activation_checkpointing: self.saves_memory };
        let plan =
            MemoryPlan::new(&config, &self.workload(), trained, hardware(name), precision(name, FloatDType::BF16));
        let peak = plan.training_peak().max(plan.generation_peak());
        Ok(format!("{:.0} GiB", peak as f64 / f64::from(1 << 30)))
    }
}

/// Every second answer is worth something, so that there is something to learn in every group, whatever is said in it.
#[derive(Default)]
struct EverySecond(AtomicUsize);

impl Task for EverySecond {
    type Sample = VlmPrompt;
    type Prompt = VlmPrompt;

    fn prompt(&self, prompt: &VlmPrompt) -> Result<VlmPrompt, TaskError> {
        Ok(prompt.clone())
    }

    fn reward(&self, _: &VlmPrompt, _: &Completion) -> Result<Reward, TaskError> {
        Ok(Reward::of("every second", (self.0.fetch_add(1, Ordering::Relaxed) % 2) as f32))
    }
}

/// Takes two steps and reports the second.
fn cost(
    what: String,
    dtype: Dtype,
    trainer: &mut Trainer<VlmPolicy>,
    batch: impl Fn(usize) -> Result<Vec<VlmPrompt>, Error>,
    peaks: Peaks,
) -> Result<StepCost, Error> {
    let device = trainer.policy.model.devices().remove(0);
    let mut step = |number| -> Result<(StepReport<VlmPrompt>, f64), Error> {
        let prompts = batch(number)?;
        let start = Instant::now();
        let report = trainer.step(&EverySecond::default(), &prompts, 1e-6)?;
        finish(&device);
        Ok((report, start.elapsed().as_secs_f64()))
    };
    let (_, first_seconds) = step(0)?;
    let (report, seconds) = step(1)?;
    let metric = |name| report.metric(name).unwrap_or(f64::NAN);
    let drawing_seconds = metric("time/sample_s");
    let update_seconds = seconds - drawing_seconds - metric("time/reward_s");
    let drawn: usize = report.groups.iter().flat_map(|group| &group.completions).map(|one| one.tokens.len()).sum();
    let trained: usize = drawn + report.groups.iter().map(|group| group.prompt.tokens().len()).sum::<usize>();
    let model = &trainer.policy.model;
    let all = parameters(model);
    let count = |chosen: &dyn Fn(&firesight_vlm::Parameter) -> bool| -> u64 {
        all.iter().filter(|parameter| chosen(parameter)).map(|parameter| parameter.count() as u64).sum()
    };
    let peak = if dtype == Dtype::F32 { peaks.single } else { peaks.half };
    let flops = flops(model.config(), count(&|parameter| parameter.component == Component::Decoder), &report);
    Ok(StepCost {
        what,
        dtype: dtype.name(),
        parameters: count(&|_| true),
        trained_parameters: count(&|parameter| parameter.trainable),
        seconds,
        drawing_seconds,
        update_seconds,
        first_seconds,
        drawn_per_second: drawn as f64 / drawing_seconds,
        trained_per_second: trained as f64 / update_seconds,
        memory: device.memory_pool_usage().map(|usage| usage.bytes_reserved as f64).or_else(peak_memory),
        model_flop_utilisation: peak.map(|peak| flops / update_seconds / peak),
    })
}

/// Floating-point operations of forward and backward pass through the decoder and its head: six for every weight and
/// token, the head's for completion tokens alone, and for every query and key that it sees twelve for every number of
/// its heads.
fn flops(config: &ModelConfig, decoder: u64, report: &StepReport<VlmPrompt>) -> f64 {
    let text = &config.text_config;
    let head = (text.vocab_size * text.hidden_size) as f64;
    let width = (12 * text.num_hidden_layers * text.num_attention_heads * text.head_dim) as f64;
    let of_group = |group: &firesight_rl::Group<VlmPrompt>| {
        let prompt = group.prompt.tokens().len() as f64;
        let of_completion = |completion: &Completion| {
            let own = completion.tokens.len() as f64;
            6.0 * own * (decoder as f64 + head) + width * own * (prompt + own / 2.0)
        };
        6.0 * prompt * decoder as f64
            + width * prompt * prompt / 2.0
            + group.completions.iter().map(of_completion).sum::<f64>()
    };
    report.groups.iter().map(of_group).sum()
}

pub(super) fn shown(found: &DeepDiagnosis) -> Table {
    let row = |step: &StepCost| {
        let share = |share: Option<f64>| share.map_or(String::new(), |share| format!("{:.1} %", 100.0 * share));
        [
            step.what.clone(),
            step.dtype.into(),
            format!("{:.1} M", step.parameters as f64 / 1e6),
            format!("{:.2} s", step.seconds),
            format!("{:.2} s", step.drawing_seconds),
            format!("{:.2} s", step.update_seconds),
            format!("{:.0}", step.drawn_per_second),
            format!("{:.0}", step.trained_per_second),
            step.memory.map_or(String::new(), |bytes| format!("{:.2} GiB", bytes / f64::from(1 << 30))),
            share(step.model_flop_utilisation),
        ]
    };
    let header =
        ["", "type", "parameters", "step", "drawing", "update", "drawn/s", "trained/s", "memory", "utilisation"];
    table(header, found.steps.iter().map(row))
}
