//! What the phases of a run share: the examples, and the policy they start from.

use std::path::PathBuf;
use std::sync::Arc;

use burn::module::Module;
use burn::tensor::Device;
use firesight_kawhi::{Heads, KawhiConfig};
use firesight_vlm::{Component, ModelConfig, Processor, QwenVl, has_weights};

use crate::Error;
use crate::config::{CreditConfig, HEADS, RunConfig, Trainable};
use crate::device::device;
use crate::examples::Questions;
use crate::held_out::HeldOut;
use crate::policy::VlmPolicy;
use crate::task::{Charts, Picture};

/// The examples of a run and the policy it starts from.
#[derive(Debug)]
pub struct Job {
    device: Device,
    activation_checkpointing: bool,
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
    /// When the device is not there, the model directory or the task is broken, or credit names a head that the model
    /// does not have.
    pub fn new(config: &RunConfig) -> Result<Self, Error> {
        let device = device(&config.device)?;
        let model_config = ModelConfig::from_dir(&config.model)?;
        check_heads(config, model_config.text_config.num_attention_heads)?;
        let processor = Arc::new(Processor::from_dir(&config.model)?);
        let charts = Charts::new()?;
        let questions = |pictures: &[Picture]| -> Result<Questions, Error> {
            Ok(Questions::new(charts.clone().with_pictures(pictures.to_vec())?, processor.clone(), config.seed))
        };
        let stages = config.supervised.stages.iter().map(|pictures| questions(pictures)).collect::<Result<_, _>>()?;
        let questions = questions(&config.data.pictures)?;
        Ok(Self {
            device,
            activation_checkpointing: config.activation_checkpointing,
            model: config.model.clone(),
            model_config,
            processor,
            questions,
            stages,
        })
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
        let model = if pretrained {
            QwenVl::from_dir(&self.model, &device)?.train()
        } else {
            QwenVl::new(&self.model_config, seed, &device)
        };
        let mut model = model.with_activation_checkpointing(self.activation_checkpointing);
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

/// Refuses heads that are not there before anything is trained; credit would find out at the first rollout.
fn check_heads(config: &RunConfig, heads: usize) -> Result<(), Error> {
    let CreditConfig::Kawhi(KawhiConfig { heads: Heads::List(list), .. }) = &config.reinforcement.credit else {
        return Ok(());
    };
    match list.iter().find(|&&head| head >= heads) {
        None => Ok(()),
        Some(head) => {
            let problem = format!("names head {head}, and {} has heads 0 to {}", config.model.display(), heads - 1);
            Err(Error::Setting { key: HEADS, problem })
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn heads_that_the_model_does_not_have_are_refused_before_training() {
        let mut config = RunConfig::example("models/qwen-small");
        let mut with = |heads| {
            config.reinforcement.credit = CreditConfig::Kawhi(KawhiConfig { heads, ..KawhiConfig::default() });
            Job::new(&config)
        };
        with(Heads::List(vec![0, 3])).unwrap();
        with(Heads::All).unwrap();
        let error = with(Heads::List(vec![0, 4])).unwrap_err().to_string();
        assert!(error.starts_with("reinforcement.credit.heads names head 4, and"), "{error}");
        assert!(error.ends_with("has heads 0 to 3"), "{error}");
    }
}
