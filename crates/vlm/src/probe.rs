//! What credit assignment reads of a forward pass: states of the last decoder layer, what comes out of it, how much
//! attention visual tokens receive in the vision tower, and how sure the policy was of each token. All of it comes out
//! of passes that happen anyway, and lies outside the autodiff graph.

use std::ops::Range;

use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::Error;
use crate::processor::Prompt;
use crate::text::{Heads, Projected};

/// What [`QwenVl::score`](crate::QwenVl::score) and [`QwenVl::generate_probed`](crate::QwenVl::generate_probed) hand
/// out beside their result.
#[derive(Debug, Clone, Default)]
pub struct Probe {
    /// States of the last decoder layer.
    pub attention: Option<AttentionProbe>,
    /// How much attention every visual token receives in the vision tower.
    pub image_attention: bool,
    /// The entropy of the distribution of every token that is drawn. A scoring pass needs no asking: its
    /// [entropy](crate::CompletionScores::entropy) is part of the result.
    pub entropy: bool,
    /// The entropy of the smallest set of most likely tokens that has this share of the probability together, above 0
    /// and at most 1: the token that reaches it belongs to the set. Of tokens that are drawn; refused when scoring.
    pub top_p_entropy: Option<f32>,
    /// What comes out of the last decoder layer.
    pub hidden: bool,
}

/// Which states of the last decoder layer are handed out.
#[derive(Debug, Clone)]
pub struct AttentionProbe {
    /// Of both the completions and the visual tokens.
    pub point: AttentionPoint,
    /// What of completion tokens.
    pub response: ResponseStates,
    /// Query heads, in this order; `None` for all of them.
    pub heads: Option<Vec<usize>>,
    /// For every prompt the visual tokens whose keys are handed out, in this order; `None` for all of them.
    pub visual_tokens: Option<Vec<Vec<usize>>>,
}

/// Whether states are taken before or after the rotary embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttentionPoint {
    /// Without positions.
    BeforeRope,
    /// As attention itself uses them.
    AfterRope,
}

/// What is taken of completion tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResponseStates {
    /// Their queries.
    Queries,
    /// Their keys; a key head once for every query head that shares it.
    Keys,
}

/// What a [`Probe`] asked for.
#[derive(Debug, Clone, Default)]
pub struct Probed {
    /// States of the last decoder layer.
    pub attention: Option<LastAttention>,
    /// For every prompt the share of attention that each visual token receives in the last block of the vision tower
    /// that attends to the whole image: a mean over heads, queries and the patches of the token.
    pub image_attention: Option<Vec<Tensor<1>>>,
    /// Of drawing alone: for every completion, those of all prompts one after another, one number per token. The
    /// entropy, in nats, of the distribution at the temperature (at 1 if that is 0) over all tokens that the mask
    /// allows.
    pub entropy: Option<Vec<Vec<f32>>>,
    /// Laid out like `entropy`: that of the same distribution, cut to the set that was asked for and renormalised.
    pub top_p_entropy: Option<Vec<Vec<f32>>>,
    /// What comes out of the last decoder layer.
    pub hidden: Option<LastHidden>,
}

/// Hidden states behind the last decoder layer and the norm that follows it, in float32.
#[derive(Debug, Clone)]
pub struct LastHidden {
    /// `[tokens, hidden_size]`, tokens of the completions of all prompts one after another: each token's state at its
    /// own position, which is what the next token is predicted from.
    pub response: Tensor<2>,
    /// For every prompt `[visual tokens, hidden_size]`, in the order of the prompt.
    pub visual: Vec<Tensor<2>>,
}

/// States of completion tokens and keys of visual tokens in the last decoder layer.
#[derive(Debug, Clone)]
pub struct LastAttention {
    /// `[tokens, heads, head_dim]`, tokens of the completions of all prompts one after another: each token's state at
    /// its own position.
    pub response: Tensor<3>,
    /// For every prompt `[key heads, visual tokens, head_dim]`; without a choice, visual tokens in the order of the
    /// prompt.
    pub visual_keys: Vec<Tensor<3>>,
    /// For every head of `response` the key head that it attends to.
    pub key_heads: Vec<usize>,
}

impl Probe {
    /// Refuses heads and visual tokens that are not there, and a share that no set of tokens can have.
    pub(crate) fn check(&self, prompts: &[&Prompt], heads: Heads) -> Result<(), Error> {
        if let Some(share) = self.top_p_entropy.filter(|share| !(*share > 0.0 && *share <= 1.0)) {
            let problem = format!("is {share}; it must be above 0 and at most 1");
            return Err(Error::Probe { field: "top_p_entropy", problem });
        }
        let Some(AttentionProbe { heads: chosen, visual_tokens, .. }) = &self.attention else { return Ok(()) };
        let refuse = |what, index, count| Err(Error::ProbeOutOfRange { what, index, count });
        if let Some(&head) = chosen.iter().flatten().find(|&&head| head >= heads.query) {
            return refuse("query head", head, heads.query);
        }
        let Some(chosen) = visual_tokens else { return Ok(()) };
        if chosen.len() != prompts.len() {
            return refuse("list of visual tokens", chosen.len(), prompts.len());
        }
        for (chosen, prompt) in chosen.iter().zip(prompts) {
            let count = visual_positions(prompt).count();
            if let Some(&token) = chosen.iter().find(|&&token| token >= count) {
                return refuse("visual token", token, count);
            }
        }
        Ok(())
    }
}

impl AttentionProbe {
    /// The chosen query heads.
    fn query_heads(&self, heads: Heads) -> Vec<usize> {
        self.heads.clone().unwrap_or_else(|| (0..heads.query).collect())
    }

    /// For each of them the key head that it attends to.
    fn key_heads(&self, heads: Heads) -> Vec<usize> {
        self.query_heads(heads).into_iter().map(|head| head / heads.sharing()).collect()
    }

    /// For every prompt the keys of its visual tokens that are asked for, given the last layer's keys and the rows of each
    /// prompt.
    pub(crate) fn visual_keys(&self, prompts: &[&Prompt], rows: &[Range<usize>], keys: Tensor<3>) -> Vec<Tensor<3>> {
        let keys = without_graph(keys);
        let of_prompt = |(index, prompt): (usize, &&Prompt)| {
            let visual = visual_rows(prompt, &rows[index]);
            let rows = match &self.visual_tokens {
                Some(chosen) => chosen[index].iter().map(|&token| visual[token]).collect(),
                None => visual,
            };
            keys.clone().select(0, indices(&rows, &keys.device())).swap_dims(0, 1)
        };
        prompts.iter().enumerate().map(of_prompt).collect()
    }

    /// What was asked for, with the states of the completions.
    pub(crate) fn found(&self, visual_keys: Vec<Tensor<3>>, heads: Heads, response: Tensor<3>) -> LastAttention {
        LastAttention { response, visual_keys, key_heads: self.key_heads(heads) }
    }
}

/// Takes states of the last layer while completions run through it.
pub(crate) struct Tap {
    point: AttentionPoint,
    response: ResponseStates,
    /// Rows of the states that are taken; `None` for all.
    heads: Option<Tensor<1, Int>>,
    /// `[tokens, heads, head_dim]` of every pass so far.
    pub(crate) taken: Vec<Tensor<3>>,
}

impl Tap {
    pub(crate) fn new(probe: &AttentionProbe, heads: Heads, device: &Device) -> Self {
        let (rows, all) = match probe.response {
            ResponseStates::Queries => (probe.query_heads(heads), heads.query),
            ResponseStates::Keys => (probe.key_heads(heads), heads.key),
        };
        // Choosing every head in order would only copy.
        let heads = (!rows.iter().copied().eq(0..all)).then(|| indices(&rows, device));
        Self { point: probe.point, response: probe.response, heads, taken: Vec::new() }
    }

    pub(crate) fn take(&mut self, projected: &Projected) {
        let rows = projected.query_after_rope.dims()[0];
        let states = self.states(projected, 0..rows);
        self.taken.push(states);
    }

    /// States of these rows.
    pub(crate) fn states(&self, projected: &Projected, rows: Range<usize>) -> Tensor<3> {
        let states = match self.response {
            ResponseStates::Queries => projected.query(self.point),
            ResponseStates::Keys => projected.key(self.point),
        };
        let states = without_graph(states.clone()).narrow(0, rows.start, rows.len());
        match &self.heads {
            Some(heads) => states.select(1, heads.clone()),
            None => states,
        }
    }
}

impl LastHidden {
    /// With the states of the completions, and those of prompts in these rows of `hidden`.
    pub(crate) fn new(response: Tensor<2>, prompts: &[&Prompt], rows: &[Range<usize>], hidden: &Tensor<2>) -> Self {
        let of_prompt = |(prompt, rows): (&&Prompt, &Range<usize>)| {
            hidden.clone().select(0, indices(&visual_rows(prompt, rows), &hidden.device()))
        };
        Self { response, visual: prompts.iter().zip(rows).map(of_prompt).collect() }
    }
}

/// Where visual tokens of a prompt lie that has these rows.
fn visual_rows(prompt: &Prompt, rows: &Range<usize>) -> Vec<usize> {
    visual_positions(prompt).map(|position| rows.start + position).collect()
}

/// Positions of a prompt's visual tokens.
fn visual_positions(prompt: &Prompt) -> impl Iterator<Item = usize> {
    prompt.image_spans().iter().cloned().flatten()
}

pub(crate) fn indices(values: &[usize], device: &Device) -> Tensor<1, Int> {
    let values: Vec<i64> = values.iter().map(|&value| value as i64).collect();
    let count = values.len();
    Tensor::from_data(TensorData::new(values, [count]), device)
}

pub(crate) fn without_graph<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    if tensor.is_autodiff() { tensor.inner() } else { tensor }
}
