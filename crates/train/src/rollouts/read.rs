//! The rollouts that a run has written.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Component, Path, PathBuf};

use flate2::read::MultiGzDecoder;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use crate::Error;
use crate::files::{entries, io};
use crate::records::{lines, record};
use crate::run_directory::CONFIG;

/// A prompt and its completions, as a run wrote them. What files of earlier versions lack is optional.
#[derive(Debug, Serialize, Deserialize)]
pub struct RolloutGroup {
    /// The step, counted from 1.
    pub step: usize,
    /// The place of the group in the step, from 0 on.
    pub index: usize,
    /// The question without the chat template.
    pub question: String,
    /// What rewards compare with.
    pub answer: Option<String>,
    /// The pictures, relative to the run directory.
    #[serde(deserialize_with = "picture_names")]
    pub images: Vec<String>,
    /// Where the question comes from.
    pub origin: Option<String>,
    /// What was answered.
    pub completions: Vec<RolloutCompletion>,
    /// Under KAWHI, the regions of each picture.
    pub regions: Option<Vec<RolloutRegions>>,
}

/// A completion.
#[derive(Debug, Serialize, Deserialize)]
pub struct RolloutCompletion {
    /// Decoded without special tokens.
    pub text: String,
    /// What each token adds to the text.
    pub pieces: Option<Vec<String>>,
    /// Log-probability of each token when it was drawn.
    pub log_probs: Vec<RolloutNumber>,
    /// Whether it met the length limit.
    pub truncated: bool,
    /// The number that was optimised; none abstained.
    pub reward: Option<RolloutNumber>,
    /// Its parts by name, before they are weighted.
    pub parts: BTreeMap<String, Option<RolloutNumber>>,
    /// What it was learnt from with.
    pub advantage: Option<RolloutNumber>,
    /// How the advantage was split over the tokens.
    pub credit_weights: Option<Vec<RolloutNumber>>,
    /// What the weights were made of.
    pub evidence: Option<RolloutEvidence>,
}

/// What credit saw of a completion.
#[derive(Debug, Serialize, Deserialize)]
pub struct RolloutEvidence {
    /// Ranges of tokens with one weight each, `[first, end]`.
    pub segments: Vec<[usize; 2]>,
    /// How closely each token attends to the chosen visual tokens.
    pub alignment: Vec<RolloutNumber>,
    /// The chosen visual tokens, counted over the pictures in raster order.
    pub visual_tokens: Vec<usize>,
}

/// What SGUF found in a picture.
#[derive(Debug, Serialize, Deserialize)]
pub struct RolloutRegions {
    /// Rows of visual tokens.
    pub rows: usize,
    /// Visual tokens of a row.
    pub columns: usize,
    /// The component of each visual token, in raster order.
    pub component: Vec<usize>,
    /// Whether that is structured.
    pub structured: Vec<bool>,
}

/// A number, or the name of one that is not finite.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum RolloutNumber {
    /// A number.
    Finite(f64),
    /// `NaN`, `inf` or `-inf`.
    Named(String),
}

impl RolloutNumber {
    /// The number; NaN for a name that no number has.
    #[must_use]
    pub fn value(&self) -> f64 {
        match self {
            Self::Finite(value) => *value,
            Self::Named(name) => name.parse().unwrap_or(f64::NAN),
        }
    }
}

/// The steps whose rollouts a run has written, in their order.
///
/// # Errors
/// [`Error::NoRun`] when `run` is no run directory; when the directory of rollouts cannot be read.
pub fn rollout_steps(run: &Path) -> Result<Vec<usize>, Error> {
    if !run.join(CONFIG).is_file() {
        return Err(Error::NoRun { path: run.into() });
    }
    let mut steps: Vec<usize> = rollout_files(run)?.iter().filter_map(|path| step(path)).collect();
    steps.sort_unstable();
    Ok(steps)
}

/// The groups of the steps of a run that are `wanted`, in the order of the run.
///
/// # Errors
/// [`Error::NoRun`] when `run` is no run directory; when a file in it cannot be read, with its line.
pub fn read_rollouts(run: &Path, wanted: impl Fn(usize) -> bool) -> Result<Vec<RolloutGroup>, Error> {
    if !run.join(CONFIG).is_file() {
        return Err(Error::NoRun { path: run.into() });
    }
    let mut groups: Vec<RolloutGroup> = Vec::new();
    for path in rollout_files(run)? {
        if !step(&path).is_some_and(&wanted) {
            continue;
        }
        for (line, text) in lines(open(&path)?, &path).enumerate() {
            groups.push(record(&text?, &path, line)?);
        }
    }
    groups.sort_by_key(|group| (group.step, group.index));
    Ok(groups)
}

/// The step of a file of rollouts: `step0012.jsonl.gz`.
fn step(path: &Path) -> Option<usize> {
    path.file_name()?.to_str()?.strip_prefix("step")?.strip_suffix(".jsonl.gz")?.parse().ok()
}

/// The files that hold the rollouts of a run.
pub(crate) fn rollout_files(run: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut files = entries(&run.join("rollouts"))?;
    files.retain(|path| path.to_string_lossy().ends_with(".jsonl.gz"));
    Ok(files)
}

/// Only files in the directory of the pictures: a name that leads out of it would put on the page what else there is on
/// the disk.
fn picture_names<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let images: Vec<String> = Vec::deserialize(deserializer)?;
    let leads_out = |image: &&String| {
        let name = image.strip_prefix("images/").unwrap_or_default();
        let mut parts = Path::new(name).components();
        // As text, too: a slash at the end is no component.
        !matches!((parts.next(), parts.next()), (Some(Component::Normal(only)), None) if only == name)
    };
    match images.iter().find(leads_out) {
        Some(image) => Err(D::Error::custom(format!("the image {image:?} is not images/<file name>"))),
        None => Ok(images),
    }
}

pub(crate) fn open(path: &Path) -> Result<MultiGzDecoder<File>, Error> {
    File::open(path).map(MultiGzDecoder::new).map_err(|source| io(path, source))
}
