//! Fresh weights: a function of the seed and the configuration alone, the same on every device.

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Tensor, TensorData};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

use crate::config::ModelConfig;

/// Keeps these streams apart from those that completions of the same seed are drawn with.
const DOMAIN: u64 = 0x7765_6967_6874_7300;

/// Gives every parameter of `module` a fresh value.
///
/// Embedding tables are normal with the configuration's `initializer_range`, linear layers and the patch projection
/// uniform in `1 / sqrt(inputs)`, biases zero, norms the identity. Every parameter has a random stream of its own,
/// numbered in the order of the module tree; burn's own initializers share one stream between all threads.
pub(crate) fn initialize<M: Module>(module: M, config: &ModelConfig, seed: u64) -> M {
    module.map(&mut Initializer { config, seed, parameters: 0, path: Vec::new() })
}

/// Random stream `number` of a seed.
pub(crate) fn stream(seed: u64, number: u64) -> ChaCha8Rng {
    let mut stream = ChaCha8Rng::seed_from_u64(seed);
    stream.set_stream(number);
    stream
}

/// `count` values uniform in `1 / sqrt(inputs)`, as linear layers start.
pub(crate) fn uniform(stream: &mut ChaCha8Rng, inputs: usize, count: usize) -> Vec<f32> {
    let bound = (inputs as f32).powf(-0.5);
    (0..count).map(|_| bound * (2.0 * stream.random::<f32>() - 1.0)).collect()
}

struct Initializer<'a> {
    config: &'a ModelConfig,
    seed: u64,
    parameters: u64,
    path: Vec<String>,
}

impl Initializer<'_> {
    fn values(&self, shape: &[usize]) -> Vec<f32> {
        let count = shape.iter().product();
        let mut stream = stream(self.seed ^ DOMAIN, self.parameters);
        let path: Vec<&str> = self.path.iter().map(String::as_str).collect();
        match path[..] {
            [.., "gamma"] => vec![1.0; count],
            [.., "beta" | "bias"] => vec![0.0; count],
            [.., table @ ("embed_tokens" | "pos_embed"), "weight"] => {
                let deviation = match table {
                    "embed_tokens" => self.config.text_config.initializer_range,
                    _ => self.config.vision_config.as_ref().map_or(0.0, |vision| vision.initializer_range),
                };
                let mut normal = || -> f64 { StandardNormal.sample(&mut stream) };
                (0..count).map(|_| (deviation * normal()) as f32).collect()
            }
            // The layout of the published weights: outputs first.
            [.., "patch_embed", "proj", "weight"] => uniform(&mut stream, shape[1..].iter().product(), count),
            // burn's linear layers hold inputs first.
            _ => uniform(&mut stream, shape[0], count),
        }
    }
}

impl ModuleMapper for Initializer<'_> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.into());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let shape = param.lazy_shape();
        let values = self.values(shape.as_slice());
        let device = param.lazy_device();
        self.parameters += 1;
        // A new parameter in the place of the lazy one, which would make its own value first if it were changed.
        let value = Tensor::from_data(TensorData::new(values, shape), &device);
        Param::initialized(param.id, if device.is_autodiff() { value.require_grad() } else { value })
    }
}
