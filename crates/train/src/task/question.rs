//! What is asked about four values, in words, with a worked answer.

use rand::seq::{IndexedRandom, index};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::{ITEMS, LETTERS, Picture};

/// The kind of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Question {
    /// The value of one item.
    Value,
    /// The letter of the item with the highest value.
    Highest,
    /// The letter of the item with the lowest value.
    Lowest,
    /// The absolute difference of two items.
    Difference,
    /// The sum of two items.
    Sum,
}

impl Question {
    /// Every kind of question.
    pub const ALL: [Self; 5] = [Self::Value, Self::Highest, Self::Lowest, Self::Difference, Self::Sum];

    /// The name in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Value => "value",
            Self::Highest => "highest",
            Self::Lowest => "lowest",
            Self::Difference => "difference",
            Self::Sum => "sum",
        }
    }
}

/// A question with its answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) question: String,
    pub(super) answer: String,
    pub(super) worked: String,
}

/// Asks for something about `values`. `None` when the question has no single answer because items are tied.
pub(super) fn ask(kind: Question, picture: Picture, values: [u8; ITEMS], random: &mut ChaCha8Rng) -> Option<Asked> {
    let [one, other]: [usize; 2] = index::sample_array(random, ITEMS).expect("there are more than two items");
    let (a, b) = (LETTERS[one], LETTERS[other]);
    // Items are named before they are reckoned with: first a look-up, then arithmetic on what stands beside it.
    let operands = format!("so {a}{} {b}{}", values[one], values[other]);
    let (reasoning, answer) = match kind {
        Question::Value => (format!("so {a}{}", values[one]), values[one].to_string()),
        Question::Highest => extreme("max", values, values.into_iter().max()?)?,
        Question::Lowest => extreme("min", values, values.into_iter().min()?)?,
        Question::Difference => {
            let (more, less) = (values[one].max(values[other]), values[one].min(values[other]));
            (format!("{operands}: {more}-{less}={}", more - less), (more - less).to_string())
        }
        Question::Sum => {
            let sum = values[one] + values[other];
            (format!("{operands}: {}+{}={sum}", values[one], values[other]), sum.to_string())
        }
    };
    let digits = picture == Picture::Digits;
    let wordings = match kind {
        Question::Value if digits => [format!("Which digit is {a}?"), format!("What is the value of {a}?")],
        Question::Value => [format!("How high is {a}?"), format!("What is the value of {a}?")],
        Question::Highest if digits => ["Which of A B C D is largest?".into(), "Where is the largest digit?".into()],
        Question::Highest => ["Which of A B C D is highest?".into(), "Which item is highest?".into()],
        Question::Lowest if digits => ["Which of A B C D is smallest?".into(), "Where is the smallest digit?".into()],
        Question::Lowest => ["Which of A B C D is lowest?".into(), "Which item is lowest?".into()],
        Question::Difference => {
            [format!("What is the difference between {a} and {b}?"), format!("How far apart are {a} and {b}?")]
        }
        Question::Sum => [format!("What is the sum of {a} and {b}?"), format!("What is {a} plus {b}?")],
    };
    let question = wordings.choose(random)?.clone();
    let seen: Vec<String> = LETTERS.into_iter().zip(values).map(|(letter, value)| format!("{letter}{value}")).collect();
    let worked = format!("Read {}\n\n{reasoning}\n\n\\boxed{{{answer}}}", seen.join(" "));
    Some(Asked { question, answer, worked })
}

/// The line of reasoning and the letter of the only item at `value`.
fn extreme(name: &str, values: [u8; ITEMS], value: u8) -> Option<(String, String)> {
    let mut items = LETTERS.into_iter().zip(values).filter(|&(_, other)| other == value);
    let (letter, _) = items.next()?;
    items.next().is_none().then(|| (format!("{name} {letter}{value}"), letter.to_string()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use rand::SeedableRng;

    use super::*;

    fn asked(kind: Question, values: [u8; ITEMS], seed: u64) -> Option<Asked> {
        ask(kind, Picture::Bars, values, &mut ChaCha8Rng::seed_from_u64(seed))
    }

    #[test]
    fn extremes_name_the_item() {
        let highest = asked(Question::Highest, [3, 1, 5, 2], 0).unwrap();
        assert_eq!(highest.worked, "Read A3 B1 C5 D2\n\nmax C5\n\n\\boxed{C}");
        assert_eq!(highest.answer, "C");
        let lowest = asked(Question::Lowest, [3, 1, 5, 2], 0).unwrap();
        assert_eq!(lowest.worked, "Read A3 B1 C5 D2\n\nmin B1\n\n\\boxed{B}");
    }

    #[test]
    fn ties_have_no_answer() {
        assert_eq!(asked(Question::Highest, [5, 1, 5, 2], 0), None);
        assert_eq!(asked(Question::Lowest, [5, 1, 1, 2], 0), None);
        assert!(asked(Question::Highest, [5, 1, 1, 2], 0).is_some());
    }

    #[test]
    fn differences_are_absolute_and_sums_may_have_two_digits() {
        for seed in 0..20 {
            let difference = asked(Question::Difference, [0, 5, 0, 5], seed).unwrap();
            assert!(difference.worked.contains("5-0=5") || difference.answer == "0", "{}", difference.worked);
            let sum = asked(Question::Sum, [5; ITEMS], seed).unwrap();
            assert!(sum.worked.starts_with("Read A5 B5 C5 D5\n\nso "), "{}", sum.worked);
            assert!(sum.worked.ends_with(": 5+5=10\n\n\\boxed{10}"), "{}", sum.worked);
        }
    }
}
