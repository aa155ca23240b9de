//! Drawing completions: one pass over the prompts, then a token at a time with cached keys and values.

use std::borrow::Cow;

use burn::tensor::Tensor;
use rand_chacha::ChaCha8Rng;

use crate::Error;
use crate::initialize::stream;
use crate::model::{EncodedPrompts, QwenVl, TokenMask, last_hidden};
use crate::probe::{LastHidden, Probe, Probed, Tap, indices};
use crate::processor::Prompt;
use crate::sampling::{Drawn, Sampler, Sampling, extrapolated};
use crate::text::{CompletionCache, NewToken};

/// How completions are drawn.
#[derive(Debug, Clone)]
pub struct Generation<'a> {
    /// How each token is chosen.
    pub sampling: Sampling,
    /// Longest completion, in tokens.
    pub max_new_tokens: usize,
    /// Tokens that end a completion; they are part of it.
    pub stop_tokens: &'a [u32],
    /// What cannot be drawn.
    pub mask: &'a TokenMask,
    /// Seed of the random streams, one for each completion.
    pub seed: u64,
    /// Number of the first completion's stream; the others follow in the order of the output.
    pub first_stream: u64,
}

/// A completion as it was drawn.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Generated {
    /// Token ids, the stop token included.
    pub tokens: Vec<u32>,
    /// Log-probability of each token at the temperature it was drawn with (at 1 if that is 0), among all tokens that
    /// the mask allows: what [`QwenVl::score`] gives, whichever of them the sampling left to choose from.
    pub log_probs: Vec<f32>,
    /// Whether a stop token was drawn.
    pub finished: bool,
}

/// Draws by what training gained: `log p + gamma (log p - log q)` of the policy p and the model q it was trained from,
/// renormalised (delta-log-p, arXiv 2603.22117). Both are taken at temperature 1 over the tokens that the mask allows;
/// the sampling, temperature included, comes behind it.
#[derive(Debug, Clone, Copy)]
pub struct Extrapolation<'a> {
    /// The model that the policy was trained from. It sees the same prompts, and the completions as they are drawn.
    pub base: &'a QwenVl,
    /// How far beyond the policy; 0 draws from the policy itself.
    pub gamma: f32,
    /// Where the divergence of the policy from the base, KL(p || q), is below this, in nats, a token is drawn from the
    /// policy itself. 0 extrapolates everywhere. Inferred: the paper restricts itself to informative tokens too, but
    /// this may not be its measure.
    pub threshold: f32,
}

impl QwenVl {
    /// Draws `completions` completions for every prompt. Run it on a model without autodiff (`model.valid()`).
    ///
    /// Every completion has its own random stream, so it does not depend on what else is in the batch.
    ///
    /// # Errors
    /// When a token id is outside the vocabulary, prompt and completion would exceed the context, or logits are not
    /// finite.
    pub fn generate(
        &self,
        prompts: &[&Prompt],
        completions: usize,
        options: &Generation<'_>,
    ) -> Result<Vec<Vec<Generated>>, Error> {
        self.generate_streaming(prompts, completions, options, |_, _| {})
    }

    /// Like [`QwenVl::generate`], with what `probe` asks for of the passes that draw the completions.
    ///
    /// The last token of a completion predicts nothing. Where states are asked for, those that have not run when all
    /// are drawn run as well, as far as the queries of the last layer, or to its end for hidden states.
    ///
    /// # Errors
    /// As there, and when the probe asks for something that is not there.
    pub fn generate_probed(
        &self,
        prompts: &[&Prompt],
        completions: usize,
        options: &Generation<'_>,
        probe: &Probe,
    ) -> Result<(Vec<Vec<Generated>>, Probed), Error> {
        self.draw(prompts, completions, options, Some(probe), None, |_, _| {})
    }

    /// Like [`QwenVl::generate`], and calls `on_token` with the number of the completion and each token as it is drawn.
    ///
    /// # Errors
    /// As there.
    pub fn generate_streaming(
        &self,
        prompts: &[&Prompt],
        completions: usize,
        options: &Generation<'_>,
        on_token: impl FnMut(usize, u32),
    ) -> Result<Vec<Vec<Generated>>, Error> {
        Ok(self.draw(prompts, completions, options, None, None, on_token)?.0)
    }

    /// Like [`QwenVl::generate_streaming`], drawing from what `extrapolation` says. [`Generated::log_probs`] stay those of
    /// this model alone.
    ///
    /// # Errors
    /// As there, for the base as well, and [`Error::OtherVocabulary`] when it has another.
    pub fn generate_extrapolated(
        &self,
        prompts: &[&Prompt],
        completions: usize,
        options: &Generation<'_>,
        extrapolation: &Extrapolation<'_>,
        on_token: impl FnMut(usize, u32),
    ) -> Result<Vec<Vec<Generated>>, Error> {
        let [base, policy] = [extrapolation.base, self].map(|model| model.config().text_config.vocab_size);
        if base != policy {
            return Err(Error::OtherVocabulary { base, policy });
        }
        Ok(self.draw(prompts, completions, options, None, Some(extrapolation), on_token)?.0)
    }

    fn draw(
        &self,
        prompts: &[&Prompt],
        completions: usize,
        options: &Generation<'_>,
        probe: Option<&Probe>,
        extrapolation: Option<&Extrapolation<'_>>,
        mut on_token: impl FnMut(usize, u32),
    ) -> Result<(Vec<Vec<Generated>>, Probed), Error> {
        let base = extrapolation.map(|extrapolation| extrapolation.base);
        for model in [Some(self), base].into_iter().flatten() {
            for (index, prompt) in prompts.iter().enumerate() {
                model.check_length(index, prompt, options.max_new_tokens)?;
            }
        }
        let rows = prompts.len() * completions;
        if rows == 0 || options.max_new_tokens == 0 {
            return Ok((vec![vec![Generated::default(); completions]; prompts.len()], Probed::default()));
        }
        let mut streams: Vec<ChaCha8Rng> =
            (0..rows as u64).map(|row| stream(options.seed, options.first_stream + row)).collect();
        let running = |model, probe| Running::new(model, prompts, completions, options.max_new_tokens, probe);
        let mut drawing = Drawing {
            policy: running(self, probe)?,
            base: base.map(|base| running(base, None)).transpose()?,
            completions,
            drawn: vec![Generated::default(); rows],
            open: (0..rows).collect(),
            places: vec![Vec::new(); rows],
            run: 0,
            hidden: probe.is_some_and(|probe| probe.hidden).then(Vec::new),
        };
        let attention = probe.and_then(|probe| probe.attention.as_ref());
        let heads = self.text().heads();
        let device = drawing.policy.head.device().without_autodiff();
        let mut tap = attention.map(|attention| Tap::new(attention, heads, &device));
        let vocabulary = self.config().text_config.vocab_size;
        let mut sampler = Sampler::new(options.sampling, probe.and_then(|probe| probe.top_p_entropy));
        let (mut entropy, mut top_p_entropy) = (vec![Vec::new(); rows], vec![Vec::new(); rows]);
        let mut logits = drawing.first_logits();
        for length in 1.. {
            for (place, &number) in drawing.open.iter().enumerate() {
                let row = place * vocabulary..(place + 1) * vocabulary;
                let policy = &logits.policy[row.clone()];
                let chosen_by = extrapolation
                    .zip(logits.base.as_ref())
                    .map(|(by, base)| extrapolated(policy, &base[row], options.mask, by.gamma, by.threshold));
                let Drawn { token, log_prob, entropy: whole, top_p_entropy: part } = sampler
                    .draw(policy, chosen_by.as_deref(), options.mask, &mut streams[number])
                    .ok_or(Error::NonFiniteLogits { index: number })?;
                on_token(number, token);
                let completion = &mut drawing.drawn[number];
                completion.tokens.push(token);
                completion.log_probs.push(log_prob);
                completion.finished = options.stop_tokens.contains(&token);
                entropy[number].push(whole);
                top_p_entropy[number].extend(part);
            }
            if length == options.max_new_tokens || drawing.drawn.iter().all(|completion| completion.finished) {
                break;
            }
            logits = drawing.run_last_tokens(tap.as_mut());
        }
        drawing.run_rest(tap.as_mut());
        let EncodedPrompts { states, image_attention, .. } = &drawing.policy.encoded;
        let attention = attention.zip(tap).zip(states.last_key.clone()).map(|((attention, tap), keys)| {
            let visual_keys = attention.visual_keys(prompts, &states.rows, keys);
            attention.found(visual_keys, heads, drawing.in_order(tap.taken))
        });
        let hidden = drawing
            .hidden
            .take()
            .map(|hidden| LastHidden::new(drawing.in_order(hidden), prompts, &states.rows, &states.hidden));
        let groups = drawing.drawn.chunks_exact(completions).map(<[Generated]>::to_vec).collect();
        let asked = |what: fn(&Probe) -> bool| probe.is_some_and(what);
        let probed = Probed {
            attention,
            image_attention: image_attention.clone(),
            entropy: asked(|probe| probe.entropy).then_some(entropy),
            top_p_entropy: asked(|probe| probe.top_p_entropy.is_some()).then_some(top_p_entropy),
            hidden,
        };
        Ok((groups, probed))
    }
}

/// A model that completions run through behind their prompts.
struct Running<'a> {
    model: Cow<'a, QwenVl>,
    head: Tensor<2>,
    encoded: EncodedPrompts,
    cache: CompletionCache,
}

impl<'a> Running<'a> {
    /// Runs the prompts. `room` is that for tokens of each completion.
    fn new(
        model: &'a QwenVl,
        prompts: &[&Prompt],
        completions: usize,
        room: usize,
        probe: Option<&Probe>,
    ) -> Result<Self, Error> {
        let model = model.converted().map_or(Cow::Borrowed(model), Cow::Owned);
        let head = model.head();
        let encoded = model.encode_prompts(prompts, probe)?;
        let cache = CompletionCache::new(&encoded.states, prompts.len() * completions, room);
        Ok(Self { model, head, encoded, cache })
    }

    /// Logits of the first token of every prompt's completions.
    fn first_logits(&self, completions: usize) -> Vec<f32> {
        let [_, vocabulary] = self.head.dims();
        let first = self.logits(last_hidden(&self.encoded));
        first.chunks_exact(vocabulary).flat_map(|row| row.repeat(completions)).collect()
    }

    fn logits(&self, hidden: Tensor<2>) -> Vec<f32> {
        hidden.matmul(self.head.clone()).into_data().try_to_vec().expect("logits are float32")
    }

    /// Embeddings of tokens, and where they stand.
    fn fed(&self, tokens: &[Last]) -> (Tensor<2>, Vec<NewToken>) {
        let new = |&Last { prompt, .. }: &Last| NewToken { prompt, position: self.encoded.next_positions[prompt] };
        (self.model.text().embed(tokens.iter().map(|last| last.id)), tokens.iter().map(new).collect())
    }

    /// Hidden states behind a token of each completion in the cache.
    fn run(&mut self, tokens: &[Last], tap: Option<&mut Tap>) -> Tensor<2> {
        let (embeddings, tokens) = self.fed(tokens);
        self.model.text().decode(&self.encoded.states, embeddings, &tokens, &mut self.cache, tap)
    }

    /// Only what `tap` takes of the tokens that [`Self::run`] would run.
    fn only_tap(&mut self, tokens: &[Last], tap: &mut Tap) {
        let (embeddings, tokens) = self.fed(tokens);
        self.model.text().only_tap(&self.encoded.states, embeddings, &tokens, &mut self.cache, tap);
    }

    /// Logits of the completions that go on, those at these places: the cache keeps no others.
    fn go_on(&mut self, hidden: &Tensor<2>, kept: Option<&[usize]>) -> Vec<f32> {
        let Some(kept) = kept else { return self.logits(hidden.clone()) };
        self.cache.keep(kept);
        self.logits(hidden.clone().select(0, indices(kept, &hidden.device())))
    }
}

/// The token that a completion drew last.
struct Last {
    /// Number of the prompt.
    prompt: usize,
    id: u32,
}

/// Logits of all completions that go on, one after another.
struct Logits {
    policy: Vec<f32>,
    base: Option<Vec<f32>>,
}

/// Completions that are being drawn.
struct Drawing<'a> {
    policy: Running<'a>,
    /// What is extrapolated from.
    base: Option<Running<'a>>,
    /// Of every prompt.
    completions: usize,
    drawn: Vec<Generated>,
    /// Those that go on, in the order of the caches.
    open: Vec<usize>,
    /// For every completion the numbers of its tokens among all that have run.
    places: Vec<Vec<usize>>,
    /// How many have run.
    run: usize,
    /// Where they are asked for, hidden states of all that have run.
    hidden: Option<Vec<Tensor<2>>>,
}

impl Drawing<'_> {
    fn first_logits(&self) -> Logits {
        let of = |running: &Running<'_>| running.first_logits(self.completions);
        Logits { policy: of(&self.policy), base: self.base.as_ref().map(of) }
    }

    /// Runs what was drawn last and returns the logits of the completions that go on.
    ///
    /// What ended leaves only afterwards: its last token predicts nothing, but `tap` may want its states, and the last
    /// bits of the others shall not depend on that.
    fn run_last_tokens(&mut self, tap: Option<&mut Tap>) -> Logits {
        let tokens = self.last_tokens();
        let hidden = self.run_policy(&tokens, tap);
        let goes_on = |&place: &usize| !self.drawn[self.open[place]].finished;
        let kept: Vec<usize> = (0..self.open.len()).filter(goes_on).collect();
        let kept = (kept.len() < self.open.len()).then_some(kept);
        if let Some(kept) = &kept {
            self.open = kept.iter().map(|&place| self.open[place]).collect();
        }
        let kept = kept.as_deref();
        let of_base = |base: &mut Running<'_>| {
            let hidden = base.run(&tokens, None);
            base.go_on(&hidden, kept)
        };
        Logits { policy: self.policy.go_on(&hidden, kept), base: self.base.as_mut().map(of_base) }
    }

    fn run_policy(&mut self, tokens: &[Last], tap: Option<&mut Tap>) -> Tensor<2> {
        let hidden = self.policy.run(tokens, tap);
        if let Some(taken) = &mut self.hidden {
            taken.push(hidden.clone());
        }
        hidden
    }

    /// Runs the last tokens of the completions that ended last, once all are drawn, as far as anybody wants their
    /// states.
    fn run_rest(&mut self, tap: Option<&mut Tap>) {
        let tokens = self.last_tokens();
        if self.hidden.is_some() {
            self.run_policy(&tokens, tap);
        } else if let Some(tap) = tap {
            self.policy.only_tap(&tokens, tap);
        }
    }

    /// States of all tokens that have run side by side, completion by completion.
    fn in_order<const D: usize>(&self, taken: Vec<Tensor<D>>) -> Tensor<D> {
        let taken = Tensor::cat(taken, 0);
        taken.clone().select(0, indices(&self.places.concat(), &taken.device()))
    }

    /// The token that each open completion drew last, which runs next.
    fn last_tokens(&mut self) -> Vec<Last> {
        for &number in &self.open {
            self.places[number].push(self.run);
            self.run += 1;
        }
        let last = |&number: &usize| {
            let id = *self.drawn[number].tokens.last()?;
            Some(Last { prompt: number / self.completions, id })
        };
        self.open.iter().filter_map(last).collect()
    }
}
