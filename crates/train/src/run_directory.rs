//! What a run leaves on disk.

use std::fs::{self, File};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use firesight_vlm::SaveOptions;
use serde_json::{Map, Value};

use crate::Error;
use crate::checkpoint;
use crate::config::RunConfig;
use crate::difference::first_difference;
use crate::files::{
    LOCK, claim, clear, entries, holds_more_than, io, lock_again, numbered, remove, replace, write_atomically,
};
use crate::outcome::Outcome;
use crate::policy::VlmPolicy;
use crate::progress::Progress;
use crate::state::State;
use crate::tensorboard::{self, EventFile};

pub(crate) const CONFIG: &str = "config.toml";
pub(crate) const METRICS: &str = "metrics.jsonl";
pub(crate) const CHECKPOINTS: &str = "checkpoints";
/// There once the run is complete.
pub(crate) const OUTCOME: &str = "outcome.toml";
/// Made of the others, at any time.
pub(crate) const REPORT: &str = "report.html";
/// What the configuration file begins with; the version follows.
const HEADER: &str = "# Resolved configuration of a run of firesight ";

/// A directory that belongs to one run, and to one process at a time.
#[derive(Debug)]
pub struct RunDirectory {
    path: PathBuf,
    metrics: File,
    /// The same for TensorBoard, if the configuration wants it.
    events: Option<EventFile>,
    /// The model directory that the run starts from.
    origin: PathBuf,
    /// Locked; the operating system unlocks it when the process ends, however it does.
    _lock: File,
}

impl RunDirectory {
    /// Takes `path` for a run and writes its resolved configuration.
    ///
    /// # Errors
    /// When `path` holds anything already, or cannot be written.
    pub fn create(path: &Path, config: &RunConfig) -> Result<Self, Error> {
        Self::begin(path, config, false)
    }

    /// Takes the first of `parent/name`, `parent/name-2`, `parent/name-3`... that is free.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub fn create_numbered(parent: &Path, name: &str, config: &RunConfig) -> Result<Self, Error> {
        numbered(parent, name, |path| Self::create(path, config))
    }

    /// [`Self::create`], also over what a run leaves that ends before its configuration is written.
    ///
    /// # Errors
    /// When `path` holds anything else, or cannot be written.
    pub fn create_again(path: &Path, config: &RunConfig) -> Result<Self, Error> {
        Self::begin(path, config, true)
    }

    fn begin(path: &Path, config: &RunConfig, again: bool) -> Result<Self, Error> {
        let lock = claim(path, again)?;
        let header = format!("{HEADER}{}.\n", env!("CARGO_PKG_VERSION"));
        write_atomically(&path.join(CONFIG), (header + &config.to_toml()).as_bytes())?;
        Self::open(path, config, lock)
    }

    /// Takes the run at `path` up again; `None` when none was begun there.
    ///
    /// # Errors
    /// When the run was begun with a configuration of another result, another process is at work in it, or it has no
    /// checkpoint but what a run without one does not have; when a file cannot be read or written.
    pub fn resume(path: &Path, config: &RunConfig) -> Result<Option<Self>, Error> {
        let file = path.join(CONFIG);
        if !file.is_file() {
            return Ok(None);
        }
        if let Some((key, begun, given)) = first_difference(&RunConfig::from_file(&file)?, config) {
            return Err(Error::OtherConfiguration { path: path.into(), key, begun, given });
        }
        let empty = checkpoint::list(&path.join(CHECKPOINTS))?.is_empty() && !path.join(OUTCOME).exists();
        if empty && holds_more_than(&[CONFIG, METRICS, tensorboard::FILE, LOCK, CHECKPOINTS, REPORT], path)? {
            return Err(Error::RunDirectoryExists { path: path.into() });
        }
        let lock = lock_again(path)?;
        clear(path)?;
        for below in entries(path)?.iter().filter(|below| below.is_dir()) {
            clear(below)?;
        }
        Self::open(path, config, lock).map(Some)
    }

    fn open(path: &Path, config: &RunConfig, lock: File) -> Result<Self, Error> {
        let file = path.join(METRICS);
        let metrics = File::options().create(true).truncate(false).write(true).open(&file);
        let metrics = metrics.map_err(|source| io(&file, source))?;
        let events = config.log.tensorboard.then(|| EventFile::open(&path.join(tensorboard::FILE))).transpose()?;
        Ok(Self { path: path.into(), metrics, events, origin: config.model.clone(), _lock: lock })
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends one line to `metrics.jsonl`, and a record of the same numbers to the file for TensorBoard.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn metrics(&mut self, phase: &str, step: usize, metrics: &[(String, f64)]) -> Result<(), Error> {
        let mut line = Map::new();
        line.insert("phase".into(), phase.into());
        line.insert("step".into(), step.into());
        // JSON has no NaN: what is not a number becomes null.
        line.extend(metrics.iter().map(|(name, value)| (name.clone(), Value::from(*value))));
        let line = format!("{}\n", Value::Object(line));
        self.metrics.write_all(line.as_bytes()).map_err(|source| self.metrics_error(source))?;
        self.events.as_mut().map_or(Ok(()), |events| events.scalars(phase, step, metrics))
    }

    /// Writes a file of the run, in a subdirectory if `name` has one.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, name: &str, contents: &[u8]) -> Result<PathBuf, Error> {
        let path = self.path.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(|source| io(parent, source))?;
        }
        write_atomically(&path, contents)?;
        Ok(path)
    }

    /// Writes a model as the Hugging Face directory `name` of the run: its weights, and the files that the
    /// run's model came with. One that is there already is replaced: at no moment there is half of one.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub fn save_model(&self, name: &str, policy: &VlmPolicy) -> Result<PathBuf, Error> {
        let target = self.path.join(name);
        replace(&target, |target| policy.model.save(target, &self.origin, SaveOptions::default()))?;
        Ok(target)
    }

    /// Writes the adapters of a policy as the directory `adapter` of the run, in the same way.
    pub(crate) fn save_adapter(&self, policy: &VlmPolicy) -> Result<(), Error> {
        let base = self.origin.display().to_string();
        replace(&self.path.join("adapter"), |target| policy.model.save_adapter(target, &base))
    }

    /// Keeps `state` as a checkpoint, complete with what this directory knows of it.
    pub(crate) fn save_checkpoint(&self, mut state: State, keep: usize) -> Result<(), Error> {
        let length = || {
            self.metrics.sync_all()?;
            Ok(self.metrics.metadata()?.len())
        };
        state.position.metrics_bytes = length().map_err(|source| self.metrics_error(source))?;
        state.position.events_bytes = self.events.as_ref().map_or(Ok(0), EventFile::length)?;
        checkpoint::save(&self.path.join(CHECKPOINTS), &state, keep)
    }

    /// Goes back to the newest checkpoint that is sound: what came after it is removed. Without any checkpoint that is
    /// the beginning, with `policy`.
    pub(crate) fn restore(
        &mut self,
        policy: VlmPolicy,
        config: &RunConfig,
        progress: &Progress,
    ) -> Result<State, Error> {
        let mut checkpoints = checkpoint::list(&self.path.join(CHECKPOINTS))?;
        let mut damaged: Vec<(PathBuf, Error)> = Vec::new();
        let state = loop {
            let Some(newest) = checkpoints.pop() else {
                match damaged.into_iter().next() {
                    Some((_, error)) => return Err(error),
                    None => break State::start(policy),
                }
            };
            match checkpoint::load(&newest, policy.clone(), config).and_then(|state| self.check_metrics(state)) {
                Ok(state) => {
                    for (checkpoint, error) in damaged {
                        progress.note(&format!("{error}; going on from the checkpoint before it"));
                        remove(&checkpoint)?;
                    }
                    break state;
                }
                Err(error) => damaged.push((newest, error)),
            }
        };
        let bytes = state.position.metrics_bytes;
        let cut = self.metrics.set_len(bytes).and_then(|()| self.metrics.seek(SeekFrom::Start(bytes)));
        cut.map_err(|source| self.metrics_error(source))?;
        if let Some(events) = &mut self.events {
            events.cut(state.position.events_bytes)?;
        }
        Ok(state)
    }

    fn check_metrics(&self, state: State) -> Result<State, Error> {
        let found = self.metrics.metadata().map_err(|source| self.metrics_error(source))?.len();
        let expected = state.position.metrics_bytes;
        if found >= expected {
            return Ok(state);
        }
        let problem = format!("has {found} bytes, and had {expected} when the checkpoint was made");
        Err(Error::Checkpoint { path: self.path.join(METRICS), problem })
    }

    /// What the run achieved, if it is complete.
    pub(crate) fn outcome(&self) -> Result<Option<Outcome>, Error> {
        Outcome::read(&self.path.join(OUTCOME), &self.path)
    }

    /// Says that the run is complete, and what it achieved.
    pub(crate) fn save_outcome(&self, outcome: &Outcome) -> Result<(), Error> {
        write_atomically(&self.path.join(OUTCOME), outcome.to_toml().as_bytes())
    }

    fn metrics_error(&self, source: std::io::Error) -> Error {
        io(&self.path.join(METRICS), source)
    }
}

/// The version of firesight that began a run, after the text of its configuration file.
pub(crate) fn version(config: &str) -> Option<&str> {
    config.lines().next()?.strip_prefix(HEADER)?.strip_suffix('.')
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::job::Job;

    fn config() -> RunConfig {
        let mut config = RunConfig::example("tests/fixtures/oracle/models/qwen3_vl_tied");
        config.trainable.freeze_vision_tower = true;
        config
    }

    fn resumed(path: &Path) -> RunDirectory {
        RunDirectory::resume(path, &config()).unwrap().unwrap()
    }

    #[test]
    fn the_latest_checkpoints_stay_and_a_damaged_one_is_passed_over() {
        let config = config();
        let policy = Job::new(&config).unwrap().policy(&config.trainable, 0).unwrap();
        let scratch = tempfile::tempdir().unwrap();
        let checkpoints = scratch.path().join(CHECKPOINTS);
        let numbers = || -> Vec<u64> {
            let names = checkpoint::list(&checkpoints).unwrap().into_iter();
            names.map(|path| path.file_name().unwrap().to_str().unwrap().parse().unwrap()).collect()
        };
        let mut run = RunDirectory::create(scratch.path(), &config).unwrap();
        let mut state = State::start(policy.clone());
        let save = |run: &mut RunDirectory, state: &mut State, step: usize, keep: usize| {
            state.position.supervised.steps = step;
            run.metrics("supervised", step, &[]).unwrap();
            run.save_checkpoint(state.clone(), keep).unwrap();
        };
        for step in 1..=4 {
            save(&mut run, &mut state, step, 2);
        }
        assert_eq!(numbers(), [3, 4]);
        save(&mut run, &mut state, 5, 3);
        save(&mut run, &mut state, 6, 1);
        assert_eq!(numbers(), [6]);
        drop(run);

        let lines = || fs::read_to_string(scratch.path().join(METRICS)).unwrap().lines().count();
        let whole = fs::read(checkpoints.join("000006/policy.bpk")).unwrap();
        for length in [0, 5, 300, whole.len() / 2, whole.len() - 1] {
            let mut run = resumed(scratch.path());
            let mut state = run.restore(policy.clone(), &config, &Progress::silent()).unwrap();
            assert_eq!((numbers(), state.position.supervised.steps, lines()), (vec![6], 6, 6));
            save(&mut run, &mut state, 7, 2);
            drop(run);
            assert_eq!((numbers(), lines()), (vec![6, 7], 7));
            fs::write(checkpoints.join("000007/policy.bpk"), &whole[..length]).unwrap();
        }
        let mut run = resumed(scratch.path());
        run.restore(policy.clone(), &config, &Progress::silent()).unwrap();
        // Nothing is left to go on from: not a run that begins once more, but an error.
        fs::write(checkpoints.join("000006/position.toml"), "steps = ").unwrap();
        let error = run.restore(policy.clone(), &config, &Progress::silent()).err().unwrap();
        assert!(error.to_string().contains("000006/position.toml"), "{error}");
        drop(run);
    }

    #[test]
    fn a_checkpoint_needs_the_metrics_before_it() {
        let config = config();
        let policy = Job::new(&config).unwrap().policy(&config.trainable, 0).unwrap();
        let scratch = tempfile::tempdir().unwrap();
        let mut run = RunDirectory::create(scratch.path(), &config).unwrap();
        run.metrics("supervised", 1, &[]).unwrap();
        run.save_checkpoint(State::start(policy.clone()), 1).unwrap();
        fs::write(scratch.path().join(METRICS), "{}\n").unwrap();
        let error = run.restore(policy, &config, &Progress::silent()).err().unwrap();
        assert!(error.to_string().contains("metrics.jsonl: has 3 bytes"), "{error}");
    }

    #[test]
    fn one_process_at_a_time_has_a_run() {
        let scratch = tempfile::tempdir().unwrap();
        let run = RunDirectory::create(scratch.path(), &config()).unwrap();
        let again = RunDirectory::resume(scratch.path(), &config());
        assert!(matches!(again, Err(Error::RunDirectoryBusy { path }) if path == scratch.path()));
        drop(run);
        resumed(scratch.path());
    }

    #[test]
    fn what_others_left_is_not_touched() {
        let refused = |names: &[&str]| {
            let scratch = tempfile::tempdir().unwrap();
            for name in names {
                let text = if *name == CONFIG { config().to_toml() } else { "theirs".into() };
                fs::write(scratch.path().join(name), text).unwrap();
            }
            let before = entries(scratch.path()).unwrap().len();
            let found = RunDirectory::resume(scratch.path(), &config());
            let found =
                found.and_then(|run| run.map_or_else(|| RunDirectory::create_again(scratch.path(), &config()), Ok));
            let refused = matches!(&found, Err(Error::RunDirectoryExists { .. }));
            assert!(!refused || entries(scratch.path()).unwrap().len() == before);
            assert_eq!(refused, found.is_err());
            refused
        };
        // What a run leaves that ends in its first moments, and in the next.
        for early in [
            vec![],
            vec![LOCK],
            vec![LOCK, "config.toml.partial"],
            vec![CONFIG, LOCK],
            vec![CONFIG, METRICS, LOCK, REPORT],
        ] {
            assert!(!refused(&early), "{early:?}");
        }
        for theirs in [vec!["thesis.tex"], vec![METRICS], vec!["a.partial", "b"], vec![CONFIG, LOCK, "model"]] {
            assert!(refused(&theirs), "{theirs:?}");
        }
    }

    #[test]
    fn a_run_that_goes_on_leaves_nothing_half_done() {
        let scratch = tempfile::tempdir().unwrap();
        drop(RunDirectory::create(scratch.path(), &config()).unwrap());
        let before = entries(scratch.path()).unwrap().len();
        for partial in [".model.17.partial", "checkpoints/000009.partial"] {
            fs::create_dir_all(scratch.path().join(partial)).unwrap();
        }
        resumed(scratch.path());
        assert_eq!(entries(scratch.path()).unwrap().len(), before + 1);
        assert!(entries(&scratch.path().join(CHECKPOINTS)).unwrap().is_empty());
    }
}
