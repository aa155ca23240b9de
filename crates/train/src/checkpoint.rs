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
    let written =
        |name: &str, result: Result<(), RecordError>| result.map_err(|error| broken(&target.join(name), &error));
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

/// How far the run had come.
pub(crate) fn position(checkpoint: &Path) -> Result<Position, Error> {
    let path = checkpoint.join(POSITION);
    let text = fs::read_to_string(&path).map_err(|source| io(&path, source))?;
    toml::from_str(&text).map_err(|error| broken(&path, &error))
}

/// Reads a checkpoint into the policy that the run began with.
pub(crate) fn load(checkpoint: &Path, policy: VlmPolicy, config: &RunConfig) -> Result<State, Error> {
    let position = position(checkpoint)?;

    let path = checkpoint.join(OPTIMIZER);
    let optimizer = if path.exists() {
        let (supervised, reinforcement) = (&config.supervised, &config.reinforcement);
        let fresh = if position.supervised.finished(supervised) {
            adamw(&policy, reinforcement.weight_decay, reinforcement.weight_decay_on)
        } else {
            adamw(&policy, supervised.weight_decay, supervised.weight_decay_on)
        };
        Some(fresh.from_bytes(read(&path)?).map_err(|error| broken(&path, &error))?)
    } else {
        None
    };

    let path = checkpoint.join(REFERENCE);
    let reference = if path.exists() {
        let record = ModuleRecord::from_bytes(read(&path)?).map_err(|error| broken(&path, &error))?;
        let reference = policy.valid().materialize().try_load_record(record);
        Some(reference.map_err(|error| broken(&path, &error))?)
    } else {
        None
    };

    let path = checkpoint.join(POLICY);
    let record = ModuleRecord::from_bytes(read(&path)?).map_err(|error| broken(&path, &error))?;
    let (found, expected) = (record.len(), trained(&policy).len());
    if found != expected {
        return Err(broken(&path, &format!("has {found} parameters; the run trains {expected}")));
    }
    let policy = policy.try_load_record(record.allow_partial(true)).map_err(|error| broken(&path, &error))?;
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

fn broken(path: &Path, problem: &impl ToString) -> Error {
    Error::Checkpoint { path: path.into(), problem: problem.to_string() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use burn::module::{ModuleMapper, ModuleVisitor, Param};
    use burn::optim::{GradientsParams, ModuleOptimizer};
    use burn::tensor::{DType, Tensor, TensorData};
    use firesight_vlm::LoraConfig;

    use super::*;
    use crate::job::Job;
    use crate::state::{Best, SupervisedPosition};

    /// Sums the squares of what is trained.
    #[derive(Default)]
    struct Squares(Option<Tensor<1>>);

    impl ModuleVisitor for Squares {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if param.is_require_grad() {
                let squares = (param.val() * param.val()).sum();
                self.0 = Some(self.0.take().map_or(squares.clone(), |sum| sum + squares));
            }
        }
    }

    /// Values of every parameter and whether it is trained.
    #[derive(Default)]
    struct Values(Vec<(TensorData, bool)>);

    impl ModuleVisitor for Values {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.0.push((param.val().into_data(), param.is_require_grad()));
        }
    }

    struct Halved;

    impl ModuleMapper for Halved {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let half = Tensor::from_inner(param.val().inner().cast(DType::F16));
            Param::initialized(param.id, if param.is_require_grad() { half.require_grad() } else { half })
        }
    }

    fn values(policy: &VlmPolicy) -> Vec<(TensorData, bool)> {
        let mut values = Values::default();
        policy.visit(&mut values);
        values.0
    }

    fn stepped(policy: VlmPolicy, optimizer: &mut ModuleOptimizer) -> VlmPolicy {
        let mut squares = Squares::default();
        policy.visit(&mut squares);
        let gradients = GradientsParams::from_grads(squares.0.unwrap().backward(), &policy);
        optimizer.step(1e-2, policy, gradients)
    }

    /// A model with weights, of which adapters or the decoder are trained.
    fn config(lora: bool) -> RunConfig {
        let mut config = RunConfig::example("tests/fixtures/oracle/models/qwen3_vl_tied");
        config.trainable.freeze_vision_tower = true;
        let target_modules = vec!["q_proj".into(), "down_proj".into()];
        config.trainable.lora = lora.then_some(LoraConfig { rank: 2, alpha: 4.0, target_modules });
        config
    }

    #[test]
    fn a_checkpoint_gives_back_every_bit() {
        for lora in [true, false] {
            let config = config(lora);
            let job = Job::new(&config).unwrap();
            let fresh = || job.policy(&config.trainable, 0).unwrap();
            let mut policy = fresh();
            let mut optimizer = adamw(&policy, config.supervised.weight_decay, config.supervised.weight_decay_on);
            for _ in 0..2 {
                policy = stepped(policy, &mut optimizer);
            }
            let reference = stepped(policy.clone(), &mut optimizer.clone()).valid().materialize();
            let position = Position {
                // What a reader that rounds gets wrong in the last bit.
                seconds: 0.1 + 0.2,
                best: Some(Best { step: 3, accuracy: 1.0 / 3.0 }),
                supervised: SupervisedPosition { steps: 7, stage: 1, passed: true, accuracy: None, seconds: 1e-300 },
                ..Position::default()
            };
            let state = State { position, policy, optimizer: Some(optimizer), reference: Some(reference) };
            let scratch = tempfile::tempdir().unwrap();
            save(scratch.path(), &state, 1).unwrap();
            let saved = scratch.path().join("000001");
            let loaded = load(&saved, fresh(), &config).unwrap();

            assert_eq!(loaded.position, state.position);
            assert!(values(&loaded.policy) == values(&state.policy), "policy");
            assert!(values(&loaded.reference.unwrap()) == values(state.reference.as_ref().unwrap()), "reference");
            let size = |name: &str| saved.join(name).metadata().unwrap().len();
            assert!(!lora || 4 * size(POLICY) < size(REFERENCE), "frozen weights are stored");
            // The optimizer goes on as if nothing had been: its moments, its count, and whose they are.
            let after = stepped(loaded.policy, &mut loaded.optimizer.unwrap());
            let expected = stepped(state.policy.clone(), &mut state.optimizer.clone().unwrap());
            assert!(values(&after) == values(&expected), "optimizer");

            let halved = State { policy: state.policy.map(&mut Halved), optimizer: None, reference: None, ..state };
            save(scratch.path(), &halved, 1).unwrap();
            let loaded = load(&scratch.path().join("000002"), fresh(), &config).unwrap();
            let trained = |policy: &VlmPolicy| -> Vec<TensorData> {
                values(policy).into_iter().filter(|(_, trained)| *trained).map(|(data, _)| data).collect()
            };
            assert!(trained(&loaded.policy) == trained(&halved.policy), "float type");
            assert!(trained(&loaded.policy).iter().all(|data| data.dtype() == DType::F16));
            assert!(loaded.optimizer.is_none() && loaded.reference.is_none());
        }
    }

    #[test]
    fn a_checkpoint_of_another_model_is_refused() {
        let (config, other) = (config(true), config(false));
        let job = Job::new(&config).unwrap();
        let scratch = tempfile::tempdir().unwrap();
        save(scratch.path(), &State::start(job.policy(&config.trainable, 0).unwrap()), 1).unwrap();
        let loaded = load(&scratch.path().join("000001"), job.policy(&other.trainable, 0).unwrap(), &other);
        let Err(Error::Checkpoint { path, problem }) = loaded else { panic!("loaded") };
        assert!(path.ends_with("000001/policy.bpk") && problem.contains("parameters"), "{problem}");
    }
}
