use std::sync::LazyLock;

use regex::Regex;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::answer::{Marked, last_line, marked};
use crate::{Asked, Error, Response, Reward, Score};

/// `kind = "choice"`: 1 when the response chooses the reference of a multiple choice, else 0.
///
/// The reference is a letter, A to Z, also written `(B)` or `B.`; with `options`, it may be the text of one of them.
/// What is chosen is, thinking left out, and with several of a kind the last:
///
/// 1. the letter in a box or between answer tags: `\boxed{B}`, `\boxed{\text{B}}`, `<answer>(B) a dog</answer>`. What
///    is there counts, even if it is no choice;
/// 2. the letter that prose says to be the answer: `The answer is B`, `Answer: (B)`, `option B is correct`; not one of
///    several, `the answer is B or C`;
/// 3. the letter that the response, or its last line, is: `B`, `(B)`, `B.`; of a response of one line also `B. a dog`.
///
/// With `options`, the text of an option counts as its letter in the places of 1 and 3. A capital letter elsewhere in
/// prose chooses nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Choice {
    /// The column with the options: a list of texts, A first, or an object from letters to texts. Absent, only letters
    /// are read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub options: Option<String>,
}

impl Reward for Choice {
    fn score(&self, asked: &Asked<'_>, response: &Response<'_>) -> Result<Score, Error> {
        let answer = asked.answer()?;
        let options =
            self.options.as_deref().map_or(Ok(Vec::new()), |column| options(column, asked.column(column)?))?;
        let Some(reference) = letter(answer).or_else(|| of_text(answer, &options)) else {
            let problem = if self.options.is_some() { "is neither a letter nor an option" } else { "is no letter" };
            return Err(Error::answer(answer, problem));
        };
        Ok((chosen(response.text, &options) == Some(reference)).into())
    }
}

/// The options of a row, by letter.
fn options(column: &str, value: &Value) -> Result<Vec<(char, String)>, Error> {
    let text = |value: &Value| {
        value.as_str().map(normal).ok_or_else(|| Error::column(column, format!("has {value} where a text has to be")))
    };
    match value {
        Value::Array(texts) if texts.len() <= 26 => {
            ('A'..='Z').zip(texts).map(|(letter, value)| Ok((letter, text(value)?))).collect()
        }
        Value::Object(texts) => {
            let no_letter = |key| Error::column(column, format!("has the key {key:?}, which is no letter"));
            texts.iter().map(|(key, value)| Ok((letter(key).ok_or_else(|| no_letter(key))?, text(value)?))).collect()
        }
        _ => Err(Error::column(column, "is neither a list of at most 26 texts nor an object of texts")),
    }
}

fn chosen(response: &str, options: &[(char, String)]) -> Option<char> {
    match marked(response) {
        Marked::Answer(answer) => letter(answer).or_else(|| labelled(answer)).or_else(|| of_text(answer, options)),
        Marked::Unclosed => None,
        Marked::Prose(prose) => {
            let line = last_line(prose)?;
            let alone = || (prose.trim() == line.trim()).then(|| labelled(line)).flatten();
            said(prose).or_else(|| letter(line)).or_else(alone).or_else(|| of_text(line, options))
        }
    }
}

/// The letter that prose says to be the answer; none where it says several.
fn said(prose: &str) -> Option<char> {
    static SAID: LazyLock<Regex> = LazyLock::new(|| {
        let said = r"(?x)
            (?: \b(?i: answer | choice | option ) \s* (?: (?i: \s is | \s would\sbe ) | :+ | = )+ | \bI\schoose\b )
                [\s*:]* (?: (?i: option | choice ) \s )? (?<after> LETTER ) (?<more> MORE )?
            | (?<before> LETTER ) \s+ is \s+ (?: the \s+ )? (?: correct | right | (?: best \s )? answer )\b";
        let letter =
            r"(?: [(\[{*$\\]* (?: \\(?:text|mathrm|mathbf|textbf)\{ )? (?: \b[A-Z]\b | \b[a-z]\) ) [)\]}*$\\]* )";
        let more = r"(?: \s* (?: , \s* (?: or\b|and\b )? | or\b | and\b | / | & ) \s* LETTER (?: [^\w'] | $ ) )";
        // Behind a comma, `I` is rather a word than a ninth choice.
        let more = more.replace("LETTER", &letter.replace("A-Z", "A-HJ-Z"));
        let expression = said.replace("MORE", &more).replace("LETTER", letter);
        Regex::new(&expression).expect("the expression is a constant")
    });
    let captures = SAID.captures_iter(prose).last()?;
    if captures.name("more").is_some() {
        return None;
    }
    letter(captures.name("after").or_else(|| captures.name("before"))?.as_str())
}

/// The letter that a text is but for what may stand around one.
fn letter(text: &str) -> Option<char> {
    let text = text.trim();
    let mut inside = text;
    for command in ["\\text{", "\\mathrm{", "\\mathbf{", "\\textbf{"] {
        inside = inside.trim_matches(['(', '[', '*', '$']).strip_prefix(command).unwrap_or(inside);
    }
    let mut letters =
        inside.trim_matches(|character: char| "()[]{}*$\\.:".contains(character) || character.is_whitespace()).chars();
    let found = letters.next().filter(char::is_ascii_alphabetic)?;
    letters.next().is_none().then(|| found.to_ascii_uppercase())
}

/// The letter in front of a text: `(B) a dog`, `B. a dog`, `B: a dog`.
fn labelled(text: &str) -> Option<char> {
    static LABELLED: LazyLock<Regex> = LazyLock::new(|| {
        let labelled = r"^\s*\**(?:\(([A-Za-z])\)|\[([A-Z])\]|([A-Z])[.):])\**\s+\S";
        Regex::new(labelled).expect("the expression is a constant")
    });
    let captures = LABELLED.captures(text)?;
    let found = captures.iter().skip(1).flatten().next()?.as_str().chars().next()?;
    Some(found.to_ascii_uppercase())
}

/// The letter of the option with this text, if there is one such option.
fn of_text(text: &str, options: &[(char, String)]) -> Option<char> {
    let text = normal(text);
    let mut found = options.iter().filter(|(_, option)| *option == text).map(|(letter, _)| *letter);
    found.next().filter(|_| found.next().is_none())
}

/// The text of an option as it is compared: without its letter, a full stop, white space around, and case.
fn normal(text: &str) -> String {
    let text = if labelled(text).is_some() {
        text.split_once([')', ']', '.', ':']).map_or(text, |(_, rest)| rest)
    } else {
        text
    };
    text.trim_matches(|character: char| character == '*' || character.is_whitespace())
        .trim_end_matches('.')
        .to_lowercase()
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, json};

    use super::*;
    use crate::testing::{asked, response, scored, value};

    fn chooses(text: &str, letter: &str) -> bool {
        value(&Choice::default(), text, letter) > 0.5
    }

    #[test]
    fn a_marked_letter_is_the_choice() {
        for text in [
            "\\boxed{B}",
            "\\boxed{(B)}",
            "\\boxed{\\text{B}}",
            "$\\boxed{\\mathrm{(B)}}$",
            "\\boxed{ B. }",
            "\\boxed{b}",
            "<answer>B</answer>",
            "<answer>\n(B)\n</answer>",
            "<answer>B. a dog</answer>",
            "<answer>**B**</answer>",
            "\\boxed{B: a dog}",
            "\\boxed{A} no, \\boxed{B}",
            "The answer is A. \\boxed{B}",
        ] {
            assert!(chooses(text, "B"), "{text}");
        }
        for text in [
            "\\boxed{A, B}",
            "\\boxed{AB}",
            "\\boxed{}",
            "\\boxed{B",
            "\\boxed{a dog} The answer is B",
            "\\boxed{Bear}",
        ] {
            assert!(!chooses(text, "B"), "{text}");
        }
    }

    #[test]
    fn prose_chooses_where_it_says_so() {
        for text in [
            "The answer is B",
            "The answer is B.",
            "the correct answer is: (B)",
            "Answer: B",
            "**Answer:** B",
            "answer = B",
            "The correct option is **B**.",
            "Final Answer: option B, a dog",
            "So the answer is \\text{B}.",
            "the answer is \\(B\\)",
            "the answer is (b).",
            "B is correct.",
            "Therefore (B) is the right one",
            "The answer is A. Wait, the answer is B because it barks.",
            "ANSWER: B",
            "I choose B.",
            "<think>The answer is A</think> The answer would be B",
        ] {
            assert!(chooses(text, "B"), "{text}");
        }
        for text in [
            "The answer is not B",
            "Plan B",
            "B and C look alike",
            "The answer is B or C",
            "Answer: A, B",
            "The answer is Bob",
            "The answer is B, C",
            "Look at B\nand then at the dog.",
            "the answer is a dog",
            "",
            "The answer is A/B",
            "<think>The answer is B",
        ] {
            assert!(!chooses(text, "B") && !chooses(text, "A"), "{text}");
        }
    }

    #[test]
    fn a_letter_alone_is_the_choice() {
        for text in [
            "B",
            "(B)",
            "B.",
            " b ",
            "**B**",
            "B. a dog",
            "(B) a dog",
            "(b) a dog",
            "It barks.\n\nB",
            "It barks.\n(B)\n",
        ] {
            assert!(chooses(text, "B"), "{text}");
        }
        for text in ["It barks: B", "A. cat\nB. dog", "B dog", "I. B"] {
            assert!(!chooses(text, "B"), "{text}");
        }
    }

    #[test]
    fn the_text_of_an_option_is_its_letter() {
        let choice = Choice { options: Some("options".into()) };
        let lists = [
            json!(["A cat", "a dog.", "(C) a cow", "same", "same"]),
            json!({"A": "a cat", "B": "A dog", "C": "a cow"}),
        ];
        for list in lists {
            let columns = Map::from_iter([("options".into(), list)]);
            let of = |text, answer| choice.score(&asked(answer, &columns), &response(text)).expect("a score").value;
            for (text, answer) in [
                ("\\boxed{A dog}", "B"),
                ("\\boxed{B}", "a dog"),
                ("A cow", "C"),
                ("Moo.\na cow.", "C"),
                ("\\boxed{C}", "a cow"),
                ("<answer>B. A dog</answer>", "A dog"),
            ] {
                assert_eq!(of(text, answer), Some(1.0), "{text}");
            }
            assert_eq!(of("\\boxed{a dog}", "A"), Some(0.0));
            assert_eq!(of("\\boxed{same}", "D"), Some(0.0), "it is the text of two options or of none");
            let error = choice.score(&asked("a fish", &columns), &response("")).expect_err("no option").to_string();
            assert_eq!(error, "the answer of the row, \"a fish\", is neither a letter nor an option");
        }
    }

    #[test]
    fn a_row_of_no_use_is_an_error() {
        assert!(scored(&Choice::default(), "B", "a dog").is_err());
        let choice = Choice { options: Some("options".into()) };
        assert_eq!(
            scored(&choice, "B", "B").expect_err("none").to_string(),
            "column \"options\" of the row is missing"
        );
        for value in [json!("A, B"), json!([1]), json!({"first": "a"}), json!(vec!["a"; 27])] {
            let columns = Map::from_iter([("options".into(), value)]);
            assert!(choice.score(&asked("B", &columns), &response("B")).is_err());
        }
    }
}
