//! The second half of a step: from graded groups to a new policy.

use std::ops::Range;
use std::time::{Duration, Instant};

use burn::optim::GradientsParams;

use crate::batch::Batch;
use crate::error::check_count;
use crate::in_order::in_order;
use crate::metrics::{TokenSums, update_metrics};
use crate::pass::{Known, Pass, check_weights, credit_of, signals_of};
use crate::rows::{check_shape, mask, pad, sampled, unpad, values};
use crate::{
    AdvantageEstimator, Coefficients, Completion, Error, Group, KlPenalty, KlPlacement, Metrics, Policy, Reward,
    Scores, SignalSet, Signals, Timing, TokenCredit, Trainer, Update, clip_global_norm, gradients_in_parallel,
    top_entropy_mask,
};

impl<P: Policy> Trainer<P> {
    /// Trains the policy on graded groups.
    ///
    /// Groups whose advantages are all zero are left out: they have nothing to say about the policy, and they are left
    /// out of a KL penalty too. They still count among the completions and tokens that losses are averaged over, so
    /// without a penalty the gradient is exactly that of the whole batch. When no group is left, nothing is updated.
    ///
    /// Completions that were drawn with their credit keep it. For others, with one mini-batch and one pass, credit
    /// comes out of the scoring pass that the gradient needs anyway. With more, credit has to be that of the sampling
    /// policy, so a credit method that wants signals costs one scoring pass without gradients before the first update;
    /// [`crate::Algorithm::top_entropy`] always does.
    ///
    /// # Errors
    /// [`Error::NonFiniteReward`], [`Error::NonFiniteLoss`] or [`Error::NonFiniteGradient`] name the first bad number,
    /// and the policy is left as it was before the optimizer step that met it. Otherwise when the policy or the credit
    /// assigner fails or returns something of the wrong shape, and for settings that cannot be trained with.
    pub fn update(&mut self, groups: &[Group<P::Prompt>], learning_rate: f64) -> Result<Update, Error> {
        self.options.check()?;
        self.algorithm.check()?;
        check_rewards(groups)?;
        let start = Instant::now();
        let charge = self.kl_charge(groups)?;
        let advantages = self.advantages(groups, charge.as_deref())?;
        let batch = self.trained_on(groups, &advantages);
        let known = self.known_beforehand(&batch, &advantages)?;
        let mut timing = Timing { score: start.elapsed(), ..Timing::default() };

        let start = Instant::now();
        let mut credit: Vec<Vec<TokenCredit>> = vec![Vec::new(); groups.len()];
        let (mut sums, mut norms) = (TokenSums::default(), Vec::new());
        let per_mini_batch = groups.len().div_ceil(self.options.mini_batches).max(1);
        for pass in 0..self.options.passes_per_rollout {
            for (index, whole) in groups.chunks(per_mini_batch).enumerate() {
                let first_group = index * per_mini_batch;
                let pieces = batch.groups.partition_point(|&group| group < first_group)
                    ..batch.groups.partition_point(|&group| group < first_group + whole.len());
                if pieces.is_empty() {
                    continue;
                }
                let rows = batch.rows(&pieces);
                let places = &batch.places[rows.clone()];
                let coefficients = self.coefficients(whole, first_group, places);
                let kept = known.entropy.as_ref().zip(self.algorithm.top_entropy);
                let kept = kept.map(|(entropy, share)| top_entropy_mask(&entropy[rows.clone()], share));
                let pass_over = Pass {
                    algorithm: &self.algorithm,
                    credit: self.credit.as_ref(),
                    temperature: self.options.sampling.temperature,
                    batch: &batch,
                    known: &known,
                    first_row: rows.start,
                    coefficients: &coefficients,
                    kept: kept.as_deref(),
                    first_update: norms.is_empty(),
                };
                let (gradients, found, credited) = self.gradients(&pass_over, pieces)?;
                let start_of_optimizer = Instant::now();
                let (gradients, norm) = clip_global_norm(&self.policy, gradients, self.options.max_gradient_norm)?;
                self.policy = self.optimizer.step(learning_rate, self.policy.clone(), gradients);
                timing.optimizer += start_of_optimizer.elapsed();
                sums.add(&found);
                norms.push(norm);
                if pass == 0 {
                    for (&(group, place), credited) in places.iter().zip(credited) {
                        credit[group].resize(groups[group].completions.len(), TokenCredit::default());
                        credit[group][place] = credited;
                    }
                }
            }
        }
        self.refresh_reference();
        let elapsed = start.elapsed().saturating_sub(timing.optimizer);
        let share = |part: Duration| {
            elapsed.mul_f64((part.as_secs_f64() / sums.busy.as_secs_f64().max(f64::MIN_POSITIVE)).min(1.0))
        };
        let (forward, on_credit) = (share(sums.forward), share(sums.on_credit));
        timing.score += forward;
        timing.credit = on_credit;
        timing.update = elapsed.saturating_sub(forward + on_credit);
        let in_loss = self.algorithm.kl.is_some() && charge.is_none();
        let mut metrics = update_metrics(&sums, &norms, in_loss, &credit);
        metrics.extend(charge.map(|charge| charge_metrics(groups, &charge)).into_iter().flatten());
        Ok(Update { advantages, credit, optimizer_steps: norms.len(), trained_tokens: sums.tokens, metrics, timing })
    }

    /// The KL of each completion to the reference, in the order of the groups, where it is charged to the reward.
    fn kl_charge(&self, groups: &[Group<P::Prompt>]) -> Result<Option<Vec<f32>>, Error> {
        let Some(KlPenalty { estimator, placement: KlPlacement::Reward, .. }) = self.algorithm.kl else {
            return Ok(None);
        };
        let reference = self.reference.as_ref().ok_or(Error::MissingReference)?;
        let whole =
            Batch::new(groups, |_, _| true, self.options.micro_batch, |prompt| self.policy.prompt_tokens(prompt));
        let read = |groups: &[_], lengths: &[usize], scores: Scores| {
            let ([_, width], device) = (scores.log_probs.dims(), scores.log_probs.device());
            let mask = mask(lengths, width, &device);
            let sampled = pad(sampled(groups).into_iter(), width, &device);
            let tokens = estimator.estimate(sampled, scores.log_probs * mask.clone()) * mask;
            values(&tokens.sum_dim(1))
        };
        self.score_without_gradients(reference, &whole, |_| Ok(SignalSet::default()), read).map(Some)
    }

    fn advantages(&self, groups: &[Group<P::Prompt>], charge: Option<&[f32]>) -> Result<Vec<Vec<f32>>, Error> {
        let charged: Vec<Vec<Reward>>;
        let rewards: Vec<&[Reward]> = match (charge, self.algorithm.kl) {
            (Some(charge), Some(KlPenalty { coefficient, .. })) => {
                let mut charge = charge.iter();
                charged = groups
                    .iter()
                    .map(|group| {
                        let with_charge = |(reward, &kl): (&Reward, &f32)| match reward.total() {
                            // Who abstains stays out of the baseline.
                            None => reward.clone(),
                            Some(_) => reward.clone().and("kl", Some(kl), -coefficient),
                        };
                        group.rewards.iter().zip(charge.by_ref()).map(with_charge).collect()
                    })
                    .collect();
                charged.iter().map(Vec::as_slice).collect()
            }
            _ => groups.iter().map(|group| group.rewards.as_slice()).collect(),
        };
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

    /// The completions that have something to say: those of groups with an advantage, but for what is masked.
    fn trained_on(&self, groups: &[Group<P::Prompt>], advantages: &[Vec<f32>]) -> Batch<P::Prompt> {
        let moves: Vec<bool> = advantages.iter().map(|group| group.iter().any(|&advantage| advantage != 0.0)).collect();
        let tokens = |group: usize, place: usize| self.trained_length(&groups[group].completions[place]);
        Batch::new(
            groups,
            |group, place| moves[group] && tokens(group, place) > 0,
            self.options.micro_batch,
            |prompt| self.policy.prompt_tokens(prompt),
        )
    }

    /// Tokens of a completion that count in the loss.
    fn trained_length(&self, completion: &Completion) -> usize {
        if self.algorithm.mask_truncated && completion.truncated { 0 } else { completion.tokens.len() }
    }

    /// Coefficients of the rows that are trained on, taken over the whole mini-batch.
    fn coefficients(&self, whole: &[Group<P::Prompt>], first_group: usize, places: &[(usize, usize)]) -> Coefficients {
        let mut starts = Vec::with_capacity(whole.len());
        let mut lengths = Vec::new();
        for group in whole {
            starts.push(lengths.len());
            lengths.extend(group.completions.iter().map(|completion| self.trained_length(completion)));
        }
        let all = self.algorithm.aggregation.coefficients(&lengths);
        let row = |&(group, place): &(usize, usize)| all.completions[starts[group - first_group] + place];
        // The bonus of the tokens that are kept is a mean over them.
        let entropy = all.entropy / self.algorithm.top_entropy.unwrap_or(1.0);
        Coefficients { completions: places.iter().map(row).collect(), entropy }
    }

    /// What takes a scoring pass of its own, before the policy moves.
    fn known_beforehand(&self, batch: &Batch<P::Prompt>, advantages: &[Vec<f32>]) -> Result<Known, Error> {
        let advantages = batch.places.iter().map(|&(group, place)| advantages[group][place]).collect();
        let mut known = Known { advantages, ..Known::default() };
        if self.algorithm.kl.is_some_and(|penalty| penalty.placement != KlPlacement::Reward) {
            let reference = self.reference.as_ref().ok_or(Error::MissingReference)?;
            let read = |_: &[_], lengths: &[usize], scores: Scores| unpad(&scores.log_probs, lengths);
            known.reference =
                Some(self.score_without_gradients(reference, batch, |_| Ok(SignalSet::default()), read)?);
        }
        let credit = self.credit.as_ref();
        let several = self.options.mini_batches * self.options.passes_per_rollout > 1;
        let beforehand = several || self.algorithm.top_entropy.is_some();
        known.credit = drawn_credit(batch)?;
        let mut sees = false;
        if known.credit.is_none() && beforehand {
            sees = signals_of(credit, &batch.pieces)? != SignalSet::default();
            if !sees {
                known.credit = Some(credit_of(credit, &batch.pieces, &Signals::default())?);
            }
        }
        if sees || self.algorithm.top_entropy.is_some() {
            let policy = self.policy.valid().materialize();
            let signals = |groups: &[_]| if sees { signals_of(credit, groups) } else { Ok(SignalSet::default()) };
            let read = |groups: &[_], lengths: &[usize], scores: Scores| {
                let entropy = unpad(&scores.entropy, lengths)?;
                let credit = if sees {
                    credit_of(credit, groups, &scores.signals)?
                } else {
                    vec![TokenCredit::default(); lengths.len()]
                };
                Ok(credit.into_iter().zip(entropy).collect())
            };
            let (credit, entropy) = self.score_without_gradients(&policy, batch, signals, read)?.into_iter().unzip();
            known.credit = if sees { Some(credit) } else { known.credit };
            known.entropy = Some(entropy);
        }
        Ok(known)
    }

    /// Scores every micro-batch without gradients and hands on what `read` makes of it, a row a completion, in order.
    fn score_without_gradients<T: Send>(
        &self,
        policy: &P,
        batch: &Batch<P::Prompt>,
        signals: impl Fn(&[Group<P::Prompt>]) -> Result<SignalSet, Error> + Sync,
        read: impl Fn(&[Group<P::Prompt>], &[usize], Scores) -> Result<Vec<T>, Error> + Sync,
    ) -> Result<Vec<T>, Error> {
        let micro_batches = batch.micro_batches(0..batch.pieces.len());
        let temperature = self.options.sampling.temperature;
        let workers = vec![policy.clone(); self.threads().workers(micro_batches.len())];
        let mut rows = Vec::with_capacity(batch.lengths.len());
        in_order(
            workers,
            self.threads(),
            micro_batches.len(),
            |policy, job| {
                let groups = &batch.pieces[micro_batches[job].clone()];
                let lengths = &batch.lengths[batch.rows(&micro_batches[job])];
                let scores = policy.score(groups, temperature, &signals(groups)?)?;
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

    /// The gradient of an optimizer batch, its sums and its credit.
    fn gradients(
        &self,
        pass: &Pass<'_, P::Prompt>,
        pieces: Range<usize>,
    ) -> Result<(GradientsParams, TokenSums, Vec<TokenCredit>), Error> {
        let micro_batches = pass.batch.micro_batches(pieces);
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

    /// Counts the rollout, and makes the policy the reference where the penalty says so.
    fn refresh_reference(&mut self) {
        self.steps += 1;
        let every = self.algorithm.kl.and_then(|penalty| penalty.refresh_every);
        if every.is_some_and(|every| self.steps.is_multiple_of(every as u64)) {
            self.reference = Some(self.policy.valid().materialize());
        }
    }
}

/// The credit that completions were drawn with; `None` unless all of them were.
fn drawn_credit<P>(batch: &Batch<P>) -> Result<Option<Vec<TokenCredit>>, Error> {
    let completions = batch.pieces.iter().flat_map(|piece| &piece.completions);
    let Some(credit) = completions.map(|completion| completion.credit.clone()).collect::<Option<Vec<_>>>() else {
        return Ok(None);
    };
    for (completion, (credit, &tokens)) in credit.iter().zip(&batch.lengths).enumerate() {
        check_weights(credit, completion, tokens)?;
    }
    Ok(Some(credit))
}

fn check_rewards<P>(groups: &[Group<P>]) -> Result<(), Error> {
    for (index, group) in groups.iter().enumerate() {
        check_count("rewards of a group", group.rewards.len(), group.completions.len())?;
        let finite = |reward: &Reward| reward.parts.iter().all(|part| part.value.is_none_or(f32::is_finite));
        if let Some(completion) = group.rewards.iter().position(|reward| !finite(reward)) {
            return Err(Error::NonFiniteReward { group: index, completion });
        }
    }
    Ok(())
}

/// The KL in the reward: a completion's sum, and the mean over tokens.
fn charge_metrics<P>(groups: &[Group<P>], charge: &[f32]) -> Metrics {
    let tokens: usize = groups.iter().flat_map(|group| &group.completions).map(|answer| answer.tokens.len()).sum();
    let sum: f64 = charge.iter().copied().map(f64::from).sum();
    vec![("reward/kl".into(), sum / charge.len().max(1) as f64), ("kl/mean".into(), sum / tokens.max(1) as f64)]
}
