//! Files of one JSON value a line.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read};
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::files::io;

/// All lines of `metrics.jsonl` of one phase: a column for every metric, with a gap where a line lacks it.
#[derive(Serialize)]
pub(super) struct Phase {
    name: String,
    steps: Vec<usize>,
    columns: BTreeMap<String, Vec<Option<f64>>>,
}

#[derive(Deserialize)]
struct Line {
    phase: String,
    step: usize,
    /// Null is a number that is not finite.
    #[serde(flatten)]
    metrics: BTreeMap<String, Option<f64>>,
}

/// The phases of a run, in the order of their first lines; none if there is no such file yet.
pub(super) fn read_metrics(path: &Path) -> Result<Vec<Phase>, Error> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let file = File::open(path).map_err(|source| io(path, source))?;
    let mut phases: Vec<Phase> = Vec::new();
    for (place, line) in lines(file, path).enumerate() {
        let line: Line = record(&line?, path, place)?;
        let place = phases.iter().position(|phase| phase.name == line.phase).unwrap_or(phases.len());
        if place == phases.len() {
            phases.push(Phase { name: line.phase, steps: Vec::new(), columns: BTreeMap::new() });
        }
        let Phase { steps, columns, .. } = &mut phases[place];
        for (name, value) in line.metrics {
            let column = columns.entry(name).or_default();
            column.resize(steps.len(), None);
            column.push(value);
        }
        steps.push(line.step);
    }
    for Phase { steps, columns, .. } in &mut phases {
        for column in columns.values_mut() {
            column.resize(steps.len(), None);
        }
    }
    Ok(phases)
}

/// The lines of `source`, which is the file `path`; one of them at a time is in memory. What follows the last line break
/// is not yet a line.
pub(super) fn lines(source: impl Read, path: &Path) -> impl Iterator<Item = Result<String, Error>> {
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
pub(super) fn record<T: DeserializeOwned>(line: &str, path: &Path, place: usize) -> Result<T, Error> {
    serde_json::from_str(line).map_err(|error| Error::Line {
        path: path.into(),
        line: place + 1,
        problem: error.to_string(),
    })
}
