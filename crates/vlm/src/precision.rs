//! Mixed precision (arXiv 1710.03740): products and activations in bfloat16, the weights that are trained in float32.

use std::collections::BTreeSet;

use burn::module::{Module, ModuleMapper, Param, ParamId};
use burn::tensor::{FloatDType, Tensor};

use crate::QwenVl;
use crate::lora::layers;

/// Float types of a model in training. What is trained stays in float32, and so does what its optimizer keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Precision {
    /// Of activations and matrix products. Norms, softmax, the output head and log-probabilities are computed in float32
    /// whatever this is.
    pub compute: FloatDType,
    /// Of parameters that training leaves alone.
    pub frozen: FloatDType,
}

impl Precision {
    /// All of it in float32.
    pub const F32: Self = Self { compute: FloatDType::F32, frozen: FloatDType::F32 };

    /// Computes in `dtype`, and keeps in it what is not trained.
    #[must_use]
    pub fn mixed(dtype: FloatDType) -> Self {
        Self { compute: dtype, frozen: dtype }
    }

    /// Computes in float32 and keeps in `dtype` what is not trained: what a CPU has of it, whose backend would convert
    /// every product to float32 and back.
    #[must_use]
    pub fn stored(dtype: FloatDType) -> Self {
        Self { compute: FloatDType::F32, frozen: dtype }
    }
}

impl QwenVl {
    /// Computes with this precision from here on: call it once all that shall be frozen is, and has its adapters.
    ///
    /// Weights of another type than `compute` are converted where they are used. The gradients of those that are trained
    /// come back in float32.
    #[must_use]
    pub fn with_precision(self, precision: Precision) -> Self {
        let Precision { compute, frozen } = precision;
        // What a frozen tower sees is now something else, in its last bits.
        self.computing_in(compute).map(&mut Convert { dtype: frozen, which: Which::Frozen }).noting_frozen_vision()
    }

    /// A copy whose linear layers need no conversion at every token that is drawn; `None` where they need none anyway,
    /// or would have to grow for it. It is off the autodiff graph, with adapters merged.
    pub(crate) fn converted(&self) -> Option<Self> {
        let dtype = self.compute_dtype();
        (dtype != FloatDType::F32).then(|| {
            let model = self.valid().materialize();
            let which = Which::These(layers(&model).into_iter().map(|layer| layer.id).collect());
            model.map(&mut Convert { dtype, which })
        })
    }
}

/// Converts parameters.
struct Convert {
    dtype: FloatDType,
    which: Which,
}

enum Which {
    /// Those that training leaves alone.
    Frozen,
    These(BTreeSet<ParamId>),
}

impl ModuleMapper for Convert {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let chosen = match &self.which {
            Which::Frozen => !param.is_require_grad(),
            Which::These(ids) => ids.contains(&param.id),
        };
        if chosen { param.map(|tensor| tensor.cast(self.dtype)) } else { param }
    }
}
