use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::{FloatDType, Tensor};
use firesight_rl::{AttentionStates, CreditAssigner, Group, SignalSet, Signals};

use crate::sguf::content_hash;
use crate::{Error, ImageView, KawhiConfig, VisualPrompt, alignment, paragraphs, sguf, token_weights};

/// Images whose key cells are kept. A mask takes about a kilobyte.
const CACHED_IMAGES: usize = 1 << 16;

/// KAWHI (arXiv 2603.27375) as a credit assigner: each token's weight is that of its paragraph, and a paragraph weighs
/// more the closer it attends to the key regions of the images (eq. 16-17).
///
/// Reads the queries and keys of the pass that scores the rollout, so it costs no forward pass. The key regions of an
/// image are found once and kept.
pub struct Kawhi {
    config: KawhiConfig,
    token_text: Box<dyn Fn(u32) -> String + Send + Sync>,
    key_cells: Mutex<HashMap<ImageId, Arc<[bool]>>>,
}

/// Content, width, height and cell of an image.
type ImageId = (u128, usize, usize, usize);

impl Kawhi {
    /// `token_text` gives the text of one token, as [`paragraphs`] wants it: an empty one for special tokens, anything
    /// for part of a character.
    ///
    /// # Errors
    /// When the configuration is out of range, or names a file of heads that cannot be used.
    pub fn new(
        mut config: KawhiConfig,
        token_text: impl Fn(u32) -> String + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        config.heads = config.heads.resolve()?;
        config.validate()?;
        Ok(Self { config, token_text: Box::new(token_text), key_cells: Mutex::default() })
    }

    /// The configuration it was made with.
    pub fn config(&self) -> &KawhiConfig {
        &self.config
    }

    /// Whether each visual token of an image is a key cell, in raster order.
    ///
    /// # Errors
    /// Those of [`sguf`].
    pub fn key_cells(&self, image: &ImageView<'_>) -> Result<Arc<[bool]>, Error> {
        let id = (content_hash(image.pixels), image.width, image.height, image.cell);
        let lock = || self.key_cells.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = lock().get(&id) {
            return Ok(Arc::clone(known));
        }
        // Outside of the lock: two threads that meet over an image both compute the same.
        let found: Arc<[bool]> = sguf(image, &self.config.sguf)?.key.into();
        let mut known = lock();
        if known.len() >= CACHED_IMAGES {
            known.clear();
        }
        known.insert(id, Arc::clone(&found));
        Ok(found)
    }

    /// Indices of a prompt's key visual tokens, its images one after another.
    fn key_tokens<P: VisualPrompt>(&self, group: usize, prompt: &P, visual_tokens: usize) -> Result<Vec<usize>, Error> {
        let mut selected = Vec::new();
        let mut cells = 0;
        for image in prompt.images() {
            let key = self.key_cells(&image)?;
            selected.extend(key.iter().enumerate().filter(|&(_, &key)| key).map(|(cell, _)| cells + cell));
            cells += key.len();
        }
        if cells == 0 {
            return Err(Error::NoImage { group });
        }
        if cells != visual_tokens {
            return Err(Error::VisualTokens { group, found: visual_tokens, expected: cells });
        }
        Ok(selected)
    }

    /// Alignment of every completion, padding included: `[completions, tokens]` row by row, and `tokens`.
    fn alignments<P: VisualPrompt>(
        &self,
        groups: &[Group<P>],
        states: &AttentionStates,
    ) -> Result<(Vec<f32>, usize), Error> {
        let [_, query_heads, tokens, _] = states.queries.dims();
        let heads = self.config.heads.indices(query_heads)?;
        let mut first = 0;
        let mut alignments = Vec::with_capacity(groups.len());
        for (index, (group, keys)) in groups.iter().zip(&states.visual_keys).enumerate() {
            let last = first + group.completions.len();
            if first == last || tokens == 0 {
                continue;
            }
            let selected = self.key_tokens(index, &group.prompt, keys.dims()[1])?;
            let queries = states.queries.clone().slice_dim(0, first..last);
            alignments.push(alignment(queries, keys.clone(), &heads, &selected)?);
            first = last;
        }
        if alignments.is_empty() {
            return Ok((Vec::new(), tokens));
        }
        // One transfer from the device for the whole batch.
        let values = Tensor::cat(alignments, 0).cast(FloatDType::F32).into_data().iter::<f32>().collect();
        Ok((values, tokens))
    }

    fn assign<P: VisualPrompt>(&self, groups: &[Group<P>], signals: &Signals) -> Result<Vec<Vec<f32>>, Error> {
        let states = signals.attention.as_ref().ok_or(Error::MissingSignal { signal: "attention" })?;
        if states.visual_keys.len() != groups.len() {
            return Err(Error::GroupCount { found: states.visual_keys.len(), expected: groups.len() });
        }
        let completions: Vec<_> = groups.iter().flat_map(|group| &group.completions).collect();
        let [rows, _, tokens, _] = states.queries.dims();
        if rows != completions.len() {
            return Err(Error::CompletionCount { found: rows, expected: completions.len() });
        }
        if let Some((index, long)) = completions.iter().enumerate().find(|(_, one)| one.tokens.len() > tokens) {
            return Err(Error::TokenCount { completion: index, found: tokens, expected: long.tokens.len() });
        }

        let (values, width) = self.alignments(groups, states)?;
        let mut texts: HashMap<u32, String> = HashMap::new();
        for &token in completions.iter().flat_map(|completion| &completion.tokens) {
            texts.entry(token).or_insert_with(|| (self.token_text)(token));
        }
        completions
            .iter()
            .enumerate()
            .map(|(row, completion)| {
                let spans = paragraphs(completion.tokens.iter().map(|token| texts[token].as_str()));
                let start = row * width;
                token_weights(&values[start..start + completion.tokens.len()], &spans, &self.config.paragraphs)
            })
            .collect()
    }
}

impl<P: VisualPrompt> CreditAssigner<P> for Kawhi {
    fn signals(&self) -> SignalSet {
        SignalSet { attention: Some(self.config.rope) }
    }

    /// # Errors
    /// [`firesight_rl::Error::Credit`] around an [`Error`] of this crate.
    fn weights(&self, groups: &[Group<P>], signals: &Signals) -> Result<Vec<Vec<f32>>, firesight_rl::Error> {
        self.assign(groups, signals).map_err(|error| firesight_rl::Error::Credit(Box::new(error)))
    }
}

impl std::fmt::Debug for Kawhi {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Kawhi").field("config", &self.config).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use burn::tensor::Device;
    use firesight_rl::{Completion, Rope};

    use super::*;
    use crate::{Heads, Normalize, ParagraphConfig, SgufConfig};

    /// Wide enough for the smoothing of a mark to stay inside.
    const CELL: usize = 16;
    /// Token 0 is the end of sequence, 1 a blank line, 2 a single line feed.
    const TEXTS: [&str; 4] = ["", "\n\n", "\n", "word"];

    struct Prompt(Vec<(usize, usize, Vec<u8>)>);

    impl VisualPrompt for Prompt {
        fn images(&self) -> Vec<ImageView<'_>> {
            self.0
                .iter()
                .map(|(width, height, pixels)| ImageView { width: *width, height: *height, pixels, cell: CELL })
                .collect()
        }
    }

    /// White cells in a row, those in `marked` with a black square in the middle.
    fn image(cells: usize, marked: &[usize]) -> (usize, usize, Vec<u8>) {
        let width = cells * CELL;
        let middle = CELL / 2 - 2..CELL / 2 + 2;
        let black = |at: usize| {
            let (x, y) = (at % width, at / width);
            marked.contains(&(x / CELL)) && middle.contains(&(x % CELL)) && middle.contains(&y)
        };
        (width, CELL, (0..width * CELL).flat_map(|at| [if black(at) { 0 } else { 255 }; 3]).collect())
    }

    fn kawhi(config: KawhiConfig) -> Kawhi {
        Kawhi::new(config, |token| TEXTS[token as usize].to_owned()).unwrap()
    }

    /// Leaves nothing to chance: no cell of a weak component is kept.
    fn exact() -> KawhiConfig {
        KawhiConfig { sguf: SgufConfig { r_skip: 1.0, ..SgufConfig::default() }, ..KawhiConfig::default() }
    }

    fn completion(tokens: &[u32]) -> Completion {
        Completion { tokens: tokens.to_vec(), ..Completion::default() }
    }

    fn group(images: Vec<(usize, usize, Vec<u8>)>, completions: &[&[u32]]) -> Group<Prompt> {
        Group {
            prompt: Prompt(images),
            completions: completions.iter().map(|tokens| completion(tokens)).collect(),
            rewards: Vec::new(),
        }
    }

    /// One head of dimension 2: key tokens point along x, the others along y.
    fn keys(key: &[bool]) -> Tensor<3> {
        let values: Vec<f32> = key.iter().flat_map(|&key| if key { [1.0, 0.0] } else { [0.0, 1.0] }).collect();
        Tensor::<1>::from_floats(values.as_slice(), &Device::flex()).reshape([1, key.len(), 2])
    }

    /// Queries at the angle whose cosine with x is given, `[completions, 1, tokens, 2]`.
    fn queries(cosines: &[&[f32]]) -> Tensor<4> {
        let (rows, tokens) = (cosines.len(), cosines[0].len());
        let values: Vec<f32> =
            cosines.concat().iter().flat_map(|&cosine| [cosine, (1.0 - cosine * cosine).sqrt()]).collect();
        Tensor::<1>::from_floats(values.as_slice(), &Device::flex()).reshape([rows, 1, tokens, 2])
    }

    fn signals(queries: Tensor<4>, visual_keys: Vec<Tensor<3>>) -> Signals {
        Signals { attention: Some(AttentionStates { queries, visual_keys }) }
    }

    fn close(found: &[f32], expected: &[f32]) {
        assert_eq!(found.len(), expected.len());
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5), "{found:?} is not {expected:?}");
    }

    /// Weights of paragraphs with these means, by equation 15 with the default parameters.
    fn two_weights(first: f32, second: f32) -> [f32; 2] {
        let share = 1.0 / (1.0 + ((second - first) / 0.1).exp());
        [share, 1.0 - share].map(|share| 0.1 + 0.9 * (0.9 * share + 0.05))
    }

    #[test]
    fn it_asks_for_the_attention_it_is_configured_for() {
        let ask = |kawhi: &Kawhi| CreditAssigner::<Prompt>::signals(kawhi).attention;
        assert_eq!(ask(&kawhi(KawhiConfig::default())), Some(Rope::After));
        assert_eq!(ask(&kawhi(KawhiConfig { rope: Rope::Before, ..KawhiConfig::default() })), Some(Rope::Before));
    }

    #[test]
    fn paragraphs_that_attend_to_key_cells_weigh_more() {
        let kawhi = kawhi(exact());
        let key = [true, false, false, true, false];
        assert_eq!(*kawhi.key_cells(&Prompt(vec![image(5, &[0, 3])]).images()[0]).unwrap(), key);
        // The second completion is shorter; its padding is as bad as can be.
        let groups = [group(vec![image(5, &[0, 3])], &[&[3, 1, 3, 0], &[3, 2, 3]])];
        let states = signals(queries(&[&[0.8, 0.6, 0.5, 0.3], &[0.1, 0.2, 0.3, f32::NAN]]), vec![keys(&key)]);
        let weights = kawhi.weights(&groups, &states).unwrap();
        let [first, second] = two_weights(0.7, 0.4);
        close(&weights[0], &[first, first, second, second]);
        // No blank line: plain GRPO, exactly.
        assert_eq!(weights[1], [1.0; 3]);
    }

    #[test]
    fn images_of_a_prompt_are_concatenated() {
        let kawhi = kawhi(exact());
        let images = vec![image(3, &[1]), image(4, &[3])];
        let key = [false, true, false, false, false, false, true];
        let groups = [group(vec![image(1, &[0])], &[&[3]]), group(images, &[&[3, 1, 3]])];
        let states = signals(queries(&[&[0.0; 3], &[0.8, 0.6, 0.4]]), vec![keys(&[true]), keys(&key)]);
        let weights = kawhi.weights(&groups, &states).unwrap();
        assert_eq!(weights[0], [1.0]);
        let [first, second] = two_weights(0.7, 0.4);
        close(&weights[1], &[first, first, second]);
        // Were the masks swapped, other tokens would be compared.
        let swapped =
            [group(vec![image(1, &[0])], &[&[3]]), group(vec![image(4, &[3]), image(3, &[1])], &[&[3, 1, 3]])];
        assert!((kawhi.weights(&swapped, &states).unwrap()[1][0] - first).abs() > 1e-3);
    }

    #[test]
    fn listed_heads_are_compared() {
        // Two query heads on one key head; head 1 sees the paragraphs the other way round.
        let queries = Tensor::cat(vec![queries(&[&[0.7, 0.7, 0.4]]), queries(&[&[0.4, 0.4, 0.7]])], 1);
        let groups = [group(vec![image(2, &[0])], &[&[3, 1, 3]])];
        let states = signals(queries, vec![keys(&[true, false])]);
        let weights = |heads| kawhi(KawhiConfig { heads, ..exact() }).weights(&groups, &states).unwrap().remove(0);
        let [high, low] = two_weights(0.7, 0.4);
        close(&weights(Heads::List(vec![0])), &[high, high, low]);
        close(&weights(Heads::List(vec![1])), &[low, low, high]);
        close(&weights(Heads::All), &[0.55; 3]);
    }

    #[test]
    fn mean_one_normalises_every_completion() {
        let paragraphs = ParagraphConfig { normalize: Normalize::MeanOne, ..ParagraphConfig::default() };
        let groups = [group(vec![image(2, &[0])], &[&[3, 1, 3, 3], &[3]])];
        let states = signals(queries(&[&[0.8, 0.6, 0.4, 0.1], &[0.1; 4]]), vec![keys(&[true, false])]);
        for weights in kawhi(KawhiConfig { paragraphs, ..exact() }).weights(&groups, &states).unwrap() {
            assert!((weights.iter().sum::<f32>() / weights.len() as f32 - 1.0).abs() < 1e-6, "{weights:?}");
        }
    }

    #[test]
    fn regions_are_kept_by_content() {
        let kawhi = kawhi(KawhiConfig::default());
        let [one, same, other] = [image(6, &[0]), image(6, &[0]), image(6, &[1])];
        let key = |image| kawhi.key_cells(&Prompt(vec![image]).images()[0]).unwrap();
        let (one, same, other) = (key(one), key(same), key(other));
        assert!(Arc::ptr_eq(&one, &same));
        assert_ne!(one, other);
        assert_eq!(kawhi.key_cells.lock().unwrap().len(), 2);
    }

    #[test]
    fn a_batch_without_tokens_has_no_weights() {
        let groups = [group(vec![image(2, &[0])], &[&[], &[]])];
        let states = signals(Tensor::zeros([2, 1, 1, 2], &Device::flex()), vec![keys(&[true, false])]);
        assert_eq!(kawhi(exact()).weights(&groups, &states).unwrap(), [Vec::<f32>::new(), Vec::new()]);
        let none: [Group<Prompt>; 0] = [];
        let states = signals(Tensor::zeros([0, 1, 0, 2], &Device::flex()), Vec::new());
        assert!(kawhi(exact()).weights(&none, &states).unwrap().is_empty());
    }

    #[test]
    fn errors_are_named() {
        let kawhi = kawhi(exact());
        let run = |groups: &[Group<Prompt>], signals: &Signals| match kawhi.weights(groups, signals) {
            Err(firesight_rl::Error::Credit(source)) => *source.downcast::<Error>().unwrap(),
            other => panic!("{other:?}"),
        };
        let groups = [group(vec![image(2, &[0])], &[&[3, 3]])];
        let right = || (queries(&[&[0.1, 0.2]]), vec![keys(&[true, false])]);

        assert!(matches!(run(&groups, &Signals::default()), Error::MissingSignal { signal: "attention" }));
        let (states, _) = right();
        assert!(matches!(run(&groups, &signals(states, vec![])), Error::GroupCount { found: 0, expected: 1 }));
        let (_, visual_keys) = right();
        let states = signals(queries(&[&[0.1, 0.2], &[0.1, 0.2]]), visual_keys);
        assert!(matches!(run(&groups, &states), Error::CompletionCount { found: 2, expected: 1 }));
        let (_, visual_keys) = right();
        let states = signals(queries(&[&[0.1]]), visual_keys);
        assert!(matches!(run(&groups, &states), Error::TokenCount { completion: 0, found: 1, expected: 2 }));
        let (states, _) = right();
        let states = signals(states, vec![keys(&[true, false, false])]);
        assert!(matches!(run(&groups, &states), Error::VisualTokens { group: 0, found: 3, expected: 2 }));
        let (states, visual_keys) = right();
        let blind = [group(vec![], &[&[3, 3]])];
        assert!(matches!(run(&blind, &signals(states, visual_keys)), Error::NoImage { group: 0 }));
        let (_, visual_keys) = right();
        let states = signals(queries(&[&[0.1, f32::NAN]]), visual_keys);
        assert!(matches!(run(&groups, &states), Error::NonFinite { token: 1, .. }));

        let config = KawhiConfig { heads: Heads::List(vec![]), ..exact() };
        assert!(matches!(Kawhi::new(config, |_| String::new()), Err(Error::NoHeads)));
    }
}
