//! Qwen3-VL's vision tower (arXiv 2511.21631): patches, learned positions interpolated to the image's grid, full
//! attention with two-dimensional rotary embeddings, a merger that makes one visual token of 2x2 patches, and deepstack
//! features from earlier blocks for the first decoder layers.
//!
//! Field names are those of the published weights.

use burn::module::{Initializer, Module, Param};
use burn::nn::{Embedding, EmbeddingConfig, LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::tensor::activation::{gelu, gelu_approximate, softmax};
use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::config::VisionConfig;
use crate::preprocess::{Grid, ProcessedImage};
use crate::rope::{Rotary, vision_rotary};

const LAYER_NORM_EPSILON: f64 = 1e-6;

/// What the decoder gets of a list of images.
#[derive(Debug, Clone)]
pub struct VisionFeatures {
    /// Visual tokens of all images one after another: `[visual tokens, hidden_size]` of the decoder.
    pub tokens: Tensor<2>,
    /// What is added to the visual positions after decoder layer `i`, same shape.
    pub deepstack: Vec<Tensor<2>>,
}

/// The image encoder.
#[derive(Module, Debug)]
pub(crate) struct VisionTower {
    patch_embed: PatchEmbed,
    pos_embed: Embedding,
    blocks: Vec<VisionBlock>,
    merger: PatchMerger,
    deepstack_merger_list: Vec<PatchMerger>,
    #[module(skip)]
    config: VisionConfig,
}

/// A convolution whose stride is its kernel: a matrix product over flattened patches.
#[derive(Module, Debug)]
struct PatchEmbed {
    proj: PatchProjection,
}

#[derive(Module, Debug)]
struct PatchProjection {
    /// `[hidden_size, channels, frames, height, width]`, the layout of the published weights.
    weight: Param<Tensor<5>>,
    bias: Param<Tensor<1>>,
}

#[derive(Module, Debug)]
struct VisionBlock {
    norm1: LayerNorm,
    norm2: LayerNorm,
    attn: VisionAttention,
    mlp: VisionMlp,
}

#[derive(Module, Debug)]
struct VisionAttention {
    qkv: Linear,
    proj: Linear,
    #[module(skip)]
    num_heads: usize,
}

#[derive(Module, Debug)]
struct VisionMlp {
    linear_fc1: Linear,
    linear_fc2: Linear,
}

#[derive(Module, Debug)]
struct PatchMerger {
    norm: LayerNorm,
    linear_fc1: Linear,
    linear_fc2: Linear,
    /// Deepstack mergers normalise the four merged patches together, the last merger each patch by itself.
    #[module(skip)]
    norm_after_merge: bool,
}

impl VisionTower {
    pub(crate) fn new(config: &VisionConfig, device: &Device) -> Self {
        let patch = [config.in_channels, config.temporal_patch_size, config.patch_size, config.patch_size];
        let [channels, frames, height, width] = patch;
        Self {
            patch_embed: PatchEmbed {
                proj: PatchProjection {
                    weight: Initializer::Zeros.init([config.hidden_size, channels, frames, height, width], device),
                    bias: Initializer::Zeros.init([config.hidden_size], device),
                },
            },
            pos_embed: EmbeddingConfig::new(config.num_position_embeddings, config.hidden_size).init(device),
            blocks: (0..config.depth).map(|_| VisionBlock::new(config, device)).collect(),
            merger: PatchMerger::new(config, false, device),
            deepstack_merger_list: config
                .deepstack_visual_indexes
                .iter()
                .map(|_| PatchMerger::new(config, true, device))
                .collect(),
            config: config.clone(),
        }
    }

    /// Encodes every image once; images of the same size run as one batch.
    pub(crate) fn forward(&self, images: &[&ProcessedImage]) -> VisionFeatures {
        let mut sizes: Vec<Grid> = Vec::new();
        for image in images {
            if !sizes.contains(&image.grid) {
                sizes.push(image.grid);
            }
        }
        let mut batches = Vec::with_capacity(sizes.len());
        // Where each image's visual tokens start once the batches are concatenated.
        let mut starts = vec![0; images.len()];
        let mut total = 0;
        for &grid in &sizes {
            let members: Vec<usize> = (0..images.len()).filter(|&i| images[i].grid == grid).collect();
            let tokens = grid.patches() / self.config.spatial_merge_size.pow(2);
            for &member in &members {
                starts[member] = total;
                total += tokens;
            }
            let batch: Vec<&ProcessedImage> = members.iter().map(|&i| images[i]).collect();
            batches.push(self.forward_same_size(&batch, grid));
        }
        let mut features = concatenate(batches);
        if sizes.len() > 1 {
            let order: Vec<i64> = images
                .iter()
                .zip(&starts)
                .flat_map(|(image, &start)| {
                    (start..start + image.grid.patches() / self.config.spatial_merge_size.pow(2)).map(|i| i as i64)
                })
                .collect();
            let device = features.tokens.device();
            let order = Tensor::<1, Int>::from_data(TensorData::new(order, [total]), &device);
            features.tokens = features.tokens.select(0, order.clone());
            features.deepstack = features.deepstack.into_iter().map(|f| f.select(0, order.clone())).collect();
        }
        features
    }

    fn forward_same_size(&self, images: &[&ProcessedImage], grid: Grid) -> VisionFeatures {
        let device = self.pos_embed.weight.val().device();
        let patches = grid.patches();
        let patch_length = images[0].pixel_values.len() / patches;
        let pixels: Vec<f32> = images.iter().flat_map(|image| image.pixel_values.iter().copied()).collect();
        let pixels = Tensor::<3>::from_data(TensorData::new(pixels, [images.len(), patches, patch_length]), &device);

        let coordinates = merge_ordered_coordinates(grid, self.config.spatial_merge_size);
        let head_dim = self.config.hidden_size / self.config.num_heads;
        let rotary = vision_rotary(&coordinates, head_dim, &device);

        let mut x = self.patch_embed.proj.forward(pixels) + self.positions(&coordinates, grid, &device).unsqueeze();
        let mut deepstack = Vec::with_capacity(self.deepstack_merger_list.len());
        for (index, block) in self.blocks.iter().enumerate() {
            x = block.forward(x, &rotary);
            for (merger, &block) in self.deepstack_merger_list.iter().zip(&self.config.deepstack_visual_indexes) {
                if block == index {
                    deepstack.push(merger.forward(x.clone(), self.config.spatial_merge_size));
                }
            }
        }
        VisionFeatures { tokens: self.merger.forward(x, self.config.spatial_merge_size), deepstack }
    }

    /// The learned positions, a square table, read off bilinearly at the image's grid (corners aligned):
    /// `[patches, hidden_size]`.
    fn positions(&self, coordinates: &[(usize, usize)], grid: Grid, device: &Device) -> Tensor<2> {
        let side = self.config.num_position_embeddings.isqrt();
        let (mut indices, mut weights) = (Vec::new(), Vec::new());
        let rows = table_coordinates(grid.h, side);
        let columns = table_coordinates(grid.w, side);
        for corner in 0..4 {
            for &(row, column) in coordinates {
                let (y, fy) = (rows[row].0, rows[row].1);
                let (x, fx) = (columns[column].0, columns[column].1);
                let (below, right) = (corner / 2 == 1, corner % 2 == 1);
                let index = if below { (y + 1).min(side - 1) } else { y } * side
                    + if right { (x + 1).min(side - 1) } else { x };
                indices.push(index as i64);
                weights.push(if below { fy } else { 1.0 - fy } * if right { fx } else { 1.0 - fx });
            }
        }
        let patches = coordinates.len();
        let indices = Tensor::<1, Int>::from_data(TensorData::new(indices, [4 * patches]), device);
        let weights = Tensor::<3>::from_data(TensorData::new(weights, [4, patches, 1]), device);
        let corners = self.pos_embed.weight.val().select(0, indices).reshape([4, patches, self.config.hidden_size]);
        (corners * weights).sum_dim(0).squeeze_dim(0)
    }
}

fn concatenate(mut batches: Vec<VisionFeatures>) -> VisionFeatures {
    if batches.len() == 1 {
        return batches.remove(0);
    }
    let levels = batches.first().map_or(0, |batch| batch.deepstack.len());
    VisionFeatures {
        deepstack: (0..levels)
            .map(|level| Tensor::cat(batches.iter().map(|batch| batch.deepstack[level].clone()).collect(), 0))
            .collect(),
        tokens: Tensor::cat(batches.into_iter().map(|batch| batch.tokens).collect(), 0),
    }
}

/// Where grid line `i` of `count` falls in a table of `side` entries: the entry below and the fraction above it.
fn table_coordinates(count: usize, side: usize) -> Vec<(usize, f32)> {
    let last = (side - 1) as f32;
    let step = if count > 1 { last / (count - 1) as f32 } else { 0.0 };
    (0..count)
        .map(|i| {
            // Counted from the nearer end, as torch.linspace does: the last line falls on the last entry exactly.
            let position =
                if i < count / 2 || count == 1 { i as f32 * step } else { last - (count - 1 - i) as f32 * step };
            (position as usize, position - position.floor())
        })
        .collect()
}

/// (row, column) of every patch in the order of the pixel values: merged block by merged block.
fn merge_ordered_coordinates(grid: Grid, merge: usize) -> Vec<(usize, usize)> {
    let mut coordinates = Vec::with_capacity(grid.patches());
    for _ in 0..grid.t {
        for block_row in (0..grid.h).step_by(merge) {
            for block_column in (0..grid.w).step_by(merge) {
                for row in block_row..block_row + merge {
                    for column in block_column..block_column + merge {
                        coordinates.push((row, column));
                    }
                }
            }
        }
    }
    coordinates
}

impl PatchProjection {
    /// `[images, patches, pixels of a patch]` to `[images, patches, hidden_size]`.
    fn forward(&self, pixels: Tensor<3>) -> Tensor<3> {
        let [hidden_size, ..] = self.weight.dims();
        let [_, _, patch_length] = pixels.dims();
        let weight = self.weight.val().reshape([hidden_size, patch_length]).transpose();
        pixels.matmul(weight.unsqueeze()) + self.bias.val().unsqueeze()
    }
}

impl VisionBlock {
    fn new(config: &VisionConfig, device: &Device) -> Self {
        let norm = || LayerNormConfig::new(config.hidden_size).with_epsilon(LAYER_NORM_EPSILON).init(device);
        let hidden = config.hidden_size;
        Self {
            norm1: norm(),
            norm2: norm(),
            attn: VisionAttention {
                qkv: linear(hidden, 3 * hidden, device),
                proj: linear(hidden, hidden, device),
                num_heads: config.num_heads,
            },
            mlp: VisionMlp {
                linear_fc1: linear(hidden, config.intermediate_size, device),
                linear_fc2: linear(config.intermediate_size, hidden, device),
            },
        }
    }

    fn forward(&self, x: Tensor<3>, rotary: &Rotary<4>) -> Tensor<3> {
        let x = x.clone() + self.attn.forward(self.norm1.forward(x), rotary);
        let y = gelu_approximate(self.mlp.linear_fc1.forward(self.norm2.forward(x.clone())));
        x + self.mlp.linear_fc2.forward(y)
    }
}

impl VisionAttention {
    fn forward(&self, x: Tensor<3>, rotary: &Rotary<4>) -> Tensor<3> {
        let [images, patches, hidden] = x.dims();
        let head_dim = hidden / self.num_heads;
        let qkv = self.qkv.forward(x);
        let part = |index: usize| {
            qkv.clone().narrow(2, index * hidden, hidden).reshape([images, patches, self.num_heads, head_dim])
        };
        let query = rotary.apply(part(0)).swap_dims(1, 2) * (head_dim as f64).powf(-0.5);
        let key = rotary.apply(part(1)).swap_dims(1, 2);
        let value = part(2).swap_dims(1, 2);
        let probabilities = softmax(query.matmul(key.swap_dims(2, 3)), 3);
        self.proj.forward(probabilities.matmul(value).swap_dims(1, 2).reshape([images, patches, hidden]))
    }
}

impl PatchMerger {
    fn new(config: &VisionConfig, norm_after_merge: bool, device: &Device) -> Self {
        let merged = config.hidden_size * config.spatial_merge_size.pow(2);
        let normalised = if norm_after_merge { merged } else { config.hidden_size };
        Self {
            norm: LayerNormConfig::new(normalised).with_epsilon(LAYER_NORM_EPSILON).init(device),
            linear_fc1: linear(merged, merged, device),
            linear_fc2: linear(merged, config.out_hidden_size, device),
            norm_after_merge,
        }
    }

    /// `[images, patches, hidden_size]` to `[visual tokens of all images, out_hidden_size]`.
    fn forward(&self, x: Tensor<3>, merge: usize) -> Tensor<2> {
        let [images, patches, hidden] = x.dims();
        let merged = [images * patches / merge.pow(2), hidden * merge.pow(2)];
        let x = if self.norm_after_merge {
            self.norm.forward(x.reshape(merged))
        } else {
            self.norm.forward(x).reshape(merged)
        };
        self.linear_fc2.forward(gelu(self.linear_fc1.forward(x)))
    }
}

fn linear(input: usize, output: usize, device: &Device) -> Linear {
    LinearConfig::new(input, output).init(device)
}
