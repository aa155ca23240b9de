//! The parameters of a model under their published names, without reading or making any of their values.

use burn::module::{Module, ModuleVisitor, Param, ParamGroup, ParamId};
use burn::tensor::Tensor;

use crate::config::Tower;
use crate::{ModelConfig, QwenVl};

/// A part of a model that is trained or frozen as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Component {
    /// The blocks of the vision tower, with its patch embedding and positions.
    Vision,
    /// What makes visual tokens of patches: the merger, and those of deepstack.
    Merger,
    /// The decoder's layers.
    Decoder,
    /// The embedding table, and the output head where it is not the same.
    Embeddings,
}

impl Component {
    /// All of them, from pixels to tokens.
    pub const ALL: [Self; 4] = [Self::Vision, Self::Merger, Self::Embeddings, Self::Decoder];

    /// What tables call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Vision => "vision tower",
            Self::Merger => "merger",
            Self::Decoder => "decoder",
            Self::Embeddings => "embeddings",
        }
    }

    fn of(path: &str) -> Self {
        let starts = |prefix: &str| path.starts_with(prefix);
        match () {
            () if starts("model.visual.merger.") || starts("model.visual.deepstack_merger_list.") => Self::Merger,
            () if starts("model.visual.") => Self::Vision,
            () if starts("model.language_model.embed_tokens.") || starts("lm_head.") => Self::Embeddings,
            () => Self::Decoder,
        }
    }
}

/// A parameter, seen without its values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameter {
    /// Published name.
    pub name: String,
    /// Published shape: `[outputs, inputs]` for a linear layer.
    pub shape: Vec<usize>,
    /// Where it belongs.
    pub component: Component,
    /// Whether training changes it. Always `false` on a device without autodiff.
    pub trainable: bool,
    /// Whether it is a factor of a LoRA adapter; those have no published name, and `name` is their path.
    pub adapter: bool,
    /// burn's id of it.
    pub id: ParamId,
    /// Name by which burn's weight stores know it once PyTorch's names for the parts of a layer are applied.
    pub(crate) stored: String,
    /// Whether it belongs to a linear layer.
    pub(crate) linear: bool,
}

impl Parameter {
    /// Its number of values.
    #[must_use]
    pub fn count(&self) -> usize {
        self.shape.iter().product()
    }
}

impl QwenVl {
    /// Excludes these components from training.
    ///
    /// A frozen vision tower with frozen mergers runs over the images of a prompt once: what it makes of them is kept
    /// with the prompt, and serves all copies of the model. Whoever changes its values afterwards with burn's own tools
    /// (a mapper, a record, burn's adapters) calls this again, which ends that sharing.
    #[must_use]
    pub fn with_frozen(self, components: &[Component]) -> Self {
        let ids = parameters(&self).into_iter().filter(|p| components.contains(&p.component)).map(|p| p.id).collect();
        self.freeze_group(ParamGroup::from_ids(ids)).noting_frozen_vision()
    }
}

/// The parameters of a model, in the order of the module tree.
#[must_use]
pub fn parameters(model: &QwenVl) -> Vec<Parameter> {
    let mut visitor = Visitor { renames: renames(model.config()), path: Vec::new(), found: Vec::new() };
    model.visit(&mut visitor);
    visitor.found
}

/// Where published names differ from the paths of the modules, which are Qwen3-VL's published names: (start of a path,
/// start of the published name). The first that fits changes a name.
pub(crate) type Renames = &'static [(&'static str, &'static str)];

pub(crate) fn renames(config: &ModelConfig) -> Renames {
    match config.vision_config.as_ref().map(|vision| &vision.tower) {
        Some(Tower::Qwen3 { .. }) => &[],
        Some(Tower::Qwen2_5 { .. }) => &[
            ("model.language_model.", "model."),
            ("model.visual.merger.norm.", "visual.merger.ln_q."),
            ("model.visual.merger.linear_fc1.", "visual.merger.mlp.0."),
            ("model.visual.merger.linear_fc2.", "visual.merger.mlp.2."),
            ("model.visual.", "visual."),
        ],
        None => &[("model.language_model.", "model.")],
    }
}

struct Visitor {
    renames: Renames,
    /// Names of the fields on the way here, with the type that holds each.
    path: Vec<(String, String)>,
    found: Vec<Parameter>,
}

impl ModuleVisitor for Visitor {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.push((name.into(), container.into()));
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        // The weight stores leave out the names of enum variants, too.
        let fields = || self.path.iter().filter(|(_, container)| !container.starts_with("Enum:"));
        let path: Vec<&str> = fields().map(|(name, _)| name.as_str()).collect();
        let adapter = fields().any(|(_, container)| container == "Reparameterization");
        let mut shape = param.lazy_shape().to_vec();
        let mut stored = path.join(".");
        let linear = fields().next_back().is_some_and(|(_, container)| container == "Struct:Linear");
        // burn holds the weights of linear layers the other way round, and calls a norm's scale and shift by letters.
        if linear {
            shape.reverse();
        }
        for (ours, published) in [(".gamma", ".weight"), (".beta", ".bias")] {
            if let Some(norm) = stored.strip_suffix(ours) {
                stored = format!("{norm}{published}");
            }
        }
        let renamed = |(ours, published): &(&str, &str)| Some(format!("{published}{}", stored.strip_prefix(ours)?));
        let name = self.renames.iter().find_map(renamed).unwrap_or_else(|| stored.clone());
        // Asking a parameter without a value for anything else makes the value. It is as burn makes parameters: trained.
        let trainable =
            if param.is_initialized() { param.is_require_grad() } else { param.lazy_device().is_autodiff() };
        let component = Component::of(&stored);
        self.found.push(Parameter { name, shape, component, trainable, adapter, id: param.id, stored, linear });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::path::Path;

    use burn::tensor::Device;

    use super::*;

    struct NoneIsMade;

    impl ModuleVisitor for NoneIsMade {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            assert!(!param.is_initialized());
        }
    }

    #[test]
    fn a_list_makes_no_values() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/qwen2.5-small");
        let config = ModelConfig::from_dir(&directory).unwrap();
        for (device, trained) in [(Device::flex(), false), (Device::flex().autodiff(), true)] {
            let model = QwenVl::without_weights(&config, &device);
            let listed = parameters(&model);
            assert!(listed.len() > 50 && listed.iter().all(|parameter| parameter.trainable == trained));
            model.visit(&mut NoneIsMade);
        }
    }
}
