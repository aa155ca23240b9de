//! The runs of a comparison, several at a time.

use std::collections::VecDeque;
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use firesight_rl::{Error as TrainerError, Threads};
use rayon::ThreadPoolBuilder;

use super::findings::Findings;
use super::page::page_of;
use super::record::{Measured, Record};
use super::{Adapt, Comparison, REPORT, TABLE, Variant, WarmUp};
use crate::Error;
use crate::config::RunConfig;
use crate::device::threads;
use crate::files::remove;
use crate::held_out::HeldOut;
use crate::job::Job;
use crate::policy::VlmPolicy;
use crate::progress::{Field, Progress};
use crate::reinforcement::{CPU_SECONDS, reinforcement};
use crate::report::{Phase, read_metrics};
use crate::run::Run;
use crate::run_directory::{CHECKPOINTS, METRICS, RunDirectory};
use crate::state::Best;
use crate::stop::Stop;
use crate::supervised::supervised;

/// What is left of a comparison, and whoever does it.
pub(super) struct Work<'a> {
    comparison: &'a Comparison,
    adapt: Option<&'a Adapt<'a>>,
    stop: &'a Stop,
    directory: PathBuf,
    shared: Mutex<Shared<'a>>,
    /// A warm-up has ended, or a worker has.
    changed: Condvar,
}

struct Shared<'a> {
    record: Record,
    progress: &'a mut Progress,
    seeds: Vec<Seed>,
    /// Runs that are neither done nor left out.
    unfinished: usize,
    failed: Option<Error>,
}

/// What is left to begin for a seed.
struct Seed {
    number: u64,
    /// Names of variants.
    left: VecDeque<String>,
    start: Start,
}

enum Start {
    ToMake,
    UnderWay,
    Made(Arc<Started>),
}

/// What all runs of a seed go on from.
struct Started {
    config: RunConfig,
    job: Job,
    held_out: HeldOut,
    policy: VlmPolicy,
    /// Share of right answers to the held-out questions.
    accuracy: f64,
    variants: Vec<Variant>,
}

enum Task {
    WarmUp(u64),
    /// By the place of its variant.
    Run(Arc<Started>, usize),
}

impl<'a> Work<'a> {
    pub(super) fn new(
        comparison: &'a Comparison,
        adapt: Option<&'a Adapt<'a>>,
        record: Record,
        stop: &'a Stop,
        progress: &'a mut Progress,
    ) -> Self {
        let left = |seed| -> VecDeque<String> {
            let names = comparison.variants.iter().map(|variant| variant.name.clone());
            names.filter(|name| record.of(seed, name).is_none()).collect()
        };
        let seeds = comparison.seeds.iter();
        let seeds: Vec<Seed> = seeds.map(|&number| Seed { number, left: left(number), start: Start::ToMake }).collect();
        let unfinished = seeds.iter().map(|seed| seed.left.len()).sum();
        let all = comparison.variants.len() * seeds.len();
        progress.phase("comparison", all, all - unfinished);
        let directory = record.directory().into();
        let shared = Mutex::new(Shared { record, progress, seeds, unfinished, failed: None });
        Self { comparison, adapt, stop, directory, shared, changed: Condvar::new() }
    }

    /// Does it. Returns whether all is done, and what has been found.
    pub(super) fn run(self) -> Result<(bool, Findings), Error> {
        match threads(&self.comparison.config.device, self.comparison.config.threads) {
            Threads::Caller => self.work(),
            Threads::Own(count) => thread::scope(|scope| {
                let workers: Vec<_> = (0..count).map(|_| scope.spawn(|| self.work_alone())).collect();
                for worker in workers {
                    worker.join().unwrap_or_else(|panic| resume_unwind(panic));
                }
            }),
        }
        let Shared { record, progress, unfinished, failed, .. } =
            self.shared.into_inner().unwrap_or_else(PoisonError::into_inner);
        progress.finish();
        if let Some(error) = failed {
            return Err(error);
        }
        let findings = write(&record, self.comparison)?;
        Ok((unfinished == 0, findings))
    }

    /// Works on one thread, which does all that its runs ask for: so the thread's clock knows what they cost.
    fn work_alone(&self) {
        let _wake = WakeAtEnd(self);
        match ThreadPoolBuilder::new().num_threads(1).build() {
            Ok(pool) => pool.install(|| self.work()),
            Err(error) => self.fail(TrainerError::Threads(error).into()),
        }
    }

    fn work(&self) {
        while let Some(task) = self.next() {
            let done = match task {
                Task::WarmUp(seed) => self.warm_up(seed),
                Task::Run(started, place) => self.learn(&started, &started.variants[place]),
            };
            if let Err(error) = done {
                self.fail(error);
            }
        }
    }

    /// The first of all that is left to do that can begin: a run whose warm-up is done, else a warm-up. Waits for one
    /// that is under way if there is nothing else.
    fn next(&self) -> Option<Task> {
        let mut guard = self.shared();
        loop {
            let shared = &mut *guard;
            if self.stop.requested() {
                return None;
            }
            let mut waits = false;
            for Seed { number, left, start } in &mut shared.seeds {
                match start {
                    _ if left.is_empty() => {}
                    Start::UnderWay => waits = true,
                    Start::ToMake => {
                        *start = Start::UnderWay;
                        return Some(Task::WarmUp(*number));
                    }
                    Start::Made(started) => {
                        let started = started.clone();
                        while let Some(name) = left.pop_front() {
                            if let Some(place) = started.variants.iter().position(|variant| variant.name == name) {
                                return Some(Task::Run(started, place));
                            }
                            shared.unfinished -= 1;
                        }
                    }
                }
                if left.is_empty() {
                    // Its policy need not stay in memory.
                    *start = Start::ToMake;
                }
            }
            if !waits {
                return None;
            }
            guard = self.changed.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The supervised phase of a seed, or what is left of it.
    fn warm_up(&self, seed: u64) -> Result<(), Error> {
        let config = RunConfig { seed, threads: 1, ..self.comparison.config.clone() };
        let mut job = Job::new(&config)?;
        for Variant { reinforcement, .. } in &self.comparison.variants {
            job.base.check(&RunConfig { reinforcement: reinforcement.clone(), ..config.clone() })?;
        }
        let mut policy = job.policy(&config.trainable, seed)?;
        let mut model = config.model.clone();
        if config.supervised.max_steps > 0 {
            let (named, mut progress) = (named(&config, "warm-up"), Progress::silent());
            let mut run = self.begin(&named, &job, &mut progress)?;
            let state = run.restore(policy)?;
            let state = supervised(state, &mut run)?;
            if run.ends_with(&state)? || !state.position.supervised.finished(&config.supervised) {
                return Ok(());
            }
            model = run.directory().join("model");
            if !model.is_dir() {
                run.directory.save_model("model", &state.policy)?;
            }
            policy = state.policy;
        }
        // What only the warm-up asks.
        job.stages = Vec::new();
        let held_out = job.held_out(&config);
        let known = self.shared().record.measured.iter().find(|found| found.seed == seed).map(|found| found.warm_up);
        let accuracy = known.map_or_else(|| Ok(held_out.sighted(&policy)?.accuracy.mean), Ok::<_, Error>)?;
        let mut variants = self.comparison.variants.clone();
        if let Some(adapt) = self.adapt {
            let warm_up = WarmUp { config: &config, model: &model, directory: &self.directory, stop: self.stop };
            variants = adapt(warm_up, variants)?;
        }
        if self.stop.requested() {
            return Ok(());
        }
        let started = Started { config, job, held_out, policy, accuracy, variants };
        let mut shared = self.shared();
        shared.progress.note(&format!("seed {seed}: {:.1} % after the warm-up", 100.0 * accuracy));
        if let Some(found) = shared.seeds.iter_mut().find(|found| found.number == seed) {
            found.start = Start::Made(Arc::new(started));
        }
        self.changed.notify_all();
        Ok(())
    }

    /// One run, or what is left of it.
    fn learn(&self, started: &Started, variant: &Variant) -> Result<(), Error> {
        let Started { job, held_out, policy, accuracy: warm_up, .. } = started;
        let config =
            RunConfig { reinforcement: variant.reinforcement.clone(), ..named(&started.config, &variant.name) };
        config.check()?;
        let mut progress = Progress::silent();
        let mut run = self.begin(&config, job, &mut progress)?;
        let mut state = run.restore(policy.clone())?;
        let (seed, steps) = (config.seed, config.reinforcement.steps);
        // Nothing is better than that: nobody asks for the best policy of a run, which would be kept otherwise.
        state.position.best = Some(Best { step: steps, accuracy: 1.0 });
        let state = reinforcement(state, held_out, &mut run)?;
        if !state.position.reinforcement.finished(&config.reinforcement) {
            return Ok(());
        }
        let found = held_out.sighted(&state.policy)?;
        let accuracy = found.accuracy.mean;
        let phases = read_metrics(&run.directory().join(METRICS))?;
        let Learnt { seconds, accuracies, rewards } = Learnt::of(&phases);
        let measured = Measured {
            seed,
            name: variant.name.clone(),
            base: variant.base.clone(),
            questions: held_out.count(),
            warm_up: *warm_up,
            accuracy,
            ungraded: found.ungraded,
            seconds,
            accuracies,
            rewards,
        };
        let mut shared = self.shared();
        shared.record.push(&measured)?;
        shared.unfinished -= 1;
        write(&shared.record, self.comparison)?;
        shared.progress.note(&format!(
            "seed {seed}, {}: {:.1} %, {:.2} s a step",
            variant.name,
            100.0 * accuracy,
            seconds / steps as f64
        ));
        shared.progress.step(&[Field::new("accuracy", accuracy)]);
        drop(shared);
        // Nobody goes on from there any more.
        let checkpoints = run.directory().join(CHECKPOINTS);
        if checkpoints.exists() { remove(&checkpoints) } else { Ok(()) }
    }

    /// Begins a run in a directory of its own below that of the comparison, or takes it up again.
    fn begin<'r>(&self, config: &'r RunConfig, job: &'r Job, progress: &'r mut Progress) -> Result<Run<'r>, Error>
    where
        'a: 'r,
    {
        let path = self.directory.join(config.name.replace(' ', "-"));
        let directory = RunDirectory::resume(&path, config)?;
        let directory = directory.map_or_else(|| RunDirectory::create_again(&path, config), Ok)?;
        Ok(Run::new(config, job, directory, self.stop, progress))
    }

    /// The first failure ends all: the others are asked to stop.
    fn fail(&self, error: Error) {
        self.shared().failed.get_or_insert(error);
        let _ = self.stop.request();
    }

    fn shared(&self) -> MutexGuard<'_, Shared<'a>> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets nobody wait for a worker that has ended: for a warm-up that was stopped, failed or panicked.
struct WakeAtEnd<'w, 'a>(&'w Work<'a>);

impl Drop for WakeAtEnd<'_, '_> {
    fn drop(&mut self) {
        if thread::panicking() {
            let _ = self.0.stop.request();
        }
        // Under the lock, as somebody may be between looking at the stop and waiting.
        let _guard = self.0.shared();
        self.0.changed.notify_all();
    }
}

fn named(config: &RunConfig, name: &str) -> RunConfig {
    RunConfig { name: format!("seed{}-{name}", config.seed), ..config.clone() }
}

/// Writes what is made of the results.
fn write(record: &Record, comparison: &Comparison) -> Result<Findings, Error> {
    let findings = Findings::of(record, comparison);
    record.write(TABLE, format!("{}\n", findings.markdown()).as_bytes())?;
    record.write(REPORT, page_of(comparison, record, &findings).as_bytes())?;
    Ok(findings)
}

/// What the metrics of a run say.
struct Learnt {
    seconds: f64,
    accuracies: Vec<(usize, f64)>,
    rewards: Vec<Option<f64>>,
}

impl Learnt {
    fn of(phases: &[Phase]) -> Self {
        let phase = phases.iter().find(|phase| phase.name == "reinforcement");
        let steps = phase.map_or(&[][..], |phase| &phase.steps);
        let column = |name: &str| phase.and_then(|phase| phase.columns.get(name)).map_or(&[][..], Vec::as_slice);
        let sum = |name| column(name).iter().copied().sum::<Option<f64>>().filter(|_| !column(name).is_empty());
        let accuracies = steps.iter().zip(column("eval/accuracy"));
        Self {
            seconds: sum(CPU_SECONDS).or_else(|| sum("time/step_s")).unwrap_or(f64::NAN),
            accuracies: accuracies.filter_map(|(&step, accuracy)| Some((step, (*accuracy)?))).collect(),
            rewards: column("reward/mean").to_vec(),
        }
    }
}
