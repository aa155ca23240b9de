//! The verifiable reward: the last boxed expression against the answer.

use super::ITEMS;

const BOX: &str = "\\boxed{";

/// The parts of a grade. The reward is the accuracy; the format is only reported.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Grade {
    /// 1 when the content of the last `\boxed{...}` is the answer, else 0.
    pub accuracy: f32,
    /// 1 when the text has the shape of a worked answer, else 0: three paragraphs, four items read off in the first, the
    /// third a box and nothing else.
    pub format: f32,
}

/// Grades a completion by exact match. Braces inside of the box are matched; text after the box does not matter, but a
/// later box does, even an unclosed one.
#[must_use]
pub fn grade(text: &str, answer: &str) -> Grade {
    let accurate = last_box(text).is_some_and(|found| found.content == answer);
    Grade { accuracy: f32::from(u8::from(accurate)), format: f32::from(u8::from(well_formed(text))) }
}

struct Boxed<'a> {
    content: &'a str,
    /// What follows the closing brace.
    rest: &'a str,
}

fn last_box(text: &str) -> Option<Boxed<'_>> {
    let inside = &text[text.rfind(BOX)? + BOX.len()..];
    let mut depth = 1;
    for (position, character) in inside.char_indices() {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(Boxed { content: &inside[..position], rest: &inside[position + 1..] });
        }
    }
    None
}

fn well_formed(text: &str) -> bool {
    let paragraphs: Vec<&str> = text.split("\n\n").collect();
    let [seen, reasoning, conclusion] = paragraphs[..] else { return false };
    let boxed = conclusion.starts_with(BOX) && last_box(conclusion).is_some_and(|found| found.rest.is_empty());
    seen.split(' ').count() == ITEMS + 1 && !reasoning.trim().is_empty() && boxed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accuracy(text: &str, answer: &str) -> bool {
        grade(text, answer).accuracy > 0.5
    }

    fn format(text: &str) -> bool {
        grade(text, "").format > 0.5
    }

    #[test]
    fn the_last_box_counts() {
        assert!(accuracy("A3\n\n\\boxed{2}", "2"));
        assert!(accuracy("\\boxed{1} no, \\boxed{2}.", "2"));
        assert!(!accuracy("\\boxed{2} no, \\boxed{1}", "2"));
        assert!(!accuracy("\\boxed{2} no, \\boxed{1", "2"), "an unclosed box is the last one");
    }

    #[test]
    fn the_match_is_exact() {
        assert!(!accuracy("2", "2"));
        assert!(!accuracy("", ""));
        assert!(!accuracy("\\boxed{ 2}", "2"));
        assert!(!accuracy("\\boxed{12}", "2"));
        assert!(!accuracy("\\boxed2", "2"));
        assert!(accuracy("\\boxed{10}", "10"));
        assert!(!accuracy("\\boxed{c}", "C"));
    }

    #[test]
    fn braces_are_matched() {
        assert!(accuracy("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"));
        assert!(accuracy("\\boxed{{}}", "{}"));
        assert!(!accuracy("\\boxed{{2}", "2"));
        assert!(accuracy("é \\boxed{ü}", "ü"));
    }

    #[test]
    fn format_is_three_paragraphs() {
        assert!(format("Read A3 B1 C5 D2\n\nso C5 A3: 5-3=2\n\n\\boxed{2}"));
        assert!(format("Read A3 B1 C5 D2\n\nso C5 A3: 5-3=9\n\n\\boxed{C}"), "format says nothing about truth");
        for text in [
            "",
            "\\boxed{2}",
            "Read A3 B1 C5 D2\n\n\\boxed{2}",
            "Read A3 B1 C5 D2\n\nso C5 A3: 5-3=2\n\n2",
            "Read A3 B1 C5 D2\n\nso C5 A3: 5-3=2\n\n\\boxed{2} ",
            "Read A3 B1 C5\n\nso C5 A3: 5-3=2\n\n\\boxed{2}",
            "Read A3 B1 C5 D2\n\n\n\n\\boxed{2}",
            "Read A3 B1 C5 D2\n\nso C5 A3: 5-3=2\n\n\\boxed{2}\n\n\\boxed{2}",
        ] {
            assert!(!format(text), "{text:?}");
        }
    }
}
