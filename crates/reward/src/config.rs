//! The entries of the list.

use serde::{Deserialize, Serialize};

use crate::{
    Asked, BoxFrame, Choice, Command, Detection, Error, Exact, Format, Iou, Judge, Length, Numeric, Repetition,
    Response, Reward, Score, math,
};

/// One entry of the list: `{ kind = "math", name = "accuracy", weight = 1.0 }` and the keys of its kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RewardConfig {
    /// Its name in the log, unlike the others'; absent, its kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its factor in the sum that is optimised; 0 is only watched.
    #[serde(default = "one")]
    pub weight: f32,
    /// What is rewarded. It knows its keys, so an unknown one is refused.
    #[serde(flatten)]
    pub kind: RewardKind,
}

fn one() -> f32 {
    1.0
}

impl RewardConfig {
    /// The name that it goes by.
    #[must_use]
    pub fn name(&self) -> &str {
        self.name.as_deref().unwrap_or(self.kind.name())
    }
}

/// What is rewarded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum RewardKind {
    /// The final answer as mathematics.
    Math(Math),
    /// The final answer as text.
    Exact(Exact),
    /// The letter of a multiple choice.
    Choice(Choice),
    /// The final number.
    Numeric(Numeric),
    /// The form of the whole response.
    Format(Format),
    /// The first box.
    Iou(Iou),
    /// All boxes.
    Detection(Detection),
    /// The length.
    Length(Length),
    /// Repeated words.
    Repetition(Repetition),
    /// A program's opinion.
    Command(Command),
    /// Another model's opinion.
    Judge(Judge),
}

impl RewardKind {
    /// Its name in a configuration.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Math(_) => "math",
            Self::Exact(_) => "exact",
            Self::Choice(_) => "choice",
            Self::Numeric(_) => "numeric",
            Self::Format(_) => "format",
            Self::Iou(_) => "iou",
            Self::Detection(_) => "detection",
            Self::Length(_) => "length",
            Self::Repetition(_) => "repetition",
            Self::Command(_) => "command",
            Self::Judge(_) => "judge",
        }
    }

    /// Makes the reward, in whose responses boxes are written in `frame`.
    pub(crate) fn build(&self, frame: BoxFrame) -> Result<Box<dyn Reward>, Error> {
        Ok(match self {
            Self::Math(math) => Box::new(*math),
            Self::Exact(exact) => Box::new(*exact),
            Self::Choice(choice) => Box::new(choice.clone()),
            Self::Numeric(numeric) => Box::new(numeric.checked()?),
            Self::Format(format) => Box::new(format.compile()?),
            Self::Iou(iou) => Box::new(iou.reading(frame)?),
            Self::Detection(detection) => Box::new(detection.reading(frame)?),
            Self::Length(length) => Box::new(length.checked()?),
            Self::Repetition(repetition) => Box::new(repetition.checked()?),
            Self::Command(command) => Box::new(command.start()?),
            Self::Judge(judge) => judge.connect()?,
        })
    }
}

/// `kind = "math"`: 1 when the final answer of the response is mathematically the reference, else 0; see
/// [`crate::math`].
///
/// The final answer is in the last box, else between the last answer tags, thinking left out
/// ([`math::final_answer`]); a response without has 0. Units are left out, as math-verify does, so that 5 km is 5 m,
/// and a percent sign means hundredths or nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Math {}

impl Reward for Math {
    fn score(&self, asked: &Asked<'_>, response: &Response<'_>) -> Result<Score, Error> {
        Ok(math::grade(response.text, asked.answer()?).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: &str = r#"
[[rewards]]
weight = 1.0
kind = "math"

[[rewards]]
name = "accuracy"
weight = 0.5
kind = "exact"
from = "last_line"
trim = true
ignore_case = true

[[rewards]]
weight = 0.0
kind = "choice"
options = "options"

[[rewards]]
weight = 1.0
kind = "numeric"
relative = 0.05
absolute = 0.0
exact_years = true

[[rewards]]
weight = -0.5
kind = "format"
regex = "<think>.*"

[[rewards]]
weight = 1.0
kind = "iou"
column = "box"
reference = "normalised"
image = 1
threshold = 0.5

[[rewards]]
weight = 1.0
kind = "detection"
reference = "resized"
image = 0
threshold = 0.75
labels = false
measure = "mean_iou"

[[rewards]]
weight = 1.0
kind = "length"
max_tokens = 20
buffer = 4
min_tokens = 2

[[rewards]]
weight = 1.0
kind = "repetition"
ngram = 4
max_penalty = 0.5

[[rewards]]
weight = 1.0
kind = "command"
command = ["python3", "reward.py"]
workers = 2
timeout_s = 5.0
retries = 0
directory = "rewards"

[[rewards]]
weight = 1.0
kind = "judge"
url = "http://localhost:8000/v1/chat/completions"
model = "m"
api_key_env = "KEY"
prompt = "{{ response }}"
timeout_s = 5.0
retries = 2
backoff_s = 0.5
parallel = 4
cache = "judge.jsonl"

[rewards.score]
regex = "Score: (.*)"

[rewards.parameters]
temperature = 0
top_p = 0.5
"#;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Run {
        rewards: Vec<RewardConfig>,
    }

    fn read(toml: &str) -> Result<Run, toml::de::Error> {
        toml::from_str(toml)
    }

    #[test]
    fn every_kind_is_read_and_written_as_it_was() {
        let run = read(ALL).expect("a configuration");
        assert_eq!(toml::to_string(&run).expect("a configuration").trim(), ALL.trim());
        let names: Vec<_> = run.rewards.iter().map(|reward| reward.kind.name()).collect();
        let kinds = ALL.lines().filter_map(|line| line.strip_prefix("kind = "));
        assert_eq!(names, kinds.map(|kind| kind.trim_matches('"')).collect::<Vec<_>>());
        assert_eq!((run.rewards[0].name(), run.rewards[1].name()), ("math", "accuracy"));
    }

    #[test]
    fn what_is_left_out_has_a_default_which_is_written() {
        let of = |kind: &str| read(&format!("[[rewards]]\n{kind}")).expect(kind);
        let command = of("kind = 'command'\ncommand = ['true']");
        let RewardKind::Command(found) = &command.rewards[0].kind else { panic!("{command:?}") };
        assert_eq!((found.workers, found.timeout_s, found.retries), (1, 30.0, 1));
        let [choice, repetition] = ["choice", "repetition"].map(|kind| of(&format!("kind = '{kind}'")));
        for run in [command, choice, repetition, of("kind = 'detection'"), of("kind = 'iou'"), of("kind = 'exact'")] {
            assert_eq!(read(&toml::to_string(&run).expect("a configuration")).expect("the same"), run);
        }
    }

    #[test]
    fn math_takes_no_answer_out_of_thinking() {
        let right = |text| crate::testing::value(&Math {}, text, "0.5") > 0.5;
        for (text, expected) in [
            (r"\boxed{\frac{1}{2}}", true),
            (r"<think>\boxed{1}</think> \boxed{1/2}", true),
            (r"<think>\boxed{1/2}</think> It is a half.", false),
            (r"<think>\boxed{1/2} or", false),
            ("<answer>1/2</answer>", true),
            ("1/2", false),
        ] {
            assert_eq!(right(text), expected, "{text}");
        }
    }

    #[test]
    fn unknown_keys_and_kinds_are_refused_by_name() {
        for (entry, expected) in [
            ("kind = 'math'\ntrim = true", "unknown field `trim`"),
            ("kind = 'exact'\nfrm = 'box'", "unknown field `frm`, expected one of `from`, `trim`, `ignore_case`"),
            ("kind = 'length'\nmax_tokens = 3", "missing field `buffer`"),
            ("kind = 'exact'\nfrom = 'boxes'", "unknown variant `boxes`"),
            ("kind = 'maths'", "unknown variant `maths`"),
            ("name = 'a'", "missing field `kind`"),
            ("kind = 'format'\nregex = 'a'\nwieght = 1", "unknown field `wieght`"),
            ("kind = 'command'\ncommand = 'python3 reward.py'", "expected a sequence"),
        ] {
            let error = read(&format!("[[rewards]]\n{entry}")).expect_err(entry).to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
