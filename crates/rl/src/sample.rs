//! The first half of a step: from samples of the task to graded groups.

use std::time::{Duration, Instant};

use crate::beforehand::Asking;
use crate::error::check_count;
use crate::parallel::{check_groups, draw_in_parallel};
use crate::{
    Completion, Error, Group, Options, Policy, Reward, RewardFailure, Rollout, Sampler, Sampling, SignalSet, Task,
    Tgrl, Timing, Trainer,
};

impl<P: Policy + Sampler<P::Prompt>> Trainer<P> {
    /// Draws a group of completions for each sample with the policy as it is, and grades them.
    ///
    /// What the sampler returns is what is trained on: tokens are never decoded and encoded again, and the sampler's
    /// own log-probabilities are the old ones of the update.
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
        let Drawn { mut groups, on_credit, busy } = self.sample(&prompts)?;
        let elapsed = start.elapsed();
        let credit = elapsed.mul_f64(on_credit.as_secs_f64() / busy.as_secs_f64().max(f64::MIN_POSITIVE));

        let start = Instant::now();
        let failures = self.grade(task, samples, &mut groups)?;
        if let Some(tgrl) = self.algorithm.expert {
            self.join_experts(tgrl, task, samples, &mut groups)?;
        }
        let sample = elapsed.saturating_sub(credit);
        let timing = Timing { sample, credit, reward: start.elapsed(), ..Timing::default() };
        Ok(Rollout { drawn: groups.len(), groups, failures, timing })
    }

    /// Dynamic sampling (DAPO, arXiv 2503.14476, eq. 11): draws prompts until the rewards differ in `groups` groups,
    /// and drops the groups whose rewards are all equal, which have nothing to learn from, and those that a
    /// [filter](crate::Algorithm::filters) drops.
    ///
    /// `next(n)` hands out the next n samples; it is asked at most `max_rounds` times. A rollout that is not full by
    /// then is shorter; the means of its losses are over what it has. Also returns the samples of its groups.
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
            whole.timing.credit += round.timing.credit;
            whole.timing.reward += round.timing.reward;
            for (group, sample) in round.groups.into_iter().zip(samples) {
                if self.teaches(&group)? {
                    whole.groups.push(group);
                    kept.push(sample);
                }
            }
        }
        Ok((whole, kept))
    }

    /// Draws the completions, with what credit asks to see where the sampler hands it out.
    fn sample(&mut self, prompts: &[P::Prompt]) -> Result<Drawn<P::Prompt>, Error> {
        let Options { group_size, sampling, prompts_per_sampling_batch: batch, .. } = self.options;
        let policy = self.policy.valid().materialize();
        let asking = self.asking();
        let draw = |policy: &P, prompts: &[P::Prompt], sampling| draw(policy, asking, prompts, group_size, sampling);
        let batches = draw_in_parallel(&policy, prompts, group_size, sampling, batch, self.threads(), draw)?;
        self.options.sampling.first_stream += (prompts.len() * group_size) as u64;

        let mut drawn = Drawn { groups: Vec::new(), on_credit: Duration::ZERO, busy: Duration::ZERO };
        for batch in batches {
            drawn.groups.extend(batch.groups);
            drawn.on_credit += batch.on_credit;
            drawn.busy += batch.busy;
        }
        Ok(drawn)
    }

    /// Grades all completions, and returns the failures that became abstentions.
    fn grade<T: Task<Prompt = P::Prompt>>(
        &self,
        task: &T,
        samples: &[T::Sample],
        groups: &mut [Group<P::Prompt>],
    ) -> Result<Vec<Error>, Error> {
        let mut failures = Vec::new();
        let of_sample = |(group, row)| {
            let group: &Group<P::Prompt> = group;
            group.completions.iter().map(move |completion| (row, completion))
        };
        let graded: Vec<(&T::Sample, &Completion)> = groups.iter().zip(samples).flat_map(of_sample).collect();
        let rewards = task.rewards(&graded);
        check_count("rewards", rewards.len(), graded.len())?;
        let mut rewards = rewards.into_iter();
        for (index, group) in groups.iter_mut().enumerate() {
            for (completion, (answer, reward)) in group.completions.iter().zip(&mut rewards).enumerate() {
                let reward = match reward {
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

impl<P: Policy> Trainer<P> {
    /// Whether the completions of a group have different rewards, and no filter drops it.
    fn teaches(&self, group: &Group<P::Prompt>) -> Result<bool, Error> {
        Ok(!group.rewards_are_equal() && self.algorithm.filtered(group)? > 0.0)
    }

    /// Lets the expert's completion join each group that fails often enough, if it has one and the expert's is right.
    fn join_experts<T: Task<Prompt = P::Prompt>>(
        &self,
        tgrl: Tgrl,
        task: &T,
        samples: &[T::Sample],
        groups: &mut [Group<P::Prompt>],
    ) -> Result<(), Error> {
        let mut places = Vec::new();
        let mut written = Vec::new();
        for (place, (group, sample)) in groups.iter().zip(samples).enumerate() {
            if !tgrl.wants(&group.rewards) {
                continue;
            }
            let expert = task.expert(sample).map_err(|source| Error::Expert { sample: place, source })?;
            if let Some(completion) = expert.filter(|completion| !completion.tokens.is_empty()) {
                places.push(place);
                written.push((sample, Completion { expert: true, observed: None, ..completion }));
            }
        }
        let graded: Vec<(&T::Sample, &Completion)> = written.iter().map(|(sample, answer)| (*sample, answer)).collect();
        let rewards = task.rewards(&graded);
        check_count("rewards", rewards.len(), graded.len())?;
        let (mut joining, mut right) = (Vec::new(), Vec::new());
        for ((place, (_, completion)), reward) in places.into_iter().zip(written).zip(rewards) {
            let reward = match reward {
                Err(source) if self.options.reward_failure == RewardFailure::Stop => {
                    return Err(Error::Expert { sample: place, source });
                }
                // What nobody could grade is not known to be right.
                Err(_) => continue,
                Ok(reward) => reward,
            };
            if reward.is_right() {
                let prompt = groups[place].prompt.clone();
                joining.push(Group { prompt, completions: vec![completion], rewards: Vec::new() });
                right.push((place, reward));
            }
        }
        if joining.is_empty() {
            return Ok(());
        }
        let policy = self.policy.valid().materialize();
        let log_probs =
            self.log_probs(&policy, &self.batch(&joining, |_, _| true), |_, _, prompt| Ok(prompt.clone()))?;
        let experts = joining.into_iter().flat_map(|group| group.completions);
        for (((place, reward), expert), log_probs) in right.into_iter().zip(experts).zip(log_probs) {
            groups[place].completions.push(Completion { log_probs, ..expert });
            groups[place].rewards.push(reward);
        }
        Ok(())
    }
}

/// Groups, with the time that threads spent on their credit and on all of it.
struct Drawn<P> {
    groups: Vec<Group<P>>,
    on_credit: Duration,
    busy: Duration,
}

/// Draws the completions of some prompts, with what is asked to be seen of them.
fn draw<P: Clone, S: Sampler<P>>(
    sampler: &S,
    asking: Asking<'_, P>,
    prompts: &[P],
    group_size: usize,
    sampling: Sampling,
) -> Result<Drawn<P>, Error> {
    let start = Instant::now();
    let asked = asking.of_a_pass(&prompts.iter().collect::<Vec<_>>())?;
    let mut on_credit = start.elapsed();
    let (completions, found) = if asked == SignalSet::default() {
        (sampler.sample(prompts, group_size, sampling)?, None)
    } else {
        let (completions, found) = sampler.sample_with_signals(prompts, group_size, sampling, &asked)?;
        (completions, found.covers(&asked).then_some(found))
    };
    check_groups(&completions, prompts.len(), group_size)?;
    let group = |(prompt, completions): (&P, _)| Group { prompt: prompt.clone(), completions, rewards: Vec::new() };
    let mut groups: Vec<Group<P>> = prompts.iter().zip(completions).map(group).collect();
    if let Some(found) = found {
        let start_of_credit = Instant::now();
        let observed = asking.credit.observe(&groups, &found)?;
        for (completion, observed) in groups.iter_mut().flat_map(|group| &mut group.completions).zip(observed) {
            completion.observed = Some(observed);
        }
        on_credit += start_of_credit.elapsed();
    }
    Ok(Drawn { groups, on_credit, busy: start.elapsed() })
}
