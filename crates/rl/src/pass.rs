//! One forward and backward pass: a micro-batch of an optimizer batch.

use std::ops::Range;
use std::time::Instant;

use burn::optim::GradientsParams;

use crate::batch::Batch;
use crate::metrics::TokenSums;
use crate::rows::{check_shape, mask, pad, sampled, values};
use crate::{
    Algorithm, Coefficients, Completion, Error, Group, KlPenalty, LossInput, Policy, PolicyLoss, SignalSet,
    TokenCredit, TokenLoss,
};

/// What is known of the rows of a batch before the first update. All of it lies on the host.
#[derive(Default)]
pub(crate) struct Known {
    /// One advantage a row.
    pub(crate) advantages: Vec<f32>,
    /// Credit of every row.
    pub(crate) credit: Vec<TokenCredit>,
    /// Log-probabilities under the reference policy, for a KL penalty in the loss.
    pub(crate) reference: Option<Vec<Vec<f32>>>,
    /// Entropies under the sampling policy, where only the highest count.
    pub(crate) entropy: Option<Vec<Vec<f32>>>,
}

/// What the micro-batches of one optimizer batch share.
pub(crate) struct Pass<'a, P> {
    pub(crate) algorithm: &'a Algorithm,
    pub(crate) temperature: f32,
    pub(crate) batch: &'a Batch<P>,
    pub(crate) known: &'a Known,
    /// First row of the optimizer batch: that of `coefficients` and `kept`.
    pub(crate) first_row: usize,
    pub(crate) coefficients: &'a Coefficients,
    /// For every row of the optimizer batch the factor of its advantage that makes means of the loss be over the tokens
    /// that credit keeps.
    pub(crate) scales: &'a [f32],
    /// See [`LossInput::kept`].
    pub(crate) kept: Option<&'a [Vec<f32>]>,
    pub(crate) first_update: bool,
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
    ) -> Result<(GradientsParams, TokenSums), Error> {
        let start = Instant::now();
        let batch = self.batch;
        let rows = batch.rows(&pieces);
        let lengths = &batch.lengths[rows.clone()];
        let groups = &batch.pieces[pieces];
        let scores = policy.score(groups, self.temperature, &SignalSet::default())?;
        check_shape(&scores, lengths)?;
        if !scores.log_probs.is_tracked() {
            return Err(Error::NotDifferentiable);
        }
        let forward = start.elapsed();

        let own = rows.start - self.first_row..rows.end - self.first_row;
        let credit = &self.known.credit[rows.clone()];
        let credited: Vec<Vec<f32>> = credit
            .iter()
            .zip(&self.known.advantages[rows.clone()])
            .zip(&self.scales[own.clone()])
            .map(|((credit, advantage), scale)| {
                credit.weights.iter().map(|weight| weight * advantage * scale).collect()
            })
            .collect();
        let sampled = sampled(groups);

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
            expert: experts(groups).map(|experts| padded(&experts)),
        };
        let tokens = self.algorithm.token_loss(input)?;
        let coefficients = Coefficients {
            completions: self.coefficients.completions[own].to_vec(),
            entropy: self.coefficients.entropy,
        };
        let total = self.algorithm.total_loss(&tokens, &coefficients);

        let host = HostRows { sampled: &sampled, credited: &credited, credit, coefficients: &coefficients };
        let mut sums = self.sums(&tokens, &values(&scores.log_probs)?, &host, rows.start)?;
        sums.positions = scores.positions;
        let gradients = scores.backward(&total, policy);
        sums.forward = forward;
        sums.busy = start.elapsed();
        Ok((gradients, sums))
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

/// One for every token of completions that an expert wrote, zero for the others; `None` where there are none.
fn experts<P>(groups: &[Group<P>]) -> Option<Vec<Vec<f32>>> {
    let completions = || groups.iter().flat_map(|group| &group.completions);
    let row = |completion: &Completion| vec![f32::from(u8::from(completion.expert)); completion.tokens.len()];
    completions().any(|completion| completion.expert).then(|| completions().map(row).collect())
}

/// Refuses credit that is not one sound weight a token.
pub(crate) fn check_weights(method: &str, credit: &TokenCredit, completion: usize, tokens: usize) -> Result<(), Error> {
    let kept = credit.kept.as_ref().map_or(tokens, Vec::len);
    if let Some(found) = [credit.weights.len(), kept].into_iter().find(|&found| found != tokens) {
        return Err(Error::CreditLength { completion, found, expected: tokens });
    }
    let unsound = |weight: &f32| !(weight.is_finite() && *weight >= 0.0);
    match credit.weights.iter().position(unsound) {
        None => Ok(()),
        Some(token) => {
            Err(Error::CreditWeight { method: method.into(), completion, token, weight: credit.weights[token] })
        }
    }
}
