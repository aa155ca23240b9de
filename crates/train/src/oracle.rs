//! Reading an oracle: reference values that independent implementations computed, beside the models they belong to.
//!
//! A model directory in Hugging Face layout has its cases in `expected/`: `<case>.safetensors` with what went in and what
//! came out, and `<case>.json` with what is said of it. Prompts and completions are rows of tokens, padded, with masks.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use firesight_vlm::{Error as ModelError, Grid, ModelConfig, ProcessedImage, Prompt};
use safetensors::{Dtype, SafeTensors};

use crate::Error;

/// The tensors of a safetensors file, in memory.
#[derive(Debug)]
pub struct Tensors {
    path: PathBuf,
    tensors: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>,
}

impl Tensors {
    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read or is no safetensors file.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let bytes = std::fs::read(path).map_err(|source| Error::Io { path: path.into(), source })?;
        let broken = |problem: String| Error::Model(ModelError::WeightFile { path: path.into(), problem });
        let file = SafeTensors::deserialize(&bytes).map_err(|error| broken(error.to_string()))?;
        let owned = |(name, view): (String, safetensors::tensor::TensorView<'_>)| {
            (name, (view.dtype(), view.shape().to_vec(), view.data().to_vec()))
        };
        Ok(Self { path: path.into(), tensors: file.tensors().into_iter().map(owned).collect() })
    }

    /// Their names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether there is one of this name.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Shape and values of a tensor of floats.
    ///
    /// # Errors
    /// When there is none of this name, or it holds something else.
    pub fn floats(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>), Error> {
        let (dtype, shape, bytes) = self.get(name)?;
        let values = match dtype {
            Dtype::F32 => numbers(bytes, f32::from_le_bytes),
            Dtype::F64 => numbers(bytes, |bytes| f64::from_le_bytes(bytes) as f32),
            Dtype::BF16 => numbers(bytes, |bytes| f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16)),
            other => return Err(self.broken(format!("{name} is {other:?}, not a float"))),
        };
        Ok((shape.clone(), values))
    }

    /// Shape and values of a tensor of integers or truth values.
    ///
    /// # Errors
    /// When there is none of this name, or it holds something else.
    pub fn integers(&self, name: &str) -> Result<(Vec<usize>, Vec<i64>), Error> {
        let (dtype, shape, bytes) = self.get(name)?;
        let values = match dtype {
            Dtype::I64 => numbers(bytes, i64::from_le_bytes),
            Dtype::I32 => numbers(bytes, |bytes| i64::from(i32::from_le_bytes(bytes))),
            Dtype::U8 | Dtype::BOOL => numbers(bytes, |[byte]: [u8; 1]| i64::from(byte)),
            other => return Err(self.broken(format!("{name} is {other:?}, not an integer"))),
        };
        Ok((shape.clone(), values))
    }

    fn get(&self, name: &str) -> Result<&(Dtype, Vec<usize>, Vec<u8>), Error> {
        self.tensors.get(name).ok_or_else(|| self.broken(format!("has no tensor {name}")))
    }

    fn broken(&self, problem: String) -> Error {
        Error::Model(ModelError::WeightFile { path: self.path.clone(), problem })
    }
}

fn numbers<const N: usize, T>(bytes: &[u8], number: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks().0.iter().map(|&bytes| number(bytes)).collect()
}

/// What a model was given, and what came out.
#[derive(Debug)]
pub struct Case {
    /// Model and case.
    pub name: String,
    /// All of it.
    pub tensors: Tensors,
    /// Prompt and completion of every row.
    pub rows: Vec<(Prompt, Vec<u32>)>,
}

impl Case {
    /// Reads `<name>.safetensors` in `expected/` of a model directory.
    ///
    /// # Errors
    /// When a file cannot be read, or images and placeholders do not match.
    pub fn read(model: &Path, name: &str) -> Result<Self, Error> {
        let tensors = Tensors::read(&model.join("expected").join(name).with_extension("safetensors"))?;
        let config = ModelConfig::from_dir(model)?;
        let mut images = images(&tensors)?.into_iter();
        let merge = config.vision_config.as_ref().map_or(1, |vision| vision.spatial_merge_size);
        let whole = |grid: Grid| grid.h.is_multiple_of(merge) && grid.w.is_multiple_of(merge);
        if !images.as_slice().iter().all(|image| whole(image.grid)) {
            return Err(tensors.broken("has images whose patches do not make whole visual tokens".into()));
        }
        let mut rows = Vec::new();
        let completions = row_values(&tensors, "completion_ids", "completion_mask")?;
        for (ids, completion) in row_values(&tensors, "prompt_ids", "prompt_mask")?.into_iter().zip(completions) {
            let spans = config.image_token_id.map_or_else(Vec::new, |token| runs(&ids, token));
            let prompt = Prompt::new(ids, images.by_ref().take(spans.len()).collect(), spans);
            rows.push((prompt, completion));
        }
        if images.next().is_some() {
            return Err(tensors.broken("has more images than placeholders".into()));
        }
        let of_model = model.file_name().unwrap_or_default().to_string_lossy();
        Ok(Self { name: format!("{of_model}/{name}"), tensors, rows })
    }

    /// Values where the mask of the same layout is one.
    ///
    /// # Errors
    /// When there is no such mask.
    pub fn real(&self, mask: &str, values: &[f32]) -> Result<Vec<f32>, Error> {
        let (_, mask) = self.tensors.integers(mask)?;
        let width = values.len() / mask.len().max(1);
        let rows = values.chunks_exact(width.max(1)).zip(mask);
        Ok(rows.filter(|&(_, mask)| mask == 1).flat_map(|(row, _)| row).copied().collect())
    }
}

/// Names of the cases of a model directory, sorted.
///
/// # Errors
/// When its `expected/` cannot be read.
pub fn case_names(model: &Path) -> Result<Vec<String>, Error> {
    let mut names: Vec<String> = entries(&model.join("expected"))?
        .iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .filter_map(|path| Some(path.file_stem()?.to_string_lossy().into_owned()))
        .collect();
    names.sort();
    Ok(names)
}

/// Model directories in `models/` of an oracle that have cases, sorted.
///
/// # Errors
/// When it cannot be read, or has no such model: there would be nothing to agree with.
pub fn model_directories(oracle: &Path) -> Result<Vec<PathBuf>, Error> {
    let models = oracle.join("models");
    let mut found = entries(&models)?;
    found.retain(|path| path.join("expected").is_dir());
    if found.is_empty() {
        let problem = "has no model with cases in expected/".into();
        return Err(Error::Model(ModelError::WeightFile { path: models, problem }));
    }
    found.sort();
    Ok(found)
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let failed = |source| Error::Io { path: directory.into(), source };
    let entries = std::fs::read_dir(directory).map_err(failed)?;
    entries.map(|entry| Ok(entry.map_err(failed)?.path())).collect()
}

/// Rows of tokens without what pads them.
fn row_values(tensors: &Tensors, ids: &str, mask: &str) -> Result<Vec<Vec<u32>>, Error> {
    let (shape, ids) = tensors.integers(ids)?;
    let (_, mask) = tensors.integers(mask)?;
    let width = shape.last().copied().unwrap_or(1).max(1);
    let rows = ids.chunks_exact(width).zip(mask.chunks_exact(width));
    let real = |(ids, mask): (&[i64], &[i64])| {
        ids.iter().zip(mask).filter(|(_, mask)| **mask == 1).map(|(id, _)| *id as u32).collect()
    };
    Ok(rows.map(real).collect())
}

fn images(tensors: &Tensors) -> Result<Vec<ProcessedImage>, Error> {
    if !tensors.contains("pixel_values") {
        return Ok(Vec::new());
    }
    let (shape, pixels) = tensors.floats("pixel_values")?;
    let mut patches = pixels.chunks_exact(shape.last().copied().unwrap_or(1).max(1));
    let (_, grids) = tensors.integers("image_grid_thw")?;
    let image = |grid: &[i64; 3]| {
        let [t, h, w] = grid.map(|side| side as usize);
        let grid = Grid { t, h, w };
        let pixel_values: Vec<f32> = patches.by_ref().take(grid.patches()).flatten().copied().collect();
        // The model never looks at the picture itself.
        ProcessedImage { pixel_values: pixel_values.into(), grid, rgb: Arc::default() }
    };
    Ok(grids.as_chunks::<3>().0.iter().map(image).collect())
}

/// Maximal runs of `token`: prompts separate images by other tokens.
fn runs(ids: &[u32], token: u32) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for (position, _) in ids.iter().enumerate().filter(|&(_, &id)| id == token) {
        match runs.last_mut() {
            Some(run) if run.end == position => run.end += 1,
            _ => runs.push(position..position + 1),
        }
    }
    runs
}

/// Largest absolute difference over the largest absolute expected value; infinite where a number is none, or where there
/// are more of one than of the other.
#[must_use]
pub fn relative_error(found: &[f32], expected: &[f32]) -> f64 {
    if found.len() != expected.len() {
        return f64::INFINITY;
    }
    let scale = expected.iter().fold(1e-6f64, |scale, &value| scale.max(f64::from(value).abs()));
    let difference = found.iter().zip(expected).fold(0.0f64, |worst, (&a, &b)| {
        let difference = (f64::from(a) - f64::from(b)).abs();
        // NaN must not pass for agreement.
        if difference.is_nan() { f64::INFINITY } else { worst.max(difference) }
    });
    difference / scale
}

/// How far one list of numbers is from another, relative to the length of that as vectors; infinite where a number is
/// none, or where there are more of one than of the other.
#[must_use]
pub fn distance(found: &[f32], expected: &[f32]) -> f64 {
    if found.len() != expected.len() {
        return f64::INFINITY;
    }
    let length = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    let difference = length(&mut found.iter().zip(expected).map(|(&a, &b)| f64::from(a) - f64::from(b)));
    let relative = difference / length(&mut expected.iter().copied().map(f64::from));
    // NaN must not pass for agreement.
    if relative.is_nan() { f64::INFINITY } else { relative }
}

/// How far, by [`distance`], a gradient computed in bfloat16 may be from that of float32: five times as far as one of
/// weights that were rounded to bfloat16, since activations are rounded as well, many times over. Weights that were
/// published in bfloat16 are rounded already; at the least a hundredth and a half stands for them.
#[must_use]
pub fn allowed_in_bf16(of_rounded_weights: f64) -> f64 {
    5.0 * of_rounded_weights.max(4.0 / 256.0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    #[test]
    fn an_oracle_without_cases_is_no_oracle() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(directory.path().join("models/bare")).unwrap();
        let error = super::model_directories(directory.path()).unwrap_err().to_string();
        assert!(error.contains("models") && error.contains("has no model with cases"), "{error}");
    }
}
