//! How a token is chosen from the distribution over the vocabulary, and what a checkpoint says about it.

use std::collections::BinaryHeap;
use std::path::Path;

use rand::{Rng, RngExt};
use serde::Deserialize;

use crate::Error;
use crate::model::TokenMask;

/// How a token is chosen. Applied in the order of the fields, as transformers does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Softmax temperature; `0` takes the most likely token.
    pub temperature: f32,
    /// Only the `top_k` most likely tokens; `0` for all.
    pub top_k: usize,
    /// Only the most likely tokens that have this probability together (arXiv 1904.09751); `1` for all.
    pub top_p: f32,
    /// Only tokens at least this share as likely as the most likely one (arXiv 2407.01082); `0` for all.
    pub min_p: f32,
}

impl Sampling {
    /// The most likely token, always.
    pub const GREEDY: Self = Self { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0 };

    /// The model's whole distribution at a temperature.
    #[must_use]
    pub fn at(temperature: f32) -> Self {
        Self { temperature, ..Self::GREEDY }
    }
}

/// Draws tokens; keeps its memory from one to the next.
#[derive(Debug)]
pub(crate) struct Sampler {
    sampling: Sampling,
    /// See [`Probe::top_p_entropy`](crate::Probe::top_p_entropy).
    top_p_entropy: Option<f32>,
    /// Allowed tokens with their likelihood relative to the most likely one.
    weights: Vec<(usize, f64)>,
}

/// A token that was drawn, and what there is to say about the distribution at the temperature (at 1 if that is 0) over
/// all tokens that the mask allows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Drawn {
    pub(crate) token: u32,
    pub(crate) log_prob: f32,
    /// In nats.
    pub(crate) entropy: f32,
    /// Where it is asked for.
    pub(crate) top_p_entropy: Option<f32>,
}

/// What the likelihoods of all tokens that can be drawn, relative to that of the most likely one, come to.
#[derive(Clone, Copy)]
struct Weighed {
    best: usize,
    /// Its logit.
    highest: f32,
    total: f64,
    /// Not yet divided by `total`: the mean of the logarithms.
    mean: f64,
}

impl Sampler {
    pub(crate) fn new(sampling: Sampling, top_p_entropy: Option<f32>) -> Self {
        Self { sampling, top_p_entropy, weights: Vec::new() }
    }

    /// One token of the distribution of `logits`, or of that of `chosen_by`: what is said about it is of `logits` all
    /// the same. `None` when the logits of what `mask` allows are not all finite, or it allows nothing.
    pub(crate) fn draw(
        &mut self,
        logits: &[f32],
        chosen_by: Option<&[f32]>,
        mask: &TokenMask,
        stream: &mut impl Rng,
    ) -> Option<Drawn> {
        let said = self.weigh(logits, mask)?;
        let top_p_entropy = self.top_p_entropy.map(|share| self.entropy_of_most_likely(f64::from(share) * said.total));
        let Weighed { best, total, .. } = match chosen_by {
            Some(logits) => self.weigh(logits, mask)?,
            None => said,
        };
        let token = if self.sampling.temperature <= 0.0 { best } else { self.choose(best, total, stream) };
        Some(Drawn {
            token: token as u32,
            log_prob: (self.relative(logits[token], said.highest).exp() / said.total).ln() as f32,
            entropy: (said.total.ln() - said.mean / said.total) as f32,
            top_p_entropy,
        })
    }

    /// Logarithm of how likely a token is at the temperature (at 1 if that is 0), relative to one of the logit
    /// `highest`.
    fn relative(&self, logit: f32, highest: f32) -> f64 {
        let temperature = self.sampling.temperature;
        let temperature = if temperature <= 0.0 { 1.0 } else { f64::from(temperature) };
        (f64::from(logit) - f64::from(highest)) / temperature
    }

    fn weigh(&mut self, logits: &[f32], mask: &TokenMask) -> Option<Weighed> {
        let allowed = || logits.iter().enumerate().filter(|&(id, _)| mask.allows(id));
        let likelier =
            |best: (usize, f32), (id, &logit): (usize, &f32)| if logit > best.1 { (id, logit) } else { best };
        let (best, highest) = allowed().fold((0, f32::NEG_INFINITY), likelier);
        self.weights.clear();
        let (mut total, mut mean) = (0.0, 0.0);
        for (id, &logit) in allowed() {
            let relative = self.relative(logit, highest);
            let weight = relative.exp();
            total += weight;
            mean += weighted(weight, relative);
            self.weights.push((id, weight));
        }
        (highest.is_finite() && total.is_finite()).then_some(Weighed { best, highest, total, mean })
    }

    /// Entropy of the most likely tokens that weigh `enough` together. Few do, mostly, so they are taken off a heap one
    /// after another, which is less than to sort the vocabulary.
    fn entropy_of_most_likely(&self, enough: f64) -> f32 {
        // Numbers that are not negative are in the order of their bits.
        let mut heap: BinaryHeap<u64> = self.weights.iter().map(|(_, weight)| weight.to_bits()).collect();
        let (mut total, mut mean) = (0.0, 0.0);
        while total < enough
            && let Some(weight) = heap.pop().map(f64::from_bits)
        {
            total += weight;
            mean += weighted(weight, weight.ln());
        }
        (total.ln() - mean / total) as f32
    }

    fn choose(&mut self, best: usize, total: f64, stream: &mut impl Rng) -> usize {
        let Sampling { top_k, top_p, min_p, .. } = self.sampling;
        let mut total = total;
        if top_k > 0 || top_p < 1.0 || min_p > 0.0 {
            // Of equally likely tokens the one of the lowest id comes first.
            self.weights.sort_by(|(_, a), (_, b)| b.total_cmp(a));
            if top_k > 0 {
                self.weights.truncate(top_k);
            }
            let mut remaining = f64::from(top_p) * self.weights.iter().map(|(_, weight)| weight).sum::<f64>();
            let enough = |&(_, weight): &(usize, f64)| {
                let needed = remaining > 0.0;
                remaining -= weight;
                !needed
            };
            if top_p < 1.0 {
                // The token that reaches the probability belongs to those that have it.
                let end = self.weights.iter().position(enough).unwrap_or(self.weights.len());
                self.weights.truncate(end.max(1));
            }
            self.weights.retain(|&(_, weight)| weight >= f64::from(min_p));
            total = self.weights.iter().map(|(_, weight)| weight).sum();
        }
        let mut remaining = stream.random::<f64>() * total;
        let chosen = self.weights.iter().find(|(_, weight)| {
            remaining -= weight;
            remaining < 0.0
        });
        // Rounding can leave a sliver after the last token; the most likely one takes it.
        chosen.map_or(best, |&(id, _)| id)
    }
}

/// Logits of `log p + gamma (log p - log q)`, p being the distribution of `policy` and q that of `base` over the tokens
/// that `mask` allows; those of p where the divergence of p from q is below `threshold` nats.
pub(crate) fn extrapolated(policy: &[f32], base: &[f32], mask: &TokenMask, gamma: f32, threshold: f32) -> Vec<f32> {
    let allowed = || (0..policy.len()).filter(|&id| mask.allows(id));
    let normaliser = |logits: &[f32]| {
        let highest = allowed().fold(f32::NEG_INFINITY, |highest, id| highest.max(logits[id]));
        let relative = |id| (f64::from(logits[id]) - f64::from(highest)).exp();
        f64::from(highest) + allowed().map(relative).sum::<f64>().ln()
    };
    let (of_policy, of_base) = (normaliser(policy), normaliser(base));
    let log_prob = |id: usize| f64::from(policy[id]) - of_policy;
    let gained = |id: usize| log_prob(id) - (f64::from(base[id]) - of_base);
    let divergence: f64 = allowed().map(|id| weighted(log_prob(id).exp(), gained(id))).sum();
    if divergence < f64::from(threshold) {
        return policy.to_vec();
    }
    (0..policy.len()).map(|id| (f64::from(policy[id]) + f64::from(gamma) * gained(id)) as f32).collect()
}

/// A logarithm times its weight: nothing where that is zero, although the logarithm is infinite.
fn weighted(weight: f64, logarithm: f64) -> f64 {
    weight * logarithm.max(f64::MIN)
}

/// `generation_config.json`: how the publisher of a checkpoint draws from it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct GenerationConfig {
    pub(crate) eos_token_id: TokenIds,
    pub(crate) pad_token_id: Option<u32>,
    do_sample: bool,
    temperature: Option<f32>,
    top_k: Option<usize>,
    top_p: Option<f32>,
    min_p: Option<f32>,
}

/// One id, several, or none.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(untagged)]
pub(crate) enum TokenIds {
    #[default]
    None,
    One(u32),
    Several(Vec<u32>),
}

impl TokenIds {
    pub(crate) fn as_slice(&self) -> &[u32] {
        match self {
            Self::None => &[],
            Self::One(id) => std::slice::from_ref(id),
            Self::Several(ids) => ids,
        }
    }
}

impl GenerationConfig {
    /// What the directory says; nothing where it has no such file.
    pub(crate) fn from_dir(dir: &Path) -> Result<Self, Error> {
        let path = dir.join("generation_config.json");
        if path.exists() { crate::read_json(&path) } else { Ok(Self::default()) }
    }

    pub(crate) fn sampling(&self) -> Sampling {
        Sampling {
            temperature: if self.do_sample { self.temperature.unwrap_or(1.0) } else { 0.0 },
            // The default of transformers.
            top_k: self.top_k.unwrap_or(50),
            top_p: self.top_p.unwrap_or(1.0),
            min_p: self.min_p.unwrap_or(0.0),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// Logits of these probabilities.
    const PROBABILITIES: [f32; 5] = [0.1, 0.4, 0.05, 0.25, 0.2];

    /// How often each token is drawn in 20,000 tries.
    fn shares(sampling: Sampling, mask: &TokenMask) -> Vec<f64> {
        let logits = PROBABILITIES.map(f32::ln);
        let (mut sampler, mut stream) = (Sampler::new(sampling, None), ChaCha8Rng::seed_from_u64(3));
        let mut counts = vec![0.0; logits.len()];
        for _ in 0..20_000 {
            let Drawn { token, log_prob, .. } = sampler.draw(&logits, None, mask, &mut stream).unwrap();
            counts[token as usize] += 1.0 / 20_000.0;
            let allowed: f32 = (0..5).filter(|&id| mask.allows(id)).map(|id| PROBABILITIES[id]).sum();
            let expected = (PROBABILITIES[token as usize] / allowed).ln();
            assert!((log_prob - expected).abs() < 1e-5, "{token}: {log_prob} instead of {expected}");
        }
        counts
    }

    fn expect(sampling: Sampling, expected: [f64; 5]) {
        let found = shares(sampling, &TokenMask::new(5, []).unwrap());
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 0.015 && (*found == 0.0) == (expected == 0.0), "{sampling:?}: {found}");
        }
    }

    #[test]
    fn every_filter_keeps_its_tokens() {
        let all = Sampling::at(1.0);
        expect(all, [0.1, 0.4, 0.05, 0.25, 0.2]);
        expect(Sampling { top_k: 2, ..all }, [0.0, 0.4 / 0.65, 0.0, 0.25 / 0.65, 0.0]);
        // 0.4 + 0.25 do not reach 0.7, 0.2 more do.
        expect(Sampling { top_p: 0.7, ..all }, [0.0, 0.4 / 0.85, 0.0, 0.25 / 0.85, 0.2 / 0.85]);
        // The least set is never empty.
        expect(Sampling { top_p: 0.0, ..all }, [0.0, 1.0, 0.0, 0.0, 0.0]);
        // Half of 0.4 is 0.2, and rounding decides nothing at 0.45.
        expect(Sampling { min_p: 0.45, ..all }, [0.0, 0.4 / 0.85, 0.0, 0.25 / 0.85, 0.2 / 0.85]);
        // Of the three most likely, 0.4 and 0.25 have 0.76 of the probability, 0.4 alone 0.47.
        expect(Sampling { top_k: 3, top_p: 0.7, ..all }, [0.0, 0.4 / 0.65, 0.0, 0.25 / 0.65, 0.0]);
        expect(Sampling::GREEDY, [0.0, 1.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn what_is_masked_counts_nowhere() {
        let mask = TokenMask::new(5, [1]).unwrap();
        let found = shares(Sampling { top_k: 2, ..Sampling::at(1.0) }, &mask);
        assert!(found[1] == 0.0 && (found[3] - 0.25 / 0.45).abs() < 0.015 && (found[4] - 0.2 / 0.45).abs() < 0.015);
    }

    #[test]
    fn entropies_are_those_of_the_whole_and_of_the_most_likely_tokens() {
        let probabilities: [f32; 6] = [0.15, 0.5, 0.05, 0.3, 0.0, 7.0];
        // What cannot be drawn counts nowhere, and what never is adds nothing.
        let (mask, logits) = (TokenMask::new(6, [5]).unwrap(), probabilities.map(f32::ln));
        let entropy = |probabilities: &[f64]| {
            let total: f64 = probabilities.iter().sum();
            -probabilities.iter().map(|p| p / total * (p / total).ln()).sum::<f64>()
        };
        let draw = |temperature, share| {
            let mut sampler = Sampler::new(Sampling::at(temperature), Some(share));
            sampler.draw(&logits, None, &mask, &mut ChaCha8Rng::seed_from_u64(3)).unwrap()
        };
        let whole = [0.5, 0.3, 0.15, 0.05];
        // 0.625 ln 1.6 + 0.375 ln 2.6667 = 0.293752 + 0.367811.
        assert!((entropy(&whole[..2]) - 0.661_563).abs() < 1e-6);
        for (share, tokens) in [(0.3, 1), (0.49, 1), (0.51, 2), (0.7, 2), (0.79, 2), (0.81, 3), (0.96, 4), (1.0, 4)] {
            let drawn = draw(1.0, share);
            assert!((f64::from(drawn.entropy) - entropy(&whole)).abs() < 1e-6, "{drawn:?}");
            let expected = entropy(&whole[..tokens]);
            assert!((f64::from(drawn.top_p_entropy.unwrap()) - expected).abs() < 1e-6, "{share}: {drawn:?}");
        }
        // At half the temperature probabilities are squared: 0.25, 0.09, 0.0225, 0.0025, of 0.365 together.
        let (squared, drawn) = (whole.map(|p| p * p), draw(0.5, 0.9));
        assert!((f64::from(drawn.entropy) - entropy(&squared)).abs() < 1e-6, "{drawn:?}");
        assert!((f64::from(drawn.top_p_entropy.unwrap()) - entropy(&squared[..2])).abs() < 1e-6, "{drawn:?}");
    }

    #[test]
    fn what_was_gained_over_a_base_is_extrapolated() {
        // The last token cannot be drawn, and counts nowhere.
        let mask = TokenMask::new(4, [3]).unwrap();
        // Logits are known but for a constant.
        let logits = |p: [f32; 3], constant: f32| [p[0], p[1], p[2], 50.0].map(|p| p.ln() + constant);
        let (policy, base) = (logits([0.5, 0.3, 0.2], 3.0), logits([0.4, 0.4, 0.2], -2.0));
        let probabilities = |logits: &[f32], temperature: f32| {
            let weights: Vec<f32> = logits[..3].iter().map(|logit| (logit / temperature).exp()).collect();
            weights.iter().map(|weight| weight / weights.iter().sum::<f32>()).collect::<Vec<_>>()
        };
        let near = |found: &[f32], expected: [f32; 3], tolerance| {
            assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < tolerance), "{found:?}, not {expected:?}");
        };
        // p^2 / q is 0.625, 0.225, 0.2.
        let found = extrapolated(&policy, &base, &mask, 1.0, 0.0);
        near(&probabilities(&found, 1.0), [0.595_238, 0.214_286, 0.190_476], 1e-6);
        assert_eq!(extrapolated(&policy, &base, &mask, 0.0, 0.0), policy);
        assert_eq!(extrapolated(&policy, &policy, &mask, 3.0, 0.0), policy);
        // The divergence is 0.5 ln 1.25 + 0.3 ln 0.75 = 0.025267.
        assert_eq!(extrapolated(&policy, &base, &mask, 1.0, 0.02526), found);
        assert_eq!(extrapolated(&policy, &base, &mask, 1.0, 0.02528), policy);

        // The temperature comes behind it, and what is said of the token is of the policy at that temperature.
        let (mut sampler, mut stream) = (Sampler::new(Sampling::at(0.5), None), ChaCha8Rng::seed_from_u64(3));
        let (mut shares, said) = ([0.0; 3], probabilities(&policy, 0.5));
        for _ in 0..20_000 {
            let drawn = sampler.draw(&policy, Some(&found), &mask, &mut stream).unwrap();
            shares[drawn.token as usize] += 1.0 / 20_000.0;
            assert!((drawn.log_prob - said[drawn.token as usize].ln()).abs() < 1e-6);
            let entropy: f32 = -said.iter().map(|p| p * p.ln()).sum::<f32>();
            assert!((drawn.entropy - entropy).abs() < 1e-6);
        }
        // 0.595238, 0.214286 and 0.190476 squared, renormalised.
        near(&shares, [0.811_688, 0.105_195, 0.083_117], 0.015);
        // 0.4^2 / 0.5, 0.35^2 / 0.2, 0.25^2 / 0.3: the most likely token is another one.
        let (policy, base) = (logits([0.4, 0.35, 0.25], 0.0), logits([0.5, 0.2, 0.3], 0.0));
        let found = extrapolated(&policy, &base, &mask, 1.0, 0.0);
        let mut greedy = Sampler::new(Sampling::GREEDY, None);
        assert_eq!(greedy.draw(&policy, None, &mask, &mut stream).unwrap().token, 0);
        assert_eq!(greedy.draw(&policy, Some(&found), &mask, &mut stream).unwrap().token, 1);
    }

    #[test]
    fn broken_logits_draw_nothing() {
        let (mut sampler, mut stream) = (Sampler::new(Sampling::at(1.0), None), ChaCha8Rng::seed_from_u64(3));
        let mask = TokenMask::new(2, []).unwrap();
        for broken in [[f32::NAN, 1.0], [1.0, f32::NAN], [f32::INFINITY, 1.0], [f32::NEG_INFINITY; 2]] {
            assert_eq!(sampler.draw(&broken, None, &mask, &mut stream), None);
        }
        assert!(sampler.draw(&[f32::NEG_INFINITY, 1.0], None, &mask, &mut stream).is_some());
    }

    #[test]
    fn a_generation_config_says_how_to_draw_and_when_to_stop() {
        let read = |text: &str| serde_json::from_str::<GenerationConfig>(text).unwrap();
        let published = read(
            r#"{"bos_token_id": 9, "pad_token_id": 9, "do_sample": true, "eos_token_id": [7, 9],
                "repetition_penalty": 1.05, "temperature": 0.7, "top_p": 0.8, "top_k": 20}"#,
        );
        assert_eq!(published.eos_token_id.as_slice(), [7, 9]);
        assert_eq!(published.pad_token_id, Some(9));
        assert_eq!(published.sampling(), Sampling { temperature: 0.7, top_k: 20, top_p: 0.8, min_p: 0.0 });
        let bare = read(r#"{"eos_token_id": 7}"#);
        assert_eq!(bare.eos_token_id.as_slice(), [7]);
        assert_eq!(bare.sampling(), Sampling { top_k: 50, ..Sampling::GREEDY });
        assert!(read("{}").eos_token_id.as_slice().is_empty());
    }
}
