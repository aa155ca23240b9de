//! Models without the query heads of one index, to see what those are good for.

use std::collections::BTreeSet;
use std::ops::Range;

use burn::module::{Module, ModuleMapper, Param, ParamId};
use burn::tensor::Tensor;

use crate::lora::{last_name, layers};
use crate::{Component, Error, QwenVl};

impl QwenVl {
    /// A copy in which the query heads of index `head` contribute nothing, in every decoder layer at once. It is off
    /// the autodiff graph, with adapters merged, and shares all other weights.
    ///
    /// What attention gives to the stream is linear in its heads, so their rows of the output projections become zero:
    /// the forward pass knows nothing of it.
    ///
    /// # Errors
    /// [`Error::HeadOutOfRange`].
    pub fn without_head(&self, head: usize) -> Result<Self, Error> {
        let text = &self.config().text_config;
        let (heads, dim) = (text.num_attention_heads, text.head_dim);
        if head >= heads {
            return Err(Error::HeadOutOfRange { head, heads });
        }
        let mut model = self.valid().materialize();
        model.lora = None;
        let mut projections = layers(&model);
        projections.retain(|layer| layer.component == Component::Decoder && last_name(layer) == "o_proj");
        let projections = projections.into_iter().map(|layer| layer.id).collect();
        Ok(model.map(&mut ZeroRows { of: projections, rows: head * dim..(head + 1) * dim }))
    }
}

/// Sets rows of matrices to zero. burn keeps the weight of a linear layer as `[inputs, outputs]`.
struct ZeroRows {
    of: BTreeSet<ParamId>,
    rows: Range<usize>,
}

impl ModuleMapper for ZeroRows {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if !self.of.contains(&param.id) {
            return param;
        }
        param.map(|weight| weight.slice_fill(self.rows.clone(), 0.0))
    }
}
