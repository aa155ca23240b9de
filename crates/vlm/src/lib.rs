//! Qwen-VL models on burn: preprocessing, forward pass, weights, generation.

mod chat;
mod config;
mod error;
mod generate;
mod initialize;
mod model;
mod preprocess;
mod processor;
mod rope;
mod text;
mod tokenizer;
mod vision;
mod weights;

use std::path::Path;

pub use chat::{ChatTemplate, Content, Message, Part, Role, TemplateVariables};
pub use config::{ModelConfig, RopeScaling, TextConfig, VisionConfig};
pub use error::Error;
pub use generate::{Generated, Generation};
pub use model::{AttentionPoint, CompletionScores, LastAttention, QwenVl, Scored, TokenMask};
pub use preprocess::{Grid, ImageProcessor, ProcessedImage, decode_image, read_image, smart_resize};
pub use processor::{Processor, Prompt};
pub use rope::Position;
pub use tokenizer::Tokenizer;
pub use vision::VisionFeatures;
pub use weights::{has_weights, published_names};

/// Reads a JSON file, naming it when something is wrong.
pub(crate) fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, Error> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::Io { path: path.into(), source })?;
    serde_json::from_str(&text).map_err(|reason| Error::Json { path: path.into(), reason })
}
