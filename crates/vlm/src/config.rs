//! `config.json`, field by field, as published on the Hub.
//!
//! Names are Hugging Face's. Fields that no supported model varies are not listed and are ignored when reading;
//! whoever saves a model keeps the file it came with, so nothing is lost.

use std::path::Path;

use serde::Deserialize;

use crate::Error;

/// A vision-language model: `config.json`.
#[derive(Debug, Clone, Deserialize)]
pub struct ModelConfig {
    /// `qwen3_vl`.
    pub model_type: String,
    /// The decoder.
    pub text_config: TextConfig,
    /// The image encoder.
    pub vision_config: VisionConfig,
    /// Placeholder of one visual token.
    pub image_token_id: u32,
    /// Placeholder of one video token; never sampled.
    pub video_token_id: u32,
    /// Opens an image.
    pub vision_start_token_id: u32,
    /// Closes an image.
    pub vision_end_token_id: u32,
    /// Whether the output head is the embedding table. Some checkpoints write it here, some in `text_config`.
    #[serde(default)]
    pub tie_word_embeddings: bool,
}

/// The decoder: `text_config`.
#[derive(Debug, Clone, Deserialize)]
pub struct TextConfig {
    /// Rows of the embedding table; may exceed the tokenizer's vocabulary.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the SwiGLU.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads.
    pub num_key_value_heads: usize,
    /// Width of one head; Qwen3 states it, it need not be `hidden_size / num_attention_heads`.
    pub head_dim: usize,
    /// RMSNorm epsilon.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Multimodal rotary sections.
    pub rope_scaling: RopeScaling,
    /// Longest sequence.
    pub max_position_embeddings: usize,
    /// Biases in attention; refused, as no published Qwen3-VL has them.
    #[serde(default)]
    pub attention_bias: bool,
    /// End of a turn.
    pub eos_token_id: u32,
    /// See [`ModelConfig::tie_word_embeddings`].
    #[serde(default)]
    pub tie_word_embeddings: bool,
    /// Standard deviation of a freshly made embedding table. Fresh linear layers start uniform in `1 / sqrt(inputs)`.
    #[serde(default = "default_initializer_range")]
    pub initializer_range: f64,
}

/// How rotary frequencies are shared between the time, height and width axes, which take turns.
#[derive(Debug, Clone, Deserialize)]
pub struct RopeScaling {
    /// Frequencies per axis; they sum to `head_dim / 2`.
    pub mrope_section: [usize; 3],
    /// Qwen3-VL's axes take turns; another layout is refused.
    #[serde(default = "interleaved")]
    pub mrope_interleaved: bool,
    /// `default`: no stretching of the context; anything else is refused.
    #[serde(default = "default_rope")]
    pub rope_type: String,
}

/// The image encoder: `vision_config`.
#[derive(Debug, Clone, Deserialize)]
pub struct VisionConfig {
    /// Transformer blocks.
    pub depth: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the block's MLP.
    pub intermediate_size: usize,
    /// Attention heads.
    pub num_heads: usize,
    /// Colour channels.
    pub in_channels: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
    /// Patches per side of one visual token.
    pub spatial_merge_size: usize,
    /// Frames per patch; a still image is repeated.
    pub temporal_patch_size: usize,
    /// Width of a visual token, the decoder's `hidden_size`.
    pub out_hidden_size: usize,
    /// Learned positions, a square number.
    pub num_position_embeddings: usize,
    /// Blocks whose output feeds the first decoder layers.
    pub deepstack_visual_indexes: Vec<usize>,
    /// Standard deviation of freshly made learned positions; see [`TextConfig::initializer_range`].
    #[serde(default = "default_initializer_range")]
    pub initializer_range: f64,
}

fn interleaved() -> bool {
    true
}

fn default_rope() -> String {
    "default".into()
}

fn default_initializer_range() -> f64 {
    0.02
}

impl ModelConfig {
    /// Reads and checks `config.json` in a model directory.
    ///
    /// # Errors
    /// When the file is missing, is not JSON of this shape, or describes a model that does not exist.
    pub fn from_dir(dir: &Path) -> Result<Self, Error> {
        let path = dir.join("config.json");
        let config: Self = crate::read_json(&path)?;
        config.check().map_err(|(field, problem)| Error::Config { path, field: field.into(), problem })?;
        Ok(config)
    }

    /// Whether the output head is the embedding table.
    #[must_use]
    pub fn tied(&self) -> bool {
        self.tie_word_embeddings || self.text_config.tie_word_embeddings
    }

    fn check(&self) -> Result<(), (&'static str, String)> {
        let (text, vision) = (&self.text_config, &self.vision_config);
        let fail = |field, problem: String| Err((field, problem));
        if self.model_type != "qwen3_vl" {
            return fail("model_type", format!("is {:?}; supported: qwen3_vl", self.model_type));
        }
        if text.attention_bias {
            return fail("text_config.attention_bias", "is true, which Qwen3-VL does not have".into());
        }
        if !text.rope_scaling.mrope_interleaved {
            return fail("text_config.rope_scaling.mrope_interleaved", "is false, which Qwen3-VL does not have".into());
        }
        if text.rope_scaling.rope_type != "default" {
            let found = &text.rope_scaling.rope_type;
            return fail("text_config.rope_scaling.rope_type", format!("is {found:?}; supported: default"));
        }
        if text.num_key_value_heads == 0 || !text.num_attention_heads.is_multiple_of(text.num_key_value_heads) {
            return fail(
                "text_config.num_key_value_heads",
                format!("{} does not divide the {} query heads", text.num_key_value_heads, text.num_attention_heads),
            );
        }
        if text.rope_scaling.mrope_section.iter().sum::<usize>() * 2 != text.head_dim {
            return fail(
                "text_config.rope_scaling.mrope_section",
                format!("{:?} does not sum to half of head_dim {}", text.rope_scaling.mrope_section, text.head_dim),
            );
        }
        if vision.num_heads == 0
            || !vision.hidden_size.is_multiple_of(vision.num_heads)
            || !(vision.hidden_size / vision.num_heads).is_multiple_of(4)
        {
            return fail(
                "vision_config.num_heads",
                format!(
                    "{} does not split hidden_size {} into heads of a multiple of 4",
                    vision.num_heads, vision.hidden_size
                ),
            );
        }
        if vision.out_hidden_size != text.hidden_size {
            return fail(
                "vision_config.out_hidden_size",
                format!("is {}, text_config.hidden_size is {}", vision.out_hidden_size, text.hidden_size),
            );
        }
        if vision.num_position_embeddings == 0
            || vision.num_position_embeddings.isqrt().pow(2) != vision.num_position_embeddings
        {
            return fail(
                "vision_config.num_position_embeddings",
                format!("{} is not a positive square", vision.num_position_embeddings),
            );
        }
        if vision.deepstack_visual_indexes.iter().any(|&i| i >= vision.depth)
            || vision.deepstack_visual_indexes.len() > text.num_hidden_layers
        {
            return fail(
                "vision_config.deepstack_visual_indexes",
                format!(
                    "{:?} does not fit {} blocks and {} decoder layers",
                    vision.deepstack_visual_indexes, vision.depth, text.num_hidden_layers
                ),
            );
        }
        if vision.patch_size == 0 || vision.spatial_merge_size == 0 || vision.temporal_patch_size == 0 {
            return fail("vision_config.patch_size", "and the merge sizes must be positive".into());
        }
        if vision.in_channels != 3 {
            return fail("vision_config.in_channels", format!("is {}; images have 3", vision.in_channels));
        }
        for (field, id) in [
            ("image_token_id", self.image_token_id),
            ("video_token_id", self.video_token_id),
            ("vision_start_token_id", self.vision_start_token_id),
            ("vision_end_token_id", self.vision_end_token_id),
            ("text_config.eos_token_id", text.eos_token_id),
        ] {
            if id as usize >= text.vocab_size {
                return fail(field, format!("{id} is outside the vocabulary of {}", text.vocab_size));
            }
        }
        Ok(())
    }
}
