//! Models and their cases in an oracle.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::tensor::Tensor;
use firesight_vlm::{Grid, ProcessedImage, Prompt, QwenVl, Scored, TokenMask};

use super::{Tensors, case_dirs, json, oracle_dir};

pub struct Case {
    pub name: String,
    pub tensors: Tensors,
    /// Prompt and completion of every row.
    pub rows: Vec<(Prompt, Vec<u32>)>,
    pub summary: serde_json::Value,
}

/// Model directories with their cases. A directory without any is for reading weights only.
pub fn models() -> Vec<(PathBuf, Vec<Case>)> {
    let dirs = case_dirs(&oracle_dir().join("models"));
    let with_cases: Vec<PathBuf> = dirs.into_iter().filter(|dir| dir.join("expected").is_dir()).collect();
    assert!(!with_cases.is_empty(), "no models in {}", oracle_dir().display());
    with_cases.into_iter().map(|dir| (dir.clone(), cases(&dir))).collect()
}

pub fn cases(dir: &Path) -> Vec<Case> {
    let mut names: Vec<PathBuf> = std::fs::read_dir(dir.join("expected"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .collect();
    names.sort();
    names.iter().map(|path| case(dir, path)).collect()
}

pub fn case(dir: &Path, path: &Path) -> Case {
    let tensors = Tensors::read(&path.with_extension("safetensors"));
    let config = json(&dir.join("config.json"));
    let merge = config["vision_config"]["spatial_merge_size"].as_u64().unwrap_or(1) as usize;
    let mut images = images(&tensors, merge).into_iter();
    let row_values = |ids: &str, mask: &str| -> Vec<Vec<i64>> {
        let (shape, ids) = tensors.i64(ids);
        let (_, mask) = tensors.i64(mask);
        ids.chunks_exact(shape[1])
            .zip(mask.chunks_exact(shape[1]))
            .map(|(ids, mask)| ids.iter().zip(mask).filter(|(_, mask)| **mask == 1).map(|(id, _)| *id).collect())
            .collect()
    };
    let image_token = config["image_token_id"].as_i64();
    let rows = row_values("prompt_ids", "prompt_mask")
        .into_iter()
        .zip(row_values("completion_ids", "completion_mask"))
        .map(|(prompt, completion)| {
            let image_spans = image_token.map_or_else(Vec::new, |token| runs(&prompt, token));
            let images = images.by_ref().take(image_spans.len()).collect();
            let prompt = Prompt::new(prompt.iter().map(|&id| id as u32).collect(), images, image_spans);
            (prompt, completion.iter().map(|&id| id as u32).collect())
        })
        .collect();
    assert!(images.next().is_none(), "{}: more images than placeholders", path.display());
    let name = format!("{}/{}", dir.file_name().unwrap().display(), path.file_stem().unwrap().display());
    Case { name, tensors, rows, summary: json(path) }
}

pub fn images(tensors: &Tensors, merge: usize) -> Vec<ProcessedImage> {
    if !tensors.contains("pixel_values") {
        return Vec::new();
    }
    let (shape, pixels) = tensors.f32("pixel_values");
    let mut patches = pixels.chunks_exact(shape[1]);
    let (_, grids) = tensors.i64("image_grid_thw");
    grids
        .chunks_exact(3)
        .map(|grid| {
            let grid = Grid { t: grid[0] as usize, h: grid[1] as usize, w: grid[2] as usize };
            assert!(grid.h.is_multiple_of(merge));
            let pixel_values: Vec<f32> = patches.by_ref().take(grid.patches()).flatten().copied().collect();
            // The model never looks at the picture itself.
            ProcessedImage { pixel_values: pixel_values.into(), grid, rgb: Arc::default() }
        })
        .collect()
}

/// Maximal runs of `token`: the oracle's prompts separate images by other tokens.
pub fn runs(ids: &[i64], token: i64) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for (position, _) in ids.iter().enumerate().filter(|&(_, &id)| id == token) {
        match runs.last_mut() {
            Some(run) if run.end == position => run.end += 1,
            _ => runs.push(position..position + 1),
        }
    }
    runs
}

pub fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

pub fn everything(model: &QwenVl) -> TokenMask {
    TokenMask::new(model.config().text_config.vocab_size, []).unwrap()
}

pub fn scored(case: &Case) -> Vec<Scored<'_>> {
    case.rows.iter().map(|(prompt, completion)| Scored { prompt, completions: vec![completion] }).collect()
}

/// Rows of `values` where the mask of the same layout is one.
pub fn real(case: &Case, mask: &str, values: &[f32]) -> Vec<f32> {
    let (_, mask) = case.tensors.i64(mask);
    let width = values.len() / mask.len();
    values.chunks_exact(width).zip(mask).filter(|&(_, mask)| mask == 1).flat_map(|(row, _)| row).copied().collect()
}
