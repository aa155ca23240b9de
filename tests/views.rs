//! Prompts under a changed view: a model scores them as it scores the prompt that was rendered like that from the
//! start. And what two models make of the same prompt, put together when completions are drawn.
#![allow(clippy::unwrap_used)]

mod support;

use firesight_vlm::{
    Component, Error, Extrapolation, Generation, ImageChange, Message, Part, Processor, Prompt, QwenVl, Sampling,
    Scored, TokenMask,
};
use image::{Rgb, RgbImage};
use support::models::{Case, everything, models, values};
use support::{device, tolerance};

/// Log-probabilities of two completions.
fn log_probs(model: &QwenVl, prompt: &Prompt) -> Vec<f32> {
    let completions: Vec<&[u32]> = vec![&[3, 1, 4, 1, 5], &[2, 7]];
    let scores = model.score(&[Scored { prompt, completions }], 1.0, &everything(model), None).unwrap();
    values(scores.log_probs)
}

fn distance(one: &[f32], other: &[f32]) -> f32 {
    one.iter().zip(other).map(|(one, other)| (one - other).abs()).fold(0.0, f32::max)
}

#[test]
fn a_changed_prompt_is_scored_like_one_that_was_always_so() {
    let mut checked = 0;
    for (dir, _) in models() {
        let model = QwenVl::from_dir(&dir, &device()).unwrap();
        if model.config().vision_config.is_none() {
            continue;
        }
        checked += 1;
        // What the tower makes of an image is kept with a prompt, and must not come along.
        let model = model.with_frozen(&[Component::Vision, Component::Merger]);
        let processor = Processor::from_dir(&dir).unwrap();
        let pictures = [(130, 90), (60, 170)]
            .map(|(width, height)| RgbImage::from_fn(width, height, |x, y| Rgb([x as u8, y as u8, (x * y) as u8])));
        let render = |pictures: &[RgbImage]| {
            let mut parts = vec![Part::text("Look: ")];
            parts.extend(pictures.iter().flat_map(|_| [Part::Image, Part::text(" and ")]));
            parts.push(Part::text("count."));
            let images: Vec<_> = pictures.iter().map(|picture| processor.image(picture).unwrap()).collect();
            processor.prompt(&[Message::user(parts)], &images).unwrap()
        };
        let prompt = render(&pictures);
        let seen = log_probs(&model, &prompt);
        let change = |change| processor.changed(&prompt, &change, 1, 2).unwrap();
        // What float32 explains on this device, 1e-6 on the CPU.
        let near = tolerance() as f32 / 100.0;

        let black = render(&pictures.clone().map(|picture| RgbImage::new(picture.width(), picture.height())));
        let blackened = change(ImageChange::Blacken { patch: 14, share: 1.0 });
        let found = log_probs(&model, &blackened);
        assert!(distance(&found, &log_probs(&model, &black)) < near, "{}", dir.display());
        assert!(distance(&found, &seen) > 1e-4, "{}: the picture makes no difference", dir.display());
        assert_eq!(log_probs(&model, &change(ImageChange::Blacken { patch: 14, share: 0.0 })), seen);

        let without = change(ImageChange::Remove {});
        // Encoded piece by piece, as the images had cut it.
        let mut pieces = prompt.input_ids().to_vec();
        let config = model.config();
        let of_images = [config.image_token_id, config.vision_start_token_id, config.vision_end_token_id];
        pieces.retain(|&id| !of_images.contains(&Some(id)));
        let encoded = Prompt::new(pieces, Vec::new(), Vec::new());
        let found = log_probs(&model, &without);
        assert!(distance(&found, &log_probs(&model, &encoded)) < near, "{}", dir.display());
        assert!(distance(&found, &seen) > 1e-4, "{}: the picture makes no difference", dir.display());
    }
    assert!(checked > 0, "no model with a vision tower");
}

/// Where no token spans what the image stood between, taking it out gives the ids of the prompt that never had it.
#[test]
fn a_prompt_whose_image_is_removed_is_the_prompt_without_it() {
    for (dir, _) in models() {
        let model = QwenVl::from_dir(&dir, &device()).unwrap();
        if model.config().vision_config.is_none() {
            continue;
        }
        let processor = Processor::from_dir(&dir).unwrap();
        let image = processor.image(&RgbImage::from_fn(90, 60, |x, y| Rgb([x as u8, y as u8, 7]))).unwrap();
        let question = Part::text("How many bars?");
        let with = processor.prompt(&[Message::user(vec![Part::Image, question.clone()])], &[image]).unwrap();
        let text = processor.prompt(&[Message::user(vec![question])], &[]).unwrap();
        let without = processor.changed(&with, &ImageChange::Remove {}, 0, 0).unwrap();
        assert_eq!(without.input_ids(), text.input_ids());
        assert!(distance(&log_probs(&model, &without), &log_probs(&model, &text)) < tolerance() as f32 / 100.0);
    }
}

/// Tokens that end completions, some of them early.
fn stop_tokens(model: &QwenVl) -> Vec<u32> {
    (0..model.config().text_config.vocab_size as u32).step_by(11).collect()
}

fn generation<'a>(sampling: Sampling, mask: &'a TokenMask, stop_tokens: &'a [u32]) -> Generation<'a> {
    Generation { sampling, max_new_tokens: 12, stop_tokens, mask, seed: 3, first_stream: 0 }
}

/// Those of a case, and short ones of text.
fn prompts(case: &Case) -> Vec<Prompt> {
    let whole = case.rows.iter().map(|(prompt, _)| prompt.clone());
    let text = (4..10).map(|id| Prompt::new((id..2 * id).collect(), Vec::new(), Vec::new()));
    whole.chain(text).collect()
}

#[test]
fn what_extrapolates_by_nothing_or_from_itself_draws_the_same() {
    for (dir, cases) in models() {
        let base = QwenVl::from_dir(&dir, &device()).unwrap();
        // Fresh weights: those of the directory say the same token over and over.
        let model = QwenVl::new(base.config(), 9, &device());
        let (mask, stop_tokens, prompts) = (everything(&model), stop_tokens(&model), prompts(&cases[0]));
        let prompts: Vec<&Prompt> = prompts.iter().collect();
        let whole = Sampling::at(1.3);
        for sampling in [whole, Sampling::GREEDY, Sampling { top_k: 40, top_p: 0.9, ..whole }] {
            let options = generation(sampling, &mask, &stop_tokens);
            let draw = |base, gamma, threshold| {
                let extrapolation = Extrapolation { base, gamma, threshold };
                model.generate_extrapolated(&prompts, 3, &options, &extrapolation, |_, _| {}).unwrap()
            };
            let plain = model.generate(&prompts, 3, &options).unwrap();
            assert_eq!(draw(&base, 0.0, 0.0), plain);
            assert_eq!(draw(&model, 2.0, 0.0), plain);
            assert_eq!(draw(&base, 2.0, 1e9), plain);
            assert_ne!(draw(&base, 2.0, 0.0), plain);
        }
    }
}

/// The arg max of `log p + gamma (log p - log q)`, recomputed from the logits that both models have for the whole of
/// what was drawn; where the two are closer than the threshold, that of p alone.
#[test]
fn extrapolated_greedy_tokens_are_those_of_the_two_models() {
    const GAMMA: f64 = 0.7;
    let log_softmax = |logits: &[f32]| -> Vec<f64> {
        let total: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
        logits.iter().map(|&logit| f64::from(logit) - total.ln()).collect()
    };
    for (dir, cases) in models() {
        let base = QwenVl::from_dir(&dir, &device()).unwrap();
        // Fresh weights: those of the directory say the same token over and over.
        let model = QwenVl::new(base.config(), 9, &device());
        let (mask, stop_tokens, prompts) = (everything(&model), stop_tokens(&model), prompts(&cases[0]));
        let prompts: Vec<&Prompt> = prompts.iter().collect();
        let options = generation(Sampling::GREEDY, &mask, &stop_tokens);
        let mut divergences = vec![0.0];
        // Everywhere first, then but for where the models differ less than at most positions before.
        for _ in 0..2 {
            let threshold = divergences[divergences.len() / 4];
            let extrapolation = Extrapolation { base: &base, gamma: GAMMA as f32, threshold: threshold as f32 };
            let drawn = model.generate_extrapolated(&prompts, 2, &options, &extrapolation, |_, _| {}).unwrap();
            let lengths = drawn.iter().flatten().map(|completion| completion.tokens.len());
            let (shortest, longest) = (lengths.clone().min().unwrap(), lengths.max().unwrap());
            println!("{}: threshold {threshold:.4}, {shortest} to {longest} tokens", dir.display());
            divergences.clear();
            let (mut moved, mut gated) = (0, 0);
            for (prompt, group) in prompts.iter().zip(&drawn) {
                assert_eq!(group[0], group[1]);
                let completion = &group[0];
                let ids = [prompt.input_ids(), &completion.tokens].concat();
                let sequence = Prompt::new(ids, prompt.images().to_vec(), prompt.image_spans().to_vec());
                let [policy, base] = [&model, &base].map(|model| values(model.prompt_logits(&[&sequence]).unwrap()));
                let width = model.config().text_config.vocab_size;
                for (token, &found) in completion.tokens.iter().enumerate() {
                    let at = (prompt.input_ids().len() - 1 + token) * width;
                    let [p, q] = [&policy, &base].map(|logits| log_softmax(&logits[at..at + width]));
                    let divergence: f64 = p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum();
                    divergences.push(divergence);
                    // Nothing is said where rounding decides.
                    if (divergence - threshold).abs() < 1e-4 && threshold > 0.0 {
                        continue;
                    }
                    let gamma = if divergence < threshold { 0.0 } else { GAMMA };
                    let combined: Vec<f64> = p.iter().zip(&q).map(|(p, q)| p + gamma * (p - q)).collect();
                    let most = |values: &[f64]| values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let found = found as usize;
                    assert!(combined[found] > most(&combined) - tolerance(), "{}: token {token}", dir.display());
                    assert!((p[found] - f64::from(completion.log_probs[token])).abs() < tolerance());
                    moved += usize::from(p[found] < most(&p) - tolerance());
                    gated += usize::from(gamma == 0.0);
                }
            }
            divergences.sort_by(f64::total_cmp);
            println!("{moved} moved, {gated} of {} left alone", divergences.len());
            assert!(moved > 0 && (gated > 0) == (threshold > 0.0));
        }

        let mut config = model.config().clone();
        config.text_config.vocab_size += 8;
        let larger = QwenVl::new(&config, 9, &device());
        let extrapolation = Extrapolation { base: &larger, gamma: 1.0, threshold: 0.0 };
        let refused = model.generate_extrapolated(&prompts, 1, &options, &extrapolation, |_, _| {}).unwrap_err();
        assert!(matches!(refused, Error::OtherVocabulary { base: 528, policy: 520 }), "{refused}");
    }
}
