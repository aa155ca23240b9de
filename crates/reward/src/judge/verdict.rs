use std::sync::LazyLock;

use regex::Regex;

use super::Verdict;
use crate::Error;
use crate::answer::after_thinking;
use crate::numeric::only_value;

/// A [`Verdict`] with its expression compiled.
#[derive(Debug)]
pub(super) enum Reading {
    Number,
    YesNo,
    Regex(Regex),
}

impl Reading {
    pub(super) fn new(verdict: &Verdict) -> Result<Self, Error> {
        Ok(match verdict {
            Verdict::Number => Self::Number,
            Verdict::YesNo => Self::YesNo,
            Verdict::Regex(regex) => {
                let regex = Regex::new(regex).map_err(|error| {
                    Error::setting("score", format!("has a regex that cannot be compiled: {error}"))
                })?;
                if regex.captures_len() < 2 {
                    return Err(Error::setting("score", "has a regex without a group for the number"));
                }
                Self::Regex(regex)
            }
        })
    }

    /// The score in a reply, if there is one and no other.
    pub(super) fn score(&self, reply: &str) -> Option<f32> {
        static YES_NO: LazyLock<Regex> =
            LazyLock::new(|| Regex::new(r"(?i)\b(?:(yes)|no)\b").expect("the expression is a constant"));
        let reply = after_thinking(reply);
        match self {
            Self::Number => Some(only_value(reply)? as f32),
            Self::YesNo => {
                let last = YES_NO.captures_iter(reply).last()?;
                Some(f32::from(u8::from(last.get(1).is_some())))
            }
            Self::Regex(regex) => regex.captures_iter(reply).last()?.get(1)?.as_str().trim().parse().ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(verdict: &Verdict, reply: &str) -> Option<f32> {
        Reading::new(verdict).expect("a verdict").score(reply)
    }

    #[test]
    fn a_score_is_a_number_a_yes_or_what_an_expression_finds() {
        assert_eq!(score(&Verdict::Number, "<think>3</think>It is 8.5."), Some(8.5));
        assert_eq!(score(&Verdict::Number, "8.5/10"), None);
        assert_eq!(score(&Verdict::Number, "It is 7, no, 8.5."), None);
        assert_eq!(score(&Verdict::Number, "none <think>"), None);
        assert_eq!(score(&Verdict::YesNo, "Not wrong, so: **Yes**."), Some(1.0));
        assert_eq!(score(&Verdict::YesNo, "yes?\nNO"), Some(0.0));
        assert_eq!(score(&Verdict::YesNo, "yesterday nothing"), None);
        let regex = Verdict::Regex(r"Score: (\S+)/10".into());
        assert_eq!(score(&regex, "Score: 3/10, no, Score: 4.5/10, of 10"), Some(4.5));
        assert_eq!(score(&regex, "Score: high/10"), None);
        assert_eq!(score(&regex, "4.5/10"), None);
    }

    #[test]
    fn an_expression_needs_a_group() {
        for (regex, problem) in [("Score", "without a group"), ("(", "cannot be compiled")] {
            let error = Reading::new(&Verdict::Regex(regex.into())).expect_err(regex).to_string();
            assert!(error.starts_with("score has a regex") && error.contains(problem), "{error}");
        }
    }
}
