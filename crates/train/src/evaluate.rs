//! Accuracy of greedy answers.

use firesight_rl::{Metrics, Sampling, sample_in_parallel};
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::examples::Question;
use crate::policy::{VlmPolicy, VlmPrompt};
use crate::task::{Picture, Question as Kind, grade};

/// Prompts that are decoded together.
const BATCH: usize = 64;

/// For each question 1 if the policy's most likely answer is right, else 0.
///
/// # Errors
/// When the model fails.
pub fn greedy_correct(
    policy: &VlmPolicy,
    questions: &[Question],
    max_tokens: usize,
    threads: usize,
) -> Result<Vec<f64>, Error> {
    let prompts: Vec<VlmPrompt> = questions.iter().map(|question| question.prompt.clone()).collect();
    let sampling = Sampling { temperature: 0.0, max_tokens, seed: 0, first_stream: 0 };
    let answers = sample_in_parallel(policy, &prompts, 1, sampling, BATCH, threads)?;
    Ok(questions
        .iter()
        .zip(&answers)
        .map(|(question, answers)| f64::from(grade(&answers[0].text, &question.example.answer).accuracy))
        .collect())
}

/// Shares of right answers, or means of rewards.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Accuracy {
    /// Over all questions.
    pub overall: f64,
    /// For each kind of picture that was shown.
    pub pictures: Vec<(Picture, f64)>,
    /// For each kind of question that was asked.
    pub kinds: Vec<(Kind, f64)>,
}

impl Accuracy {
    /// Means of `values`, one a question.
    #[must_use]
    pub fn of(questions: &[Question], values: &[f64]) -> Self {
        let mean_where = |belongs: &dyn Fn(&Question) -> bool| {
            let chosen = questions.iter().zip(values).filter(|(question, _)| belongs(question));
            let (sum, count) = chosen.fold((0.0, 0.0), |(sum, count), (_, value)| (sum + value, count + 1.0));
            (count > 0.0).then(|| sum / count)
        };
        let picture = |kind| mean_where(&|question| question.example.picture == kind).map(|mean| (kind, mean));
        let asked = |kind| mean_where(&|question| question.example.kind == kind).map(|mean| (kind, mean));
        Self {
            overall: mean_where(&|_| true).unwrap_or(0.0),
            pictures: Picture::ALL.into_iter().filter_map(picture).collect(),
            kinds: Kind::ALL.into_iter().filter_map(asked).collect(),
        }
    }

    /// As the metrics `name`, `name/<picture>` and `name/<kind of question>`.
    #[must_use]
    pub fn metrics(&self, name: &str) -> Metrics {
        let pictures = self.pictures.iter().map(|&(kind, mean)| (format!("{name}/{}", kind.name()), mean));
        let kinds = self.kinds.iter().map(|&(kind, mean)| (format!("{name}/{}", kind.name()), mean));
        std::iter::once((name.to_owned(), self.overall)).chain(pictures).chain(kinds).collect()
    }
}
