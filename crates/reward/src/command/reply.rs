use serde_json::{Map, Value};

use super::worker::Problem;
use crate::Score;

/// What a program answers.
#[derive(Debug, PartialEq)]
pub(super) enum Reply {
    Score(Score),
    /// No score, for a reason.
    Error(String),
}

impl Reply {
    /// Reads the reply to request `id`.
    pub(super) fn read(line: &str, id: u64) -> Result<Self, Problem> {
        let refuse = |reason: String| {
            let shown: String = line.trim_end().chars().take(200).collect();
            Problem::Nonsense(format!("wrote a line that is no reply, {reason}: {shown}"))
        };
        let value = serde_json::from_str(line).map_err(|error| refuse(format!("as JSON {error}")))?;
        match value {
            Value::Object(fields) => Self::of_fields(fields, id).map_err(refuse),
            value => {
                let value = number(&value).map_err(|_| refuse("neither a number nor an object".into()))?;
                Ok(Self::Score(Score { value, parts: Vec::new() }))
            }
        }
    }

    fn of_fields(mut fields: Map<String, Value>, id: u64) -> Result<Self, String> {
        if let Some(other) = fields.remove("id").filter(|other| *other != id) {
            return Err(format!("to request {other} instead of {id}"));
        }
        if let Some(error) = fields.remove("error").filter(|error| !error.is_null()) {
            return Ok(Self::Error(error.as_str().map_or_else(|| error.to_string(), Into::into)));
        }
        let value = ["score", "overall", "reward"].iter().find_map(|key| Some((*key, fields.remove(*key)?)));
        let (key, value) = value.ok_or("without score, overall or reward")?;
        let read = |(key, value): (&str, &Value)| number(value).map_err(|problem| format!("{key} {problem}"));
        let value = read((key, &value))?;
        let parts = fields.iter().map(|(key, value)| Ok((key.clone(), read((key, value))?)));
        Ok(Self::Score(Score { value, parts: parts.collect::<Result<_, String>>()? }))
    }
}

/// A number, 1 and 0 for true and false, nothing for null.
fn number(value: &Value) -> Result<Option<f32>, &'static str> {
    match value {
        Value::Null => Ok(None),
        Value::Bool(right) => Ok(Some(f32::from(u8::from(*right)))),
        value => value.as_f64().map(|number| Some(number as f32)).ok_or("has to be a number"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(line: &str) -> Score {
        match Reply::read(line, 7).expect(line) {
            Reply::Score(score) => score,
            Reply::Error(message) => panic!("{message}"),
        }
    }

    #[test]
    fn replies_are_numbers_or_objects() {
        assert_eq!(score("0.5\n"), 0.5.into());
        assert_eq!(score("-3"), (-3.0).into());
        assert_eq!(score("true"), 1.0.into());
        assert_eq!(score("null"), Score::abstain());
        let parts =
            |parts: &[(&str, Option<f32>)]| parts.iter().map(|(name, value)| ((*name).into(), *value)).collect();
        let expected = Score { value: Some(0.75), parts: parts(&[("accuracy", Some(1.0)), ("format", None)]) };
        assert_eq!(score(r#"{"id": 7, "overall": 0.75, "format": null, "accuracy": true, "error": null}"#), expected);
        assert_eq!(
            score(r#"{"score": null, "reward": 2}"#),
            Score { value: None, parts: parts(&[("reward", Some(2.0))]) }
        );
        assert_eq!(Reply::read(r#"{"error": "no", "score": 1}"#, 7), Ok(Reply::Error("no".into())));
    }

    #[test]
    fn nonsense_is_refused_with_the_line() {
        for (line, reason) in [
            ("hello", "as JSON expected value at line 1 column 1: hello"),
            ("[1]", "neither a number nor an object: [1]"),
            ("\"1\"", "neither a number nor an object"),
            (r#"{"accuracy": 1}"#, "without score, overall or reward"),
            (r#"{"score": "1"}"#, "score has to be a number"),
            (r#"{"score": 1, "note": "x"}"#, "note has to be a number"),
            (r#"{"id": 6, "score": 1}"#, "to request 6 instead of 7"),
        ] {
            let Err(Problem::Nonsense(problem)) = Reply::read(line, 7) else { panic!("{line}") };
            assert!(problem.starts_with("wrote a line that is no reply, ") && problem.contains(reason), "{problem}");
        }
    }
}
