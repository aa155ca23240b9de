//! The memory plan against the bytes that are allocated.
//!
//! `cargo test --test memory -- --nocapture` prints the table of docs/memory.md.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::AdamWConfig;
use burn::tensor::{Device, FloatDType, Tensor};
use firesight_rl::{Algorithm, Completion, Group, MicroBatch, Options, Reward, Sampler, Sampling, Trainer, Uniform};
use firesight_train::{VlmPolicy, VlmPrompt};
use firesight_vlm::{
    Component, Grid, Hardware, LoraConfig, MemoryPlan, ModelConfig, Precision, Processor, QwenVl, Trained, Workload,
};
use peak_alloc::PeakAlloc;

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

/// Held by every test: another one at the same time would count its bytes, too.
static ALONE: Mutex<()> = Mutex::new(());

/// Largest difference of plan and measurement, relative to the measurement: what the plan promises.
const PROMISE: f64 = 0.2;
/// What it is held to, so that no part of it can be forgotten unseen, beside the megabytes of what it leaves out.
const TOLERANCE: f64 = 0.1;
const LEFT_OUT: f64 = 1.0;
/// Bytes that may stay with the prompts beside the features of their images.
const KEPT_LEFT_OUT: f64 = 8192.0;

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// Bytes at their peak.
#[derive(Debug, Clone, Copy)]
struct Measured {
    /// Of the numbers alone; small tensors take as much again.
    weights: u64,
    generation: usize,
    training: usize,
    /// What stays with the prompts once completions are drawn from them.
    kept: usize,
}

struct Bytes(u64);

impl ModuleVisitor for Bytes {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.0 += (param.shape().num_elements() * param.base().dtype().size()) as u64;
    }
}

/// Makes a model, updates it twice, which is when the optimizer has its moments, and draws completions from it.
fn measure(
    config: &ModelConfig,
    processor: &Arc<Processor>,
    workload: &Workload,
    trained: Trained<'_>,
    precision: Precision,
) -> Measured {
    let prompt = workload.prompt(config);
    // One of its own at every place: they share the pixels, and what a frozen tower makes of those stays with each.
    let fresh = || VlmPrompt::new(prompt.clone(), 1);
    let length = workload.completion_tokens;
    let completion =
        Completion { tokens: vec![5; length], log_probs: vec![-6.0; length], truncated: true, ..Completion::default() };
    let reward = |completion| Reward::of("index", completion as f32);
    let group = |_| Group {
        prompt: fresh(),
        completions: vec![completion.clone(); workload.completions],
        rewards: (0..workload.completions).map(reward).collect(),
    };
    let [first, second] = [(); 2].map(|()| (0..workload.prompts).map(group).collect::<Vec<_>>());
    let prompts: Vec<VlmPrompt> = (0..workload.generation_prompts).map(|_| fresh()).collect();
    let sampling = Sampling { temperature: 0.8, max_tokens: length, seed: 0, first_stream: 0 };
    let options = Options {
        prompts_per_sampling_batch: workload.generation_prompts,
        micro_batch: MicroBatch::Groups(workload.prompts),
        ..Options::new(workload.completions, sampling)
    };
    let algorithm = Algorithm { kl: None, ..Algorithm::grpo() };

    let before = HEAP.current_usage();
    let model = QwenVl::new(config, 0, &Device::flex().autodiff());
    let model = model.with_activation_checkpointing(trained.activation_checkpointing);
    let model = match trained.lora {
        Some(lora) => model.with_lora(lora, !trained.frozen.contains(&Component::Vision), 0).unwrap(),
        None => model.with_frozen(trained.frozen),
    };
    let model = model.with_precision(precision);
    let mut weights = Bytes(0);
    model.visit(&mut weights);
    let policy = VlmPolicy::new(model, processor.clone()).unwrap();
    let mut trainer = Trainer::new(policy, AdamWConfig::new().init(), algorithm, Uniform, options).unwrap();
    let mut training = 0;
    if trained.frozen != Component::ALL {
        trainer.update(&first, 1e-4).unwrap();
        drop(first);
        HEAP.reset_peak_usage();
        assert_eq!(trainer.update(&second, 1e-4).unwrap().optimizer_steps, 1);
        training = HEAP.peak_usage() - before;
        drop(second);
    }
    HEAP.reset_peak_usage();
    let held = HEAP.current_usage();
    trainer.policy.valid().materialize().sample(&prompts, workload.completions, sampling).unwrap();
    let kept = HEAP.current_usage().saturating_sub(held);
    Measured { weights: weights.0, generation: HEAP.peak_usage() - before, training, kept }
}

/// Prints a line of the table, and says what is too far off.
fn compare(name: &str, plan: &MemoryPlan, measured: Measured, failures: &mut Vec<String>) {
    assert_eq!(plan.weights, measured.weights, "{name}: weights");
    let pairs = [
        ("generation", plan.generation_peak(), measured.generation),
        ("training", plan.training_peak(), measured.training),
    ];
    let [generation, training] = pairs.map(|(what, planned, measured)| {
        let [planned, measured] = [planned as f64 / 1e6, measured as f64 / 1e6];
        let shown = format!("{planned:.1} / {measured:.1}");
        if (planned - measured).abs() > (PROMISE * measured).min(TOLERANCE * measured + LEFT_OUT) {
            failures.push(format!("{name}: {what}: {shown} MB"));
        }
        if measured > 0.0 { shown } else { String::new() }
    });
    println!("| {name} | {generation} | {training} |");
    // Nothing hides in these few bytes but the headers of tensors.
    let kept = plan.visual_features as f64;
    if (kept - measured.kept as f64).abs() > 0.02 * kept + KEPT_LEFT_OUT {
        failures.push(format!("{name}: kept with the prompts: {kept} / {} bytes", measured.kept));
    }
}

/// Adapters in all linear layers of the decoder, and in those called `others`.
fn lora(others: &[&str]) -> LoraConfig {
    let decoder = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
    let target_modules = decoder.iter().chain(others).map(ToString::to_string).collect();
    LoraConfig { rank: 8, alpha: 16.0, target_modules }
}

#[test]
fn the_plan_agrees_with_the_heap() {
    let _alone = ALONE.lock();
    // The work space of a matrix product is each thread's own, and is made when a thread first gets work.
    rayon::ThreadPoolBuilder::new().num_threads(1).build_global().unwrap();
    let (lora, lora_everywhere) = (lora(&[]), lora(&["qkv", "proj"]));
    let towers = [Component::Vision, Component::Merger];
    let of = |frozen, lora| Trained { frozen, lora, activation_checkpointing: false };
    let all = ("all", Trained::default());
    let decoder = ("all but the tower", of(&towers, None));
    let adapters = ("LoRA", of(&towers, Some(&lora)));
    let adapters_everywhere = ("LoRA, tower too", of(&[], Some(&lora_everywhere)));
    let nothing = ("nothing", of(&Component::ALL, None));
    let checkpointed = |(_, trained), name| (name, Trained { activation_checkpointing: true, ..trained });
    let all_again = checkpointed(all, "all, checkpointing");
    let decoder_again = checkpointed(decoder, "all but the tower, checkpointing");
    let adapters_again = checkpointed(adapters_everywhere, "LoRA, tower too, checkpointing");
    let mut failures = Vec::new();
    for family in ["qwen-small", "qwen2.5-small"] {
        let directory = path("models").join(family);
        let processor = Arc::new(Processor::from_dir(&directory).unwrap());
        let small = ModelConfig::from_dir(&directory).unwrap();
        let mut words = small.clone();
        words.text_config.vocab_size = 8192;
        // As many as the published models have: whole, the logits of this many tokens would take 311 MB.
        let mut all_words = small.clone();
        all_words.text_config.vocab_size = 151_936;
        let mut wide = small.clone();
        wide.text_config.hidden_size = 256;
        wide.text_config.intermediate_size = 768;
        wide.text_config.num_hidden_layers = 4;
        wide.tie_word_embeddings = false;
        wide.vision_config.as_mut().unwrap().out_hidden_size = 256;

        let mut heads = small.clone();
        heads.text_config.num_attention_heads = 16;
        heads.text_config.head_dim = 8;
        heads.text_config.rope_scaling.mrope_section = [2, 1, 1];

        let work = |prompts, completions, text_tokens, (h, w), completion_tokens| Workload {
            prompts,
            generation_prompts: 2 * prompts,
            completions,
            text_tokens,
            images: vec![Grid { t: 1, h, w }],
            completion_tokens,
        };
        let short = work(1, 8, 30, (8, 8), 24);
        let long = work(1, 4, 300, (8, 8), 8);
        let picture = work(2, 2, 30, (22, 18), 16);
        let f32 = Precision::F32;
        let (bf16, stored) = (Precision::mixed(FloatDType::BF16), Precision::stored(FloatDType::BF16));
        let cases = [
            ("small, short", &small, &short, f32, vec![all, decoder, adapters, adapters_everywhere, nothing]),
            ("small, long prompt", &small, &long, f32, vec![decoder, adapters]),
            ("small, large image", &small, &picture, f32, vec![all, all_again, adapters_everywhere, nothing]),
            ("small, long", &small, &work(2, 8, 100, (12, 8), 128), f32, vec![decoder, decoder_again]),
            ("8192 words", &words, &work(1, 4, 30, (8, 8), 32), f32, vec![all, adapters]),
            ("8192 words, short", &words, &work(1, 2, 10, (4, 4), 8), f32, vec![all, decoder]),
            ("151,936 words", &all_words, &work(1, 8, 30, (8, 8), 64), f32, vec![adapters]),
            ("16 heads, long prompt", &heads, &work(1, 2, 300, (8, 8), 8), f32, vec![decoder, nothing]),
            ("wide, short", &wide, &work(1, 2, 10, (4, 4), 8), f32, vec![all, adapters]),
            ("wide, 32 rows", &wide, &work(2, 4, 10, (4, 4), 33), f32, vec![all, adapters]),
            (
                "wide, two prompts",
                &wide,
                &work(2, 2, 60, (12, 8), 32),
                f32,
                vec![decoder, adapters_everywhere, adapters_again],
            ),
            (
                "wide, long",
                &wide,
                &work(2, 8, 60, (12, 8), 128),
                f32,
                vec![all, all_again, adapters_everywhere, adapters_again],
            ),
            // The CPU backend computes every product of bfloat16 in copies in float32, which the plan does not count
            // and which is much of so small a model with a short prompt.
            ("small, long prompt, bf16", &small, &long, bf16, vec![decoder, adapters, nothing]),
            ("small, long prompt, stored in bf16", &small, &long, stored, vec![decoder, adapters, nothing]),
            ("small, large image, bf16", &small, &picture, bf16, vec![all, all_again, adapters_everywhere]),
        ];
        // The work space is made once.
        measure(&small, &processor, &short, all.1, f32);
        for (case, config, workload, precision, choices) in cases {
            for (choice, trained) in choices {
                let measured = measure(config, &processor, workload, trained, precision);
                let plan = MemoryPlan::new(config, workload, trained, Hardware::Cpu, precision);
                compare(&format!("{family} | {case} | {choice}"), &plan, measured, &mut failures);
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn the_published_configurations_have_the_published_sizes() {
    let _alone = ALONE.lock();
    let workload = Workload {
        prompts: 1,
        generation_prompts: 1,
        completions: 8,
        text_tokens: 200,
        images: Vec::new(),
        completion_tokens: 512,
    };
    for (name, parameters) in [("qwen2.5-vl-3b", 3_754_622_976), ("qwen2.5-vl-7b", 8_292_166_656)] {
        let config = ModelConfig::from_dir(&path("examples/configs/models").join(name)).unwrap();
        let plan =
            MemoryPlan::new(&config, &workload, Trained::default(), Hardware::Cpu, Precision::mixed(FloatDType::BF16));
        assert_eq!((plan.parameters, plan.trained_parameters), (parameters, parameters), "{name}");
        assert_eq!((plan.weights, plan.optimizer), (4 * parameters, 8 * parameters), "{name}");
        let frozen = Trained { frozen: &Component::ALL, ..Trained::default() };
        let plan = MemoryPlan::new(&config, &workload, frozen, Hardware::Cpu, Precision::mixed(FloatDType::BF16));
        assert_eq!((plan.weights, plan.optimizer), (2 * parameters, 0), "{name}");
    }
}
