//! How answers are drawn for measuring, and what their grades come to.

use firesight_rl::{Completion, Estimate, Metrics, Sampler, Sampling, pass_at_k, sample_in_parallel};
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::examples::Question;
use crate::policy::{VlmPolicy, VlmPrompt};
use crate::task::{Picture, Question as Kind, grade};

/// Answers that are decoded together.
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
    let sampling = Sampling { temperature: 0.0, max_tokens, seed: 0, first_stream: 0 };
    let right = count_right(policy, questions, 1, sampling, threads)?;
    Ok(right.into_iter().map(|right| right as f64).collect())
}

/// For each question how many of `attempts` answers are right.
pub(crate) fn count_right(
    sampler: &(impl Sampler<VlmPrompt> + Clone + Send),
    questions: &[Question],
    attempts: usize,
    sampling: Sampling,
    threads: usize,
) -> Result<Vec<usize>, Error> {
    let prompts: Vec<VlmPrompt> = questions.iter().map(|question| question.prompt.clone()).collect();
    let batch = (BATCH / attempts.max(1)).max(1);
    let answers = sample_in_parallel(&Passing(sampler.clone()), &prompts, attempts, sampling, batch, threads)?;
    let right = |(question, answers): (&Question, Vec<Completion>)| {
        answers.iter().filter(|answer| grade(&answer.text, &question.example.answer).accuracy > 0.5).count()
    };
    Ok(questions.iter().zip(answers).map(right).collect())
}

/// A sampler that leaves nothing behind in its prompts: those of an evaluation live as long as the run, and what was
/// computed of their images would fill the device.
#[derive(Clone)]
struct Passing<S>(S);

impl<S: Sampler<VlmPrompt>> Sampler<VlmPrompt> for Passing<S> {
    fn sample(
        &self,
        prompts: &[VlmPrompt],
        group_size: usize,
        sampling: Sampling,
    ) -> Result<Vec<Vec<Completion>>, firesight_rl::Error> {
        let prompts: Vec<VlmPrompt> = prompts.iter().map(VlmPrompt::passing).collect();
        self.0.sample(&prompts, group_size, sampling)
    }
}

/// Mean@k of all `attempts` and pass@k for every `k` of `pass_at`, by name, given how many of the attempts at each
/// question were right.
pub(crate) fn attempt_estimates(
    right: &[usize],
    attempts: usize,
    pass_at: &[usize],
) -> Result<Vec<(String, Estimate)>, Error> {
    let shares: Vec<f64> = right.iter().map(|&right| right as f64 / attempts as f64).collect();
    let mut estimates = vec![(format!("mean_at_{attempts}"), Estimate::of(&shares))];
    for &k in pass_at {
        let passes = right.iter().map(|&right| pass_at_k(attempts, right, k)).collect::<Result<Vec<_>, _>>()?;
        estimates.push((format!("pass_at_{k}"), Estimate::of(&passes)));
    }
    Ok(estimates)
}

/// As the metrics `name`, `name_low` and `name_high`.
pub(crate) fn estimate_metrics(name: &str, estimate: Estimate) -> Metrics {
    let Estimate { mean, low, high } = estimate;
    vec![(name.to_owned(), mean), (format!("{name}_low"), low), (format!("{name}_high"), high)]
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::float_cmp)]

    use std::path::Path;
    use std::sync::Arc;

    use firesight_rl::Error;
    use firesight_vlm::Processor;

    use super::*;
    use crate::examples::{Purpose, Questions};
    use crate::task::{Charts, Example};

    /// Copies of one question whose answer is 1, with other kinds.
    fn questions(kinds: impl IntoIterator<Item = (Picture, Kind)>) -> Vec<Question> {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/qwen-small");
        let processor = Arc::new(Processor::from_dir(&directory).unwrap());
        let questions = Questions::new(Charts::new().unwrap(), processor, 0);
        let Question { example, prompt } = questions.batch(Purpose::HeldOut, 0, 1).unwrap().remove(0);
        let copy = |(picture, kind)| Question {
            example: Arc::new(Example { picture, kind, answer: "1".into(), ..Example::clone(&example) }),
            prompt: prompt.clone(),
        };
        kinds.into_iter().map(copy).collect()
    }

    #[test]
    fn accuracy_is_a_mean_over_all_and_over_every_kind_that_there_was() {
        let [first, second, third, ..] = Kind::ALL;
        let questions = questions([
            (Picture::Bars, first),
            (Picture::Bars, first),
            (Picture::Bars, second),
            (Picture::Digits, third),
            (Picture::Digits, first),
        ]);
        let found = Accuracy::of(&questions, &[1.0, 0.0, 0.5, 0.0, 1.0]);
        assert_eq!(found.overall, 0.5);
        assert_eq!(found.pictures, [(Picture::Bars, 0.5), (Picture::Digits, 0.5)]);
        assert_eq!(found.kinds, [(first, 2.0 / 3.0), (second, 0.5), (third, 0.0)]);
        let names: Vec<String> = found.metrics("x").into_iter().map(|(name, _)| name).collect();
        assert_eq!(names[..3], ["x", "x/bars", "x/digits"]);
        assert_eq!(names[3..], [first, second, third].map(|kind| format!("x/{}", kind.name())));
        let nothing = Accuracy::of(&[], &[]);
        assert_eq!((nothing.overall, nothing.pictures.len(), nothing.kinds.len()), (0.0, 0, 0));
    }

    /// Says the number of its random stream, modulo 3.
    #[derive(Clone)]
    struct Counting;

    impl Sampler<VlmPrompt> for Counting {
        fn sample(
            &self,
            prompts: &[VlmPrompt],
            size: usize,
            sampling: Sampling,
        ) -> Result<Vec<Vec<Completion>>, Error> {
            assert!(prompts.len() * size <= BATCH);
            let answer = |stream: usize| Completion {
                text: format!("\\boxed{{{}}}", (sampling.first_stream as usize + stream) % 3),
                ..Completion::default()
            };
            let group = |prompt| (0..size).map(|attempt| answer(prompt * size + attempt)).collect();
            Ok((0..prompts.len()).map(group).collect())
        }
    }

    #[test]
    fn every_attempt_at_every_question_is_graded_and_has_a_stream_of_its_own() {
        let questions = questions(vec![(Picture::Bars, Kind::ALL[0]); 41]);
        let sampling = Sampling { temperature: 1.0, max_tokens: 1, seed: 0, first_stream: 1 };
        for (attempts, threads) in [(1, 1), (4, 2), (7, 1)] {
            let found = count_right(&Counting, &questions, attempts, sampling, threads).unwrap();
            let streams = |question: usize| 1 + question * attempts..1 + (question + 1) * attempts;
            let expected: Vec<usize> =
                (0..41).map(|question| streams(question).filter(|stream| stream % 3 == 1).count()).collect();
            assert_eq!(found, expected, "{attempts}");
        }
    }

    #[test]
    fn attempts_give_a_mean_and_every_pass_at_k() {
        // Of 4 attempts 0, 1, 2 and 4 right; two of them are all wrong in 6, 3, 1 and 0 of 6 pairs.
        let found = attempt_estimates(&[0, 1, 2, 4], 4, &[1, 2, 4]).unwrap();
        let means: Vec<(&str, f64)> = found.iter().map(|(name, estimate)| (name.as_str(), estimate.mean)).collect();
        let pass_at_2 = (0.5 + 5.0 / 6.0 + 1.0) / 4.0;
        let expected =
            [("mean_at_4", 7.0 / 16.0), ("pass_at_1", 7.0 / 16.0), ("pass_at_2", pass_at_2), ("pass_at_4", 0.75)];
        for ((name, mean), (expected_name, expected)) in means.into_iter().zip(expected) {
            assert!(name == expected_name && (mean - expected).abs() < 1e-12, "{name} {mean} {expected}");
        }
        // Four questions are what the interval counts, not their 16 attempts.
        assert_eq!(found[3].1, Estimate::of(&[0.0, 1.0, 1.0, 1.0]));
    }
}
