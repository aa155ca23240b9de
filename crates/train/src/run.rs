//! What the phases of a run work with, and when they keep checkpoints.

use std::path::Path;
use std::time::Instant;

use crate::Error;
use crate::config::RunConfig;
use crate::held_out::{HeldOut, HeldOutAccuracy, UNGRADED};
use crate::job::Job;
use crate::policy::VlmPolicy;
use crate::progress::Progress;
use crate::run_directory::RunDirectory;
use crate::state::{Position, State};
use crate::stop::Stop;

/// A run under way: what it is to do, where it leaves its files, who watches it, and who may stop it.
#[derive(Debug)]
pub struct Run<'a> {
    pub(crate) config: &'a RunConfig,
    pub(crate) job: &'a Job,
    pub(crate) directory: RunDirectory,
    pub(crate) progress: &'a mut Progress,
    stop: &'a Stop,
    started: Instant,
    /// Seconds of the processes that the run goes on from.
    earlier: f64,
    /// Position of the last checkpoint.
    kept: Option<Position>,
}

impl<'a> Run<'a> {
    /// A run that begins now.
    #[must_use]
    pub fn new(
        config: &'a RunConfig,
        job: &'a Job,
        directory: RunDirectory,
        stop: &'a Stop,
        progress: &'a mut Progress,
    ) -> Self {
        Self { config, job, directory, progress, stop, started: Instant::now(), earlier: 0.0, kept: None }
    }

    /// The directory it leaves its files in.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Goes back to the newest checkpoint of its directory; without any, the run begins with `policy`.
    pub(crate) fn restore(&mut self, policy: VlmPolicy) -> Result<State, Error> {
        let state = self.directory.restore(policy, self.config, self.progress)?;
        self.earlier = state.position.seconds;
        self.kept = Some(state.position.clone());
        Ok(state)
    }

    /// Keeps a checkpoint, unless nothing has changed since the last.
    pub(crate) fn keep(&mut self, state: &State) -> Result<(), Error> {
        if self.kept.as_ref() != Some(&state.position) {
            let position = Position { seconds: self.seconds(), ..state.position.clone() };
            self.directory.save_checkpoint(State { position, ..state.clone() }, self.config.checkpoint.keep)?;
            self.kept = Some(state.position.clone());
        }
        Ok(())
    }

    /// Keeps a checkpoint after `steps` of a phase, because what came next failed with `error`: a picture that is gone or a
    /// reward program that died is no reason to lose the steps since the last. Should this fail as well, the first error
    /// is the one to tell. A policy that failed is not worth going on from.
    pub(crate) fn rescue(&mut self, state: &State, steps: usize, error: &Error) {
        if matches!(error, Error::Trainer(firesight_rl::Error::Policy(_))) {
            return;
        }
        match self.keep(state) {
            Ok(()) => self.progress.note(&format!("the run can go on after step {steps} with --resume")),
            Err(error) => self.progress.note(&format!("no checkpoint could be kept: {error}")),
        }
    }

    /// Says which examples were passed over since this was last asked.
    pub(crate) fn say_passed_over(&self) {
        for passed_over in self.job.questions.passed_over() {
            self.progress.note(&passed_over);
        }
    }

    /// Says how many answers of an evaluation could not be graded, and returns whether all were.
    pub(crate) fn say_ungraded(&self, measured: &[(String, f64)]) -> bool {
        let share = measured.iter().find(|(name, _)| name == UNGRADED).map_or(0.0, |(_, share)| *share);
        if share > 0.0 {
            let percent = 100.0 * share;
            self.progress
                .note(&format!("{percent:.1} % of the held-out answers could not be graded; they are not right"));
        }
        share == 0.0
    }

    /// Whether it has been asked to stop.
    pub(crate) fn is_to_stop(&self) -> bool {
        self.stop.requested()
    }

    /// Whether the run is to end here, after `step` steps of a phase that has more of them. Keeps a checkpoint then, and
    /// whenever one is `due` for a reason or by the number of the step.
    pub(crate) fn ends_after(&mut self, step: usize, due: bool, state: impl FnOnce() -> State) -> Result<bool, Error> {
        let stop = self.stop.requested();
        let every = self.config.checkpoint.every;
        if stop || due || (every > 0 && step.is_multiple_of(every)) {
            self.keep(&state())?;
        }
        Ok(stop)
    }

    /// Keeps a checkpoint between two phases, and says whether the run is to end there.
    pub(crate) fn ends_with(&mut self, state: &State) -> Result<bool, Error> {
        let stop = self.stop.requested();
        self.keep(state)?;
        Ok(stop)
    }

    /// Answers the held-out questions, and writes how well.
    pub(crate) fn measure(
        &mut self,
        held_out: &HeldOut,
        policy: &VlmPolicy,
        phase: &str,
        step: usize,
    ) -> Result<HeldOutAccuracy, Error> {
        let measured = held_out.measure(policy)?;
        self.say_passed_over();
        let metrics = measured.metrics();
        self.say_ungraded(&metrics);
        self.directory.metrics(phase, step, &metrics)?;
        Ok(measured)
    }

    /// Seconds since the run began, without those between its processes.
    pub(crate) fn seconds(&self) -> f64 {
        self.earlier + self.started.elapsed().as_secs_f64()
    }
}
