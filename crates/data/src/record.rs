//! A row as it stands in a file: values by column.

use serde_json::{Map, Value};

/// Columns and what is in them.
pub(crate) type Record = Map<String, Value>;

/// What a column holds; nothing if it is null or not there.
pub(crate) fn value<'a>(record: &'a Record, column: &str) -> Option<&'a Value> {
    if let Some(value) = record.get(column) {
        return Some(value).filter(|value| !value.is_null());
    }
    let (outer, inner) = column.split_once('.')?;
    value(record.get(outer)?.as_object()?, inner)
}

/// Takes a column out.
pub(crate) fn take(record: &mut Record, column: &str) -> Option<Value> {
    if let Some(value) = record.remove(column) {
        return Some(value).filter(|value| !value.is_null());
    }
    let (outer, inner) = column.split_once('.')?;
    take(record.get_mut(outer)?.as_object_mut()?, inner)
}

/// What a value is, for an error.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a struct",
    }
}
