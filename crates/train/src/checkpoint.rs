//! Checkpoints: directories that hold a run between two of its steps, complete or absent.
//!
//! A checkpoint holds what cannot be had otherwise: of the weights those that are trained, as the others come with the
//! model that the run starts from. burn's records carry the ids of parameters, by which the optimizer knows its state.

use std::fs;
use std::path::{Path, PathBuf};

use burn::module::{Module, ParamGroup};
use burn::store::{ModuleRecord, RecordError};
use burn::tensor::Bytes;
use firesight_vlm::{Parameter, parameters};

use crate::Error;
use crate::config::RunConfig;
use crate::files::{entries, io, remove, sync_directory, write_synced};
use crate::policy::VlmPolicy;
use crate::state::{Position, State};
use crate::supervised::adamw;

/// The position, in TOML: other than JSON's reader here, TOML's gives back every bit of a number.
const POSITION: &str = "position.toml";
const POLICY: &str = "policy.bpk";
const OPTIMIZER: &str = "optimizer.bpk";
const REFERENCE: &str = "reference.bpk";

/// The checkpoints below `parent`, the newest last. There need not be any.
pub(crate) fn list(parent: &Path) -> Result<Vec<PathBuf>, Error> {
    let paths = entries(parent)?.into_iter();
    let mut numbered: Vec<(u64, PathBuf)> = paths.filter_map(|path| Some((number(&path)?, path))).collect();
    numbered.sort();
    Ok(numbered.into_iter().map(|(_, path)| path).collect())
}

/// Adds a checkpoint to those below `parent`, of which only the `keep` latest stay.
pub(crate) fn save(parent: &Path, state: &State, keep: usize) -> Result<(), Error> {
    let existing = list(parent)?;
    let next = existing.last().and_then(|path| number(path)).map_or(1, |number| number + 1);
    let target = parent.join(format!("{next:06}"));
    let temporary = target.with_extension("partial");
    fs::create_dir_all(&temporary).map_err(|source| io(&temporary, source))?;
    // burn's files are on the disk once they are written.
    let written = |name: &str, result: Result<(), RecordError>| result.map_err(|error| broken(&target.join(name), error));
    let trained = ParamGroup::from_ids(trained(&state.policy).into_iter().map(|parameter| parameter.id).collect());
    written(POLICY, state.policy.clone().into_record_group(trained).save(temporary.join(POLICY)))?;
    if let Some(optimizer) = &state.optimizer {
        written(OPTIMIZER, optimizer.save(temporary.join(OPTIMIZER)))?;
    }
    if let Some(reference) = &state.reference {
        written(REFERENCE, reference.clone().save_file(temporary.join(REFERENCE)))?;
    }
    let position = toml::to_string(&state.position).expect("every field has a TOML form");
    write_synced(&temporary.join(POSITION), position.as_bytes())?;
    sync_directory(&temporary)?;
    fs::rename(&temporary, &target).map_err(|source| io(&target, source))?;
    sync_directory(parent)?;

    let surplus = (existing.len() + 1).saturating_sub(keep);
    existing.iter().take(surplus).try_for_each(|checkpoint| remove(checkpoint))
}

/// Reads a checkpoint into the policy that the run began with.
pub(crate) fn load(checkpoint: &Path, policy: VlmPolicy, config: &RunConfig) -> Result<State, Error> {
    let path = checkpoint.join(POSITION);
    let text = fs::read_to_string(&path).map_err(|source| io(&path, source))?;
    let position: Position = toml::from_str(&text).map_err(|error| broken(&path, error))?;

    let path = checkpoint.join(OPTIMIZER);
    let optimizer = if path.exists() {
        let supervised = !position.supervised.finished(&config.supervised);
        let decay = if supervised { config.supervised.weight_decay } else { config.reinforcement.weight_decay };
        Some(adamw(decay).from_bytes(read(&path)?).map_err(|error| broken(&path, error))?)
    } else {
        None
    };

    let path = checkpoint.join(REFERENCE);
    let reference = if path.exists() {
        let record = ModuleRecord::from_bytes(read(&path)?).map_err(|error| broken(&path, error))?;
        let reference = policy.valid().materialize().try_load_record(record);
        Some(reference.map_err(|error| broken(&path, error))?)
    } else {
        None
    };

    let path = checkpoint.join(POLICY);
    let record = ModuleRecord::from_bytes(read(&path)?).map_err(|error| broken(&path, error))?;
    let (found, expected) = (record.len(), trained(&policy).len());
    if found != expected {
        return Err(broken(&path, format!("has {found} parameters; the run trains {expected}")));
    }
    let policy = policy.try_load_record(record.allow_partial(true)).map_err(|error| broken(&path, error))?;
    Ok(State { position, policy, optimizer, reference })
}

fn number(checkpoint: &Path) -> Option<u64> {
    checkpoint.file_name()?.to_str()?.parse().ok()
}

fn trained(policy: &VlmPolicy) -> Vec<Parameter> {
    parameters(&policy.model).into_iter().filter(|parameter| parameter.trainable).collect()
}

/// All of a file at once: burn would read it when it gets to it, and by then it may be gone.
fn read(path: &Path) -> Result<Bytes, Error> {
    let bytes = fs::read(path).map_err(|source| io(path, source))?;
    Ok(Bytes::from_bytes_vec(bytes))
}

fn broken(path: &Path, problem: impl ToString) -> Error {
    Error::Checkpoint { path: path.into(), problem: problem.to_string() }
}
