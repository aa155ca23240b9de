//! The list of rewards, over a batch of responses.

use std::any::Any;
use std::collections::BTreeSet;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use rayon::prelude::*;

use crate::{Asked, BoxFrame, Error, Part, Response, Reward, RewardConfig, Score};

/// The rewards of a run, in the order of its configuration.
#[derive(Default)]
pub struct Rewards {
    entries: Vec<Entry>,
}

struct Entry {
    name: String,
    weight: f32,
    reward: Box<dyn Reward>,
}

type Scored = Result<Score, Error>;

impl Rewards {
    /// Makes the rewards of a configuration: compiles expressions, starts programs. The policy writes boxes in `frame`.
    ///
    /// # Errors
    /// [`Error::Reward`], which names the reward: when a name is taken, a setting is out of range, a program cannot be
    /// started, a kind is not in this build.
    pub fn new(configs: &[RewardConfig], frame: BoxFrame) -> Result<Self, Error> {
        configs.iter().try_fold(Self::default(), |rewards, config| {
            let reward = config.kind.build(frame).map_err(|error| error.of(config.name()))?;
            rewards.with(config.name(), config.weight, reward)
        })
    }

    /// The same with a reward of one's own behind the others.
    ///
    /// # Errors
    /// [`Error::Reward`] when the name is empty, taken or has a `/` in it, or when the weight is not finite.
    pub fn with(mut self, name: &str, weight: f32, reward: Box<dyn Reward>) -> Result<Self, Error> {
        let refuse = |key, problem| Err(Error::setting(key, problem).of(name));
        if name.is_empty() || name.contains('/') {
            return refuse("name", "has to be something without a slash");
        }
        if self.names().any(|taken| taken == name) {
            return refuse("name", "is that of another reward as well; they have to differ");
        }
        if !weight.is_finite() {
            return refuse("weight", "has to be finite");
        }
        self.entries.push(Entry { name: name.into(), weight, reward });
        Ok(self)
    }

    /// The names, in the order of the configuration.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|entry| entry.name.as_str())
    }

    /// Grades a batch: one result a response, in order. All responses have the same parts in the same order: every
    /// reward and behind it the further parts that it had for any response of this batch, by name. Rewards that compute
    /// share the threads of the current rayon pool; those that wait, say for programs, have threads of their own
    /// meanwhile.
    ///
    /// The result of a response is an error, [`Error::Reward`], when a reward fails, panics or is not finite: of the
    /// rewards that do, the first. The other responses are graded all the same.
    #[must_use]
    pub fn grade(&self, batch: &[(Asked<'_>, Response<'_>)]) -> Vec<Result<Vec<Part>, Error>> {
        let scores: Vec<Vec<Scored>> = thread::scope(|scope| {
            // All that wait are on their way before anything is computed.
            let started: Vec<_> = (self.entries.iter())
                .map(|entry| {
                    let threads = entry.reward.parallel()?.min(batch.len());
                    Some(scope.spawn(move || spread(threads, batch.len(), |index| score(entry, &batch[index]))))
                })
                .collect();
            let computed = self.entries.iter().zip(&started).map(|(entry, started)| match started {
                Some(_) => Vec::new(),
                None => batch.par_iter().map(|case| score(entry, case)).collect(),
            });
            let computed: Vec<_> = computed.collect();
            let joined = started.into_iter().zip(computed);
            joined.map(|(started, computed)| started.map_or(computed, |thread| join(thread.join()))).collect()
        });
        let parts: Vec<BTreeSet<String>> = scores.iter().map(|scores| part_names(scores)).collect();
        let mut scores: Vec<_> = scores.into_iter().map(Vec::into_iter).collect();
        let of_response = |_| self.parts(&parts, scores.iter_mut().filter_map(Iterator::next).collect());
        batch.iter().map(of_response).collect()
    }

    /// The parts of one response, of which every reward has given a score.
    fn parts(&self, names: &[BTreeSet<String>], scores: Vec<Scored>) -> Result<Vec<Part>, Error> {
        let mut parts = Vec::new();
        for ((entry, names), score) in self.entries.iter().zip(names).zip(scores) {
            let score = score.map_err(|error| error.of(&entry.name))?;
            // No punishment is 0 and not -0, which reads as if there were one.
            let value = score.value.map(|value| value + 0.0);
            parts.push(Part { name: entry.name.clone(), value, weight: entry.weight });
            parts.extend(names.iter().map(|name| {
                let found = score.parts.iter().find(|(other, _)| other == name);
                Part { name: format!("{}/{name}", entry.name), value: found.and_then(|(_, value)| *value), weight: 0.0 }
            }));
        }
        Ok(parts)
    }
}

impl fmt::Debug for Rewards {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_map().entries(self.entries.iter().map(|entry| (&entry.name, entry.weight))).finish()
    }
}

fn part_names(scores: &[Scored]) -> BTreeSet<String> {
    scores.iter().flatten().flat_map(|score| &score.parts).map(|(name, _)| name.clone()).collect()
}

/// Asks one reward about one response.
fn score(entry: &Entry, (asked, response): &(Asked<'_>, Response<'_>)) -> Scored {
    // A reward that panicked is asked again, of other responses: what it then makes of its state is up to it.
    let score = catch_unwind(AssertUnwindSafe(|| entry.reward.score(asked, response)))
        .unwrap_or_else(|panic| Err(Error::Panicked { message: message(&*panic) }))?;
    let mut values = score.value.into_iter().chain(score.parts.iter().filter_map(|(_, value)| *value));
    match values.find(|value| !value.is_finite()) {
        Some(value) => Err(Error::NotFinite { value }),
        None => Ok(score),
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string).or_else(|| panic.downcast_ref().cloned());
    text.unwrap_or_else(|| "with no text".into())
}

/// Computes what belongs to each of `count` indices on a few threads, each of which takes the next one.
fn spread<T: Send>(threads: usize, count: usize, compute: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let take = || {
        let index = next.fetch_add(1, Ordering::Relaxed);
        (index < count).then(|| (index, compute(index)))
    };
    let mut computed: Vec<(usize, T)> = thread::scope(|scope| {
        let started: Vec<_> =
            (0..threads.max(1)).map(|_| scope.spawn(|| std::iter::from_fn(take).collect::<Vec<_>>())).collect();
        started.into_iter().flat_map(|thread| join(thread.join())).collect()
    });
    computed.sort_by_key(|(index, _)| *index);
    computed.into_iter().map(|(_, value)| value).collect()
}

fn join<T>(result: thread::Result<T>) -> T {
    result.expect("panics of rewards are caught where they are asked")
}

#[cfg(test)]
mod tests;
