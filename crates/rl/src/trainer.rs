use std::time::{Duration, Instant};

use burn::optim::ModuleOptimizer;

use crate::credit::offered;
use crate::metrics::{batch_metrics, timing_metrics};
use crate::{
    AdvantageEstimator as _, Algorithm, Capability, CreditAssigner, CreditList, Error, Group, Metrics, Options, Policy,
    Rollout, Sampler, Task, Threads, Timing, TokenCredit,
};

/// What the updates on a rollout did.
#[derive(Debug, Clone)]
pub struct Update {
    /// `[group][completion]`.
    pub advantages: Vec<Vec<f32>>,
    /// `[group][completion]`, as of the first pass; a group that was not trained on has no completions here, a
    /// completion that was left out of a group no tokens.
    pub credit: Vec<Vec<TokenCredit>>,
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
    pub credit: Vec<Vec<TokenCredit>>,
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
        let mut metrics = batch_metrics(&rollout, &update.advantages);
        let Rollout { groups, timing, .. } = rollout;
        let generated = groups.iter().flat_map(Group::drawn).map(|(completion, _)| completion.tokens.len()).sum();
        let credit = timing.credit + update.timing.credit;
        let timing = Timing { sample: timing.sample, reward: timing.reward, credit, ..update.timing };
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

    /// The metric of this name, if the step has it.
    #[must_use]
    pub fn metric(&self, name: &str) -> Option<f64> {
        self.metrics.iter().find(|(found, _)| found == name).map(|&(_, value)| value)
    }
}

/// A policy, what it learns by, and the state of its optimizer.
///
/// What a run needs to go on after a break is [`policy`](Self::policy), [`optimizer`](Self::optimizer),
/// [`reference`](Self::reference) if there is one, [`steps`](Self::steps) and
/// [`options.sampling.first_stream`](crate::Sampling::first_stream): put back, the next steps are what they would have
/// been.
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
    pub credit: CreditList<P::Prompt>,
    /// How much at a time.
    pub options: Options,
    /// Rollouts trained on so far.
    pub steps: u64,
}

impl<P: Policy> Trainer<P> {
    /// A trainer at its first step. With a KL penalty the reference is `policy` as it is now; without one, none is
    /// held.
    ///
    /// # Errors
    /// [`Error::Setting`] for settings that cannot be trained with, such as a temperature of zero; [`Error::Capability`]
    /// when a method needs what the policy cannot do.
    pub fn new(
        policy: P,
        optimizer: ModuleOptimizer,
        algorithm: Algorithm,
        credit: impl CreditAssigner<P::Prompt> + Send + 'static,
        options: Options,
    ) -> Result<Self, Error> {
        Self::with_methods(policy, optimizer, algorithm, CreditList::of(credit), options)
    }

    /// The same with several credit methods.
    ///
    /// # Errors
    /// As there; [`Error::Conflict`] when two methods need different states.
    pub fn with_methods(
        policy: P,
        optimizer: ModuleOptimizer,
        algorithm: Algorithm,
        credit: CreditList<P::Prompt>,
        options: Options,
    ) -> Result<Self, Error> {
        options.check()?;
        algorithm.check()?;
        credit.check(&policy)?;
        if algorithm.advantage.reads_features() {
            offered(&policy, "the advantage", &Capability::Features)?;
        }
        let reference = algorithm.kl.map(|_| policy.valid().materialize());
        Ok(Self { policy, reference, optimizer, algorithm, credit, options, steps: 0 })
    }

    /// What the policy's device makes of the threads that were asked for.
    pub(crate) fn threads(&self) -> Threads {
        let wanted = self.options.threads;
        self.policy.devices().first().map_or(Threads::Own(wanted), |device| Threads::on(device, wanted))
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
}
