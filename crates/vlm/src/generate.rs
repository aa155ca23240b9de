//! Drawing completions: one pass over the prompts, then a token at a time with cached keys and values.

use burn::tensor::Tensor;
use rand_chacha::ChaCha8Rng;

use crate::Error;
use crate::initialize::stream;
use crate::model::{EncodedPrompts, QwenVl, TokenMask, last_hidden};
use crate::probe::{LastHidden, Probe, Probed, Tap, indices};
use crate::processor::Prompt;
use crate::sampling::{Drawn, Sampler, Sampling};
use crate::text::{CompletionCache, NewToken, TextModel};

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
    /// The last token of a completion predicts nothing. Where states are asked for, those that have not run when all are
    /// drawn run as well, as far as the queries of the last layer, or to its end for hidden states.
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
        self.draw(prompts, completions, options, Some(probe), |_, _| {})
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
        Ok(self.draw(prompts, completions, options, None, on_token)?.0)
    }

    fn draw(
        &self,
        prompts: &[&Prompt],
        completions: usize,
        options: &Generation<'_>,
        probe: Option<&Probe>,
        mut on_token: impl FnMut(usize, u32),
    ) -> Result<(Vec<Vec<Generated>>, Probed), Error> {
        for (index, prompt) in prompts.iter().enumerate() {
            self.check_length(index, prompt, options.max_new_tokens)?;
        }
        let rows = prompts.len() * completions;
        if rows == 0 || options.max_new_tokens == 0 {
            return Ok((vec![vec![Generated::default(); completions]; prompts.len()], Probed::default()));
        }
        let mut streams: Vec<ChaCha8Rng> =
            (0..rows as u64).map(|row| stream(options.seed, options.first_stream + row)).collect();
        let converted = self.converted();
        let model = converted.as_ref().unwrap_or(self);
        let head = model.head();
        let encoded = model.encode_prompts(prompts, probe)?;
        let device = encoded.states.hidden.device();
        let attention = probe.and_then(|probe| probe.attention.as_ref());
        let mut tap = attention.map(|attention| Tap::new(attention, model.text().heads(), &device));
        let vocabulary = self.config().text_config.vocab_size;
        let mut sampler = Sampler::new(options.sampling, probe.and_then(|probe| probe.top_p_entropy));
        let (mut entropy, mut top_p_entropy) = (vec![Vec::new(); rows], vec![Vec::new(); rows]);
        let mut drawing = Drawing {
            text: model.text(),
            encoded: &encoded,
            completions,
            cache: CompletionCache::new(&encoded.states, rows, options.max_new_tokens),
            drawn: vec![Generated::default(); rows],
            open: (0..rows).collect(),
            places: vec![Vec::new(); rows],
            run: 0,
            hidden: probe.is_some_and(|probe| probe.hidden).then(Vec::new),
        };
        let first = host(last_hidden(&encoded).matmul(head.clone()));
        let mut logits: Vec<f32> = first.chunks_exact(vocabulary).flat_map(|row| row.repeat(completions)).collect();
        for length in 1.. {
            for (&number, row) in drawing.open.iter().zip(logits.chunks_exact(vocabulary)) {
                let Drawn { token, log_prob, entropy: whole, top_p_entropy: part } = sampler
                    .draw(row, options.mask, &mut streams[number])
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
            logits = host(drawing.run_last_tokens(tap.as_mut()).matmul(head.clone()));
        }
        drawing.run_rest(tap.as_mut());
        let prompt_rows = &encoded.states.rows;
        let attention = attention.zip(tap).zip(encoded.states.last_key.clone()).map(|((attention, tap), keys)| {
            let visual_keys = attention.visual_keys(prompts, prompt_rows, keys);
            attention.found(visual_keys, model.text().heads(), drawing.in_order(tap.taken))
        });
        let hidden = drawing
            .hidden
            .take()
            .map(|states| LastHidden::new(drawing.in_order(states), prompts, prompt_rows, &encoded.states.hidden));
        let groups = drawing.drawn.chunks_exact(completions).map(<[Generated]>::to_vec).collect();
        let asked = |what: fn(&Probe) -> bool| probe.is_some_and(what);
        let probed = Probed {
            attention,
            image_attention: encoded.image_attention.clone(),
            entropy: asked(|probe| probe.entropy).then_some(entropy),
            top_p_entropy: asked(|probe| probe.top_p_entropy.is_some()).then_some(top_p_entropy),
            hidden,
        };
        Ok((groups, probed))
    }
}

/// Completions that are being drawn.
struct Drawing<'a> {
    text: &'a TextModel,
    encoded: &'a EncodedPrompts,
    /// Of every prompt.
    completions: usize,
    drawn: Vec<Generated>,
    /// Those that go on, in the order of the cache.
    open: Vec<usize>,
    cache: CompletionCache,
    /// For every completion the numbers of its tokens among all that have run.
    places: Vec<Vec<usize>>,
    /// How many have run.
    run: usize,
    /// Where they are asked for, hidden states of all that have run.
    hidden: Option<Vec<Tensor<2>>>,
}

impl Drawing<'_> {
    /// Runs what was drawn last and returns the hidden states of the completions that go on.
    ///
    /// What ended leaves only afterwards: its last token predicts nothing, but `tap` may want its states, and the last
    /// bits of the others shall not depend on that.
    fn run_last_tokens(&mut self, tap: Option<&mut Tap>) -> Tensor<2> {
        let hidden = self.run_all(tap);
        let goes_on = |&place: &usize| !self.drawn[self.open[place]].finished;
        let kept: Vec<usize> = (0..self.open.len()).filter(goes_on).collect();
        if kept.len() == self.open.len() {
            return hidden;
        }
        self.open = kept.iter().map(|&place| self.open[place]).collect();
        self.cache.keep(&kept);
        hidden.clone().select(0, indices(&kept, &hidden.device()))
    }

    fn run_all(&mut self, tap: Option<&mut Tap>) -> Tensor<2> {
        let (embeddings, tokens) = self.last_tokens();
        let hidden = self.text.decode(&self.encoded.states, embeddings, &tokens, &mut self.cache, tap);
        if let Some(taken) = &mut self.hidden {
            taken.push(hidden.clone());
        }
        hidden
    }

    /// Runs the last tokens of the completions that ended last, once all are drawn, as far as anybody wants their states.
    fn run_rest(&mut self, tap: Option<&mut Tap>) {
        if self.hidden.is_some() {
            self.run_all(tap);
        } else if let Some(tap) = tap {
            let (embeddings, tokens) = self.last_tokens();
            self.text.only_tap(&self.encoded.states, embeddings, &tokens, &mut self.cache, tap);
        }
    }

    /// States of all tokens that have run side by side, completion by completion.
    fn in_order<const D: usize>(&self, taken: Vec<Tensor<D>>) -> Tensor<D> {
        let taken = Tensor::cat(taken, 0);
        taken.clone().select(0, indices(&self.places.concat(), &taken.device()))
    }

    /// Embeddings of the token that each open completion drew last.
    fn last_tokens(&mut self) -> (Tensor<2>, Vec<NewToken>) {
        let mut tokens = Vec::with_capacity(self.open.len());
        for &number in &self.open {
            self.places[number].push(self.run);
            self.run += 1;
            let prompt = number / self.completions;
            tokens.push(NewToken { prompt, position: self.encoded.next_positions[prompt] });
        }
        let ids = self.open.iter().filter_map(|&number| self.drawn[number].tokens.last().copied());
        (self.text.embed(ids), tokens)
    }
}

fn host(logits: Tensor<2>) -> Vec<f32> {
    logits.into_data().try_to_vec().expect("logits are float32")
}
