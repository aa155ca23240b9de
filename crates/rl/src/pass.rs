//! One forward and backward pass: a micro-batch of an optimizer batch.

use std::ops::Range;
use std::time::Instant;

use burn::optim::GradientsParams;

use crate::batch::Batch;
use crate::error::check_count;
use crate::metrics::TokenSums;
use crate::rows::{check_shape, mask, pad, sampled, values};
use crate::{
    Algorithm, Coefficients, CreditAssigner, Error, Group, KlPenalty, LossInput, Policy, PolicyLoss, SignalSet,
    Signals, TokenCredit, TokenLoss,
};

/// What is known of the rows of a batch before the first update. All of it lies on the host.
#[derive(Default)]
pub(crate) struct Known {
    /// One advantage a row.
    pub(crate) advantages: Vec<f32>,
    /// Credit; `None` when it comes with the pass itself.
    pub(crate) credit: Option<Vec<TokenCredit>>,
    /// Log-probabilities under the reference policy, for a KL penalty in the loss.
    pub(crate) reference: Option<Vec<Vec<f32>>>,
    /// Entropies under the sampling policy, where only the highest count.
    pub(crate) entropy: Option<Vec<Vec<f32>>>,
}

/// What the micro-batches of one optimizer batch share.
pub(crate) struct Pass<'a, P> {
    pub(crate) algorithm: &'a Algorithm,
    pub(crate) credit: &'a dyn CreditAssigner<P>,
    pub(crate) temperature: f32,
    pub(crate) batch: &'a Batch<P>,
    pub(crate) known: &'a Known,
    /// First row of the optimizer batch: that of `coefficients` and `kept`.
    pub(crate) first_row: usize,
    pub(crate) coefficients: &'a Coefficients,
    /// See [`LossInput::kept`].
    pub(crate) kept: Option<&'a [Vec<f32>]>,
    pub(crate) first_update: bool,
}

/// What one micro-batch brings home beside its gradient.
pub(crate) struct MicroBatchResult {
    pub(crate) sums: TokenSums,
    pub(crate) credit: Vec<TokenCredit>,
}

/// Rows of one micro-batch as they are on the host.
struct HostRows<'a> {
    sampled: &'a [&'a [f32]],
    credited: &'a [Vec<f32>],
    credit: &'a [TokenCredit],
    coefficients: &'a Coefficients,
}

impl<P: Clone> Pass<'_, P> {
    pub(crate) fn micro_batch<M: Policy<Prompt = P>>(
        &self,
        policy: &M,
        pieces: Range<usize>,
    ) -> Result<(GradientsParams, MicroBatchResult), Error> {
        let start = Instant::now();
        let batch = self.batch;
        let rows = batch.rows(&pieces);
        let lengths = &batch.lengths[rows.clone()];
        let groups = &batch.pieces[pieces];
        let signals = match self.known.credit {
            Some(_) => SignalSet::default(),
            None => signals_of(self.credit, groups)?,
        };
        let mut on_credit = start.elapsed();
        let scores = policy.score(groups, self.temperature, &signals)?;
        check_shape(&scores, lengths)?;
        if !scores.log_probs.is_tracked() {
            return Err(Error::NotDifferentiable);
        }
        let start_of_credit = Instant::now();
        let credit = match &self.known.credit {
            Some(known) => known[rows.clone()].to_vec(),
            None => credit_of(self.credit, groups, &scores.signals)?,
        };
        on_credit += start_of_credit.elapsed();
        let forward = start.elapsed().saturating_sub(on_credit);

        let credited: Vec<Vec<f32>> = credit
            .iter()
            .zip(&self.known.advantages[rows.clone()])
            .map(|(credit, advantage)| credit.weights.iter().map(|weight| weight * advantage).collect())
            .collect();
        let sampled = sampled(groups);
        let own = rows.start - self.first_row..rows.end - self.first_row;

        let width = scores.log_probs.dims()[1];
        let device = scores.log_probs.device();
        let padded = |rows: &[Vec<f32>]| pad(rows.iter().map(Vec::as_slice), width, &device);
        let input = LossInput {
            log_probs: scores.log_probs.clone(),
            old_log_probs: pad(sampled.iter().copied(), width, &device),
            ref_log_probs: self.known.reference.as_ref().map(|reference| padded(&reference[rows.clone()])),
            entropy: scores.entropy.clone(),
            advantages: padded(&credited),
            mask: mask(lengths, width, &device),
            kept: self.kept.map(|kept| padded(&kept[own.clone()])),
        };
        let tokens = self.algorithm.token_loss(input)?;
        let coefficients = Coefficients {
            completions: self.coefficients.completions[own].to_vec(),
            entropy: self.coefficients.entropy,
        };
        let total = self.algorithm.total_loss(&tokens, &coefficients);

        let host = HostRows { sampled: &sampled, credited: &credited, credit: &credit, coefficients: &coefficients };
        let mut sums = self.sums(&tokens, &values(&scores.log_probs)?, &host, rows.start)?;
        sums.positions = scores.positions;
        let gradients = scores.backward(&total, policy);
        sums.forward = forward;
        sums.on_credit = on_credit;
        sums.busy = start.elapsed();
        Ok((gradients, MicroBatchResult { sums, credit }))
    }

    /// Reads the token losses back for the log, and refuses one that is not finite.
    fn sums(
        &self,
        tokens: &TokenLoss,
        log_probs: &[f32],
        host: &HostRows<'_>,
        first_row: usize,
    ) -> Result<TokenSums, Error> {
        let width = tokens.ratio.dims()[1];
        let (surrogate, ratio) = (values(&tokens.surrogate)?, values(&tokens.ratio)?);
        let entropy = values(&tokens.entropy)?;
        let kl = tokens.kl.as_ref().map(values).transpose()?;
        let kl_coefficient = self.algorithm.kl.map_or(0.0, |KlPenalty { coefficient, .. }| f64::from(coefficient));

        let mut sums = TokenSums::default();
        for (row, sampled) in host.sampled.iter().enumerate() {
            let coefficient = f64::from(host.coefficients.completions[row]);
            for (token, &old) in sampled.iter().enumerate() {
                let at = row * width + token;
                let kl = kl.as_ref().map_or(0.0, |kl| f64::from(kl[at]));
                let surrogate = f64::from(surrogate[at]);
                if !(surrogate + kl + f64::from(entropy[at])).is_finite() {
                    let (group, completion) = self.batch.places[first_row + row];
                    return Err(Error::NonFiniteLoss { group, completion, token });
                }
                sums.tokens += 1;
                sums.policy_loss += coefficient * surrogate;
                sums.kl_loss += coefficient * kl_coefficient * kl;
                sums.kl += kl;
                sums.entropy += f64::from(entropy[at]);
                sums.ratio += f64::from(ratio[at]);
                sums.ratio_max = sums.ratio_max.max(f64::from(ratio[at]));
                sums.count_clip(self.algorithm.surrogate.clipped(ratio[at], host.credited[row][token]));
                sums.credit += f64::from(host.credit[row].weights[token]);
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
}

/// What an assigner wants to see of groups.
pub(crate) fn signals_of<P>(credit: &dyn CreditAssigner<P>, groups: &[Group<P>]) -> Result<SignalSet, Error> {
    credit.signals(&groups.iter().map(|group| &group.prompt).collect::<Vec<_>>())
}

/// What an assigner makes of groups, with a weight for every token.
pub(crate) fn credit_of<P>(
    credit: &dyn CreditAssigner<P>,
    groups: &[Group<P>],
    signals: &Signals,
) -> Result<Vec<TokenCredit>, Error> {
    let found = credit.assign(groups, signals)?;
    let completions = || groups.iter().flat_map(|group| &group.completions);
    check_count("completions with credit", found.len(), completions().count())?;
    for (completion, (credit, answer)) in found.iter().zip(completions()).enumerate() {
        check_weights(credit, completion, answer.tokens.len())?;
    }
    Ok(found)
}

/// Refuses credit that is not one weight a token.
pub(crate) fn check_weights(credit: &TokenCredit, completion: usize, tokens: usize) -> Result<(), Error> {
    let found = credit.weights.len();
    if found == tokens { Ok(()) } else { Err(Error::CreditLength { completion, found, expected: tokens }) }
}
