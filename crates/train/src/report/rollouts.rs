//! The rollouts of a run, as much of them as a page shows.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::Path;

use flate2::read::MultiGzDecoder;
use serde::{Deserialize, Serialize};

use super::records::{read_all, records};
use crate::Error;
use crate::files::{entries, io};

/// A prompt and its completions; [`crate::rollouts`] says what the keys mean. Those that files of earlier versions lack
/// are optional.
#[derive(Serialize, Deserialize)]
pub(super) struct Group {
    step: usize,
    index: usize,
    question: String,
    answer: String,
    pub(super) image: String,
    completions: Vec<Completion>,
    regions: Option<Vec<Regions>>,
}

#[derive(Serialize, Deserialize)]
struct Completion {
    text: String,
    pieces: Option<Vec<String>>,
    log_probs: Vec<Number>,
    truncated: bool,
    reward: Option<Number>,
    parts: BTreeMap<String, Option<Number>>,
    advantage: Option<Number>,
    credit_weights: Option<Vec<Number>>,
    evidence: Option<Evidence>,
}

#[derive(Serialize, Deserialize)]
struct Evidence {
    segments: Vec<[usize; 2]>,
    alignment: Vec<Number>,
    visual_tokens: Vec<usize>,
}

#[derive(Serialize, Deserialize)]
struct Regions {
    rows: usize,
    columns: usize,
    component: Vec<usize>,
    structured: Vec<bool>,
}

/// A number, or the name of one that is not finite.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Number {
    Finite(f64),
    Named(String),
}

/// How many groups the run has written, and those of them that take about `limit` bytes with their pictures, spread
/// evenly over the steps and over the prompts of each.
pub(super) fn read_rollouts(run: &Path, limit: u64) -> Result<(usize, Vec<Group>), Error> {
    let mut files = entries(&run.join("rollouts"))?;
    files.retain(|path| path.to_string_lossy().ends_with(".jsonl.gz"));
    let mut groups: Vec<Group> = Vec::new();
    let mut bytes = 0;
    for path in files {
        let file = File::open(&path).map_err(|source| io(&path, source))?;
        let text = read_all(MultiGzDecoder::new(file), &path)?;
        bytes += text.len() as u64;
        groups.extend(records::<Group>(&text, &path)?);
    }
    let pictures: BTreeSet<&str> = groups.iter().map(|group| group.image.as_str()).collect();
    bytes += pictures.iter().filter_map(|name| run.join(name).metadata().ok()).map(|file| file.len()).sum::<u64>();
    let written = groups.len();
    groups.sort_by_key(|group| (group.step, group.index));
    // The running number times the share that fits, rounded up: where that grows, a group is kept.
    let share = |count: usize| (count as u64 * limit.min(bytes)).div_ceil(bytes.max(1));
    let mut kept = (0..written).map(|place| share(place + 1) > share(place));
    groups.retain(|_| kept.next().unwrap_or(false));
    Ok((written, groups))
}
