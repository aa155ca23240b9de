//! Prompts under a changed view: a model scores them as it scores the prompt that was rendered like that from the start.
#![allow(clippy::unwrap_used)]

mod support;

use firesight_vlm::{Component, ImageChange, Message, Part, Processor, Prompt, QwenVl, Scored};
use image::{Rgb, RgbImage};
use support::models::{everything, models, values};
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
