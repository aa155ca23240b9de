use serde::{Deserialize, Serialize};

use crate::answer::{last_box, last_line, last_tag};
use crate::{Asked, Error, Response, Reward, Score};

/// `kind = "exact"`: 1 when the final answer is the reference, byte for byte unless the keys say otherwise, else 0.
///
/// A response without a final answer, or whose last box or tag is not closed, has 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Exact {
    /// Where the final answer is.
    pub from: AnswerFrom,
    /// Whether white space around the answer and the reference is left out.
    pub trim: bool,
    /// Whether upper and lower case are the same.
    pub ignore_case: bool,
}

/// Where the final answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnswerFrom {
    /// In the last `\boxed{...}`.
    #[default]
    Box,
    /// In the last `<answer>...</answer>`.
    Tags,
    /// The last line that is not blank.
    LastLine,
    /// The whole response.
    Whole,
}

impl Reward for Exact {
    fn score(&self, asked: &Asked<'_>, response: &Response<'_>) -> Result<Score, Error> {
        let reference = self.normal(asked.answer()?);
        let answer = match self.from {
            AnswerFrom::Box => last_box(response.text),
            AnswerFrom::Tags => last_tag(response.text),
            AnswerFrom::LastLine => last_line(response.text),
            AnswerFrom::Whole => Some(response.text),
        };
        Ok(answer.is_some_and(|answer| self.normal(answer) == reference).into())
    }
}

impl Exact {
    fn normal(self, text: &str) -> String {
        let text = if self.trim { text.trim() } else { text };
        if self.ignore_case { text.to_lowercase() } else { text.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::value;

    fn right(exact: Exact, text: &str, answer: &str) -> bool {
        value(&exact, text, answer) > 0.5
    }

    /// The cases of the built-in task, whose reward this is.
    #[test]
    fn by_itself_the_content_of_the_last_box_is_the_answer_byte_for_byte() {
        let found = |text, answer| right(Exact::default(), text, answer);
        assert!(found("A3\n\n\\boxed{2}", "2"));
        assert!(found("\\boxed{1} no, \\boxed{2}.", "2"));
        assert!(!found("\\boxed{2} no, \\boxed{1}", "2"));
        assert!(!found("\\boxed{2} no, \\boxed{1", "2"), "an unclosed box is the last one");
        assert!(!found("2", "2"));
        assert!(!found("", ""));
        assert!(found("\\boxed{}", ""));
        assert!(!found("\\boxed{ 2}", "2"));
        assert!(!found("\\boxed{12}", "2"));
        assert!(!found("\\boxed2", "2"));
        assert!(!found("\\boxed{c}", "C"));
        assert!(found("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"));
        assert!(found("\\boxed{{}}", "{}"));
        assert!(!found("\\boxed{{2}", "2"));
        assert!(found("é \\boxed{ü}", "ü"));
        assert!(found("<think>\\boxed{2}</think>", "2"), "no other part of the response is looked at");
    }

    #[test]
    fn the_answer_is_where_the_keys_say_and_compared_as_they_say() {
        let of = |from| Exact { from, ..Exact::default() };
        assert!(right(of(AnswerFrom::Tags), "<answer>1</answer> <answer>2</answer>", "2"));
        assert!(!right(of(AnswerFrom::Tags), "<answer>2</answer> <answer>2", "2"));
        assert!(right(of(AnswerFrom::LastLine), "so\n2\n\n", "2"));
        assert!(!right(of(AnswerFrom::LastLine), "2\nso", "2"));
        assert!(right(of(AnswerFrom::Whole), "2", "2"));
        assert!(!right(of(AnswerFrom::Whole), "2\n", "2"));
        assert!(right(Exact { trim: true, ..of(AnswerFrom::Whole) }, "2\n", " 2"));
        let loose = Exact { trim: true, ignore_case: true, ..Exact::default() };
        assert!(right(loose, "\\boxed{ Éa }", "éA"));
        assert!(!right(Exact { ignore_case: true, ..Exact::default() }, "\\boxed{ a}", "A"));
    }
}
