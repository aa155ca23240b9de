//! The vision towers: patches, blocks of attention with two-dimensional rotary embeddings, and a merger that makes one
//! visual token of 2x2 patches.
//!
//! Qwen3-VL's (arXiv 2511.21631) adds learned positions interpolated to the image's grid, attends to the whole image in
//! every block, and hands deepstack features from earlier blocks to the first decoder layers. Qwen2.5-VL's (arXiv
//! 2502.13923) attends within windows in all blocks but a few.
//!
//! Field names are those of Qwen3-VL's published weights; `parameters.rs` knows where Qwen2.5-VL's differ.

use burn::module::{Initializer, Module, Param};
use burn::nn::{Embedding, EmbeddingConfig, LayerNorm, LayerNormConfig, Linear, LinearConfig, RmsNorm, RmsNormConfig};
use burn::tensor::activation::{gelu, gelu_approximate, softmax};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use crate::config::{Tower, VisionConfig};
use crate::fused::{Attended, attend, rms_norm, swiglu};
use crate::preprocess::{Grid, ProcessedImage};
use crate::probe::without_graph;
use crate::rope::{Rotary, vision_rotary};

const NORM_EPSILON: f64 = 1e-6;

/// What the decoder gets of a list of images.
#[derive(Debug, Clone)]
pub struct VisionFeatures {
    /// Visual tokens of all images one after another: `[visual tokens, hidden_size]` of the decoder.
    pub tokens: Tensor<2>,
    /// What is added to the visual positions after decoder layer `i`, same shape.
    pub deepstack: Vec<Tensor<2>>,
    /// On request, outside the autodiff graph: the share of attention that each visual token receives in the last block
    /// that attends to the whole image, a mean over heads, queries and the patches of the token.
    pub attention: Option<Tensor<1>>,
}

/// The image encoder.
#[derive(Module, Debug)]
pub(crate) struct VisionTower {
    patch_embed: PatchEmbed,
    pos_embed: Option<Embedding>,
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
    bias: Option<Param<Tensor<1>>>,
}

#[derive(Module, Debug)]
struct VisionBlock {
    norm1: Norm,
    norm2: Norm,
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
enum Norm {
    Layer(LayerNorm),
    Rms(RmsNorm),
}

#[derive(Module, Debug)]
enum VisionMlp {
    Gelu(GeluMlp),
    SwiGlu(SwiGluMlp),
}

#[derive(Module, Debug)]
struct GeluMlp {
    linear_fc1: Linear,
    linear_fc2: Linear,
}

#[derive(Module, Debug)]
#[allow(clippy::struct_field_names, reason = "the published names")]
struct SwiGluMlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
}

#[derive(Module, Debug)]
struct PatchMerger {
    norm: Norm,
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
        let (positions, deepstack) = match &config.tower {
            Tower::Qwen3 { num_position_embeddings, deepstack_visual_indexes } => {
                (Some(*num_position_embeddings), deepstack_visual_indexes.len())
            }
            Tower::Qwen2_5 { .. } => (None, 0),
        };
        Self {
            patch_embed: PatchEmbed {
                proj: PatchProjection {
                    weight: Initializer::Zeros.init([config.hidden_size, channels, frames, height, width], device),
                    // Whatever has learned positions has this bias.
                    bias: positions.map(|_| Initializer::Zeros.init([config.hidden_size], device)),
                },
            },
            pos_embed: positions.map(|count| EmbeddingConfig::new(count, config.hidden_size).init(device)),
            blocks: (0..config.depth).map(|_| VisionBlock::new(config, device)).collect(),
            merger: PatchMerger::new(config, false, device),
            deepstack_merger_list: (0..deepstack).map(|_| PatchMerger::new(config, true, device)).collect(),
            config: config.clone(),
        }
    }

    /// Encodes every image once; images of the same size run as one batch.
    pub(crate) fn forward(&self, images: &[&ProcessedImage], attention: bool) -> VisionFeatures {
        let mut sizes: Vec<Grid> = Vec::new();
        for image in images {
            log::trace!("encoding an image of {}x{} patches", image.grid.h, image.grid.w);
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
            batches.push(self.forward_same_size(&batch, grid, attention));
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
            let on = |device: &Device| Tensor::<1, Int>::from_data(TensorData::new(order.clone(), [total]), device);
            features.attention = features.attention.map(|attention| {
                let order = on(&attention.device());
                attention.select(0, order)
            });
            let order = on(&features.tokens.device());
            features.tokens = features.tokens.select(0, order.clone());
            features.deepstack = features.deepstack.into_iter().map(|f| f.select(0, order.clone())).collect();
        }
        features
    }

    fn forward_same_size(&self, images: &[&ProcessedImage], grid: Grid, attention: bool) -> VisionFeatures {
        let device = self.patch_embed.proj.weight.val().device();
        let merge = self.config.spatial_merge_size;
        let patches = grid.patches();
        let patch_length = images[0].pixel_values.len() / patches;
        let windows = Windows::of(&self.config, grid);
        // Patches of a window lie side by side from here to the merger.
        let order: Vec<usize> = windows.as_ref().map_or_else(
            || (0..patches).collect(),
            |windows| {
                windows.order.iter().flat_map(|&token| token * merge.pow(2)..(token + 1) * merge.pow(2)).collect()
            },
        );
        let mut pixels = Vec::with_capacity(images.len() * patches * patch_length);
        for image in images {
            for &patch in &order {
                pixels.extend_from_slice(&image.pixel_values[patch * patch_length..(patch + 1) * patch_length]);
            }
        }
        let dtype = self.patch_embed.proj.weight.val().dtype();
        let pixels = TensorData::new(pixels, [images.len(), patches, patch_length]);
        let pixels = Tensor::<3>::from_data(pixels, &device).cast(dtype);
        let all = merge_ordered_coordinates(grid, merge);
        let coordinates: Vec<(usize, usize)> = order.iter().map(|&patch| all[patch]).collect();
        let rotary = vision_rotary(&coordinates, self.config.hidden_size / self.config.num_heads, &device);

        let mut x = self.patch_embed.proj.forward(pixels);
        if let Some(table) = &self.pos_embed {
            x = x + Self::positions(table, &coordinates, grid, &device).unsqueeze();
        }
        let whole = [Span { count: 1, patches }];
        let mut deepstack = Vec::with_capacity(self.deepstack_merger_list.len());
        let mut received = None;
        for (index, block) in self.blocks.iter().enumerate() {
            let (spans, deepstack_indexes): (&[Span], &[usize]) = match (&self.config.tower, &windows) {
                (Tower::Qwen2_5 { fullatt_block_indexes, .. }, Some(windows))
                    if !fullatt_block_indexes.contains(&index) =>
                {
                    (&windows.spans, &[])
                }
                (Tower::Qwen2_5 { .. }, _) => (&whole, &[]),
                (Tower::Qwen3 { deepstack_visual_indexes, .. }, _) => (&whole, deepstack_visual_indexes),
            };
            let last_whole = attention && Some(index) == self.last_whole_block();
            x = block.forward(x, &rotary, spans, last_whole.then_some(&mut received));
            for (merger, &block) in self.deepstack_merger_list.iter().zip(deepstack_indexes) {
                if block == index {
                    deepstack.push(merger.forward(x.clone(), merge));
                }
            }
        }
        let mut tokens = self.merger.forward(x, merge);
        let mut attention = received.map(|received: Tensor<2>| {
            let tokens = images.len() * patches / merge.pow(2);
            received.reshape([tokens, merge.pow(2)]).mean_dim(1).reshape([tokens])
        });
        if let Some(windows) = windows {
            tokens = tokens.select(0, windows.back_to_raster(images.len(), &device));
            attention = attention.map(|attention| {
                let order = windows.back_to_raster(images.len(), &attention.device());
                attention.select(0, order)
            });
        }
        VisionFeatures { tokens, deepstack, attention }
    }

    /// The last block that attends to the whole image, if any does.
    fn last_whole_block(&self) -> Option<usize> {
        match &self.config.tower {
            Tower::Qwen2_5 { fullatt_block_indexes, .. } => fullatt_block_indexes.iter().copied().max(),
            Tower::Qwen3 { .. } => self.config.depth.checked_sub(1),
        }
    }

    /// The learned positions, a square table, read off bilinearly at the image's grid (corners aligned):
    /// `[patches, hidden_size]`.
    fn positions(table: &Embedding, coordinates: &[(usize, usize)], grid: Grid, device: &Device) -> Tensor<2> {
        let [entries, hidden_size] = table.weight.dims();
        let side = entries.isqrt();
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
        let corners = table.weight.val().select(0, indices).reshape([4, patches, hidden_size]);
        let dtype = corners.dtype();
        (corners * weights.cast(dtype)).sum_dim(0).squeeze_dim(0)
    }
}

/// `count` groups of `patches` neighbouring patches that attend to each other and to nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    count: usize,
    patches: usize,
}

/// Square windows over the visual tokens of a grid, from its top left corner; those at the right and lower edges may be
/// smaller.
#[derive(Debug)]
struct Windows {
    /// Visual tokens, window by window; windows of the same size side by side, so that they run as one batch.
    order: Vec<usize>,
    /// Windows of each size, in patches.
    spans: Vec<Span>,
}

impl Windows {
    /// Those of a tower that has some.
    fn of(config: &VisionConfig, grid: Grid) -> Option<Self> {
        let merge = config.spatial_merge_size;
        match &config.tower {
            Tower::Qwen3 { .. } => None,
            Tower::Qwen2_5 { window_size, .. } => {
                Some(Self::new(grid, merge, window_size / (config.patch_size * merge)))
            }
        }
    }

    /// `side` is that of a window in visual tokens.
    fn new(grid: Grid, merge: usize, side: usize) -> Self {
        let (rows, columns) = (grid.t * grid.h / merge, grid.w / merge);
        let mut windows: Vec<Vec<usize>> = Vec::new();
        for top in (0..rows).step_by(side) {
            for left in (0..columns).step_by(side) {
                let row_tokens = |row| (left..columns.min(left + side)).map(move |column| row * columns + column);
                windows.push((top..rows.min(top + side)).flat_map(row_tokens).collect());
            }
        }
        windows.sort_by_key(Vec::len);
        let spans = windows
            .chunk_by(|a, b| a.len() == b.len())
            .map(|same| Span { count: same.len(), patches: same[0].len() * merge.pow(2) })
            .collect();
        Self { order: windows.concat(), spans }
    }

    /// For every visual token of `images` images, in raster order, its row among those in window order.
    fn back_to_raster(&self, images: usize, device: &Device) -> Tensor<1, Int> {
        let tokens = self.order.len();
        let mut rows = vec![0; images * tokens];
        for image in 0..images {
            for (row, &token) in self.order.iter().enumerate() {
                rows[image * tokens + token] = (image * tokens + row) as i64;
            }
        }
        Tensor::from_data(TensorData::new(rows, [images * tokens]), device)
    }
}

/// Attention scores of one head in every block, for an image of this size.
pub(crate) fn attention_scores(config: &VisionConfig, grid: Grid) -> Vec<usize> {
    let whole = grid.patches().pow(2);
    let windowed = Windows::of(config, grid)
        .map_or(whole, |windows| windows.spans.iter().map(|span| span.count * span.patches.pow(2)).sum());
    let scores = |block| match &config.tower {
        Tower::Qwen2_5 { fullatt_block_indexes, .. } if !fullatt_block_indexes.contains(&block) => windowed,
        _ => whole,
    };
    (0..config.depth).map(scores).collect()
}

/// Features of one list of images after those of another.
pub(crate) fn concatenate(mut batches: Vec<VisionFeatures>) -> VisionFeatures {
    if batches.len() == 1 {
        return batches.remove(0);
    }
    let levels = batches.first().map_or(0, |batch| batch.deepstack.len());
    VisionFeatures {
        deepstack: (0..levels)
            .map(|level| Tensor::cat(batches.iter().map(|batch| batch.deepstack[level].clone()).collect(), 0))
            .collect(),
        attention: batches
            .iter()
            .map(|batch| batch.attention.clone())
            .collect::<Option<Vec<_>>>()
            .map(|attention| Tensor::cat(attention, 0)),
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
        let x = pixels.matmul(weight.unsqueeze());
        match &self.bias {
            Some(bias) => x + bias.val().unsqueeze(),
            None => x,
        }
    }
}

impl Norm {
    fn new(width: usize, tower: &Tower, device: &Device) -> Self {
        match tower {
            Tower::Qwen3 { .. } => Self::Layer(LayerNormConfig::new(width).with_epsilon(NORM_EPSILON).init(device)),
            Tower::Qwen2_5 { .. } => Self::Rms(RmsNormConfig::new(width).with_epsilon(NORM_EPSILON).init(device)),
        }
    }

    fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        match self {
            Self::Layer(norm) => norm.forward(x),
            Self::Rms(norm) => rms_norm(norm, x),
        }
    }
}

impl VisionMlp {
    fn new(config: &VisionConfig, device: &Device) -> Self {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        match &config.tower {
            Tower::Qwen3 { .. } => Self::Gelu(GeluMlp {
                linear_fc1: linear(hidden, inner, device),
                linear_fc2: linear(inner, hidden, device),
            }),
            Tower::Qwen2_5 { .. } => Self::SwiGlu(SwiGluMlp {
                gate_proj: linear(hidden, inner, device),
                up_proj: linear(hidden, inner, device),
                down_proj: linear(inner, hidden, device),
            }),
        }
    }

    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        match self {
            Self::Gelu(mlp) => mlp.linear_fc2.forward(gelu_approximate(mlp.linear_fc1.forward(x))),
            Self::SwiGlu(mlp) => {
                mlp.down_proj.forward(swiglu(mlp.gate_proj.forward(x.clone()), mlp.up_proj.forward(x)))
            }
        }
    }
}

impl VisionBlock {
    fn new(config: &VisionConfig, device: &Device) -> Self {
        let hidden = config.hidden_size;
        Self {
            norm1: Norm::new(hidden, &config.tower, device),
            norm2: Norm::new(hidden, &config.tower, device),
            attn: VisionAttention {
                qkv: linear(hidden, 3 * hidden, device),
                proj: linear(hidden, hidden, device),
                num_heads: config.num_heads,
            },
            mlp: VisionMlp::new(config, device),
        }
    }

    fn forward(
        &self,
        x: Tensor<3>,
        rotary: &Rotary,
        spans: &[Span],
        received: Option<&mut Option<Tensor<2>>>,
    ) -> Tensor<3> {
        let x = x.clone() + self.attn.forward(self.norm1.forward(x), rotary, spans, received);
        x.clone() + self.mlp.forward(self.norm2.forward(x))
    }
}

impl VisionAttention {
    /// Attention within each of the groups that `spans` cuts the patches into. `received` gets the share of attention
    /// of every patch, `[images, patches]`, a mean over heads and queries; that makes sense for one group only.
    fn forward(
        &self,
        x: Tensor<3>,
        rotary: &Rotary,
        spans: &[Span],
        mut received: Option<&mut Option<Tensor<2>>>,
    ) -> Tensor<3> {
        let [images, patches, hidden] = x.dims();
        let head_dim = hidden / self.num_heads;
        let qkv = self.qkv.forward(x);
        let part = |index: usize| {
            qkv.clone().narrow(2, index * hidden, hidden).reshape([images, patches, self.num_heads, head_dim])
        };
        let value = part(2).swap_dims(1, 2);
        // In float32 whatever the weights are, as in transformers.
        let rotated = |index| rotary.apply(part(index).cast(DType::F32)).cast(value.dtype());
        let (query, key) = (rotated(0), rotated(1));
        let mut start = 0;
        let mut attended = Vec::with_capacity(spans.len());
        for span in spans {
            let groups = |t: &Tensor<4>| {
                t.clone()
                    .narrow(2, start, span.count * span.patches)
                    .reshape([images, self.num_heads, span.count, span.patches, head_dim])
                    .swap_dims(1, 2)
                    .reshape([images * span.count, self.num_heads, 1, span.patches, head_dim])
            };
            let (query, key, value) = (groups(&query), groups(&key), groups(&value));
            if let Some(received) = received.as_deref_mut() {
                let [query, key] = [&query, &key].map(|t| without_graph(t.clone()));
                let scores = query.matmul(key.swap_dims(3, 4)).cast(DType::F32) * (head_dim as f64).powf(-0.5);
                *received = Some(softmax(scores, 4).mean_dim(1).mean_dim(3).reshape([images, span.patches]));
            }
            let nothing = || {
                let shape = [images * span.count, self.num_heads, 0, head_dim];
                Tensor::zeros(shape, (&query.device(), query.dtype()))
            };
            let lengths = vec![0; images * span.count].into();
            let seen = Attended::new(&query, lengths, 0, None, span.patches, head_dim);
            let mixed = attend(query.clone(), [nothing(), nothing()], [key, value], &seen)
                .reshape([images * span.count, self.num_heads, span.patches, head_dim])
                .swap_dims(1, 2);
            attended.push(mixed.reshape([images, span.count * span.patches, hidden]));
            start += span.count * span.patches;
        }
        self.proj.forward(if attended.len() == 1 { attended.remove(0) } else { Tensor::cat(attended, 1) })
    }
}

impl PatchMerger {
    fn new(config: &VisionConfig, norm_after_merge: bool, device: &Device) -> Self {
        let merged = config.hidden_size * config.spatial_merge_size.pow(2);
        let normalised = if norm_after_merge { merged } else { config.hidden_size };
        Self {
            norm: Norm::new(normalised, &config.tower, device),
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
