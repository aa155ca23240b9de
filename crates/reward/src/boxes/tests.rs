use serde_json::{Map, Value, json};

use super::*;
use crate::Image;
use crate::testing::{nothing, response};

/// The file has 200 by 100 pixels, the model sees 100 by 100.
const IMAGES: [Image<'static>; 1] = [Image { original: (200, 100), resized: (100, 100), path: None }];

fn asked<'a>(answer: &'a str, columns: &'a Map<String, Value>) -> Asked<'a> {
    Asked { prompt: "", answer: Some(answer), images: &IMAGES, columns }
}

fn iou(reward: &Iou, frame: BoxFrame, text: &str, answer: &str) -> Result<f32, Error> {
    let reward = reward.reading(frame).expect("in range");
    Ok(reward.score(&asked(answer, &nothing()), &response(text))?.value.expect("a value"))
}

fn detect(reward: &Detection, text: &str, answer: &str) -> f32 {
    let reward = reward.reading(BoxFrame::Resized).expect("in range");
    reward.score(&asked(answer, &nothing()), &response(text)).expect("a score").value.expect("a value")
}

fn near(found: f32, expected: f64) {
    assert!((f64::from(found) - expected).abs() < 1e-6, "{found} is not {expected}");
}

#[test]
fn the_overlap_is_that_of_the_first_boxes_in_one_frame() {
    let of = |frame, text| iou(&Iou::default(), frame, text, "[0, 0, 100, 50]").expect("a score");
    // Half the width and half the height of the image; pixels of what the model sees, or thousandths.
    near(of(BoxFrame::Resized, "[0, 0, 50, 50]"), 1.0);
    near(of(BoxFrame::Thousand, "[0, 0, 500, 500] [0, 0, 1, 1]"), 1.0);
    // Two by two quarters that share one: 1 / 7.
    near(of(BoxFrame::Resized, "[25, 25, 75, 75]"), 1.0 / 7.0);
    near(of(BoxFrame::Resized, "[50, 0, 100, 50]"), 0.0);
    near(of(BoxFrame::Resized, "none"), 0.0);
}

#[test]
fn the_reference_has_a_frame_and_a_column_of_its_own() {
    let text = "[25, 25, 75, 75]";
    for (reference, answer) in [
        (ReferenceFrame::Original, "[50, 25, 150, 75]"),
        (ReferenceFrame::Resized, "[25, 25, 75, 75]"),
        (ReferenceFrame::Normalised, "[0.25, 0.25, 0.75, 0.75]"),
    ] {
        near(iou(&Iou { reference, ..Iou::default() }, BoxFrame::Resized, text, answer).expect("a score"), 1.0);
    }
    let reward = Iou { column: Some("box".into()), ..Iou::default() }.reading(BoxFrame::Resized).expect("in range");
    for value in [json!([50, 25, 150, 75]), json!([{"bbox_2d": [50, 25, 150, 75]}]), json!("[50, 25, 150, 75]")] {
        let columns = Map::from_iter([("box".into(), value)]);
        assert_eq!(reward.score(&asked("", &columns), &response(text)).expect("a score").value, Some(1.0));
    }
}

#[test]
fn a_threshold_makes_it_one_or_nothing() {
    // 0.5 is met exactly: half of a box.
    let reward = |threshold| Iou { threshold: Some(threshold), ..Iou::default() };
    let of = |threshold, text| iou(&reward(threshold), BoxFrame::Resized, text, "[0, 0, 200, 100]").expect("a score");
    near(of(0.5, "[0, 0, 50, 100]"), 1.0);
    near(of(0.51, "[0, 0, 50, 100]"), 0.0);
    near(of(0.0, "none"), 0.0);
    for threshold in [-0.1, 1.1, f64::NAN] {
        assert!(reward(threshold).reading(BoxFrame::Resized).is_err());
        assert!(Detection { threshold, ..Detection::default() }.reading(BoxFrame::Resized).is_err());
    }
}

#[test]
fn bad_boxes_overlap_with_nothing_and_edges_are_those_of_the_image() {
    let of = |text| iou(&Iou::default(), BoxFrame::Resized, text, "[0, 0, 200, 100]").expect("a score");
    near(of("[-50, -1, 1000, 100.5]"), 1.0);
    near(of("[50, 0, 1e300, 100]"), 0.5);
    for text in ["[100, 100, 0, 0]", "[0, 100, 100, 0]", "[3, 3, 3, 3]", "[-9, -9, -1, -1]", "[200, 200, 300, 300]"] {
        near(of(text), 0.0);
    }
    // The first box counts, bad as it is.
    near(of("[3, 3, 3, 3] [0, 0, 100, 100]"), 0.0);
}

#[test]
fn a_row_of_no_use_is_an_error() {
    let of = |answer| iou(&Iou::default(), BoxFrame::Resized, "[1, 2, 3, 4]", answer).expect_err(answer).to_string();
    assert_eq!(of("none"), "the answer of the row, \"none\", has no box");
    assert!(of("[3, 3, 3, 3]").ends_with("has a box without area in the image: [3.0, 3.0, 3.0, 3.0]"));
    assert!(of("[300, 0, 400, 50]").contains("without area"));
    assert!(of("[]").contains("has no box"));
    let reward = Iou { column: Some("box".into()), ..Iou::default() }.reading(BoxFrame::Resized).expect("in range");
    let columns = Map::from_iter([("box".into(), json!([]))]);
    let error = reward.score(&asked("", &columns), &response("")).expect_err("no box").to_string();
    assert_eq!(error, "column \"box\" of the row has no box");
    let second = iou(&Iou { image: 1, ..Iou::default() }, BoxFrame::Resized, "", "[1, 2, 3, 4]");
    assert_eq!(second.expect_err("one image").to_string(), "image 1 of the row is missing: it has 1");
}

const DOGS: &str =
    r#"[{"bbox_2d": [0, 0, 100, 50], "label": "Dog"}, {"bbox_2d": [100, 50, 200, 100], "label": "cat"}]"#;

fn written(boxes: &[(&str, &str)]) -> String {
    let each = boxes.iter().map(|(corners, label)| format!(r#"{{"bbox_2d": {corners}, "label": "{label}"}}"#));
    format!("```json\n[{}]\n```", each.collect::<Vec<_>>().join(", "))
}

#[test]
fn detection_is_f1_over_pairs_with_equal_labels() {
    let of = |boxes: &[(&str, &str)]| detect(&Detection::default(), &written(boxes), DOGS);
    let (dog, cat) = (("[0, 0, 50, 50]", "dog"), ("[50, 50, 100, 100]", "cat"));
    near(of(&[cat, dog]), 1.0);
    near(of(&[dog]), 2.0 / 3.0);
    near(of(&[dog, dog, cat]), 4.0 / 5.0);
    near(of(&[("[0, 0, 50, 50]", "cat"), cat]), 2.0 / 4.0);
    near(of(&[dog, ("[9, 9, 9, 9]", "cat")]), 2.0 / 4.0);
    near(of(&[]), 0.0);
    // A third of the area: below the threshold of one half.
    near(of(&[("[0, 0, 50, 16]", "dog"), cat]), 2.0 / 4.0);
    let blind = Detection { labels: false, ..Detection::default() };
    near(detect(&blind, "[[0, 0, 50, 50], [50, 50, 100, 100]]", DOGS), 1.0);
    near(detect(&Detection::default(), "[[0, 0, 50, 50], [50, 50, 100, 100]]", DOGS), 0.0);
    near(detect(&Detection::default(), &written(&[dog]), "[0, 0, 100, 50]"), 1.0);
}

#[test]
fn the_mean_overlap_counts_boxes_too_many_and_too_few() {
    let reward = Detection { measure: Measure::MeanIou, ..Detection::default() };
    let of = |boxes: &[(&str, &str)]| detect(&reward, &written(boxes), DOGS);
    let (dog, cat) = (("[0, 0, 50, 40]", "dog"), ("[50, 50, 100, 100]", "cat"));
    near(of(&[dog, cat]), f64::midpoint(0.8, 1.0));
    near(of(&[dog]), 0.4);
    near(of(&[dog, cat, cat, cat]), 1.8 / 4.0);
}

#[test]
fn nothing_is_found_where_nothing_is() {
    near(detect(&Detection::default(), "There is no dog: []", "[]"), 1.0);
    near(detect(&Detection::default(), "[1, 2, 3, 4]", "[]"), 0.0);
}
