//! GRPO, then GSPO, on a burn model that the crate has never seen: an MLP that learns to count.
//!
//! ```text
//! cargo run --release --example custom_policy
//! ```
//! One CPU core, about a second after the build. Last line: `learned to count, twice`.
#![allow(clippy::unwrap_used)]

use std::error::Error as StdError;

use burn::module::Module;
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig};
use burn::optim::AdamWConfig;
use burn::tensor::activation::{log_softmax, relu};
use burn::tensor::{Device, Int, Tensor};
use firesight_rl::{
    Algorithm, Completion, Error, Group, Options, Policy, Reward, Sampler, Sampling, Scores, SignalSet, Signals, Task,
    Trainer, Uniform, stream,
};
use rand::RngExt;

const DIGITS: usize = 10;
const LENGTH: usize = 3;

/// Says the next digit from the last one; the prompt is the first.
#[derive(Module, Debug)]
struct Counter {
    embedding: Embedding,
    output: Linear,
}

impl Counter {
    /// Log-probabilities `[rows, digits]` of the digit after each of `last`.
    fn next(&self, last: &[i64], temperature: f32) -> Tensor<2> {
        let last = Tensor::<1, Int>::from_data(last, &self.output.weight.device());
        let hidden = relu(self.embedding.forward(last.unsqueeze()).squeeze_dim::<2>(0));
        log_softmax(self.output.forward(hidden) / temperature, 1)
    }
}

impl Policy for Counter {
    type Prompt = i64;

    fn score(&self, groups: &[Group<i64>], temperature: f32, _: SignalSet) -> Result<Scores, Error> {
        let (mut last, mut targets) = (Vec::new(), Vec::new());
        for (group, answer) in
            groups.iter().flat_map(|group| group.completions.iter().map(move |answer| (group, answer)))
        {
            let digits = answer.tokens.iter().map(|&digit| i64::from(digit));
            last.extend(std::iter::once(group.prompt).chain(digits.clone()).take(LENGTH));
            targets.extend(digits);
        }
        let log_probs = self.next(&last, temperature);
        let entropy = (log_probs.clone().exp() * log_probs.clone()).sum_dim(1).neg();
        let targets = Tensor::<1, Int>::from_data(targets.as_slice(), &log_probs.device()).unsqueeze_dim(1);
        let rows = |values: Tensor<2>| values.reshape([-1, LENGTH as i64]);
        Ok(Scores {
            log_probs: rows(log_probs.gather(1, targets)),
            entropy: rows(entropy),
            signals: Signals::default(),
        })
    }
}

impl Sampler<i64> for Counter {
    fn sample(&self, prompts: &[i64], group_size: usize, sampling: Sampling) -> Result<Vec<Vec<Completion>>, Error> {
        let mut streams = (sampling.first_stream..).map(|index| stream(sampling.seed, 0, index));
        let mut draw = |prompt: i64| {
            let mut numbers = streams.next().unwrap();
            let mut answer = Completion::default();
            for _ in 0..LENGTH {
                let last = answer.tokens.last().map_or(prompt, |&digit| i64::from(digit));
                let log_probs: Vec<f32> = self.next(&[last], sampling.temperature).into_data().try_to_vec().unwrap();
                let mut left: f32 = numbers.random();
                let digit = log_probs.iter().position(|log_prob| {
                    left -= log_prob.exp();
                    left <= 0.0
                });
                let digit = digit.unwrap_or(DIGITS - 1);
                answer.tokens.push(digit as u32);
                answer.log_probs.push(log_probs[digit]);
            }
            answer
        };
        Ok(prompts.iter().map(|&prompt| (0..group_size).map(|_| draw(prompt)).collect()).collect())
    }
}

/// After 3 come 4, 5, 6; the reward is the fraction of digits that follow the one before.
struct Counting;

impl Task for Counting {
    type Sample = i64;
    type Prompt = i64;

    fn prompt(&self, first: &i64) -> Result<i64, Box<dyn StdError + Send + Sync>> {
        Ok(*first)
    }

    fn reward(&self, first: &i64, answer: &Completion) -> Result<Reward, Box<dyn StdError + Send + Sync>> {
        let right = (1..).map(|step| (first + step) as u32 % DIGITS as u32);
        let hits = right.zip(&answer.tokens).filter(|(right, found)| right == *found).count();
        Ok(Reward { total: hits as f32 / LENGTH as f32, parts: Vec::new() })
    }
}

/// Trains both ways and asserts that both learned.
pub fn main() -> Result<(), Error> {
    for (name, algorithm) in [("GRPO", Algorithm::grpo()), ("GSPO", Algorithm::gspo())] {
        let device = Device::flex().autodiff();
        device.seed(1);
        let policy = Counter {
            embedding: EmbeddingConfig::new(DIGITS, 32).init(&device),
            output: LinearConfig::new(32, DIGITS).init(&device),
        };
        let options = Options {
            group_size: 16,
            sampling: Sampling { temperature: 1.0, max_tokens: LENGTH, seed: 7, first_stream: 0 },
            prompts_per_sampling_batch: 5,
            groups_per_micro_batch: 5,
            mini_batches: 1,
            passes_per_rollout: 1,
            max_gradient_norm: Some(1.0),
            threads: 1,
        };
        let mut trainer = Trainer::new(policy, AdamWConfig::new().init(), algorithm, Uniform, options)?;
        let samples: Vec<i64> = (0..DIGITS as i64).collect();
        let mut reward = 0.0;
        for step in 0..=60 {
            let report = trainer.step(&Counting, &samples, 0.03)?;
            reward = report.metrics[0].1;
            if step % 20 == 0 {
                println!("{name} step {step:2}: {} {reward:.3}", report.metrics[0].0);
            }
        }
        assert!(reward > 0.9, "{name} did not learn: {reward}");
    }
    println!("learned to count, twice");
    Ok(())
}
