//! The run configuration: one complete TOML file.

use std::path::{Path, PathBuf};

use firesight_kawhi::KawhiConfig;
use firesight_rl::{Algorithm, Clip, KlPenalty, Loss};
use firesight_vlm::LoraConfig;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::schedule::Schedule;
use crate::task::Picture;

/// Everything that decides a run. The same configuration gives the same run, bit for bit on CPUs of one kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// Name of the run.
    pub name: String,
    /// Model directory in Hugging Face layout. Without weights in it the run makes fresh ones.
    pub model: PathBuf,
    /// Seed of every random stream.
    pub seed: u64,
    /// `flex`, `cuda`, `cuda:<index>`, or `wgpu`.
    pub device: String,
    /// Operating-system threads. Changes the speed, never the result.
    pub threads: usize,
    /// What of the model changes.
    #[serde(default)]
    pub trainable: Trainable,
    /// The task.
    pub data: Data,
    /// Learning from worked answers.
    pub supervised: Supervised,
    /// Learning from the verifiable reward.
    pub reinforcement: Reinforcement,
    /// Measuring.
    pub evaluation: Evaluation,
    /// What a run keeps to go on from.
    #[serde(default)]
    pub checkpoint: Checkpoint,
}

/// What of the model changes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Trainable {
    /// Whether the vision tower and its merger stay as they are. They do unless the configuration says otherwise: a
    /// pretrained tower sees well enough, and training it takes much memory. With adapters, whether the blocks of the
    /// tower have some too; the merger never has.
    pub freeze_vision_tower: bool,
    /// Trains low-rank adapters instead of the weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraConfig>,
}

impl Default for Trainable {
    fn default() -> Self {
        Self { freeze_vision_tower: true, lora: None }
    }
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// Kinds of pictures, equally likely.
    pub pictures: Vec<Picture>,
}

/// The supervised phase.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Supervised {
    /// Optimizer steps at most, all stages together.
    pub max_steps: usize,
    /// Kinds of pictures of one stage after the other; a kind listed twice is shown twice as often. A model that can
    /// read one kind learns the others sooner.
    pub stages: Vec<Vec<Picture>>,
    /// Examples a step, each new.
    pub batch_size: usize,
    /// Examples in one forward and backward pass.
    pub micro_batch: usize,
    /// Learning rate.
    pub schedule: Schedule,
    /// AdamW's weight decay.
    pub weight_decay: f32,
    /// A stage ends once this share of new training examples is answered right, twice in a row, for every kind of
    /// picture in it.
    pub stop_accuracy: f64,
    /// Steps between two looks at that share.
    pub check_every: usize,
    /// Examples of one look.
    pub check_examples: usize,
}

/// The reinforcement phase.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reinforcement {
    /// Rollouts.
    pub steps: usize,
    /// Prompts a rollout, each new.
    pub prompts: usize,
    /// Completions a prompt.
    pub group_size: usize,
    /// Optimizer steps a rollout.
    pub mini_batches: usize,
    /// Prompts in one forward and backward pass.
    pub micro_batch: usize,
    /// Softmax temperature of sampling, and of every log-probability.
    pub temperature: f32,
    /// Longest completion in tokens.
    pub max_tokens: usize,
    /// Learning rate.
    pub schedule: Schedule,
    /// AdamW's weight decay.
    pub weight_decay: f32,
    /// What is optimised.
    pub algorithm: AlgorithmConfig,
    /// How an advantage is split over the tokens of a completion.
    pub credit: CreditConfig,
}

/// A published algorithm, with the settings that papers vary.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case", deny_unknown_fields)]
pub enum AlgorithmConfig {
    /// GRPO (arXiv 2402.03300): token ratios, mean over the tokens of each completion.
    Grpo {
        /// The ratio is clipped below `1 - clip_low`.
        clip_low: f32,
        /// The ratio is clipped above `1 + clip_high`.
        clip_high: f32,
        /// Coefficient of the k3 penalty; 0 holds no reference policy.
        kl: f32,
    },
    /// DAPO (arXiv 2503.14476): token ratios, clip-higher, mean over all tokens of the batch.
    Dapo {
        /// See `Grpo`.
        clip_low: f32,
        /// See `Grpo`.
        clip_high: f32,
        /// See `Grpo`.
        kl: f32,
    },
    /// Dr. GRPO (arXiv 2503.20783): advantages without the division by the standard deviation, constant length.
    DrGrpo {
        /// See `Grpo`.
        clip_low: f32,
        /// See `Grpo`.
        clip_high: f32,
        /// See `Grpo`.
        kl: f32,
    },
    /// GSPO (arXiv 2507.18071), in its token form: one ratio a completion.
    Gspo {
        /// See `Grpo`.
        clip_low: f32,
        /// See `Grpo`.
        clip_high: f32,
        /// See `Grpo`.
        kl: f32,
    },
}

/// How an advantage is split over the tokens of a completion.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case", deny_unknown_fields)]
pub enum CreditConfig {
    /// Every token gets all of it.
    Uniform {},
    /// KAWHI (arXiv 2603.27375): by paragraph, after the visual structure of the image.
    Kawhi(KawhiConfig),
}

/// What is measured and when.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluation {
    /// Held-out examples; the same ones in every run.
    pub examples: usize,
    /// Rollouts between two evaluations on held-out data while learning; 0 evaluates at the end only. Otherwise the
    /// policy with the best accuracy so far is kept, from the end of the supervised phase on.
    pub every: usize,
    /// Prompts of the first and of the last step whose rollouts are written as pictures and text.
    pub samples: usize,
}

/// What a run keeps to go on from after it was stopped. Changes nothing of its result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Checkpoint {
    /// Steps between two checkpoints, in both phases; 0 keeps one at the end of a phase, on a stop, and with a new best
    /// policy only. Those three come at any number.
    pub every: usize,
    /// How many of the latest stay, at least 1.
    pub keep: usize,
}

impl Default for Checkpoint {
    fn default() -> Self {
        Self { every: 20, keep: 2 }
    }
}

impl AlgorithmConfig {
    /// GRPO as the main job uses it: DAPO's higher upper bound, no KL penalty.
    #[must_use]
    pub fn grpo() -> Self {
        Self::Grpo { clip_low: 0.2, clip_high: 0.28, kl: 0.0 }
    }

    /// GSPO with the bounds of its paper, no KL penalty.
    #[must_use]
    pub fn gspo() -> Self {
        Self::Gspo { clip_low: 3e-4, clip_high: 4e-4, kl: 0.0 }
    }

    /// The name used on the command line and in run names.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Grpo { .. } => "grpo",
            Self::Dapo { .. } => "dapo",
            Self::DrGrpo { .. } => "dr_grpo",
            Self::Gspo { .. } => "gspo",
        }
    }

    /// The algorithm of the trainer.
    #[must_use]
    pub fn algorithm(&self, max_tokens: usize) -> Algorithm {
        let (preset, low, high, kl) = match *self {
            Self::Grpo { clip_low, clip_high, kl } => (Algorithm::grpo(), clip_low, clip_high, kl),
            Self::Dapo { clip_low, clip_high, kl } => (Algorithm::dapo(), clip_low, clip_high, kl),
            Self::DrGrpo { clip_low, clip_high, kl } => (Algorithm::dr_grpo(max_tokens), clip_low, clip_high, kl),
            Self::Gspo { clip_low, clip_high, kl } => (Algorithm::gspo(), clip_low, clip_high, kl),
        };
        let kl = (kl != 0.0).then_some(KlPenalty { coefficient: kl, ratio_weighted: false });
        let surrogate = std::sync::Arc::new(Clip { low, high, delta: None });
        Algorithm { loss: Loss { surrogate, kl, ..preset.loss }, ..preset }
    }
}

impl CreditConfig {
    /// The name used on the command line and in run names.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Uniform {} => "uniform",
            Self::Kawhi(_) => "kawhi",
        }
    }
}

impl RunConfig {
    /// Reads a configuration. Relative paths in it are relative to the working directory.
    ///
    /// # Errors
    /// When the file cannot be read, has a key that does not exist, lacks one, or holds a value out of range; the
    /// error names the file, and the line or the key.
    pub fn from_file(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::Io { path: path.into(), source })?;
        Self::from_toml(&text, path)
    }

    /// Reads a configuration from the text of `path`.
    ///
    /// # Errors
    /// See [`Self::from_file`].
    pub fn from_toml(text: &str, path: &Path) -> Result<Self, Error> {
        let config: Self =
            toml::from_str(text).map_err(|reason| Error::Toml { path: path.into(), reason: Box::new(reason) })?;
        match config.check() {
            Err(Error::Setting { key, problem }) => Err(Error::Config { path: path.into(), key, problem }),
            checked => checked.map(|()| config),
        }
    }

    /// The file that gives this configuration.
    ///
    /// # Panics
    /// Never: every field has a TOML form.
    #[must_use]
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("every field has a TOML form")
    }

    /// Refuses values that no run can have. Every run begins with it.
    ///
    /// # Errors
    /// [`Error::Setting`] names the first key.
    pub fn check(&self) -> Result<(), Error> {
        let fail = |key, problem: String| Err(Error::Setting { key, problem });
        let (supervised, reinforcement) = (&self.supervised, &self.reinforcement);
        for (key, value) in [
            ("threads", self.threads),
            ("supervised.batch_size", supervised.batch_size),
            ("supervised.micro_batch", supervised.micro_batch),
            ("supervised.check_every", supervised.check_every),
            ("supervised.check_examples", supervised.check_examples),
            ("reinforcement.prompts", reinforcement.prompts),
            ("reinforcement.mini_batches", reinforcement.mini_batches),
            ("reinforcement.micro_batch", reinforcement.micro_batch),
            ("reinforcement.max_tokens", reinforcement.max_tokens),
            ("evaluation.examples", self.evaluation.examples),
            ("checkpoint.keep", self.checkpoint.keep),
        ] {
            if value == 0 {
                return fail(key, "must be at least 1".into());
            }
        }
        if let Some(lora) = &self.trainable.lora {
            lora.check().or_else(|(field, problem)| fail("trainable.lora", format!("{field} {problem}")))?;
        }
        if self.data.pictures.is_empty() {
            return fail("data.pictures", "must name at least one kind of picture".into());
        }
        if supervised.stages.is_empty() || supervised.stages.iter().any(Vec::is_empty) {
            return fail("supervised.stages", "must name at least one kind of picture for every stage".into());
        }
        if !(0.0..=1.0).contains(&supervised.stop_accuracy) {
            let accuracy = supervised.stop_accuracy;
            return fail("supervised.stop_accuracy", format!("is {accuracy}; it is a share between 0 and 1"));
        }
        if reinforcement.group_size < 2 {
            let size = reinforcement.group_size;
            return fail(
                "reinforcement.group_size",
                format!("is {size}; an advantage compares at least two completions"),
            );
        }
        if !reinforcement.prompts.is_multiple_of(reinforcement.mini_batches) {
            let (prompts, parts) = (reinforcement.prompts, reinforcement.mini_batches);
            return fail(
                "reinforcement.mini_batches",
                format!("is {parts}, which does not divide the {prompts} prompts"),
            );
        }
        if !(reinforcement.temperature.is_finite() && reinforcement.temperature > 0.0) {
            let temperature = reinforcement.temperature;
            return fail("reinforcement.temperature", format!("is {temperature}; sampling needs one above zero"));
        }
        for (key, schedule) in
            [("supervised.schedule", supervised.schedule), ("reinforcement.schedule", reinforcement.schedule)]
        {
            let sound =
                schedule.peak.is_finite() && schedule.peak >= 0.0 && (0.0..=1.0).contains(&schedule.final_share);
            if !sound {
                return fail(key, "needs a peak of at least 0 and a final_share between 0 and 1".into());
            }
        }
        match &reinforcement.credit {
            CreditConfig::Uniform {} => Ok(()),
            CreditConfig::Kawhi(kawhi) => {
                kawhi.validate().or_else(|error| fail("reinforcement.credit", format!("is out of range: {error}")))
            }
        }
    }
}
