//! Learning from the verifiable reward alone.

use std::time::Instant;

use cpu_time::ThreadTime;
use firesight_rl::{
    Error as TrainerError, Group, Metrics, Options, Rollout, Sampling, StepReport, Trainer, in_pool_of_one,
};

use crate::Error;
use crate::config::{Reinforcement, RunConfig};
use crate::error::chain;
use crate::evaluate::Accuracy;
use crate::example::Kind;
use crate::held_out::HeldOut;
use crate::job::Job;
use crate::policy::{VlmPolicy, VlmPrompt};
use crate::progress::{Field, Shown};
use crate::questions::{Purpose, Question};
use crate::rollouts::RolloutFiles;
use crate::run::Run;
use crate::samples::write_samples;
use crate::state::{Best, Position, State};
use crate::supervised::adamw;

/// Prompts that are sampled together. A constant, so that it never decides a result.
pub(crate) const SAMPLING_BATCH: usize = 16;

/// The metric of the processor's time for a step, where one thread does all of it.
pub(crate) const CPU_SECONDS: &str = "time/cpu_s";

/// Trains by rollouts and rewards, until the steps are used up or the run is to stop. Goes on from where `state` is in
/// this phase.
///
/// # Errors
/// When the model, the credit assigner or the trainer fails, or the run directory cannot be written.
pub fn reinforcement(state: State, held_out: &HeldOut, run: &mut Run<'_>) -> Result<State, Error> {
    let (config, settings) = (run.config, &run.config.reinforcement);
    let mut position = state.position.clone();
    let mut trainer = trainer(state, config)?;
    let said = position.reinforcement.steps - usize::from(position.reinforcement.unwritten.is_some());
    run.progress.phase("reinforcement", settings.steps, said);
    save_best(&position, &trainer.policy, run)?;
    loop {
        if position.reinforcement.unwritten.is_none() {
            if position.reinforcement.finished(settings) {
                break;
            }
            step(&mut trainer, &mut position, run)?;
        }
        let start = Instant::now();
        let (step, last) = (position.reinforcement.steps, position.reinforcement.finished(settings));
        let mut improved = false;
        let mut measured = Metrics::new();
        if config.evaluation.every > 0 && step.is_multiple_of(config.evaluation.every) && !last {
            measured = match held_out.while_learning(&trainer.policy) {
                Ok(measured) => measured,
                Err(error) => {
                    run.rescue(&between_steps(&position, &trainer), step, &error);
                    return Err(error);
                }
            };
            run.say_passed_over();
            let accuracy = measured[0].1;
            position.reinforcement.accuracy = Some(accuracy);
            let graded = run.say_ungraded(&measured);
            improved = graded && position.best.is_none_or(|best| accuracy > best.accuracy);
            if improved {
                position.best = Some(Best { step, accuracy });
            }
        }
        let mut metrics = position.reinforcement.unwritten.take().unwrap_or_default();
        metrics.extend(measured);
        run.directory.metrics("reinforcement", step, &metrics)?;
        let metric = |name: &str| metrics.iter().find(|(other, _)| other == name).map(|(_, value)| *value);
        run.progress.step(&[
            Field::maybe("reward", metric("reward/mean")),
            Field::maybe("entropy", metric("entropy/mean")),
            Field::maybe("accuracy", position.reinforcement.accuracy),
        ]);
        position.reinforcement.seconds += start.elapsed().as_secs_f64();
        if last {
            break;
        }
        let ends = run.ends_after(step, improved, || between_steps(&position, &trainer))?;
        save_best(&position, &trainer.policy, run)?;
        if ends {
            break;
        }
    }
    run.progress.finish();
    Ok(State { position, policy: trainer.policy, optimizer: None, reference: None })
}

/// Draws, grades and learns. What there is to say of it is written with what is measured after it.
fn step(trainer: &mut Trainer<VlmPolicy>, position: &mut Position, run: &mut Run<'_>) -> Result<(), Error> {
    let (config, settings) = (run.config, &run.config.reinforcement);
    let (start, processor) = (Instant::now(), ThreadTime::now());
    let learning_rate = settings.schedule.at(position.reinforcement.steps, settings.steps);
    let step = position.reinforcement.steps + 1;
    let drawn = rollout(trainer, settings, run.job);
    run.say_passed_over();
    let (rollout, samples) = match drawn {
        Ok(drawn) => drawn,
        Err(error) => {
            run.rescue(&between_steps(position, trainer), step - 1, &error);
            return Err(error);
        }
    };
    if let Some(first) = rollout.failures.first() {
        run.progress.note(&format!("step {step}: {} rewards abstain; {}", rollout.failures.len(), chain(first)));
    }
    let update = match trainer.update(&rollout.groups, learning_rate) {
        Ok(update) => update,
        Err(source) => {
            return Err(keep_failed_update(source, step, &trainer.policy, &samples, &rollout.groups, run)?);
        }
    };
    let processor = processor.elapsed();
    let report = StepReport::new(rollout, update, start.elapsed());
    let mut metrics = report.metrics.clone();
    metrics.push(("learning_rate".into(), learning_rate));
    if in_pool_of_one() {
        metrics.push((CPU_SECONDS.into(), processor.as_secs_f64()));
    }
    // What abstained is worth nothing, and not zero.
    let graded = samples.iter().zip(&report.groups).filter_map(|(sample, group)| Some((sample, mean_reward(group)?)));
    let (kinds, rewards): (Vec<&[Kind]>, Vec<f64>) =
        graded.map(|(sample, reward)| (sample.example.kinds.as_slice(), reward)).unzip();
    // The overall mean comes first, and the trainer reports that already.
    metrics.extend(Accuracy::of(kinds, &rewards).metrics("reward/mean").into_iter().skip(1));
    metrics.extend(peak_memory().map(|bytes| ("memory/peak_bytes".into(), bytes)));
    if let (Some(question), Some(group)) = (samples.first(), report.groups.first()) {
        run.progress.rollout(&Shown {
            question: &question.example.question,
            answer: question.example.answer.as_deref(),
            response: &group.completions[0].text,
            reward: group.rewards[0].total(),
        });
    }
    if step == 1 || step == settings.steps {
        write_samples(&run.directory, step, &samples, &report, config.evaluation.samples)?;
    }
    if config.log.writes_rollout(step, settings.steps) {
        rollout_files(run, &trainer.policy).write_learnt(step, &samples, &report)?;
    }
    let at = &mut position.reinforcement;
    (at.steps, at.first_stream) = (step, trainer.options.sampling.first_stream);
    (at.seconds, at.unwritten) = (at.seconds + start.elapsed().as_secs_f64(), Some(metrics));
    Ok(())
}

/// The run between two steps.
fn between_steps(position: &Position, trainer: &Trainer<VlmPolicy>) -> State {
    State {
        position: position.clone(),
        policy: trainer.policy.clone(),
        optimizer: Some(trainer.optimizer.clone()),
        reference: trainer.reference.clone(),
    }
}

/// Draws and grades the prompts of a step, each new. How many there were before says how far the random streams are, as
/// every prompt takes as many of them as it has completions.
fn rollout(
    trainer: &mut Trainer<VlmPolicy>,
    settings: &Reinforcement,
    job: &Job,
) -> Result<(Rollout<VlmPrompt>, Vec<Question>), Error> {
    let mut drawn = trainer.options.sampling.first_stream as usize / settings.group_size;
    let mut more = |count| {
        drawn += count;
        job.questions.batch(Purpose::Reinforcement, drawn - count, count)
    };
    if let Some(rounds) = settings.dynamic_sampling {
        return trainer.dynamic_rollout(&*job.grader, settings.prompts, rounds, more);
    }
    let samples = more(settings.prompts)?;
    Ok((trainer.rollout(&*job.grader, &samples)?, samples))
}

/// Keeps the policy in the directory `best` if it is. A checkpoint of it comes first, so that a run goes on either
/// before it was found, or with it at hand to write it again.
fn save_best(position: &Position, policy: &VlmPolicy, run: &Run<'_>) -> Result<(), Error> {
    if position.best.is_some_and(|best| best.step == position.reinforcement.steps) {
        run.directory.save_model("best", policy)?;
    }
    Ok(())
}

/// The trainer as it was at `state`.
pub(crate) fn trainer(state: State, config: &RunConfig) -> Result<Trainer<VlmPolicy>, Error> {
    let settings = &config.reinforcement;
    let State { position, policy, optimizer, reference } = state;
    let options = Options {
        group_size: settings.group_size,
        sampling: Sampling {
            temperature: settings.temperature,
            max_tokens: settings.max_tokens,
            seed: config.seed,
            first_stream: position.reinforcement.first_stream,
        },
        prompts_per_sampling_batch: SAMPLING_BATCH,
        reward_failure: settings.reward_failure,
        micro_batch: settings.micro_batch,
        mini_batches: settings.mini_batches,
        passes_per_rollout: settings.passes,
        max_gradient_norm: Some(settings.max_gradient_norm),
        threads: config.threads,
    };
    let credit = settings.credit.assigners(&policy)?;
    let fresh = || adamw(&policy, settings.weight_decay, settings.weight_decay_on);
    let optimizer = optimizer.unwrap_or_else(fresh);
    let mut trainer = Trainer::with_methods(policy, optimizer, settings.algorithm.clone(), credit, options)?;
    trainer.steps = position.reinforcement.steps as u64;
    if reference.is_some() {
        trainer.reference = reference;
    }
    Ok(trainer)
}

/// Writes what an update failed on, and the policy as it was, so that nothing learnt so far is lost; returns the error
/// that says where.
fn keep_failed_update(
    source: TrainerError,
    step: usize,
    policy: &VlmPolicy,
    samples: &[Question],
    groups: &[Group<VlmPrompt>],
    run: &Run<'_>,
) -> Result<Error, Error> {
    let batch = rollout_files(run, policy).write_failed(step, samples, groups)?;
    let policy = run.directory.save_model("model-before-failure", policy)?;
    Ok(Error::Update { step, batch, policy, source })
}

fn rollout_files<'a>(run: &'a Run<'_>, policy: &'a VlmPolicy) -> RolloutFiles<'a> {
    let tokenizer = policy.processor().tokenizer();
    RolloutFiles { directory: &run.directory, credit: &run.config.reinforcement.credit, tokenizer }
}

/// `None` where all abstain.
fn mean_reward(group: &Group<VlmPrompt>) -> Option<f64> {
    let totals = || group.drawn().filter_map(|(_, reward)| reward.total()).map(f64::from);
    (totals().count() > 0).then(|| totals().sum::<f64>() / totals().count() as f64)
}

/// Largest resident memory of the process so far in bytes, where the operating system tells.
#[must_use]
pub fn peak_memory() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: f64 = line.trim().trim_end_matches(" kB").parse().ok()?;
    Some(kibibytes * 1024.0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use flate2::read::GzDecoder;
    use std::io::Read as _;

    use firesight_rl::Reward;

    use super::*;
    use crate::job::Job;
    use crate::progress::Progress;
    use crate::run_directory::RunDirectory;
    use crate::stop::Stop;

    #[test]
    fn a_failed_update_leaves_its_batch_and_the_policy_before_it() {
        let mut config = RunConfig::example("models/qwen-small");
        config.reinforcement.group_size = 2;
        let scratch = tempfile::tempdir().unwrap();
        let directory = RunDirectory::create(&scratch.path().join("run"), &config).unwrap();
        let job = Job::new(&config).unwrap();
        let (stop, mut progress) = (Stop::default(), Progress::silent());
        let run = Run::new(&config, &job, directory, &stop, &mut progress);
        let mut trainer = trainer(State::start(job.policy(&config.trainable, 0).unwrap()), &config).unwrap();
        let samples = job.questions.batch(Purpose::Reinforcement, 0, 2).unwrap();
        let mut groups = trainer.rollout(&*job.grader, &samples).unwrap().groups;
        groups[1].rewards[0] = Reward::of("accuracy", f32::NAN);
        let source = trainer.update(&groups, 1e-3).unwrap_err();

        let error = keep_failed_update(source, 12, &trainer.policy, &samples, &groups, &run).unwrap();
        let Error::Update { step: 12, batch, policy, source } = error else { panic!("{error}") };
        assert!(matches!(source, TrainerError::NonFiniteReward { group: 1, completion: 0 }), "{source}");
        let mut text = String::new();
        GzDecoder::new(std::fs::File::open(batch).unwrap()).read_to_string(&mut text).unwrap();
        let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[1]["completions"][0]["reward"], "NaN");
        assert!(lines[1]["completions"][0]["advantage"].is_null());
        let tokens = serde_json::to_value(&groups[1].completions[0].tokens).unwrap();
        assert_eq!(lines[1]["completions"][0]["tokens"], tokens);
        assert!(run.directory().join(lines[0]["images"][0].as_str().unwrap()).is_file());
        firesight_vlm::QwenVl::from_dir(&policy, &burn::tensor::Device::flex()).unwrap();
    }
}
