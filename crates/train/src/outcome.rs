//! What a run achieved, as a table and as the file that says that it is complete.

use std::path::{Path, PathBuf};

use comfy_table::presets::UTF8_BORDERS_ONLY;
use comfy_table::{CellAlignment, Table};
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::held_out::{HeldOutAccuracy, Sighted};

/// What a run achieved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// Steps and seconds of the supervised phase.
    pub supervised_cost: (usize, f64),
    /// Steps and seconds of reinforcement learning.
    pub reinforcement_cost: (usize, f64),
    /// Seconds of the whole run, measuring included.
    pub seconds: f64,
    /// Held-out questions.
    pub questions: usize,
    /// Before any training.
    pub before: HeldOutAccuracy,
    /// After the supervised phase.
    pub supervised: HeldOutAccuracy,
    /// After reinforcement learning.
    pub reinforcement: HeldOutAccuracy,
    /// Everything the run wrote.
    #[serde(skip)]
    pub directory: PathBuf,
}

impl Outcome {
    /// The table for the end of a run.
    #[must_use]
    pub fn table(&self) -> String {
        let mut rows = vec![("before", &self.before, None)];
        for (name, accuracy, cost) in [
            ("after warm-up", &self.supervised, self.supervised_cost),
            ("after RL", &self.reinforcement, self.reinforcement_cost),
        ] {
            if cost.0 > 0 {
                rows.push((name, accuracy, Some(cost)));
            }
        }
        format!(
            "{}\n{} held-out questions, {:.0} s in all, run directory {}",
            accuracy_table(&rows),
            self.questions,
            self.seconds,
            self.directory.display()
        )
    }

    /// Reads the file of a complete run; `None` when there is none.
    pub(crate) fn read(file: &Path, directory: &Path) -> Result<Option<Self>, Error> {
        if !file.exists() {
            return Ok(None);
        }
        let text = std::fs::read_to_string(file).map_err(|source| Error::Io { path: file.into(), source })?;
        let outcome: Self =
            toml::from_str(&text).map_err(|reason| Error::Toml { path: file.into(), reason: Box::new(reason) })?;
        Ok(Some(Self { directory: directory.into(), ..outcome }))
    }

    /// The text of that file.
    pub(crate) fn to_toml(&self) -> String {
        toml::to_string(self).expect("every field has a TOML form")
    }
}

/// What was measured, how it came out, and the steps and seconds before it.
type Row<'a> = (&'a str, &'a HeldOutAccuracy, Option<(usize, f64)>);

/// Held-out accuracies as a table: what they are of, and steps and seconds that it took where something was learnt.
#[must_use]
pub fn accuracy_table(rows: &[Row<'_>]) -> String {
    let mut table = Table::new();
    table.load_style(UTF8_BORDERS_ONLY);
    let costs = rows.iter().any(|(_, _, cost)| cost.is_some());
    // Whatever was not measured in the first row is not in the others either: they are the same questions.
    let kinds =
        || rows.first().into_iter().filter_map(|(_, measured, _)| measured.sighted.greedy.kinds.first()).flatten();
    let mut header = vec!["held-out accuracy", "with picture", "95 % interval"];
    header.extend(kinds().map(|(kind, _)| kind.as_str()));
    header.push("blind");
    header.extend(["steps", "seconds"].into_iter().filter(|_| costs));
    table.set_header(header);
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    for (name, measured, cost) in rows {
        let Sighted { accuracy: overall, greedy, .. } = &measured.sighted;
        let interval = format!("{:.1} to {:.1} %", 100.0 * overall.low, 100.0 * overall.high);
        let mut cells = vec![(*name).to_owned(), percent(overall.mean), interval];
        cells.extend(greedy.kinds.first().into_iter().flatten().map(|&(_, share)| percent(share)));
        cells.push(percent(measured.blind.mean));
        match cost {
            Some((steps, seconds)) => cells.extend([steps.to_string(), format!("{seconds:.0}")]),
            None if costs => cells.extend([String::new(), String::new()]),
            None => {}
        }
        table.add_row(cells);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}
