use std::collections::BTreeMap;
use std::fmt;

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// What a [`crate::CreditAssigner`] wants to see of a rollout.
///
/// The trainer asks once for what all methods of a run want together: the sampler by
/// [`crate::Sampler::sample_with_signals`], so that it comes out of the passes that draw, and the policy by
/// [`crate::Policy::score`] where the sampler does not know it. Each changed view is a forward pass of its own, whoever
/// reads it. [`crate::Policy::offers`] is asked before the first step.
#[derive(Debug, Clone, Default, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "they are flags that have nothing to do with each other")]
pub struct SignalSet {
    /// The entropy of the distribution that each token was drawn from.
    pub entropy: bool,
    /// The same of the smallest set of most likely tokens that have this probability together, renormalised.
    pub top_p_entropy: Option<f32>,
    /// States of the last decoder layer.
    pub attention: Option<AttentionRequest>,
    /// How much attention every visual token receives in the vision encoder.
    pub image_attention: bool,
    /// Outputs of the last decoder layer after the final norm, of response and visual tokens.
    pub hidden: bool,
    /// The text of each token.
    pub texts: bool,
    /// The log-probabilities of the same tokens behind prompts that were changed.
    pub views: Vec<View>,
}

impl SignalSet {
    /// The part of it that comes out of the passes that draw or score a rollout, without a pass of its own.
    #[must_use]
    pub fn of_a_pass(&self) -> Self {
        Self { texts: false, views: Vec::new(), ..self.clone() }
    }

    /// What a policy has to be able to do for it.
    #[must_use]
    pub fn capabilities(&self) -> Vec<Capability> {
        let there = |asked: bool, capability: Capability| asked.then_some(capability);
        let alone = [
            there(self.entropy, Capability::Entropy),
            there(self.top_p_entropy.is_some(), Capability::TopPEntropy),
            there(self.attention.is_some(), Capability::Attention),
            there(self.image_attention, Capability::ImageAttention),
            there(self.hidden, Capability::Hidden),
            there(self.texts, Capability::Texts),
        ];
        alone.into_iter().flatten().chain(self.views.iter().cloned().map(Capability::View)).collect()
    }

    /// Both together; `Err` names what the two want differently.
    pub(crate) fn with(mut self, other: Self) -> Result<Self, Capability> {
        fn same<T: PartialEq>(
            one: Option<T>,
            other: Option<T>,
            capability: Capability,
        ) -> Result<Option<T>, Capability> {
            match (one, other) {
                (Some(one), Some(other)) if one != other => Err(capability),
                (one, other) => Ok(one.or(other)),
            }
        }
        self.top_p_entropy = same(self.top_p_entropy, other.top_p_entropy, Capability::TopPEntropy)?;
        self.attention = same(self.attention, other.attention, Capability::Attention)?;
        self.entropy |= other.entropy;
        self.image_attention |= other.image_attention;
        self.hidden |= other.hidden;
        self.texts |= other.texts;
        for view in other.views {
            if !self.views.contains(&view) {
                self.views.push(view);
            }
        }
        Ok(self)
    }
}

/// Something that not every policy can do.
#[derive(Debug, Clone, PartialEq)]
pub enum Capability {
    /// [`SignalSet::entropy`]; every policy can, as [`crate::Scores`] have it.
    Entropy,
    /// [`SignalSet::top_p_entropy`].
    TopPEntropy,
    /// [`SignalSet::attention`].
    Attention,
    /// [`SignalSet::image_attention`].
    ImageAttention,
    /// [`SignalSet::hidden`].
    Hidden,
    /// [`SignalSet::texts`], by [`crate::Policy::token_text`].
    Texts,
    /// One of [`SignalSet::views`], by [`crate::Policy::changed`].
    View(View),
    /// Features of what a prompt shows, by [`crate::Policy::features`].
    Features,
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Entropy => f.write_str("entropies"),
            Self::TopPEntropy => f.write_str("top-p entropies"),
            Self::Attention => f.write_str("queries and keys of the last layer"),
            Self::ImageAttention => f.write_str("the attention that visual tokens receive"),
            Self::Hidden => f.write_str("final hidden states"),
            Self::Texts => f.write_str("texts of tokens"),
            Self::View(view) => write!(f, "prompts under the view {view}"),
            Self::Features => f.write_str("features of what prompts show"),
        }
    }
}

/// A way to change what a prompt shows, such as an image with parts of it blackened: a name and its parameters, which
/// the policy understands. This crate compares views and hands them on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct View {
    /// Which change it is.
    pub name: String,
    /// Its parameters; the policy has defaults for those that are left out.
    #[serde(flatten)]
    pub parameters: BTreeMap<String, f64>,
}

impl View {
    /// The view of this name with the policy's defaults.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self { name: name.into(), parameters: BTreeMap::new() }
    }
}

impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        for (index, (name, value)) in self.parameters.iter().enumerate() {
            write!(f, "{}{name} = {value}", if index == 0 { " with " } else { ", " })?;
        }
        Ok(())
    }
}

/// Which states of the last decoder layer are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttentionRequest {
    /// Of both the response and the visual tokens.
    pub rope: Rope,
    /// What of the response.
    pub response: ResponseStates,
    /// Query heads, in this order; `None` for all of them.
    pub heads: Option<Vec<usize>>,
    /// For every prompt the visual tokens whose keys are wanted, in this order; `None` for all of them.
    pub visual_tokens: Option<Vec<Vec<usize>>>,
}

/// Whether queries and keys are taken before or after the rotary position embedding.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rope {
    /// As attention itself uses them.
    #[default]
    After,
    /// Without positions.
    Before,
}

/// What is taken of response tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ResponseStates {
    /// Their queries.
    #[default]
    Queries,
    /// Their keys; a key head once for every query head that shares it.
    Keys,
}

/// The signals of completions that come out of a pass, without gradients.
#[derive(Debug, Clone, Default)]
pub struct Signals {
    /// See [`SignalSet::entropy`]: a number a token, for the completions of all groups one after another. A scoring pass
    /// may leave it out, as [`crate::Scores`] have it.
    pub entropy: Option<Vec<Vec<f32>>>,
    /// See [`SignalSet::top_p_entropy`]; likewise.
    pub top_p_entropy: Option<Vec<Vec<f32>>>,
    /// Present when [`SignalSet::attention`] was asked for.
    pub attention: Option<AttentionStates>,
    /// Present when [`SignalSet::image_attention`] was asked for: for every group the share of attention that each
    /// visual token receives in the vision encoder's last full-attention layer, a mean over heads and queries.
    pub image_attention: Option<Vec<Tensor<1>>>,
    /// Present when [`SignalSet::hidden`] was asked for.
    pub hidden: Option<HiddenStates>,
}

impl Signals {
    /// Whether everything asked for is there.
    pub(crate) fn covers(&self, asked: &SignalSet) -> bool {
        (self.entropy.is_some() || !asked.entropy)
            && (self.top_p_entropy.is_some() || asked.top_p_entropy.is_none())
            && (self.attention.is_some() || asked.attention.is_none())
            && (self.image_attention.is_some() || !asked.image_attention)
            && (self.hidden.is_some() || !asked.hidden)
    }
}

/// States of the last decoder layer, as attention uses them (after any query or key normalisation).
#[derive(Debug, Clone)]
pub struct AttentionStates {
    /// Query or key of every completion token *at its own position*: `[tokens, heads, head_dim]`, the heads asked for,
    /// tokens of the completions of all groups one after another.
    pub response: Tensor<3>,
    /// Keys of the visual tokens asked for, one tensor a group: `[key heads, visual tokens, head_dim]`. Without a
    /// choice, visual tokens are in the order of the prompt (images one after another, each in raster order).
    pub visual_keys: Vec<Tensor<3>>,
    /// For every head of `response` the key head that it attends to.
    pub key_heads: Vec<usize>,
}

/// Outputs of the last decoder layer after the final norm.
#[derive(Debug, Clone)]
pub struct HiddenStates {
    /// Of every completion token *at its own position*: `[tokens, hidden_size]`, tokens of the completions of all groups
    /// one after another.
    pub response: Tensor<2>,
    /// Of the visual tokens of each group's prompt: `[visual tokens, hidden_size]`.
    pub visual: Vec<Tensor<2>>,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::{Capability, SignalSet, View};

    #[test]
    fn what_several_methods_want_is_asked_for_once() {
        let black = View::named("blacken");
        let finer = View { parameters: [("patch".to_owned(), 4.0)].into(), ..black.clone() };
        let one = SignalSet { hidden: true, views: vec![black.clone()], ..SignalSet::default() };
        let other = SignalSet { entropy: true, views: vec![black.clone(), finer.clone()], ..SignalSet::default() };
        let both = one.clone().with(other).unwrap();
        assert_eq!(both, SignalSet { hidden: true, entropy: true, views: vec![black, finer], ..SignalSet::default() });
        assert_eq!(both.of_a_pass(), SignalSet { hidden: true, entropy: true, ..SignalSet::default() });
        let named: Vec<String> = both.capabilities().iter().map(ToString::to_string).collect();
        let views = ["prompts under the view blacken", "prompts under the view blacken with patch = 4"];
        assert_eq!(named, ["entropies", "final hidden states", views[0], views[1]]);
        let of = |share| SignalSet { top_p_entropy: share, ..SignalSet::default() };
        assert_eq!(of(Some(0.9)).with(of(Some(0.9))).unwrap(), of(Some(0.9)));
        assert_eq!(of(Some(0.9)).with(of(Some(0.8))).unwrap_err(), Capability::TopPEntropy);
    }
}
