//! What chat templates expect of Python: dictionaries that keep their order, `json.dumps`, dates.

use std::fmt::{self, Write};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::{Enumerator, Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, Value};
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

/// A dictionary in insertion order, as Python's are; minijinja's own maps are sorted.
#[derive(Debug, Clone, Default)]
pub(super) struct Object(Vec<(Value, Value)>);

impl Object {
    /// Keys and values in order.
    pub(super) fn pairs(&self) -> impl Iterator<Item = (Value, Value)> + '_ {
        self.0.iter().cloned()
    }
}

impl minijinja::value::Object for Object {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value.clone())
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.0.iter().map(|(name, _)| name.clone()).collect())
    }
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor)
    }
}

struct ObjectVisitor;

impl<'de> Visitor<'de> for ObjectVisitor {
    type Value = Object;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("names and values")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
        let mut pairs = Vec::new();
        while let Some((name, Any(value))) = map.next_entry::<String, Any>()? {
            pairs.push((Value::from(name), value));
        }
        Ok(Object(pairs))
    }
}

/// A template value read from JSON, TOML and the like.
struct Any(Value);

impl<'de> Deserialize<'de> for Any {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyVisitor).map(Any)
    }
}

struct AnyVisitor;

impl<'de> Visitor<'de> for AnyVisitor {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("a boolean, a number, a string, a list or a map")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(().into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(Any(value)) = list.next_element()? {
            values.push(value);
        }
        Ok(values.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Value, A::Error> {
        ObjectVisitor.visit_map(map).map(Value::from_object)
    }
}

/// The `tojson` filter as transformers defines it: `json.dumps(value, ensure_ascii=False, indent=indent)`, in
/// particular without escapes for HTML.
#[expect(clippy::needless_pass_by_value, reason = "filters receive their arguments by value")]
pub(super) fn to_json(value: &Value, arguments: Kwargs) -> Result<String, Error> {
    let indent = arguments.get::<Option<usize>>("indent")?;
    // Accepted because templates pass it; `false` is what happens anyway.
    if arguments.get::<Option<bool>>("ensure_ascii")? == Some(true) {
        return Err(Error::new(ErrorKind::InvalidOperation, "tojson writes Unicode as it is"));
    }
    arguments.assert_all_used()?;
    let mut text = String::new();
    write_json(&mut text, value, indent, 0)?;
    Ok(text)
}

fn write_json(text: &mut String, value: &Value, indent: Option<usize>, depth: usize) -> Result<(), Error> {
    match value.kind() {
        ValueKind::Undefined | ValueKind::None => text.push_str("null"),
        ValueKind::Bool => text.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => text.push_str(&value.to_string()),
        ValueKind::String => write_json_string(text, value)?,
        ValueKind::Seq | ValueKind::Iterable => {
            write_json_items(text, ['[', ']'], value, indent, depth, |text, item| {
                write_json(text, &item, indent, depth + 1)
            })?;
        }
        ValueKind::Map => {
            write_json_items(text, ['{', '}'], value, indent, depth, |text, name| {
                write_json_string(text, &name)?;
                text.push_str(": ");
                write_json(text, &value.get_item(&name)?, indent, depth + 1)
            })?;
        }
        kind => return Err(Error::new(ErrorKind::BadSerialization, format!("{kind} has no JSON form"))),
    }
    Ok(())
}

fn write_json_items(
    text: &mut String,
    [open, close]: [char; 2],
    items: &Value,
    indent: Option<usize>,
    depth: usize,
    mut write: impl FnMut(&mut String, Value) -> Result<(), Error>,
) -> Result<(), Error> {
    let new_line = |text: &mut String, depth: usize| {
        if let Some(indent) = indent {
            text.push('\n');
            text.push_str(&" ".repeat(indent * depth));
        }
    };
    text.push(open);
    let mut empty = true;
    for item in items.try_iter()? {
        if !empty {
            text.push_str(if indent.is_some() { "," } else { ", " });
        }
        empty = false;
        new_line(text, depth + 1);
        write(text, item)?;
    }
    if !empty {
        new_line(text, depth);
    }
    text.push(close);
    Ok(())
}

fn write_json_string(text: &mut String, value: &Value) -> Result<(), Error> {
    let quoted = serde_json::to_string(value.as_str().unwrap_or_default())
        .map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    text.push_str(&quoted);
    Ok(())
}

/// `raise_exception(message)`: how templates refuse a conversation.
pub(super) fn raise_exception(message: &str) -> Result<String, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message.to_owned()))
}

/// `strftime_now(format)`: the current date and time, in UTC.
pub(super) fn strftime_now(format: &str) -> Result<String, Error> {
    let seconds = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))?
        .as_secs();
    strftime(format, seconds)
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// The directives that date lines of published templates use; seconds count from 1970.
fn strftime(format: &str, seconds: u64) -> Result<String, Error> {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    // The first of January 1970 was a Thursday.
    let (month_name, weekday) = (MONTHS[month - 1], WEEKDAYS[((days + 4) % 7) as usize]);
    let mut text = String::new();
    let mut letters = format.chars();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            text.push(letter);
            continue;
        }
        match letters.next() {
            Some('Y') => write!(text, "{year}"),
            Some('y') => write!(text, "{:02}", year % 100),
            Some('m') => write!(text, "{month:02}"),
            Some('d') => write!(text, "{day:02}"),
            Some('B') => write!(text, "{month_name}"),
            Some('b') => write!(text, "{}", &month_name[..3]),
            Some('A') => write!(text, "{weekday}"),
            Some('a') => write!(text, "{}", &weekday[..3]),
            Some('H') => write!(text, "{:02}", second / 3600),
            Some('M') => write!(text, "{:02}", second / 60 % 60),
            Some('S') => write!(text, "{:02}", second % 60),
            Some('%') => write!(text, "%"),
            _ => Err(fmt::Error),
        }
        .map_err(|_| Error::new(ErrorKind::InvalidOperation, format!("strftime_now cannot write {format:?}")))?;
    }
    Ok(text)
}

/// Year, month and day of a day counted from 1970-01-01, in the Gregorian calendar.
fn date(days: u64) -> (u64, usize, u64) {
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let (mut year, mut day) = (1970, days);
    while day >= 365 + u64::from(leap(year)) {
        day -= 365 + u64::from(leap(year));
        year += 1;
    }
    let mut month = 1;
    for length in [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if day < length {
            break;
        }
        day -= length;
        month += 1;
    }
    (year, month, day + 1)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use minijinja::{Environment, context};

    use super::*;

    fn written(json: &str, filter: &str) -> Result<String, Error> {
        let Any(value) = serde_json::from_str(json).unwrap();
        let mut environment = Environment::new();
        environment.add_filter("tojson", to_json);
        environment.render_str(&format!("{{{{ value | {filter} }}}}"), context!(value))
    }

    #[test]
    fn json_is_that_of_python() {
        // json.dumps(..., ensure_ascii=False) of Python 3.11, with the keys in the order of the input.
        let json = r#"{"b":[1,-2,2.5,1.0,null,true],"a":{"é":"<'&'>\"\\\n\u0001"},"c":{},"d":[]}"#;
        let python = r#"{"b": [1, -2, 2.5, 1.0, null, true], "a": {"é": "<'&'>\"\\\n\u0001"}, "c": {}, "d": []}"#;
        assert_eq!(written(json, "tojson").unwrap(), python);
        assert_eq!(written(json, "tojson(ensure_ascii=false)").unwrap(), python);
        let indented = "{\n  \"b\": [\n    1\n  ],\n  \"a\": {}\n}";
        assert_eq!(written(r#"{"b": [1], "a": {}}"#, "tojson(indent=2)").unwrap(), indented);
        assert!(written("1", "tojson(ensure_ascii=true)").is_err());
        assert!(written("1", "tojson(sort_keys=true)").is_err());
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        let format = "%a %A %d %m %Y %y %b %B %H:%M:%S %%";
        assert_eq!(strftime(format, 0).unwrap(), "Thu Thursday 01 01 1970 70 Jan January 00:00:00 %");
        // The leap day of a year divisible by 400, and the last second of a year.
        assert_eq!(strftime(format, 951_782_400).unwrap(), "Tue Tuesday 29 02 2000 00 Feb February 00:00:00 %");
        assert_eq!(strftime("%Y-%m-%d %H:%M:%S", 1_767_225_599).unwrap(), "2025-12-31 23:59:59");
        assert_eq!(strftime("%Y-%m-%d", 4_107_542_400).unwrap(), "2100-03-01");
        assert!(strftime("%q", 0).is_err());
        assert!(strftime("%", 0).is_err());
        assert_eq!(strftime_now("%Y").unwrap().len(), 4);
    }
}
