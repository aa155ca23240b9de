//! Variants of a run beside each other: from one warm-up a seed, with the same prompts, over several seeds.

mod credit;
mod findings;
mod page;
mod record;
mod statistics;
mod table;
mod work;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

pub use credit::credit_variants;
pub use findings::{Findings, Found};
pub use statistics::{Mean, paired_t_test};

use crate::Error;
use crate::config::{Checkpoint, Evaluation, Log, Reinforcement, RunConfig};
use crate::progress::Progress;
use crate::recipe::Destination;
use crate::stop::Stop;
use record::{Asked, Record};
use work::Work;

/// Files that are made of the results, at any time.
const TABLE: &str = "table.md";
const REPORT: &str = "report.html";

/// What is compared.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// What all runs have in common. Its seed is not used; `threads` runs go on at a time, each on one thread.
    pub config: RunConfig,
    /// The variants.
    pub variants: Vec<Variant>,
    /// A run of every variant for each.
    pub seeds: Vec<u64>,
    /// What else decides what the variants are: a comparison goes on only with the same.
    pub parameters: BTreeMap<String, String>,
}

/// One of the things that are compared.
#[derive(Debug, Clone, PartialEq)]
pub struct Variant {
    /// Its name, which no other has.
    pub name: String,
    /// The variant that it is compared with.
    pub base: Option<String>,
    /// What goes on from the warm-up.
    pub reinforcement: Reinforcement,
}

/// The supervised phase of a seed, done.
#[derive(Debug, Clone, Copy)]
pub struct WarmUp<'a> {
    /// The configuration of the seed.
    pub config: &'a RunConfig,
    /// Directory of what it learnt; that of the configuration if there is no such phase.
    pub model: &'a Path,
    /// Directory for what is found of it.
    pub directory: &'a Path,
    /// Whoever may stop the comparison.
    pub stop: &'a Stop,
}

/// Changes the variants of a seed after its warm-up. A variant that it leaves out is not run.
pub type Adapt<'a> = dyn Fn(WarmUp<'_>, Vec<Variant>) -> Result<Vec<Variant>, Error> + Sync + 'a;

/// How a comparison ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Compared {
    /// Whether all runs are done; else [`Destination::Resume`] goes on with it.
    pub complete: bool,
    /// Its directory.
    pub directory: PathBuf,
    /// What it has found.
    pub findings: Findings,
}

/// Has every variant learn for every seed: one warm-up a seed, from which all of its variants go on with the same
/// prompts, and measures the accuracy on the same held-out questions.
///
/// What a run came to is written to `results.jsonl` at once, and what that makes of the whole to `table.md` and
/// `report.html`. A comparison that goes on passes over the runs that are done, and may have further seeds and variants.
/// Every run is on one thread, so that its cost can be told, and its result does not depend on what is run beside it.
///
/// # Errors
/// When a setting is out of range, the directory holds something else, or a run fails. After an error, too, the
/// comparison can go on.
pub fn compare(
    comparison: &Comparison,
    adapt: Option<&Adapt<'_>>,
    destination: &Destination,
    stop: &Stop,
    progress: &mut Progress,
) -> Result<Compared, Error> {
    let comparison = &settled(comparison);
    check(comparison)?;
    let asked = Asked {
        config: comparison.config.clone(),
        parameters: comparison.parameters.clone(),
        variants: comparison.variants.iter().cloned().map(|variant| (variant.name, variant.reinforcement)).collect(),
    };
    let record = Record::open(destination, &format!("{}-compare", comparison.config.name), &asked)?;
    let directory = record.directory().to_owned();
    progress.note(&format!("comparison in {}", directory.display()));
    let (complete, findings) = Work::new(comparison, adapt, record, stop, progress).run()?;
    Ok(Compared { complete, directory, findings })
}

/// Without what costs time and says nothing of a comparison.
fn settled(comparison: &Comparison) -> Comparison {
    let config = comparison.config.clone();
    let evaluation = Evaluation { attempts: 0, pass_at: Vec::new(), blind: false, samples: 0, ..config.evaluation };
    let (log, checkpoint) =
        (Log { rollouts_every: 0, tensorboard: false }, Checkpoint { keep: 1, ..config.checkpoint });
    Comparison { config: RunConfig { seed: 0, evaluation, log, checkpoint, ..config }, ..comparison.clone() }
}

fn check(comparison: &Comparison) -> Result<(), Error> {
    let Comparison { config, variants, seeds, .. } = comparison;
    let fail = |key, problem: String| Err(Error::Setting { key, problem });
    if config.reinforcement.steps == 0 {
        return fail("reinforcement.steps", "is 0; there is nothing to compare".into());
    }
    if seeds.is_empty() {
        return fail("seeds", "lists none".into());
    }
    let mut known = BTreeSet::new();
    if let Some(seed) = seeds.iter().find(|&seed| !known.insert(seed)) {
        return fail("seeds", format!("lists {seed} twice"));
    }
    for &seed in seeds {
        RunConfig { seed, ..config.clone() }.check()?;
    }
    for Variant { name, reinforcement, .. } in variants {
        RunConfig { reinforcement: reinforcement.clone(), ..config.clone() }.check()?;
        // Questions, which all have in common, leave room for that many.
        let (most, own) = (config.reinforcement.max_tokens, reinforcement.max_tokens);
        if own > most {
            return fail("reinforcement.max_tokens", format!("of {name} is {own}, above the {most} of all"));
        }
    }
    Ok(())
}
