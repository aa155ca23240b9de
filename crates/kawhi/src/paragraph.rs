use std::ops::Range;

use crate::{Error, Normalize, WeightConfig};

/// Splits a response at its blank lines (arXiv 2603.27375, section 3.4): ranges of tokens that partition it.
///
/// `texts` holds the text of every token. Special tokens must give an empty text, so that the end of sequence is never
/// a paragraph of its own. A token may hold part of a character, as only line feeds and visible text matter.
///
/// The delimiter is two line feeds in a row, in one token or in two; delimiters do not overlap. It belongs to the
/// paragraph that it ends, and so does the whole token that completes it. A paragraph without visible text does not
/// exist: it belongs to the one before, or, at the start, to the one after.
pub fn paragraphs<'a>(texts: impl IntoIterator<Item = &'a str>) -> Vec<Range<usize>> {
    let mut spans: Vec<Range<usize>> = Vec::new();
    let (mut start, mut end) = (0, 0);
    // Whether the open paragraph has visible text, and whether the text so far ends with half a delimiter.
    let (mut visible, mut line_feed) = (false, false);
    for text in texts {
        end += 1;
        let (mut delimited, mut complete) = (false, false);
        for character in text.chars() {
            let delimiter = line_feed && character == '\n';
            delimited |= delimiter;
            complete |= delimiter && visible;
            visible |= !character.is_whitespace();
            line_feed = character == '\n' && !delimiter;
        }
        if complete {
            spans.push(start..end);
            (start, visible) = (end, false);
        } else if delimited
            && !visible
            && let Some(previous) = spans.last_mut()
        {
            previous.end = end;
            start = end;
        }
    }
    if start < end {
        match spans.last_mut() {
            Some(previous) if !visible => previous.end = end,
            _ => spans.push(start..end),
        }
    }
    spans
}

/// One weight per paragraph from the alignment of the tokens (arXiv 2603.27375, eq. 14-15).
///
/// With `m_j` the mean of `alignment` over paragraph `j` of `M`:
/// `s_j = (1 - lambda) softmax_j(m / tau) + lambda / M` and `w_j = w_min + (w_max - w_min) s_j`,
/// divided by the mean over the tokens under [`Normalize::MeanOne`].
/// The mean over the paragraphs is thus `w_min + (w_max - w_min) / M`, and a single paragraph weighs `w_max`.
///
/// # Shapes
/// `alignment`: one value per token; `spans`: ranges of tokens that partition them; returns one value per span.
///
/// # Errors
/// When the spans are no partition, or an alignment is not finite, or the configuration is out of range.
pub fn paragraph_weights(alignment: &[f64], spans: &[Range<usize>], config: &WeightConfig) -> Result<Vec<f64>, Error> {
    config.validate()?;
    check_partition(spans, alignment.len())?;
    if let Some((token, &found)) = alignment.iter().enumerate().find(|(_, value)| !value.is_finite()) {
        return Err(Error::NonFinite { token, found });
    }
    let mean = |span: &Range<usize>| alignment[span.clone()].iter().sum::<f64>() / span.len() as f64;
    let means: Vec<f64> = spans.iter().map(mean).collect();
    let largest = means.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exponentials: Vec<f64> = means.iter().map(|mean| ((mean - largest) / config.tau).exp()).collect();
    let sum: f64 = exponentials.iter().sum();
    let uniform = config.lambda / spans.len() as f64;
    let mut weights: Vec<f64> = exponentials
        .iter()
        .map(|value| (1.0 - config.lambda) * value / sum + uniform)
        .map(|share| config.w_min + (config.w_max - config.w_min) * share)
        .collect();
    if config.normalize == Normalize::MeanOne {
        let total: f64 = weights.iter().zip(spans).map(|(weight, span)| weight * span.len() as f64).sum();
        let mean = total / alignment.len() as f64;
        for weight in &mut weights {
            *weight /= mean;
        }
    }
    Ok(weights)
}

/// [`paragraph_weights`], laid out as one weight per token: the factor of the token's advantage (eq. 16-17).
///
/// # Errors
/// Those of [`paragraph_weights`].
pub fn token_weights(alignment: &[f64], spans: &[Range<usize>], config: &WeightConfig) -> Result<Vec<f32>, Error> {
    let weights = paragraph_weights(alignment, spans, config)?;
    Ok(weights.iter().zip(spans).flat_map(|(&weight, span)| std::iter::repeat_n(weight as f32, span.len())).collect())
}

fn check_partition(spans: &[Range<usize>], tokens: usize) -> Result<(), Error> {
    let mut end = 0;
    for (paragraph, span) in spans.iter().enumerate() {
        if span.start != end || span.is_empty() || span.end > tokens {
            return Err(Error::Spans { paragraph, tokens });
        }
        end = span.end;
    }
    if end == tokens { Ok(()) } else { Err(Error::Spans { paragraph: spans.len(), tokens }) }
}

#[cfg(test)]
// One span is a legitimate response here, not a mistaken range of numbers.
#[allow(clippy::unwrap_used, clippy::single_range_in_vec_init)]
mod tests {
    use super::*;

    fn split(texts: &[&str]) -> Vec<Range<usize>> {
        paragraphs(texts.iter().copied())
    }

    #[test]
    fn delimiters_end_a_paragraph() {
        assert_eq!(split(&["a", "b"]), [0..2]);
        assert_eq!(split(&["a", "\n\n", "b", "\n", "c"]), [0..2, 2..5]);
        // A token that holds the delimiter is not cut.
        assert_eq!(split(&["a", ".\n\nB", "c"]), [0..2, 2..3]);
        assert_eq!(split(&["a.\n\n", "b.\n\n", "c"]), [0..1, 1..2, 2..3]);
        // Two delimiters in one token still end one paragraph.
        assert_eq!(split(&["a", "\n\nb\n\n", "c"]), [0..2, 2..3]);
    }

    #[test]
    fn delimiters_span_tokens() {
        assert_eq!(split(&["a", "\n", "\n", "b"]), [0..3, 3..4]);
        assert_eq!(split(&["a\n", "\nb", "c"]), [0..2, 2..3]);
        // An empty text in between is a special token, and does not interrupt.
        assert_eq!(split(&["a\n", "", "\n", "b"]), [0..3, 3..4]);
        assert_eq!(split(&["a\n", " \n", "b"]), [0..3]);
    }

    #[test]
    fn empty_paragraphs_do_not_exist() {
        assert!(split(&[]).is_empty());
        assert_eq!(split(&["\n\n"]), [0..1]);
        assert_eq!(split(&["\n\n", "a", "\n\n", "b"]), [0..3, 3..4]);
        assert_eq!(split(&["a", "\n\n", "\n\n", "b"]), [0..3, 3..4]);
        assert_eq!(split(&["a", "\n\n", " ", "\n\n", "b"]), [0..4, 4..5]);
        // Delimiters do not overlap: the third line feed needs a fourth.
        assert_eq!(split(&["a", "\n\n\n", "\n", "b"]), [0..3, 3..4]);
        assert_eq!(split(&["a", "\n\n", "\n", "b"]), [0..2, 2..4]);
        assert_eq!(split(&["a", "\n\n\n", "b"]), [0..2, 2..3]);
        assert_eq!(split(&["a", "\n\n", "\nb"]), [0..2, 2..3]);
        // The second delimiter ends nothing, and its token carries the next paragraph's text.
        assert_eq!(split(&["a\n\n", "\n\nb", "c"]), [0..1, 1..3]);
        assert_eq!(split(&["\n\na", "b"]), [0..2]);
    }

    #[test]
    fn the_end_of_sequence_belongs_to_the_last_paragraph() {
        assert_eq!(split(&["a", "\n\n", "b", ""]), [0..2, 2..4]);
        assert_eq!(split(&["a", "\n\n", ""]), [0..3]);
        assert_eq!(split(&["a", "\n\n", " ", ""]), [0..4]);
        assert_eq!(split(&[""]), [0..1]);
    }

    #[test]
    fn partial_characters_are_visible_text() {
        assert_eq!(split(&["a\n\n", "\u{fffd}", "\u{fffd}"]), [0..1, 1..3]);
    }

    #[test]
    fn weights_follow_equation_15() {
        // Means 0.1 and 0.1 + 0.1 ln 3: softmax at tau 0.1 is (1/4, 3/4).
        let second = 0.1 + 0.1 * 3f64.ln();
        let alignment = [0.0, 0.2, second, second, second];
        let spans = [0..2, 2..5];
        let config = WeightConfig::default();
        let weights = paragraph_weights(&alignment, &spans, &config).unwrap();
        // 0.9 * (0.25, 0.75) + 0.05 = (0.275, 0.725); 0.1 + 0.9 of that.
        assert!((weights[0] - 0.3475).abs() < 1e-12 && (weights[1] - 0.7525).abs() < 1e-12, "{weights:?}");
        let tokens = token_weights(&alignment, &spans, &config).unwrap();
        assert_eq!(tokens, [weights[0], weights[0], weights[1], weights[1], weights[1]].map(|weight| weight as f32));
        // The token mean is (2 * 0.3475 + 3 * 0.7525) / 5 = 0.5905.
        let config = WeightConfig { normalize: Normalize::MeanOne, ..config };
        let tokens = token_weights(&alignment, &spans, &config).unwrap();
        assert!((tokens[0] - 0.3475 / 0.5905).abs() < 1e-5 && (tokens[4] - 0.7525 / 0.5905).abs() < 1e-5, "{tokens:?}");
        assert!((tokens.iter().sum::<f32>() - 5.0).abs() < 1e-5);
    }

    #[test]
    fn three_paragraphs_by_another_hand() {
        let config = WeightConfig { lambda: 0.1, tau: 0.1, ..WeightConfig::default() };
        let weights = paragraph_weights(&[0.2, 0.1, 0.3], &[0..1, 1..2, 2..3], &config).unwrap();
        for (found, expected) in weights.iter().zip([0.328_230, 0.202_925, 0.668_845]) {
            assert!((found - expected).abs() < 1e-6, "{weights:?}");
        }
        assert!((weights.iter().sum::<f64>() / 3.0 - 0.4).abs() < 1e-12);
    }

    #[test]
    fn one_paragraph_is_the_base_algorithm() {
        for lambda in [0.0, 0.1, 0.3, 0.7, 1.0] {
            let config = WeightConfig { lambda, ..WeightConfig::default() };
            assert_eq!(token_weights(&[0.3, -0.2, 0.9], &[0..3], &config).unwrap(), [1.0; 3]);
        }
    }

    #[test]
    fn the_mean_over_paragraphs_shrinks_with_their_number() {
        let alignment: Vec<f64> = (0..24u8).map(|at| (f64::from(at) * 1.7).sin()).collect();
        for count in 1..=24 {
            let spans: Vec<Range<usize>> = (0..count).map(|at| at..at + 1).collect();
            let weights = paragraph_weights(&alignment[..count], &spans, &WeightConfig::default()).unwrap();
            let mean = weights.iter().sum::<f64>() / count as f64;
            assert!((mean - (0.1 + 0.9 / count as f64)).abs() < 1e-12, "{count}: {mean}");
            assert!(weights.iter().all(|weight| (0.1..=1.0).contains(weight)));
        }
    }

    #[test]
    fn an_empty_response_has_no_weights() {
        assert!(token_weights(&[], &[], &WeightConfig::default()).unwrap().is_empty());
    }

    #[test]
    fn errors_are_named() {
        let run = |alignment: &[f64], spans: &[Range<usize>]| {
            paragraph_weights(alignment, spans, &WeightConfig::default()).unwrap_err()
        };
        let paragraph = |spans: &[Range<usize>]| match run(&[0.0; 4], spans) {
            Error::Spans { paragraph, tokens: 4 } => paragraph,
            other => panic!("{other:?}"),
        };
        assert_eq!(paragraph(&[0..2, 3..4]), 1);
        assert_eq!(paragraph(&[0..2, 1..4]), 1);
        assert_eq!(paragraph(&[0..2, 2..2, 2..4]), 1);
        assert_eq!(paragraph(&[0..5]), 0);
        assert_eq!(paragraph(&[0..2]), 1);
        assert!(matches!(run(&[0.0, f64::NAN], &[0..2]), Error::NonFinite { token: 1, .. }));
    }
}
