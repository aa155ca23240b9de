//! A search for vision-critical heads on disk: what is asked, and who answered which question right.

use std::fs::File;
use std::path::{Path, PathBuf};

use firesight_kawhi::VisionCriticalHeads;
use firesight_reward::RewardConfig;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::config::Data;
use crate::difference::first_difference;
use crate::files::{claim, clear, io, lock_again, numbered, write_atomically};
use crate::recipe::Destination;

/// What has been measured so far.
const RECORD: &str = "search.toml";

/// What decides the scores.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    pub(super) model: PathBuf,
    /// Query heads of its layers.
    pub(super) heads: usize,
    pub(super) questions: usize,
    pub(super) max_tokens: usize,
    pub(super) data: Data,
    pub(super) rewards: Vec<RewardConfig>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    /// `1` for a question that was answered right and `0` for the others, in their order: by the whole model, then
    /// without head 0, without head 1 and so on.
    right: Vec<String>,
    asked: Asked,
}

/// A search under way, in a directory of its own.
#[derive(Debug)]
pub(super) struct Search {
    directory: PathBuf,
    record: Record,
    /// Locked; the operating system unlocks it when the process ends, however it does.
    _lock: File,
}

impl Search {
    pub(super) fn create(destination: &Destination, name: &str, asked: Asked) -> Result<Self, Error> {
        let record = Record { right: Vec::new(), asked };
        let take = |path: &Path, again| {
            let lock = claim(path, again)?;
            let search = Self { directory: path.into(), record: record.clone(), _lock: lock };
            search.save()?;
            Ok(search)
        };
        match destination {
            Destination::Exactly(path) => take(path, false),
            Destination::Under(parent) => numbered(parent, name, |path| take(path, false)),
            Destination::Resume(path) => take(path, true),
        }
    }

    /// The search that was begun in `directory`, if one was.
    pub(super) fn resume(directory: &Path, asked: &Asked) -> Result<Option<Self>, Error> {
        let file = directory.join(RECORD);
        if !file.is_file() {
            return Ok(None);
        }
        let lock = lock_again(directory)?;
        clear(directory)?;
        let text = std::fs::read_to_string(&file).map_err(|source| io(&file, source))?;
        let record: Record =
            toml::from_str(&text).map_err(|reason| Error::Toml { path: file.clone(), reason: Box::new(reason) })?;
        if let Some((key, begun, given)) = first_difference(&record.asked, asked) {
            return Err(Error::OtherConfiguration { path: directory.into(), key, begun, given });
        }
        let sound =
            |row: &String| row.len() == asked.questions && row.bytes().all(|right| matches!(right, b'0' | b'1'));
        if let Some(row) = record.right.iter().position(|row| !sound(row)) {
            let problem = format!("row {row} of right is not a 1 or 0 for each of {} questions", asked.questions);
            return Err(Error::Checkpoint { path: file, problem });
        }
        Ok(Some(Self { directory: directory.into(), record, _lock: lock }))
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The whole model, and every head.
    pub(super) fn measurements(&self) -> usize {
        1 + self.record.asked.heads
    }

    pub(super) fn measured(&self) -> usize {
        self.record.right.len()
    }

    pub(super) fn is_complete(&self) -> bool {
        self.measured() >= self.measurements()
    }

    /// Adds a measurement, which is on the disk when this returns: of every question 1 if it was answered right, else
    /// 0.
    pub(super) fn push(&mut self, correct: &[f64]) -> Result<(), Error> {
        self.record.right.push(correct.iter().map(|&correct| if correct > 0.5 { '1' } else { '0' }).collect());
        self.save()
    }

    /// The score of the latest measurement, and how far it fell if that was without a head.
    pub(super) fn latest(&self) -> (f64, Option<f64>) {
        let right = &self.record.right;
        let score = right.last().map_or(0.0, |row| share(row));
        (score, (right.len() > 1).then(|| share(&right[0]) - score))
    }

    /// What a complete search has found.
    pub(super) fn judged(&self, threshold: f64) -> VisionCriticalHeads {
        let Record { right, asked } = &self.record;
        let (whole, masked) = (&right[0], &right[1..]);
        let baseline = share(whole);
        let scores: Vec<f64> = masked.iter().map(|row| share(row)).collect();
        VisionCriticalHeads {
            model: asked.model.display().to_string(),
            data: format!("held-out questions about {}", asked.data.describe()),
            source: None,
            questions: Some(asked.questions),
            baseline,
            threshold,
            critical: VisionCriticalHeads::by_threshold(baseline, threshold, &scores),
            scores,
            standard_errors: masked.iter().map(|row| standard_error(whole, row)).collect(),
        }
    }

    /// Writes a file of the search.
    pub(super) fn write(&self, name: &str, contents: &[u8]) -> Result<(), Error> {
        write_atomically(&self.directory.join(name), contents)
    }

    fn save(&self) -> Result<(), Error> {
        let record = toml::to_string(&self.record).expect("every field has a TOML form");
        self.write(RECORD, record.as_bytes())
    }
}

/// Share of right answers.
fn share(row: &str) -> f64 {
    row.bytes().filter(|&right| right == b'1').count() as f64 / row.len() as f64
}

/// Standard error of the difference of two shares over the same questions. Most questions are as easy with as without a
/// head, so it is well below that of two shares over questions of their own.
fn standard_error(one: &str, other: &str) -> f64 {
    let questions = one.len() as f64;
    let differ = one.bytes().zip(other.bytes()).filter(|(one, other)| one != other).count() as f64;
    let mean = share(one) - share(other);
    ((differ / questions - mean * mean).max(0.0) / (questions - 1.0)).sqrt()
}

#[cfg(test)]
mod tests {
    use super::standard_error;

    #[test]
    fn questions_that_are_answered_alike_make_no_error() {
        // Differences 1, 0, 0, 1, -1, 0, 0, 0: mean 1/8, variance (3 - 8/64) / 7.
        let expected = ((3.0 - 0.125) / 7.0 / 8.0_f64).sqrt();
        assert!((standard_error("11010011", "01001011") - expected).abs() < 1e-15);
        assert!(standard_error("1101", "1101") == 0.0 && standard_error("11", "00") == 0.0);
    }
}
