//! From an endless supply of charts to prompts: the random streams of a run, and the task the trainer sees.

use std::error::Error as StdError;
use std::sync::Arc;

use firesight_rl::{Completion, Reward, Task};
use firesight_vlm::{Message, Part, Processor};
use image::RgbImage;
use rayon::prelude::*;

use crate::Error;
use crate::policy::VlmPrompt;
use crate::task::{Charts, Example, Split, grade};

/// What the examples of a run are for. Purposes share no example.
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
    /// Its prompt with the image.
    pub prompt: VlmPrompt,
}

/// Makes questions.
#[derive(Debug)]
pub struct Questions {
    charts: Charts,
    processor: Arc<Processor>,
    seed: u64,
}

impl Questions {
    /// Questions of one run.
    #[must_use]
    pub fn new(charts: Charts, processor: Arc<Processor>, seed: u64) -> Self {
        Self { charts, processor, seed }
    }

    /// Questions number `first` to `first + count` of a purpose, rendered in parallel.
    ///
    /// # Errors
    /// When the model's processor refuses an image or a prompt.
    pub fn batch(&self, purpose: Purpose, first: usize, count: usize) -> Result<Vec<Question>, Error> {
        (first..first + count).into_par_iter().map(|index| self.question(purpose, index as u64)).collect()
    }

    fn question(&self, purpose: Purpose, index: u64) -> Result<Question, Error> {
        // Purposes take turns in the numbering, so they never meet.
        let (split, seed, index) = match purpose {
            Purpose::Supervised => (Split::Train, self.seed, index * 3),
            Purpose::Check => (Split::Train, self.seed, index * 3 + 1),
            Purpose::Reinforcement => (Split::Train, self.seed, index * 3 + 2),
            Purpose::HeldOut => (Split::HeldOut, 0, index),
        };
        let example = Arc::new(self.charts.example(split, seed, index));
        let prompt = self.prompt(&example.image, &example.question)?;
        Ok(Question { example, prompt })
    }

    /// The same questions about a blank picture: what can be answered without looking.
    ///
    /// # Errors
    /// See [`Self::batch`].
    pub fn blanked(&self, questions: &[Question]) -> Result<Vec<Question>, Error> {
        let blank = |question: &Question| {
            let (width, height) = question.example.image.dimensions();
            let picture = RgbImage::from_pixel(width, height, image::Rgb([128; 3]));
            let prompt = self.prompt(&picture, &question.example.question)?;
            Ok(Question { prompt, ..question.clone() })
        };
        questions.par_iter().map(blank).collect()
    }

    fn prompt(&self, image: &RgbImage, question: &str) -> Result<VlmPrompt, Error> {
        let processed = self.processor.image(image)?;
        let message = Message::user(vec![Part::Image, Part::text(question)]);
        let images = self.processor.image_processor()?;
        let cell = images.patch_size() * images.merge_size();
        Ok(VlmPrompt::new(self.processor.prompt(&[message], &[processed])?, cell))
    }
}

/// The task as the trainer sees it: a question's prompt, and 1 for the right answer in the box.
#[derive(Debug, Clone, Copy)]
pub struct ChartTask;

impl Task for ChartTask {
    type Sample = Question;
    type Prompt = VlmPrompt;

    fn prompt(&self, question: &Question) -> Result<VlmPrompt, Box<dyn StdError + Send + Sync>> {
        Ok(question.prompt.clone())
    }

    fn reward(&self, question: &Question, completion: &Completion) -> Result<Reward, Box<dyn StdError + Send + Sync>> {
        let grade = grade(&completion.text, &question.example.answer);
        // The format is watched, and earns nothing: an answer in the box that is wrong is wrong.
        Ok(Reward::of("accuracy", grade.accuracy).and("format", Some(grade.format), 0.0))
    }
}
