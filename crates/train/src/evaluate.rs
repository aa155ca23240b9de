//! Accuracy of greedy answers.

use firesight_rl::{Sampling, sample_in_parallel};

use crate::Error;
use crate::examples::Question;
use crate::policy::{VlmPolicy, VlmPrompt};
use crate::task::grade;

/// Prompts that are decoded together.
const BATCH: usize = 64;

/// For each question whether the policy's most likely answer is right.
///
/// # Errors
/// When the model fails.
pub fn greedy_correct(
    policy: &VlmPolicy,
    questions: &[Question],
    max_tokens: usize,
    threads: usize,
) -> Result<Vec<bool>, Error> {
    let prompts: Vec<VlmPrompt> = questions.iter().map(|question| question.prompt.clone()).collect();
    let sampling = Sampling { temperature: 0.0, max_tokens, seed: 0, first_stream: 0 };
    let answers = sample_in_parallel(policy, &prompts, 1, sampling, BATCH, threads)?;
    Ok(questions
        .iter()
        .zip(&answers)
        .map(|(question, answers)| grade(&answers[0].text, &question.example.answer).accuracy > 0.5)
        .collect())
}

/// Share of `true`.
#[must_use]
pub fn share(correct: &[bool]) -> f64 {
    correct.iter().filter(|&&correct| correct).count() as f64 / correct.len().max(1) as f64
}
