use regex::Regex;
use serde::{Deserialize, Serialize};

use crate::{Asked, Error, Response, Reward, Score};

/// `kind = "format"`: 1 when the whole response matches a regular expression, else 0.
///
/// The expression is that of the [`regex`] crate, in which matching takes time proportional to the length of the text;
/// there are no look-around and no back-references. A dot matches a line break as well, `(?-s)` in front turns that
/// off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Format {
    /// The expression, say `<think>.*</think>\s*<answer>.*</answer>`.
    pub regex: String,
}

impl Format {
    pub(crate) fn compile(&self) -> Result<Matching, Error> {
        // By itself first: with what stands around it, `a)|(b` would be an expression.
        let compile = |expression: &str| {
            Regex::new(expression).map_err(|error| Error::setting("regex", format!("cannot be compiled: {error}")))
        };
        compile(&self.regex)?;
        Ok(Matching { regex: compile(&format!(r"\A(?s:{})\z", self.regex))? })
    }
}

#[derive(Debug)]
pub(crate) struct Matching {
    regex: Regex,
}

impl Reward for Matching {
    fn score(&self, _: &Asked<'_>, response: &Response<'_>) -> Result<Score, Error> {
        Ok(self.regex.is_match(response.text).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::value;

    fn matches(regex: &str, text: &str) -> bool {
        value(&Format { regex: regex.into() }.compile().expect("an expression"), text, "") > 0.5
    }

    #[test]
    fn the_whole_response_has_to_match() {
        let regex = r"<think>.*</think>\s*<answer>.*</answer>";
        assert!(matches(regex, "<think>a\nb</think>\n<answer>1</answer>"));
        assert!(!matches(regex, "so <think>a</think><answer>1</answer>"));
        assert!(!matches(regex, "<think>a</think><answer>1</answer>\n"));
        assert!(matches("a|ab", "ab"), "an alternative that ends too soon hides none that does not");
        assert!(!matches("a|ab", "abc"));
        assert!(!matches("(?-s)a.b", "a\nb"));
    }

    #[test]
    fn what_is_no_expression_by_itself_is_refused() {
        for regex in ["a)|(b", "(", "(?=a)"] {
            let error = Format { regex: regex.into() }.compile().expect_err(regex).to_string();
            assert!(error.starts_with("regex cannot be compiled"), "{error}");
        }
    }
}
