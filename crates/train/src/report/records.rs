//! Files of one JSON value a line.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
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
    let text = read_all(File::open(path).map_err(|source| io(path, source))?, path)?;
    let mut phases: Vec<Phase> = Vec::new();
    for line in records::<Line>(&text, path)? {
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

pub(super) fn read_all(mut source: impl Read, path: &Path) -> Result<String, Error> {
    let mut text = String::new();
    source.read_to_string(&mut text).map_err(|source| io(path, source))?;
    Ok(text)
}

/// The values of the lines of `path`. What follows the last line break is not yet a line.
pub(super) fn records<T: DeserializeOwned>(text: &str, path: &Path) -> Result<Vec<T>, Error> {
    let lines = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    let record = |(place, line)| {
        serde_json::from_str(line).map_err(|error| Error::Line {
            path: path.into(),
            line: place + 1,
            problem: error.to_string(),
        })
    };
    lines.enumerate().map(record).collect()
}
