//! The task as the trainer sees it: prompts that are rendered already, and the rewards of the configuration.

use std::sync::Arc;

use firesight_reward::{Asked, BoxFrame, Image, Part, Response, RewardConfig, Rewards};
use firesight_rl::{Completion, Reward, RewardPart, Task, TaskError};

use firesight_vlm::Processor;

use crate::Error;
use crate::policy::VlmPrompt;
use crate::questions::Question;
use crate::supervised::target;

/// Grades completions.
#[derive(Debug)]
pub struct Grader {
    rewards: Rewards,
    experts: Option<Experts>,
}

/// What says a worked answer as the policy would have.
#[derive(Debug)]
struct Experts {
    processor: Arc<Processor>,
    /// Longest answer in tokens.
    limit: usize,
}

impl Grader {
    /// One with these rewards; the frame is the one that the model family names boxes in.
    ///
    /// # Errors
    /// When a reward cannot be used: an expression that does not compile, a program that does not start.
    pub fn new(rewards: &[RewardConfig], frame: BoxFrame) -> Result<Self, Error> {
        Ok(Rewards::new(rewards, frame)?.into())
    }

    /// The same, which takes the worked answers of examples for those of an expert; none may be longer than `limit`.
    #[must_use]
    pub(crate) fn with_experts(self, processor: Arc<Processor>, limit: usize) -> Self {
        Self { experts: Some(Experts { processor, limit }), ..self }
    }
}

impl From<Rewards> for Grader {
    fn from(rewards: Rewards) -> Self {
        Self { rewards, experts: None }
    }
}

impl Task for Grader {
    type Sample = Question;
    type Prompt = VlmPrompt;

    fn prompt(&self, question: &Question) -> Result<VlmPrompt, TaskError> {
        Ok(question.prompt.clone())
    }

    fn reward(&self, question: &Question, completion: &Completion) -> Result<Reward, TaskError> {
        self.rewards(&[(question, completion)]).pop().unwrap_or_else(|| Err("no reward came".into()))
    }

    fn expert(&self, question: &Question) -> Result<Option<Completion>, TaskError> {
        let Some(Experts { processor, limit }) = &self.experts else { return Ok(None) };
        if question.example.worked.is_none() {
            return Ok(None);
        }
        Ok(target(processor, question, *limit)?.completions.pop())
    }

    fn rewards(&self, batch: &[(&Question, &Completion)]) -> Vec<Result<Reward, TaskError>> {
        let images: Vec<Vec<Image<'_>>> = batch.iter().map(|(question, _)| images(question)).collect();
        let asked: Vec<(Asked<'_>, Response<'_>)> = batch
            .iter()
            .zip(&images)
            .map(|((question, completion), images)| {
                let example = &question.example;
                let asked = Asked {
                    prompt: &example.question,
                    answer: example.answer.as_deref(),
                    images,
                    columns: &example.columns,
                };
                let response = Response {
                    text: &completion.text,
                    tokens: completion.tokens.len(),
                    truncated: completion.truncated,
                };
                (asked, response)
            })
            .collect();
        let graded = self.rewards.grade(&asked).into_iter().zip(batch);
        graded
            .map(|(parts, (question, _))| match parts {
                Ok(parts) => Ok(Reward { parts: parts.into_iter().map(part).collect() }),
                Err(source) => Err(Error::Reward { origin: question.example.origin.clone(), source }.into()),
            })
            .collect()
    }
}

fn part(Part { name, value, weight }: Part) -> RewardPart {
    RewardPart { name, value, weight }
}

/// The images of a prompt as they came and as the model sees them.
fn images(question: &Question) -> Vec<Image<'_>> {
    let resized = question.prompt.image_sizes();
    let images = question.example.images.iter().zip(resized);
    images
        .map(|(picture, resized)| Image {
            original: picture.pixels.dimensions(),
            resized,
            path: picture.path.as_deref(),
        })
        .collect()
}
