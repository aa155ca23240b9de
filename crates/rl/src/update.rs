//! The second half of a step: from graded groups to a new policy.

use std::ops::Range;
use std::time::Instant;

use burn::optim::GradientsParams;

use crate::batch::Batch;
use crate::beforehand::score;
use crate::error::check_count;
use crate::metrics::{TokenSums, update_metrics};
use crate::pass::Pass;
use crate::rows::{drawn_with, mask, pad, sampled, values};
use crate::{
    AdvantageEstimator, AdvantageInput, Coefficients, Completion, Error, Group, KlPenalty, KlPlacement, Metrics,
    Policy, Reward, SignalSet, Timing, TokenCredit, Trainer, Update, clip_global_norm, gradients_in_parallel,
    spectral_entropy, top_entropy_mask,
};

impl<P: Policy> Trainer<P> {
    /// Trains the policy on graded groups.
    ///
    /// Groups whose advantages are all zero are left out: they have nothing to say about the policy, and they are left
    /// out of a KL penalty too. They still count among the completions and tokens that losses are averaged over, so
    /// without a penalty the gradient is exactly that of the whole batch. When no group is left, nothing is updated.
    ///
    /// Credit is assigned once, before the policy moves, over all completions that are trained on. Where the sampler
    /// handed out what it reads, and no changed view is among that, it takes no pass; else one without gradients for
    /// what a scoring pass has, and one for each view. [`crate::Algorithm::top_entropy`] reads in the same way.
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
        let (known, on_credit) = self.known_beforehand(&batch, &advantages)?;
        let mut timing =
            Timing { score: start.elapsed().saturating_sub(on_credit), credit: on_credit, ..Timing::default() };

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
                let scales = self.scales(&known.credit[rows.clone()]);
                let kept = known.entropy.as_ref().zip(self.algorithm.top_entropy);
                let kept = kept.map(|(entropy, share)| {
                    let mut kept = top_entropy_mask(&entropy[rows.clone()], share);
                    // Nobody looked at the entropies of what an expert wrote.
                    for (kept, &length) in kept.iter_mut().zip(&batch.lengths[rows.clone()]) {
                        kept.resize(length, 1.0);
                    }
                    kept
                });
                let pass_over = Pass {
                    algorithm: &self.algorithm,
                    temperature: self.options.sampling.temperature,
                    batch: &batch,
                    known: &known,
                    first_row: rows.start,
                    coefficients: &coefficients,
                    scales: &scales,
                    kept: kept.as_deref(),
                    first_update: norms.is_empty(),
                };
                let (gradients, found) = self.gradients(&pass_over, pieces)?;
                let start_of_optimizer = Instant::now();
                let (gradients, norm) = clip_global_norm(&self.policy, gradients, self.options.max_gradient_norm)?;
                self.policy = self.optimizer.step(learning_rate, self.policy.clone(), gradients);
                timing.optimizer += start_of_optimizer.elapsed();
                sums.add(&found);
                norms.push(norm);
                if pass == 0 {
                    for (&(group, place), credited) in places.iter().zip(&known.credit[rows]) {
                        credit[group].resize(groups[group].completions.len(), TokenCredit::default());
                        credit[group][place] = credited.clone();
                    }
                }
            }
        }
        self.refresh_reference();
        let elapsed = start.elapsed().saturating_sub(timing.optimizer);
        let share = (sums.forward.as_secs_f64() / sums.busy.as_secs_f64().max(f64::MIN_POSITIVE)).min(1.0);
        let forward = elapsed.mul_f64(share);
        timing.score += forward;
        timing.update = elapsed.saturating_sub(forward);
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
        let (whole, temperature) = (self.batch(groups, |_, _| true), self.options.sampling.temperature);
        let charge = |policy: &P, pieces: Range<usize>| {
            let (groups, lengths) = (&whole.pieces[pieces.clone()], &whole.lengths[whole.rows(&pieces)]);
            let scores = score(policy, groups, lengths, temperature, &SignalSet::default())?;
            let ([_, width], device) = (scores.log_probs.dims(), scores.log_probs.device());
            let mask = mask(lengths, width, &device);
            let sampled = pad(sampled(groups).into_iter(), width, &device);
            let tokens = estimator.estimate(sampled, scores.log_probs * mask.clone()) * mask;
            values(&tokens.sum_dim(1))
        };
        self.over_micro_batches(reference, &whole, charge).map(Some)
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
        let log_probs: Vec<Vec<&[f32]>> =
            groups.iter().map(|group| group.completions.iter().map(drawn_with).collect()).collect();
        let perceptual_entropy =
            if self.algorithm.advantage.reads_features() { Some(self.perceptual_entropies(groups)?) } else { None };
        let input = AdvantageInput {
            rewards: &rewards,
            log_probs: &log_probs,
            perceptual_entropy: perceptual_entropy.as_deref(),
        };
        let mut advantages = self.algorithm.advantage.advantages(&input);
        check_count("groups of advantages", advantages.len(), groups.len())?;
        for (group, (advantages, rewards)) in advantages.iter().zip(&rewards).enumerate() {
            check_count("advantages of a group", advantages.len(), rewards.len())?;
            if let Some(completion) = advantages.iter().position(|advantage| !advantage.is_finite()) {
                return Err(Error::NonFiniteAdvantage { group, completion });
            }
        }
        for (group, advantages) in groups.iter().zip(&mut advantages) {
            let factor = self.algorithm.filtered(group)?;
            for advantage in advantages {
                *advantage *= factor;
            }
        }
        Ok(advantages)
    }

    /// The spectral entropy of the features of what each group's prompt shows; a mean over several things, zero of none.
    fn perceptual_entropies(&self, groups: &[Group<P::Prompt>]) -> Result<Vec<f64>, Error> {
        let policy = self.policy.valid().materialize();
        let of_group = |group: &Group<P::Prompt>| {
            let shown = policy.features(&group.prompt)?;
            let entropies = shown.into_iter().map(|features| {
                let dims = features.dims();
                Ok(spectral_entropy(&values(&features)?, dims))
            });
            let entropies = entropies.collect::<Result<Vec<f64>, Error>>()?;
            Ok(entropies.iter().sum::<f64>() / entropies.len().max(1) as f64)
        };
        groups.iter().map(of_group).collect()
    }

    /// The completions that have something to say: those of groups with an advantage, but for what is masked.
    fn trained_on(&self, groups: &[Group<P::Prompt>], advantages: &[Vec<f32>]) -> Batch<P::Prompt> {
        let moves: Vec<bool> = advantages.iter().map(|group| group.iter().any(|&advantage| advantage != 0.0)).collect();
        let tokens = |group: usize, place: usize| self.trained_length(&groups[group].completions[place]);
        self.batch(groups, |group, place| moves[group] && tokens(group, place) > 0)
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

    /// The factors that turn means of the loss over all tokens of these rows into means over those that credit keeps.
    /// Completions that are not trained on are taken to keep as much.
    fn scales(&self, credit: &[TokenCredit]) -> Vec<f32> {
        if credit.iter().all(|credit| credit.kept.is_none()) {
            return vec![1.0; credit.len()];
        }
        let kept = |credit: &TokenCredit| match &credit.kept {
            Some(kept) => kept.iter().filter(|&&kept| kept).count(),
            None => credit.weights.len(),
        };
        let weigh = |lengths: &[usize]| self.algorithm.aggregation.coefficients(lengths).completions;
        let over_kept = weigh(&credit.iter().map(kept).collect::<Vec<_>>());
        let over_all = weigh(&credit.iter().map(|credit| credit.weights.len()).collect::<Vec<_>>());
        over_kept.into_iter().zip(over_all).map(|(kept, all)| kept / all).collect()
    }

    /// The gradient of an optimizer batch, and its sums.
    fn gradients(
        &self,
        pass: &Pass<'_, P::Prompt>,
        pieces: Range<usize>,
    ) -> Result<(GradientsParams, TokenSums), Error> {
        let micro_batches = pass.batch.micro_batches(pieces);
        let (gradients, found) =
            gradients_in_parallel(&self.policy, micro_batches.len(), self.options.threads, |policy, job| {
                pass.micro_batch(policy, micro_batches[job].clone())
            })?;
        let mut sums = TokenSums::default();
        for found in &found {
            sums.add(found);
        }
        Ok((gradients, sums))
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
