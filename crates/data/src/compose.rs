//! From the columns of a record to a row: who says what, where the images stand, what the answer is.

use std::path::Path;

use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, UndefinedBehavior, context};
use serde_json::{Number, Value};

use crate::error::Problem;
use crate::image_source::{self, Given};
use crate::layout::{Layout, Meaning};
use crate::record::{Record, kind, value};
use crate::{BadRow, Error, Message, Origin, Part, Role, Row};

const TEMPLATE: &str = "template";
/// All whole numbers up to this one are floats.
const EXACT: f64 = (1_u64 << f64::MANTISSA_DIGITS) as f64;

/// A layout that is ready for use.
#[derive(Debug)]
pub(crate) struct Composer {
    layout: Layout,
    template: Option<Environment<'static>>,
}

/// A message, with placeholders in its text.
struct Turn {
    role: Role,
    text: String,
}

impl Composer {
    pub(crate) fn new(layout: &Layout) -> Result<Self, Error> {
        layout.check()?;
        let template = layout.template.clone().map(environment).transpose();
        Ok(Self { layout: layout.clone(), template: template.map_err(|source| Error::Template { source })? })
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Makes a row of a record without its images, and these with the column they were in.
    pub(crate) fn row(
        &self,
        origin: Origin,
        mut record: Record,
        images: Option<(&str, Vec<Given>)>,
    ) -> Result<Row, BadRow> {
        record.retain(|_, value| !value.is_null());
        let (column, images) = images.unwrap_or_default();
        let parts = match self.parts(&record, images.len()) {
            Ok(parts) => parts,
            Err(problem) => return Err(problem.at(origin)),
        };
        let beside = origin.file.parent().unwrap_or(Path::new(""));
        let root = self.layout.image_root.as_deref().unwrap_or(beside);
        match image_source::locate(images, root, &origin) {
            Ok(images) => {
                let Parts { messages, prompt, answer, completion } = parts;
                Ok(Row { messages, prompt, images, answer, completion, columns: record, origin })
            }
            Err(problem) => Err(Problem::of_column(column, problem).at(origin)),
        }
    }

    fn parts(&self, record: &Record, images: usize) -> Result<Parts, Problem> {
        let Some((column, found)) = self.find(record, Meaning::Prompt)? else {
            let looked_for = self.layout.columns.candidates(Meaning::Prompt).join(", ");
            return Err(Problem::of_row(format!("there is no prompt: it has none of the columns {looked_for}")));
        };
        let wrong = |problem: String| Problem::of_column(column, problem);
        let mut turns = self.turns(found).map_err(wrong)?;
        let answered = turns.pop_if(|turn| turn.role == Role::Assistant).map(|turn| turn.text);
        if turns.last().is_none_or(|turn| turn.role != Role::User) {
            return Err(wrong("does not end with a message of the user, or with one and its answer".into()));
        }
        if let Some(system) = self.layout.system.as_ref().filter(|_| turns[0].role != Role::System) {
            turns.insert(0, Turn { role: Role::System, text: system.clone() });
        }
        let asked = turns.last_mut().expect("there is one of the user");
        let prompt = asked.text.clone();
        if let Some(environment) = &self.template {
            asked.text = rendered(environment, &prompt, record).map_err(|error| wrong(error.to_string()))?;
        }
        if asked.text.replace(&self.layout.placeholder, "").trim().is_empty() {
            return Err(wrong("asks nothing: the text of the last message is empty".into()));
        }
        let messages = self.messages(&turns, images).map_err(wrong)?;
        let completion = match (self.find(record, Meaning::Completion)?, answered) {
            (None, answered) => answered,
            (Some((column, found)), None) => {
                let completion = self.completion(found).map_err(|problem| Problem::of_column(column, problem))?;
                Some(completion)
            }
            (Some((completion, _)), Some(_)) => {
                return Err(wrong(format!("ends with an answer, and column {completion} has another")));
            }
        };
        Ok(Parts { messages, prompt, answer: self.answer(record)?, completion })
    }

    /// The column of a meaning, and what is in it.
    fn find<'a>(&'a self, record: &'a Record, meaning: Meaning) -> Result<Option<(&'a str, &'a Value)>, Problem> {
        let columns = &self.layout.columns;
        let mut candidates = columns.candidates(meaning).into_iter();
        let found = candidates.find_map(|column| Some((column, value(record, column)?)));
        match columns.named(meaning) {
            Some(column) if found.is_none() => Err(Problem::of_column(column, "is missing")),
            _ => Ok(found),
        }
    }

    fn turns(&self, prompt: &Value) -> Result<Vec<Turn>, String> {
        match prompt {
            Value::String(text) => Ok(vec![Turn { role: Role::User, text: text.clone() }]),
            Value::Array(messages) => {
                let each = messages.iter().enumerate();
                let turn = |(place, message)| self.turn(message).map_err(|problem| of_message(place, &problem));
                each.map(turn).collect()
            }
            other => Err(format!("is {}, not text or a list of messages", kind(other))),
        }
    }

    fn turn(&self, message: &Value) -> Result<Turn, String> {
        let role = match &message["role"] {
            Value::String(role) if role == "system" => Role::System,
            Value::String(role) if role == "user" => Role::User,
            Value::String(role) if role == "assistant" => Role::Assistant,
            Value::String(role) => return Err(format!("has the role {role:?}; roles are system, user and assistant")),
            other => return Err(format!("has a role that is {}, not text", kind(other))),
        };
        let text = match &message["content"] {
            Value::String(text) => text.clone(),
            Value::Array(parts) => self.text(parts)?,
            other => return Err(format!("has a content that is {}, not text or a list of parts", kind(other))),
        };
        Ok(Turn { role, text })
    }

    /// The text of a list of parts, with placeholders for images.
    fn text(&self, parts: &[Value]) -> Result<String, String> {
        let placeholder = &self.layout.placeholder;
        let (mut text, mut images, mut in_text) = (String::new(), 0, false);
        for part in parts {
            match (part["type"].as_str(), &part["text"]) {
                (Some("image"), _) => {
                    text.push_str(placeholder);
                    images += 1;
                }
                (Some("text"), Value::String(more)) => {
                    in_text |= more.contains(placeholder);
                    text.push_str(more);
                }
                (Some("text"), other) => return Err(format!("has a part whose text is {}", kind(other))),
                (other, _) => {
                    return Err(format!(
                        "has a part of type {:?}; types are text and image",
                        other.unwrap_or_default()
                    ));
                }
            }
        }
        if images > 0 && in_text {
            return Err(format!("has image parts, and {placeholder} in a text beside them"));
        }
        Ok(text)
    }

    /// Puts images in the places of placeholders, or where there are none before the user's first text, as TRL does.
    fn messages(&self, turns: &[Turn], images: usize) -> Result<Vec<Message>, String> {
        let placeholder = self.layout.placeholder.as_str();
        let places: usize = turns.iter().map(|turn| turn.text.matches(placeholder).count()).sum();
        if places > 0 && places != images {
            let images = if images == 1 { "is one image".into() } else { format!("are {images} images") };
            return Err(format!("has {places} of {placeholder} in its text, but there {images}"));
        }
        let mut in_front = if places == 0 { images } else { 0 };
        let message = |turn: &Turn| {
            let mut parts = Vec::new();
            if turn.role == Role::User {
                parts.extend(std::iter::repeat_n(Part::Image, std::mem::take(&mut in_front)));
            }
            for (place, text) in turn.text.split(placeholder).enumerate() {
                if place > 0 {
                    parts.push(Part::Image);
                }
                if !text.is_empty() {
                    parts.push(Part::Text(text.into()));
                }
            }
            Message { role: turn.role, parts }
        };
        Ok(turns.iter().map(message).collect())
    }

    fn answer(&self, record: &Record) -> Result<Option<String>, Problem> {
        let Some((column, value)) = self.find(record, Meaning::Answer)? else { return Ok(None) };
        // ChartQA, among others, has a list of the only answer.
        let value = match value {
            Value::Array(answers) if answers.len() == 1 => &answers[0],
            value => value,
        };
        match value {
            Value::String(text) => Ok(Some(untagged(text).into())),
            Value::Number(number) => Ok(Some(written(number))),
            Value::Bool(truth) => Ok(Some(truth.to_string())),
            other => {
                Err(Problem::of_column(column, format!("is {}, not text, a number or a truth value", kind(other))))
            }
        }
    }

    fn completion(&self, completion: &Value) -> Result<String, String> {
        if let Value::String(text) = completion {
            return Ok(text.clone());
        }
        let mut turns = self.turns(completion)?;
        match turns.pop() {
            Some(Turn { role: Role::Assistant, text }) if turns.is_empty() => Ok(text),
            _ => Err("is neither a text nor one message of the assistant".into()),
        }
    }
}

/// An answer without the tags that R1-V's data sets put around it.
fn untagged(answer: &str) -> &str {
    let inside = answer.trim().strip_prefix("<answer>").and_then(|answer| answer.strip_suffix("</answer>"));
    inside.map_or(answer, str::trim)
}

/// A number as text, a whole one without a point: Parquet has floats where a column of integers has nulls.
fn written(number: &Number) -> String {
    match number.as_f64() {
        // Adding 0 makes 0 of -0.
        Some(float) if number.is_f64() && float.fract() == 0.0 && float.abs() < EXACT => (float + 0.0).to_string(),
        _ => number.to_string(),
    }
}

struct Parts {
    messages: Vec<Message>,
    prompt: String,
    answer: Option<String>,
    completion: Option<String>,
}

fn of_message(place: usize, problem: &str) -> String {
    format!("message {} {problem}", place + 1)
}

fn environment(source: String) -> Result<Environment<'static>, minijinja::Error> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.add_template_owned(TEMPLATE, source)?;
    Ok(environment)
}

fn rendered(environment: &Environment<'_>, prompt: &str, columns: &Record) -> Result<String, minijinja::Error> {
    environment.get_template(TEMPLATE)?.render(context! { prompt, content => prompt, columns => Serde(columns) })
}
