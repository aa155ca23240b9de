//! What an update costs beside the model: advantages, coefficients, padding, the loss with its gradient, metrics.
//!
//! The policy here is free: its log-probabilities are those that were sampled plus one parameter.

use std::hint::black_box;

use burn::module::{Module, Param};
use burn::optim::SgdConfig;
use burn::tensor::{Device, Tensor, TensorData};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use firesight_rl::{
    AdvantageEstimator, AdvantageInput, Algorithm, Completion, Error, Group, Options, Policy, Positions, Reward,
    Sampling, Scores, SignalSet, Signals, Trainer, Uniform,
};

const COMPLETIONS: usize = 8;
const TOKENS: usize = 32;

#[derive(Module, Debug)]
struct Free {
    shift: Param<Tensor<2>>,
}

impl Policy for Free {
    type Prompt = ();

    fn score(&self, groups: &[Group<()>], _: f32, _: &SignalSet) -> Result<Scores, Error> {
        let answers = groups.iter().flat_map(|group| &group.completions);
        let sampled: Vec<f32> = answers.flat_map(|answer| answer.log_probs.iter().copied()).collect();
        let sampled = TensorData::new(sampled, [groups.len() * COMPLETIONS, TOKENS]);
        let log_probs = Tensor::from_data(sampled, &self.shift.val().device()) + self.shift.val();
        Ok(Scores {
            entropy: log_probs.clone().detach().neg(),
            log_probs,
            signals: Signals::default(),
            positions: Positions::default(),
            continuation: None,
        })
    }
}

fn groups(count: usize) -> Vec<Group<()>> {
    let number = |seed: usize| (seed * 7919 % 1000) as f32 / 1000.0;
    let completion = |seed: usize| Completion {
        tokens: vec![1; TOKENS],
        log_probs: (0..TOKENS).map(|token| -number(seed * TOKENS + token) - 0.1).collect(),
        ..Completion::default()
    };
    let group = |index: usize| Group {
        prompt: (),
        completions: (0..COMPLETIONS).map(|place| completion(index * COMPLETIONS + place)).collect(),
        rewards: (0..COMPLETIONS).map(|place| Reward::of("reward", number(index + 3 * place))).collect(),
    };
    (0..count).map(group).collect()
}

fn update(criterion: &mut Criterion) {
    let mut bench = criterion.benchmark_group("update_without_a_model");
    for (name, algorithm) in [("grpo", Algorithm { kl: None, ..Algorithm::grpo() }), ("gspo", Algorithm::gspo())] {
        for count in [32, 128, 512] {
            let groups = groups(count);
            let device = Device::flex().autodiff();
            let policy = Free { shift: Param::from_tensor(Tensor::zeros([1, 1], &device)) };
            let sampling = Sampling { temperature: 1.0, max_tokens: TOKENS, seed: 0, first_stream: 0 };
            let options = Options::new(COMPLETIONS, sampling);
            let mut trainer = Trainer::new(policy, SgdConfig::new().init(), algorithm.clone(), Uniform, options)
                .expect("these settings train");
            let tokens = count * COMPLETIONS * TOKENS;
            bench.throughput(Throughput::Elements(tokens as u64));
            bench.bench_function(BenchmarkId::new(name, tokens), |bencher| {
                bencher.iter(|| trainer.update(black_box(&groups), 0.0).expect("rewards are finite"));
            });
        }
    }
    bench.finish();
}

fn advantages(criterion: &mut Criterion) {
    let mut bench = criterion.benchmark_group("advantages");
    for (name, algorithm) in [("relative", Algorithm::grpo()), ("gdpo", Algorithm::gdpo())] {
        for count in [32, 128, 512] {
            let groups = groups(count);
            let rewards: Vec<&[Reward]> = groups.iter().map(|group| group.rewards.as_slice()).collect();
            bench.throughput(Throughput::Elements((count * COMPLETIONS) as u64));
            bench.bench_function(BenchmarkId::new(name, count * COMPLETIONS), |bencher| {
                bencher.iter(|| algorithm.advantage.advantages(black_box(&AdvantageInput::of(&rewards))));
            });
        }
    }
    bench.finish();
}

criterion_group!(benches, update, advantages);
criterion_main!(benches);
