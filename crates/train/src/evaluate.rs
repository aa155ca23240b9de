//! How answers are drawn for measuring, and what their grades come to.

use std::collections::BTreeMap;
use std::ops::Range;

use firesight_rl::{
    Completion, Error as TrainerError, Estimate, Metrics, Reward, RewardFailure, Sampler, Sampling, Task as _,
    TaskError, Threads, pass_at_k, sample_in_parallel,
};
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::config::RunConfig;
use crate::example::Kind;
use crate::grader::Grader;
use crate::policy::VlmPrompt;
use crate::questions::Question;

/// Answers that are decoded together.
pub(crate) const BATCH: usize = 64;

/// Greedy answers to questions of any number, and how they are graded.
#[derive(Debug, Clone, Copy)]
pub struct Greedy<'a> {
    /// What grades.
    pub grader: &'a Grader,
    /// What becomes of a grade that fails: the end, or an answer that is not right.
    pub failure: RewardFailure,
    /// Longest answer in tokens.
    pub max_tokens: usize,
    /// Threads; speed only.
    pub threads: Threads,
}

impl<'a> Greedy<'a> {
    /// As a configuration says.
    #[must_use]
    pub fn of(grader: &'a Grader, config: &RunConfig) -> Self {
        let settings = &config.reinforcement;
        let threads = crate::device::threads(&config.device, config.threads);
        Self { grader, failure: settings.reward_failure, max_tokens: settings.max_tokens, threads }
    }

    /// For each question 1 if the policy's most likely answer is right, else 0.
    ///
    /// # Errors
    /// When the model or a reward fails.
    pub fn correct(
        &self,
        policy: &(impl Sampler<VlmPrompt> + Clone + Send),
        questions: &[Question],
    ) -> Result<Vec<f64>, Error> {
        let graded = self.graded(policy, questions)?;
        Ok(graded.iter().map(|(_, reward)| f64::from(u8::from(reward.is_right()))).collect())
    }

    /// The policy's most likely answer to each question, and what it is worth.
    ///
    /// # Errors
    /// When the model or a reward fails.
    pub(crate) fn graded(
        &self,
        policy: &(impl Sampler<VlmPrompt> + Clone + Send),
        questions: &[Question],
    ) -> Result<Vec<(Completion, Reward)>, Error> {
        let sampling = Sampling { temperature: 0.0, max_tokens: self.max_tokens, seed: 0, first_stream: 0 };
        Ok(graded(policy, questions, 1, sampling, self)?.into_iter().flatten().collect())
    }
}

/// For each question how many of `attempts` answers are right.
pub(crate) fn count_right(
    sampler: &(impl Sampler<VlmPrompt> + Clone + Send),
    questions: &[Question],
    attempts: usize,
    sampling: Sampling,
    by: &Greedy<'_>,
) -> Result<Vec<usize>, Error> {
    let graded = graded(sampler, questions, attempts, sampling, by)?;
    let right = |answers: &Vec<(Completion, Reward)>| answers.iter().filter(|(_, reward)| reward.is_right()).count();
    Ok(graded.iter().map(right).collect())
}

/// `attempts` answers to each question with what they are worth; one whose grade failed and may is worth nothing.
fn graded(
    sampler: &(impl Sampler<VlmPrompt> + Clone + Send),
    questions: &[Question],
    attempts: usize,
    sampling: Sampling,
    by: &Greedy<'_>,
) -> Result<Vec<Vec<(Completion, Reward)>>, Error> {
    let answers = answers(sampler, questions, attempts, sampling, by.threads)?;
    let asked: Vec<(&Question, &Completion)> = questions
        .iter()
        .zip(&answers)
        .flat_map(|(question, answers)| answers.iter().map(move |answer| (question, answer)))
        .collect();
    let judged = |(place, reward): (usize, Result<Reward, TaskError>)| -> Result<Reward, Error> {
        let (group, completion) = (place / attempts, place % attempts);
        match (reward, by.failure) {
            (Ok(reward), _) => Ok(reward),
            (Err(_), RewardFailure::Abstain) => Ok(Reward::abstain()),
            (Err(source), RewardFailure::Stop) => Err(TrainerError::Reward { group, completion, source }.into()),
        }
    };
    let mut rewards = by.grader.rewards(&asked).into_iter().enumerate().map(judged);
    let with_rewards = |answers: Vec<Completion>| {
        answers.into_iter().zip(&mut rewards).map(|(answer, reward)| Ok((answer, reward?))).collect()
    };
    answers.into_iter().map(with_rewards).collect()
}

/// `attempts` answers to each question.
fn answers(
    sampler: &(impl Sampler<VlmPrompt> + Clone + Send),
    questions: &[Question],
    attempts: usize,
    sampling: Sampling,
    threads: Threads,
) -> Result<Vec<Vec<Completion>>, Error> {
    let prompts: Vec<VlmPrompt> = questions.iter().map(|question| question.prompt.clone()).collect();
    let batch = (BATCH / attempts.max(1)).max(1);
    Ok(sample_in_parallel(&Passing(sampler.clone()), &prompts, attempts, sampling, batch, threads)?)
}

/// The numbers of `count` questions in parts, so that their pictures need not all be in memory.
pub(crate) fn parts(count: usize) -> impl Iterator<Item = Range<usize>> {
    const PART: usize = 8 * BATCH;
    (0..count).step_by(PART).map(move |first| first..count.min(first + PART))
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
    /// For each kind of question that there was, sort by sort.
    pub kinds: Vec<Vec<(String, f64)>>,
}

impl Accuracy {
    /// Means of `values`, one a question, whose kinds are given.
    #[must_use]
    pub fn of<'a>(kinds: impl IntoIterator<Item = &'a [Kind]>, values: &[f64]) -> Self {
        let mut sorts: Vec<BTreeMap<&Kind, (f64, f64)>> = Vec::new();
        for (kinds, value) in kinds.into_iter().zip(values) {
            sorts.resize_with(sorts.len().max(kinds.len()), BTreeMap::new);
            for (sort, kind) in sorts.iter_mut().zip(kinds) {
                let (sum, count) = sort.entry(kind).or_default();
                (*sum, *count) = (*sum + value, *count + 1.0);
            }
        }
        let mean = |(kind, (sum, count)): (&Kind, (f64, f64))| (kind.name.clone(), sum / count);
        let overall = if values.is_empty() { 0.0 } else { values.iter().sum::<f64>() / values.len() as f64 };
        Self { overall, kinds: sorts.into_iter().map(|sort| sort.into_iter().map(mean).collect()).collect() }
    }

    /// [`Self::of`] questions.
    #[must_use]
    pub fn of_questions(questions: &[Question], values: &[f64]) -> Self {
        Self::of(questions.iter().map(|question| question.example.kinds.as_slice()), values)
    }

    /// The lowest mean of a kind of the most important sort; over all where none are told apart.
    #[must_use]
    pub fn lowest(&self) -> f64 {
        let means = self.kinds.first().into_iter().flatten().map(|&(_, mean)| mean);
        means.reduce(f64::min).unwrap_or(self.overall)
    }

    /// As the metrics `name` and `name/<kind>`.
    #[must_use]
    pub fn metrics(&self, name: &str) -> Metrics {
        let kinds = self.kinds.iter().flatten().map(|(kind, mean)| (format!("{name}/{kind}"), *mean));
        std::iter::once((name.to_owned(), self.overall)).chain(kinds).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::float_cmp)]

    use std::path::Path;
    use std::sync::Arc;

    use firesight_reward::BoxFrame;
    use firesight_rl::Error;
    use firesight_vlm::Processor;

    use super::*;
    use crate::config::RunConfig;
    use crate::example::Example;
    use crate::questions::{Purpose, Questions};
    use crate::task::Charts;

    /// Copies of one question whose answer is 1.
    fn questions(count: usize) -> Vec<Question> {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/qwen-small");
        let processor = Arc::new(Processor::from_dir(&directory).unwrap());
        let questions = Questions::new(Charts::new().unwrap(), processor, 0);
        let Question { example, prompt } = questions.batch(Purpose::HeldOut, 0, 1).unwrap().remove(0);
        let example = Arc::new(Example { answer: Some("1".into()), ..Example::clone(&example) });
        vec![Question { example, prompt }; count]
    }

    #[test]
    fn accuracy_is_a_mean_over_all_and_over_every_kind_that_there_was() {
        let kind = |place, name: &str| Kind { place, name: name.into() };
        let (bars, digits) = (kind(0, "bars"), kind(2, "digits"));
        let (first, second, third) = (kind(0, "value"), kind(1, "sum"), kind(1, "mean"));
        let kinds = [
            vec![digits.clone(), third.clone()],
            vec![bars.clone(), first.clone()],
            vec![bars.clone(), first.clone()],
            vec![bars, second],
            vec![digits, first],
        ];
        let found = Accuracy::of(kinds.iter().map(Vec::as_slice), &[0.0, 1.0, 0.0, 0.5, 1.0]);
        assert_eq!(found.overall, 0.5);
        let named =
            |kinds: &[(&str, f64)]| kinds.iter().map(|&(name, mean)| (name.to_owned(), mean)).collect::<Vec<_>>();
        assert_eq!(found.kinds[0], named(&[("bars", 0.5), ("digits", 0.5)]));
        assert_eq!(found.kinds[1], named(&[("value", 2.0 / 3.0), ("mean", 0.0), ("sum", 0.5)]));
        assert_eq!(found.lowest(), 0.5);
        let names: Vec<String> = found.metrics("x").into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["x", "x/bars", "x/digits", "x/value", "x/mean", "x/sum"]);
        let nothing = Accuracy::of([], &[]);
        assert_eq!((nothing.overall, nothing.kinds.len(), nothing.lowest()), (0.0, 0, 0.0));
        assert_eq!(Accuracy::of([[].as_slice()], &[0.25]).lowest(), 0.25);
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
        let questions = questions(41);
        let grader = Grader::new(&RunConfig::example("models/qwen-small").rewards, BoxFrame::Resized).unwrap();
        let sampling = Sampling { temperature: 1.0, max_tokens: 1, seed: 0, first_stream: 1 };
        for (attempts, threads) in [(1, Threads::Caller), (4, Threads::Own(2)), (7, Threads::Own(1))] {
            let by = Greedy { grader: &grader, failure: RewardFailure::Stop, max_tokens: 1, threads };
            let found = count_right(&Counting, &questions, attempts, sampling, &by).unwrap();
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
