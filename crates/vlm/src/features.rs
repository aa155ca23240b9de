//! What a frozen vision tower makes of a prompt's images: computed once, and kept with the prompt.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::Tensor;

use crate::checkpointing::Checkpoints;
use crate::probe::without_graph;
use crate::vision::{VisionFeatures, VisionTower, concatenate};
use crate::{Error, ProcessedImage, Prompt, QwenVl};

/// Stands for the values of a vision tower that training leaves alone, mergers included.
///
/// A model gets one when it is frozen, and all copies share it: those without autodiff, with adapters merged, on other
/// threads. What one of them made of an image is then true for all of them, and for no other model. It cannot see
/// values change under it: [`QwenVl::with_frozen`] says what that asks of its callers.
#[derive(Debug, Clone)]
pub(crate) struct FrozenVision(Arc<()>);

impl FrozenVision {
    /// A new one, if nothing of the tower is trained.
    fn of(tower: &VisionTower) -> Option<Self> {
        is_frozen(tower).then(|| Self(Arc::new(())))
    }
}

impl QwenVl {
    /// Notes whether the vision tower is frozen now. Whatever freezes or gets adapters ends with it.
    pub(crate) fn noting_frozen_vision(mut self) -> Self {
        self.frozen_vision = self.tower().ok().and_then(FrozenVision::of);
        self
    }

    /// What the vision tower makes of each image of a prompt, as the decoder gets it: `[visual tokens, hidden_size]`, off
    /// the autodiff graph. A frozen tower runs once in the life of a prompt.
    ///
    /// # Errors
    /// [`Error::NoVision`] for a model of text alone, if the prompt has images.
    pub fn image_features(&self, prompt: &Prompt) -> Result<Vec<Tensor<2>>, Error> {
        let Some(features) = self.visual_features(&[prompt], false, None)? else { return Ok(Vec::new()) };
        let tokens = without_graph(features.tokens);
        let mut start = 0;
        let mut cut = |span: &Range<usize>| {
            start += span.len();
            tokens.clone().narrow(0, start - span.len(), span.len())
        };
        Ok(prompt.image_spans().iter().map(&mut cut).collect())
    }

    /// Features of the images of all prompts one after another, `None` without images; with the attention that visual
    /// tokens receive if it is asked for. A frozen tower runs once in the life of a prompt, off the autodiff graph, and
    /// once more if the attention is asked for only later. Otherwise `checkpoints` keep what the tower's backward pass
    /// needs.
    pub(crate) fn visual_features(
        &self,
        prompts: &[&Prompt],
        attention: bool,
        checkpoints: Option<&mut Checkpoints>,
    ) -> Result<Option<VisionFeatures>, Error> {
        let images: Vec<&ProcessedImage> = prompts.iter().flat_map(|prompt| prompt.images()).collect();
        if images.is_empty() {
            return Ok(None);
        }
        let tower = self.tower()?;
        // Frozen once, it may have been unfrozen since.
        let Some(frozen) = self.frozen_vision.as_ref().filter(|_| is_frozen(tower)) else {
            return Ok(Some(match checkpoints {
                Some(checkpoints) => checkpoints.encode(tower, &images, attention),
                None => tower.encode(&images, attention),
            }));
        };
        let tower = tower.valid();
        // Each prompt by itself, or its features would show in their last bits what was beside it.
        let encode = |prompt: &&Prompt| {
            let images: Vec<&ProcessedImage> = prompt.images().iter().collect();
            prompt.features.of(frozen, attention, || tower.encode(&images, attention))
        };
        let features = concatenate(prompts.iter().filter(|prompt| !prompt.images().is_empty()).map(encode).collect());
        // Prompts may have been through a copy of the model on another device.
        let device = self.device().without_autodiff();
        Ok(Some(VisionFeatures {
            tokens: features.tokens.to_device(&device),
            deepstack: features.deepstack.into_iter().map(|level| level.to_device(&device)).collect(),
            attention: features.attention.map(|attention| attention.to_device(&device)),
        }))
    }
}

/// Whether training leaves the tower alone. The copy that samples tells as well, although none of its parameters has a
/// gradient: burn keeps for each what it would be in training.
fn is_frozen(tower: &VisionTower) -> bool {
    !is_trained(&tower.valid().train())
}

/// Whether any parameter has a gradient.
pub(crate) fn is_trained(module: &impl Module) -> bool {
    let mut trained = AnyTrained(false);
    module.visit(&mut trained);
    trained.0
}

struct AnyTrained(bool);

impl ModuleVisitor for AnyTrained {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.0 |= param.is_require_grad();
    }
}

/// Features of one prompt's images, off the autodiff graph. A clone starts with what is known, and learns for itself.
#[derive(Debug, Clone, Default)]
pub(crate) struct KeptFeatures {
    features: OnceLock<(FrozenVision, VisionFeatures)>,
    with_attention: OnceLock<(FrozenVision, VisionFeatures)>,
}

impl KeptFeatures {
    /// What `tower` makes of the images: `encode` runs if nobody has asked before, or only for another tower, or
    /// without the attention. Threads that ask at the same time wait for the first.
    fn of(&self, tower: &FrozenVision, attention: bool, encode: impl Fn() -> VisionFeatures) -> VisionFeatures {
        let of_tower = |known: &FrozenVision| Arc::ptr_eq(&known.0, &tower.0);
        let more = self.with_attention.get().is_some_and(|(known, _)| of_tower(known));
        let kept = if attention || more { &self.with_attention } else { &self.features };
        let (known, features) = kept.get_or_init(|| (tower.clone(), encode()));
        if of_tower(known) { features.clone() } else { encode() }
    }
}
