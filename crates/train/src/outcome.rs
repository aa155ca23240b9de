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
        let mut table = Table::new();
        table.load_style(UTF8_BORDERS_ONLY);
        let pictures = self.before.sighted.greedy.pictures.iter().map(|(picture, _)| picture.name());
        let header = ["held-out accuracy", "with picture", "95 % interval"].into_iter().chain(pictures);
        table.set_header(header.chain(["blind", "steps", "seconds"]));
        let percent = |share: f64| format!("{:.1} %", 100.0 * share);
        let mut row = |name: &str, accuracy: &HeldOutAccuracy, cost: Option<(usize, f64)>| {
            let Sighted { accuracy: overall, greedy, .. } = &accuracy.sighted;
            let interval = format!("{:.1} to {:.1} %", 100.0 * overall.low, 100.0 * overall.high);
            let mut cells = vec![name.to_owned(), percent(overall.mean), interval];
            cells.extend(greedy.pictures.iter().map(|&(_, share)| percent(share)));
            cells.push(percent(accuracy.blind.mean));
            cells.extend(cost.map_or([String::new(), String::new()], |(steps, seconds)| {
                [steps.to_string(), format!("{seconds:.0}")]
            }));
            table.add_row(cells);
        };
        row("before", &self.before, None);
        row("after warm-up", &self.supervised, Some(self.supervised_cost));
        row("after RL", &self.reinforcement, Some(self.reinforcement_cost));
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        format!(
            "{table}\n{} held-out questions, {:.0} s in all, run directory {}",
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
