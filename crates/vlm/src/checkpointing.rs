//! Activation checkpointing (arXiv 1604.06174): a forward pass keeps what goes into each layer and nothing else, and the
//! backward pass runs each layer again before it goes through it.
//!
//! burn's autodiff has no such node, so the layers of the forward pass run without a graph, and each gets a graph of its
//! own when the gradient has come down to it. What the layers compute is the same both times, so the gradients are those
//! of one graph over all of them.

use burn::module::Module as _;
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::{Gradients, Tensor};

use crate::fused::{self, Scoring};
use crate::sequence::Sequence;
use crate::text::Pass;
use crate::vision::{VisionFeatures, VisionPass, VisionTower};
use crate::{ProcessedImage, QwenVl};

impl QwenVl {
    /// Whether scoring for training keeps only the input of each layer, decoder and vision tower alike, and computes the
    /// rest again when the gradient gets there: less memory for one more forward pass. Elsewhere than on the CPU in float32,
    /// where logits never exist for all tokens, they are computed again as well, a part at a time. Not so by default.
    ///
    /// The graph of such scores is only the last piece of it all: see [`CompletionScores::recomputation`].
    ///
    /// [`CompletionScores::recomputation`]: crate::CompletionScores::recomputation
    #[must_use]
    pub fn with_activation_checkpointing(mut self, on: bool) -> Self {
        self.activation_checkpointing = on;
        self
    }
}

/// What a forward pass keeps of its layers. All of it lies outside the graph.
#[derive(Debug, Default)]
pub(crate) struct Checkpoints {
    /// What went into each layer of the decoder: `[tokens, hidden_size]`.
    pub(crate) layers: Vec<Tensor<2>>,
    tower: Option<TowerCheckpoints>,
}

#[derive(Debug)]
enum TowerCheckpoints {
    /// Of a tower whose mergers alone are trained: what they let out, on its graph, which begins with them.
    Mergers { tokens: Tensor<2>, deepstack: Vec<Tensor<2>> },
    /// Of blocks that run again.
    Blocks {
        pass: Box<VisionPass>,
        pixels: Tensor<2>,
        /// What went into each block, and what came out of the last.
        streams: Vec<Tensor<2>>,
    },
}

impl Checkpoints {
    /// Encodes images, off the graph, and keeps what the backward pass needs.
    pub(crate) fn encode(
        &mut self,
        tower: &VisionTower,
        images: &[&ProcessedImage],
        attention: bool,
    ) -> VisionFeatures {
        if !tower.trains_blocks() {
            let VisionFeatures { tokens, deepstack, attention } = tower.encode(images, attention);
            let off = |level: &Tensor<2>| level.clone().inner();
            let features =
                VisionFeatures { tokens: off(&tokens), deepstack: deepstack.iter().map(off).collect(), attention };
            self.tower = Some(TowerCheckpoints::Mergers { tokens, deepstack });
            return features;
        }
        let tower = tower.valid();
        let (pass, pixels) = tower.pass(images);
        let mut streams = Vec::with_capacity(tower.depth() + 1);
        let features = tower.forward(&pass, pixels.clone(), attention, |x| streams.push(x.clone()));
        self.tower = Some(TowerCheckpoints::Blocks { pass: pass.into(), pixels, streams });
        features
    }
}

/// The backward pass of layers that ran without a graph.
#[derive(Debug)]
pub struct Recomputation {
    model: QwenVl,
    sequence: Sequence,
    pass: Pass,
    features: Option<VisionFeatures>,
    checkpoints: Checkpoints,
    /// What came out of the last layer: a leaf of the graph of the scores.
    output: Tensor<2>,
    /// Where the head runs again, too.
    head: Option<Head>,
}

/// The output head behind a graph that ends at what it is given.
#[derive(Debug)]
struct Head {
    hidden: Tensor<2>,
    scoring: Scoring,
    /// A leaf of the graph of the loss.
    scores: Tensor<2>,
}

impl Recomputation {
    /// For layers of `model` that let `output` out, which the scores' graph shall begin with.
    pub(crate) fn new(
        model: &QwenVl,
        sequence: Sequence,
        pass: Pass,
        features: Option<VisionFeatures>,
        checkpoints: Checkpoints,
        output: Tensor<2>,
    ) -> Self {
        let output = leaf(output, model);
        Self { model: model.clone(), sequence, pass, features, checkpoints, output, head: None }
    }

    pub(crate) fn output(&self) -> Tensor<2> {
        self.output.clone()
    }

    /// Scores hidden states; see [`fused::score`]. Where that would keep the logits of all of them, the head runs again as
    /// well, a part at a time.
    pub(crate) fn score(&mut self, hidden: Tensor<2>, scoring: Scoring) -> Tensor<2> {
        let weight = self.model.head();
        if fused::runs_on(&hidden.device(), hidden.dtype()) {
            return fused::score(hidden, weight, scoring);
        }
        let scores = fused::score(hidden.clone().inner(), weight.inner(), scoring.clone());
        let scores = leaf(scores, &self.model);
        self.head = Some(Head { hidden, scoring, scores: scores.clone() });
        scores
    }

    /// Goes back through the layers: `gradients` are those of the scores' graph, what is returned those of all parameters
    /// of the model that was scored with.
    #[must_use]
    pub fn backward(self, mut gradients: Gradients) -> GradientsParams {
        let Self { model, sequence, pass, features, checkpoints, output, head } = self;
        let mut back = Back { model: &model, sum: GradientsAccumulator::new() };
        if let Some(head) = head {
            gradients = back.through_head(head, gradients);
        } else {
            gradients = back.add(gradients);
        }
        let mut gradient = gradient(&output, &mut gradients);
        drop((output, gradients));

        let text = model.text();
        // What a frozen tower made of the images is given.
        let of_images = |features: &Tensor<2>| match checkpoints.tower {
            Some(_) => leaf(features.clone(), &model),
            None => features.clone(),
        };
        let mut to_deepstack = Vec::new();
        for (index, input) in checkpoints.layers.into_iter().enumerate().rev() {
            let x = leaf(input, &model);
            let level = features.as_ref().and_then(|found| found.deepstack.get(index)).map(of_images);
            let output = text.layer(index, x.clone(), &pass, level.clone(), |_| ());
            let mut gradients = back.through(vec![(output, gradient)]);
            gradient = self::gradient(&x, &mut gradients);
            if checkpoints.tower.is_some() {
                to_deepstack.extend(level.map(|level| self::gradient(&level, &mut gradients)));
            }
        }
        let visual = features.as_ref().map(|found| of_images(&found.tokens));
        let embeddings = text.embed_sequence(&sequence, &pass, visual.clone());
        // Nothing before the first layer may be trained.
        if embeddings.is_tracked() {
            let mut gradients = back.through(vec![(embeddings, gradient)]);
            if let (Some(kept), Some(visual), Ok(tower)) = (checkpoints.tower, visual, model.tower()) {
                back.through_tower(tower, kept, self::gradient(&visual, &mut gradients), to_deepstack);
            }
        }
        back.sum.grads()
    }
}

/// On the way back: the gradients of parameters so far.
struct Back<'a> {
    model: &'a QwenVl,
    sum: GradientsAccumulator<QwenVl>,
}

impl Back<'_> {
    /// Adds the gradients of parameters.
    fn add(&mut self, mut gradients: Gradients) -> Gradients {
        self.sum.accumulate(self.model, GradientsParams::from_module(&mut gradients, self.model));
        gradients
    }

    /// Goes back from tensors, each with its gradient; returns the gradients of the leaves behind them.
    fn through(&mut self, outputs: Vec<(Tensor<2>, Tensor<2>)>) -> Gradients {
        // The gradient of this sum with respect to a tensor is the one that was given for it.
        let weighted = outputs.into_iter().map(|(output, gradient)| (output * gradient).sum().reshape([1]));
        self.add(Tensor::<1>::cat(weighted.collect(), 0).sum().backward())
    }

    fn through_head(&mut self, head: Head, mut gradients: Gradients) -> Gradients {
        let Head { hidden, scoring, scores } = head;
        let to_scores = gradient(&scores, &mut gradients);
        drop((scores, gradients));
        let mut to_hidden = Vec::new();
        for rows in scoring.chunks() {
            let part = |tensor: &Tensor<2>| tensor.clone().inner().narrow(0, rows.start, rows.len());
            let x = leaf(part(&hidden), self.model);
            let scores = fused::score(x.clone(), self.model.head(), scoring.part(rows.clone()));
            let mut gradients = self.through(vec![(scores, part(&to_scores))]);
            to_hidden.push(gradient(&x, &mut gradients));
        }
        self.through(vec![(hidden, Tensor::cat(to_hidden, 0))])
    }

    /// `to_deepstack`: those of the last level first.
    fn through_tower(
        &mut self,
        tower: &VisionTower,
        kept: TowerCheckpoints,
        to_tokens: Tensor<2>,
        to_deepstack: Vec<Tensor<2>>,
    ) {
        let (pass, pixels, streams) = match kept {
            TowerCheckpoints::Blocks { pass, pixels, streams } => (pass, pixels, streams),
            TowerCheckpoints::Mergers { tokens, deepstack } => {
                let levels = deepstack.into_iter().zip(to_deepstack.into_iter().rev());
                self.through([(tokens, to_tokens)].into_iter().chain(levels).collect());
                return;
            }
        };
        let mut to_deepstack = to_deepstack.into_iter();
        let mut streams = streams.into_iter().rev();
        let Some(output) = streams.next() else { return };
        let x = leaf(output, self.model);
        let mut gradients = self.through(vec![(tower.tokens(x.clone(), &pass), to_tokens)]);
        let mut gradient = gradient(&x, &mut gradients);
        for (index, input) in (0..tower.depth()).rev().zip(streams) {
            let x = leaf(input, self.model);
            let output = tower.block(index, x.clone(), &pass, None);
            let level = tower.deepstack(index, &output).and_then(|level| Some((level, to_deepstack.next()?)));
            let mut gradients = self.through(level.into_iter().chain([(output, gradient)]).collect());
            gradient = self::gradient(&x, &mut gradients);
        }
        let embeddings = tower.embed(&pass, pixels);
        if embeddings.is_tracked() {
            self.through(vec![(embeddings, gradient)]);
        }
    }
}

/// A tensor that a graph begins with.
fn leaf(tensor: Tensor<2>, model: &QwenVl) -> Tensor<2> {
    let tensor = match model.device().gradient_checkpointing_strategy() {
        Some(strategy) => tensor.autodiff().with_gradient_checkpointing_strategy(strategy),
        None => tensor.autodiff(),
    };
    tensor.require_grad()
}

/// The gradient of a leaf; zero where the graph does not lead to it.
fn gradient(leaf: &Tensor<2>, gradients: &mut Gradients) -> Tensor<2> {
    leaf.grad_remove(gradients).unwrap_or_else(|| leaf.clone().inner().zeros_like())
}
