//! The whole run: build or load a model, warm it up on worked answers, improve it by its reward, measure, save.
//!
//! Every part looks at how far the run has come, so that a run that goes on passes over what is done. A checkpoint
//! stands after each part; what is written before the next one is written again.

use std::path::PathBuf;

use firesight_vlm::{has_weights, parameters};

use crate::Error;
use crate::config::RunConfig;
use crate::error::chain;
use crate::held_out::{HeldOut, HeldOutAccuracy};
use crate::job::{Job, More};
use crate::outcome::Outcome;
use crate::progress::Progress;
use crate::reinforcement::reinforcement;
use crate::report::write_report;
use crate::run::Run;
use crate::run_directory::RunDirectory;
use crate::state::{Best, State};
use crate::stop::Stop;
use crate::supervised::supervised;
use crate::trainable::trainable_table;

/// Where a run leaves its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// This directory, which must be empty or absent.
    Exactly(PathBuf),
    /// A subdirectory named after the run, numbered if the name is taken.
    Under(PathBuf),
    /// This directory, to go on with the run that was begun there; if none was, one begins there.
    Resume(PathBuf),
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Ending {
    /// It is complete.
    Complete(Box<Outcome>),
    /// It was asked to stop; [`Destination::Resume`] goes on with it.
    Stopped {
        /// Its directory.
        directory: PathBuf,
    },
}

impl Destination {
    /// What a command line asks for: the directory `out` or, without one, a subdirectory of `runs`; `resume` goes on
    /// with the run in `out`.
    #[must_use]
    pub fn of(out: Option<PathBuf>, resume: bool) -> Self {
        match out {
            Some(out) if resume => Self::Resume(out),
            Some(out) => Self::Exactly(out),
            None => Self::Under("runs".into()),
        }
    }

    /// Makes the directory.
    ///
    /// # Errors
    /// When it is taken already, or cannot be written.
    pub fn create(&self, config: &RunConfig) -> Result<RunDirectory, Error> {
        match self {
            Self::Exactly(path) => RunDirectory::create(path, config),
            Self::Under(parent) => RunDirectory::create_numbered(parent, &config.name, config),
            Self::Resume(path) => RunDirectory::create_again(path, config),
        }
    }

    /// The directory of a run to go on with, if this asks for one and one was begun.
    fn resume(&self, config: &RunConfig) -> Result<Option<RunDirectory>, Error> {
        match self {
            Self::Resume(path) => RunDirectory::resume(path, config),
            Self::Exactly(_) | Self::Under(_) => Ok(None),
        }
    }
}

/// Runs a configuration from nothing, or from where an earlier process left it, to a trained model on disk. After a
/// `stop` is requested it ends with the step or the measurement that it is at. Either way it leaves a report, or says
/// why it could not.
///
/// # Errors
/// When a file, the configuration, the model or a training step fails. After an error, too, the run can go on from its
/// last checkpoint.
pub fn run(
    config: &RunConfig,
    destination: &Destination,
    stop: &Stop,
    progress: &mut Progress,
) -> Result<Ending, Error> {
    run_rewarded(config, &|rewards| Ok(rewards), destination, stop, progress)
}

/// [`run`] with what `more` makes of the configuration's rewards: with some of one's own,
/// `|rewards| rewards.with("short", 0.2, Box::new(Short))`. The configuration does not say what they are, so whoever goes
/// on with the run has to give the same.
///
/// # Errors
/// As there, and what `more` returns.
pub fn run_rewarded(
    config: &RunConfig,
    more: &More<'_>,
    destination: &Destination,
    stop: &Stop,
    progress: &mut Progress,
) -> Result<Ending, Error> {
    let config = &config.clone().resolved()?;
    config.check()?;
    let begun = destination.resume(config)?;
    if let Some(directory) = &begun
        && let Some(outcome) = directory.outcome()?
    {
        progress.note(&format!("the run in {} is complete", directory.path().display()));
        // It may have ended before its report was written.
        report(directory, progress);
        return Ok(Ending::Complete(Box::new(outcome)));
    }
    let job = Job::rewarded(config, more)?;
    let policy = job.policy(&config.trainable, config.seed)?;
    let directory = begun.map_or_else(|| destination.create(config), Ok)?;
    let origin = if has_weights(&config.model) { "weights of" } else { "fresh weights for" };
    progress.note(&trainable_table(&parameters(&policy.model)));
    progress.note(&format!("{origin} {}, run directory {}", config.model.display(), directory.path().display()));

    let mut run = Run::new(config, &job, directory, stop, progress);
    run.say_passed_over();
    let state = run.restore(policy)?;
    let ending = phases(state, &mut run)?;
    report(&run.directory, run.progress);
    Ok(ending)
}

/// Makes the report of a run that this process still has to itself.
fn report(directory: &RunDirectory, progress: &Progress) {
    match write_report(directory.path()) {
        Ok(report) => progress.note(&format!("report {}", report.display())),
        Err(error) => {
            progress.note(&format!("no report: {}", chain(&error)));
        }
    }
}

/// What is left of the run after `state`.
fn phases(state: State, run: &mut Run<'_>) -> Result<Ending, Error> {
    let config = run.config;
    let stopped = |run: &Run<'_>| Ok(Ending::Stopped { directory: run.directory().into() });

    let mut state = supervised(state, run)?;
    if !state.position.supervised.finished(&config.supervised) || run.ends_with(&state)? {
        return stopped(run);
    }
    // Only now, so that training starts at once.
    let held_out = run.job.held_out(config);
    let start = measure_start(&mut state, &held_out, run)?;
    let (false, Some(start)) = (run.ends_with(&state)?, start) else { return stopped(run) };
    let state = reinforcement(state, &held_out, run)?;
    if !state.position.reinforcement.finished(&config.reinforcement) || run.ends_with(&state)? {
        return stopped(run);
    }
    finish(state, start, &held_out, run).map(|outcome| Ending::Complete(Box::new(outcome)))
}

/// Measures the policy that the run began with and the one after the supervised phase, and writes the latter; `None`
/// when the run is to stop before both are done.
fn measure_start(
    state: &mut State,
    held_out: &HeldOut,
    run: &mut Run<'_>,
) -> Result<Option<[HeldOutAccuracy; 2]>, Error> {
    let position = &mut state.position;
    let steps = position.supervised.steps;
    let before = if let Some(before) = &position.before {
        before.clone()
    } else {
        if steps > 0 {
            // What the reinforcement phase of another run can start from.
            run.directory.save_model("warm-up", &state.policy)?;
        }
        // Made again: it would have been in memory all the while.
        let policy = run.job.policy(&run.config.trainable, run.config.seed)?;
        run.measure(held_out, &policy, "before", 0)?
    };
    position.before = Some(before.clone());
    if run.is_to_stop() {
        return Ok(None);
    }
    let after = if let Some(after) = &position.after_supervised {
        after.clone()
    } else if steps == 0 {
        // The same policy.
        position.best =
            (run.config.evaluation.every > 0).then_some(Best { step: 0, accuracy: before.sighted.accuracy.mean });
        before.clone()
    } else {
        let after = run.measure(held_out, &state.policy, "after_supervised", steps)?;
        let accuracy = after.sighted.accuracy.mean;
        run.progress.note(&format!("held-out accuracy after the warm-up: {:.1} %", 100.0 * accuracy));
        position.best = (run.config.evaluation.every > 0).then_some(Best { step: 0, accuracy });
        after
    };
    position.after_supervised = Some(after.clone());
    Ok(Some([before, after]))
}

/// Measures and writes the policy that the run ends with, and says that it is complete.
fn finish(
    state: State,
    [before, supervised]: [HeldOutAccuracy; 2],
    held_out: &HeldOut,
    run: &mut Run<'_>,
) -> Result<Outcome, Error> {
    let State { position, policy, .. } = state;
    let steps = position.reinforcement.steps;
    let reinforced = if steps > 0 {
        run.measure(held_out, &policy, "after_reinforcement", steps)?
    } else {
        // The same policy.
        supervised.clone()
    };
    if position.best.is_some_and(|best| reinforced.sighted.accuracy.mean > best.accuracy) {
        run.directory.save_model("best", &policy)?;
    }
    run.directory.save_model("model", &policy)?;
    if policy.model.lora().is_some() {
        run.directory.save_adapter(&policy)?;
    }
    let outcome = Outcome {
        supervised_cost: (position.supervised.steps, position.supervised.seconds),
        reinforcement_cost: (position.reinforcement.steps, position.reinforcement.seconds),
        seconds: run.seconds(),
        questions: held_out.count(),
        before,
        supervised,
        reinforcement: reinforced,
        directory: run.directory().into(),
    };
    run.directory.save_outcome(&outcome)?;
    Ok(outcome)
}
