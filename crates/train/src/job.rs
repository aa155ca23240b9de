//! What the phases of a run share: the examples, the policy they start from, and how it is measured.

use std::path::PathBuf;
use std::sync::Arc;

use burn::module::Module;
use burn::tensor::Device;
use firesight_vlm::{Component, ModelConfig, Processor, QwenVl, has_weights};
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::config::{RunConfig, Trainable};
use crate::device::device;
use crate::evaluate::{Accuracy, greedy_correct};
use crate::examples::{Purpose, Question, Questions};
use crate::policy::VlmPolicy;
use crate::task::{Charts, Picture};

/// How held-out questions are answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HeldOutAccuracy {
    /// With the picture.
    pub sighted: Accuracy,
    /// With a blank picture.
    pub blind: f64,
}

/// The examples of a run and the policy it starts from.
#[derive(Debug)]
pub struct Job {
    device: Device,
    model: PathBuf,
    model_config: ModelConfig,
    processor: Arc<Processor>,
    /// Training examples.
    pub questions: Questions,
    /// Training examples of each stage of the supervised phase.
    pub stages: Vec<Questions>,
}

/// Examples that training never sees, the same in every run, and the settings they are answered with.
#[derive(Debug)]
pub struct HeldOut {
    questions: Vec<Question>,
    blanked: Vec<Question>,
    max_tokens: usize,
    threads: usize,
}

impl Job {
    /// Reads the model directory.
    ///
    /// # Errors
    /// When the device is not there, or the model directory or the task is broken.
    pub fn new(config: &RunConfig) -> Result<Self, Error> {
        let device = device(&config.device)?;
        let model_config = ModelConfig::from_dir(&config.model)?;
        let processor = Arc::new(Processor::from_dir(&config.model)?);
        let charts = Charts::new()?;
        let questions = |pictures: &[Picture]| -> Result<Questions, Error> {
            Ok(Questions::new(charts.clone().with_pictures(pictures.to_vec())?, processor.clone(), config.seed))
        };
        let stages = config.supervised.stages.iter().map(|pictures| questions(pictures)).collect::<Result<_, _>>()?;
        let questions = questions(&config.data.pictures)?;
        Ok(Self { device, model: config.model.clone(), model_config, processor, questions, stages })
    }

    /// The policy a run starts from: the weights of the model directory, or fresh ones of the run's seed; frozen and
    /// with adapters as `trainable` says.
    ///
    /// # Errors
    /// When the weights are broken or do not fit the tokenizer, or fresh ones would stay frozen.
    pub fn policy(&self, trainable: &Trainable, seed: u64) -> Result<VlmPolicy, Error> {
        let device = self.device.clone().autodiff();
        let pretrained = has_weights(&self.model);
        let frozen = match trainable {
            Trainable { lora: Some(_), .. } => Some(("trainable.lora", "is set")),
            Trainable { freeze_vision_tower: true, .. } => Some(("trainable.freeze_vision_tower", "is true")),
            Trainable { .. } => None,
        };
        if let (false, Some((key, state))) = (pretrained, frozen) {
            let problem = format!("{state}, which needs pretrained weights, and {} has none", self.model.display());
            return Err(Error::Setting { key, problem });
        }
        let mut model = if pretrained {
            QwenVl::from_dir(&self.model, &device)?.train()
        } else {
            QwenVl::new(&self.model_config, seed, &device)
        };
        if let Some(lora) = &trainable.lora {
            model = model.with_lora(lora, !trainable.freeze_vision_tower, seed)?;
        } else if trainable.freeze_vision_tower {
            model = model.with_frozen(&[Component::Vision, Component::Merger]);
        }
        Ok(VlmPolicy::new(model, self.processor.clone())?)
    }

    /// Renders the held-out examples.
    ///
    /// # Errors
    /// When the model's processor refuses one.
    pub fn held_out(&self, config: &RunConfig) -> Result<HeldOut, Error> {
        let questions = self.questions.batch(Purpose::HeldOut, 0, config.evaluation.examples)?;
        let blanked = self.questions.blanked(&questions)?;
        Ok(HeldOut { questions, blanked, max_tokens: config.reinforcement.max_tokens, threads: config.threads })
    }
}

impl HeldOut {
    /// Greedy answers, with the picture.
    ///
    /// # Errors
    /// When the model fails.
    pub fn accuracy(&self, policy: &VlmPolicy) -> Result<Accuracy, Error> {
        self.answered(policy, &self.questions)
    }

    /// Greedy answers, with the picture and blind.
    ///
    /// # Errors
    /// When the model fails.
    pub fn measure(&self, policy: &VlmPolicy) -> Result<HeldOutAccuracy, Error> {
        Ok(HeldOutAccuracy { sighted: self.accuracy(policy)?, blind: self.answered(policy, &self.blanked)?.overall })
    }

    /// The questions.
    #[must_use]
    pub fn questions(&self) -> &[Question] {
        &self.questions
    }

    fn answered(&self, policy: &VlmPolicy, questions: &[Question]) -> Result<Accuracy, Error> {
        let correct = greedy_correct(&policy.valid().materialize(), questions, self.max_tokens, self.threads)?;
        Ok(Accuracy::of(questions, &correct))
    }
}
