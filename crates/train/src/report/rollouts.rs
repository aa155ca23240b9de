//! The rollouts of a run, as much of them as a page shows.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Component, Path, PathBuf};

use flate2::read::MultiGzDecoder;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use super::page::json;
use super::pictures::Picture;
use super::records::{lines, record};
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
    #[serde(deserialize_with = "picture_name")]
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

/// Only a file in the directory of the pictures: a name that leads out of it would put on the page what else there is on
/// the disk.
fn picture_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let image = String::deserialize(deserializer)?;
    let name = image.strip_prefix("images/").unwrap_or_default();
    let mut parts = Path::new(name).components();
    // As text, too: a slash at the end is no component.
    if matches!((parts.next(), parts.next()), (Some(Component::Normal(only)), None) if only == name) {
        Ok(image)
    } else {
        Err(D::Error::custom(format!("the image {image:?} is not images/<file name>")))
    }
}

/// Where a group stands, and what it would add to the page.
struct Place {
    step: usize,
    index: usize,
    /// Number of its file, and of its line there.
    line: (usize, usize),
    bytes: u64,
    /// Number of its picture.
    picture: usize,
}

/// How many groups the run has written, and those of them that take at most `limit` bytes with their pictures, spread
/// evenly over the steps and over the prompts of each. Only these are ever in memory, and one more.
pub(super) fn read_rollouts(run: &Path, limit: u64) -> Result<(usize, Vec<Group>), Error> {
    let mut files = entries(&run.join("rollouts"))?;
    files.retain(|path| path.to_string_lossy().ends_with(".jsonl.gz"));
    let (mut places, pictures) = measure(run, &files)?;
    places.sort_by_key(|place| (place.step, place.index));
    let kept = most_that_fit(&places, &pictures, limit);
    let kept: BTreeSet<_> = evenly(&places, kept).map(|place| place.line).collect();
    let mut groups: Vec<Group> = Vec::with_capacity(kept.len());
    for (number, path) in files.iter().enumerate() {
        for (line, text) in lines(open(path)?, path).enumerate() {
            let text = text?;
            if kept.contains(&(number, line)) {
                groups.push(record(&text, path, line)?);
            }
        }
    }
    groups.sort_by_key(|group| (group.step, group.index));
    Ok((places.len(), groups))
}

/// All groups in `files`, and the bytes of their pictures by number.
fn measure(run: &Path, files: &[PathBuf]) -> Result<(Vec<Place>, Vec<u64>), Error> {
    let (mut places, mut pictures, mut numbers) = (Vec::new(), Vec::new(), BTreeMap::new());
    for (number, path) in files.iter().enumerate() {
        for (line, text) in lines(open(path)?, path).enumerate() {
            let group: Group = record(&text?, path, line)?;
            let (step, index, bytes) = (group.step, group.index, json(&group).len() as u64 + 1);
            let picture = *numbers.entry(group.image).or_insert_with_key(|name| {
                pictures.push(Picture::bytes(&run.join(name)));
                pictures.len() - 1
            });
            places.push(Place { step, index, line: (number, line), bytes, picture });
        }
    }
    Ok((places, pictures))
}

/// How many groups, taken evenly, fit into `limit` bytes.
fn most_that_fit(places: &[Place], pictures: &[u64], limit: u64) -> usize {
    let fits = |count| {
        let (mut bytes, mut seen) = (0, BTreeSet::new());
        for place in evenly(places, count) {
            bytes += place.bytes + if seen.insert(place.picture) { pictures[place.picture] } else { 0 };
        }
        bytes <= limit
    };
    let (mut fitting, mut beyond) = (0, places.len() + 1);
    while beyond - fitting > 1 {
        let middle = fitting.midpoint(beyond);
        *(if fits(middle) { &mut fitting } else { &mut beyond }) = middle;
    }
    fitting
}

/// `count` of the places, as far from each other as that many are.
fn evenly(places: &[Place], count: usize) -> impl Iterator<Item = &Place> {
    // The running number times the share, rounded up: where that grows, a group is kept.
    let share = move |place: usize| (place * count).div_ceil(places.len());
    places.iter().enumerate().filter(move |(place, _)| share(place + 1) > share(*place)).map(|(_, place)| place)
}

fn open(path: &Path) -> Result<MultiGzDecoder<File>, Error> {
    File::open(path).map(MultiGzDecoder::new).map_err(|source| io(path, source))
}
