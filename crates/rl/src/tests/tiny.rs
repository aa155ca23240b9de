//! A small language model and a task for it, on the CPU.

use std::error::Error as StdError;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use burn::module::{Module, Param};
use burn::tensor::activation::{log_softmax, tanh};
use burn::tensor::{Device, Int, Tensor, TensorData};
use rand::{Rng, RngExt};

use crate::{
    AttentionStates, Completion, CreditAssigner, Error, Group, Policy, Reward, Rope, Sampler, Sampling, Scores,
    SignalSet, Signals, Task, stream,
};

pub(super) const VOCABULARY: usize = 6;
const PROMPTS: usize = 4;
const HIDDEN: usize = 12;
/// Ends a completion.
const END: u32 = 0;

/// tanh(prompt embedding + previous-token embedding) times an output matrix.
#[derive(Module, Debug)]
pub(super) struct Tiny {
    prompts: Param<Tensor<2>>,
    tokens: Param<Tensor<2>>,
    pub(super) output: Param<Tensor<2>>,
    /// Enters the log-probabilities as its square root, whose derivative at zero is infinite.
    pub(super) trap: Option<Param<Tensor<1>>>,
    /// Scores at this temperature instead of the one asked for: a bug the metrics have to show.
    #[module(skip)]
    pub(super) wrong_temperature: Option<f32>,
    /// Counts scoring passes over all copies of the module.
    #[module(skip)]
    pub(super) passes: Arc<AtomicUsize>,
    /// Counts those that were asked for signals.
    #[module(skip)]
    pub(super) signal_passes: Arc<AtomicUsize>,
}

impl Tiny {
    pub(super) fn new(device: &Device) -> Self {
        let mut numbers = stream(11, 0, 0);
        let mut parameter = |rows: usize, columns: usize| {
            let values = (0..rows * columns).map(|_| numbers.random_range(-0.5f32..0.5)).collect();
            Param::from_tensor(Tensor::from_data(TensorData::new::<f32, _>(values, [rows, columns]), device))
        };
        Self {
            prompts: parameter(PROMPTS, HIDDEN),
            tokens: parameter(VOCABULARY + 1, HIDDEN),
            output: parameter(HIDDEN, VOCABULARY),
            trap: None,
            wrong_temperature: None,
            passes: Arc::default(),
            signal_passes: Arc::default(),
        }
    }

    pub(super) fn parameters(&self) -> Vec<f32> {
        let read = |tensor: &Param<Tensor<2>>| tensor.val().into_data().try_to_vec::<f32>().unwrap();
        [read(&self.prompts), read(&self.tokens), read(&self.output)].concat()
    }

    /// Log-probabilities of every next token: `[rows, vocabulary]`.
    fn next(&self, prompts: &[i64], previous: &[i64], temperature: f32) -> Tensor<2> {
        let device = self.output.val().device();
        let pick = |rows: &[i64]| Tensor::<1, Int>::from_data(TensorData::new(rows.to_vec(), [rows.len()]), &device);
        let hidden = self.prompts.val().select(0, pick(prompts)) + self.tokens.val().select(0, pick(previous));
        log_softmax(tanh(hidden).matmul(self.output.val()) / temperature, 1)
    }
}

impl Policy for Tiny {
    type Prompt = usize;

    fn score(&self, groups: &[Group<usize>], temperature: f32, signals: SignalSet) -> Result<Scores, Error> {
        self.passes.fetch_add(1, Ordering::Relaxed);
        self.signal_passes.fetch_add(usize::from(signals.attention.is_some()), Ordering::Relaxed);
        let temperature = self.wrong_temperature.unwrap_or(temperature);
        let rows =
            || groups.iter().flat_map(|group| group.completions.iter().map(|answer| (group.prompt, &answer.tokens)));
        let width = rows().map(|(_, tokens)| tokens.len()).max().unwrap_or(0);
        let (mut prompts, mut previous, mut targets) = (Vec::new(), Vec::new(), Vec::new());
        for (prompt, tokens) in rows() {
            let mut last = VOCABULARY as i64;
            for place in 0..width {
                let token = i64::from(tokens.get(place).copied().unwrap_or(END));
                prompts.push(prompt as i64);
                previous.push(last);
                targets.push(token);
                last = token;
            }
        }
        let count = rows().count();
        let log_probs = self.next(&prompts, &previous, temperature);
        let targets = Tensor::<2, Int>::from_data(TensorData::new(targets, [count * width, 1]), &log_probs.device());
        let entropy = (log_probs.clone().exp() * log_probs.clone()).sum_dim(1).neg().reshape([count, width]);
        let mut log_probs = log_probs.gather(1, targets).reshape([count, width]);
        if let Some(trap) = &self.trap {
            log_probs = log_probs + trap.val().sqrt().unsqueeze();
        }
        let attention = signals.attention.map(|_| AttentionStates {
            queries: log_probs.clone().detach().reshape([count, 1, width, 1]),
            visual_keys: Vec::new(),
        });
        Ok(Scores { log_probs, entropy, signals: Signals { attention } })
    }
}

impl Sampler<usize> for Tiny {
    fn sample(&self, prompts: &[usize], group_size: usize, sampling: Sampling) -> Result<Vec<Vec<Completion>>, Error> {
        let completion = |prompt: usize, stream_index: u64| {
            let mut numbers = stream(sampling.seed, 1, stream_index);
            let mut answer = Completion { truncated: true, ..Completion::default() };
            let mut last = VOCABULARY as i64;
            while answer.truncated && answer.tokens.len() < sampling.max_tokens {
                let log_probs = self.next(&[prompt as i64], &[last], sampling.temperature);
                let log_probs: Vec<f32> = log_probs.into_data().try_to_vec().unwrap();
                let token = draw(&log_probs, &mut numbers);
                answer.tokens.push(token as u32);
                answer.log_probs.push(log_probs[token]);
                answer.truncated = token as u32 != END;
                last = token as i64;
            }
            // Nothing could be encoded back from this text.
            answer.text = format!("{} tokens", answer.tokens.len());
            answer
        };
        let group = |(index, &prompt): (usize, &usize)| {
            let first = sampling.first_stream + (index * group_size) as u64;
            (first..first + group_size as u64).map(|stream_index| completion(prompt, stream_index)).collect()
        };
        Ok(prompts.iter().enumerate().map(group).collect())
    }
}

fn draw(log_probs: &[f32], numbers: &mut impl Rng) -> usize {
    let mut left: f32 = numbers.random();
    let found = log_probs.iter().position(|log_prob| {
        left -= log_prob.exp();
        left <= 0.0
    });
    found.unwrap_or(log_probs.len() - 1)
}

/// One reward per prompt token in the answer, plus what the sample says.
pub(super) struct Count;

pub(super) struct Row {
    pub(super) prompt: usize,
    /// Added to every reward.
    pub(super) offset: f32,
    /// Gives every completion the same reward.
    pub(super) constant: bool,
}

pub(super) fn rows(offset: f32) -> Vec<Row> {
    (0..PROMPTS).map(|prompt| Row { prompt, offset, constant: false }).collect()
}

impl Task for Count {
    type Sample = Row;
    type Prompt = usize;

    fn prompt(&self, row: &Row) -> Result<usize, Box<dyn StdError + Send + Sync>> {
        Ok(row.prompt)
    }

    fn reward(&self, row: &Row, completion: &Completion) -> Result<Reward, Box<dyn StdError + Send + Sync>> {
        if row.offset < 0.0 {
            return Err("verifier is out of order".into());
        }
        let hits = completion.tokens.iter().filter(|&&token| token as usize == row.prompt + 1).count();
        let total = if row.constant { row.offset } else { row.offset + hits as f32 };
        Ok(Reward { total, parts: vec![("hits".into(), hits as f32)] })
    }
}

/// Weight `factor` for every token, asking for attention states or not.
pub(super) struct Flat {
    pub(super) factor: f32,
    pub(super) wants_attention: bool,
}

impl CreditAssigner<usize> for Flat {
    fn signals(&self) -> SignalSet {
        SignalSet { attention: self.wants_attention.then_some(Rope::After) }
    }

    fn weights(&self, groups: &[Group<usize>], signals: &Signals) -> Result<Vec<Vec<f32>>, Error> {
        assert_eq!(signals.attention.is_some(), self.wants_attention);
        let completions = groups.iter().flat_map(|group| &group.completions);
        Ok(completions.map(|completion| vec![self.factor; completion.tokens.len()]).collect())
    }
}

/// One plus the token id, which no other row has in the same places.
pub(super) struct ByToken;

impl ByToken {
    pub(super) fn of(completion: &Completion) -> Vec<f32> {
        completion.tokens.iter().map(|&token| 1.0 + token as f32).collect()
    }
}

impl CreditAssigner<usize> for ByToken {
    fn signals(&self) -> SignalSet {
        SignalSet { attention: Some(Rope::After) }
    }

    fn weights(&self, groups: &[Group<usize>], _: &Signals) -> Result<Vec<Vec<f32>>, Error> {
        Ok(groups.iter().flat_map(|group| &group.completions).map(Self::of).collect())
    }
}
