//! Reading an oracle: reference values computed by independent implementations.
//!
//! The tests that use it list the directories and cases they find, so a case is added by adding its files. They run on
//! the device that `FIRESIGHT_DEVICE` names.
#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used)]

pub mod models;

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use firesight_train::oracle;
#[allow(unused_imports)]
pub use firesight_train::oracle::relative_error;

/// The device in `FIRESIGHT_DEVICE`, else the CPU.
pub fn device() -> Device {
    firesight_train::device(&device_name()).unwrap()
}

pub fn device_name() -> String {
    std::env::var("FIRESIGHT_DEVICE").unwrap_or_else(|_| "flex".into())
}

/// What float32 explains for sums in another order: on the CPU, and on devices whose functions are less exact.
pub fn tolerance() -> f64 {
    if device_name() == "flex" { 1e-4 } else { 1e-3 }
}

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
pub struct Tensors(oracle::Tensors);

impl Tensors {
    pub fn read(path: &Path) -> Self {
        Self(oracle::Tensors::read(path).unwrap())
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.names()
    }

    pub fn contains(&self, name: &str) -> bool {
        self.0.contains(name)
    }

    /// Shape and values of a float tensor.
    pub fn f32(&self, name: &str) -> (Vec<usize>, Vec<f32>) {
        self.0.floats(name).unwrap()
    }

    /// Shape and values of an integer or boolean tensor.
    pub fn i64(&self, name: &str) -> (Vec<usize>, Vec<i64>) {
        self.0.integers(name).unwrap()
    }
}
