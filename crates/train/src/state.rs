//! What of a run changes while it goes on.

use burn::optim::ModuleOptimizer;
use serde::{Deserialize, Serialize};

use crate::config;
use crate::held_out::HeldOutAccuracy;
use crate::policy::VlmPolicy;

/// A run between two of its steps: with its configuration, all that the rest of it depends on.
#[derive(Clone)]
pub struct State {
    /// How far it has come.
    pub position: Position,
    /// What it trains.
    pub policy: VlmPolicy,
    /// The optimizer of the phase that it is in, once that has taken a step.
    pub optimizer: Option<ModuleOptimizer>,
    /// What a KL penalty of that phase measures the distance to; see [`firesight_rl::Trainer::reference`].
    pub reference: Option<VlmPolicy>,
}

impl State {
    /// A run that begins with `policy`.
    #[must_use]
    pub fn start(policy: VlmPolicy) -> Self {
        Self { position: Position::default(), policy, optimizer: None, reference: None }
    }
}

/// How far a run has come, and what it has found on the way.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Position {
    /// Seconds spent until the last checkpoint, measuring included.
    pub seconds: f64,
    /// Bytes of `metrics.jsonl` at the last checkpoint.
    pub metrics_bytes: u64,
    /// Bytes of the file for TensorBoard then; 0 when there is none.
    pub events_bytes: u64,
    /// The supervised phase.
    pub supervised: SupervisedPosition,
    /// The reinforcement phase.
    pub reinforcement: ReinforcementPosition,
    /// The policy with the highest held-out accuracy so far, if any is kept.
    pub best: Option<Best>,
    /// Held-out accuracy before any training, once measured.
    pub before: Option<HeldOutAccuracy>,
    /// Held-out accuracy after the supervised phase, once measured.
    pub after_supervised: Option<HeldOutAccuracy>,
}

/// How far the supervised phase has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SupervisedPosition {
    /// Steps taken, and with them the examples used up.
    pub steps: usize,
    /// The stage that the next step belongs to, counted from 0.
    pub stage: usize,
    /// Whether the last look found every kind of picture of the stage above the accuracy that ends it.
    pub passed: bool,
    /// What the last look found over all.
    pub accuracy: Option<f64>,
    /// Seconds that the steps took.
    pub seconds: f64,
}

impl SupervisedPosition {
    /// Whether the phase is over.
    #[must_use]
    pub fn finished(&self, settings: &config::Supervised) -> bool {
        self.steps >= settings.max_steps || self.stage >= settings.stages()
    }
}

/// How far the reinforcement phase has come.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReinforcementPosition {
    /// Rollouts trained on, and with them the examples used up.
    pub steps: usize,
    /// Random stream of the next completion; see [`firesight_rl::Options::sampling`].
    pub first_stream: u64,
    /// What the last evaluation found.
    pub accuracy: Option<f64>,
    /// Seconds that the steps took.
    pub seconds: f64,
    /// The metrics of the last step, if the evaluation that belongs to it is still to come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unwritten: Option<Vec<(String, f64)>>,
}

impl ReinforcementPosition {
    /// Whether the phase is over.
    #[must_use]
    pub fn finished(&self, settings: &config::Reinforcement) -> bool {
        self.steps >= settings.steps
    }
}

/// The policy with the highest held-out accuracy.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Best {
    /// Rollouts it was trained on; 0 is the policy after the supervised phase.
    pub step: usize,
    /// Its accuracy with pictures.
    pub accuracy: f64,
}
