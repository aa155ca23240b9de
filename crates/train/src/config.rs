//! The run configuration: one complete TOML file.

use std::path::{Path, PathBuf};

use firesight_kawhi::KawhiConfig;
use firesight_rl::{Algorithm, Clip, KlPenalty, Loss};
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::schedule::Schedule;
use crate::task::Picture;

/// Everything that decides a run. The same configuration gives the same run, bit for bit on the CPU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// Name of the run.
    pub name: String,
    /// Model directory in Hugging Face layout. Without `model.safetensors` the run makes fresh weights.
    pub model: PathBuf,
    /// Seed of every random stream.
    pub seed: u64,
    /// `flex`, `cuda`, `cuda:<index>`, or `wgpu`.
    pub device: String,
    /// Operating-system threads. Changes the speed, never the result.
    pub threads: usize,
    /// The task.
    pub data: Data,
    /// Learning from worked answers.
    pub supervised: Supervised,
    /// Learning from the verifiable reward.
    pub reinforcement: Reinforcement,
    /// Measuring.
    pub evaluation: Evaluation,
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
    /// Optimizer steps at most.
    pub max_steps: usize,
    /// Easier examples to begin with.
    #[serde(default)]
    pub curriculum: Option<Curriculum>,
    /// Examples a step, each new.
    pub batch_size: usize,
    /// Examples in one forward and backward pass.
    pub micro_batch: usize,
    /// Learning rate.
    pub schedule: Schedule,
    /// AdamW's weight decay.
    pub weight_decay: f32,
    /// Stop once this share of new training examples is answered right.
    pub stop_accuracy: f64,
    /// Steps between two looks at that share.
    pub check_every: usize,
    /// Examples of one look.
    pub check_examples: usize,
}

/// What the supervised phase begins with: a model that can read one kind of picture learns the others sooner.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Curriculum {
    /// Kinds of pictures, equally likely.
    pub pictures: Vec<Picture>,
    /// Steps on them alone.
    pub steps: usize,
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
#[serde(tag = "name", rename_all = "snake_case")]
pub enum CreditConfig {
    /// Every token gets all of it.
    Uniform,
    /// KAWHI (arXiv 2603.27375): by paragraph, after the visual structure of the image.
    Kawhi(KawhiConfig),
}

/// What is measured and when.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluation {
    /// Held-out examples; the same ones in every run.
    pub examples: usize,
    /// Rollouts between two evaluations on held-out data while learning; 0 evaluates at the end only.
    pub every: usize,
    /// Rollouts of the last step that are written as samples.
    pub samples: usize,
}

impl AlgorithmConfig {
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
            Self::Uniform => "uniform",
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
            toml::from_str(text).map_err(|source| Error::Toml { path: path.into(), source: Box::new(source) })?;
        config.check().map_err(|(key, problem)| Error::Config { path: path.into(), key, problem })?;
        Ok(config)
    }

    /// The file that gives this configuration.
    ///
    /// # Panics
    /// Never: every field has a TOML form.
    #[must_use]
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("every field has a TOML form")
    }

    fn check(&self) -> Result<(), (&'static str, String)> {
        let positive = |key, value: usize| if value == 0 { Err((key, "must be at least 1".into())) } else { Ok(()) };
        positive("threads", self.threads)?;
        positive("supervised.batch_size", self.supervised.batch_size)?;
        positive("supervised.micro_batch", self.supervised.micro_batch)?;
        positive("supervised.check_every", self.supervised.check_every)?;
        positive("supervised.check_examples", self.supervised.check_examples)?;
        positive("reinforcement.prompts", self.reinforcement.prompts)?;
        positive("reinforcement.mini_batches", self.reinforcement.mini_batches)?;
        positive("reinforcement.micro_batch", self.reinforcement.micro_batch)?;
        positive("reinforcement.max_tokens", self.reinforcement.max_tokens)?;
        positive("evaluation.examples", self.evaluation.examples)?;
        if self.data.pictures.is_empty() {
            return Err(("data.pictures", "must name at least one kind of picture".into()));
        }
        if self.reinforcement.group_size < 2 {
            let problem =
                format!("is {}; an advantage compares at least two completions", self.reinforcement.group_size);
            return Err(("reinforcement.group_size", problem));
        }
        Ok(())
    }
}
