//! Low-rank adapters (LoRA, arXiv 2106.09685): burn's, on chosen layers, with files in the layout of PEFT.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use burn::module::{Lora, Module, ModuleMapper, ModuleVisitor, Param, ParamGroup, ParamId};
use burn::tensor::{FloatDType, Tensor, TensorData};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};

use crate::directory::publish;
use crate::error::WeightProblem;
use crate::initialize::{stream, uniform};
use crate::parameters::{Component, Parameter, parameters};
use crate::{Error, QwenVl};

const WEIGHTS: &str = "adapter_model.safetensors";
const CONFIG: &str = "adapter_config.json";
/// What PEFT puts before the name of a layer.
const PREFIX: &str = "base_model.model.";
/// Keeps these streams apart from those of other weights of the same seed.
const DOMAIN: u64 = 0x6c6f_7261_0000_0000;

/// Low-rank adapters: the weight `W` of a chosen layer becomes `W + alpha / rank * B A` (arXiv 2106.09685, equation
/// 3), and only `A` and `B` are trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoraConfig {
    /// Rows of `A`, columns of `B`.
    pub rank: usize,
    /// Scale of the product, before it is divided by the rank.
    pub alpha: f64,
    /// Linear layers that get an adapter, as in PEFT by their whole name or by the end of it: `q_proj`, `gate_proj`...
    pub target_modules: Vec<String>,
}

impl LoraConfig {
    /// What no adapters can have: the field, and what is wrong with it.
    ///
    /// # Errors
    /// For a rank of zero, a scale that is zero or not finite, and no layers at all.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        if self.rank == 0 {
            return Err(("rank", "must be at least 1".into()));
        }
        if !self.alpha.is_finite() || self.alpha == 0.0 {
            return Err(("alpha", format!("is {}; it must be finite and not zero", self.alpha)));
        }
        if self.target_modules.is_empty() {
            return Err(("target_modules", "must name at least one layer".into()));
        }
        Ok(())
    }
}

/// The fields of `adapter_config.json` that matter here.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
#[allow(clippy::struct_excessive_bools, reason = "PEFT's fields")]
struct PeftConfig {
    peft_type: String,
    task_type: Option<String>,
    base_model_name_or_path: Option<String>,
    r: usize,
    lora_alpha: f64,
    lora_dropout: f64,
    target_modules: serde_json::Value,
    bias: String,
    inference_mode: bool,
    fan_in_fan_out: bool,
    use_rslora: bool,
    use_dora: bool,
    lora_bias: bool,
    rank_pattern: BTreeMap<String, usize>,
    alpha_pattern: BTreeMap<String, f64>,
    modules_to_save: Option<Vec<String>>,
}

/// Both factors of an adapter in burn's layout: `A` as `[inputs, rank]`, `B` as `[rank, outputs]`.
#[derive(Debug, Default, Clone)]
struct Factors {
    a: Vec<f32>,
    b: Vec<f32>,
}

impl QwenVl {
    /// Freezes all weights and gives the decoder's layers that `config` names an adapter each; those in the blocks of the
    /// vision tower too if `vision`. `A` starts uniform in `1 / sqrt(inputs)`, `B` zero, so that the model is the same as
    /// before.
    ///
    /// # Errors
    /// [`Error::Lora`] when `config` names what is no such layer, or fails its check.
    pub fn with_lora(self, config: &LoraConfig, vision: bool, seed: u64) -> Result<Self, Error> {
        config.check().map_err(|(field, problem)| Error::Lora { problem: format!("{field} {problem}") })?;
        let mut layers = layers(&self);
        layers.retain(|layer| vision || layer.component == Component::Decoder);
        for target in &config.target_modules {
            if !layers.iter().any(|layer| is_called(layer, target)) {
                let mut names: Vec<&str> = layers.iter().map(last_name).collect();
                names.sort_unstable();
                names.dedup();
                let whose = if vision { "the model" } else { "the decoder" };
                let problem = format!("no layer of {whose} is called {target:?}; there are {}", names.join(", "));
                return Err(Error::Lora { problem });
            }
        }
        let chosen = layers.iter().filter(|layer| config.target_modules.iter().any(|target| is_called(layer, target)));
        let factors = chosen.enumerate().map(|(number, layer)| {
            let (outputs, inputs) = (layer.shape[0], layer.shape[1]);
            let a = uniform(&mut stream(seed ^ DOMAIN, number as u64), inputs, inputs * config.rank);
            (layer.id, Factors { a, b: vec![0.0; config.rank * outputs] })
        });
        let factors = factors.collect();
        self.attach(config.clone(), factors)
    }

    /// Attaches the adapters of a directory in PEFT's layout: `adapter_config.json` and `adapter_model.safetensors`.
    ///
    /// # Errors
    /// When a file is missing or broken; [`Error::Config`] for a kind of adapter that is not plain LoRA,
    /// [`Error::Weights`] for factors that do not fit the model.
    pub fn with_adapter(self, dir: &Path) -> Result<Self, Error> {
        let path = dir.join(CONFIG);
        let config: PeftConfig = crate::read_json(&path)?;
        if let Some((field, problem)) = config.refused() {
            return Err(Error::Config { path, field: field.into(), problem });
        }
        let path = dir.join(WEIGHTS);
        let bytes = fs::read(&path).map_err(|source| Error::Io { path: path.clone(), source })?;
        let broken = |problem: String| Error::WeightFile { path: path.clone(), problem };
        let file = SafeTensors::deserialize(&bytes).map_err(|error| broken(error.to_string()))?;

        let mut problems = Vec::new();
        let mut factors: BTreeMap<ParamId, Factors> = BTreeMap::new();
        let mut target_modules = Vec::new();
        let mut strangers: BTreeSet<&str> = file.names().into_iter().collect();
        for layer in layers(&self) {
            let module = module_name(&self, &layer);
            let names = |module: &str| ["A", "B"].map(|factor| format!("{PREFIX}{module}.lora_{factor}.weight"));
            // Before 4.52, transformers held the layers of Qwen2.5-VL by their published names.
            let published = names(layer.name.trim_end_matches(".weight"));
            let known = published.iter().any(|name| strangers.contains(name.as_str()));
            let names = if known { published } else { names(&module) };
            let found = names.each_ref().map(|name| file.tensor(name).ok());
            if found.iter().all(Option::is_none) {
                continue;
            }
            let shapes = [vec![config.r, layer.shape[1]], vec![layer.shape[0], config.r]];
            let mut values = Vec::new();
            for ((name, view), expected) in names.into_iter().zip(found).zip(shapes) {
                let Some(view) = view else {
                    problems.push(WeightProblem::Missing { name });
                    continue;
                };
                strangers.remove(name.as_str());
                if view.shape() != expected {
                    problems.push(WeightProblem::Shape { name, found: view.shape().to_vec(), expected });
                } else if let Some(floats) = floats(&view) {
                    values.push(transposed(&floats, expected[0], expected[1]));
                } else {
                    problems.push(WeightProblem::Unreadable { reason: format!("{name} is {:?}", view.dtype()) });
                }
            }
            if let Ok([a, b]) = <[_; 2]>::try_from(values) {
                target_modules.push(module);
                factors.insert(layer.id, Factors { a, b });
            }
        }
        problems.extend(strangers.into_iter().map(|name| WeightProblem::Superfluous { name: name.into() }));
        if !problems.is_empty() {
            return Err(Error::Weights { path: dir.into(), problems });
        }
        self.attach(LoraConfig { rank: config.r, alpha: config.lora_alpha, target_modules }, factors)
    }

    /// Writes the adapters as PEFT does, in a directory of their own that appears whole or not at all. `base` is the name
    /// or path of the model they belong to.
    ///
    /// # Errors
    /// [`Error::Lora`] for a model without adapters; when `dir` holds anything already or cannot be written.
    ///
    /// # Panics
    /// Never: every field has a JSON form.
    pub fn save_adapter(&self, dir: &Path, base: &str) -> Result<(), Error> {
        let Some(config) = &self.lora else {
            return Err(Error::Lora { problem: "the model has no adapters to save".into() });
        };
        let mut collected = Collect::default();
        self.visit(&mut collected);
        let mut tensors: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
        let mut target_modules = Vec::new();
        for layer in layers(self) {
            let Some(factors) = collected.factors.get(&layer.id) else { continue };
            let module = module_name(self, &layer);
            let (outputs, inputs) = (layer.shape[0], layer.shape[1]);
            for (factor, values, [rows, columns]) in
                [("A", &factors.a, [inputs, config.rank]), ("B", &factors.b, [config.rank, outputs])]
            {
                let bytes = transposed(values, rows, columns).into_iter().flat_map(f32::to_le_bytes).collect();
                tensors.push((format!("{PREFIX}{module}.lora_{factor}.weight"), vec![columns, rows], bytes));
            }
            target_modules.push(module);
        }
        let broken = |error: safetensors::SafeTensorError| Error::WeightFile {
            path: dir.join(WEIGHTS),
            problem: error.to_string(),
        };
        let views = tensors
            .iter()
            .map(|(name, shape, bytes)| Ok((name, TensorView::new(Dtype::F32, shape.clone(), bytes)?)))
            .collect::<Result<Vec<_>, _>>()
            .map_err(broken)?;
        let metadata = [("format".to_owned(), "pt".to_owned())].into();
        let bytes = safetensors::serialize(views, Some(metadata)).map_err(broken)?;
        let written = PeftConfig {
            peft_type: "LORA".into(),
            task_type: Some("CAUSAL_LM".into()),
            base_model_name_or_path: Some(base.into()),
            r: config.rank,
            lora_alpha: config.alpha,
            // All of them by full name: a last name alone could stand for a layer of the other tower as well.
            target_modules: target_modules.into(),
            bias: "none".into(),
            inference_mode: true,
            ..PeftConfig::default()
        };
        let config = serde_json::to_string_pretty(&written).expect("string keys and no broken values");
        publish(dir, |dir| {
            for (name, bytes) in [(WEIGHTS, &bytes), (CONFIG, &(config + "\n").into_bytes())] {
                let path = dir.join(name);
                fs::write(&path, bytes).map_err(|source| Error::Io { path, source })?;
            }
            Ok(())
        })
    }

    /// Its adapters, if it has any.
    #[must_use]
    pub fn lora(&self) -> Option<&LoraConfig> {
        self.lora.as_ref()
    }

    fn attach(self, config: LoraConfig, factors: BTreeMap<ParamId, Factors>) -> Result<Self, Error> {
        if self.lora.is_some() {
            return Err(Error::Lora { problem: "the model has adapters already".into() });
        }
        let layers = ParamGroup::from_ids(factors.keys().copied().collect());
        // The factors are trained, whatever type the weights are kept in.
        let lora = Lora::new(config.rank, config.alpha).set_param_group(layers).set_dtype(FloatDType::F32);
        let mut model = self.apply_lora(lora).map(&mut Fill { factors, place: Place::default() });
        model.lora = Some(config);
        Ok(model.noting_frozen_vision())
    }
}

impl PeftConfig {
    /// The first field that asks for something other than plain LoRA, and what is wrong with it.
    fn refused(&self) -> Option<(&'static str, String)> {
        let wanted = |fine: bool, field, found: &dyn std::fmt::Debug| {
            (!fine).then(|| (field, format!("is {found:?}, which is not supported")))
        };
        wanted(self.peft_type == "LORA", "peft_type", &self.peft_type)
            .or_else(|| wanted(self.r > 0, "r", &self.r))
            .or_else(|| wanted(matches!(self.bias.as_str(), "" | "none"), "bias", &self.bias))
            .or_else(|| wanted(!self.fan_in_fan_out, "fan_in_fan_out", &true))
            .or_else(|| wanted(!self.use_rslora, "use_rslora", &true))
            .or_else(|| wanted(!self.use_dora, "use_dora", &true))
            .or_else(|| wanted(!self.lora_bias, "lora_bias", &true))
            .or_else(|| wanted(self.rank_pattern.is_empty(), "rank_pattern", &self.rank_pattern))
            .or_else(|| wanted(self.alpha_pattern.is_empty(), "alpha_pattern", &self.alpha_pattern))
            .or_else(|| {
                let saved = self.modules_to_save.as_ref();
                wanted(saved.is_none_or(Vec::is_empty), "modules_to_save", &saved)
            })
    }
}

/// The weights that can have an adapter: those of linear layers in the decoder and in the blocks of the vision tower.
pub(crate) fn layers(model: &QwenVl) -> Vec<Parameter> {
    let mut found = parameters(model);
    found.retain(|parameter| {
        matches!(parameter.component, Component::Decoder | Component::Vision)
            && parameter.linear
            && parameter.stored.ends_with(".weight")
    });
    found
}

/// Whether `target` is the name of the layer or the end of it.
fn is_called(layer: &Parameter, target: &str) -> bool {
    let name = layer.stored.trim_end_matches(".weight").strip_suffix(target);
    name.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

pub(crate) fn last_name(layer: &Parameter) -> &str {
    layer.stored.trim_end_matches(".weight").rsplit('.').next().unwrap_or_default()
}

/// What transformers calls the layer in memory: the path here, except that a model of text alone has no part for text.
fn module_name(model: &QwenVl, layer: &Parameter) -> String {
    let path = layer.stored.trim_end_matches(".weight");
    match path.strip_prefix("model.language_model.") {
        Some(rest) if model.config().vision_config.is_none() => format!("model.{rest}"),
        _ => path.into(),
    }
}

/// `[rows, columns]` to `[columns, rows]`.
fn transposed(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|column| (0..rows).map(move |row| values[row * columns + column])).collect()
}

fn floats(view: &TensorView<'_>) -> Option<Vec<f32>> {
    let dtype = match view.dtype() {
        Dtype::F32 => burn::tensor::DType::F32,
        Dtype::F16 => burn::tensor::DType::F16,
        Dtype::BF16 => burn::tensor::DType::BF16,
        _ => return None,
    };
    let data = TensorData::from_bytes_vec(view.data().to_vec(), view.shape().to_vec(), dtype);
    Some(data.iter::<f32>().collect())
}

/// Where a walk over the parameters is: behind which weight, and in which factor of its adapter.
#[derive(Debug, Default)]
struct Place {
    weight: Option<ParamId>,
    factor: Option<String>,
}

impl Place {
    fn enter(&mut self, name: &str, container: &str) {
        self.factor = (container == "Struct:LoraAdapter").then(|| name.to_owned());
    }

    /// The adapted weight and the name of the factor, if the parameter is one; otherwise notes what adapters behind it
    /// belong to.
    fn at(&mut self, parameter: ParamId) -> Option<(ParamId, &str)> {
        let Some(factor) = &self.factor else {
            self.weight = Some(parameter);
            return None;
        };
        Some((self.weight?, factor))
    }
}

/// Gives the factors of every adapter their values.
struct Fill {
    factors: BTreeMap<ParamId, Factors>,
    place: Place,
}

impl ModuleMapper for Fill {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.place.enter(name, container);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.place.factor = None;
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some((weight, factor)) = self.place.at(param.id) else { return param };
        let Some(factors) = self.factors.get_mut(&weight) else { return param };
        let values = std::mem::take(if factor == "a" { &mut factors.a } else { &mut factors.b });
        let (shape, device, dtype) = (param.shape(), param.val().device(), param.val().dtype());
        // They are trained where there is autodiff at all.
        let trained = param.is_require_grad();
        param.map(|_| {
            let factor = Tensor::from_data(TensorData::new(values, shape), (&device, dtype));
            if trained { factor.require_grad() } else { factor }
        })
    }
}

/// Reads the factors of every adapter.
#[derive(Default)]
struct Collect {
    factors: BTreeMap<ParamId, Factors>,
    place: Place,
}

impl ModuleVisitor for Collect {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.place.enter(name, container);
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.place.factor = None;
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Some((weight, factor)) = self.place.at(param.id) else { return };
        let values = param.val().into_data().iter::<f32>().collect();
        let factors = self.factors.entry(weight).or_default();
        *(if factor == "a" { &mut factors.a } else { &mut factors.b }) = values;
    }
}
