//! A small language model and a task for it, on the CPU.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use burn::module::{Module, Param};
use burn::tensor::activation::tanh;
use burn::tensor::{Device, Int, Tensor, TensorData};
use rand::RngExt;

use crate::{
    AttentionRequest, AttentionStates, Capability, Completion, CreditAssigner, CreditBatch, Error, Evidence, Group,
    Policy, Positions, ResponseStates, Reward, Rope, Sampler, Sampling, Scores, SignalSet, Signals, Task, TaskError,
    TokenCredit, View, sample_from_logits, stream,
};

pub(super) const VOCABULARY: usize = 6;
const PROMPTS: usize = 4;
const HIDDEN: usize = 12;
/// Ends a completion.
const END: u32 = 0;
/// What a prompt counts for in a budget of tokens.
pub(super) const PROMPT_TOKENS: usize = 3;

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
    /// Hands out signals as it draws.
    #[module(skip)]
    pub(super) tells: bool,
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
            tells: false,
            passes: Arc::default(),
            signal_passes: Arc::default(),
        }
    }

    pub(super) fn parameters(&self) -> Vec<f32> {
        let read = |tensor: &Param<Tensor<2>>| tensor.val().into_data().try_to_vec::<f32>().unwrap();
        [read(&self.prompts), read(&self.tokens), read(&self.output)].concat()
    }

    /// Multiplies the output matrix, which makes another policy of it.
    pub(super) fn sharpen(&mut self, factor: f32) {
        let output = self.output.val();
        let values = output.to_data().iter::<f32>().map(|value| value * factor).collect();
        self.output =
            Param::from_tensor(Tensor::from_data(TensorData::new::<f32, _>(values, output.dims()), &output.device()));
    }

    /// Logits of every next token, given each completion so far: `[rows, vocabulary]`.
    fn logits(&self, rows: &[(&usize, &[u32])]) -> Tensor<2> {
        let device = self.output.val().device();
        let pick = |rows: Vec<i64>| {
            let count = rows.len();
            Tensor::<1, Int>::from_data(TensorData::new(rows, [count]), &device)
        };
        let last = |tokens: &[u32]| tokens.last().map_or(VOCABULARY as i64, |&token| i64::from(token));
        let prompts = pick(rows.iter().map(|(prompt, _)| **prompt as i64).collect());
        let previous = pick(rows.iter().map(|(_, tokens)| last(tokens)).collect());
        let hidden = self.prompts.val().select(0, prompts) + self.tokens.val().select(0, previous);
        tanh(hidden).matmul(self.output.val())
    }
}

impl Policy for Tiny {
    type Prompt = usize;

    fn prompt_tokens(&self, _: &usize) -> usize {
        PROMPT_TOKENS
    }

    fn score(&self, groups: &[Group<usize>], temperature: f32, signals: &SignalSet) -> Result<Scores, Error> {
        self.passes.fetch_add(1, Ordering::Relaxed);
        self.signal_passes.fetch_add(usize::from(signals.attention.is_some()), Ordering::Relaxed);
        let temperature = self.wrong_temperature.unwrap_or(temperature);
        let rows: Vec<(&usize, &[u32])> = groups
            .iter()
            .flat_map(|group| group.completions.iter().map(move |answer| (&group.prompt, &answer.tokens)))
            .flat_map(|(prompt, tokens)| (0..tokens.len()).map(move |length| (prompt, &tokens[..length])))
            .collect();
        let mut scores = Scores::from_logits(self.logits(&rows), groups, temperature)?;
        // As if there were one of padding for every three tokens.
        scores.positions = Positions { used: 3 * rows.len(), padding: rows.len() };
        if let Some(trap) = &self.trap {
            scores.log_probs = scores.log_probs + trap.val().sqrt().unsqueeze();
        }
        scores.signals.attention = signals.attention.as_ref().map(|_| AttentionStates {
            response: Tensor::zeros([rows.len(), 1, 1], &self.output.val().device()),
            visual_keys: Vec::new(),
            key_heads: vec![0],
        });
        Ok(scores)
    }

    fn offers(&self, capability: &Capability) -> Result<(), String> {
        match capability {
            Capability::Entropy | Capability::Attention | Capability::Texts => Ok(()),
            Capability::View(view) if view.name == "next" => Ok(()),
            _ => Err("it is too small".into()),
        }
    }

    /// The prompt after it, or with a parameter any.
    fn changed(&self, prompt: &usize, view: &View, seed: u64, index: u64) -> Result<usize, Error> {
        let jump = if view.parameters.is_empty() { 1 } else { stream(seed, 0, index).random_range(0..PROMPTS) };
        Ok((prompt + jump) % PROMPTS)
    }

    fn token_text(&self, token: u32) -> String {
        if token == 1 { "\n\n".into() } else { token.to_string() }
    }
}

impl Sampler<usize> for Tiny {
    fn sample(&self, prompts: &[usize], group_size: usize, sampling: Sampling) -> Result<Vec<Vec<Completion>>, Error> {
        let mut answers =
            sample_from_logits(prompts, group_size, sampling, Some(END), |rows: &[(&usize, &[u32])]| {
                self.logits(rows)
            })?;
        // Nothing could be encoded back from this text.
        for answer in answers.iter_mut().flatten() {
            answer.text = format!("{} tokens", answer.tokens.len());
        }
        Ok(answers)
    }

    fn sample_with_signals(
        &self,
        prompts: &[usize],
        group_size: usize,
        sampling: Sampling,
        signals: &SignalSet,
    ) -> Result<(Vec<Vec<Completion>>, Signals), Error> {
        let answers = self.sample(prompts, group_size, sampling)?;
        let attention = signals.attention.as_ref().filter(|_| self.tells).map(|_| AttentionStates {
            response: Tensor::zeros(
                [answers.iter().flatten().map(|answer| answer.tokens.len()).sum(), 1, 1],
                &self.output.val().device(),
            ),
            visual_keys: Vec::new(),
            key_heads: vec![0],
        });
        Ok((answers, Signals { attention, ..Signals::default() }))
    }
}

/// One reward per prompt token in the answer, plus what the sample says.
pub(super) struct Count;

#[derive(Clone)]
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

    fn prompt(&self, row: &Row) -> Result<usize, TaskError> {
        Ok(row.prompt)
    }

    fn reward(&self, row: &Row, completion: &Completion) -> Result<Reward, TaskError> {
        if row.offset < 0.0 {
            return Err("verifier is out of order".into());
        }
        let hits = completion.tokens.iter().filter(|&&token| token as usize == row.prompt + 1).count();
        let total = if row.constant { row.offset } else { row.offset + hits as f32 };
        Ok(Reward::of("total", total).and("hits", Some(hits as f32), 0.0))
    }
}

fn anything() -> AttentionRequest {
    AttentionRequest { rope: Rope::After, response: ResponseStates::Queries, heads: None, visual_tokens: None }
}

/// Weight `factor` for every token, asking for attention states or not.
pub(super) struct Flat {
    pub(super) factor: f32,
    pub(super) wants_attention: bool,
}

impl CreditAssigner<usize> for Flat {
    fn name(&self) -> &'static str {
        "flat"
    }

    fn signals(&self, _: &[&usize]) -> Result<SignalSet, Error> {
        Ok(SignalSet { attention: self.wants_attention.then(anything), ..SignalSet::default() })
    }

    fn reduce(&self, _: &[Group<usize>], signals: &Signals) -> Result<Vec<Evidence>, Error> {
        assert_eq!(signals.attention.is_some(), self.wants_attention);
        Ok(Vec::new())
    }

    fn assign(&self, rollout: &CreditBatch<'_, usize>) -> Result<Vec<TokenCredit>, Error> {
        Ok(rollout.completions.iter().map(|input| vec![self.factor; input.completion.tokens.len()].into()).collect())
    }
}

/// One plus the token id, which no other row has in the same places, as it was seen in the pass with the states.
pub(super) struct ByToken;

impl ByToken {
    fn seen(completion: &Completion) -> Evidence {
        let alignment = completion.tokens.iter().map(|&token| 1.0 + token as f32).collect();
        Evidence { alignment, ..Evidence::default() }
    }

    pub(super) fn of(completion: &Completion) -> TokenCredit {
        let evidence = Self::seen(completion);
        TokenCredit { weights: evidence.alignment.clone(), kept: None, evidence: Some(evidence) }
    }
}

impl CreditAssigner<usize> for ByToken {
    fn name(&self) -> &'static str {
        "by_token"
    }

    fn signals(&self, _: &[&usize]) -> Result<SignalSet, Error> {
        Ok(SignalSet { attention: Some(anything()), ..SignalSet::default() })
    }

    fn reduce(&self, groups: &[Group<usize>], _: &Signals) -> Result<Vec<Evidence>, Error> {
        Ok(groups.iter().flat_map(|group| &group.completions).map(Self::seen).collect())
    }

    fn assign(&self, rollout: &CreditBatch<'_, usize>) -> Result<Vec<TokenCredit>, Error> {
        let credit =
            |seen: &Evidence| TokenCredit { weights: seen.alignment.clone(), kept: None, evidence: Some(seen.clone()) };
        Ok(rollout.completions.iter().filter_map(|input| input.evidence.map(credit)).collect())
    }
}

/// Weights known beforehand.
pub(super) struct Fixed(pub(super) Vec<Vec<f32>>);

impl CreditAssigner<usize> for Fixed {
    fn name(&self) -> &'static str {
        "fixed"
    }

    fn assign(&self, _: &CreditBatch<'_, usize>) -> Result<Vec<TokenCredit>, Error> {
        Ok(self.0.iter().cloned().map(TokenCredit::from).collect())
    }
}
