//! Which heads a model sees with (arXiv 2603.27375, section 3.3): held-out questions, answered by the whole model, then
//! without the heads of one index after the other.

mod chart;
mod search;
mod table;

use std::path::PathBuf;

use burn::module::Module;
use firesight_kawhi::VisionCriticalHeads;
use firesight_vlm::{ModelConfig, has_weights};

use crate::Error;
use crate::config::{RunConfig, Trainable};
use crate::evaluate::Greedy;
use crate::job::Job;
use crate::progress::{Field, Progress};
use crate::questions::Purpose;
use crate::recipe::Destination;
use crate::stop::Stop;

use search::{Asked, Search};
pub use table::heads_table;

/// How a search for vision-critical heads ended.
#[derive(Debug, Clone, PartialEq)]
pub enum HeadSearch {
    /// Every head was measured; `heads.toml` and `heads.png` are in the directory.
    Complete {
        /// What was found.
        found: VisionCriticalHeads,
        /// Its directory.
        directory: PathBuf,
    },
    /// It was asked to stop; [`Destination::Resume`] goes on with it.
    Stopped {
        /// Its directory.
        directory: PathBuf,
    },
}

/// Masks all query heads of one index after the other and measures the share of right greedy answers to the held-out
/// questions, always the same ones: `evaluation.examples` of `data`, answered by the model in `config.model`.
/// A head is critical if the share falls by more than `threshold` times that of the whole model; see
/// [`VisionCriticalHeads`].
///
/// What is measured is written at once. A search that goes on measures what is left; a complete one is only judged
/// again, by the threshold that is given now.
///
/// # Errors
/// When a setting is out of range, the model has no weights, or answering or writing fails. After an error, too, the
/// search can go on.
pub fn vision_critical_heads(
    config: &RunConfig,
    threshold: f64,
    destination: &Destination,
    stop: &Stop,
    progress: &mut Progress,
) -> Result<HeadSearch, Error> {
    config.check()?;
    let fail = |key, problem| Err(Error::Setting { key, problem });
    if !(0.0..1.0).contains(&threshold) {
        return fail("threshold", format!("is {threshold}; it is a share, at least 0 and below 1"));
    }
    if !has_weights(&config.model) {
        return fail("model", format!("is {}, which has no weights to search", config.model.display()));
    }
    let job = Job::new(config)?;
    let questions = job.questions.held_out(config.evaluation.examples);
    if questions < 2 {
        return fail(
            "evaluation.examples",
            format!("comes to {questions}; a standard error takes at least 2 questions"),
        );
    }
    let asked = Asked {
        model: config.model.clone(),
        heads: ModelConfig::from_dir(&config.model)?.text_config.num_attention_heads,
        questions,
        max_tokens: config.reinforcement.max_tokens,
        data: config.data.clone(),
        rewards: config.rewards.clone(),
    };
    let begun = match destination {
        Destination::Resume(path) => Search::resume(path, &asked)?,
        Destination::Exactly(_) | Destination::Under(_) => None,
    };
    let search = match begun {
        Some(search) if search.is_complete() => search,
        begun => {
            let name = format!("{}-heads", config.name);
            measure(
                config,
                &job,
                || begun.map_or_else(|| Search::create(destination, &name, asked), Ok),
                stop,
                progress,
            )?
        }
    };
    let directory = search.directory().into();
    if !search.is_complete() {
        return Ok(HeadSearch::Stopped { directory });
    }
    let found = search.judged(threshold);
    search.write("heads.toml", found.to_toml().as_bytes())?;
    search.write("heads.png", &chart::chart(&found)?)?;
    Ok(HeadSearch::Complete { found, directory })
}

/// Measures what `begin` leaves to measure, until that is done or the search is to stop.
fn measure(
    config: &RunConfig,
    job: &Job,
    begin: impl FnOnce() -> Result<Search, Error>,
    stop: &Stop,
    progress: &mut Progress,
) -> Result<Search, Error> {
    let policy = job.policy(&Trainable::default(), config.seed)?.valid();
    let count = job.questions.held_out(config.evaluation.examples);
    let questions = job.questions.batch(Purpose::HeldOut, 0, count)?;
    let greedy = Greedy::of(&job.grader, config);
    // Only now, so that a model that cannot be read leaves no directory behind.
    let mut search = begin()?;
    progress.note(&format!("heads of {}, directory {}", config.model.display(), search.directory().display()));
    progress.phase("heads", search.measurements(), search.measured());
    while !search.is_complete() && !stop.requested() {
        let measured = match search.measured() {
            0 => policy.clone(),
            number => policy.without_head(number - 1)?,
        };
        search.push(&greedy.correct(&measured, &questions)?)?;
        let (score, fall) = search.latest();
        progress.step(&[Field::new("accuracy", score), Field::maybe("fall", fall)]);
    }
    progress.finish();
    Ok(search)
}

#[cfg(test)]
mod tests;
