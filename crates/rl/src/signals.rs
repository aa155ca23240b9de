use burn::tensor::Tensor;

/// What a [`crate::CreditAssigner`] wants to see of the pass that scores a rollout.
///
/// The trainer hands the set to [`crate::Policy::score`], so whatever is asked for comes out of a forward pass that
/// happens anyway. A policy that lacks a signal refuses it by [`crate::Error::UnsupportedSignal`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SignalSet {
    /// Queries and keys of the last decoder layer.
    pub attention: Option<Rope>,
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

/// The signals of the groups that were scored, without gradients.
#[derive(Debug, Clone, Default)]
pub struct Signals {
    /// Present when [`SignalSet::attention`] was asked for.
    pub attention: Option<AttentionStates>,
}

/// Queries and keys of the last decoder layer, as attention uses them (after any query or key normalisation).
#[derive(Debug, Clone)]
pub struct AttentionStates {
    /// Query of every completion token *at its own position*: `[completions, query heads, tokens, head_dim]`,
    /// right-padded, completions of all groups one after another.
    pub queries: Tensor<4>,
    /// Keys of the prompt's visual tokens, one tensor a group: `[key heads, visual tokens, head_dim]`, visual tokens
    /// in the order of the prompt (images one after another, each in raster order).
    pub visual_keys: Vec<Tensor<3>>,
}
