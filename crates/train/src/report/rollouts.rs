//! The rollouts of a run, as much of them as a page shows.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::page::json;
use super::pictures::Picture;
use crate::Error;
use crate::records::{lines, record};
use crate::rollouts::{RolloutGroup, open, rollout_files};

/// Where a group stands, and what it would add to the page.
struct Place {
    step: usize,
    index: usize,
    /// Number of its file, and of its line there.
    line: (usize, usize),
    bytes: u64,
    /// Numbers of its pictures.
    pictures: Vec<usize>,
}

/// How many groups the run has written, and those of them that take at most `limit` bytes with their pictures, spread
/// evenly over the steps and over the prompts of each. Only these are ever in memory, and one more.
pub(super) fn shown_rollouts(run: &Path, limit: u64) -> Result<(usize, Vec<RolloutGroup>), Error> {
    let files = rollout_files(run)?;
    let (mut places, pictures) = measure(run, &files)?;
    places.sort_by_key(|place| (place.step, place.index));
    let kept = most_that_fit(&places, &pictures, limit);
    let kept: BTreeSet<_> = evenly(&places, kept).map(|place| place.line).collect();
    let mut groups: Vec<RolloutGroup> = Vec::with_capacity(kept.len());
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
            let group: RolloutGroup = record(&text?, path, line)?;
            let (step, index, bytes) = (group.step, group.index, json(&group).len() as u64 + 1);
            let mut picture = |name| {
                *numbers.entry(name).or_insert_with_key(|name| {
                    pictures.push(Picture::bytes(&run.join(name)));
                    pictures.len() - 1
                })
            };
            let shown = group.images.into_iter().map(&mut picture).collect();
            places.push(Place { step, index, line: (number, line), bytes, pictures: shown });
        }
    }
    Ok((places, pictures))
}

/// How many groups, taken evenly, fit into `limit` bytes.
fn most_that_fit(places: &[Place], pictures: &[u64], limit: u64) -> usize {
    let fits = |count| {
        let (mut bytes, mut seen) = (0, BTreeSet::new());
        for place in evenly(places, count) {
            let new = place.pictures.iter().filter(|&&picture| seen.insert(picture));
            bytes += place.bytes + new.map(|&picture| pictures[picture]).sum::<u64>();
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
