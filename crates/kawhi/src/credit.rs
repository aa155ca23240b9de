use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::{FloatDType, Tensor};
use firesight_rl::{
    AttentionRequest, AttentionStates, Completion, CreditAssigner, CreditBatch, CreditInput, Evidence, Group,
    ResponseStates, SignalSet, Signals, TokenCredit,
};
use rayon::prelude::*;

use crate::alignment::{cosines, indices, mean_keys};
use crate::select::Selector;
use crate::sguf::content_hash;
use crate::{Error, ImageView, KawhiConfig, Metric, RegionSelector, Segmenter, VisualPrompt, token_weights};

/// Chosen visual tokens that are kept, of all images together: 128 MiB of them.
const KEPT_TOKENS: usize = 1 << 24;

/// KAWHI (arXiv 2603.27375) as a credit assigner: each token's weight is that of its paragraph, and a paragraph weighs
/// more the closer it attends to the key regions of the images (eq. 16-17).
///
/// Reads states of the passes that draw or score the rollout, so it costs no forward pass. The key regions of an image
/// are found once and kept.
///
/// The two choices that others may want to make otherwise are traits: which visual tokens count ([`RegionSelector`]),
/// and what gets a weight ([`Segmenter`]).
pub struct Kawhi {
    config: KawhiConfig,
    token_text: Box<dyn Fn(u32) -> String + Send + Sync>,
    selector: Box<dyn RegionSelector>,
    segmenter: Box<dyn Segmenter>,
    chosen: Mutex<Kept>,
    /// Texts of the tokens that were said so far: decoding them again and again would cost more than all the rest.
    texts: Mutex<HashMap<u32, Arc<str>>>,
}

/// Choices that are known, and how many visual tokens they hold together.
#[derive(Default)]
struct Kept {
    choices: HashMap<ImageId, Chosen>,
    tokens: usize,
}

/// Indices of chosen visual tokens.
type Chosen = Arc<[usize]>;

/// Content, width, height and cell of an image.
type ImageId = (u128, usize, usize, usize);

impl Kawhi {
    /// `token_text` gives the text of one token, as [`Segmenter`] wants it: an empty one for special tokens, anything
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
        Ok(Self {
            token_text: Box::new(token_text),
            selector: Box::new(Selector { selection: config.regions, sguf: config.sguf.clone() }),
            segmenter: Box::new(config.granularity),
            chosen: Mutex::default(),
            texts: Mutex::default(),
            config,
        })
    }

    /// With another choice of visual tokens than the configuration's.
    #[must_use]
    pub fn with_selector(self, selector: impl RegionSelector + 'static) -> Self {
        Self { selector: Box::new(selector), chosen: Mutex::default(), ..self }
    }

    /// With other parts of a response than the configuration's.
    #[must_use]
    pub fn with_segmenter(self, segmenter: impl Segmenter + 'static) -> Self {
        Self { segmenter: Box::new(segmenter), ..self }
    }

    /// The configuration it was made with; a selector or segmenter of somebody's own is not in it.
    pub fn config(&self) -> &KawhiConfig {
        &self.config
    }

    /// The visual tokens of an image that are chosen without looking at the vision encoder.
    fn chosen_of(&self, image: &ImageView<'_>) -> Result<Chosen, Error> {
        let id = (content_hash(image.pixels), image.width, image.height, image.cell);
        let lock = || self.chosen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = lock().choices.get(&id) {
            return Ok(Arc::clone(known));
        }
        // Outside of the lock: two threads that meet over an image both compute the same.
        let found: Chosen = chosen_cells(self.selector.as_ref(), image, None)?.into();
        let mut known = lock();
        if known.tokens + found.len() > KEPT_TOKENS {
            *known = Kept::default();
        }
        if known.choices.insert(id, Arc::clone(&found)).is_none() {
            known.tokens += found.len();
        }
        Ok(found)
    }

    /// Visual tokens of a prompt that count, its images one after another. `attention` is of all its visual tokens.
    fn visual_tokens<P: VisualPrompt>(
        &self,
        group: usize,
        prompt: &P,
        attention: Option<&[f32]>,
    ) -> Result<Vec<usize>, Error> {
        let images = prompt.images();
        if images.is_empty() {
            return Err(Error::NoImage { group });
        }
        let cells = images
            .iter()
            .map(|image| image.grid().map(|(rows, columns)| rows * columns))
            .collect::<Result<Vec<_>, _>>()?;
        let expected: usize = cells.iter().sum();
        if let Some(found) = attention.map(<[f32]>::len).filter(|&found| found != expected) {
            return Err(Error::VisualTokens { signal: "image_attention", group, found, expected });
        }
        let mut start = 0;
        let mut chosen = Vec::new();
        for (image, cells) in images.iter().zip(cells) {
            match attention {
                Some(attention) => {
                    let found = chosen_cells(self.selector.as_ref(), image, Some(&attention[start..start + cells]))?;
                    chosen.extend(found.into_iter().map(|token| start + token));
                }
                None => chosen.extend(self.chosen_of(image)?.iter().map(|token| start + token)),
            }
            start += cells;
        }
        Ok(chosen)
    }

    /// The states to compare.
    fn request<P: VisualPrompt + Sync>(&self, prompts: &[&P]) -> Result<SignalSet, Error> {
        let reads_attention = self.selector.reads_attention();
        let visual_tokens = if reads_attention {
            None
        } else {
            let chosen = prompts.par_iter().enumerate();
            Some(chosen.map(|(group, prompt)| self.visual_tokens(group, *prompt, None)).collect::<Result<_, _>>()?)
        };
        let response = match self.config.metric {
            Metric::KeyQuery => ResponseStates::Queries,
            Metric::KeyKey => ResponseStates::Keys,
        };
        let attention =
            AttentionRequest { rope: self.config.rope, response, heads: self.config.heads.indices(), visual_tokens };
        Ok(SignalSet { attention: Some(attention), image_attention: reads_attention, ..SignalSet::default() })
    }

    /// The visual tokens of a group that count, and their keys.
    fn keys<P: VisualPrompt>(
        &self,
        group: usize,
        prompt: &P,
        keys: &Tensor<3>,
        signals: &Signals,
    ) -> Result<(Chosen, Tensor<3>), Error> {
        let found = keys.dims()[1];
        let refuse = |expected| Err(Error::VisualTokens { signal: "attention", group, found, expected });
        if !self.selector.reads_attention() {
            let chosen = self.visual_tokens(group, prompt, None)?;
            return if found == chosen.len() { Ok((chosen.into(), keys.clone())) } else { refuse(chosen.len()) };
        }
        let attention = signals.image_attention.as_ref().and_then(|attention| attention.get(group));
        let attention = attention.ok_or(Error::MissingSignal { signal: "image_attention" })?;
        let attention: Vec<f32> = attention.clone().cast(FloatDType::F32).into_data().iter::<f32>().collect();
        if found != attention.len() {
            return refuse(attention.len());
        }
        let chosen = self.visual_tokens(group, prompt, Some(&attention))?;
        let rows = indices(&chosen, &keys.device());
        Ok((chosen.into(), keys.clone().select(1, rows)))
    }

    /// Alignment of every token of every completion, one after another, and for every group the visual tokens that count.
    fn alignments<P: VisualPrompt>(
        &self,
        groups: &[Group<P>],
        states: &AttentionStates,
        signals: &Signals,
    ) -> Result<(Vec<f32>, Vec<Chosen>), Error> {
        let keys = groups.iter().zip(&states.visual_keys).enumerate();
        let keys = keys.map(|(index, (group, keys))| self.keys(index, &group.prompt, keys, signals));
        let (visual_tokens, keys): (Vec<Chosen>, Vec<Tensor<3>>) =
            keys.collect::<Result<Vec<_>, Error>>()?.into_iter().unzip();
        let tokens = |group: &Group<P>| group.completions.iter().map(|completion| completion.tokens.len()).sum();
        let group_of: Vec<usize> =
            groups.iter().enumerate().flat_map(|(index, group)| vec![index; tokens(group)]).collect();
        let dims @ [found, ..] = states.response.dims();
        if found != group_of.len() {
            return Err(Error::TokenCount { found, expected: group_of.len() });
        }
        if group_of.is_empty() {
            return Ok((Vec::new(), visual_tokens));
        }
        // One comparison of the whole batch, and one transfer from the device: with small models it is their number that
        // costs.
        let keys = mean_keys(dims, &keys, &states.key_heads)?;
        let keys = keys.clone().select(0, indices(&group_of, &keys.device()));
        let values = cosines(states.response.clone(), keys).into_data().iter::<f32>().collect();
        Ok((values, visual_tokens))
    }

    /// Segments and alignment of every completion.
    fn evidence<P: VisualPrompt>(&self, groups: &[Group<P>], signals: &Signals) -> Result<Vec<Evidence>, Error> {
        let states = signals.attention.as_ref().ok_or(Error::MissingSignal { signal: "attention" })?;
        if states.visual_keys.len() != groups.len() {
            return Err(Error::GroupCount { found: states.visual_keys.len(), expected: groups.len() });
        }
        let completions: Vec<_> = groups
            .iter()
            .enumerate()
            .flat_map(|(group, whole)| whole.completions.iter().map(move |completion| (group, completion)))
            .collect();
        let (values, visual_tokens) = self.alignments(groups, states, signals)?;
        let mut known = self.texts.lock().unwrap_or_else(PoisonError::into_inner);
        let mut texts: HashMap<u32, Arc<str>> = HashMap::new();
        for &token in completions.iter().flat_map(|(_, completion)| &completion.tokens) {
            texts
                .entry(token)
                .or_insert_with(|| Arc::clone(known.entry(token).or_insert_with(|| (self.token_text)(token).into())));
        }
        drop(known);
        let mut values = values.as_slice();
        let evidence = |&(group, completion): &(usize, &Completion)| {
            let texts: Vec<&str> = completion.tokens.iter().map(|token| &*texts[token]).collect();
            let segments = self.segmenter.segment(&texts);
            let (alignment, rest) = values.split_at(completion.tokens.len());
            values = rest;
            Evidence { segments, alignment: alignment.to_vec(), visual_tokens: Arc::clone(&visual_tokens[group]) }
        };
        Ok(completions.iter().map(evidence).collect())
    }

    /// The weights that evidence gives.
    fn credit(&self, evidence: &Evidence) -> Result<TokenCredit, Error> {
        let precise: Vec<f64> = evidence.alignment.iter().copied().map(f64::from).collect();
        let weights = token_weights(&precise, &evidence.segments, &self.config.weights)?;
        Ok(TokenCredit { weights, kept: None, evidence: Some(evidence.clone()) })
    }
}

/// What a selector chooses; everything when it chooses nothing.
fn chosen_cells(
    selector: &dyn RegionSelector,
    image: &ImageView<'_>,
    attention: Option<&[f32]>,
) -> Result<Vec<usize>, Error> {
    let (rows, columns) = image.grid()?;
    let chosen = selector.select(image, attention)?;
    if chosen.len() != rows * columns {
        return Err(Error::Selection { found: chosen.len(), expected: rows * columns });
    }
    let all = !chosen.contains(&true);
    Ok((0..chosen.len()).filter(|&token| all || chosen[token]).collect())
}

/// # Errors
/// Those of this crate come as [`firesight_rl::Error::Credit`].
impl<P: VisualPrompt + Sync> CreditAssigner<P> for Kawhi {
    fn name(&self) -> &'static str {
        "kawhi"
    }

    fn signals(&self, prompts: &[&P]) -> Result<SignalSet, firesight_rl::Error> {
        self.request(prompts).map_err(failed)
    }

    fn reduce(&self, groups: &[Group<P>], signals: &Signals) -> Result<Vec<Evidence>, firesight_rl::Error> {
        self.evidence(groups, signals).map_err(failed)
    }

    fn assign(&self, rollout: &CreditBatch<'_, P>) -> Result<Vec<TokenCredit>, firesight_rl::Error> {
        let credit = |input: &CreditInput<'_, P>| {
            let evidence = input.evidence.ok_or(Error::MissingSignal { signal: "attention" }).map_err(failed)?;
            self.credit(evidence).map_err(failed)
        };
        rollout.completions.iter().map(credit).collect()
    }
}

fn failed(error: Error) -> firesight_rl::Error {
    firesight_rl::Error::Credit(Box::new(error))
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
    use firesight_rl::{Completion, Rope, assign_from_signals};

    use super::*;
    use crate::{Granularity, Heads, Normalize, RegionSelection, SgufConfig, WeightConfig};

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

    /// Queries of one head at the angle whose cosine with x is given, `[tokens, 1, 2]`.
    fn queries(cosines: &[&[f32]]) -> Tensor<3> {
        let cosines = cosines.concat();
        let values: Vec<f32> = cosines.iter().flat_map(|&cosine| [cosine, (1.0 - cosine * cosine).sqrt()]).collect();
        Tensor::<1>::from_floats(values.as_slice(), &Device::flex()).reshape([cosines.len(), 1, 2])
    }

    fn signals(response: Tensor<3>, visual_keys: Vec<Tensor<3>>) -> Signals {
        let key_heads = vec![0; response.dims()[1]];
        Signals { attention: Some(AttentionStates { response, visual_keys, key_heads }), ..Signals::default() }
    }

    /// What a policy hands out: of these keys the ones that were asked for.
    fn chosen(kawhi: &Kawhi, groups: &[Group<Prompt>], response: Tensor<3>, all: &[&[bool]]) -> Signals {
        let prompts: Vec<&Prompt> = groups.iter().map(|group| &group.prompt).collect();
        let asked = kawhi.signals(&prompts).unwrap().attention.unwrap().visual_tokens.unwrap();
        let of_group =
            |(all, asked): (&&[bool], Vec<usize>)| keys(&asked.into_iter().map(|token| all[token]).collect::<Vec<_>>());
        signals(response, all.iter().zip(asked).map(of_group).collect())
    }

    fn weights(kawhi: &Kawhi, groups: &[Group<Prompt>], signals: &Signals) -> Vec<Vec<f32>> {
        assign_from_signals(kawhi, groups, signals).unwrap().into_iter().map(|credit| credit.weights).collect()
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
    fn it_asks_for_what_it_is_configured_to_compare() {
        let prompts = [Prompt(vec![image(3, &[1]), image(4, &[0, 3])]), Prompt(vec![image(2, &[1])])];
        let ask = |config| kawhi(config).signals(&prompts.each_ref()).unwrap();
        let asked = ask(exact());
        assert!(!asked.image_attention);
        let attention = asked.attention.unwrap();
        assert_eq!(
            (attention.rope, attention.response, &attention.heads),
            (Rope::After, ResponseStates::Queries, &None)
        );
        assert_eq!(attention.visual_tokens, Some(vec![vec![1, 3, 6], vec![1]]));
        let attention = ask(KawhiConfig {
            rope: Rope::Before,
            metric: Metric::KeyKey,
            heads: Heads::List(vec![3, 1]),
            regions: RegionSelection::All,
            ..exact()
        });
        let attention = attention.attention.unwrap();
        assert_eq!((attention.rope, attention.response), (Rope::Before, ResponseStates::Keys));
        assert_eq!(attention.heads, Some(vec![3, 1]));
        assert_eq!(attention.visual_tokens, Some(vec![(0..7).collect(), vec![0, 1]]));
        // Which tokens VisionZip chooses is known only after the pass.
        let asked = ask(KawhiConfig { regions: RegionSelection::VisionZip, ..exact() });
        assert!(asked.image_attention);
        assert_eq!(asked.attention.unwrap().visual_tokens, None);
        let blind = Prompt(vec![]);
        let error = kawhi(exact()).signals(&[&prompts[0], &blind]).unwrap_err();
        let firesight_rl::Error::Credit(error) = error else { panic!("{error}") };
        assert!(matches!(*error.downcast::<Error>().unwrap(), Error::NoImage { group: 1 }));
    }

    #[test]
    fn paragraphs_that_attend_to_key_cells_weigh_more() {
        let kawhi = kawhi(exact());
        let key = [true, false, false, true, false];
        let groups = [group(vec![image(5, &[0, 3])], &[&[3, 1, 3, 0], &[3, 2, 3]])];
        let response = queries(&[&[0.8, 0.6, 0.5, 0.3], &[0.1, 0.2, 0.3]]);
        let credit = assign_from_signals(&kawhi, &groups, &chosen(&kawhi, &groups, response, &[&key])).unwrap();
        let [first, second] = two_weights(0.7, 0.4);
        close(&credit[0].weights, &[first, first, second, second]);
        let evidence = credit[0].evidence.as_ref().unwrap();
        assert_eq!(evidence.segments, [0..2, 2..4]);
        close(&evidence.alignment, &[0.8, 0.6, 0.5, 0.3]);
        assert_eq!(*evidence.visual_tokens, [0, 3]);
        // No blank line: plain GRPO, exactly.
        assert_eq!(credit[1].weights, [1.0; 3]);
        assert_eq!(credit[1].evidence.as_ref().unwrap().alignment.len(), 3);
    }

    #[test]
    fn images_of_a_prompt_are_concatenated() {
        let kawhi = kawhi(exact());
        let images = vec![image(3, &[1]), image(4, &[3])];
        let key = [false, true, false, false, false, false, true];
        let groups = [group(vec![image(1, &[0])], &[&[3]]), group(images, &[&[3, 1, 3]])];
        let response = || queries(&[&[0.0], &[0.8, 0.6, 0.4]]);
        let found = weights(&kawhi, &groups, &chosen(&kawhi, &groups, response(), &[&[true], &key]));
        assert_eq!(found[0], [1.0]);
        let [first, second] = two_weights(0.7, 0.4);
        close(&found[1], &[first, first, second]);
        // Were the masks swapped, other tokens would be compared.
        let swapped =
            [group(vec![image(1, &[0])], &[&[3]]), group(vec![image(4, &[3]), image(3, &[1])], &[&[3, 1, 3]])];
        let found = weights(&kawhi, &swapped, &chosen(&kawhi, &swapped, response(), &[&[true], &key]));
        assert!((found[1][0] - first).abs() > 1e-3);
    }

    #[test]
    fn heads_share_the_comparison() {
        // Two query heads on one key head; head 1 sees the paragraphs the other way round.
        let both = [queries(&[&[0.7, 0.7, 0.4]]), queries(&[&[0.4, 0.4, 0.7]])];
        let groups = [group(vec![image(2, &[0])], &[&[3, 1, 3]])];
        let kawhi = kawhi(exact());
        let found = |response| weights(&kawhi, &groups, &signals(response, vec![keys(&[true])])).remove(0);
        let [high, low] = two_weights(0.7, 0.4);
        close(&found(both[0].clone()), &[high, high, low]);
        close(&found(both[1].clone()), &[low, low, high]);
        close(&found(Tensor::cat(both.to_vec(), 1)), &[0.55; 3]);
    }

    #[test]
    fn vision_zip_compares_with_the_tokens_that_receive_most_attention() {
        let kawhi = kawhi(KawhiConfig { regions: RegionSelection::VisionZip, ..exact() });
        let groups = [group(vec![image(2, &[0]), image(3, &[1])], &[&[3, 1, 3]])];
        // Half of each image, rounded up: token 1 of the first, tokens 0 and 2 of the second, which point along x.
        let attention = Tensor::from_floats([0.1, 0.9, 0.8, 0.1, 0.7], &Device::flex());
        let mut signals = signals(queries(&[&[0.8, 0.6, 0.4]]), vec![keys(&[false, true, true, false, true])]);
        assert!(matches!(error(&kawhi, &groups, &signals), Error::MissingSignal { signal: "image_attention" }));
        signals.image_attention = Some(vec![attention.clone()]);
        let credit = assign_from_signals(&kawhi, &groups, &signals).unwrap().remove(0);
        let [first, second] = two_weights(0.7, 0.4);
        close(&credit.weights, &[first, first, second]);
        assert_eq!(*credit.evidence.unwrap().visual_tokens, [1, 2, 4]);
        signals.image_attention = Some(vec![attention.narrow(0, 0, 4)]);
        let found = error(&kawhi, &groups, &signals);
        assert!(matches!(found, Error::VisualTokens { signal: "attention", found: 5, expected: 4, .. }));
    }

    #[test]
    fn granularity_decides_what_gets_a_weight() {
        let groups = [group(vec![image(2, &[0])], &[&[3, 1, 3, 0]])];
        let found = |granularity| {
            let kawhi = kawhi(KawhiConfig { granularity, ..exact() });
            weights(&kawhi, &groups, &signals(queries(&[&[0.8, 0.6, 0.4, 0.2]]), vec![keys(&[true])])).remove(0)
        };
        // By hand: every token by itself at tau 0.1, exp(0, -2, -4, -6) over their sum.
        let exponentials = [0.0f32, -2.0, -4.0, -6.0].map(f32::exp);
        let sum: f32 = exponentials.iter().sum();
        let expected = exponentials.map(|value| 0.1 + 0.9 * (0.9 * value / sum + 0.1 / 4.0));
        close(&found(Granularity::Token), &expected);
        let [first, second] = two_weights(0.7, 0.3);
        close(&found(Granularity::Paragraph), &[first, first, second, second]);
    }

    #[test]
    fn selector_and_segmenter_may_be_somebodys_own() {
        struct Last;
        impl RegionSelector for Last {
            fn select(&self, image: &ImageView<'_>, _: Option<&[f32]>) -> Result<Vec<bool>, Error> {
                let (rows, columns) = image.grid()?;
                // None of a single cell, which chooses it all the same.
                Ok((1..=rows * columns).map(|cell| cell == rows * columns && cell > 1).collect())
            }
        }
        struct Halves;
        impl Segmenter for Halves {
            fn segment(&self, texts: &[&str]) -> Vec<std::ops::Range<usize>> {
                vec![0..texts.len() / 2, texts.len() / 2..texts.len()]
            }
        }
        let kawhi = kawhi(exact()).with_selector(Last).with_segmenter(Halves);
        let groups = [group(vec![image(3, &[0]), image(1, &[])], &[&[3, 3, 3, 3]])];
        let response = queries(&[&[0.8, 0.6, 0.4, 0.2]]);
        let states = chosen(&kawhi, &groups, response, &[&[false, false, true, true]]);
        let credit = assign_from_signals(&kawhi, &groups, &states).unwrap().remove(0);
        let [first, second] = two_weights(0.7, 0.3);
        close(&credit.weights, &[first, first, second, second]);
        assert_eq!(*credit.evidence.unwrap().visual_tokens, [2, 3]);
    }

    #[test]
    fn mean_one_normalises_every_completion() {
        let mean_one = WeightConfig { normalize: Normalize::MeanOne, ..WeightConfig::default() };
        let groups = [group(vec![image(2, &[0])], &[&[3, 1, 3, 3], &[3]])];
        let states = signals(queries(&[&[0.8, 0.6, 0.4, 0.1], &[0.1]]), vec![keys(&[true])]);
        for weights in weights(&kawhi(KawhiConfig { weights: mean_one, ..exact() }), &groups, &states) {
            assert!((weights.iter().sum::<f32>() / weights.len() as f32 - 1.0).abs() < 1e-6, "{weights:?}");
        }
    }

    #[test]
    fn regions_are_kept_by_content() {
        let kawhi = kawhi(KawhiConfig::default());
        let [one, same, other] = [image(6, &[0]), image(6, &[0]), image(6, &[1])];
        let chosen = |image| kawhi.chosen_of(&Prompt(vec![image]).images()[0]).unwrap();
        let (one, same, other) = (chosen(one), chosen(same), chosen(other));
        assert!(Arc::ptr_eq(&one, &same));
        assert_ne!(one, other);
        let kept = kawhi.chosen.lock().unwrap();
        assert_eq!((kept.choices.len(), kept.tokens), (2, one.len() + other.len()));
    }

    #[test]
    fn a_batch_without_tokens_has_no_weights() {
        let groups = [group(vec![image(2, &[0])], &[&[], &[]])];
        let states = signals(Tensor::zeros([0, 1, 2], &Device::flex()), vec![keys(&[true])]);
        assert_eq!(weights(&kawhi(exact()), &groups, &states), [Vec::<f32>::new(), Vec::new()]);
        let none: [Group<Prompt>; 0] = [];
        let states = signals(Tensor::zeros([0, 1, 2], &Device::flex()), Vec::new());
        assert!(assign_from_signals(&kawhi(exact()), &none, &states).unwrap().is_empty());
    }

    fn error(kawhi: &Kawhi, groups: &[Group<Prompt>], signals: &Signals) -> Error {
        match assign_from_signals(kawhi, groups, signals) {
            Err(firesight_rl::Error::Credit(source)) => *source.downcast::<Error>().unwrap(),
            other => panic!("{other:?}"),
        }
    }

    /// Decides about one visual token, however many there are.
    struct Wrong;

    impl RegionSelector for Wrong {
        fn select(&self, _: &ImageView<'_>, _: Option<&[f32]>) -> Result<Vec<bool>, Error> {
            Ok(vec![true])
        }
    }

    #[test]
    fn errors_are_named() {
        let kawhi = kawhi(exact());
        let run = |groups: &[Group<Prompt>], signals: &Signals| error(&kawhi, groups, signals);
        let groups = [group(vec![image(2, &[0])], &[&[3, 3]])];
        let right = || (queries(&[&[0.1, 0.2]]), vec![keys(&[true])]);

        assert!(matches!(run(&groups, &Signals::default()), Error::MissingSignal { signal: "attention" }));
        let (states, _) = right();
        assert!(matches!(run(&groups, &signals(states, vec![])), Error::GroupCount { found: 0, expected: 1 }));
        let (_, visual_keys) = right();
        let states = signals(queries(&[&[0.1, 0.2], &[0.1, 0.2]]), visual_keys);
        assert!(matches!(run(&groups, &states), Error::TokenCount { found: 4, expected: 2 }));
        let (_, visual_keys) = right();
        let states = signals(queries(&[&[0.1]]), visual_keys);
        assert!(matches!(run(&groups, &states), Error::TokenCount { found: 1, expected: 2 }));
        let (states, _) = right();
        let states = signals(states, vec![keys(&[true, false, false])]);
        let found = run(&groups, &states);
        assert!(matches!(found, Error::VisualTokens { signal: "attention", group: 0, found: 3, expected: 1 }));
        let (states, visual_keys) = right();
        let blind = [group(vec![], &[&[3, 3]])];
        assert!(matches!(run(&blind, &signals(states, visual_keys)), Error::NoImage { group: 0 }));
        let (_, visual_keys) = right();
        let states = signals(queries(&[&[0.1, f32::NAN]]), visual_keys);
        assert!(matches!(run(&groups, &states), Error::NonFinite { token: 1, .. }));

        let config = KawhiConfig { heads: Heads::List(vec![]), ..exact() };
        assert!(matches!(Kawhi::new(config, |_| String::new()), Err(Error::NoHeads)));
        let own = Kawhi::new(exact(), |_| String::new()).unwrap().with_selector(Wrong);
        let (states, visual_keys) = right();
        let found = error(&own, &groups, &signals(states, visual_keys));
        assert!(matches!(found, Error::Selection { found: 1, expected: 2 }));
    }
}
