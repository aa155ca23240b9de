use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::Tensor;

use crate::Error;

/// Scales gradients so that the norm of all of them together is at most `max_norm`, and returns that norm as it was
/// before. `None` only measures.
///
/// burn's own gradient clipping takes the norm of each tensor by itself, which changes the direction of the update.
///
/// # Errors
/// [`Error::NonFiniteGradient`] with the path of the first parameter, in module order, whose gradient is not finite or
/// so large that its squared norm overflows.
pub fn clip_global_norm<M: Module>(
    module: &M,
    mut gradients: GradientsParams,
    max_norm: Option<f32>,
) -> Result<(GradientsParams, f64), Error> {
    let mut squares = SquaredNorm { gradients: &gradients, path: Vec::new(), total: 0.0, non_finite: None };
    module.visit(&mut squares);
    if let Some(parameter) = squares.non_finite {
        return Err(Error::NonFiniteGradient { parameter });
    }
    let norm = squares.total.sqrt();
    if let Some(max_norm) = max_norm.map(f64::from)
        && norm > max_norm
    {
        // The small constant is PyTorch's: it keeps the quotient below one in spite of rounding.
        module.visit(&mut Rescale { gradients: &mut gradients, factor: (max_norm / (norm + 1e-6)) as f32 });
    }
    Ok((gradients, norm))
}

struct SquaredNorm<'a> {
    gradients: &'a GradientsParams,
    path: Vec<String>,
    total: f64,
    non_finite: Option<String>,
}

impl ModuleVisitor for SquaredNorm<'_> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let Some(gradient) = self.gradients.get::<D>(param.id) else { return };
        let square = f64::from(gradient.square().sum().into_scalar::<f32>());
        self.total += square;
        if !square.is_finite() && self.non_finite.is_none() {
            self.non_finite = Some(self.path.join("."));
        }
    }
}

struct Rescale<'a> {
    gradients: &'a mut GradientsParams,
    factor: f32,
}

impl ModuleVisitor for Rescale<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = self.gradients.remove::<D>(param.id) {
            self.gradients.register(param.id, gradient * self.factor);
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::module::{Module, Param};
    use burn::optim::GradientsParams;
    use burn::tensor::{Device, Tensor};

    use super::clip_global_norm;
    use crate::Error;

    #[derive(Module, Debug)]
    struct Inner {
        weight: Param<Tensor<2>>,
    }

    #[derive(Module, Debug)]
    struct Outer {
        bias: Param<Tensor<1>>,
        layers: Vec<Inner>,
    }

    fn module() -> Outer {
        let device = Device::flex();
        Outer {
            bias: Param::from_tensor(Tensor::zeros([2], &device)),
            layers: vec![Inner { weight: Param::from_tensor(Tensor::zeros([1, 2], &device)) }],
        }
    }

    fn gradients(module: &Outer, bias: [f32; 2], weight: [f32; 2]) -> GradientsParams {
        let device = Device::flex();
        let mut gradients = GradientsParams::new();
        gradients.register(module.bias.id, Tensor::<1>::from_data(bias, &device));
        gradients.register(module.layers[0].weight.id, Tensor::<2>::from_data([weight], &device));
        gradients
    }

    #[test]
    fn the_norm_is_that_of_all_tensors_together() {
        let module = module();
        let (clipped, norm) = clip_global_norm(&module, gradients(&module, [3.0, 0.0], [0.0, 4.0]), Some(1.0)).unwrap();
        assert_eq!(norm, 5.0);
        let bias: Vec<f32> = clipped.get::<1>(module.bias.id).unwrap().into_data().try_to_vec().unwrap();
        let weight: Vec<f32> = clipped.get::<2>(module.layers[0].weight.id).unwrap().into_data().try_to_vec().unwrap();
        for (found, expected) in bias.iter().chain(&weight).zip([0.6, 0.0, 0.0, 0.8]) {
            assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        }
    }

    #[test]
    fn a_small_norm_is_left_alone() {
        let module = module();
        let (kept, norm) = clip_global_norm(&module, gradients(&module, [3.0, 0.0], [0.0, 4.0]), Some(5.0)).unwrap();
        assert_eq!(norm, 5.0);
        assert_eq!(kept.get::<1>(module.bias.id).unwrap().into_data().try_to_vec::<f32>().unwrap(), [3.0, 0.0]);
    }

    #[test]
    fn the_first_bad_gradient_is_named_by_its_path() {
        let module = module();
        match clip_global_norm(&module, gradients(&module, [3.0, 0.0], [f32::NAN, 4.0]), None) {
            Err(Error::NonFiniteGradient { parameter }) => assert_eq!(parameter, "layers.0.weight"),
            other => panic!("{:?}", other.map(|(_, norm)| norm)),
        }
    }
}
