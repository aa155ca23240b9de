//! Drawing completions: one pass over the prompts, then a token at a time with cached keys and values.

use burn::tensor::Tensor;
use rand_chacha::ChaCha8Rng;

use crate::Error;
use crate::initialize::stream;
use crate::model::{EncodedPrompts, QwenVl, TokenMask, last_hidden};
use crate::probe::{Probe, Probed, Tap, indices};
use crate::processor::Prompt;
use crate::sampling::{Sampler, Sampling};
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
    /// The last token of a completion predicts nothing; those that have not run when all are drawn run once more, as
    /// far as the queries of the last layer.
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
        let mut sampler = Sampler::new(options.sampling);
        let mut drawing = Drawing {
            text: model.text(),
            encoded: &encoded,
            completions,
            cache: CompletionCache::new(&encoded.states, rows, options.max_new_tokens),
            drawn: vec![Generated::default(); rows],
            open: (0..rows).collect(),
            places: vec![Vec::new(); rows],
            run: 0,
        };
        let first = host(last_hidden(&encoded).matmul(head.clone()));
        let mut logits: Vec<f32> = first.chunks_exact(vocabulary).flat_map(|row| row.repeat(completions)).collect();
        for length in 1.. {
            for (&number, row) in drawing.open.iter().zip(logits.chunks_exact(vocabulary)) {
                let (token, log_prob) = sampler
                    .draw(row, options.mask, &mut streams[number])
                    .ok_or(Error::NonFiniteLogits { index: number })?;
                on_token(number, token);
                let completion = &mut drawing.drawn[number];
                completion.tokens.push(token);
                completion.log_probs.push(log_prob);
                completion.finished = options.stop_tokens.contains(&token);
            }
            if length == options.max_new_tokens || drawing.drawn.iter().all(|completion| completion.finished) {
                break;
            }
            logits = host(drawing.run_last_tokens(tap.as_mut()).matmul(head.clone()));
        }
        let attention = attention.zip(tap).zip(encoded.states.last_key.clone()).map(|((attention, tap), keys)| {
            let visual_keys = attention.visual_keys(prompts, &encoded.states.rows, keys);
            attention.found(visual_keys, model.text().heads(), drawing.states_of(tap))
        });
        let groups = drawing.drawn.chunks_exact(completions).map(<[Generated]>::to_vec).collect();
        Ok((groups, Probed { attention, image_attention: encoded.image_attention.clone() }))
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
}

impl Drawing<'_> {
    /// Runs what was drawn last and returns the hidden states of the completions that go on.
    ///
    /// What ended leaves only afterwards: its last token predicts nothing, but `tap` may want its states, and the last
    /// bits of the others shall not depend on that.
    fn run_last_tokens(&mut self, tap: Option<&mut Tap>) -> Tensor<2> {
        let (embeddings, tokens) = self.last_tokens();
        let hidden = self.text.decode(&self.encoded.states, embeddings, &tokens, &mut self.cache, tap);
        let goes_on = |&place: &usize| !self.drawn[self.open[place]].finished;
        let kept: Vec<usize> = (0..self.open.len()).filter(goes_on).collect();
        if kept.len() == self.open.len() {
            return hidden;
        }
        self.open = kept.iter().map(|&place| self.open[place]).collect();
        self.cache.keep(&kept);
        hidden.clone().select(0, indices(&kept, &hidden.device()))
    }

    /// States of all tokens, completion by completion, once all are drawn.
    fn states_of(&mut self, mut tap: Tap) -> Tensor<3> {
        // The last tokens of all others have run.
        let (embeddings, tokens) = self.last_tokens();
        self.text.only_tap(&self.encoded.states, embeddings, &tokens, &mut self.cache, &mut tap);
        let taken = Tensor::cat(tap.taken, 0);
        // They ran side by side.
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
