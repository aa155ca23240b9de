//! Reading an oracle: reference values computed by independent implementations.
//!
//! The tests that use it list the directories and cases they find, so a case is added by adding its files.
#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used)]

pub mod models;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};

/// The oracle in `FIRESIGHT_ORACLE`, else the compact one in the repository.
pub fn oracle_dir() -> PathBuf {
    std::env::var_os("FIRESIGHT_ORACLE")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/oracle"), PathBuf::from)
}

/// Subdirectories of `dir`, sorted; empty when `dir` does not exist.
pub fn case_dirs(dir: &Path) -> Vec<PathBuf> {
    let mut dirs: Vec<PathBuf> = std::fs::read_dir(dir)
        .map(|entries| entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect())
        .unwrap_or_default();
    dirs.sort();
    dirs
}

/// A JSON file of the oracle.
pub fn json(path: &Path) -> serde_json::Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap()
}

/// Every tensor of a safetensors file, in memory.
pub struct Tensors {
    path: PathBuf,
    tensors: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>,
}

impl Tensors {
    pub fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let tensors = file
            .tensors()
            .into_iter()
            .map(|(name, view)| (name, (view.dtype(), view.shape().to_vec(), view.data().to_vec())))
            .collect();
        Self { path: path.into(), tensors }
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    fn get(&self, name: &str) -> &(Dtype, Vec<usize>, Vec<u8>) {
        self.tensors.get(name).unwrap_or_else(|| panic!("{} has no tensor {name}", self.path.display()))
    }

    /// Shape and values of a float tensor.
    pub fn f32(&self, name: &str) -> (Vec<usize>, Vec<f32>) {
        let (dtype, shape, bytes) = self.get(name);
        let values = match dtype {
            Dtype::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
            Dtype::F64 => bytes.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap()) as f32).collect(),
            Dtype::BF16 => bytes
                .chunks_exact(2)
                .map(|b| f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16))
                .collect(),
            other => panic!("{}: {name} is {other:?}", self.path.display()),
        };
        (shape.clone(), values)
    }

    /// Shape and values of an integer or boolean tensor.
    pub fn i64(&self, name: &str) -> (Vec<usize>, Vec<i64>) {
        let (dtype, shape, bytes) = self.get(name);
        let values = match dtype {
            Dtype::I64 => bytes.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect(),
            Dtype::I32 => bytes.chunks_exact(4).map(|b| i64::from(i32::from_le_bytes(b.try_into().unwrap()))).collect(),
            Dtype::U8 | Dtype::BOOL => bytes.iter().map(|&b| i64::from(b)).collect(),
            other => panic!("{}: {name} is {other:?}", self.path.display()),
        };
        (shape.clone(), values)
    }
}

/// Largest absolute difference over the largest absolute expected value.
pub fn relative_error(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len(), "lengths differ");
    let scale = expected.iter().fold(1e-6f64, |scale, &value| scale.max(f64::from(value).abs()));
    let difference = found.iter().zip(expected).fold(0.0f64, |worst, (&a, &b)| {
        let difference = (f64::from(a) - f64::from(b)).abs();
        // NaN must not pass for agreement.
        if difference.is_nan() { f64::INFINITY } else { worst.max(difference) }
    });
    difference / scale
}
