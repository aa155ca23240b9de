//! The run configuration: one complete TOML file.

use std::path::{Path, PathBuf};

use burn::tensor::FloatDType;
use firesight_data::Layout;
use firesight_reward::RewardConfig;
use firesight_rl::{Algorithm, Decay, Filter, MicroBatch, Pearl, RewardFailure, Schedule};
use firesight_vlm::LoraConfig;
use serde::{Deserialize, Serialize};
use toml::Table;

use crate::Error;
use crate::credit::Credit;
use crate::task::Picture;

/// Everything that decides a run. The same configuration gives the same run, bit for bit on CPUs of one kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// Name of the run.
    pub name: String,
    /// Model directory in Hugging Face layout. Without weights in it the run makes fresh ones.
    pub model: PathBuf,
    /// Seed of every random stream.
    pub seed: u64,
    /// `flex`, `cuda`, `cuda:<index>`, `wgpu` or `wgpu:<index>`.
    pub device: String,
    /// Float type of activations and matrix products, and of weights that are not trained: those that are stay in float32.
    /// On a CPU only of the latter.
    #[serde(default)]
    pub dtype: Dtype,
    /// Operating-system threads of the CPU backend; a GPU is given its work by one. Changes the speed, never the
    /// result.
    pub threads: usize,
    /// Keeps only the inputs of the model's layers for the backward pass and computes the rest again: less memory, more
    /// time, the same result but for the last bits.
    #[serde(default)]
    pub activation_checkpointing: bool,
    /// What of the model changes.
    #[serde(default)]
    pub trainable: Trainable,
    /// The task.
    pub data: Data,
    /// What an answer is worth. The first says whether it is right: when its value is above one half.
    pub rewards: Vec<RewardConfig>,
    /// Learning from worked answers.
    #[serde(default, skip_serializing_if = "Supervised::is_none")]
    pub supervised: Supervised,
    /// Learning from the verifiable reward.
    pub reinforcement: Reinforcement,
    /// Measuring.
    pub evaluation: Evaluation,
    /// Looking at a run.
    #[serde(default)]
    pub log: Log,
    /// What a run keeps to go on from.
    #[serde(default)]
    pub checkpoint: Checkpoint,
}

/// Float types of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// float32.
    #[default]
    F32,
    /// bfloat16, and float32 for what is trained and where bfloat16 would hurt.
    Bf16,
}

impl Dtype {
    /// What configurations call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }
}

impl From<Dtype> for FloatDType {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::Bf16 => Self::BF16,
        }
    }
}

/// What of the model changes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Trainable {
    /// Whether the vision tower and its merger stay as they are. They do unless the configuration says otherwise: a
    /// pretrained tower sees well enough, and training it takes much memory. With adapters, whether the blocks of the
    /// tower have some too; the merger never has.
    pub freeze_vision_tower: bool,
    /// Trains low-rank adapters instead of the weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraConfig>,
}

impl Default for Trainable {
    fn default() -> Self {
        Self { freeze_vision_tower: true, lora: None }
    }
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "source", rename_all = "snake_case")]
pub enum Data {
    /// The built-in task: charts of public statistics and handwritten digits.
    Charts(ChartData),
    /// Rows of files.
    Files(Box<FileData>),
}

/// Questions of the built-in task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChartData {
    /// Kinds of pictures, equally likely.
    pub pictures: Vec<Picture>,
}

/// Questions that are rows of files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileData {
    /// Files of training rows, or directories of such files: JSON lines (`.jsonl`) or Parquet (`.parquet`).
    pub train: Vec<PathBuf>,
    /// The same of the rows that training never sees.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub held_out: Vec<PathBuf>,
    /// Without files of held-out rows, the share of the training rows that is put aside for that: the same rows for
    /// every seed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_out_share: Option<f64>,
    /// Files of the supervised phase; absent, those of training.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub supervised: Vec<PathBuf>,
    /// Whether every pass over the rows takes them in another order, which the seed decides; else in that of the files.
    #[serde(default = "yes")]
    pub shuffle: bool,
    /// Rows that may be left out because they cannot be read. One more is an error.
    #[serde(default)]
    pub skip_bad: usize,
    /// Columns whose values accuracies are told apart by, the most important first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kinds: Vec<String>,
    /// Images with fewer pixels are enlarged; absent, as the model's processor says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_pixels: Option<u64>,
    /// Images with more pixels are reduced; absent, as the model's processor says. What an image costs grows with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_pixels: Option<u64>,
    /// Which columns hold what, and how a prompt is made of them.
    #[serde(default)]
    pub layout: Layout,
}

impl Data {
    /// A few words for it.
    #[must_use]
    pub fn describe(&self) -> String {
        let shown =
            |paths: &[PathBuf]| -> Vec<String> { paths.iter().map(|path| path.display().to_string()).collect() };
        let names = match self {
            Self::Charts(ChartData { pictures }) => pictures.iter().map(|picture| picture.name().into()).collect(),
            Self::Files(files) if files.held_out.is_empty() => shown(&files.train),
            Self::Files(files) => shown(&files.held_out),
        };
        names.join(", ")
    }
}

/// The supervised phase. A configuration without it has none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Supervised {
    /// Optimizer steps at most, all stages together.
    pub max_steps: usize,
    /// Of the built-in task: kinds of pictures of one stage after the other; a kind listed twice is shown twice as
    /// often. A model that can read one kind learns the others sooner.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stages: Vec<Vec<Picture>>,
    /// Examples a step, each new.
    pub batch_size: usize,
    /// Examples in one forward and backward pass.
    pub micro_batch: usize,
    /// Learning rate.
    pub schedule: Schedule,
    /// AdamW's weight decay.
    pub weight_decay: f32,
    /// What it pulls at.
    #[serde(default)]
    pub weight_decay_on: WeightDecayOn,
    /// Largest norm of the gradient of all parameters together.
    #[serde(default = "unit_norm")]
    pub max_gradient_norm: f32,
    /// A stage ends once this share of new training examples is answered right, twice in a row, for every one of their
    /// most important kinds; absent, it takes all its steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_accuracy: Option<f64>,
    /// Steps between two looks at that share; 0 never looks.
    #[serde(default)]
    pub check_every: usize,
    /// Examples of one look.
    #[serde(default)]
    pub check_examples: usize,
}

impl Default for Supervised {
    /// None.
    fn default() -> Self {
        Self {
            max_steps: 0,
            stages: Vec::new(),
            batch_size: 1,
            micro_batch: 1,
            schedule: Schedule { peak: 1e-5, warmup_steps: 0, decay: Decay::Constant, final_share: 0.0 },
            weight_decay: 0.0,
            weight_decay_on: WeightDecayOn::default(),
            max_gradient_norm: unit_norm(),
            stop_accuracy: None,
            check_every: 0,
            check_examples: 0,
        }
    }
}

impl Supervised {
    /// Whether there is no such phase.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// How many stages there are.
    #[must_use]
    pub fn stages(&self) -> usize {
        self.stages.len().max(1)
    }
}

/// The reinforcement phase.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reinforcement {
    /// Rollouts.
    pub steps: usize,
    /// Prompts a rollout, each new.
    pub prompts: usize,
    /// Completions a prompt.
    pub group_size: usize,
    /// Draws prompts again, up to this many times a rollout, for those whose completions all have the same reward
    /// (DAPO's dynamic sampling); absent, they stay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dynamic_sampling: Option<usize>,
    /// Parts a rollout is cut into, an optimizer step each.
    pub mini_batches: usize,
    /// How often a rollout is trained on.
    #[serde(default = "once")]
    pub passes: usize,
    /// What goes through one forward and backward pass: `{ groups = 8 }` or `{ tokens = 8192 }`.
    pub micro_batch: MicroBatch,
    /// Softmax temperature of sampling, and of every log-probability.
    pub temperature: f32,
    /// Longest completion in tokens.
    pub max_tokens: usize,
    /// Learning rate.
    pub schedule: Schedule,
    /// AdamW's weight decay.
    pub weight_decay: f32,
    /// What it pulls at.
    #[serde(default)]
    pub weight_decay_on: WeightDecayOn,
    /// Largest norm of the gradient of all parameters together.
    #[serde(default = "unit_norm")]
    pub max_gradient_norm: f32,
    /// What becomes of a reward that fails: `stop`, or `abstain`, which while measuring is an answer that is not right.
    #[serde(default)]
    pub reward_failure: RewardFailure,
    /// What is optimised.
    pub algorithm: Algorithm,
    /// How an advantage is split over the tokens of a completion.
    pub credit: Credit,
}

/// Which parameters weight decay pulls at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WeightDecayOn {
    /// All that are trained.
    #[default]
    All,
    /// Matrices: neither biases nor the weights of norms.
    Matrices,
}

/// What is measured and when.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evaluation {
    /// Held-out examples; the same ones in every run.
    pub examples: usize,
    /// Rollouts between two evaluations on held-out data while learning; 0 evaluates at the end only. Otherwise the
    /// policy with the best accuracy so far is kept, from the end of the supervised phase on.
    pub every: usize,
    /// Answers drawn for each held-out example at the temperature of training, beside the greedy one: what mean@k and
    /// pass@k are taken over. 0, the default, draws none; each costs as much as the greedy answer.
    #[serde(default)]
    pub attempts: usize,
    /// Every k of pass@k, ascending, none above `attempts`.
    #[serde(default)]
    pub pass_at: Vec<usize>,
    /// Whether evaluations while learning ask about blank pictures too. Those before, after the warm-up and at the end
    /// always do.
    #[serde(default)]
    pub blind: bool,
    /// Prompts of the first and of the last step whose rollouts are written as pictures and text.
    pub samples: usize,
}

/// What is written down for looking at a run. None of it changes the run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// Steps between two whose rollouts are written with all their numbers; the first and the last always are. 0 writes
    /// none. 100 unless the configuration says otherwise: a rollout of 32 pictures is megabytes, nearly all of them the
    /// pictures.
    pub rollouts_every: usize,
    /// Whether metrics are written for TensorBoard as well.
    pub tensorboard: bool,
}

/// What a run keeps to go on from after it was stopped. Changes nothing of its result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Checkpoint {
    /// Steps between two checkpoints, in both phases; 0 keeps one at the end of a phase, on a stop, and with a new best
    /// policy only. Those three come at any number.
    pub every: usize,
    /// How many of the latest stay, at least 1.
    pub keep: usize,
}

impl Default for Checkpoint {
    fn default() -> Self {
        Self { every: 20, keep: 2 }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { rollouts_every: 100, tensorboard: true }
    }
}

impl Log {
    /// Whether the rollout of `step`, counted from 1, of `steps` is written.
    #[must_use]
    pub fn writes_rollout(&self, step: usize, steps: usize) -> bool {
        self.rollouts_every > 0 && (step == 1 || step == steps || step.is_multiple_of(self.rollouts_every))
    }
}

/// The key of the heads that KAWHI compares.
pub(crate) const HEADS: &str = "reinforcement.credit.heads";

/// Gives a key another value.
fn overridden(table: &mut Table, one: &str) -> Result<(), Error> {
    let fail = |problem: String| Error::Override { text: one.into(), problem };
    let (key, value) = one.split_once('=').ok_or_else(|| fail("has no =, as in seed=1".into()))?;
    let value = value.trim();
    let value = toml::from_str::<Table>(&format!("value = {value}"))
        .ok()
        .and_then(|mut table| table.remove("value"))
        .unwrap_or_else(|| value.into());
    let mut parts: Vec<&str> = key.trim().split('.').collect();
    let last = parts.pop().unwrap_or_default();
    if last.is_empty() || parts.contains(&"") {
        return Err(fail("has no key before the =".into()));
    }
    let mut inner = table;
    for part in parts {
        let entry = inner.entry(part).or_insert_with(|| Table::new().into());
        inner = entry.as_table_mut().ok_or_else(|| fail(format!("{part} is no table")))?;
    }
    inner.insert(last.into(), value);
    Ok(())
}

fn once() -> usize {
    1
}

fn yes() -> bool {
    true
}

fn unit_norm() -> f32 {
    1.0
}

impl RunConfig {
    /// Reads a configuration. Relative paths in it are relative to the working directory. A file of vision-critical
    /// heads that it names is read as well, and the list in it takes its place.
    ///
    /// # Errors
    /// When the file cannot be read, has a key that does not exist, lacks one, or holds a value out of range; the
    /// error names the file, and the line or the key.
    pub fn from_file(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::Io { path: path.into(), source })?;
        Self::from_toml(&text, path)
    }

    /// Reads a configuration in which some keys have other values, each as `dotted.key=value` with a value of TOML; one
    /// that is no TOML is a text. A key may be one that the file leaves out.
    ///
    /// # Errors
    /// See [`Self::from_file`]; [`Error::Override`] when one is not of that form, or leads through something that is no
    /// table.
    pub fn from_file_with(path: &Path, overrides: &[String]) -> Result<Self, Error> {
        if overrides.is_empty() {
            return Self::from_file(path);
        }
        let text = std::fs::read_to_string(path).map_err(|source| Error::Io { path: path.into(), source })?;
        let broken = |reason| Error::Toml { path: path.into(), reason: Box::new(reason) };
        let mut table: Table = toml::from_str(&text).map_err(broken)?;
        for one in overrides {
            overridden(&mut table, one)?;
        }
        Self::checked(table.try_into().map_err(broken)?, path)
    }

    /// Reads a configuration from the text of `path`.
    ///
    /// # Errors
    /// See [`Self::from_file`].
    pub fn from_toml(text: &str, path: &Path) -> Result<Self, Error> {
        let config = toml::from_str(text);
        Self::checked(config.map_err(|reason| Error::Toml { path: path.into(), reason: Box::new(reason) })?, path)
    }

    fn checked(self, path: &Path) -> Result<Self, Error> {
        match self.resolved().and_then(|config| config.check().map(|()| config)) {
            Err(Error::Setting { key, problem }) => Err(Error::Config { path: path.into(), key, problem }),
            resolved => resolved,
        }
    }

    /// The same, with what other files say in it: the list of a file of vision-critical heads.
    ///
    /// # Errors
    /// [`Error::Setting`] when the file cannot be used.
    pub fn resolved(mut self) -> Result<Self, Error> {
        if let Some(kawhi) = self.reinforcement.credit.kawhi_mut() {
            kawhi.heads = kawhi
                .heads
                .resolve()
                .map_err(|error| Error::Setting { key: HEADS, problem: format!("cannot be used: {error}") })?;
        }
        Ok(self)
    }

    /// The file that gives this configuration.
    ///
    /// # Panics
    /// Never: every field has a TOML form.
    #[must_use]
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("every field has a TOML form")
    }

    /// Refuses values that no run can have. Every run begins with it.
    ///
    /// # Errors
    /// [`Error::Setting`] names the first key.
    pub fn check(&self) -> Result<(), Error> {
        let fail = |key, problem: String| Err(Error::Setting { key, problem });
        let (supervised, reinforcement) = (&self.supervised, &self.reinforcement);
        for (key, value) in [
            ("threads", self.threads),
            ("supervised.batch_size", supervised.batch_size),
            ("supervised.micro_batch", supervised.micro_batch),
            ("reinforcement.prompts", reinforcement.prompts),
            ("reinforcement.mini_batches", reinforcement.mini_batches),
            ("reinforcement.passes", reinforcement.passes),
            ("reinforcement.dynamic_sampling", reinforcement.dynamic_sampling.unwrap_or(1)),
            ("reinforcement.max_tokens", reinforcement.max_tokens),
            ("evaluation.examples", self.evaluation.examples),
            ("checkpoint.keep", self.checkpoint.keep),
        ] {
            if value == 0 {
                return fail(key, "must be at least 1".into());
            }
        }
        if let Some(lora) = &self.trainable.lora {
            lora.check().or_else(|(field, problem)| fail("trainable.lora", format!("{field} {problem}")))?;
        }
        if i64::try_from(self.seed).is_err() {
            return fail("seed", format!("is {}; TOML has no integers above {}", self.seed, i64::MAX));
        }
        self.check_data()?;
        if self.rewards.is_empty() {
            return fail("rewards", "must list at least one reward".into());
        }
        if let Some(accuracy) = supervised.stop_accuracy {
            if !(0.0..=1.0).contains(&accuracy) {
                return fail("supervised.stop_accuracy", format!("is {accuracy}; it is a share between 0 and 1"));
            }
            if supervised.check_every == 0 {
                return fail("supervised.check_every", "must be at least 1 for stop_accuracy to be looked at".into());
            }
        }
        if supervised.stages.len() > 1 && supervised.stop_accuracy.is_none() {
            return fail(
                "supervised.stop_accuracy",
                "is missing; without it the first of several stages never ends".into(),
            );
        }
        if supervised.check_every > 0 && supervised.check_examples == 0 {
            return fail("supervised.check_examples", "must be at least 1".into());
        }
        let (MicroBatch::Groups(size) | MicroBatch::Tokens(size)) = reinforcement.micro_batch;
        if size == 0 {
            return fail("reinforcement.micro_batch", "must be at least 1".into());
        }
        for (key, norm) in [
            ("supervised.max_gradient_norm", supervised.max_gradient_norm),
            ("reinforcement.max_gradient_norm", reinforcement.max_gradient_norm),
        ] {
            if !(norm.is_finite() && norm > 0.0) {
                return fail(key, format!("is {norm}; it has to be above zero"));
            }
        }
        if let Err(problem) = reinforcement.algorithm.check() {
            return fail("reinforcement.algorithm", problem.to_string());
        }
        if reinforcement.group_size < 2 {
            let size = reinforcement.group_size;
            return fail(
                "reinforcement.group_size",
                format!("is {size}; an advantage compares at least two completions"),
            );
        }
        if !reinforcement.prompts.is_multiple_of(reinforcement.mini_batches) {
            let (prompts, parts) = (reinforcement.prompts, reinforcement.mini_batches);
            return fail(
                "reinforcement.mini_batches",
                format!("is {parts}, which does not divide the {prompts} prompts"),
            );
        }
        if !(reinforcement.temperature.is_finite() && reinforcement.temperature > 0.0) {
            let temperature = reinforcement.temperature;
            return fail("reinforcement.temperature", format!("is {temperature}; sampling needs one above zero"));
        }
        for (key, schedule) in
            [("supervised.schedule", supervised.schedule), ("reinforcement.schedule", reinforcement.schedule)]
        {
            schedule.check().or_else(|error| fail(key, error.to_string()))?;
        }
        let Evaluation { attempts, pass_at, .. } = &self.evaluation;
        if !(pass_at.is_sorted_by(|a, b| a < b) && pass_at.iter().all(|k| (1..=*attempts).contains(k))) {
            let problem = format!("is {pass_at:?}; it lists ascending numbers of the {attempts} evaluation.attempts");
            return fail("evaluation.pass_at", problem);
        }
        self.check_filters()?;
        reinforcement.credit.check()
    }

    /// Refuses filters that look at rewards which are not there.
    fn check_filters(&self) -> Result<(), Error> {
        for filter in &self.reinforcement.algorithm.filters {
            let Filter::Pearl(Pearl { checklist, .. }) = filter else { continue };
            if !self.rewards.iter().any(|reward| reward.name() == checklist) {
                let known: Vec<&str> = self.rewards.iter().map(RewardConfig::name).collect();
                let problem = format!("have pearl look at the reward {checklist:?}; there are {}", known.join(", "));
                return Err(Error::Setting { key: "reinforcement.algorithm.filters", problem });
            }
        }
        Ok(())
    }
}

impl RunConfig {
    fn check_data(&self) -> Result<(), Error> {
        let fail = |key, problem: String| Err(Error::Setting { key, problem });
        let stages = &self.supervised.stages;
        match &self.data {
            Data::Charts(ChartData { pictures }) => {
                if pictures.is_empty() {
                    return fail("data.pictures", "must name at least one kind of picture".into());
                }
                let needed = self.supervised.max_steps > 0;
                if (needed && stages.is_empty()) || stages.iter().any(Vec::is_empty) {
                    return fail("supervised.stages", "must name at least one kind of picture for every stage".into());
                }
            }
            Data::Files(files) => {
                if files.train.is_empty() {
                    return fail("data.train", "must name at least one file".into());
                }
                match files.held_out_share {
                    None if files.held_out.is_empty() => {
                        let problem = "must name at least one file, unless held_out_share puts rows aside";
                        return fail("data.held_out", problem.into());
                    }
                    Some(_) if !files.held_out.is_empty() => {
                        return fail("data.held_out_share", "puts rows aside, but data.held_out names files".into());
                    }
                    Some(share) if !(share > 0.0 && share < 1.0) => {
                        return fail("data.held_out_share", format!("is {share}; it is a share between 0 and 1"));
                    }
                    _ => {}
                }
                if !stages.is_empty() {
                    return fail("supervised.stages", "are kinds of pictures, which files do not have".into());
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
impl RunConfig {
    /// The main job on another model, whose path is relative to the repository.
    pub(crate) fn example(model: &str) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let config = Self::from_file(&root.join("examples/configs/qwen-small.toml")).expect("the example is sound");
        Self { model: root.join(model), ..config }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::path::Path;

    use firesight_rl::Decay;

    use super::{Log, RunConfig};

    #[test]
    fn rollouts_are_written_first_last_and_every_so_often() {
        let written = |rollouts_every, steps| -> Vec<usize> {
            let log = Log { rollouts_every, ..Log::default() };
            (1..=steps).filter(|&step| log.writes_rollout(step, steps)).collect()
        };
        assert_eq!(written(4, 10), [1, 4, 8, 10]);
        assert_eq!(written(1, 3), [1, 2, 3]);
        assert_eq!(written(50, 1), [1]);
        assert!(written(0, 10).is_empty());
    }

    /// What a configuration may leave out, and what it then means.
    #[test]
    fn absent_keys_have_the_meaning_they_had() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/configs/qwen-small.toml");
        let text = std::fs::read_to_string(&path).unwrap();
        let optional = ["attempts", "pass_at", "blind", "[log]", "rollouts_every", "tensorboard"];
        let kept = |line: &&str| !optional.iter().any(|key| line.starts_with(key));
        let bare: Vec<&str> = text.lines().filter(kept).collect();
        assert_eq!(bare.len() + optional.len(), text.lines().count());
        let bare = RunConfig::from_toml(&bare.join("\n"), &path).unwrap();
        assert_eq!(bare, RunConfig::from_toml(&text, &path).unwrap());
        assert_eq!(bare.supervised.schedule.decay, Decay::Linear);
        assert_eq!(bare, RunConfig::from_toml(&bare.to_toml(), &path).unwrap());
    }

    #[test]
    fn a_file_of_heads_becomes_its_list() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let path = root.join("examples/configs/qwen-small.toml");
        let text = std::fs::read_to_string(&path).unwrap();
        let with_heads = |heads: &str| {
            let credit = format!(r#"credit = {{ name = "kawhi", heads = {heads} }}"#);
            RunConfig::from_toml(&text.replace(r#"credit = { name = "kawhi" }"#, &credit), &path)
        };
        let published = root.join("models/vision_critical_heads/qwen3-vl-4b.toml");
        let found = with_heads(&format!(r#"{{ critical = "{}" }}"#, published.display())).unwrap();
        assert_eq!(found, with_heads("{ list = [2, 3, 4, 12, 13, 19, 25, 27] }").unwrap());
        assert_ne!(found, with_heads(r#""all""#).unwrap());
        let error = with_heads(r#"{ critical = "nowhere.toml" }"#).unwrap_err().to_string();
        let expected = "reinforcement.credit.heads cannot be used: nowhere.toml: No such file";
        assert!(error.contains("qwen-small.toml: ") && error.contains(expected), "{error}");
    }

    #[test]
    fn a_seed_that_no_file_can_hold_is_refused() {
        let mut config = RunConfig::example("models/qwen-small");
        config.seed = i64::MAX as u64;
        config.check().unwrap();
        config.seed += 1;
        assert!(config.check().unwrap_err().to_string().starts_with("seed is 9223372036854775808"));
    }

    #[test]
    fn pass_at_takes_ascending_numbers_of_the_attempts() {
        let mut config = RunConfig::example("models/qwen-small");
        config.evaluation.attempts = 4;
        for (pass_at, sound) in [
            (vec![], true),
            (vec![1, 4], true),
            (vec![0, 1], false),
            (vec![5], false),
            (vec![2, 2], false),
            (vec![2, 1], false),
        ] {
            config.evaluation.pass_at = pass_at;
            match config.check() {
                Ok(()) => assert!(sound, "{config:?}"),
                Err(error) => assert!(!sound && error.to_string().starts_with("evaluation.pass_at is ["), "{error}"),
            }
        }
    }
}
