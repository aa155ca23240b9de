//! Learning from worked answers, until the model half-knows the task.

use std::time::Instant;

use burn::module::Module;
use burn::optim::{AdamWConfig, ModuleOptimizer};
use burn::tensor::{Tensor, TensorData};
use firesight_rl::{
    Completion, Error as TrainerError, Group, Policy, SignalSet, adamw_with_decay_groups, clip_global_norm,
    gradients_in_parallel,
};
use firesight_vlm::Processor;

use crate::Error;
use crate::config::{RunConfig, WeightDecayOn};
use crate::evaluate::{Accuracy, Greedy};
use crate::policy::{VlmPolicy, VlmPrompt};
use crate::progress::Field;
use crate::questions::{Purpose, Question};
use crate::run::Run;
use crate::state::State;

/// AdamW as both phases use it.
pub(crate) fn adamw(policy: &VlmPolicy, weight_decay: f32, on: WeightDecayOn) -> ModuleOptimizer {
    let config =
        AdamWConfig::new().with_beta_1(0.9).with_beta_2(0.95).with_epsilon(1e-8).with_weight_decay(weight_decay);
    match on {
        WeightDecayOn::All => config.init(),
        WeightDecayOn::Matrices => adamw_with_decay_groups(policy, &config),
    }
}

/// Trains on worked answers of new examples, stage by stage, until [`crate::config::Supervised::stop_accuracy`] is
/// reached for every kind of picture of the last one, the steps are used up, or the run is to stop. Goes on from where
/// `state` is in this phase.
///
/// # Errors
/// When a worked answer is longer than a completion may be, the model fails, or the run directory cannot be written.
pub fn supervised(state: State, run: &mut Run<'_>) -> Result<State, Error> {
    let (config, settings) = (run.config, &run.config.supervised);
    if state.position.supervised.finished(settings) {
        return Ok(state);
    }
    let State { mut position, mut policy, optimizer, .. } = state;
    let fresh = || adamw(&policy, settings.weight_decay, settings.weight_decay_on);
    let mut optimizer = optimizer.unwrap_or_else(fresh);
    run.progress.phase("supervised", settings.max_steps, position.supervised.steps);
    loop {
        let start = Instant::now();
        let at = &mut position.supervised;
        let questions = &run.job.stages[at.stage];
        let learning_rate = settings.schedule.at(at.steps, settings.max_steps);
        let batch = questions.batch(Purpose::Supervised, at.steps * settings.batch_size, settings.batch_size);
        let groups = batch.and_then(|batch| targets(&policy, &batch, config));
        let groups = match groups {
            Ok(groups) => groups,
            Err(error) => {
                let steps = at.steps;
                run.rescue(&State { position, policy, optimizer: Some(optimizer), reference: None }, steps, &error);
                return Err(error);
            }
        };
        run.say_passed_over();
        let (loss, norm);
        (policy, loss, norm) = supervised_step(policy, &mut optimizer, &groups, learning_rate, config)?;
        at.steps += 1;
        let mut metrics =
            vec![("loss/supervised".into(), loss), ("grad/norm".into(), norm), ("learning_rate".into(), learning_rate)];
        if settings.check_every > 0 && at.steps.is_multiple_of(settings.check_every) {
            let first = at.steps / settings.check_every * settings.check_examples;
            let check = questions.batch(Purpose::Check, first, settings.check_examples)?;
            let greedy = Greedy::of(&run.job.grader, config);
            let found = Accuracy::of_questions(&check, &greedy.correct(&policy.valid().materialize(), &check)?);
            metrics.extend(found.metrics("train/accuracy"));
            // A kind of picture that it could not read at all would later earn no reward to learn from.
            let passes = settings.stop_accuracy.is_some_and(|enough| found.lowest() >= enough);
            // Twice in a row: one look at a few examples can be luck.
            if passes && at.passed {
                (at.stage, at.passed) = (at.stage + 1, false);
            } else {
                at.passed = passes;
            }
            at.accuracy = Some(found.overall);
        }
        at.seconds += start.elapsed().as_secs_f64();
        run.directory.metrics("supervised", at.steps, &metrics)?;
        run.progress.step(&[Field::new("loss", loss), Field::maybe("accuracy", at.accuracy)]);
        if at.finished(settings) {
            break;
        }
        let step = at.steps;
        let state = || State {
            position: position.clone(),
            policy: policy.clone(),
            optimizer: Some(optimizer.clone()),
            reference: None,
        };
        if run.ends_after(step, false, state)? {
            break;
        }
    }
    run.progress.finish();
    let at = &position.supervised;
    if settings.stop_accuracy.is_some() && at.steps >= settings.max_steps && at.stage < settings.stages() {
        run.progress.note(&format!(
            "the warm-up ended at its {} steps in stage {} of {}, before stop_accuracy was reached",
            at.steps,
            at.stage + 1,
            settings.stages()
        ));
    }
    Ok(State { position, policy, optimizer: None, reference: None })
}

/// One optimizer step on the mean cross-entropy of the tokens of worked answers; also returns that loss and the norm of
/// its gradient.
fn supervised_step(
    policy: VlmPolicy,
    optimizer: &mut ModuleOptimizer,
    targets: &[Group<VlmPrompt>],
    learning_rate: f64,
    config: &RunConfig,
) -> Result<(VlmPolicy, f64, f64), Error> {
    let tokens: usize = targets.iter().map(|group| group.completions[0].tokens.len()).sum();
    let micro_batches: Vec<&[Group<VlmPrompt>]> = targets.chunks(config.supervised.micro_batch).collect();
    let (gradients, losses) = gradients_in_parallel(&policy, micro_batches.len(), config.threads, |policy, job| {
        let groups = micro_batches[job];
        let scores = policy.score(groups, 1.0, &SignalSet::default())?;
        let log_probs = scores.log_probs.clone();
        let [rows, width] = log_probs.dims();
        let mut weights = vec![0.0; rows * width];
        for (row, group) in weights.chunks_exact_mut(width).zip(groups) {
            row[..group.completions[0].tokens.len()].fill(-1.0 / tokens as f32);
        }
        let weights = Tensor::<2>::from_data(TensorData::new(weights, [rows, width]), &log_probs.device());
        let loss = (log_probs.clone() * weights).sum();
        let value = f64::from(loss.clone().into_scalar::<f32>());
        if !value.is_finite() {
            let bad = log_probs.into_data().iter::<f32>().position(|value| !value.is_finite()).unwrap_or(0);
            let group = job * config.supervised.micro_batch + bad / width;
            return Err(TrainerError::NonFiniteLoss { group, completion: 0, token: bad % width });
        }
        Ok((scores.backward(&loss, policy), value))
    })?;
    let (gradients, norm) = clip_global_norm(&policy, gradients, Some(config.supervised.max_gradient_norm))?;
    let policy = optimizer.step(learning_rate, policy, gradients);
    Ok((policy, losses.iter().sum(), norm))
}

/// The worked answers as completions to imitate.
fn targets(policy: &VlmPolicy, batch: &[Question], config: &RunConfig) -> Result<Vec<Group<VlmPrompt>>, Error> {
    batch.iter().map(|question| target(policy.processor(), question, config.reinforcement.max_tokens)).collect()
}

/// The worked answer as a completion to imitate.
pub(crate) fn target(processor: &Processor, question: &Question, limit: usize) -> Result<Group<VlmPrompt>, Error> {
    let origin = || question.example.origin.clone();
    let Some(text) = &question.example.worked else { return Err(Error::NoTarget { origin: origin() }) };
    let mut tokens = processor.tokenizer().encode(text)?;
    tokens.push(processor.eos_token_id());
    if tokens.len() > limit {
        return Err(Error::TargetLength { origin: origin(), text: text.clone(), tokens: tokens.len(), limit });
    }
    let completion = Completion { tokens, text: text.clone(), ..Completion::default() };
    Ok(Group { prompt: question.prompt.clone(), completions: vec![completion], rewards: Vec::new() })
}
