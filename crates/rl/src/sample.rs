//! The first half of a step: from samples of the task to graded groups.

use std::time::Instant;

use crate::{
    Error, Group, Options, Policy, Reward, RewardFailure, Rollout, Sampler, Task, Timing, Trainer, sample_in_parallel,
};

impl<P: Policy + Sampler<P::Prompt>> Trainer<P> {
    /// Draws a group of completions for each sample with the policy as it is, and grades them.
    ///
    /// What the sampler returns is what is trained on: tokens are never decoded and encoded again, and the sampler's own
    /// log-probabilities are the old ones of the update.
    ///
    /// # Errors
    /// When a prompt, a completion or a reward fails, or the sampler returns something incomplete.
    pub fn rollout<T>(&mut self, task: &T, samples: &[T::Sample]) -> Result<Rollout<P::Prompt>, Error>
    where
        T: Task<Prompt = P::Prompt>,
    {
        self.options.check()?;
        self.algorithm.check()?;
        let start = Instant::now();
        let prompts = samples
            .iter()
            .enumerate()
            .map(|(sample, row)| task.prompt(row).map_err(|source| Error::Prompt { sample, source }))
            .collect::<Result<Vec<_>, _>>()?;
        let mut groups = self.sample(prompts)?;
        let sample = start.elapsed();

        let start = Instant::now();
        let failures = self.grade(task, samples, &mut groups)?;
        let timing = Timing { sample, reward: start.elapsed(), ..Timing::default() };
        Ok(Rollout { drawn: groups.len(), groups, failures, timing })
    }

    /// Dynamic sampling (DAPO, arXiv 2503.14476, eq. 11): draws prompts until the rewards differ in `groups` groups, and
    /// drops the groups whose rewards are all equal, which have nothing to learn from.
    ///
    /// `next(n)` hands out the next n samples; it is asked at most `max_rounds` times. A rollout that is not full by then
    /// is shorter; the means of its losses are over what it has. Also returns the samples of its groups.
    ///
    /// # Errors
    /// Those of `next` and of [`Self::rollout`].
    #[expect(clippy::type_complexity, reason = "two things, each with the parameter that it has to have")]
    pub fn dynamic_rollout<T, E>(
        &mut self,
        task: &T,
        groups: usize,
        max_rounds: usize,
        mut next: impl FnMut(usize) -> Result<Vec<T::Sample>, E>,
    ) -> Result<(Rollout<P::Prompt>, Vec<T::Sample>), E>
    where
        T: Task<Prompt = P::Prompt>,
        E: From<Error>,
    {
        let mut whole = Rollout { groups: Vec::new(), drawn: 0, failures: Vec::new(), timing: Timing::default() };
        let mut kept = Vec::new();
        for _ in 0..max_rounds {
            let missing = groups - whole.groups.len();
            if missing == 0 {
                break;
            }
            let samples = next(missing)?;
            let round = self.rollout(task, &samples)?;
            whole.drawn += round.drawn;
            whole.failures.extend(round.failures);
            whole.timing.sample += round.timing.sample;
            whole.timing.reward += round.timing.reward;
            for (group, sample) in round.groups.into_iter().zip(samples) {
                if !group.rewards_are_equal() {
                    whole.groups.push(group);
                    kept.push(sample);
                }
            }
        }
        Ok((whole, kept))
    }

    fn sample(&mut self, prompts: Vec<P::Prompt>) -> Result<Vec<Group<P::Prompt>>, Error> {
        let Options { group_size, sampling, prompts_per_sampling_batch: batch, threads, .. } = self.options;
        let sampled =
            sample_in_parallel(&self.policy.valid().materialize(), &prompts, group_size, sampling, batch, threads)?;
        self.options.sampling.first_stream += (sampled.len() * group_size) as u64;
        let groups = prompts.into_iter().zip(sampled);
        Ok(groups.map(|(prompt, completions)| Group { prompt, completions, rewards: Vec::new() }).collect())
    }

    /// Grades all completions, and returns the failures that became abstentions.
    fn grade<T: Task<Prompt = P::Prompt>>(
        &self,
        task: &T,
        samples: &[T::Sample],
        groups: &mut [Group<P::Prompt>],
    ) -> Result<Vec<Error>, Error> {
        let mut failures = Vec::new();
        for (index, (group, row)) in groups.iter_mut().zip(samples).enumerate() {
            for (completion, answer) in group.completions.iter().enumerate() {
                let reward = match task.reward(row, answer) {
                    Ok(reward) => match self.algorithm.overlong {
                        // A length is no reason to judge an answer that nobody could grade.
                        Some(overlong) if reward.total().is_some() => {
                            reward.and("overlong", Some(overlong.punishment(answer.tokens.len())), overlong.weight)
                        }
                        _ => reward,
                    },
                    Err(source) => {
                        let failure = Error::Reward { group: index, completion, source };
                        if self.options.reward_failure == RewardFailure::Stop {
                            return Err(failure);
                        }
                        failures.push(failure);
                        Reward::abstain()
                    }
                };
                group.rewards.push(reward);
            }
        }
        Ok(failures)
    }
}
