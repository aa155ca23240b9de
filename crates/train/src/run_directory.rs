//! What a run leaves on disk.

use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use firesight_vlm::SaveOptions;
use serde_json::{Map, Value};

use crate::Error;
use crate::config::RunConfig;
use crate::policy::VlmPolicy;
use crate::tensorboard::{self, EventFile};

/// A directory that belongs to one run.
#[derive(Debug)]
pub struct RunDirectory {
    path: PathBuf,
    metrics: File,
    /// The same for TensorBoard, if the configuration wants it.
    events: Option<EventFile>,
    /// The model directory that the run starts from.
    origin: PathBuf,
}

impl RunDirectory {
    /// Takes `path` for a run and writes its resolved configuration.
    ///
    /// # Errors
    /// When `path` holds anything already, or cannot be written.
    pub fn create(path: &Path, config: &RunConfig) -> Result<Self, Error> {
        let io = |source| Error::Io { path: path.into(), source };
        fs::create_dir_all(path).map_err(io)?;
        if fs::read_dir(path).map_err(io)?.next().is_some() {
            return Err(Error::RunDirectoryExists { path: path.into() });
        }
        // Whoever makes this file owns the directory, should two runs have found it empty.
        let metrics = path.join("metrics.jsonl");
        let file = File::create_new(&metrics).map_err(|source| match source.kind() {
            ErrorKind::AlreadyExists => Error::RunDirectoryExists { path: path.into() },
            _ => Error::Io { path: metrics, source },
        })?;
        let events = config.log.tensorboard.then(|| EventFile::open(&path.join(tensorboard::FILE))).transpose()?;
        let header = format!("# Resolved configuration of a run of firesight {}.\n", env!("CARGO_PKG_VERSION"));
        write_atomically(&path.join("config.toml"), (header + &config.to_toml()).as_bytes())?;
        Ok(Self { path: path.into(), metrics: file, events, origin: config.model.clone() })
    }

    /// Takes the first of `parent/name`, `parent/name-2`, `parent/name-3`... that is free.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub fn create_numbered(parent: &Path, name: &str, config: &RunConfig) -> Result<Self, Error> {
        let mut path = parent.join(name);
        for number in 2.. {
            match Self::create(&path, config) {
                Err(Error::RunDirectoryExists { .. }) => path = parent.join(format!("{name}-{number}")),
                created => return created,
            }
        }
        unreachable!("the numbers do not end")
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
        let path = self.path.join("metrics.jsonl");
        writeln!(self.metrics, "{}", Value::Object(line)).map_err(|source| Error::Io { path, source })?;
        self.events.as_mut().map_or(Ok(()), |events| events.scalars(phase, step, metrics))
    }

    /// Writes a file of the run, in a subdirectory if `name` has one.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, name: &str, contents: &[u8]) -> Result<PathBuf, Error> {
        let path = self.path.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(|source| Error::Io { path: parent.into(), source })?;
        }
        write_atomically(&path, contents)?;
        Ok(path)
    }

    /// Writes a model as the Hugging Face directory `name` of the run: its weights, and the files that the
    /// run's model came with.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub fn save_model(&self, name: &str, policy: &VlmPolicy) -> Result<PathBuf, Error> {
        let target = self.path.join(name);
        policy.model.save(&target, &self.origin, SaveOptions::default())?;
        Ok(target)
    }
}

fn write_atomically(path: &Path, contents: &[u8]) -> Result<(), Error> {
    let io = |source| Error::Io { path: path.into(), source };
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".partial");
    fs::write(&temporary, contents).map_err(io)?;
    fs::rename(&temporary, path).map_err(io)
}
