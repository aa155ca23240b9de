//! `config.json`, field by field, as published on the Hub.
//!
//! Names are Hugging Face's. Fields that no supported model varies are not listed and are ignored when reading;
//! whoever saves a model keeps the file it came with, so nothing is lost.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::Error;

/// A language model with or without a vision tower: `config.json`.
#[derive(Debug, Clone, Deserialize)]
pub struct ModelConfig {
    /// `qwen3_vl`, `qwen2_5_vl`, or `qwen3` and `qwen2` for text alone.
    pub model_type: String,
    /// The decoder.
    pub text_config: TextConfig,
    /// The image encoder; `None` for a model of text alone.
    pub vision_config: Option<VisionConfig>,
    /// Placeholder of one visual token.
    pub image_token_id: Option<u32>,
    /// Placeholder of one video token; never sampled.
    pub video_token_id: Option<u32>,
    /// Opens an image.
    pub vision_start_token_id: Option<u32>,
    /// Closes an image.
    pub vision_end_token_id: Option<u32>,
    /// Whether the output head is the embedding table. Some checkpoints write it in `text_config` only.
    pub tie_word_embeddings: bool,
}

/// The decoder: `text_config`, or the top level of a file that has none.
#[derive(Debug, Clone, Deserialize)]
#[allow(clippy::struct_excessive_bools, reason = "the published fields")]
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
    /// Width of one head; `hidden_size / num_attention_heads` where the file does not say.
    pub head_dim: usize,
    /// RMSNorm epsilon.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Multimodal rotary sections; all of them on one axis where the file has none.
    pub rope_scaling: RopeScaling,
    /// Longest sequence.
    pub max_position_embeddings: usize,
    /// Biases in all projections of attention; refused, as no supported model has them.
    #[serde(default)]
    pub attention_bias: bool,
    /// A sliding window in some layers; refused, as no published model of these families uses it.
    #[serde(default)]
    pub use_sliding_window: bool,
    /// End of a turn.
    pub eos_token_id: u32,
    /// Standard deviation of a freshly made embedding table. Fresh linear layers start uniform in `1 / sqrt(inputs)`.
    #[serde(default = "default_initializer_range")]
    pub initializer_range: f64,
    /// Biases of the query, key and value projections. No field of the file: Qwen2 has them, Qwen3 has not.
    pub qkv_bias: bool,
    /// An RMSNorm over each query and key head. No field of the file: Qwen3 has it, Qwen2 has not.
    pub qk_norm: bool,
}

/// How rotary frequencies are shared between the time, height and width axes.
#[derive(Debug, Clone, Deserialize)]
pub struct RopeScaling {
    /// Frequencies per axis; they sum to `head_dim / 2`.
    pub mrope_section: [usize; 3],
    /// Whether the axes take turns (Qwen3-VL) or have contiguous sections (Qwen2.5-VL).
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
    /// Standard deviation of freshly made learned positions; see [`TextConfig::initializer_range`].
    #[serde(default = "default_initializer_range")]
    pub initializer_range: f64,
    /// What the family's towers do not share.
    #[serde(flatten)]
    pub tower: Tower,
}

/// What towers of the two families do not share.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "tower", rename_all = "snake_case")]
pub enum Tower {
    /// LayerNorm, GELU, learned positions, deepstack (arXiv 2511.21631).
    #[serde(rename = "qwen3_vl")]
    Qwen3 {
        /// Learned positions, a square number.
        num_position_embeddings: usize,
        /// Blocks whose output feeds the first decoder layers.
        deepstack_visual_indexes: Vec<usize>,
    },
    /// RMSNorm, SwiGLU, attention within windows (arXiv 2502.13923).
    #[serde(rename = "qwen2_5_vl")]
    Qwen2_5 {
        /// Side of a window in pixels.
        window_size: usize,
        /// Blocks that attend to the whole image.
        fullatt_block_indexes: Vec<usize>,
    },
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
        let written: Value = crate::read_json(&path)?;
        let refused =
            |(field, problem): (&str, String)| Error::Config { path: path.clone(), field: field.into(), problem };
        let model_type = written["model_type"].as_str().unwrap_or_default();
        if !MODEL_TYPES.contains(&model_type) {
            let supported = MODEL_TYPES.join(", ");
            return Err(refused(("model_type", format!("is {model_type:?}; supported: {supported}"))));
        }
        let config: Self =
            serde_json::from_value(completed(written)).map_err(|reason| Error::Json { path: path.clone(), reason })?;
        config.check().map_err(refused)?;
        Ok(config)
    }

    /// Ids that stand for pixels or surround them: none of them is ever sampled.
    pub fn vision_token_ids(&self) -> impl Iterator<Item = u32> {
        [self.image_token_id, self.video_token_id, self.vision_start_token_id, self.vision_end_token_id]
            .into_iter()
            .flatten()
    }

    fn check(&self) -> Result<(), (&'static str, String)> {
        self.text_config.check()?;
        if let Some(vision) = &self.vision_config {
            vision.check(&self.text_config)?;
        }
        for (field, id) in [
            ("image_token_id", self.image_token_id),
            ("video_token_id", self.video_token_id),
            ("vision_start_token_id", self.vision_start_token_id),
            ("vision_end_token_id", self.vision_end_token_id),
            ("text_config.eos_token_id", Some(self.text_config.eos_token_id)),
        ] {
            match id {
                None if self.vision_config.is_some() => return Err((field, "is missing".into())),
                Some(id) if id as usize >= self.text_config.vocab_size => {
                    return Err((field, format!("{id} is outside the vocabulary of {}", self.text_config.vocab_size)));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl TextConfig {
    fn check(&self) -> Result<(), (&'static str, String)> {
        let fail = |field, problem: String| Err((field, problem));
        if self.attention_bias {
            return fail("text_config.attention_bias", "is true, which no supported model has".into());
        }
        if self.use_sliding_window {
            return fail("text_config.use_sliding_window", "is true, which is not supported".into());
        }
        if self.rope_scaling.rope_type != "default" {
            let found = &self.rope_scaling.rope_type;
            return fail("text_config.rope_scaling.rope_type", format!("is {found:?}; supported: default"));
        }
        if self.num_key_value_heads == 0 || !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            return fail(
                "text_config.num_key_value_heads",
                format!("{} does not divide the {} query heads", self.num_key_value_heads, self.num_attention_heads),
            );
        }
        if self.rope_scaling.mrope_section.iter().sum::<usize>() * 2 != self.head_dim {
            return fail(
                "text_config.rope_scaling.mrope_section",
                format!("{:?} does not sum to half of head_dim {}", self.rope_scaling.mrope_section, self.head_dim),
            );
        }
        Ok(())
    }
}

impl VisionConfig {
    fn check(&self, text: &TextConfig) -> Result<(), (&'static str, String)> {
        let fail = |field, problem: String| Err((field, problem));
        if self.num_heads == 0
            || !self.hidden_size.is_multiple_of(self.num_heads)
            || !(self.hidden_size / self.num_heads).is_multiple_of(4)
        {
            return fail(
                "vision_config.num_heads",
                format!(
                    "{} does not split hidden_size {} into heads of a multiple of 4",
                    self.num_heads, self.hidden_size
                ),
            );
        }
        if self.out_hidden_size != text.hidden_size {
            return fail(
                "vision_config.out_hidden_size",
                format!("is {}, text_config.hidden_size is {}", self.out_hidden_size, text.hidden_size),
            );
        }
        if self.patch_size == 0 || self.spatial_merge_size == 0 || self.temporal_patch_size == 0 {
            return fail("vision_config.patch_size", "and the merge sizes must be positive".into());
        }
        if self.in_channels != 3 {
            return fail("vision_config.in_channels", format!("is {}; images have 3", self.in_channels));
        }
        match &self.tower {
            Tower::Qwen3 { num_position_embeddings, deepstack_visual_indexes } => {
                let positions = *num_position_embeddings;
                if positions == 0 || positions.isqrt().pow(2) != positions {
                    return fail(
                        "vision_config.num_position_embeddings",
                        format!("{positions} is not a positive square"),
                    );
                }
                if deepstack_visual_indexes.iter().any(|&i| i >= self.depth)
                    || deepstack_visual_indexes.len() > text.num_hidden_layers
                {
                    return fail(
                        "vision_config.deepstack_visual_indexes",
                        format!(
                            "{deepstack_visual_indexes:?} does not fit {} blocks and {} decoder layers",
                            self.depth, text.num_hidden_layers
                        ),
                    );
                }
            }
            Tower::Qwen2_5 { window_size, fullatt_block_indexes } => {
                let token = self.patch_size * self.spatial_merge_size;
                if *window_size < token {
                    return fail(
                        "vision_config.window_size",
                        format!("is {window_size}, less than the {token} pixels of a visual token"),
                    );
                }
                if fullatt_block_indexes.iter().any(|&i| i >= self.depth) {
                    return fail(
                        "vision_config.fullatt_block_indexes",
                        format!("{fullatt_block_indexes:?} does not fit {} blocks", self.depth),
                    );
                }
            }
        }
        Ok(())
    }
}

/// Model types that can be read.
const MODEL_TYPES: [&str; 4] = ["qwen3_vl", "qwen2_5_vl", "qwen3", "qwen2"];

/// Writes out what a `config.json` leaves to its reader: the decoder's fields are at the top level in files without
/// `text_config`; rotary settings are in `rope_scaling`, in `rope_parameters` (since transformers 5) or absent; and what
/// the model type implies has no field at all.
fn completed(mut root: Value) -> Value {
    let model_type = root["model_type"].as_str().unwrap_or_default().to_owned();
    let mut text = root.get("text_config").unwrap_or(&root).as_object().cloned().unwrap_or_default();
    let qwen2 = model_type.starts_with("qwen2");
    text.insert("qkv_bias".into(), qwen2.into());
    text.insert("qk_norm".into(), (!qwen2).into());
    text.retain(|_, value| !value.is_null());
    if let (false, Some(id)) = (text.contains_key("eos_token_id"), root.get("eos_token_id")) {
        text.insert("eos_token_id".into(), id.clone());
    }
    let tied = text.get("tie_word_embeddings").cloned().unwrap_or(false.into());
    let number = |text: &Map<String, Value>, name: &str| text.get(name).and_then(Value::as_u64);
    if let (None, Some(hidden), Some(heads @ 1..)) =
        (number(&text, "head_dim"), number(&text, "hidden_size"), number(&text, "num_attention_heads"))
    {
        text.insert("head_dim".into(), (hidden / heads).into());
    }
    if let Some(theta) = text.get("rope_parameters").and_then(|parameters| parameters.get("rope_theta")).cloned() {
        text.insert("rope_theta".into(), theta);
    }
    let rope = ["rope_parameters", "rope_scaling"].into_iter().find_map(|name| text.get(name)?.as_object().cloned());
    let mut rope = rope.unwrap_or_default();
    if let (false, Some(kind)) = (rope.contains_key("rope_type"), rope.get("type").cloned()) {
        // Older files call the multimodal layout a type.
        rope.insert("rope_type".into(), if kind == "mrope" { "default".into() } else { kind });
    }
    if let (false, Some(dim)) = (rope.contains_key("mrope_section"), number(&text, "head_dim")) {
        rope.insert("mrope_section".into(), json!([dim / 2, 0, 0]));
    }
    rope.entry("mrope_interleaved").or_insert((model_type == "qwen3_vl").into());
    text.insert("rope_scaling".into(), rope.into());
    if let Some(root) = root.as_object_mut() {
        root.insert("text_config".into(), text.into());
        root.entry("tie_word_embeddings").or_insert(tied);
        if let Some(vision) = root.get_mut("vision_config").and_then(Value::as_object_mut) {
            vision.insert("tower".into(), model_type.into());
            let channels = vision.remove("in_chans").unwrap_or_else(|| 3.into());
            vision.entry("in_channels").or_insert(channels);
            if qwen2 {
                // Some versions of transformers leave out what is as in their own defaults.
                for (field, default) in [
                    ("depth", json!(32)),
                    ("intermediate_size", json!(3420)),
                    ("num_heads", json!(16)),
                    ("patch_size", json!(14)),
                    ("spatial_merge_size", json!(2)),
                    ("temporal_patch_size", json!(2)),
                    ("window_size", json!(112)),
                    ("out_hidden_size", json!(3584)),
                    ("fullatt_block_indexes", json!([7, 15, 23, 31])),
                ] {
                    vision.entry(field).or_insert(default);
                }
            }
        }
    }
    root
}
