//! `report.html`: a run on one page that opens from disk, without a network and without this program.
//!
//! The page is the files of a run directory put together. What it holds of them stands in it as JSON, and its scripts
//! show it; text of a model gets there as text alone. Its policy of content security lets nothing run but those scripts
//! and loads nothing at all.

mod metrics;
mod page;
mod pictures;
mod rollouts;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use firesight_rl::Algorithm;
use serde::Serialize;

pub(crate) use self::metrics::{Phase, read_metrics};
pub(crate) use self::page::{Page, page};
use self::pictures::Picture;
use self::rollouts::shown_rollouts;
use crate::Error;
use crate::config::{ChartData, Data, RunConfig};
use crate::files::{io, write_atomically};
use crate::outcome::Outcome;
use crate::rollouts::RolloutGroup;
use crate::run_directory::{CONFIG, METRICS, OUTCOME, REPORT, version};
use crate::task;

/// Bytes of rollouts, pictures included, that a page may hold: what a browser opens at once.
const LIMIT: u64 = 24 << 20;

const PAGE: Page = page!(
    "report/body.html",
    styles: ["report/rollouts.css"],
    scripts: [
        "report/overview.js",
        "report/accuracy.js",
        "report/curves.js",
        "report/picture.js",
        "report/tokens.js",
        "report/rollouts.js"
    ]
);

/// Makes `report.html` of the files in a run directory, in the place of the one that may be there. The run may be under
/// way or have been interrupted; the page says of what there is nothing yet.
///
/// # Errors
/// [`Error::NoRun`] when `run` is no run directory; when a file in it cannot be read, with its line if it has some, or
/// the report not be written.
pub fn write_report(run: &Path) -> Result<PathBuf, Error> {
    let path = run.join(REPORT);
    write_atomically(&path, PAGE.with(&Content::read(run, LIMIT)?).as_bytes())?;
    Ok(path)
}

/// What the page holds.
#[derive(Serialize)]
struct Content {
    name: String,
    model: String,
    /// As text: a script would round a large number.
    seed: String,
    /// Of firesight, when the run began.
    version: Option<String>,
    /// If the algorithm is a published one.
    preset: Option<&'static str>,
    algorithm: Algorithm,
    credit: String,
    /// The reward that says whether an answer is right.
    decides: Option<String>,
    /// Kinds that the task shows.
    pictures: Vec<&'static str>,
    supervised_steps: usize,
    reinforcement_steps: usize,
    /// Held-out questions.
    questions: usize,
    /// The configuration file.
    config: String,
    outcome: Option<Outcome>,
    /// By name, in the order of their first lines.
    metrics: Vec<Phase>,
    /// Groups that the run has written; the page may hold fewer.
    groups_written: usize,
    groups: Vec<RolloutGroup>,
    /// By the name that groups give them; of a file that is missing there is none.
    images: BTreeMap<String, Picture>,
}

impl Content {
    fn read(run: &Path, limit: u64) -> Result<Self, Error> {
        let path = run.join(CONFIG);
        if !path.is_file() {
            return Err(Error::NoRun { path: run.into() });
        }
        let text = std::fs::read_to_string(&path).map_err(|source| io(&path, source))?;
        let config = RunConfig::from_toml(&text, &path)?;
        let (groups_written, groups) = shown_rollouts(run, limit)?;
        let mut images = BTreeMap::new();
        for name in groups.iter().flat_map(|group| &group.images) {
            let path = run.join(name);
            if !images.contains_key(name) && path.is_file() {
                images.insert(name.clone(), Picture::read(&path)?);
            }
        }
        let outcome = Outcome::read(&run.join(OUTCOME), run)?;
        let reinforcement = config.reinforcement;
        let mut presets = Algorithm::presets(reinforcement.max_tokens).into_iter();
        Ok(Self {
            name: config.name,
            model: config.model.display().to_string(),
            seed: config.seed.to_string(),
            version: version(&text).map(Into::into),
            preset: presets.find(|(_, preset)| *preset == reinforcement.algorithm).map(|(name, _)| name),
            algorithm: reinforcement.algorithm,
            credit: reinforcement.credit.name(),
            decides: config.rewards.first().map(|reward| reward.name().to_owned()),
            pictures: match config.data {
                Data::Charts(ChartData { pictures }) => pictures.into_iter().map(task::Picture::name).collect(),
                Data::Files(_) => Vec::new(),
            },
            supervised_steps: config.supervised.max_steps,
            reinforcement_steps: reinforcement.steps,
            // There may be fewer than are asked for.
            questions: outcome.as_ref().map_or(config.evaluation.examples, |outcome| outcome.questions),
            config: text,
            outcome,
            metrics: read_metrics(&run.join(METRICS))?,
            groups_written,
            groups,
            images,
        })
    }
}

#[cfg(test)]
mod tests;
