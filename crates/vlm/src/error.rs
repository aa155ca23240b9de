use std::path::PathBuf;

/// Everything that can go wrong between a model directory, an image, a prompt and a forward pass.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file of the model directory could not be read or written.
    #[error("cannot access {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
    /// A JSON file does not have the expected fields.
    #[error("{path} is not valid: {reason}")]
    Json {
        /// The file.
        path: PathBuf,
        /// The field and position.
        reason: serde_json::Error,
    },
    /// A configuration value that no supported model has.
    #[error("{path}: {field} {problem}")]
    Config {
        /// The file.
        path: PathBuf,
        /// Dotted name of the field.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A weight file is missing, truncated or not in safetensors format.
    #[error("weight file {path}: {problem}")]
    WeightFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Weight files that are not those of the model that the configuration describes.
    #[error("{path} does not hold the weights of its config.json:{}", lines(problems))]
    Weights {
        /// The directory.
        path: PathBuf,
        /// Everything that is wrong.
        problems: Vec<WeightProblem>,
    },
    /// An image that does not decode.
    #[error("image {name} does not decode")]
    ImageDecode {
        /// File name or position.
        name: String,
        /// What the decoder said.
        #[source]
        source: image::ImageError,
    },
    /// An image that decodes but cannot be shown to the model.
    #[error("image of {width}x{height} pixels: {problem}")]
    ImageSize {
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// What is wrong with it.
        problem: String,
    },
    /// The tokenizer file is invalid, or a text cannot be tokenized.
    #[error("tokenizer {path}: {problem}")]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The chat template is invalid, or refused the messages.
    #[error("chat template {path}")]
    Template {
        /// The file.
        path: PathBuf,
        /// Line and reason.
        #[source]
        source: minijinja::Error,
    },
    /// The text has another number of image placeholders than there are images.
    #[error("the prompt has {placeholders} image placeholders for {images} images")]
    ImageCount {
        /// Placeholders in the rendered prompt.
        placeholders: usize,
        /// Images given.
        images: usize,
    },
    /// A text of a message contains the placeholder of an image or a video.
    #[error("the text of a message contains {token}, which only an image may stand for")]
    PlaceholderInText {
        /// The placeholder.
        token: String,
    },
    /// Images for a model without a vision tower.
    #[error("a {model} model has no vision tower, but the prompt has images")]
    NoVision {
        /// Its `model_type`.
        model: String,
    },
    /// Low-rank adapters that the model cannot have.
    #[error("LoRA: {problem}")]
    Lora {
        /// What is wrong.
        problem: String,
    },
    /// A query head that the decoder's layers do not have.
    #[error("there is no query head {head}: the layers have {heads}, counted from 0")]
    HeadOutOfRange {
        /// The index.
        head: usize,
        /// Query heads of a layer.
        heads: usize,
    },
    /// A token id that the model has no embedding for.
    #[error("token id {id} at position {position} is outside the vocabulary of {vocabulary}")]
    TokenOutOfVocabulary {
        /// The id.
        id: u32,
        /// Its position in the sequence.
        position: usize,
        /// Rows of the embedding table.
        vocabulary: usize,
    },
    /// A probe asks for something that the model or a prompt does not have.
    #[error("the probe asks for {what} {index}, and there are {count}")]
    ProbeOutOfRange {
        /// What it asks for.
        what: &'static str,
        /// Which of them, counted from 0.
        index: usize,
        /// How many there are.
        count: usize,
    },
    /// A change that cannot be made to an image.
    #[error("the image change's {field} {problem}")]
    ImageChange {
        /// Name of the field.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// A probe asks for something in a way that cannot be answered.
    #[error("the probe's {field} {problem}")]
    Probe {
        /// Name of the field.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// A model to extrapolate from whose logits are not those of the same tokens.
    #[error("the base model has a vocabulary of {base}, the policy one of {policy}")]
    OtherVocabulary {
        /// Rows of its embedding table.
        base: usize,
        /// Rows of the policy's.
        policy: usize,
    },
    /// Logits that nothing can be drawn from.
    #[error("completion {index}: the logits are not finite, or every token is suppressed")]
    NonFiniteLogits {
        /// Which completion of the batch.
        index: usize,
    },
    /// A prompt without any token.
    #[error("prompt {index} is empty")]
    EmptyPrompt {
        /// Which prompt of the batch.
        index: usize,
    },
    /// Prompt and completion together are longer than the model's positions.
    #[error(
        "prompt {index}: {prompt} prompt tokens and {completion} completion tokens exceed the context of {context}"
    )]
    ContextLength {
        /// Which prompt of the batch.
        index: usize,
        /// Tokens of the prompt, image tokens included.
        prompt: usize,
        /// Completion tokens asked for.
        completion: usize,
        /// `max_position_embeddings`.
        context: usize,
    },
}

/// What is wrong with one parameter of a weight file. Names and shapes are the published ones.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WeightProblem {
    /// The configuration asks for it, no file has it.
    #[error("{name} is missing")]
    Missing {
        /// Its name.
        name: String,
    },
    /// A file has it, the configuration has no place for it.
    #[error("{name} belongs to no part of the model")]
    Superfluous {
        /// Its name.
        name: String,
    },
    /// It has another shape than the configuration says.
    #[error("{name} has shape {found:?}, the configuration asks for {expected:?}")]
    Shape {
        /// Its name.
        name: String,
        /// Shape on disk.
        found: Vec<usize>,
        /// Shape the configuration implies.
        expected: Vec<usize>,
    },
    /// Its bytes are no floats that can be read.
    #[error("{reason}")]
    Unreadable {
        /// Which one, and why.
        reason: String,
    },
}

fn lines(problems: &[WeightProblem]) -> String {
    problems.iter().fold(String::new(), |lines, problem| format!("{lines}\n  {problem}"))
}
