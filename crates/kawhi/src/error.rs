use std::path::PathBuf;

/// Everything that can go wrong between an image, the states of a model and the weights of a response.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A value of the configuration lies outside its range.
    #[error("{field} must be {expected}, but is {found}")]
    InvalidConfig {
        /// Path of the key in the configuration.
        field: &'static str,
        /// Its range, in words.
        expected: &'static str,
        /// Its value.
        found: f64,
    },
    /// The list of heads is empty.
    #[error("the list of heads is empty")]
    NoHeads,
    /// The list of heads names a head twice.
    #[error("head {head} is listed twice")]
    RepeatedHead {
        /// The index that occurs twice.
        head: usize,
    },
    /// A file of vision-critical heads that cannot be read, or has a value that cannot be.
    #[error("{path}: {problem}")]
    HeadsFile {
        /// The file.
        path: PathBuf,
        /// Its key, where there is one, and what is wrong.
        problem: String,
    },
    /// A file of vision-critical heads that leaves nothing to compare.
    #[error("{path} names no critical head at threshold {threshold}; use heads = \"all\" or a lower threshold")]
    NoCriticalHeads {
        /// The file.
        path: PathBuf,
        /// The threshold that no head falls by.
        threshold: f64,
    },
    /// The pixels of an image do not fill a whole number of cells.
    #[error("{bytes} bytes are not an RGB image of {width} x {height} pixels made of whole cells of {cell} x {cell}")]
    ImageShape {
        /// Width in pixels.
        width: usize,
        /// Height in pixels.
        height: usize,
        /// Side of a visual token in pixels.
        cell: usize,
        /// Length of the pixel buffer.
        bytes: usize,
    },
    /// The trainer did not hand over what was asked for.
    #[error("the signal {signal} is missing")]
    MissingSignal {
        /// Field of [`firesight_rl::Signals`].
        signal: &'static str,
    },
    /// The attention states are of another number of groups than the batch.
    #[error("the batch has {expected} groups, but visual keys came for {found}")]
    GroupCount {
        /// Groups with visual keys.
        found: usize,
        /// Groups in the batch.
        expected: usize,
    },
    /// The attention states are of another number of tokens than the batch.
    #[error("the completions of the batch have {expected} tokens, but states came for {found}")]
    TokenCount {
        /// Tokens with states.
        found: usize,
        /// Tokens of all completions.
        expected: usize,
    },
    /// A prompt has no image, so nothing can be aligned with it.
    #[error("the prompt of group {group} has no image")]
    NoImage {
        /// Index of the group in the batch.
        group: usize,
    },
    /// A signal is of another number of visual tokens than was asked for.
    #[error("the signal {signal} of group {group} is of {found} visual tokens, not {expected}")]
    VisualTokens {
        /// Its name.
        signal: &'static str,
        /// Index of the group in the batch.
        group: usize,
        /// Visual tokens that it is of.
        found: usize,
        /// Those asked for.
        expected: usize,
    },
    /// A region selector of somebody's own failed.
    #[error("the region selector failed")]
    Selector(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A region selector chose among another number of visual tokens than the image has.
    #[error("the region selector decided about {found} visual tokens of an image that has {expected}")]
    Selection {
        /// Visual tokens that it decided about.
        found: usize,
        /// Cells of the image.
        expected: usize,
    },
    /// States of the response and visual keys are not those of one attention layer.
    #[error("states of shape {response:?} and keys of shape {keys:?} do not belong to one layer")]
    AttentionShape {
        /// `[tokens, heads, head_dim]`.
        response: [usize; 3],
        /// `[key heads, visual tokens, head_dim]`.
        keys: [usize; 3],
    },
    /// No visual token is selected.
    #[error("no visual token is selected")]
    NoSelection,
    /// Spans do not partition a response.
    #[error("segment {paragraph} does not continue a partition of {tokens} tokens")]
    Spans {
        /// The first segment that is empty, overlaps, leaves a gap or ends past the response; the number of segments
        /// when the last one ends too early.
        paragraph: usize,
        /// Tokens of the response.
        tokens: usize,
    },
    /// The alignment of a response is not a number.
    #[error("the alignment of token {token} is {found}")]
    NonFinite {
        /// Index of the token in the response.
        token: usize,
        /// Its alignment.
        found: f64,
    },
}
