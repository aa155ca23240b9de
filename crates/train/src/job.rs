//! What the phases of a run share: the examples, and the policy they start from.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use burn::module::Module;
use burn::tensor::{Device, FloatDType};
use firesight_kawhi::{Heads, KawhiConfig};
use firesight_reward::{BoxFrame, Rewards};
use firesight_rl::{AdvantageEstimator as _, Capability, Error as TrainerError};
use firesight_vlm::{Component, ModelConfig, Parameter, Precision, Processor, QwenVl, has_weights, parameters};

use crate::Error;
use crate::config::{ChartData, Data, HEADS, RunConfig, Trainable};
use crate::device::{device, precision};
use crate::grader::Grader;
use crate::held_out::HeldOut;
use crate::policy::{VlmPolicy, offers};
use crate::questions::Questions;
use crate::source::{Files, Source};
use crate::task::{Charts, Picture};

/// Adds rewards to those of a configuration.
pub type More<'a> = dyn Fn(Rewards) -> Result<Rewards, firesight_reward::Error> + 'a;

/// The model of a run, as far as it is known before its weights are read.
#[derive(Debug)]
pub(crate) struct Base {
    device: Device,
    precision: Precision,
    activation_checkpointing: bool,
    model: PathBuf,
    pub(crate) model_config: ModelConfig,
    pub(crate) processor: Arc<Processor>,
}

/// The examples of a run, what grades answers to them, and the policy it starts from.
#[derive(Debug)]
pub struct Job {
    pub(crate) base: Base,
    /// Training and held-out examples.
    pub questions: Arc<Questions>,
    /// Training examples of each stage of the supervised phase.
    pub stages: Vec<Questions>,
    /// The rewards.
    pub grader: Arc<Grader>,
}

impl Job {
    /// Reads the model directory, looks at all rows of the data, and starts what grades answers.
    ///
    /// # Errors
    /// When the device is not there, the model directory or the data is broken, a reward cannot be used, or credit names
    /// a head that the model does not have.
    pub fn new(config: &RunConfig) -> Result<Self, Error> {
        Self::rewarded(config, &|rewards| Ok(rewards))
    }

    /// The same with what `more` makes of the configuration's rewards.
    ///
    /// # Errors
    /// As there, and what `more` returns.
    pub fn rewarded(config: &RunConfig, more: &More<'_>) -> Result<Self, Error> {
        let base = Base::new(config)?;
        base.check(config)?;
        let (context, longest) =
            (base.model_config.text_config.max_position_embeddings, config.reinforcement.max_tokens);
        let new = |source: Source| Questions::new(source, base.processor.clone(), config.seed).within(context, longest);
        let (questions, stages) = match &config.data {
            Data::Charts(ChartData { pictures }) => {
                let charts = Charts::new()?;
                let questions = |pictures: &Vec<Picture>| -> Result<Questions, Error> {
                    Ok(new(charts.clone().with_pictures(pictures.clone())?.into()))
                };
                let stages = config.supervised.stages.iter().map(questions).collect::<Result<_, _>>()?;
                (questions(pictures)?, stages)
            }
            Data::Files(data) => {
                let files = Files::open(data)?;
                let stage = (config.supervised.max_steps > 0).then(|| files.supervised(data)).transpose()?;
                (new(files.into()), stage.into_iter().map(|stage| new(stage.into())).collect())
            }
        };
        // Qwen2.5-VL names places in pixels of the image that it sees, Qwen3-VL in thousandths of its sides.
        let qwen3 = base.model_config.model_type.starts_with("qwen3_vl");
        let frame = if qwen3 { BoxFrame::Thousand } else { BoxFrame::Resized };
        let grader = Grader::from(more(Rewards::new(&config.rewards, frame)?)?);
        let grader = grader.with_experts(base.processor.clone(), longest);
        Ok(Self { base, questions: Arc::new(questions), stages, grader: Arc::new(grader) })
    }

    /// The policy the run starts from: the weights of the model directory, or fresh ones of the seed; frozen and with
    /// adapters as `trainable` says.
    ///
    /// # Errors
    /// When the weights are broken or do not fit the tokenizer, or fresh ones would stay frozen.
    pub fn policy(&self, trainable: &Trainable, seed: u64) -> Result<VlmPolicy, Error> {
        self.base.policy(trainable, seed)
    }

    /// The held-out examples.
    #[must_use]
    pub fn held_out(&self, config: &RunConfig) -> HeldOut {
        HeldOut::new(self.questions.clone(), self.grader.clone(), config)
    }
}

impl Base {
    /// Refuses methods that need what the model cannot do, and heads that it does not have, before anything is trained.
    pub(crate) fn check(&self, config: &RunConfig) -> Result<(), Error> {
        check_heads(config, self.model_config.text_config.num_attention_heads)?;
        check_capabilities(config, self.model_config.vision_config.is_some())
    }

    /// Reads the model directory but for the weights.
    pub(crate) fn new(config: &RunConfig) -> Result<Self, Error> {
        let device = device(&config.device)?;
        if !device.supports_dtype(FloatDType::from(config.dtype)) {
            let problem = format!("is {}, which {} cannot compute in", config.dtype.name(), config.device);
            return Err(Error::Setting { key: "dtype", problem });
        }
        Self::on(device, config)
    }

    /// The same on another device than the configuration says.
    pub(crate) fn on(device: Device, config: &RunConfig) -> Result<Self, Error> {
        let model_config = ModelConfig::from_dir(&config.model)?;
        let mut processor = Processor::from_dir(&config.model)?;
        if let Data::Files(files) = &config.data {
            let bound = |(bound, problem)| Error::Setting {
                key: if bound == "min_pixels" { "data.min_pixels" } else { "data.max_pixels" },
                problem,
            };
            processor = processor.with_pixels(files.min_pixels, files.max_pixels).map_err(bound)?;
        }
        Ok(Self {
            device,
            precision: precision(&config.device, config.dtype.into()),
            activation_checkpointing: config.activation_checkpointing,
            model: config.model.clone(),
            model_config,
            processor: Arc::new(processor),
        })
    }

    /// See [`Job::policy`].
    pub(crate) fn policy(&self, trainable: &Trainable, seed: u64) -> Result<VlmPolicy, Error> {
        let device = self.device.clone().autodiff();
        self.check_weights(trainable)?;
        let model = if has_weights(&self.model) {
            // With adapters none of these weights is trained: they need not be there in float32 first.
            let dtype = if trainable.lora.is_some() { self.precision.frozen } else { FloatDType::F32 };
            QwenVl::from_dir_as(&self.model, dtype, &device)?.train()
        } else {
            QwenVl::new(&self.model_config, seed, &device)
        };
        let mut model = model.with_activation_checkpointing(self.activation_checkpointing);
        if let Some(lora) = &trainable.lora {
            model = model.with_lora(lora, !trainable.freeze_vision_tower, seed)?;
        } else if trainable.freeze_vision_tower {
            model = model.with_frozen(&TOWER);
        }
        Ok(VlmPolicy::new(model.with_precision(self.precision), self.processor.clone())?)
    }

    /// Another model on the same device and in the same precision, which is not trained.
    pub(crate) fn other(&self, directory: &Path) -> Result<QwenVl, Error> {
        Ok(QwenVl::from_dir(directory, &self.device)?.with_precision(self.precision))
    }

    /// The parameters of [`Self::policy`], without any of their values.
    pub(crate) fn outline(&self, trainable: &Trainable) -> Result<Vec<Parameter>, Error> {
        self.check_weights(trainable)?;
        let mut model = QwenVl::without_weights(&self.model_config, &self.device);
        if let Some(lora) = &trainable.lora {
            model = model.with_lora(lora, !trainable.freeze_vision_tower, 0)?;
        }
        let mut found = parameters(&model);
        // What has no value does not know whether it is trained.
        for parameter in &mut found {
            let frozen = trainable.freeze_vision_tower && TOWER.contains(&parameter.component);
            parameter.trainable = if trainable.lora.is_some() { parameter.adapter } else { !frozen };
        }
        Ok(found)
    }

    /// Refuses what needs weights where there are none.
    fn check_weights(&self, trainable: &Trainable) -> Result<(), Error> {
        let frozen = match trainable {
            Trainable { lora: Some(_), .. } => Some(("trainable.lora", "is set")),
            Trainable { freeze_vision_tower: true, .. } => Some(("trainable.freeze_vision_tower", "is true")),
            Trainable { .. } => None,
        };
        match frozen {
            Some((key, state)) if !has_weights(&self.model) => {
                let problem = format!("{state}, which needs pretrained weights, and {} has none", self.model.display());
                Err(Error::Setting { key, problem })
            }
            _ => Ok(()),
        }
    }
}

/// What `freeze_vision_tower` freezes.
pub(crate) const TOWER: [Component; 2] = [Component::Vision, Component::Merger];

/// Refuses methods that need eyes which the model does not have.
fn check_capabilities(config: &RunConfig, sees: bool) -> Result<(), Error> {
    config.reinforcement.credit.check_capabilities(sees)?;
    if config.reinforcement.algorithm.advantage.reads_features() {
        let capability = Capability::Features;
        if let Err(reason) = offers(sees, &capability) {
            return Err(TrainerError::Capability {
                method: "the advantage".into(),
                capability: Box::new(capability),
                reason,
            }
            .into());
        }
    }
    Ok(())
}

/// Refuses heads that are not there; credit would find out at the first rollout.
fn check_heads(config: &RunConfig, heads: usize) -> Result<(), Error> {
    let Some(KawhiConfig { heads: Heads::List(list), .. }) = config.reinforcement.credit.kawhi() else {
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

    use firesight_reward::{Asked, Response, Reward, Score};
    use firesight_rl::{Completion, Task as _};

    use super::*;
    use crate::credit::CreditConfig;
    use crate::questions::Purpose;

    /// One for few tokens.
    struct Short;

    impl Reward for Short {
        fn score(&self, _: &Asked<'_>, response: &Response<'_>) -> Result<Score, firesight_reward::Error> {
            Ok((response.tokens < 3).into())
        }
    }

    #[test]
    fn a_reward_of_somebody_s_own_joins_those_of_the_configuration() {
        let config = RunConfig::example("models/qwen-small");
        let job = Job::rewarded(&config, &|rewards| rewards.with("short", 0.5, Box::new(Short))).unwrap();
        let question = job.questions.batch(Purpose::Reinforcement, 0, 1).unwrap().remove(0);
        let right = format!("\\boxed{{{}}}", question.example.answer.as_deref().unwrap());
        for (tokens, total) in [(2, 1.5), (3, 1.0)] {
            let completion = Completion { text: right.clone(), tokens: vec![0; tokens], ..Completion::default() };
            assert_eq!(job.grader.reward(&question, &completion).unwrap().total(), Some(total));
        }
    }

    #[test]
    fn heads_that_the_model_does_not_have_are_refused_before_training() {
        let mut config = RunConfig::example("models/qwen-small");
        let mut with = |heads| {
            config.reinforcement.credit = CreditConfig::Kawhi(KawhiConfig { heads, ..KawhiConfig::default() }).into();
            Job::new(&config)
        };
        with(Heads::List(vec![0, 3])).unwrap();
        with(Heads::All).unwrap();
        let error = with(Heads::List(vec![0, 4])).unwrap_err().to_string();
        assert!(error.starts_with("reinforcement.credit.heads names head 4, and"), "{error}");
        assert!(error.ends_with("has heads 0 to 3"), "{error}");
    }
}
