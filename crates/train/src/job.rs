//! What the phases of a run share: the examples, the policy they start from, and how it is measured.

use std::path::PathBuf;
use std::sync::Arc;

use burn::module::Module;
use burn::tensor::Device;
use firesight_vlm::{ModelConfig, Processor, QwenVl, has_weights};

use crate::Error;
use crate::config::RunConfig;
use crate::device::device;
use crate::evaluate::{greedy_correct, share};
use crate::examples::{Purpose, Question, Questions};
use crate::policy::VlmPolicy;
use crate::task::{Charts, Picture};

/// Share of held-out questions answered right.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Accuracy {
    /// With the picture.
    pub sighted: f64,
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
    /// The easier ones that the supervised phase begins with.
    pub easy_questions: Option<Questions>,
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
        let questions = |pictures: &[Picture]| -> Result<Questions, Error> {
            Ok(Questions::new(Charts::new()?.with_pictures(pictures.to_vec())?, processor.clone(), config.seed))
        };
        let easy_questions =
            config.supervised.curriculum.as_ref().map(|curriculum| questions(&curriculum.pictures)).transpose()?;
        let questions = questions(&config.data.pictures)?;
        Ok(Self { device, model: config.model.clone(), model_config, processor, questions, easy_questions })
    }

    /// The policy a run starts from: the weights of the model directory, or fresh ones of the run's seed.
    ///
    /// # Errors
    /// When the weights are broken or do not fit the tokenizer.
    pub fn policy(&self, seed: u64) -> Result<VlmPolicy, Error> {
        let device = self.device.clone().autodiff();
        let model = if has_weights(&self.model) {
            QwenVl::from_dir(&self.model, &device)?.train()
        } else {
            QwenVl::new(&self.model_config, seed, &device)
        };
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
    /// Share of greedy answers that are right, with the picture.
    ///
    /// # Errors
    /// When the model fails.
    pub fn accuracy(&self, policy: &VlmPolicy) -> Result<f64, Error> {
        self.share(policy, &self.questions)
    }

    /// Share of greedy answers that are right, with the picture and blind.
    ///
    /// # Errors
    /// When the model fails.
    pub fn measure(&self, policy: &VlmPolicy) -> Result<Accuracy, Error> {
        Ok(Accuracy { sighted: self.accuracy(policy)?, blind: self.share(policy, &self.blanked)? })
    }

    /// The questions.
    #[must_use]
    pub fn questions(&self) -> &[Question] {
        &self.questions
    }

    fn share(&self, policy: &VlmPolicy, questions: &[Question]) -> Result<f64, Error> {
        Ok(share(&greedy_correct(&policy.valid(), questions, self.max_tokens, self.threads)?))
    }
}
