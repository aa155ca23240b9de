use std::ops::Range;

use serde::{Deserialize, Serialize};
use unicode_segmentation::UnicodeSegmentation as _;

use crate::paragraphs;

/// Cuts a response into the parts that get a weight each.
pub trait Segmenter: Send + Sync {
    /// Ranges of tokens that partition the response, none of them empty.
    ///
    /// `texts` holds the text of every token: an empty one for special tokens, anything for part of a character.
    fn segment(&self, texts: &[&str]) -> Vec<Range<usize>>;
}

/// The parts of a response that get a weight each (Table 3 of arXiv 2603.27375).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Granularity {
    /// What lies between blank lines: [`paragraphs`].
    #[default]
    Paragraph,
    /// Sentences as Unicode (UAX #29) finds them, and lines: [`sentences`].
    Sentence,
    /// Every token by itself.
    Token,
}

impl Segmenter for Granularity {
    fn segment(&self, texts: &[&str]) -> Vec<Range<usize>> {
        match self {
            Self::Paragraph => paragraphs(texts.iter().copied()),
            Self::Sentence => sentences(texts),
            Self::Token => (0..texts.len()).map(|token| token..token + 1).collect(),
        }
    }
}

/// Splits a response into sentences: ranges of tokens that partition it.
///
/// Sentences end where Unicode Standard Annex #29 says, which is after a full stop and its like with what closes it and
/// the space behind it, and at the end of a line. A sentence without visible text does not exist: it belongs to the one
/// before, or, at the start, to the one after. A token belongs to the sentence of its first visible character; special
/// tokens, which have no text, to the one before.
#[must_use]
pub fn sentences(texts: &[&str]) -> Vec<Range<usize>> {
    let whole = texts.concat();
    let mut starts = Vec::new();
    let mut visible = true;
    for (start, sentence) in whole.split_sentence_bound_indices() {
        let blank = sentence.trim().is_empty();
        // What is blank at the very start opens the first sentence, and the next one does not begin anew.
        if starts.is_empty() || (visible && !blank) {
            starts.push(start);
            visible = !blank;
        } else {
            visible |= !blank;
        }
    }
    let mut spans: Vec<Range<usize>> = Vec::new();
    let (mut offset, mut open) = (0, None);
    for (token, text) in texts.iter().enumerate() {
        let space = if text.trim().is_empty() { 0 } else { text.len() - text.trim_start().len() };
        let begun = starts.partition_point(|&start| start <= offset + space);
        match spans.last_mut() {
            Some(span) if open == Some(begun) || text.is_empty() => span.end = token + 1,
            _ => {
                spans.push(token..token + 1);
                open = Some(begun);
            }
        }
        offset += text.len();
    }
    spans
}

#[cfg(test)]
// One span is a legitimate response here, not a mistaken range of numbers.
#[allow(clippy::single_range_in_vec_init)]
mod tests {
    use super::*;

    #[test]
    fn a_sentence_ends_with_its_full_stop_and_with_its_line() {
        assert_eq!(sentences(&["The", " bar", " is", " 3", ".", "5", ".", " So", " B", "."]), [0..7, 7..10]);
        assert_eq!(sentences(&["a", "!", " B", "?", " C"]), [0..2, 2..4, 4..5]);
        assert_eq!(sentences(&["A", "3", "\n", "B", "1"]), [0..3, 3..5]);
        assert_eq!(sentences(&["他", "。", "我"]), [0..2, 2..3]);
    }

    #[test]
    fn blank_sentences_do_not_exist() {
        assert_eq!(sentences(&["a", ".", "\n", "\n", "b"]), [0..4, 4..5]);
        assert_eq!(sentences(&["\n", "\n", "a", ".", " B"]), [0..4, 4..5]);
        assert_eq!(sentences(&["a", ".\n\n"]), [0..2]);
        assert_eq!(sentences(&["\n"]), [0..1]);
        assert!(sentences(&[]).is_empty());
    }

    #[test]
    fn a_token_belongs_to_the_sentence_of_its_first_visible_character() {
        assert_eq!(sentences(&["a", ". B", " c", " d"]), [0..2, 2..4]);
        // A sentence within a token is none.
        assert_eq!(sentences(&["a", ". B. C", " c"]), [0..2, 2..3]);
        // The end of sequence belongs to the last one, and so does any special token to the one before.
        assert_eq!(sentences(&["a", ".", " B", ""]), [0..2, 2..4]);
        assert_eq!(sentences(&["a", ".", " ", "", "B"]), [0..4, 4..5]);
        assert_eq!(sentences(&["", "a"]), [0..2]);
    }

    #[test]
    fn every_granularity_partitions_a_response() {
        let texts = ["One", ".", " Two", ".", "\n\n", "Three", ""];
        assert_eq!(Granularity::Paragraph.segment(&texts), [0..5, 5..7]);
        assert_eq!(Granularity::Sentence.segment(&texts), [0..2, 2..5, 5..7]);
        assert_eq!(Granularity::Token.segment(&texts), [0..1, 1..2, 2..3, 3..4, 4..5, 5..6, 6..7]);
    }
}
