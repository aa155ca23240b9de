//! Qwen3-VL and Qwen2.5-VL on burn: from a model directory in Hugging Face layout to log-probabilities, gradients and
//! completions.
//!
//! In reading order:
//!
//! 1. [`ModelConfig`], [`Processor`] and [`QwenVl::from_dir`] read the directory: `config.json`, the tokenizer, the chat
//!    template, the image settings, the safetensors weights. [`QwenVl::new`] makes fresh weights instead.
//! 2. [`ImageProcessor`] turns a picture into patches ([`smart_resize`], bicubic with antialiasing, normalised), and
//!    [`Processor::prompt`] a conversation into token ids with the image placeholders written out.
//!    [`Processor::changed`] has the same prompt with images of which less can be seen, or with none.
//! 3. [`QwenVl::score`] gives the log-probability and entropy of every completion token, with gradients on an autodiff
//!    device, and on request the last layer's queries and keys and what it lets out ([`Probe`]).
//! 4. [`QwenVl::generate`] draws completions with a cache of keys and values. A prompt runs once for all of its
//!    completions, in scoring too.
//!
//! [`parameters`] lists them by their published names; [`QwenVl::save`] writes a directory that transformers loads.
//! [`MemoryPlan`] says what all of it takes, before anything is loaded.

mod chat;
mod checkpointing;
mod config;
mod directory;
mod error;
mod features;
mod fused;
mod generate;
mod heads;
mod initialize;
mod lora;
mod memory;
mod model;
mod parameters;
mod precision;
mod preprocess;
mod probe;
mod processor;
mod rope;
mod sampling;
mod score;
mod sequence;
mod text;
mod tokenizer;
mod view;
mod vision;
mod weights;

use std::path::Path;

pub use chat::{ChatTemplate, Content, Message, Part, Role, TemplateVariables};
pub use checkpointing::Recomputation;
pub use config::{ModelConfig, RopeScaling, TextConfig, Tower, VisionConfig};
pub use error::{Error, WeightProblem};
pub use generate::{Extrapolation, Generated, Generation};
pub use lora::LoraConfig;
pub use memory::{Hardware, MemoryPlan, Trained, Workload};
pub use model::{QwenVl, TokenMask};
pub use parameters::{Component, Parameter, parameters};
pub use precision::Precision;
pub use preprocess::{Grid, ImageProcessor, ProcessedImage, decode_image, read_image, read_image_size, smart_resize};
pub use probe::{AttentionPoint, AttentionProbe, LastAttention, LastHidden, Probe, Probed, ResponseStates};
pub use processor::{Processor, Prompt};
pub use rope::Position;
pub use sampling::Sampling;
pub use score::{CompletionScores, Positions, Scored};
pub use tokenizer::{TextStream, Tokenizer};
pub use view::ImageChange;
pub use vision::VisionFeatures;
pub use weights::{SaveOptions, has_weights};

/// Reads a JSON file, naming it when something is wrong.
pub(crate) fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, Error> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::Io { path: path.into(), source })?;
    serde_json::from_str(&text).map_err(|reason| Error::Json { path: path.into(), reason })
}
