//! Weights from and to Hugging Face model directories.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{DType, Device, Tensor};
use burn_store::{
    ApplyError, BurnToPyTorchAdapter, FloatCastAdapter, ModuleAdapter, ModuleSnapshot, PyTorchToBurnAdapter,
    SafetensorsStore,
};
use serde::Deserialize;

use crate::{Error, ModelConfig, QwenVl};

const SINGLE_FILE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Which shard holds each parameter: `model.safetensors.index.json`.
#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, PathBuf>,
}

impl QwenVl {
    /// Reads a model directory: `config.json` and its weights, in one file or in shards with an index. Weights of any
    /// float type become float32.
    ///
    /// # Errors
    /// When a file is missing or broken, a parameter is missing, or a shape differs from the configuration's.
    pub fn from_dir(dir: &Path, device: &Device) -> Result<Self, Error> {
        let config = ModelConfig::from_dir(dir)?;
        let mut model = Self::new_lazy(&config, device);
        let mut missing: BTreeSet<String> = parameter_names(&model).into_iter().collect();
        for file in weight_files(dir)? {
            if !file.is_file() {
                return Err(Error::WeightFile { path: file, problem: "does not exist".into() });
            }
            let mut store = SafetensorsStore::from_file(&file)
                .allow_partial(true)
                .validate(false)
                .with_from_adapter(PyTorchToBurnAdapter.chain(FloatCastAdapter::to(DType::F32)));
            let applied = model
                .load_from(&mut store)
                .map_err(|error| Error::WeightFile { path: file.clone(), problem: error.to_string() })?;
            if let Some(error) = applied.errors.into_iter().next() {
                return Err(weight_error(file, error));
            }
            for name in applied.applied {
                missing.remove(&name);
            }
        }
        if missing.is_empty() {
            Ok(model)
        } else {
            let names = missing.into_iter().map(|name| published_name(&name)).collect();
            Err(Error::MissingWeights { path: dir.into(), names })
        }
    }

    /// Writes `model.safetensors` in float32 with the published names, by a temporary file and a rename.
    ///
    /// The other files of a model directory are the caller's: a trained model keeps those it started from.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub fn save_weights(&self, dir: &Path) -> Result<(), Error> {
        let path = dir.join(SINGLE_FILE);
        let temporary = dir.join("model.partial.safetensors");
        let mut store = SafetensorsStore::from_file(&temporary)
            .overwrite(true)
            .metadata("format", "pt")
            .with_to_adapter(BurnToPyTorchAdapter);
        self.valid()
            .save_into(&mut store)
            .map_err(|error| Error::WeightFile { path: path.clone(), problem: error.to_string() })?;
        std::fs::rename(&temporary, &path).map_err(|source| Error::Io { path, source })
    }
}

/// Whether a model directory holds weights, in one file or in shards.
#[must_use]
pub fn has_weights(dir: &Path) -> bool {
    dir.join(SINGLE_FILE).is_file() || dir.join(INDEX).is_file()
}

fn weight_files(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let index = dir.join(INDEX);
    if !index.is_file() {
        return Ok(vec![dir.join(SINGLE_FILE)]);
    }
    let index: ShardIndex = crate::read_json(&index)?;
    let files: BTreeSet<PathBuf> = index.weight_map.into_values().collect();
    Ok(files.into_iter().map(|file| dir.join(file)).collect())
}

fn weight_error(path: PathBuf, error: ApplyError) -> Error {
    match error {
        ApplyError::ShapeMismatch { path: name, expected, found } => {
            Error::WeightShape { path, name: published_name(&name), found: found.to_vec(), expected: expected.to_vec() }
        }
        other => Error::WeightFile { path, problem: other.to_string() },
    }
}

/// burn calls the scale and shift of a norm gamma and beta.
fn published_name(name: &str) -> String {
    match name.rsplit_once('.') {
        Some((module, "gamma")) => format!("{module}.weight"),
        Some((module, "beta")) => format!("{module}.bias"),
        _ => name.into(),
    }
}

/// Published names of the parameters of `model`, in the order of the module tree, with burn's id of each.
///
/// For whoever compares parameters or gradients with another implementation.
#[must_use]
pub fn published_names(model: &QwenVl) -> Vec<(String, burn::module::ParamId)> {
    named(model).into_iter().map(|(name, id)| (published_name(&name), id)).collect()
}

fn parameter_names(model: &QwenVl) -> Vec<String> {
    named(model).into_iter().map(|(name, _)| name).collect()
}

fn named(model: &QwenVl) -> Vec<(String, burn::module::ParamId)> {
    #[derive(Default)]
    struct Names {
        path: Vec<String>,
        names: Vec<(String, burn::module::ParamId)>,
    }
    impl ModuleVisitor for Names {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.path.push(name.into());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.names.push((self.path.join("."), param.id));
        }
    }
    let mut names = Names::default();
    model.visit(&mut names);
    names.names
}
