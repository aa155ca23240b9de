//! Files of one JSON value a line.

use std::io::{BufRead as _, BufReader, Read};
use std::path::Path;

use serde::de::DeserializeOwned;

use crate::Error;
use crate::files::io;

/// The lines of `source`, which is the file `path`; one of them at a time is in memory. What follows the last line break
/// is not yet a line.
pub(crate) fn lines(source: impl Read, path: &Path) -> impl Iterator<Item = Result<String, Error>> {
    let mut source = BufReader::new(source);
    std::iter::from_fn(move || {
        let mut line = String::new();
        match source.read_line(&mut line) {
            Ok(_) => line.ends_with('\n').then_some(Ok(line)),
            Err(source) => Some(Err(io(path, source))),
        }
    })
}

/// The value of a line of `path`, whose place is counted from 0.
pub(crate) fn record<T: DeserializeOwned>(line: &str, path: &Path, place: usize) -> Result<T, Error> {
    serde_json::from_str(line).map_err(|error| Error::Line {
        path: path.into(),
        line: place + 1,
        problem: error.to_string(),
    })
}
