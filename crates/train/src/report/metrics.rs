//! The metrics of a run, as the page shows them.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Error;
use crate::files::io;
use crate::records::{lines, record};

/// All lines of `metrics.jsonl` of one phase: a column for every metric, with a gap where a line lacks it.
#[derive(Serialize)]
pub(crate) struct Phase {
    pub(crate) name: String,
    pub(crate) steps: Vec<usize>,
    pub(crate) columns: BTreeMap<String, Vec<Option<f64>>>,
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
pub(crate) fn read_metrics(path: &Path) -> Result<Vec<Phase>, Error> {
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
