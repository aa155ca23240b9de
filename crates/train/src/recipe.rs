//! The whole run: build or load a model, warm it up on worked answers, improve it by its reward, measure, save.

use std::path::PathBuf;
use std::time::Instant;

use burn::module::Module;
use comfy_table::presets::UTF8_BORDERS_ONLY;
use comfy_table::{CellAlignment, Table};
use firesight_vlm::has_weights;

use crate::Error;
use crate::config::RunConfig;
use crate::held_out::{HeldOutAccuracy, Sighted};
use crate::job::Job;
use crate::policy::VlmPolicy;
use crate::progress::Progress;
use crate::reinforcement::reinforcement;
use crate::run_directory::RunDirectory;
use crate::supervised::supervised;
use crate::trainable::trainable_table;

/// Where a run leaves its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// This directory, which must be empty or absent.
    Exactly(PathBuf),
    /// A subdirectory named after the run, numbered if the name is taken.
    Under(PathBuf),
}

/// What a run achieved.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Before any training.
    pub before: HeldOutAccuracy,
    /// After the supervised phase.
    pub supervised: HeldOutAccuracy,
    /// After reinforcement learning.
    pub reinforcement: HeldOutAccuracy,
    /// Steps and seconds of the supervised phase.
    pub supervised_cost: (usize, f64),
    /// Steps and seconds of reinforcement learning.
    pub reinforcement_cost: (usize, f64),
    /// Seconds of the whole run, measuring included.
    pub seconds: f64,
    /// Held-out questions.
    pub questions: usize,
    /// Everything the run wrote.
    pub directory: PathBuf,
}

impl Outcome {
    /// The table for the end of a run.
    #[must_use]
    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(UTF8_BORDERS_ONLY);
        let pictures = self.before.sighted.greedy.pictures.iter().map(|(picture, _)| picture.name());
        let header = ["held-out accuracy", "with picture", "95 % interval"].into_iter().chain(pictures);
        table.set_header(header.chain(["blind", "steps", "seconds"]));
        let percent = |share: f64| format!("{:.1} %", 100.0 * share);
        let mut row = |name: &str, accuracy: &HeldOutAccuracy, cost: Option<(usize, f64)>| {
            let Sighted { accuracy: overall, greedy, .. } = &accuracy.sighted;
            let interval = format!("{:.1} to {:.1} %", 100.0 * overall.low, 100.0 * overall.high);
            let mut cells = vec![name.to_owned(), percent(overall.mean), interval];
            cells.extend(greedy.pictures.iter().map(|&(_, share)| percent(share)));
            cells.push(percent(accuracy.blind.mean));
            cells.extend(cost.map_or([String::new(), String::new()], |(steps, seconds)| {
                [steps.to_string(), format!("{seconds:.0}")]
            }));
            table.add_row(cells);
        };
        row("before", &self.before, None);
        row("after warm-up", &self.supervised, Some(self.supervised_cost));
        row("after RL", &self.reinforcement, Some(self.reinforcement_cost));
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        format!(
            "{table}\n{} held-out questions, {:.0} s in all, run directory {}",
            self.questions,
            self.seconds,
            self.directory.display()
        )
    }
}

impl Destination {
    /// Makes the directory.
    ///
    /// # Errors
    /// When it is taken already, or cannot be written.
    pub fn create(&self, config: &RunConfig) -> Result<RunDirectory, Error> {
        match self {
            Self::Exactly(path) => RunDirectory::create(path, config),
            Self::Under(parent) => RunDirectory::create_numbered(parent, &config.name, config),
        }
    }
}

/// Runs a configuration from nothing to a trained model on disk.
///
/// # Errors
/// When a file, the configuration, the model or a training step fails.
pub fn run(config: &RunConfig, destination: &Destination, progress: &mut Progress) -> Result<Outcome, Error> {
    let start = Instant::now();
    config.check()?;
    let job = Job::new(config)?;
    let policy = job.policy(&config.trainable, config.seed)?;
    let mut directory = destination.create(config)?;
    let origin = if has_weights(&config.model) { "weights of" } else { "fresh weights for" };
    progress.note(&trainable_table(&policy.model));
    progress.note(&format!("{origin} {}, run directory {}", config.model.display(), directory.path().display()));
    let initial = policy.valid();
    let clock = Instant::now();
    let (policy, supervised_steps) = supervised(policy, config, &job, &mut directory, progress)?;
    if supervised_steps > 0 {
        // What the reinforcement phase of another run can start from.
        directory.save_model("warm-up", &policy)?;
    }
    let supervised_cost = (supervised_steps, clock.elapsed().as_secs_f64());

    // Only now, so that training starts at once.
    let held_out = job.held_out(config)?;
    let measure = |policy: &VlmPolicy, phase: &str, step: usize, directory: &mut RunDirectory| {
        let measured = held_out.measure(policy)?;
        directory.metrics(phase, step, &measured.metrics())?;
        Ok::<_, Error>(measured)
    };
    let before = measure(&initial, "before", 0, &mut directory)?;
    let after_supervised = measure(&policy, "after_supervised", supervised_steps, &mut directory)?;
    progress
        .note(&format!("held-out accuracy after the warm-up: {:.1} %", 100.0 * after_supervised.sighted.accuracy.mean));

    let clock = Instant::now();
    let policy = reinforcement(policy, config, &job, &held_out, &mut directory, progress)?;
    let reinforcement_cost = (config.reinforcement.steps, clock.elapsed().as_secs_f64());
    let after_reinforcement = measure(&policy, "after_reinforcement", config.reinforcement.steps, &mut directory)?;

    directory.save_model("model", &policy)?;
    if policy.model.lora().is_some() {
        policy.model.save_adapter(&directory.path().join("adapter"), &config.model.display().to_string())?;
    }
    Ok(Outcome {
        before,
        supervised: after_supervised,
        reinforcement: after_reinforcement,
        supervised_cost,
        reinforcement_cost,
        seconds: start.elapsed().as_secs_f64(),
        questions: held_out.questions().len(),
        directory: directory.path().into(),
    })
}
