use std::time::{Duration, Instant};

use burn::optim::ModuleOptimizer;

use crate::metrics::{batch_metrics, timing_metrics};
use crate::{
    Algorithm, CreditAssigner, Error, Group, Metrics, Policy, Sampler, Sampling, Task, Timing, sample_in_parallel,
};

/// How much is drawn and trained at a time.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Completions a prompt; at least two, as an advantage compares them.
    pub group_size: usize,
    /// How completions are drawn. After each rollout `first_stream` moves on by the completions drawn, so it is all
    /// that has to be restored to go on with the same random numbers.
    pub sampling: Sampling,
    /// Prompts that are sampled together. Results depend on it only through rounding, and not on `threads`.
    pub prompts_per_sampling_batch: usize,
    /// Groups in one forward and backward pass: what memory allows. Changes the gradient only through rounding.
    pub groups_per_micro_batch: usize,
    /// Parts a rollout is cut into, one optimizer step each. With one part and one pass training is strictly on-policy.
    pub mini_batches: usize,
    /// How often a rollout is trained on.
    pub passes_per_rollout: usize,
    /// Largest norm of the gradient of all parameters together; `None` does not clip.
    pub max_gradient_norm: Option<f32>,
    /// Operating-system threads over micro-batches and sampling batches. Any number gives the same result, bit for bit,
    /// on devices whose operations are deterministic.
    pub threads: usize,
}

impl Options {
    pub(crate) fn validate(&self) -> Result<(), Error> {
        let at_least = |setting, value: usize, least: usize, reason| {
            if value < least { Err(Error::Setting { setting, value: value.to_string(), reason }) } else { Ok(()) }
        };
        at_least("group_size", self.group_size, 2, "an advantage compares at least two completions")?;
        at_least("sampling.max_tokens", self.sampling.max_tokens, 1, "a completion has at least one token")?;
        at_least("prompts_per_sampling_batch", self.prompts_per_sampling_batch, 1, "at least 1")?;
        at_least("groups_per_micro_batch", self.groups_per_micro_batch, 1, "at least 1")?;
        at_least("mini_batches", self.mini_batches, 1, "at least 1")?;
        at_least("passes_per_rollout", self.passes_per_rollout, 1, "at least 1")?;
        at_least("threads", self.threads, 1, "at least 1")?;
        let positive = |setting, value: f32, reason| {
            if value.is_finite() && value > 0.0 {
                Ok(())
            } else {
                Err(Error::Setting { setting, value: value.to_string(), reason })
            }
        };
        let reason = "training draws from the distribution it scores, so the temperature is above zero";
        positive("sampling.temperature", self.sampling.temperature, reason)?;
        self.max_gradient_norm
            .map_or(Ok(()), |norm| positive("max_gradient_norm", norm, "above zero; leave it out for no limit"))
    }
}

/// Prompts with completions and rewards, not yet trained on.
#[derive(Debug, Clone)]
pub struct Rollout<P> {
    /// One group a sample, in the order of the samples.
    pub groups: Vec<Group<P>>,
    /// Time spent on them.
    pub timing: Timing,
}

/// What the updates on a rollout did.
#[derive(Debug, Clone)]
pub struct Update {
    /// `[group][completion]`.
    pub advantages: Vec<Vec<f32>>,
    /// `[group][completion][token]`, as of the first pass; a group that was not trained on has no completions here.
    pub credit: Vec<Vec<Vec<f32>>>,
    /// Optimizer steps taken; zero when no group had an advantage, and then the policy is what it was.
    pub optimizer_steps: usize,
    /// Completion tokens trained on, over all passes.
    pub trained_tokens: usize,
    /// Losses, ratios, norms and the like.
    pub metrics: Metrics,
    /// Time spent.
    pub timing: Timing,
}

/// One step: a rollout and its updates.
#[derive(Debug, Clone)]
pub struct StepReport<P> {
    /// The graded groups.
    pub groups: Vec<Group<P>>,
    /// See [`Update::advantages`].
    pub advantages: Vec<Vec<f32>>,
    /// See [`Update::credit`].
    pub credit: Vec<Vec<Vec<f32>>>,
    /// See [`Update::optimizer_steps`].
    pub optimizer_steps: usize,
    /// Everything worth plotting, in a fixed order.
    pub metrics: Metrics,
}

impl<P> StepReport<P> {
    /// The report of a rollout and its updates that together took `elapsed`; for callers who run the two themselves,
    /// say to keep the groups when the update fails.
    #[must_use]
    pub fn new(rollout: Rollout<P>, update: Update, elapsed: Duration) -> Self {
        let Rollout { groups, timing } = rollout;
        let generated = groups.iter().flat_map(|group| &group.completions).map(|answer| answer.tokens.len()).sum();
        let timing = Timing { sample: timing.sample, reward: timing.reward, ..update.timing };
        let mut metrics = batch_metrics(&groups, &update.advantages);
        metrics.extend(update.metrics);
        metrics.extend(timing_metrics(timing, elapsed, generated, update.trained_tokens));
        Self {
            groups,
            advantages: update.advantages,
            credit: update.credit,
            optimizer_steps: update.optimizer_steps,
            metrics,
        }
    }
}

/// A policy, what it learns by, and the state of its optimizer.
pub struct Trainer<P: Policy> {
    /// The policy, on an autodiff device.
    pub policy: P,
    /// What the KL penalty measures the distance to, off the autodiff device; `None` without a penalty.
    pub reference: Option<P>,
    /// The optimizer and its state. Give it no gradient clipping of its own: burn's works on each tensor by itself.
    pub optimizer: ModuleOptimizer,
    /// What is optimised.
    pub algorithm: Algorithm,
    /// How an advantage is split over tokens.
    pub credit: Box<dyn CreditAssigner<P::Prompt> + Send>,
    /// How much at a time.
    pub options: Options,
}

impl<P: Policy> Trainer<P> {
    /// A trainer at its first step. With a KL penalty the reference is `policy` as it is now; a penalty of coefficient
    /// zero is dropped, and no reference is kept.
    ///
    /// # Errors
    /// [`Error::Setting`] for options that cannot be trained with, such as a temperature of zero.
    pub fn new(
        policy: P,
        optimizer: ModuleOptimizer,
        mut algorithm: Algorithm,
        credit: impl CreditAssigner<P::Prompt> + Send + 'static,
        options: Options,
    ) -> Result<Self, Error> {
        options.validate()?;
        algorithm.loss.kl = algorithm.loss.kl.filter(|penalty| penalty.coefficient != 0.0);
        let reference = algorithm.loss.kl.map(|_| policy.valid().materialize());
        Ok(Self { policy, reference, optimizer, algorithm, credit: Box::new(credit), options })
    }
}

impl<P: Policy + Sampler<P::Prompt>> Trainer<P> {
    /// Samples, grades and trains: [`Self::rollout`], then [`Self::update`].
    ///
    /// # Errors
    /// Those of the two.
    pub fn step<T>(
        &mut self,
        task: &T,
        samples: &[T::Sample],
        learning_rate: f64,
    ) -> Result<StepReport<P::Prompt>, Error>
    where
        T: Task<Prompt = P::Prompt>,
    {
        let start = Instant::now();
        let rollout = self.rollout(task, samples)?;
        let update = self.update(&rollout.groups, learning_rate)?;

        Ok(StepReport::new(rollout, update, start.elapsed()))
    }

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
        self.options.validate()?;
        let start = Instant::now();
        let prompts = samples
            .iter()
            .enumerate()
            .map(|(sample, row)| task.prompt(row).map_err(|source| Error::Prompt { sample, source }))
            .collect::<Result<Vec<_>, _>>()?;
        let mut groups = self.sample(prompts)?;
        let sample = start.elapsed();

        let start = Instant::now();
        for (index, (group, row)) in groups.iter_mut().zip(samples).enumerate() {
            for (completion, answer) in group.completions.iter().enumerate() {
                let reward = task.reward(row, answer);
                group.rewards.push(reward.map_err(|source| Error::Reward { group: index, completion, source })?);
            }
        }
        Ok(Rollout { groups, timing: Timing { sample, reward: start.elapsed(), ..Timing::default() } })
    }

    fn sample(&mut self, prompts: Vec<P::Prompt>) -> Result<Vec<Group<P::Prompt>>, Error> {
        let Options { group_size, sampling, prompts_per_sampling_batch: batch, threads, .. } = self.options;
        let sampled =
            sample_in_parallel(&self.policy.valid().materialize(), &prompts, group_size, sampling, batch, threads)?;
        self.options.sampling.first_stream += (sampled.len() * group_size) as u64;
        let groups = prompts.into_iter().zip(sampled);
        Ok(groups.map(|(prompt, completions)| Group { prompt, completions, rewards: Vec::new() }).collect())
    }
}
