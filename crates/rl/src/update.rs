//! The second half of a step: from graded groups to a new policy.

use std::ops::Range;
use std::time::Instant;

use burn::optim::GradientsParams;

use crate::batch::{check_shape, pad, unpad, values};
use crate::error::check_count;
use crate::in_order::in_order;
use crate::metrics::{TokenSums, update_metrics};
use crate::{
    Algorithm, Coefficients, CreditAssigner, Error, Group, LossInput, Policy, SignalSet, Signals, Timing, TokenLoss,
    Trainer, Update, clip_global_norm, gradients_in_parallel,
};

/// The groups of a rollout that are trained on, and what is known of them before the first update.
///
/// All rows are of completions, those of all groups one after another; `starts[g]` is the first of group `g`.
struct Batch<P> {
    groups: Vec<Group<P>>,
    /// Place of each group in the rollout.
    places: Vec<usize>,
    starts: Vec<usize>,
    lengths: Vec<usize>,
    advantages: Vec<f32>,
    /// Weights known beforehand; else they come with each scoring pass.
    credit: Option<Vec<Vec<f32>>>,
    reference: Option<Vec<Vec<f32>>>,
}

impl<P: Clone> Batch<P> {
    /// Keeps the groups that have an advantage at all.
    fn new(groups: &[Group<P>], advantages: &[Vec<f32>]) -> Self {
        let places: Vec<usize> =
            (0..groups.len()).filter(|&group| advantages[group].iter().any(|&advantage| advantage != 0.0)).collect();
        let groups: Vec<Group<P>> = places.iter().map(|&place| groups[place].clone()).collect();
        let starts = starts(&groups);
        let lengths = lengths(&groups);
        let advantages = places.iter().flat_map(|&place| advantages[place].iter().copied()).collect();
        Self { groups, places, starts, lengths, advantages, credit: None, reference: None }
    }

    fn rows(&self, groups: &Range<usize>) -> Range<usize> {
        self.starts[groups.start]..self.starts[groups.end]
    }
}

/// First completion of each group, and one past the last.
fn starts<P>(groups: &[Group<P>]) -> Vec<usize> {
    let ends = groups.iter().scan(0, |end, group| {
        *end += group.completions.len();
        Some(*end)
    });
    std::iter::once(0).chain(ends).collect()
}

fn lengths<P>(groups: &[Group<P>]) -> Vec<usize> {
    groups.iter().flat_map(|group| &group.completions).map(|completion| completion.tokens.len()).collect()
}

/// What one micro-batch brings home beside its gradient.
struct MicroBatch {
    sums: TokenSums,
    credit: Vec<Vec<f32>>,
}

impl<P: Policy> Trainer<P> {
    /// Trains the policy on graded groups.
    ///
    /// Groups whose advantages are all zero are left out: they have nothing to say about the policy, and they are left
    /// out of a KL penalty too. They still count among the completions and tokens that losses are averaged over, so
    /// without a penalty the gradient is exactly that of the whole batch. When no group is left, nothing is updated.
    ///
    /// With one mini-batch and one pass, credit weights come out of the scoring pass that the gradient needs anyway.
    /// With more, credit has to be that of the sampling policy, so a credit method that wants signals costs one
    /// scoring pass without gradients before the first update.
    ///
    /// # Errors
    /// [`Error::NonFiniteReward`], [`Error::NonFiniteLoss`] or [`Error::NonFiniteGradient`] name the first bad number,
    /// and the policy is left as it was before the optimizer step that met it. Otherwise when the policy or the credit
    /// assigner fails or returns something of the wrong shape, and for options that cannot be trained with.
    pub fn update(&mut self, groups: &[Group<P::Prompt>], learning_rate: f64) -> Result<Update, Error> {
        self.options.validate()?;
        let advantages = self.advantages(groups)?;
        let mut batch = Batch::new(groups, &advantages);
        let updates = self.options.mini_batches * self.options.passes_per_rollout;

        let start = Instant::now();
        batch.reference = self.reference_log_probs(&batch)?;
        batch.credit = if updates > 1 { Some(self.credit_beforehand(&batch)?) } else { None };
        let mut timing = Timing { score: start.elapsed(), ..Timing::default() };

        let start = Instant::now();
        let mut credit = vec![Vec::new(); groups.len()];
        let (mut sums, mut norms) = (TokenSums::default(), Vec::new());
        let per_mini_batch = groups.len().div_ceil(self.options.mini_batches).max(1);
        for pass in 0..self.options.passes_per_rollout {
            for (index, whole) in groups.chunks(per_mini_batch).enumerate() {
                let mini_batch = index * per_mini_batch..index * per_mini_batch + whole.len();
                let kept = batch.places.partition_point(|&place| place < mini_batch.start)
                    ..batch.places.partition_point(|&place| place < mini_batch.end);
                if kept.is_empty() {
                    continue;
                }
                let coefficients = self.coefficients(whole, &batch.places[kept.clone()], mini_batch.start);
                let first = norms.is_empty();
                let (gradients, found, weights) = self.gradients(&batch, kept.clone(), &coefficients, first)?;
                let (gradients, norm) = clip_global_norm(&self.policy, gradients, self.options.max_gradient_norm)?;
                self.policy = self.optimizer.step(learning_rate, self.policy.clone(), gradients);
                sums.add(&found);
                norms.push(norm);
                if pass == 0 {
                    let mut weights = weights.into_iter();
                    for group in kept {
                        let completions = batch.groups[group].completions.len();
                        credit[batch.places[group]] = weights.by_ref().take(completions).collect();
                    }
                }
            }
        }
        let elapsed = start.elapsed();
        let forward = elapsed.mul_f64(sums.forward.as_secs_f64() / sums.busy.as_secs_f64().max(f64::MIN_POSITIVE));
        timing.score += forward.min(elapsed);
        timing.update = elapsed.saturating_sub(forward);
        Ok(Update {
            advantages,
            credit,
            optimizer_steps: norms.len(),
            trained_tokens: sums.tokens,
            metrics: update_metrics(&sums, &norms, self.algorithm.loss.kl.is_some()),
            timing,
        })
    }

    fn advantages(&self, groups: &[Group<P::Prompt>]) -> Result<Vec<Vec<f32>>, Error> {
        let rewards: Vec<Vec<f32>> =
            groups.iter().map(|group| group.rewards.iter().map(|reward| reward.total).collect()).collect();
        for (index, (group, rewards)) in groups.iter().zip(&rewards).enumerate() {
            check_count("rewards of a group", rewards.len(), group.completions.len())?;
            if let Some(completion) = rewards.iter().position(|reward| !reward.is_finite()) {
                return Err(Error::NonFiniteReward { group: index, completion });
            }
        }
        let advantages = self.algorithm.advantage.advantages(&rewards);
        check_count("groups of advantages", advantages.len(), groups.len())?;
        for (group, (advantages, rewards)) in advantages.iter().zip(&rewards).enumerate() {
            check_count("advantages of a group", advantages.len(), rewards.len())?;
            if let Some(completion) = advantages.iter().position(|advantage| !advantage.is_finite()) {
                return Err(Error::NonFiniteAdvantage { group, completion });
            }
        }
        Ok(advantages)
    }

    /// Coefficients of the kept groups of a mini-batch, taken over all of it.
    fn coefficients(&self, whole: &[Group<P::Prompt>], kept: &[usize], first: usize) -> Coefficients {
        let starts = starts(whole);
        let all = self.algorithm.aggregation.coefficients(&lengths(whole));
        let rows = kept.iter().flat_map(|place| starts[place - first]..starts[place - first + 1]);
        Coefficients { completions: rows.map(|row| all.completions[row]).collect(), entropy: all.entropy }
    }

    fn micro_batches(&self, groups: &Range<usize>) -> Vec<Range<usize>> {
        let size = self.options.groups_per_micro_batch;
        groups.clone().step_by(size).map(|start| start..groups.end.min(start + size)).collect()
    }

    /// Scores every micro-batch without gradients and hands the results on in order.
    fn score_without_gradients<T: Send>(
        &self,
        policy: &P,
        batch: &Batch<P::Prompt>,
        signals: SignalSet,
        read: impl Fn(&[Group<P::Prompt>], &[usize], crate::Scores) -> Result<Vec<T>, Error> + Sync,
    ) -> Result<Vec<T>, Error> {
        let micro_batches = self.micro_batches(&(0..batch.groups.len()));
        let temperature = self.options.sampling.temperature;
        let workers = vec![policy.clone(); self.options.threads.min(micro_batches.len())];
        let mut rows = Vec::with_capacity(batch.lengths.len());
        in_order(
            workers,
            micro_batches.len(),
            |policy, job| {
                let groups = &batch.groups[micro_batches[job].clone()];
                let lengths = &batch.lengths[batch.rows(&micro_batches[job])];
                let scores = policy.score(groups, temperature, signals)?;
                check_shape(&scores, lengths)?;
                read(groups, lengths, scores)
            },
            |found| {
                rows.extend(found);
                Ok(())
            },
        )?;
        Ok(rows)
    }

    fn reference_log_probs(&self, batch: &Batch<P::Prompt>) -> Result<Option<Vec<Vec<f32>>>, Error> {
        match (self.algorithm.loss.kl, &self.reference) {
            (None, _) => Ok(None),
            (Some(_), None) => Err(Error::MissingReference),
            (Some(_), Some(reference)) => self
                .score_without_gradients(reference, batch, SignalSet::default(), |_, lengths, scores| {
                    unpad(&scores.log_probs, lengths)
                })
                .map(Some),
        }
    }

    fn credit_beforehand(&self, batch: &Batch<P::Prompt>) -> Result<Vec<Vec<f32>>, Error> {
        let signals = self.credit.signals();
        let credit = self.credit.as_ref();
        if signals == SignalSet::default() {
            return weights(credit, &batch.groups, &batch.lengths, &Signals::default());
        }
        self.score_without_gradients(&self.policy.valid().materialize(), batch, signals, |groups, lengths, scores| {
            weights(credit, groups, lengths, &scores.signals)
        })
    }

    /// The gradient of an optimizer batch, its sums and its credit weights.
    fn gradients(
        &self,
        batch: &Batch<P::Prompt>,
        groups: Range<usize>,
        coefficients: &Coefficients,
        first_update: bool,
    ) -> Result<(GradientsParams, TokenSums, Vec<Vec<f32>>), Error> {
        let micro_batches = self.micro_batches(&groups);
        let pass = Pass {
            algorithm: &self.algorithm,
            credit: self.credit.as_ref(),
            temperature: self.options.sampling.temperature,
            batch,
            first_row: batch.starts[groups.start],
            coefficients,
            first_update,
        };
        let (gradients, found) =
            gradients_in_parallel(&self.policy, micro_batches.len(), self.options.threads, |policy, job| {
                pass.micro_batch(policy, micro_batches[job].clone())
            })?;
        let (mut sums, mut credit) = (TokenSums::default(), Vec::new());
        for micro_batch in found {
            sums.add(&micro_batch.sums);
            credit.extend(micro_batch.credit);
        }
        Ok((gradients, sums, credit))
    }
}

fn weights<P>(
    credit: &dyn CreditAssigner<P>,
    groups: &[Group<P>],
    lengths: &[usize],
    signals: &Signals,
) -> Result<Vec<Vec<f32>>, Error> {
    let weights = credit.weights(groups, signals)?;
    check_count("rows of credit weights", weights.len(), lengths.len())?;
    match weights.iter().zip(lengths).position(|(weights, &length)| weights.len() != length) {
        None => Ok(weights),
        Some(completion) => {
            Err(Error::CreditLength { completion, found: weights[completion].len(), expected: lengths[completion] })
        }
    }
}

/// What the micro-batches of one optimizer batch share.
struct Pass<'a, P> {
    algorithm: &'a Algorithm,
    credit: &'a dyn CreditAssigner<P>,
    temperature: f32,
    batch: &'a Batch<P>,
    /// Row of the first coefficient.
    first_row: usize,
    coefficients: &'a Coefficients,
    first_update: bool,
}

impl<P: Clone> Pass<'_, P> {
    fn micro_batch<M: Policy<Prompt = P>>(
        &self,
        policy: &M,
        groups: Range<usize>,
    ) -> Result<(GradientsParams, MicroBatch), Error> {
        let start = Instant::now();
        let batch = self.batch;
        let rows = batch.rows(&groups);
        let lengths = &batch.lengths[rows.clone()];
        let graded = &batch.groups[groups.clone()];
        let signals = if batch.credit.is_some() { SignalSet::default() } else { self.credit.signals() };
        let scores = policy.score(graded, self.temperature, signals)?;
        check_shape(&scores, lengths)?;
        if !scores.log_probs.is_tracked() {
            return Err(Error::NotDifferentiable);
        }
        let credit = match &batch.credit {
            Some(known) => known[rows.clone()].to_vec(),
            None => weights(self.credit, graded, lengths, &scores.signals)?,
        };
        let forward = start.elapsed();

        let credited: Vec<Vec<f32>> = credit
            .iter()
            .zip(&batch.advantages[rows.clone()])
            .map(|(weights, advantage)| weights.iter().map(|weight| weight * advantage).collect())
            .collect();
        let completions = || graded.iter().flat_map(|group| &group.completions);
        let sampled: Vec<&[f32]> = completions().map(|completion| completion.log_probs.as_slice()).collect();
        let ones: Vec<Vec<f32>> = lengths.iter().map(|&length| vec![1.0; length]).collect();

        let width = scores.log_probs.dims()[1];
        let device = scores.log_probs.device();
        let padded = |rows: &[Vec<f32>]| pad(rows.iter().map(Vec::as_slice), width, &device);
        let input = LossInput {
            log_probs: scores.log_probs.clone(),
            old_log_probs: pad(sampled.iter().copied(), width, &device),
            ref_log_probs: batch.reference.as_ref().map(|reference| padded(&reference[rows.clone()])),
            entropy: scores.entropy,
            advantages: padded(&credited),
            mask: padded(&ones),
        };
        let tokens = self.algorithm.loss.forward(input)?;
        let own = rows.start - self.first_row..rows.end - self.first_row;
        let coefficients = Coefficients {
            completions: self.coefficients.completions[own].to_vec(),
            entropy: self.coefficients.entropy,
        };
        let total = self.algorithm.loss.total(&tokens, &coefficients);

        let host = HostRows { sampled: &sampled, credited: &credited, credit: &credit, coefficients: &coefficients };
        let mut sums = self.sums(&tokens, &values(&scores.log_probs)?, &host, &groups)?;
        let gradients = GradientsParams::from_grads(total.backward(), policy);
        sums.forward = forward;
        sums.busy = start.elapsed();
        Ok((gradients, MicroBatch { sums, credit }))
    }

    /// Reads the token losses back for the log, and refuses one that is not finite.
    fn sums(
        &self,
        tokens: &TokenLoss,
        log_probs: &[f32],
        host: &HostRows<'_>,
        groups: &Range<usize>,
    ) -> Result<TokenSums, Error> {
        let width = tokens.ratio.dims()[1];
        let (surrogate, ratio) = (values(&tokens.surrogate)?, values(&tokens.ratio)?);
        let entropy = values(&tokens.entropy)?;
        let kl = tokens.kl.as_ref().map(values).transpose()?;
        let kl_coefficient = self.algorithm.loss.kl.map_or(0.0, |penalty| f64::from(penalty.coefficient));

        let mut sums = TokenSums::default();
        for (row, sampled) in host.sampled.iter().enumerate() {
            let coefficient = f64::from(host.coefficients.completions[row]);
            for (token, &old) in sampled.iter().enumerate() {
                let at = row * width + token;
                let kl = kl.as_ref().map_or(0.0, |kl| f64::from(kl[at]));
                let surrogate = f64::from(surrogate[at]);
                if !(surrogate + kl + f64::from(entropy[at])).is_finite() {
                    return Err(self.non_finite_loss(row, token, groups));
                }
                sums.tokens += 1;
                sums.policy_loss += coefficient * surrogate;
                sums.kl_loss += coefficient * kl_coefficient * kl;
                sums.kl += kl;
                sums.entropy += f64::from(entropy[at]);
                sums.ratio += f64::from(ratio[at]);
                sums.ratio_max = sums.ratio_max.max(f64::from(ratio[at]));
                sums.count_clip(self.algorithm.loss.surrogate.clipped(ratio[at], host.credited[row][token]));
                sums.credit += f64::from(host.credit[row][token]);
                if self.first_update {
                    let difference = f64::from((old - log_probs[at]).abs());
                    sums.difference_tokens += 1;
                    sums.difference += difference;
                    sums.difference_max = sums.difference_max.max(difference);
                }
            }
        }
        Ok(sums)
    }

    fn non_finite_loss(&self, row: usize, token: usize, groups: &Range<usize>) -> Error {
        let row = self.batch.starts[groups.start] + row;
        let group = self.batch.starts.partition_point(|&start| start <= row) - 1;
        Error::NonFiniteLoss { group: self.batch.places[group], completion: row - self.batch.starts[group], token }
    }
}

/// Rows of one micro-batch as they are on the host.
struct HostRows<'a> {
    sampled: &'a [&'a [f32]],
    credited: &'a [Vec<f32>],
    credit: &'a [Vec<f32>],
    coefficients: &'a Coefficients,
}
