use std::fmt;
use std::ops::Range;

use super::{CreditAssigner, CreditBatch, CreditInput, TokenCredit};
use crate::error::check_count;
use crate::pass::check_weights;
use crate::{Capability, Error, Group, Observed, Policy, SignalSet, Signals};

/// Credit methods whose weights are multiplied, token by token. The empty list is the base algorithm.
pub struct CreditList<P>(Vec<Box<dyn CreditAssigner<P> + Send>>);

impl<P> FromIterator<Box<dyn CreditAssigner<P> + Send>> for CreditList<P> {
    fn from_iter<I: IntoIterator<Item = Box<dyn CreditAssigner<P> + Send>>>(methods: I) -> Self {
        Self(methods.into_iter().collect())
    }
}

impl<P> fmt::Debug for CreditList<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(CreditAssigner::name)).finish()
    }
}

impl<P> CreditList<P> {
    /// The list of one method.
    pub fn of(method: impl CreditAssigner<P> + Send + 'static) -> Self {
        Self(vec![Box::new(method)])
    }

    /// What all methods together need to see of completions of these prompts.
    ///
    /// # Errors
    /// Those of the methods; [`Error::Conflict`] when two of them want different states.
    pub fn signals(&self, prompts: &[&P]) -> Result<SignalSet, Error> {
        self.0.iter().try_fold(SignalSet::default(), |all, method| {
            let conflict =
                |capability| Error::Conflict { method: method.name().into(), capability: Box::new(capability) };
            all.with(method.signals(prompts)?).map_err(conflict)
        })
    }

    /// Refuses settings that mean nothing, and methods that want something of a policy which it cannot do.
    ///
    /// # Errors
    /// [`Error::Setting`], [`Error::Conflict`] or [`Error::Capability`].
    pub(crate) fn check(&self, policy: &impl Policy<Prompt = P>) -> Result<(), Error> {
        self.signals(&[])?;
        for method in &self.0 {
            method.check()?;
            for capability in method.signals(&[])?.capabilities() {
                offered(policy, method.name(), &capability)?;
            }
        }
        Ok(())
    }

    /// What the methods make of a pass over these groups, for every completion; `signals` covers what was asked for.
    pub(crate) fn observe(&self, groups: &[Group<P>], signals: &Signals) -> Result<Vec<Observed>, Error> {
        let completions: usize = groups.iter().map(|group| group.completions.len()).sum();
        for rows in [&signals.entropy, &signals.top_p_entropy].into_iter().flatten() {
            check_count("completions with entropies", rows.len(), completions)?;
        }
        let new = |at| Observed {
            entropy: row(signals.entropy.as_ref(), at).to_vec(),
            top_p_entropy: row(signals.top_p_entropy.as_ref(), at).to_vec(),
            evidence: Vec::with_capacity(self.0.len()),
        };
        let mut observed: Vec<Observed> = (0..completions).map(new).collect();
        for method in &self.0 {
            let found = method.reduce(groups, signals)?;
            let reads_states = !found.is_empty();
            if reads_states {
                check_count("completions with evidence", found.len(), completions)?;
            }
            let mut found = found.into_iter();
            for observed in &mut observed {
                observed.evidence.push(found.next());
            }
        }
        Ok(observed)
    }

    /// For every method that wants some the omissions of the completions; each is a pass of its own.
    pub(crate) fn omissions(&self, batch: &CreditBatch<'_, P>) -> Vec<(usize, Vec<Option<Range<usize>>>)> {
        let of_method = |method: &dyn CreditAssigner<P>| -> Vec<Option<Range<usize>>> {
            batch.completions.iter().map(|input| method.omission(input)).collect()
        };
        let each = self.0.iter().enumerate().map(|(index, method)| (index, of_method(method.as_ref())));
        each.filter(|(_, omissions)| omissions.iter().any(Option::is_some)).collect()
    }

    /// The product of the methods' weights. `evidence` and `without` of the inputs are filled in here: from what was
    /// observed of each completion, and from the scores without the omissions of each method that has some.
    pub(crate) fn assign<'a>(
        &self,
        mut batch: CreditBatch<'a, P>,
        observed: &[&'a Observed],
        without: &'a [(usize, Vec<Option<Vec<f32>>>)],
    ) -> Result<Vec<TokenCredit>, Error> {
        let all = |input: &CreditInput<'_, P>| TokenCredit::from(vec![1.0; input.completion.tokens.len()]);
        let mut product: Vec<TokenCredit> = batch.completions.iter().map(all).collect();
        for (index, method) in self.0.iter().enumerate() {
            let own = without.iter().find(|(of, _)| *of == index).map(|(_, rows)| rows);
            for (row, input) in batch.completions.iter_mut().enumerate() {
                input.evidence = observed.get(row).and_then(|observed| observed.evidence.get(index)?.as_ref());
                input.without = own.and_then(|rows| rows[row].as_deref());
            }
            let found = method.assign(&batch)?;
            check_count("completions with credit", found.len(), product.len())?;
            for (completion, (product, found)) in product.iter_mut().zip(found).enumerate() {
                check_weights(method.name(), &found, completion, product.weights.len())?;
                product.weights.iter_mut().zip(&found.weights).for_each(|(product, weight)| *product *= weight);
                product.kept = match (product.kept.take(), found.kept) {
                    (Some(one), Some(other)) => Some(one.into_iter().zip(other).map(|(a, b)| a && b).collect()),
                    (one, other) => one.or(other),
                };
                product.evidence = product.evidence.take().or(found.evidence);
            }
        }
        Ok(product)
    }
}

/// The credit of completions that are a rollout by themselves, of signals of a pass that is at hand: for those who look at
/// one. A method with a changed view or an omission needs a trainer.
///
/// # Errors
/// Those of the method.
pub fn assign_from_signals<P>(
    method: &dyn CreditAssigner<P>,
    groups: &[Group<P>],
    signals: &Signals,
) -> Result<Vec<TokenCredit>, Error> {
    let evidence = method.reduce(groups, signals)?;
    let completions = groups
        .iter()
        .enumerate()
        .flat_map(|(index, group)| group.completions.iter().map(move |completion| (index, &group.prompt, completion)));
    let mut inputs = Vec::new();
    for (place, (group, prompt, completion)) in completions.enumerate() {
        inputs.push(CreditInput {
            entropy: row(signals.entropy.as_ref(), place),
            top_p_entropy: row(signals.top_p_entropy.as_ref(), place),
            evidence: evidence.get(place),
            row: place,
            ..CreditInput::of(prompt, group, completion)
        });
    }
    method.assign(&CreditBatch { completions: inputs, seed: 0, step: 0 })
}

/// A row of numbers, empty where they were not asked for.
fn row(rows: Option<&Vec<Vec<f32>>>, row: usize) -> &[f32] {
    rows.and_then(|rows| rows.get(row)).map_or(&[], Vec::as_slice)
}

/// Refuses what a policy does not offer to a method.
pub(crate) fn offered(policy: &impl Policy, method: &str, capability: &Capability) -> Result<(), Error> {
    let refused =
        |reason| Error::Capability { method: method.into(), capability: Box::new(capability.clone()), reason };
    policy.offers(capability).map_err(refused)
}
