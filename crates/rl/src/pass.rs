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
    Signals, TokenLoss,
};

/// What is known of the rows of a batch before the first update. All of it lies on the host.
#[derive(Default)]
pub(crate) struct Known {
    /// One advantage a row.
    pub(crate) advantages: Vec<f32>,
    /// Credit weights; `None` when they come with the pass itself.
    pub(crate) credit: Option<Vec<Vec<f32>>>,
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
    pub(crate) credit: Vec<Vec<f32>>,
}

/// Rows of one micro-batch as they are on the host.
struct HostRows<'a> {
    sampled: &'a [&'a [f32]],
    credited: &'a [Vec<f32>],
    credit: &'a [Vec<f32>],
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
        let signals = if self.known.credit.is_some() { SignalSet::default() } else { self.credit.signals() };
        let scores = policy.score(groups, self.temperature, signals)?;
        check_shape(&scores, lengths)?;
        if !scores.log_probs.is_tracked() {
            return Err(Error::NotDifferentiable);
        }
        let credit = match &self.known.credit {
            Some(known) => known[rows.clone()].to_vec(),
            None => credit_weights(self.credit, groups, lengths, &scores.signals)?,
        };
        let forward = start.elapsed();

        let credited: Vec<Vec<f32>> = credit
            .iter()
            .zip(&self.known.advantages[rows.clone()])
            .map(|(weights, advantage)| weights.iter().map(|weight| weight * advantage).collect())
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
            entropy: scores.entropy,
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
        let gradients = GradientsParams::from_grads(total.backward(), policy);
        sums.forward = forward;
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
}

/// Weights of an assigner, checked against the lengths they have to have.
pub(crate) fn credit_weights<P>(
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
