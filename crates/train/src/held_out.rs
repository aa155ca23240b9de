//! Measuring a policy on examples that training never sees.

use std::sync::Arc;

use burn::module::Module;
use firesight_rl::{Completion, Estimate, Metrics, Reward, RewardFailure, Sampler, Sampling, Threads};
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::config::{Evaluation, RunConfig};
use crate::evaluate::{Accuracy, Greedy, attempt_estimates, count_right, estimate_metrics, parts};
use crate::grader::Grader;
use crate::policy::{VlmPolicy, VlmPrompt};
use crate::questions::{Purpose, Question, Questions};

/// Keeps the streams that attempts are drawn with apart from those of rollouts, fresh weights and adapters of the same
/// seed.
const DOMAIN: u64 = 0x6576_616c_0000_0000;

/// The metric of answers that could not be graded.
pub(crate) const UNGRADED: &str = "eval/ungraded_fraction";

/// Examples that training never sees, the same in every run, and the settings they are answered with. They are read
/// and rendered a part at a time whenever they are asked: all pictures at once may be more than memory holds.
#[derive(Debug)]
pub struct HeldOut {
    questions: Arc<Questions>,
    grader: Arc<Grader>,
    count: usize,
    evaluation: Evaluation,
    failure: RewardFailure,
    /// How attempts are drawn. Every evaluation of a run draws with the same random numbers, so two of them differ by
    /// what was learnt between them and not by luck alone.
    attempts: Sampling,
    threads: Threads,
}

/// How held-out questions are answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HeldOutAccuracy {
    /// With the picture.
    pub sighted: Sighted,
    /// With a blank picture: greedy answers.
    pub blind: Estimate,
}

/// How held-out questions are answered with their pictures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sighted {
    /// Share of right greedy answers.
    pub accuracy: Estimate,
    /// The same by kind of picture and of question.
    pub greedy: Accuracy,
    /// Questions.
    #[serde(default)]
    pub questions: usize,
    /// Greedy answers that could not be graded; they count as not right.
    #[serde(default)]
    pub ungraded: usize,
    /// Of drawn answers, by the names `mean_at_<k>` and `pass_at_<k>`; empty when none are drawn.
    pub drawn: Vec<(String, Estimate)>,
}

impl Sighted {
    /// As the metrics `eval/accuracy`, `eval/accuracy_low`, `eval/accuracy_high`, `eval/accuracy/<kind>`,
    /// `eval/mean_at_<k>`, `eval/pass_at_<k>`, and the ends of the latter's intervals.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        let mut metrics = estimate_metrics("eval/accuracy", self.accuracy);
        // The overall mean is there already.
        metrics.extend(self.greedy.metrics("eval/accuracy").into_iter().skip(1));
        metrics.push((UNGRADED.into(), self.ungraded as f64 / self.questions.max(1) as f64));
        metrics.extend(self.drawn.iter().flat_map(|(name, found)| estimate_metrics(&format!("eval/{name}"), *found)));
        metrics
    }
}

impl HeldOutAccuracy {
    /// Those of [`Sighted::metrics`], `eval/blind_accuracy`, and the ends of its interval.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        let mut metrics = self.sighted.metrics();
        metrics.extend(estimate_metrics("eval/blind_accuracy", self.blind));
        metrics
    }
}

impl HeldOut {
    /// Those of a run.
    pub(crate) fn new(questions: Arc<Questions>, grader: Arc<Grader>, config: &RunConfig) -> Self {
        let attempts = Sampling {
            temperature: config.reinforcement.temperature,
            max_tokens: config.reinforcement.max_tokens,
            seed: config.seed ^ DOMAIN,
            first_stream: 0,
        };
        Self {
            count: questions.held_out(config.evaluation.examples),
            questions,
            grader,
            evaluation: config.evaluation.clone(),
            failure: config.reinforcement.reward_failure,
            attempts,
            threads: crate::device::threads(&config.device, config.threads),
        }
    }

    /// With the picture.
    ///
    /// # Errors
    /// When an example cannot be read, or the model or a reward fails.
    pub fn sighted(&self, policy: &VlmPolicy) -> Result<Sighted, Error> {
        self.sighted_by(&policy.valid().materialize(), |_, _, _| Ok(()))
    }

    /// The same of anything that answers; `look` sees every question with its greedy answer and what that is worth.
    pub(crate) fn sighted_by(
        &self,
        sampler: &(impl Sampler<VlmPrompt> + Clone + Send),
        mut look: impl FnMut(&Question, &Completion, &Reward) -> Result<(), Error>,
    ) -> Result<Sighted, Error> {
        let (mut kinds, mut correct, mut right, mut ungraded) = (Vec::new(), Vec::new(), Vec::new(), 0);
        let Evaluation { attempts, pass_at, .. } = &self.evaluation;
        for part in parts(self.count) {
            let questions = self.questions.batch(Purpose::HeldOut, part.start, part.len())?;
            let graded = self.greedy().graded(sampler, &questions)?;
            for (question, (answer, reward)) in questions.iter().zip(&graded) {
                look(question, answer, reward)?;
                correct.push(if reward.is_right() { 1.0 } else { 0.0 });
                ungraded += usize::from(reward.parts.is_empty());
            }
            if *attempts > 0 {
                let first_stream = (part.start * attempts) as u64;
                let sampling = Sampling { first_stream, ..self.attempts };
                right.extend(count_right(sampler, &questions, *attempts, sampling, &self.greedy())?);
            }
            kinds.extend(questions.iter().map(|question| question.example.kinds.clone()));
        }
        let drawn = if *attempts == 0 { Vec::new() } else { attempt_estimates(&right, *attempts, pass_at)? };
        let greedy = Accuracy::of(kinds.iter().map(Vec::as_slice), &correct);
        Ok(Sighted { accuracy: Estimate::of(&correct), greedy, questions: correct.len(), ungraded, drawn })
    }

    /// With a blank picture: what can be answered without looking.
    ///
    /// # Errors
    /// See [`Self::sighted`].
    pub fn blind(&self, policy: &VlmPolicy) -> Result<Estimate, Error> {
        self.blind_by(&policy.valid().materialize())
    }

    /// The same of anything that answers.
    pub(crate) fn blind_by(&self, sampler: &(impl Sampler<VlmPrompt> + Clone + Send)) -> Result<Estimate, Error> {
        let mut correct = Vec::new();
        for part in parts(self.count) {
            let questions = self.questions.batch(Purpose::HeldOut, part.start, part.len())?;
            correct.extend(self.greedy().correct(sampler, &self.questions.blanked(&questions)?)?);
        }
        Ok(Estimate::of(&correct))
    }

    fn greedy(&self) -> Greedy<'_> {
        let (max_tokens, threads) = (self.attempts.max_tokens, self.threads);
        Greedy { grader: &self.grader, failure: self.failure, max_tokens, threads }
    }

    /// With the picture and blind.
    ///
    /// # Errors
    /// When the model fails.
    pub fn measure(&self, policy: &VlmPolicy) -> Result<HeldOutAccuracy, Error> {
        Ok(HeldOutAccuracy { sighted: self.sighted(policy)?, blind: self.blind(policy)? })
    }

    /// The metrics of an evaluation while learning, the accuracy first; blind only if the configuration says so.
    ///
    /// # Errors
    /// When the model fails.
    pub fn while_learning(&self, policy: &VlmPolicy) -> Result<Metrics, Error> {
        if self.evaluation.blind {
            return Ok(self.measure(policy)?.metrics());
        }
        Ok(self.sighted(policy)?.metrics())
    }

    /// How many examples there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::job::Job;

    #[test]
    fn attempts_are_drawn_as_rollouts_are_but_with_other_random_numbers() {
        let mut config = RunConfig::example("models/qwen-small");
        config.evaluation.examples = 2;
        let job = Job::new(&config).unwrap();
        let held_out = job.held_out(&config);
        let settings = &config.reinforcement;
        let rollouts = Sampling {
            temperature: settings.temperature,
            max_tokens: settings.max_tokens,
            seed: config.seed,
            first_stream: 0,
        };
        assert_eq!(Sampling { seed: config.seed, ..held_out.attempts }, rollouts);

        let policy = job.policy(&config.trainable, config.seed).unwrap().valid();
        let questions = job.questions.batch(Purpose::HeldOut, 0, held_out.count()).unwrap();
        let prompts: Vec<_> = questions.into_iter().map(|question| question.prompt).collect();
        let drawn = |sampling| policy.sample(&prompts, 1, sampling).unwrap();
        assert_eq!(drawn(held_out.attempts), drawn(held_out.attempts));
        assert_ne!(drawn(held_out.attempts), drawn(rollouts));
    }
}
