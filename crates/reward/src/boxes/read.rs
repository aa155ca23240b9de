//! Boxes as models write them.

use std::sync::LazyLock;

use regex::Regex;
use serde_json::{Deserializer, Value};

use crate::answer::{after_thinking, last_tag};

/// A box as it is written: left, top, right, bottom in whatever frame.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Written {
    pub(super) corners: [f64; 4],
    /// In lower case, without white space around.
    pub(super) label: Option<String>,
}

/// The boxes that a text ends with: those behind the thinking, of these the ones in the last answer tags, of these the
/// ones in the last fenced block that has some.
pub(super) fn boxes(text: &str) -> Vec<Written> {
    let text = after_thinking(text);
    let text = last_tag(text).unwrap_or(text);
    // Every second piece is inside of a fence; one that is not closed is as well.
    let fenced: Vec<&str> = text.split("```").skip(1).step_by(2).collect();
    let blocks = fenced.iter().rev().chain([&text]);
    blocks.map(|block| in_block(block)).find(|found| !found.is_empty()).unwrap_or_default()
}

fn in_block(text: &str) -> Vec<Written> {
    let json = in_json(text);
    if json.is_empty() { in_pairs(text) } else { json }
}

/// The boxes in whatever of a text is JSON. A list that is cut off is none, but its elements are.
fn in_json(text: &str) -> Vec<Written> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find(['[', '{']) {
        rest = &rest[start..];
        let mut values = Deserializer::from_str(rest).into_iter();
        let end = if let Some(Ok(value)) = values.next() {
            collect(&value, &mut found);
            values.byte_offset()
        } else {
            1
        };
        rest = &rest[end..];
    }
    found
}

/// The boxes in JSON.
pub(super) fn boxes_of(value: &Value) -> Vec<Written> {
    let mut found = Vec::new();
    collect(value, &mut found);
    found
}

fn collect(value: &Value, found: &mut Vec<Written>) {
    if let Some(corners) = corners(value) {
        found.push(Written { corners, label: None });
        return;
    }
    match value {
        Value::Array(values) => values.iter().for_each(|value| collect(value, found)),
        Value::Object(fields) => {
            if let Some(written) = fields.get("bbox_2d").or_else(|| fields.get("bbox")) {
                let label = fields.get("label").and_then(Value::as_str).map(|label| label.trim().to_lowercase());
                found.extend(boxes_of(written).into_iter().map(|found| Written { label: label.clone(), ..found }));
            } else {
                fields.values().for_each(|value| collect(value, found));
            }
        }
        _ => {}
    }
}

fn corners(value: &Value) -> Option<[f64; 4]> {
    let numbers: Vec<f64> = value.as_array()?.iter().map(Value::as_f64).collect::<Option<_>>()?;
    numbers.try_into().ok()
}

/// The boxes written as two points, as in `<box>(1,2),(3,4)</box>`, with or without the tags.
fn in_pairs(text: &str) -> Vec<Written> {
    static PAIR: LazyLock<Regex> = LazyLock::new(|| {
        let number = r"\s*(-?\d+(?:\.\d+)?)\s*";
        let point = format!(r"\({number},{number}\)");
        Regex::new(&format!(r"{point}\s*,?\s*{point}")).expect("the expression is a constant")
    });
    let number = |text: &str| text.parse().ok();
    let corners = PAIR.captures_iter(text).map(|captures| captures.extract::<4>().1.map(number));
    corners
        .filter_map(|[left, top, right, bottom]| Some(Written { corners: [left?, top?, right?, bottom?], label: None }))
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn corners_in(text: &str) -> Vec<[f64; 4]> {
        boxes(text).into_iter().map(|found| found.corners).collect()
    }

    const A: [f64; 4] = [1.0, 2.0, 3.0, 4.0];
    const B: [f64; 4] = [5.0, 6.0, 7.5, -8.0];

    #[test]
    fn boxes_are_read_in_every_form() {
        for text in [
            "```json\n[\n\t{\"bbox_2d\": [1, 2, 3, 4], \"label\": \"a\"},\n\t{\"bbox_2d\": [5, 6, 7.5, -8]}\n]\n```",
            "[{\"bbox\": [1, 2, 3, 4]}, {\"bbox\": [5, 6, 7.5, -8]}]",
            "Here: {\"bbox_2d\": [1,2,3,4]} and {\"bbox_2d\": [5,6,7.5,-8]}.",
            "{\"objects\": [{\"bbox_2d\": [[1,2,3,4], [5,6,7.5,-8]], \"label\": \"a\"}]}",
            "[[1, 2, 3, 4], [5, 6, 7.5, -8]]",
            "from [1, 2, 3, 4] to \\boxed{[5, 6, 7.5, -8]}",
            "<box>(1,2),(3,4)</box> <|box_start|>( 5, 6 ),(7.5,-8)<|box_end|>",
            "[{\"bbox_2d\": [1,2,3,4]}, {\"bbox_2d\": [5,6,7.5,-8]}, {\"bbox_2d\": [9, 10",
            "```json\n[{\"bbox_2d\": [1,2,3,4]}, [5,6,7.5,-8], {\"bbo",
        ] {
            assert_eq!(corners_in(text), [A, B], "{text}");
        }
    }

    #[test]
    fn labels_are_those_of_the_objects() {
        let found =
            boxes("[{\"label\": \" Dog\", \"bbox_2d\": [1,2,3,4]}, {\"label\": 3, \"bbox_2d\": [1,2,3,4]}, [1,2,3,4]]");
        let labels: Vec<_> = found.iter().map(|found| found.label.as_deref()).collect();
        assert_eq!(labels, [Some("dog"), None, None]);
    }

    #[test]
    fn the_last_place_counts() {
        for text in [
            "<think>[5, 6, 7.5, -8]</think>[1, 2, 3, 4]",
            "[5, 6, 7.5, -8] <answer>[1, 2, 3, 4]</answer> [5, 6, 7.5, -8]",
            "```json\n[5, 6, 7.5, -8]\n``` no, ```json\n[1, 2, 3, 4]\n``` as in [5, 6, 7.5, -8]",
            "[1, 2, 3, 4] ```json\n[]\n```",
        ] {
            assert_eq!(corners_in(text), [A], "{text}");
        }
    }

    #[test]
    fn what_is_no_box_is_left_out() {
        for text in [
            "",
            "<think>[1, 2, 3, 4]",
            "[1, 2, 3]",
            "[1, 2, 3, 4, 5]",
            "[\"1\", 2, 3, 4]",
            "[1, 2, 3, 1e999]",
            "[1, 2, 3, NaN]",
            "(1,2)",
            "[[[[",
        ] {
            assert_eq!(boxes(text), [], "{text}");
        }
        // Deep nesting and many openings end soon.
        assert_eq!(boxes(&"[".repeat(100_000)), []);
        assert_eq!(boxes(&"[{\"a\":".repeat(20_000)), []);
        assert_eq!(boxes(&format!("{}{}", "[".repeat(100), "1,".repeat(50_000))), []);
    }

    proptest! {
        #[test]
        fn any_text_can_be_read(text in "[\\[\\]{}\"`a,:0-9.\\-()é \n]{0,60}") {
            boxes(&text);
        }
    }
}
