//! Where a response gives its answer.

const BOX: &str = "\\boxed{";

/// What is in the last `\boxed{...}`; `None` without a box, and when the last one is not closed. Braces inside are
/// matched.
pub(crate) fn last_box(text: &str) -> Option<&str> {
    let inside = &text[text.rfind(BOX)? + BOX.len()..];
    let mut depth = 1;
    for (position, character) in inside.char_indices() {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(&inside[..position]);
        }
    }
    None
}

/// What is in the last `<answer>...</answer>`; `None` without one, and when the last one is not closed.
pub(crate) fn last_tag(text: &str) -> Option<&str> {
    let inside = &text[text.rfind("<answer>")? + "<answer>".len()..];
    inside.split_once("</answer>").map(|(answer, _)| answer)
}

/// The last line that has something on it, without its end.
pub(crate) fn last_line(text: &str) -> Option<&str> {
    text.lines().rfind(|line| !line.trim().is_empty())
}

/// What stands behind the last `</think>`; everything without one. Behind a `<think>` that is not closed there is
/// nothing: the response was cut off in its thinking.
pub(crate) fn after_thinking(text: &str) -> &str {
    let answer = text.rsplit_once("</think>").map_or(text, |(_, answer)| answer);
    if answer.contains("<think>") { "" } else { answer }
}

/// Where an answer was marked as such.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Marked<'a> {
    /// In a box or between tags.
    Answer(&'a str),
    /// There is a box or a tag, the last of which is not closed.
    Unclosed,
    /// Nowhere; what is there is prose.
    Prose(&'a str),
}

/// The answer behind the thinking: in the last box, else between the last tags, else somewhere in the prose.
pub(crate) fn marked(text: &str) -> Marked<'_> {
    let text = after_thinking(text);
    let found = if text.contains(BOX) {
        last_box(text)
    } else if text.contains("<answer>") {
        last_tag(text)
    } else {
        return Marked::Prose(text);
    };
    found.map_or(Marked::Unclosed, Marked::Answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_box_is_closed_and_its_braces_are_matched() {
        assert_eq!(last_box(r"\boxed{1} no, \boxed{\frac{1}{2}}."), Some(r"\frac{1}{2}"));
        assert_eq!(last_box(r"\boxed{2} no, \boxed{1"), None);
        assert_eq!(last_box("2"), None);
        assert_eq!(last_box(r"é \boxed{ü} }"), Some("ü"));
    }

    #[test]
    fn tags_and_lines() {
        assert_eq!(last_tag("<answer>a</answer> <answer> b\n</answer>"), Some(" b\n"));
        assert_eq!(last_tag("<answer>a</answer> <answer>b"), None);
        assert_eq!(last_line("a\n b \r\n \n"), Some(" b "));
        assert_eq!(last_line(" \n"), None);
    }

    #[test]
    fn thinking_is_left_out_and_nothing_is_behind_what_is_not_closed() {
        assert_eq!(after_thinking("<think>a</think>b"), "b");
        assert_eq!(after_thinking("a</think>b</think>c"), "c");
        assert_eq!(after_thinking("b"), "b");
        assert_eq!(after_thinking("<think>b"), "");
        assert_eq!(after_thinking("<think>a</think>b<think>c"), "");
        assert_eq!(marked(r"<think>\boxed{1} <answer>1</answer>"), Marked::Prose(""));
    }

    #[test]
    fn a_box_counts_before_tags_and_these_before_prose() {
        assert_eq!(marked(r"<answer>so \boxed{2}</answer>"), Marked::Answer("2"));
        assert_eq!(marked(r"<think>\boxed{1}</think><answer>2</answer>"), Marked::Answer("2"));
        assert_eq!(marked(r"<answer>2</answer> \boxed{2"), Marked::Unclosed);
        assert_eq!(marked("<think>1</think>2"), Marked::Prose("2"));
    }
}
