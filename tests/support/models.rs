//! Models and their cases in an oracle.

use std::path::{Path, PathBuf};

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::Tensor;
use firesight_train::oracle;
use firesight_vlm::{Prompt, QwenVl, Scored, TokenMask};

use super::{Tensors, json, oracle_dir};

pub struct Case {
    pub name: String,
    pub tensors: Tensors,
    /// Prompt and completion of every row.
    pub rows: Vec<(Prompt, Vec<u32>)>,
    pub summary: serde_json::Value,
}

/// Model directories with their cases. A directory without any is for reading weights only.
pub fn models() -> Vec<(PathBuf, Vec<Case>)> {
    let with_cases = oracle::model_directories(&oracle_dir()).unwrap();
    assert!(!with_cases.is_empty(), "no models in {}", oracle_dir().display());
    with_cases.into_iter().map(|dir| (dir.clone(), cases(&dir))).collect()
}

pub fn cases(dir: &Path) -> Vec<Case> {
    let names = oracle::case_names(dir).unwrap();
    names.iter().map(|name| case(dir, &dir.join("expected").join(name).with_extension("json"))).collect()
}

pub fn case(dir: &Path, path: &Path) -> Case {
    let oracle::Case { name, tensors, rows } =
        oracle::Case::read(dir, path.file_stem().unwrap().to_str().unwrap()).unwrap();
    Case { name, tensors: Tensors(tensors), rows, summary: json(path) }
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

/// All parameters of a module, one after another.
pub fn weights(module: &impl Module) -> Vec<f32> {
    struct Weights(Vec<f32>);
    impl ModuleVisitor for Weights {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.0.extend(values(param.val()));
        }
    }
    let mut weights = Weights(Vec::new());
    module.visit(&mut weights);
    weights.0
}
