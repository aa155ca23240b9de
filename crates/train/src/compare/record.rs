//! A comparison on disk: its settings, and what every run came to.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::Error;
use crate::config::{Reinforcement, RunConfig};
use crate::difference::first_difference;
use crate::files::{claim, clear, io, lock_again, numbered, write_atomically};
use crate::recipe::Destination;
use crate::records::record;

const SETTINGS: &str = "compare.toml";
const RESULTS: &str = "results.jsonl";

/// What decides the results, beside seeds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    /// What else decides what the variants are.
    #[serde(default)]
    pub(super) parameters: BTreeMap<String, String>,
    pub(super) config: RunConfig,
    /// What goes on from the warm-up, by the name of the variant.
    #[serde(default)]
    pub(super) variants: BTreeMap<String, Reinforcement>,
}

/// What one run came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Measured {
    pub(super) seed: u64,
    pub(super) name: String,
    /// The variant that it is compared with.
    pub(super) base: Option<String>,
    /// Held-out questions.
    pub(super) questions: usize,
    /// Share of right greedy answers to them before.
    pub(super) warm_up: f64,
    /// The same after all steps.
    pub(super) accuracy: f64,
    /// Answers among them that could not be graded, and count as not right.
    #[serde(default)]
    pub(super) ungraded: usize,
    /// Seconds of all steps, without measuring: of the processor where one thread does all of a step, else of a clock.
    pub(super) seconds: f64,
    /// The same share after so many steps, while learning.
    pub(super) accuracies: Vec<(usize, f64)>,
    /// The mean reward of every step; none where all rewards abstained.
    pub(super) rewards: Vec<Option<f64>>,
}

impl Measured {
    /// Seconds of a step.
    pub(super) fn cost(&self) -> f64 {
        self.seconds / self.rewards.len() as f64
    }
}

/// A comparison in a directory of its own.
#[derive(Debug)]
pub(super) struct Record {
    directory: PathBuf,
    pub(super) measured: Vec<Measured>,
    /// Locked; the operating system unlocks it when the process ends, however it does.
    _lock: File,
}

impl Record {
    /// Begins a comparison, or goes on with the one that is there.
    pub(super) fn open(destination: &Destination, name: &str, asked: &Asked) -> Result<Self, Error> {
        let create = |path: &Path, again| {
            let lock = claim(path, again)?;
            asked.write(&path.join(SETTINGS))?;
            Ok(Self { directory: path.into(), measured: Vec::new(), _lock: lock })
        };
        match destination {
            Destination::Exactly(path) => create(path, false),
            Destination::Under(parent) => numbered(parent, name, |path| create(path, false)),
            Destination::Resume(path) if path.join(SETTINGS).is_file() => Self::resume(path, asked),
            Destination::Resume(path) => create(path, true),
        }
    }

    fn resume(directory: &Path, asked: &Asked) -> Result<Self, Error> {
        let file = directory.join(SETTINGS);
        let text = std::fs::read_to_string(&file).map_err(|source| io(&file, source))?;
        let mut begun: Asked =
            toml::from_str(&text).map_err(|reason| Error::Toml { path: file.clone(), reason: Box::new(reason) })?;
        let device = |asked: &Asked| BTreeMap::from([("on", asked.config.device.clone())]);
        let difference = first_difference(&begun.config, &asked.config)
            .or_else(|| first_difference(&begun.parameters, &asked.parameters))
            // What a step costs is compared.
            .or_else(|| first_difference(&device(&begun), &device(asked)))
            .or_else(|| asked.variants.iter().find_map(|(name, given)| begun.other_variant(name, given)));
        if let Some((key, begun, given)) = difference {
            return Err(Error::OtherConfiguration { path: directory.into(), key, begun, given });
        }
        let lock = lock_again(directory)?;
        clear(directory)?;
        begun.variants.extend(asked.variants.clone());
        begun.write(&file)?;
        Ok(Self { directory: directory.into(), measured: read(&directory.join(RESULTS))?, _lock: lock })
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(super) fn of(&self, seed: u64, name: &str) -> Option<&Measured> {
        self.measured.iter().find(|measured| measured.seed == seed && measured.name == name)
    }

    /// Adds a result, which is on the disk when this returns.
    pub(super) fn push(&mut self, measured: &Measured) -> Result<(), Error> {
        let path = self.directory.join(RESULTS);
        let line = serde_json::to_string(measured).expect("texts and numbers have a JSON form");
        let write = || {
            let mut file = File::options().create(true).append(true).open(&path)?;
            file.write_all(format!("{line}\n").as_bytes())?;
            file.sync_all()
        };
        write().map_err(|source| io(&path, source))?;
        // As it will be read: its last bits may be others.
        self.measured.push(record(&line, &path, self.measured.len())?);
        Ok(())
    }

    /// Writes a file of the comparison.
    pub(super) fn write(&self, name: &str, contents: &[u8]) -> Result<(), Error> {
        write_atomically(&self.directory.join(name), contents)
    }

    pub(super) fn seeds(&self) -> BTreeSet<u64> {
        self.measured.iter().map(|measured| measured.seed).collect()
    }
}

impl Asked {
    /// Where a variant of this name differs from one with these settings.
    fn other_variant(&self, name: &str, given: &Reinforcement) -> Option<(String, String, String)> {
        let whole = |variant: &Reinforcement| BTreeMap::from([("reinforcement", variant.clone())]);
        let (key, begun, given) = first_difference(&whole(self.variants.get(name)?), &whole(given))?;
        Some((format!("{name}, {key}"), begun, given))
    }

    fn write(&self, path: &Path) -> Result<(), Error> {
        write_atomically(path, toml::to_string(self).expect("every field has a TOML form").as_bytes())
    }
}

/// The lines of a file of results; what a killed process left of one is cut off.
fn read(path: &Path) -> Result<Vec<Measured>, Error> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let text = std::fs::read_to_string(path).map_err(|source| io(path, source))?;
    let whole = text.rfind('\n').map_or("", |end| &text[..=end]);
    if whole.len() < text.len() {
        write_atomically(path, whole.as_bytes())?;
    }
    whole.lines().enumerate().map(|(place, line)| record(line, path, place)).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_variant_that_is_known_with_other_settings_is_refused_and_a_new_one_is_kept() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/configs/qwen-small.toml");
        let config = RunConfig::from_file(&path).unwrap();
        let variant = |name: &str, steps| {
            let credit = name.parse().unwrap();
            (name.to_owned(), Reinforcement { steps, credit, ..config.reinforcement.clone() })
        };
        let asked = |variants: &[(String, Reinforcement)]| Asked {
            config: config.clone(),
            parameters: BTreeMap::new(),
            variants: variants.iter().cloned().collect(),
        };
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("compared");
        let open = |variants: &[(String, Reinforcement)]| {
            Record::open(&Destination::Resume(directory.clone()), "compared", &asked(variants)).map(drop)
        };
        open(&[variant("vppo", 5)]).unwrap();
        open(&[variant("kawhi+vppo", 5)]).unwrap();
        for name in ["vppo", "kawhi+vppo"] {
            let error = open(&[variant("srpo", 5), variant(name, 6)]).unwrap_err();
            let Error::OtherConfiguration { key, begun, given, .. } = &error else { panic!("{error}") };
            assert_eq!((key, begun.as_str(), given.as_str()), (&format!("{name}, reinforcement.steps"), "5", "6"));
        }
        open(&[variant("srpo", 6), variant("vppo", 5)]).unwrap();
    }
}
