use burn::tensor::Tensor;

/// What a [`crate::CreditAssigner`] wants to see of the model while it draws or scores a rollout.
///
/// The trainer hands the set to [`crate::Sampler::sample_with_signals`], and to [`crate::Policy::score`] where the
/// sampler does not know it, so whatever is asked for comes out of a forward pass that happens anyway. A policy that
/// lacks a signal refuses it by [`crate::Error::UnsupportedSignal`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SignalSet {
    /// States of the last decoder layer.
    pub attention: Option<AttentionRequest>,
    /// How much attention every visual token receives in the vision encoder.
    pub image_attention: bool,
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
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
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

/// The signals of completions, without gradients.
#[derive(Debug, Clone, Default)]
pub struct Signals {
    /// Present when [`SignalSet::attention`] was asked for.
    pub attention: Option<AttentionStates>,
    /// Present when [`SignalSet::image_attention`] was asked for: for every group the share of attention that each
    /// visual token receives in the vision encoder's last full-attention layer, a mean over heads and queries.
    pub image_attention: Option<Vec<Tensor<1>>>,
}

impl Signals {
    /// Whether everything asked for is there.
    pub(crate) fn covers(&self, asked: &SignalSet) -> bool {
        (self.attention.is_some() || asked.attention.is_none())
            && (self.image_attention.is_some() || !asked.image_attention)
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
