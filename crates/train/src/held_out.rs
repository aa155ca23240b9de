//! Measuring a policy on examples that training never sees.

use burn::module::Module;
use firesight_rl::{Estimate, Metrics, Sampling};
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::config::{Evaluation, RunConfig};
use crate::evaluate::{Accuracy, attempt_estimates, count_right, estimate_metrics, greedy_correct};
use crate::examples::{Purpose, Question, Questions};
use crate::policy::VlmPolicy;

/// Keeps the streams that attempts are drawn with apart from those of rollouts, fresh weights and adapters of the same
/// seed.
const DOMAIN: u64 = 0x6576_616c_0000_0000;

/// Examples that training never sees, the same in every run, and the settings they are answered with.
#[derive(Debug)]
pub struct HeldOut {
    questions: Vec<Question>,
    blanked: Vec<Question>,
    evaluation: Evaluation,
    /// How attempts are drawn. Every evaluation of a run draws with the same random numbers, so two of them differ by
    /// what was learnt between them and not by luck alone.
    attempts: Sampling,
    threads: usize,
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
    /// Renders the held-out examples.
    ///
    /// # Errors
    /// When the model's processor refuses one.
    pub(crate) fn new(questions: &Questions, config: &RunConfig) -> Result<Self, Error> {
        let found = questions.batch(Purpose::HeldOut, 0, config.evaluation.examples)?;
        let attempts = Sampling {
            temperature: config.reinforcement.temperature,
            max_tokens: config.reinforcement.max_tokens,
            seed: config.seed ^ DOMAIN,
            first_stream: 0,
        };
        let (evaluation, threads) = (config.evaluation.clone(), config.threads);
        Ok(Self { blanked: questions.blanked(&found)?, questions: found, evaluation, attempts, threads })
    }

    /// With the picture.
    ///
    /// # Errors
    /// When the model fails.
    pub fn sighted(&self, policy: &VlmPolicy) -> Result<Sighted, Error> {
        let policy = policy.valid().materialize();
        let correct = greedy_correct(&policy, &self.questions, self.attempts.max_tokens, self.threads)?;
        let Evaluation { attempts, pass_at, .. } = &self.evaluation;
        let drawn = if *attempts == 0 {
            Vec::new()
        } else {
            let right = count_right(&policy, &self.questions, *attempts, self.attempts, self.threads)?;
            attempt_estimates(&right, *attempts, pass_at)?
        };
        let greedy = Accuracy::of(&self.questions, &correct);
        Ok(Sighted { accuracy: Estimate::of(&correct), greedy, drawn })
    }

    /// With a blank picture: what can be answered without looking.
    ///
    /// # Errors
    /// When the model fails.
    pub fn blind(&self, policy: &VlmPolicy) -> Result<Estimate, Error> {
        let policy = policy.valid().materialize();
        Ok(Estimate::of(&greedy_correct(&policy, &self.blanked, self.attempts.max_tokens, self.threads)?))
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

    /// The questions.
    #[must_use]
    pub fn questions(&self) -> &[Question] {
        &self.questions
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use firesight_rl::Sampler as _;

    use super::*;
    use crate::job::Job;

    #[test]
    fn attempts_are_drawn_as_rollouts_are_but_with_other_random_numbers() {
        let mut config = RunConfig::example("models/qwen-small");
        config.evaluation.examples = 2;
        let job = Job::new(&config).unwrap();
        let held_out = job.held_out(&config).unwrap();
        let settings = &config.reinforcement;
        let rollouts = Sampling {
            temperature: settings.temperature,
            max_tokens: settings.max_tokens,
            seed: config.seed,
            first_stream: 0,
        };
        assert_eq!(Sampling { seed: config.seed, ..held_out.attempts }, rollouts);

        let policy = job.policy(&config.trainable, config.seed).unwrap().valid();
        let prompts: Vec<_> = held_out.questions().iter().map(|question| question.prompt.clone()).collect();
        let drawn = |sampling| policy.sample(&prompts, 1, sampling).unwrap();
        assert_eq!(drawn(held_out.attempts), drawn(held_out.attempts));
        assert_ne!(drawn(held_out.attempts), drawn(rollouts));
    }
}
