//! From examples to prompts: the random streams of a run.

use std::sync::Arc;

use firesight_vlm::Processor;
use image::RgbImage;
use rayon::prelude::*;

use crate::Error;
use crate::example::{Example, Picture};
use crate::policy::VlmPrompt;
use crate::source::Source;

/// What the examples of a run are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Supervised steps.
    Supervised,
    /// Looks at the training accuracy during the supervised phase.
    Check,
    /// Rollouts.
    Reinforcement,
    /// Measuring, on data that training never sees; the same examples whatever the seed of the run.
    HeldOut,
}

/// An example with its rendered prompt.
#[derive(Debug, Clone)]
pub struct Question {
    /// The example.
    pub example: Arc<Example>,
    /// Its prompt with the images.
    pub prompt: VlmPrompt,
}

/// Makes questions.
#[derive(Debug)]
pub struct Questions {
    source: Source,
    processor: Arc<Processor>,
    seed: u64,
    /// Longest prompt in tokens.
    longest: usize,
}

impl Questions {
    /// Questions of one run.
    #[must_use]
    pub fn new(source: impl Into<Source>, processor: Arc<Processor>, seed: u64) -> Self {
        Self { source: source.into(), processor, seed, longest: usize::MAX }
    }

    /// The same, which refuse prompts that leave no room for `completion` tokens in a model's context of `context`.
    #[must_use]
    pub(crate) fn within(self, context: usize, completion: usize) -> Self {
        Self { longest: context.saturating_sub(completion), ..self }
    }

    /// Questions number `first` to `first + count` of a purpose, rendered in parallel.
    ///
    /// # Errors
    /// When an example cannot be read, or the model's processor refuses an image or a prompt.
    pub fn batch(&self, purpose: Purpose, first: usize, count: usize) -> Result<Vec<Question>, Error> {
        let question = |index: usize| {
            let render = |example: &Example| self.prompt(example, None);
            let (example, prompt) = self.source.example(purpose, self.seed, index as u64, render)?;
            Ok(Question { example: Arc::new(example), prompt })
        };
        (first..first + count).into_par_iter().map(question).collect()
    }

    /// How many examples there are to train on; `None` when they never end.
    #[must_use]
    pub fn train(&self) -> Option<usize> {
        self.source.train()
    }

    /// How many of `wanted` held-out questions there are.
    #[must_use]
    pub fn held_out(&self, wanted: usize) -> usize {
        self.source.held_out().map_or(wanted, |there| wanted.min(there))
    }

    /// The same questions about blank pictures: what can be answered without looking.
    ///
    /// # Errors
    /// See [`Self::batch`].
    pub fn blanked(&self, questions: &[Question]) -> Result<Vec<Question>, Error> {
        let blank = |picture: &Picture| {
            let (width, height) = picture.pixels.dimensions();
            RgbImage::from_pixel(width, height, image::Rgb([128; 3]))
        };
        let blanked = |question: &Question| {
            let prompt = self.prompt(&question.example, Some(&blank))?;
            Ok(Question { prompt, ..question.clone() })
        };
        questions.par_iter().map(blanked).collect()
    }

    /// What was passed over since this was last asked, because it could not be read and the configuration tolerates it.
    pub(crate) fn passed_over(&self) -> Vec<String> {
        self.source.passed_over()
    }

    fn prompt(&self, example: &Example, shown: Option<&dyn Fn(&Picture) -> RgbImage>) -> Result<VlmPrompt, Error> {
        let process = |picture: &Picture| match shown {
            Some(shown) => self.processor.image(&shown(picture)),
            None => self.processor.image(&picture.pixels),
        };
        let rendered = || {
            let images = example.images.iter().map(process).collect::<Result<Vec<_>, _>>()?;
            let prompt = self.processor.prompt(&example.messages, &images)?;
            let cell = if images.is_empty() {
                // Nobody asks for it.
                1
            } else {
                let images = self.processor.image_processor()?;
                images.patch_size() * images.merge_size()
            };
            Ok(VlmPrompt::new(prompt, cell))
        };
        let origin = || example.origin.clone();
        let prompt = rendered().map_err(|source| Error::Example { origin: origin(), source })?;
        let tokens = prompt.tokens().len();
        if tokens > self.longest {
            return Err(Error::PromptLength { origin: origin(), tokens, longest: self.longest });
        }
        Ok(prompt)
    }
}
