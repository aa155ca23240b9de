//! What the phases of a run share: the examples, and the policy they start from.

use std::path::PathBuf;
use std::sync::Arc;

use burn::module::Module;
use burn::tensor::Device;
use firesight_vlm::{Component, ModelConfig, Processor, QwenVl, has_weights};

use crate::Error;
use crate::config::{RunConfig, Trainable};
use crate::device::device;
use crate::examples::Questions;
use crate::held_out::HeldOut;
use crate::policy::VlmPolicy;
use crate::task::{Charts, Picture};

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
        HeldOut::new(&self.questions, config)
    }
}
