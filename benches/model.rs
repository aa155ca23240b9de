//! What a training step spends its time on: log-probabilities with gradients, and drawing completions. The model and
//! the batch are those of the main job.
#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;

use burn::module::Module;
use burn::tensor::Device;
use criterion::{Criterion, criterion_group, criterion_main};
use firesight_rl::{AttentionRequest, Group, Policy, ResponseStates, Rope, Sampler, Sampling, SignalSet};
use firesight_train::task::Charts;
use firesight_train::{Purpose, Questions, VlmPolicy, VlmPrompt};
use firesight_vlm::{ModelConfig, Processor, QwenVl};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const PROMPTS: usize = 8;
const COMPLETIONS: usize = 8;

fn policy() -> VlmPolicy {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/qwen-small");
    let device = Device::flex().autodiff();
    let model = QwenVl::new(&ModelConfig::from_dir(&directory).unwrap(), 0, &device);
    VlmPolicy::new(model, Arc::new(Processor::from_dir(&directory).unwrap())).unwrap()
}

fn prompts(policy: &VlmPolicy) -> Vec<VlmPrompt> {
    let questions = Questions::new(Charts::new().unwrap(), policy.processor().clone(), 0);
    let questions = questions.batch(Purpose::Reinforcement, 0, PROMPTS).unwrap();
    questions.into_iter().map(|question| question.prompt).collect()
}

fn model(criterion: &mut Criterion) {
    let policy = policy();
    let valid = policy.valid();
    let prompts = prompts(&policy);
    let sampling = Sampling { temperature: 1.0, max_tokens: 22, seed: 0, first_stream: 0 };
    let sample = || valid.sample(&prompts, COMPLETIONS, sampling).unwrap();
    criterion.bench_function("sample 8 x 8 completions of 22 tokens", |bench| bench.iter(|| black_box(sample())));

    let groups: Vec<Group<VlmPrompt>> = prompts
        .iter()
        .zip(sample())
        .map(|(prompt, completions)| Group { prompt: prompt.clone(), completions, rewards: Vec::new() })
        .collect();
    let queries =
        AttentionRequest { rope: Rope::After, response: ResponseStates::Queries, heads: None, visual_tokens: None };
    let attention = SignalSet { attention: Some(queries), ..SignalSet::default() };
    for (name, signals) in [("without signals", SignalSet::default()), ("with queries and keys", attention)] {
        criterion.bench_function(&format!("score 8 x 8 completions, {name}"), |bench| {
            bench.iter(|| black_box(valid.score(&groups, 1.0, &signals).unwrap().log_probs.into_data()));
        });
    }
    criterion.bench_function("score 8 x 8 completions and differentiate", |bench| {
        bench.iter(|| {
            let log_probs = policy.score(&groups, 1.0, &SignalSet::default()).unwrap().log_probs;
            black_box(log_probs.sum().backward())
        });
    });
    let questions = Questions::new(Charts::new().unwrap(), policy.processor().clone(), 0);
    criterion.bench_function("render 32 questions", |bench| {
        bench.iter(|| black_box(questions.batch(Purpose::Supervised, 0, 32).unwrap()));
    });
}

criterion_group!(benches, model);
criterion_main!(benches);
