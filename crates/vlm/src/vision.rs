//! The vision towers: patches, blocks of attention with two-dimensional rotary embeddings, and a merger that makes one
//! visual token of 2x2 patches.
//!
//! Qwen3-VL's (arXiv 2511.21631) adds learned positions interpolated to the image's grid, attends to the whole image in
//! every block, and hands deepstack features from earlier blocks to the first decoder layers. Qwen2.5-VL's (arXiv
//! 2502.13923) attends within windows in all blocks but a few.
//!
//! Field names are those of Qwen3-VL's published weights; `parameters.rs` knows where Qwen2.5-VL's differ.

use std::ops::Range;

use burn::module::{Initializer, Module, Param};
use burn::nn::{Embedding, EmbeddingConfig, LayerNorm, LayerNormConfig, Linear, LinearConfig, RmsNorm, RmsNormConfig};
use burn::tensor::activation::softmax;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use crate::config::{Tower, VisionConfig};
use crate::features::is_trained;
use crate::fused::{Attended, Span, attend, gelu, gelu_approximate, layer_norm, linear, project, rms_norm, swiglu};
use crate::preprocess::{Grid, ProcessedImage};
use crate::probe::{indices, without_graph};
use crate::rope::{Rotary, vision_rotary};
use crate::text::ranges;

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

/// What the blocks go by when images run through the tower.
#[derive(Debug)]
pub(crate) struct VisionPass {
    /// Those of each image.
    patches: Vec<Range<usize>>,
    /// (row, column) of every patch in its image's grid.
    places: Vec<((usize, usize), Grid)>,
    rotary: Rotary,
    whole: Attended,
    windows: Option<Attended>,
    /// Where visual tokens do not come in raster order: the row of each that should.
    raster: Option<Tensor<1, Int>>,
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
    /// Of the residual stream.
    #[module(skip)]
    pub(crate) dtype: DType,
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
            dtype: DType::F32,
        }
    }

    /// Encodes every image once, all of them together.
    pub(crate) fn encode(&self, images: &[&ProcessedImage], attention: bool) -> VisionFeatures {
        let (pass, pixels) = self.pass(images);
        self.forward(&pass, pixels, attention, |_| ())
    }

    /// Runs a pass. `observe` sees what goes into each block, and what comes out of the last.
    pub(crate) fn forward(
        &self,
        pass: &VisionPass,
        pixels: Tensor<2>,
        attention: bool,
        mut observe: impl FnMut(&Tensor<2>),
    ) -> VisionFeatures {
        let mut x = self.embed(pass, pixels);
        let mut deepstack = Vec::with_capacity(self.deepstack_merger_list.len());
        let mut received = None;
        for index in 0..self.depth() {
            observe(&x);
            let last_whole = attention && Some(index) == self.last_whole_block();
            let wanted = last_whole.then_some((pass.patches.as_slice(), &mut received));
            x = self.block(index, x, pass, wanted);
            deepstack.extend(self.deepstack(index, &x));
        }
        observe(&x);
        let merge = self.config.spatial_merge_size;
        let attention = received.map(|received: Tensor<1>| {
            let tokens = received.dims()[0] / merge.pow(2);
            let received = received.reshape([tokens, merge.pow(2)]).mean_dim(1).reshape([tokens]);
            match &pass.raster {
                Some(raster) => received.select(0, raster.clone()),
                None => received,
            }
        });
        VisionFeatures { tokens: self.tokens(x, pass), deepstack, attention }
    }

    /// Lays out images for a pass, and their pixels: `[patches, pixels of a patch]`.
    pub(crate) fn pass(&self, images: &[&ProcessedImage]) -> (VisionPass, Tensor<2>) {
        let device = self.patch_embed.proj.weight.val().device().without_autodiff();
        let merge = self.config.spatial_merge_size;
        let layouts: Vec<Layout> = images.iter().map(|image| Layout::new(&self.config, image.grid)).collect();
        let patches = ranges(layouts.iter().map(|layout| layout.patches.len()));
        let mut pixels = Vec::with_capacity(images.iter().map(|image| image.pixel_values.len()).sum());
        let mut coordinates = Vec::new();
        let mut grids = Vec::new();
        for (image, layout) in images.iter().zip(&layouts) {
            log::trace!("encoding an image of {}x{} patches", image.grid.h, image.grid.w);
            let length = image.pixel_values.len() / layout.patches.len();
            let all = merge_ordered_coordinates(image.grid, merge);
            for &patch in &layout.patches {
                pixels.extend_from_slice(&image.pixel_values[patch * length..(patch + 1) * length]);
                coordinates.push(all[patch]);
                grids.push(image.grid);
            }
        }
        let pixels = TensorData::new(pixels, [coordinates.len(), self.patch_embed.proj.patch_length()]);
        let pixels = Tensor::<2>::from_data(pixels, &device).cast(self.dtype);
        let head_dim = self.config.hidden_size / self.config.num_heads;
        let span = |range: Range<usize>| Span { queries: range.clone(), own: range, prompt: 0..0 };
        let attended = |spans: Vec<Span>| Attended::new(&device, self.dtype, &spans, false, 1, head_dim);
        let whole = attended(patches.iter().cloned().map(span).collect());
        let in_windows = matches!(self.config.tower, Tower::Qwen2_5 { .. });
        let windows = in_windows.then(|| {
            attended(ranges(layouts.iter().flat_map(|layout| layout.windows.clone())).into_iter().map(span).collect())
        });
        let pass = VisionPass {
            rotary: vision_rotary(&coordinates, head_dim, &device),
            whole,
            windows,
            raster: in_windows.then(|| indices(&back_to_raster(&layouts, merge), &device)),
            places: coordinates.into_iter().zip(grids).collect(),
            patches,
        };
        (pass, pixels)
    }

    pub(crate) fn depth(&self) -> usize {
        self.blocks.len()
    }

    /// Whether anything before the mergers is trained.
    pub(crate) fn trains_blocks(&self) -> bool {
        is_trained(&self.patch_embed) || is_trained(&self.pos_embed) || is_trained(&self.blocks)
    }

    /// What goes into the first block: `[patches, hidden_size]`.
    pub(crate) fn embed(&self, pass: &VisionPass, pixels: Tensor<2>) -> Tensor<2> {
        let x = self.patch_embed.proj.forward(pixels);
        match &self.pos_embed {
            Some(table) => {
                let positions = Self::positions(table, &pass.places, &x.device().without_autodiff());
                x + positions.cast(self.dtype)
            }
            None => x,
        }
    }

    /// Runs a block.
    pub(crate) fn block(
        &self,
        index: usize,
        x: Tensor<2>,
        pass: &VisionPass,
        received: Option<Received<'_>>,
    ) -> Tensor<2> {
        let attended = match (&self.config.tower, &pass.windows) {
            (Tower::Qwen2_5 { fullatt_block_indexes, .. }, Some(windows))
                if !fullatt_block_indexes.contains(&index) =>
            {
                windows
            }
            _ => &pass.whole,
        };
        self.blocks[index].forward(x, &pass.rotary, attended, received)
    }

    /// What the decoder gets of the stream behind a block: `[visual tokens, hidden_size]` of the decoder.
    pub(crate) fn deepstack(&self, index: usize, x: &Tensor<2>) -> Option<Tensor<2>> {
        let Tower::Qwen3 { deepstack_visual_indexes, .. } = &self.config.tower else { return None };
        let level = deepstack_visual_indexes.iter().position(|&block| block == index)?;
        Some(self.deepstack_merger_list[level].forward(x.clone(), self.config.spatial_merge_size))
    }

    /// Visual tokens of the stream behind the last block, same shape.
    pub(crate) fn tokens(&self, x: Tensor<2>, pass: &VisionPass) -> Tensor<2> {
        let tokens = self.merger.forward(x, self.config.spatial_merge_size);
        match &pass.raster {
            Some(raster) => tokens.select(0, raster.clone()),
            None => tokens,
        }
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
    fn positions(table: &Embedding, patches: &[((usize, usize), Grid)], device: &Device) -> Tensor<2> {
        let [count, hidden_size] = table.weight.dims();
        let side = count.isqrt();
        let (mut entries, mut weights) = (Vec::new(), Vec::new());
        for corner in 0..4 {
            for &((row, column), grid) in patches {
                let (y, fy) = table_coordinate(row, grid.h, side);
                let (x, fx) = table_coordinate(column, grid.w, side);
                let (below, right) = (corner / 2 == 1, corner % 2 == 1);
                let entry = if below { (y + 1).min(side - 1) } else { y } * side
                    + if right { (x + 1).min(side - 1) } else { x };
                entries.push(entry);
                weights.push(if below { fy } else { 1.0 - fy } * if right { fx } else { 1.0 - fx });
            }
        }
        let patches = patches.len();
        let weights = Tensor::<3>::from_data(TensorData::new(weights, [4, patches, 1]), device);
        let corners = table.weight.val().select(0, indices(&entries, device)).reshape([4, patches, hidden_size]);
        (corners.cast(DType::F32) * weights).sum_dim(0).squeeze_dim(0)
    }
}

/// The order in which an image's patches run through the tower.
#[derive(Debug)]
struct Layout {
    /// Patches of a window lie side by side, from the first block to the merger.
    patches: Vec<usize>,
    /// Visual tokens in the order of the patches; where there are no windows, that of the raster.
    tokens: Vec<usize>,
    /// Patches of each window: those that attend to each other and to nothing else.
    windows: Vec<usize>,
}

impl Layout {
    fn new(config: &VisionConfig, grid: Grid) -> Self {
        let merge = config.spatial_merge_size;
        let (rows, columns) = (grid.t * grid.h / merge, grid.w / merge);
        let windows = match &config.tower {
            Tower::Qwen3 { .. } => vec![(0..rows * columns).collect()],
            Tower::Qwen2_5 { window_size, .. } => windows(rows, columns, window_size / (config.patch_size * merge)),
        };
        let area = merge.pow(2);
        let tokens = windows.concat();
        Self {
            patches: tokens.iter().flat_map(|&token| token * area..(token + 1) * area).collect(),
            windows: windows.iter().map(|window| window.len() * area).collect(),
            tokens,
        }
    }
}

/// Visual tokens of square windows over a grid of them, from its top left corner; those at the right and lower edges
/// may be smaller.
fn windows(rows: usize, columns: usize, side: usize) -> Vec<Vec<usize>> {
    let mut windows = Vec::new();
    for top in (0..rows).step_by(side) {
        for left in (0..columns).step_by(side) {
            let row_tokens = |row| (left..columns.min(left + side)).map(move |column| row * columns + column);
            windows.push((top..rows.min(top + side)).flat_map(row_tokens).collect());
        }
    }
    windows
}

/// For every visual token of all images, in raster order, its row among those in the order of the patches.
fn back_to_raster(layouts: &[Layout], merge: usize) -> Vec<usize> {
    let images = ranges(layouts.iter().map(|layout| layout.patches.len() / merge.pow(2)));
    let mut rows = vec![0; images.last().map_or(0, |image| image.end)];
    for (layout, image) in layouts.iter().zip(images) {
        for (row, &token) in layout.tokens.iter().enumerate() {
            rows[image.start + token] = image.start + row;
        }
    }
    rows
}

/// Attention scores of one head in every block, for an image of this size.
pub(crate) fn attention_scores(config: &VisionConfig, grid: Grid) -> Vec<usize> {
    let whole = grid.patches().pow(2);
    let windowed = Layout::new(config, grid).windows.iter().map(|patches| patches.pow(2)).sum();
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
fn table_coordinate(i: usize, count: usize, side: usize) -> (usize, f32) {
    let last = (side - 1) as f32;
    let step = if count > 1 { last / (count - 1) as f32 } else { 0.0 };
    // Counted from the nearer end, as torch.linspace does: the last line falls on the last entry exactly.
    let position = if i < count / 2 || count == 1 { i as f32 * step } else { last - (count - 1 - i) as f32 * step };
    (position as usize, position - position.floor())
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
    /// Numbers of a patch.
    fn patch_length(&self) -> usize {
        self.weight.dims()[1..].iter().product()
    }

    /// `[patches, pixels of a patch]` to `[patches, hidden_size]`.
    fn forward(&self, pixels: Tensor<2>) -> Tensor<2> {
        let [hidden_size, ..] = self.weight.dims();
        let weight = self.weight.val().reshape([hidden_size, self.patch_length()]).transpose();
        project(pixels, weight, self.bias.as_ref().map(Param::val))
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
            Self::Layer(norm) => layer_norm(norm, NORM_EPSILON, x),
            Self::Rms(norm) => rms_norm(norm, x),
        }
    }
}

impl VisionMlp {
    fn new(config: &VisionConfig, device: &Device) -> Self {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        match &config.tower {
            Tower::Qwen3 { .. } => Self::Gelu(GeluMlp {
                linear_fc1: new_linear(hidden, inner, device),
                linear_fc2: new_linear(inner, hidden, device),
            }),
            Tower::Qwen2_5 { .. } => Self::SwiGlu(SwiGluMlp {
                gate_proj: new_linear(hidden, inner, device),
                up_proj: new_linear(hidden, inner, device),
                down_proj: new_linear(inner, hidden, device),
            }),
        }
    }

    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        match self {
            Self::Gelu(mlp) => linear(&mlp.linear_fc2, gelu_approximate(linear(&mlp.linear_fc1, x))),
            Self::SwiGlu(mlp) => {
                linear(&mlp.down_proj, swiglu(linear(&mlp.gate_proj, x.clone()), linear(&mlp.up_proj, x)))
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
                qkv: new_linear(hidden, 3 * hidden, device),
                proj: new_linear(hidden, hidden, device),
                num_heads: config.num_heads,
            },
            mlp: VisionMlp::new(config, device),
        }
    }

    fn forward(&self, x: Tensor<2>, rotary: &Rotary, attended: &Attended, received: Option<Received<'_>>) -> Tensor<2> {
        let x = x.clone() + self.attn.forward(&self.norm1.forward(x), rotary, attended, received);
        x.clone() + self.mlp.forward(self.norm2.forward(x))
    }
}

/// The patches of each image, and where to put the share of attention that each of them receives, a mean over heads and
/// queries.
pub(crate) type Received<'a> = (&'a [Range<usize>], &'a mut Option<Tensor<1>>);

impl VisionAttention {
    fn forward(
        &self,
        x: &Tensor<2>,
        rotary: &Rotary,
        attended: &Attended,
        received: Option<Received<'_>>,
    ) -> Tensor<2> {
        let [patches, hidden] = x.dims();
        let head_dim = hidden / self.num_heads;
        let (weight, bias) = (self.qkv.weight.val(), self.qkv.bias.as_ref().map(Param::val));
        // A third of the weights at a time: they are cheaper to cut than what comes out.
        let part = |index: usize| {
            let weight = weight.clone().narrow(1, index * hidden, hidden);
            let bias = bias.clone().map(|bias| bias.narrow(0, index * hidden, hidden));
            project(x.clone(), weight, bias).reshape([patches, self.num_heads, head_dim])
        };
        let value = part(2);
        // In float32 whatever the weights are, as in transformers.
        let rotated = |index| rotary.apply(part(index).cast(DType::F32)).cast(value.dtype());
        let (query, key) = (rotated(0), rotated(1));
        if let Some((images, received)) = received {
            let of_image = |image: &Range<usize>| {
                let [query, key] = [&query, &key]
                    .map(|t| without_graph(t.clone()).narrow(0, image.start, image.len()).swap_dims(0, 1));
                let scores = query.matmul(key.swap_dims(1, 2)).cast(DType::F32) * (head_dim as f64).powf(-0.5);
                softmax(scores, 2).mean_dim(0).mean_dim(1).reshape([image.len()])
            };
            *received = Some(Tensor::cat(images.iter().map(of_image).collect(), 0));
        }
        let mixed = attend(query, None, [key, value], attended);
        linear(&self.proj, mixed.flatten(1, 2))
    }
}

impl PatchMerger {
    fn new(config: &VisionConfig, norm_after_merge: bool, device: &Device) -> Self {
        let merged = config.hidden_size * config.spatial_merge_size.pow(2);
        let normalised = if norm_after_merge { merged } else { config.hidden_size };
        Self {
            norm: Norm::new(normalised, &config.tower, device),
            linear_fc1: new_linear(merged, merged, device),
            linear_fc2: new_linear(merged, config.out_hidden_size, device),
            norm_after_merge,
        }
    }

    /// `[patches, hidden_size]` to `[visual tokens, out_hidden_size]`.
    fn forward(&self, x: Tensor<2>, merge: usize) -> Tensor<2> {
        let [patches, hidden] = x.dims();
        let merged = [patches / merge.pow(2), hidden * merge.pow(2)];
        let x = if self.norm_after_merge {
            self.norm.forward(x.reshape(merged))
        } else {
            self.norm.forward(x).reshape(merged)
        };
        linear(&self.linear_fc2, gelu(linear(&self.linear_fc1, x)))
    }
}

fn new_linear(input: usize, output: usize, device: &Device) -> Linear {
    LinearConfig::new(input, output).init(device)
}
