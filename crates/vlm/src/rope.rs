//! Rotary position embeddings: multimodal (time, height, width) in the decoder, two-dimensional in the vision tower.

use burn::tensor::{Device, Tensor, TensorData};

use crate::config::TextConfig;
use crate::fused::rotate;

/// Cosines and sines for the positions of tokens in float32, for queries and keys of any float type:
/// `[tokens, head_dim]`.
#[derive(Debug, Clone)]
pub(crate) struct Rotary {
    cos: Tensor<2>,
    sin: Tensor<2>,
}

impl Rotary {
    /// From one angle per token and frequency; there are `half` a head as many frequencies.
    fn from_angles(angles: &[f32], half: usize, device: &Device) -> Self {
        // Both halves of a head share their angles (the "rotate half" convention).
        let table = |f: fn(f64) -> f64| {
            let mut values = Vec::with_capacity(angles.len() * 2);
            for row in angles.chunks_exact(half) {
                let start = values.len();
                values.extend(row.iter().map(|&angle| f(f64::from(angle)) as f32));
                values.extend_from_within(start..);
            }
            Tensor::from_data(TensorData::new(values, [angles.len() / half, 2 * half]), device)
        };
        Self { cos: table(f64::cos), sin: table(f64::sin) }
    }

    /// Rotates `[tokens, heads, head_dim]`.
    pub(crate) fn apply(&self, x: Tensor<3>) -> Tensor<3> {
        rotate(x, &self.cos, &self.sin)
    }
}

/// `1 / base^(2i / dim)` for `i` in `0..dim / 2`, rounded to f32 as PyTorch does.
fn inverse_frequencies(dim: usize, base: f64) -> Vec<f32> {
    (0..dim / 2).map(|i| (1.0 / base.powf((2 * i) as f64 / dim as f64)) as f32).collect()
}

/// A token's place on the three axes (time, height, width). Text tokens have the same value on all three.
pub type Position = [u32; 3];

/// The decoder's rotary embedding.
#[derive(Debug, Clone)]
pub(crate) struct MultimodalRope {
    inverse_frequencies: Vec<f32>,
    /// Which axis of a [`Position`] turns each frequency.
    axes: Vec<usize>,
    head_dim: usize,
}

impl MultimodalRope {
    pub(crate) fn new(config: &TextConfig) -> Self {
        let half = config.head_dim / 2;
        let [time, height, width] = config.rope_scaling.mrope_section;
        let axes = if config.rope_scaling.mrope_interleaved {
            // Time, height and width take turns until height and width have had their share.
            let turn = |i| match i % 3 {
                1 if i < 3 * height => 1,
                2 if i < 3 * width => 2,
                _ => 0,
            };
            (0..half).map(turn).collect()
        } else {
            [vec![0; time], vec![1; height], vec![2; width]].concat()
        };
        Self {
            inverse_frequencies: inverse_frequencies(config.head_dim, config.rope_theta),
            axes,
            head_dim: config.head_dim,
        }
    }

    /// Tables for tokens at these positions.
    pub(crate) fn tables(&self, positions: &[Position], device: &Device) -> Rotary {
        let mut angles = Vec::with_capacity(positions.len() * self.axes.len());
        for position in positions {
            angles.extend(
                self.inverse_frequencies
                    .iter()
                    .zip(&self.axes)
                    .map(|(&frequency, &axis)| position[axis] as f32 * frequency),
            );
        }
        Rotary::from_angles(&angles, self.head_dim / 2, device)
    }
}

/// The vision tower's rotary embedding: half of a head's frequencies turn with the row, half with the column.
///
/// `coordinates` are (row, column) of every patch.
pub(crate) fn vision_rotary(coordinates: &[(usize, usize)], head_dim: usize, device: &Device) -> Rotary {
    const BASE: f64 = 10_000.0;
    let frequencies = inverse_frequencies(head_dim / 2, BASE);
    let mut angles = Vec::with_capacity(coordinates.len() * head_dim / 2);
    for &(row, column) in coordinates {
        angles.extend(frequencies.iter().map(|frequency| row as f32 * frequency));
        angles.extend(frequencies.iter().map(|frequency| column as f32 * frequency));
    }
    Rotary::from_angles(&angles, head_dim / 2, device)
}
