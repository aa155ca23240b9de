//! What of a rollout takes forward passes before the policy moves: the reference, what sampling did not see, and credit.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::batch::Batch;
use crate::error::check_count;
use crate::in_order::in_order;
use crate::pass::Known;
use crate::rows::{check_shape, unpad};
use crate::{
    Completion, CreditBatch, CreditInput, CreditList, Error, Group, KlPlacement, Observed, Policy, Scores, SignalSet,
    Signals, TokenCredit, Trainer, View,
};

/// Streams of random numbers that each rollout has for its changed views, one a group.
const VIEWS_OF_A_ROLLOUT: u64 = 1 << 32;

/// For every omission of a method the log-probabilities of what is left, in the places of the whole.
type Without = Vec<Option<Vec<f32>>>;

/// Who wants to see something of completions: credit, and the share of the highest entropies.
pub(crate) struct Asking<'a, P> {
    pub(crate) credit: &'a CreditList<P>,
    entropy: bool,
}

impl<P> Clone for Asking<'_, P> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<P> Copy for Asking<'_, P> {}

impl<P> Asking<'_, P> {
    /// What a pass over completions of these prompts is asked for.
    pub(crate) fn of_a_pass(self, prompts: &[&P]) -> Result<SignalSet, Error> {
        let mut asked = self.credit.signals(prompts)?.of_a_pass();
        asked.entropy |= self.entropy;
        Ok(asked)
    }
}

impl<P: Policy> Trainer<P> {
    pub(crate) fn asking(&self) -> Asking<'_, P::Prompt> {
        Asking { credit: &self.credit, entropy: self.algorithm.top_entropy.is_some() }
    }

    /// What takes a scoring pass of its own, and the time spent on credit.
    pub(crate) fn known_beforehand(
        &self,
        batch: &Batch<P::Prompt>,
        advantages: &[Vec<f32>],
    ) -> Result<(Known, Duration), Error> {
        let advantages: Vec<f32> = batch.places.iter().map(|&(group, place)| advantages[group][place]).collect();
        let mut known = Known { advantages, ..Known::default() };
        if self.algorithm.kl.is_some_and(|penalty| penalty.placement != KlPlacement::Reward) {
            let reference = self.reference.as_ref().ok_or(Error::MissingReference)?;
            known.reference = Some(self.log_probs(reference, batch, |_, _, prompt| Ok(prompt.clone()))?);
        }
        let start = Instant::now();
        let observed = self.observed(batch)?;
        if self.algorithm.top_entropy.is_some() {
            known.entropy = Some(observed.iter().map(|observed| observed.entropy.clone()).collect());
        }
        known.credit = self.credit_of(batch, &known.advantages, &observed)?;
        Ok((known, start.elapsed()))
    }

    /// What was seen of the rows of a batch as they were drawn; by a scoring pass unless it was of all of them.
    fn observed(&self, batch: &Batch<P::Prompt>) -> Result<Vec<Observed>, Error> {
        let asking = self.asking();
        if asking.of_a_pass(&[])? == SignalSet::default() {
            return Ok(vec![Observed::default(); batch.lengths.len()]);
        }
        let known = |completion: &Completion| match &completion.observed {
            None if completion.expert => Some(Observed::default()),
            observed => observed.clone(),
        };
        let completions = || batch.pieces.iter().flat_map(|piece| &piece.completions);
        if let Some(known) = completions().map(known).collect() {
            return Ok(known);
        }
        let (policy, temperature) = (self.policy.valid().materialize(), self.options.sampling.temperature);
        self.over_micro_batches(&policy, batch, |policy, pieces| {
            let (groups, lengths) = (&batch.pieces[pieces.clone()], &batch.lengths[batch.rows(&pieces)]);
            let prompts: Vec<&P::Prompt> = groups.iter().map(|group| &group.prompt).collect();
            let asked = asking.of_a_pass(&prompts)?;
            let scores = score(policy, groups, lengths, temperature, &asked)?;
            let entropy = if asked.entropy { Some(unpad(&scores.entropy, lengths)?) } else { None };
            asking.credit.observe(groups, &Signals { entropy, ..scores.signals })
        })
    }

    /// The credit of the rows of a batch. Those of an expert have the whole advantage: nothing that is asked about what
    /// the policy says is asked about them.
    fn credit_of(
        &self,
        batch: &Batch<P::Prompt>,
        advantages: &[f32],
        observed: &[Observed],
    ) -> Result<Vec<TokenCredit>, Error> {
        let asked = self.credit.signals(&[])?;
        let policy = std::cell::OnceCell::new();
        let policy = || policy.get_or_init(|| self.policy.valid().materialize()) as &P;
        let view = |view: &View| -> Result<(View, Vec<Vec<f32>>), Error> {
            Ok((view.clone(), self.log_probs_under(policy(), view, batch)?))
        };
        let views = asked.views.iter().map(view).collect::<Result<Vec<_>, Error>>()?;
        let text = |&token: &u32| -> Arc<str> { self.policy.token_text(token).into() };
        let completions = || batch.pieces.iter().flat_map(|piece| &piece.completions);
        let texts = |completion: &Completion| -> Vec<Arc<str>> {
            if asked.texts { completion.tokens.iter().map(text).collect() } else { Vec::new() }
        };
        let texts: Vec<Vec<Arc<str>>> = completions().map(texts).collect();
        let prompts = batch.pieces.iter().flat_map(|piece| vec![&piece.prompt; piece.completions.len()]);
        let mut inputs = Vec::with_capacity(observed.len());
        for (row, (prompt, completion)) in prompts.zip(completions()).enumerate() {
            if !completion.expert {
                inputs.push(CreditInput {
                    advantage: advantages[row],
                    entropy: &observed[row].entropy,
                    top_p_entropy: &observed[row].top_p_entropy,
                    texts: &texts[row],
                    views: &views,
                    row,
                    ..CreditInput::of(prompt, batch.places[row].0, completion)
                });
            }
        }
        let rollout = CreditBatch { completions: inputs, seed: self.options.sampling.seed, step: self.steps };
        let mut without = Vec::new();
        for (method, omissions) in self.credit.omissions(&rollout) {
            without.push((method, self.without(policy(), &rollout, &omissions)?));
        }
        let seen: Vec<&Observed> = rollout.completions.iter().map(|input| &observed[input.row]).collect();
        let mut found = self.credit.assign(rollout, &seen, &without)?.into_iter();
        let credit = |completion: &Completion| {
            let whole = || vec![1.0; completion.tokens.len()].into();
            if completion.expert { Some(whole()) } else { found.next() }
        };
        Ok(completions().filter_map(credit).collect())
    }

    /// Log-probabilities of the rows of a batch behind prompts under a view.
    fn log_probs_under(&self, policy: &P, view: &View, batch: &Batch<P::Prompt>) -> Result<Vec<Vec<f32>>, Error> {
        let (seed, first) = (self.options.sampling.seed, self.steps * VIEWS_OF_A_ROLLOUT);
        // All completions of a prompt see the same, so that it runs once for them.
        self.log_probs(policy, batch, |policy, group, prompt| policy.changed(prompt, view, seed, first + group as u64))
    }

    /// Log-probabilities of completions without some of their tokens.
    fn without(
        &self,
        policy: &P,
        rollout: &CreditBatch<'_, P::Prompt>,
        omissions: &[Option<Range<usize>>],
    ) -> Result<Without, Error> {
        let mut groups: Vec<Group<P::Prompt>> = Vec::new();
        let mut of_group = None;
        for (input, omission) in rollout.completions.iter().zip(omissions) {
            let Some(omitted) = omission else { continue };
            let left = |token: &usize| !omitted.contains(token);
            let tokens =
                (0..input.completion.tokens.len()).filter(left).map(|at| input.completion.tokens[at]).collect();
            if of_group.replace(input.group) != Some(input.group) {
                groups.push(Group { prompt: input.prompt.clone(), completions: Vec::new(), rewards: Vec::new() });
            }
            let completions = &mut groups.last_mut().expect("one was pushed").completions;
            completions.push(Completion { tokens, ..Completion::default() });
        }
        let batch = self.batch(&groups, |_, _| true);
        let mut scores = self.log_probs(policy, &batch, |_, _, prompt| Ok(prompt.clone()))?.into_iter();
        let spread = |(input, omission): (&CreditInput<'_, P::Prompt>, &Option<Range<usize>>)| {
            let omitted = omission.as_ref()?;
            let left = scores.next()?;
            let drawn = input.completion.log_probs[omitted.clone()].iter();
            let (before, behind) = left.split_at(omitted.start);
            Some(before.iter().chain(drawn).chain(behind).copied().collect())
        };
        Ok(rollout.completions.iter().zip(omissions).map(spread).collect())
    }

    /// The completions that `keep` names, cut as memory allows.
    pub(crate) fn batch(&self, groups: &[Group<P::Prompt>], keep: impl Fn(usize, usize) -> bool) -> Batch<P::Prompt> {
        Batch::new(groups, keep, self.options.micro_batch, |prompt| self.policy.prompt_tokens(prompt))
    }

    /// Log-probabilities of the completions of a batch, a row each, behind what `prompt` makes of the prompt of each group.
    pub(crate) fn log_probs(
        &self,
        policy: &P,
        batch: &Batch<P::Prompt>,
        prompt: impl Fn(&P, usize, &P::Prompt) -> Result<P::Prompt, Error> + Sync,
    ) -> Result<Vec<Vec<f32>>, Error> {
        let temperature = self.options.sampling.temperature;
        self.over_micro_batches(policy, batch, |policy, pieces| {
            let lengths = &batch.lengths[batch.rows(&pieces)];
            let group = |index: usize| {
                let piece = &batch.pieces[index];
                let prompt = prompt(policy, batch.groups[index], &piece.prompt)?;
                Ok(Group { prompt, completions: piece.completions.clone(), rewards: Vec::new() })
            };
            let groups = pieces.map(group).collect::<Result<Vec<_>, Error>>()?;
            unpad(&score(policy, &groups, lengths, temperature, &SignalSet::default())?.log_probs, lengths)
        })
    }

    /// What `job` makes of every micro-batch, given its pieces: a row a completion, in order.
    pub(crate) fn over_micro_batches<T: Send>(
        &self,
        policy: &P,
        batch: &Batch<P::Prompt>,
        job: impl Fn(&P, Range<usize>) -> Result<Vec<T>, Error> + Sync,
    ) -> Result<Vec<T>, Error> {
        let micro_batches = batch.micro_batches(0..batch.pieces.len());
        let workers = vec![policy.clone(); self.threads().workers(micro_batches.len())];
        let mut rows = Vec::with_capacity(batch.lengths.len());
        in_order(
            workers,
            self.threads(),
            micro_batches.len(),
            |policy, index| job(policy, micro_batches[index].clone()),
            |found| {
                rows.extend(found);
                Ok(())
            },
        )?;
        check_count("rows of scores", rows.len(), batch.lengths.len())?;
        Ok(rows)
    }
}

/// A scoring pass that has a row for each completion.
pub(crate) fn score<P: Policy>(
    policy: &P,
    groups: &[Group<P::Prompt>],
    lengths: &[usize],
    temperature: f32,
    signals: &SignalSet,
) -> Result<Scores, Error> {
    let scores = policy.score(groups, temperature, signals)?;
    check_shape(&scores, lengths)?;
    Ok(scores)
}
