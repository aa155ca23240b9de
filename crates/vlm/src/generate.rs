//! Drawing completions: one pass over the prompts, then a token at a time with cached keys and values.

use burn::tensor::{Int, Tensor, TensorData};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::Error;
use crate::model::{QwenVl, TokenMask, last_hidden};
use crate::processor::Prompt;
use crate::text::CompletionCache;

/// How completions are drawn.
#[derive(Debug, Clone)]
pub struct Generation<'a> {
    /// Softmax temperature; `0` takes the most likely token.
    pub temperature: f32,
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
    /// Log-probability of each token at the temperature it was drawn with; at temperature 0, at temperature 1.
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
    /// When a token id is outside the vocabulary or prompt and completion would exceed the context.
    pub fn generate(
        &self,
        prompts: &[&Prompt],
        completions: usize,
        options: &Generation<'_>,
    ) -> Result<Vec<Vec<Generated>>, Error> {
        for (index, prompt) in prompts.iter().enumerate() {
            self.check_length(index, prompt, options.max_new_tokens)?;
        }
        let rows = prompts.len() * completions;
        let mut drawn = vec![Generated::default(); rows];
        if rows == 0 || options.max_new_tokens == 0 {
            return Ok(vec![vec![Generated::default(); completions]; prompts.len()]);
        }
        let mut streams: Vec<ChaCha8Rng> = (0..rows as u64)
            .map(|row| {
                let mut stream = ChaCha8Rng::seed_from_u64(options.seed);
                stream.set_stream(options.first_stream + row);
                stream
            })
            .collect();
        let encoded = self.encode_prompts(prompts, false)?;
        let device = encoded.states.hidden.device();
        let hidden_size = self.config().text_config.hidden_size;
        let vocabulary = self.config().text_config.vocab_size;
        let mut cache = CompletionCache::new(&encoded.states, completions, options.max_new_tokens);

        let first = host(self.logits(last_hidden(&encoded)));
        let mut logits: Vec<f32> = first.chunks_exact(vocabulary).flat_map(|row| row.repeat(completions)).collect();
        let mut positions = encoded.next_positions.clone();
        loop {
            for ((row, completion), stream) in logits.chunks_exact(vocabulary).zip(&mut drawn).zip(&mut streams) {
                if completion.finished {
                    continue;
                }
                let (token, log_prob) = draw(row, options, stream);
                completion.tokens.push(token);
                completion.log_probs.push(log_prob);
                completion.finished = options.stop_tokens.contains(&token);
            }
            let length = drawn.iter().map(|completion| completion.tokens.len()).max().unwrap_or(0);
            if length == options.max_new_tokens || drawn.iter().all(|completion| completion.finished) {
                break;
            }
            // Finished completions keep their place with their last token; nothing reads what follows.
            let last: Vec<i64> = drawn.iter().map(|c| i64::from(c.tokens.last().copied().unwrap_or(0))).collect();
            let last = Tensor::<2, Int>::from_data(TensorData::new(last, [rows, 1]), &device);
            let embeddings =
                self.text().embed_tokens.forward(last).reshape([prompts.len(), completions, 1, hidden_size]);
            let hidden = self.text().complete(&encoded.states, embeddings, &positions, Some(&mut cache), None);
            logits = host(self.logits(hidden.reshape([rows, hidden_size])));
            for position in &mut positions {
                *position += 1;
            }
        }
        Ok(drawn.chunks_exact(completions).map(<[Generated]>::to_vec).collect())
    }
}

fn host(logits: Tensor<2>) -> Vec<f32> {
    logits.into_data().iter::<f32>().collect()
}

/// One token and its log-probability over the tokens that the mask allows.
fn draw(logits: &[f32], options: &Generation<'_>, stream: &mut ChaCha8Rng) -> (u32, f32) {
    let greedy = options.temperature <= 0.0;
    let temperature = if greedy { 1.0 } else { f64::from(options.temperature) };
    let allowed = || logits.iter().enumerate().filter(|&(id, _)| options.mask.allows(id));
    let (best, highest) =
        allowed().fold((0, f32::NEG_INFINITY), |best, (id, &logit)| if logit > best.1 { (id, logit) } else { best });
    let weight = |logit: f32| ((f64::from(logit) - f64::from(highest)) / temperature).exp();
    let total: f64 = allowed().map(|(_, &logit)| weight(logit)).sum();
    let token = if greedy {
        best
    } else {
        let mut remaining = stream.random::<f64>() * total;
        // Rounding can leave a sliver after the last token; the most likely one takes it.
        allowed()
            .find(|&(_, &logit)| {
                remaining -= weight(logit);
                remaining < 0.0
            })
            .map_or(best, |(id, _)| id)
    };
    (token as u32, (weight(logits[token]) / total).ln() as f32)
}
