//! Drawing completions: one pass over the prompts, then a token at a time with cached keys and values.

use burn::tensor::{Device, Int, Tensor, TensorData};
use rand_chacha::ChaCha8Rng;

use crate::Error;
use crate::initialize::stream;
use crate::model::{QwenVl, TokenMask, last_hidden};
use crate::probe::{Probe, Probed, Tap, indices};
use crate::processor::Prompt;
use crate::sampling::{Sampler, Sampling};
use crate::text::{CompletionCache, PromptStates};

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
        let mut drawn = vec![Generated::default(); rows];
        if rows == 0 || options.max_new_tokens == 0 {
            return Ok((vec![vec![Generated::default(); completions]; prompts.len()], Probed::default()));
        }
        let mut streams: Vec<ChaCha8Rng> =
            (0..rows as u64).map(|row| stream(options.seed, options.first_stream + row)).collect();
        let encoded = self.encode_prompts(prompts, probe)?;
        let device = encoded.states.hidden.device();
        let attention = probe.and_then(|probe| probe.attention.as_ref());
        let mut tap = attention.map(|attention| Tap::new(attention, self.text().heads(), &device));
        let vocabulary = self.config().text_config.vocab_size;
        let mut sampler = Sampler::new(options.sampling);
        let mut cache = CompletionCache::new(&encoded.states, completions, options.max_new_tokens);

        let first = host(self.logits(last_hidden(&encoded)));
        let mut logits: Vec<f32> = first.chunks_exact(vocabulary).flat_map(|row| row.repeat(completions)).collect();
        let mut positions = encoded.next_positions.clone();
        loop {
            let each = logits.chunks_exact(vocabulary).zip(&mut drawn).zip(&mut streams);
            for (number, ((row, completion), stream)) in each.enumerate() {
                if completion.finished {
                    continue;
                }
                let (token, log_prob) =
                    sampler.draw(row, options.mask, stream).ok_or(Error::NonFiniteLogits { index: number })?;
                on_token(number, token);
                completion.tokens.push(token);
                completion.log_probs.push(log_prob);
                completion.finished = options.stop_tokens.contains(&token);
            }
            let length = drawn.iter().map(|completion| completion.tokens.len()).max().unwrap_or(0);
            if length == options.max_new_tokens || drawn.iter().all(|completion| completion.finished) {
                break;
            }
            // Finished completions keep their place with their last token; nothing reads what follows.
            let embeddings = self.last_tokens(&drawn, completions, &device);
            let hidden = self.text().complete(&encoded.states, embeddings, &positions, Some(&mut cache), tap.as_mut());
            logits = host(self.logits(hidden.flatten::<2>(0, 2)));
            for position in &mut positions {
                *position += 1;
            }
        }
        let groups: Vec<Vec<Generated>> = drawn.chunks_exact(completions).map(<[Generated]>::to_vec).collect();
        let image_attention = encoded.image_attention;
        let attention = attention.zip(tap).map(|(attention, mut tap)| {
            let visual_keys = attention.visual_keys(prompts, &encoded.states);
            self.run_last_tokens(&groups, encoded.states, &positions, cache, &mut tap);
            attention.found(visual_keys, self.text().heads(), Tensor::cat(tap.taken, 2))
        });
        Ok((groups, Probed { attention, image_attention }))
    }

    /// Embeddings of the last token of each completion: `[prompts, completions, 1, hidden_size]`.
    fn last_tokens(&self, drawn: &[Generated], completions: usize, device: &Device) -> Tensor<4> {
        let last: Vec<i64> = drawn.iter().map(|c| i64::from(c.tokens.last().copied().unwrap_or(0))).collect();
        let last = Tensor::<2, Int>::from_data(TensorData::new(last, [drawn.len(), 1]), device);
        let hidden_size = self.config().text_config.hidden_size;
        self.text().embed_tokens.forward(last).reshape([drawn.len() / completions, completions, 1, hidden_size])
    }

    /// Runs the tokens that were drawn last, for `tap` alone: most completions ended before, so only the prompts of
    /// those that did not.
    fn run_last_tokens(
        &self,
        groups: &[Vec<Generated>],
        states: PromptStates,
        positions: &[u32],
        mut cache: CompletionCache,
        tap: &mut Tap,
    ) {
        let device = states.hidden.device();
        let completions = groups[0].len();
        let length = groups.iter().flatten().map(|completion| completion.tokens.len()).max().unwrap_or(0);
        let open: Vec<usize> = (0..groups.len())
            .filter(|&prompt| groups[prompt].iter().any(|completion| completion.tokens.len() == length))
            .collect();
        let drawn: Vec<Generated> = open.iter().flat_map(|&prompt| groups[prompt].clone()).collect();
        let embeddings = self.last_tokens(&drawn, completions, &device);
        if open.len() == groups.len() {
            return self.text().only_tap(&states, embeddings, positions, &mut cache, tap);
        }
        let (states, mut cache) = (states.select(&open), cache.select(&open));
        let positions: Vec<u32> = open.iter().map(|&prompt| positions[prompt]).collect();
        self.text().only_tap(&states, embeddings, &positions, &mut cache, tap);
        // Nothing reads what completions have here that are shorter: any row will do.
        let place = |prompt| open.binary_search(&prompt).unwrap_or(0);
        let rows: Vec<usize> = (0..groups.len())
            .flat_map(|prompt| (0..completions).map(move |completion| (prompt, completion)))
            .map(|(prompt, completion)| place(prompt) * completions + completion)
            .collect();
        if let Some(last) = tap.taken.pop() {
            tap.taken.push(last.select(0, indices(&rows, &device)));
        }
    }
}

fn host(logits: Tensor<2>) -> Vec<f32> {
    logits.into_data().try_to_vec().expect("logits are float32")
}
