use burn::module::{Module, ModuleVisitor, Param, ParamGroup};
use burn::optim::{AdamWConfig, ModuleOptimizer};
use burn::tensor::Tensor;

/// AdamW whose weight decay pulls at matrices alone: parameters of fewer than two dimensions, which are biases and the
/// weights of norms, have none. `config.init()` is AdamW that decays them all.
///
/// The groups are kept by the paths of the parameters, so the optimizer fits any module of the same architecture.
#[must_use]
pub fn adamw_with_decay_groups<M: Module>(module: &M, config: &AdamWConfig) -> ModuleOptimizer {
    let mut vectors = Vectors::default();
    module.visit(&mut vectors);
    let undecayed = config.clone().with_weight_decay(0.0).build();
    config.init().with_group(ParamGroup::from_paths(vectors.paths), undecayed, None)
}

#[derive(Default)]
struct Vectors {
    path: Vec<String>,
    paths: Vec<String>,
}

impl ModuleVisitor for Vectors {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, _: &Param<Tensor<D>>) {
        if D < 2 {
            self.paths.push(self.path.join("."));
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::module::{Module, Param};
    use burn::optim::{AdamWConfig, GradientsParams};
    use burn::tensor::{Device, Tensor};

    use super::adamw_with_decay_groups;

    #[derive(Module, Debug)]
    struct Layer {
        weight: Param<Tensor<2>>,
        bias: Param<Tensor<1>>,
    }

    #[test]
    fn matrices_decay_and_vectors_do_not() {
        let device = Device::flex();
        let tracked = device.clone().autodiff();
        let layer = Layer {
            weight: Param::from_tensor(Tensor::from_data([[2.0]], &tracked)),
            bias: Param::from_tensor(Tensor::from_data([2.0], &tracked)),
        };
        let mut gradients = GradientsParams::new();
        gradients.register(layer.weight.id, Tensor::<2>::zeros([1, 1], &device));
        gradients.register(layer.bias.id, Tensor::<1>::zeros([1], &device));
        let config = AdamWConfig::new().with_weight_decay(0.5);
        let layer = adamw_with_decay_groups(&layer, &config).step(0.1, layer, gradients);
        // No gradient, so the weight loses rate x decay of itself: 2 - 0.1 x 0.5 x 2.
        assert!((layer.weight.val().into_scalar::<f32>() - 1.9).abs() < 1e-6);
        assert_eq!(layer.bias.val().into_scalar::<f32>(), 2.0);
    }
}
