//! The model of a conversation, and how it answers.

use std::path::PathBuf;

use burn::tensor::FloatDType;
use clap::{Args, ValueEnum};
use firesight_train::Speech;

use crate::extrapolation::Extrapolation;

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Dtype {
    F32,
    Bf16,
    F16,
}

impl From<Dtype> for FloatDType {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::Bf16 => Self::BF16,
            Dtype::F16 => Self::F16,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Speaker {
    /// Model directory in Hugging Face layout, with weights: the model of a run, or any other.
    model: PathBuf,
    /// Image that the first question is about; may be given several times.
    #[arg(long)]
    pub(crate) image: Vec<PathBuf>,
    /// Directory of a LoRA adapter in PEFT's layout.
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// Standing instructions.
    #[arg(long)]
    pub(crate) system: Option<String>,
    /// Longest answer in tokens.
    #[arg(long, default_value_t = 512)]
    max_tokens: usize,
    /// 0 takes the most likely token [default: as generation_config.json says].
    #[arg(long)]
    temperature: Option<f32>,
    /// Only this many of the most likely tokens; 0 for all [default: as generation_config.json says].
    #[arg(long)]
    top_k: Option<usize>,
    /// Only the most likely tokens that have this probability together [default: as generation_config.json says].
    #[arg(long)]
    top_p: Option<f32>,
    /// Only tokens at least this share as likely as the likeliest [default: as generation_config.json says].
    #[arg(long)]
    min_p: Option<f32>,
    #[command(flatten)]
    extrapolation: Extrapolation,
    /// Seed of the draws.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Float type to compute in.
    #[arg(long, value_enum, default_value = "f32")]
    dtype: Dtype,
    /// flex, cuda, cuda:1..., wgpu, wgpu:1..., as far as compiled in.
    #[arg(long, default_value = "flex")]
    device: String,
}

impl Speaker {
    pub(crate) fn speech(&self) -> Speech {
        Speech {
            model: self.model.clone(),
            adapter: self.adapter.clone(),
            device: self.device.clone(),
            dtype: self.dtype.into(),
            max_tokens: self.max_tokens,
            seed: self.seed,
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            extrapolation: self.extrapolation.config(),
        }
    }
}
