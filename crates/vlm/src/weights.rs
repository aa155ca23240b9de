//! Weights from and to Hugging Face model directories.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::{Device, FloatDType};
use burn_store::{
    BurnToPyTorchAdapter, FloatCastAdapter, KeyRemapper, ModuleAdapter, ModuleSnapshot, ModuleStore,
    PyTorchToBurnAdapter, SafetensorsStore,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::Tower;
use crate::directory::publish;
use crate::error::WeightProblem;
use crate::parameters::{Parameter, parameters};
use crate::{Error, ModelConfig, QwenVl};

const SINGLE_FILE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const CONFIG: &str = "config.json";

/// Files of a model directory, beside its configuration and weights, that a trained model keeps.
const COMPANIONS: [&str; 12] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
    "chat_template.jinja",
    "chat_template.json",
];

/// Which shard holds each parameter: `model.safetensors.index.json`.
#[derive(Serialize, Deserialize)]
struct ShardIndex {
    #[serde(default)]
    metadata: Value,
    weight_map: BTreeMap<String, PathBuf>,
}

/// How weights are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SaveOptions {
    /// Float type on disk.
    pub dtype: FloatDType,
    /// Largest file in bytes; a model that needs more is written in shards with an index.
    pub max_shard_bytes: u64,
}

impl Default for SaveOptions {
    /// float32, shards of 5 GB.
    fn default() -> Self {
        Self { dtype: FloatDType::F32, max_shard_bytes: 5_000_000_000 }
    }
}

impl QwenVl {
    /// Reads a model directory to compute in float32; see [`QwenVl::from_dir_as`].
    ///
    /// # Errors
    /// As there.
    pub fn from_dir(dir: &Path, device: &Device) -> Result<Self, Error> {
        Self::from_dir_as(dir, FloatDType::F32, device)
    }

    /// Reads a model directory: `config.json` and its weights, in one file or in shards with an index, in any float
    /// type, to keep and to compute in `dtype`; see [`Precision`](crate::Precision).
    ///
    /// The files are mapped into memory and read one parameter at a time, so that no second copy of the weights is
    /// ever held.
    ///
    /// # Errors
    /// When a file is missing or broken; [`Error::Weights`] lists every parameter that is missing, superfluous, of
    /// another shape than the configuration says, or unreadable.
    pub fn from_dir_as(dir: &Path, dtype: FloatDType, device: &Device) -> Result<Self, Error> {
        let config = ModelConfig::from_dir(dir)?;
        let mut model = Self::without_weights(&config, device).computing_in(dtype);
        let expected = parameters(&model);
        let mut by_name: BTreeMap<&str, &Parameter> = expected.iter().map(|p| (p.name.as_str(), p)).collect();
        let mut tensors = Vec::with_capacity(expected.len());
        let mut problems = Vec::new();
        for file in weight_files(dir)? {
            if !file.is_file() {
                return Err(Error::WeightFile { path: file, problem: "does not exist".into() });
            }
            let mut store = SafetensorsStore::from_file(&file);
            let found = store
                .get_all_tensors()
                .map_err(|error| Error::WeightFile { path: file, problem: error.to_string() })?;
            for (name, tensor) in found {
                let published = as_published(name, &config);
                let Some(parameter) = by_name.remove(published.as_ref()) else {
                    if !is_redundant(name, &config) {
                        problems.push(WeightProblem::Superfluous { name: name.clone() });
                    }
                    continue;
                };
                if tensor.shape[..] != parameter.shape[..] {
                    problems.push(WeightProblem::Shape {
                        name: name.clone(),
                        found: tensor.shape.to_vec(),
                        expected: parameter.shape.clone(),
                    });
                }
                let mut tensor = tensor.clone();
                tensor.name.clone_from(&parameter.stored);
                tensors.push(tensor);
            }
        }
        problems.extend(by_name.into_keys().map(|name| WeightProblem::Missing { name: name.into() }));
        if problems.is_empty() {
            let adapter = PyTorchToBurnAdapter.chain(FloatCastAdapter::to(dtype.into()));
            let applied = model.apply(tensors, None, Some(Box::new(adapter)), true);
            let reasons = applied.errors.iter().map(ToString::to_string);
            problems.extend(reasons.map(|reason| WeightProblem::Unreadable { reason }));
            problems.extend(applied.missing.into_iter().map(|(name, _)| WeightProblem::Missing { name }));
        }
        if problems.is_empty() { Ok(model) } else { Err(Error::Weights { path: dir.into(), problems }) }
    }

    /// Writes a model directory that transformers can load: the weights with their published names, and configuration,
    /// tokenizer, chat template, processor and generation settings of `origin`, the directory that the model came from.
    /// LoRA adapters are merged into the weights.
    ///
    /// The directory appears whole or not at all: it is written under another name and renamed.
    ///
    /// # Errors
    /// When `target` holds anything already, or a file cannot be read or written.
    pub fn save(&self, target: &Path, origin: &Path, options: SaveOptions) -> Result<(), Error> {
        publish(target, |dir| {
            for name in COMPANIONS {
                let file = origin.join(name);
                if file.is_file() {
                    fs::copy(&file, dir.join(name)).map_err(|source| Error::Io { path: file, source })?;
                }
            }
            let config: Value = crate::read_json(&origin.join(CONFIG))?;
            write_json(&dir.join(CONFIG), &with_dtype(config, options.dtype))?;
            self.save_weights(dir, options)
        })
    }

    /// Writes `model.safetensors`, or shards and their index.
    fn save_weights(&self, dir: &Path, options: SaveOptions) -> Result<(), Error> {
        let merged = self.valid().materialize();
        let parameters = parameters(&merged);
        let shards = shards(&parameters, options);
        let file = |number: usize| match shards.len() {
            1 => SINGLE_FILE.to_owned(),
            count => format!("model-{:05}-of-{count:05}.safetensors", number + 1),
        };
        for (number, shard) in shards.iter().enumerate() {
            let path = dir.join(file(number));
            // Exact names instead of prefixes, or a `.1` would take a `.10` along.
            let names = shard.iter().map(|p| (format!("^{}$", p.stored.replace('.', r"\.")), p.name.as_str()));
            let mut store = SafetensorsStore::from_file(&path)
                .with_full_paths(shard.iter().map(|p| p.stored.as_str()))
                .metadata("format", "pt")
                .skip_enum_variants(true)
                .remap(KeyRemapper::from_pattern_iter(names).expect("names make valid patterns"))
                .with_to_adapter(BurnToPyTorchAdapter.chain(FloatCastAdapter::to(options.dtype.into())));
            merged
                .save_into(&mut store)
                .map_err(|error| Error::WeightFile { path: path.clone(), problem: error.to_string() })?;
        }
        if shards.len() > 1 {
            let holders = shards.iter().enumerate();
            let weight_map =
                holders.flat_map(|(i, shard)| shard.iter().map(move |p| (p.name.clone(), file(i).into()))).collect();
            let total: u64 = parameters.iter().map(|p| bytes(p, options)).sum();
            let metadata = serde_json::json!({ "total_size": total });
            write_json(&dir.join(INDEX), &ShardIndex { metadata, weight_map })?;
        }
        Ok(())
    }
}

/// Whether a model directory holds weights, in one file or in shards.
#[must_use]
pub fn has_weights(dir: &Path) -> bool {
    dir.join(SINGLE_FILE).is_file() || dir.join(INDEX).is_file()
}

fn weight_files(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let (single, index) = (dir.join(SINGLE_FILE), dir.join(INDEX));
    // Where both are there, transformers takes the one file.
    if single.is_file() || !index.is_file() {
        return Ok(vec![single]);
    }
    let index: ShardIndex = crate::read_json(&index)?;
    let files: BTreeSet<PathBuf> = index.weight_map.into_values().collect();
    Ok(files.into_iter().map(|file| dir.join(file)).collect())
}

/// The published name of a tensor that transformers 4.52 and later may have written by the name it has in memory.
fn as_published<'a>(name: &'a str, config: &ModelConfig) -> Cow<'a, str> {
    if let Some(Tower::Qwen2_5 { .. }) = config.vision_config.as_ref().map(|vision| &vision.tower) {
        for (memory, published) in [("model.language_model.", "model."), ("model.visual.", "visual.")] {
            if let Some(rest) = name.strip_prefix(memory) {
                return format!("{published}{rest}").into();
            }
        }
    }
    name.into()
}

/// Tensors that some checkpoints hold although they follow from the rest; transformers passes over them, too.
fn is_redundant(name: &str, config: &ModelConfig) -> bool {
    name.ends_with(".rotary_emb.inv_freq") || (config.tie_word_embeddings && name == "lm_head.weight")
}

fn bytes(parameter: &Parameter, options: SaveOptions) -> u64 {
    (parameter.count() * burn::tensor::DType::from(options.dtype).size()) as u64
}

/// Parameters in their order, as many in a shard as fit; one that is too large has a shard of its own.
fn shards(parameters: &[Parameter], options: SaveOptions) -> Vec<Vec<&Parameter>> {
    let mut shards: Vec<Vec<&Parameter>> = vec![Vec::new()];
    let mut filled = 0;
    for parameter in parameters {
        let size = bytes(parameter, options);
        if filled > 0 && filled + size > options.max_shard_bytes {
            shards.push(Vec::new());
            filled = 0;
        }
        filled += size;
        shards.last_mut().expect("starts with one").push(parameter);
    }
    shards
}

/// The configuration with the float type of the weights beside it, under the name that the file uses for it.
fn with_dtype(mut config: Value, dtype: FloatDType) -> Value {
    let name = match dtype {
        FloatDType::F64 => "float64",
        FloatDType::F32 | FloatDType::Flex32 => "float32",
        FloatDType::F16 => "float16",
        FloatDType::BF16 => "bfloat16",
    };
    if let Some(root) = config.as_object_mut() {
        if !root.contains_key("torch_dtype") {
            root.insert("dtype".into(), name.into());
        }
        for key in ["torch_dtype", "dtype"] {
            if let Some(written) = root.get_mut(key) {
                *written = name.into();
            }
            for part in ["text_config", "vision_config"] {
                if let Some(written) = root.get_mut(part).and_then(|part| part.get_mut(key)) {
                    *written = name.into();
                }
            }
        }
    }
    config
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<(), Error> {
    let text = serde_json::to_string_pretty(value).expect("string keys and no broken values");
    fs::write(path, text + "\n").map_err(|source| Error::Io { path: path.into(), source })
}
