//! A task without answers, where only that rewards differ matters.

use firesight_rl::{Completion, Reward, Task, TaskError};
use firesight_train::VlmPrompt;

/// Rewards that differ within every group, so that every group is trained on.
pub(crate) struct Parity;

impl Task for Parity {
    type Sample = VlmPrompt;
    type Prompt = VlmPrompt;

    fn prompt(&self, prompt: &VlmPrompt) -> Result<VlmPrompt, TaskError> {
        Ok(prompt.clone())
    }

    fn reward(&self, _: &VlmPrompt, completion: &Completion) -> Result<Reward, TaskError> {
        Ok(Reward::of("parity", completion.tokens.iter().sum::<u32>() as f32 % 7.0))
    }
}
