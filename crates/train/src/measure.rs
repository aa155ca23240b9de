//! Measuring a model by itself, outside of a run.

use std::io::Write as _;
use std::path::Path;

use burn::module::Module;
use firesight_rl::Sampler;
use firesight_vlm::has_weights;
use serde::Serialize;

use crate::Error;
use crate::config::{RunConfig, Trainable};
use crate::extrapolation::{Extrapolated, ExtrapolationConfig};
use crate::files::write_atomically;
use crate::held_out::HeldOutAccuracy;
use crate::job::Job;
use crate::policy::VlmPrompt;
use crate::progress::Progress;

/// Has the model of a configuration answer the held-out questions, with their pictures and blind, and writes what it
/// said to the file `answers`, if one is given: a line of JSON for each question. With an `extrapolation` all answers are
/// drawn with it.
///
/// # Errors
/// When a setting is out of range, a model has no weights, or answering or writing fails.
pub fn evaluate(
    config: &RunConfig,
    extrapolation: Option<&ExtrapolationConfig>,
    answers: Option<&Path>,
    progress: &mut Progress,
) -> Result<HeldOutAccuracy, Error> {
    config.check()?;
    if !has_weights(&config.model) {
        let problem = format!("is {}, which has no weights to measure", config.model.display());
        return Err(Error::Setting { key: "model", problem });
    }
    let job = Job::new(config)?;
    let policy = job.policy(&Trainable::default(), config.seed)?.valid().materialize();
    match extrapolation {
        None => measured(&job, config, &policy, answers, progress),
        Some(extrapolation) => {
            let (base, extrapolation) = (job.base.other(&extrapolation.base)?, extrapolation.clone());
            measured(&job, config, &Extrapolated { policy, base, config: extrapolation }, answers, progress)
        }
    }
}

/// What `sampler` answers.
fn measured(
    job: &Job,
    config: &RunConfig,
    sampler: &(impl Sampler<VlmPrompt> + Clone + Send),
    answers: Option<&Path>,
    progress: &mut Progress,
) -> Result<HeldOutAccuracy, Error> {
    let held_out = job.held_out(config);
    progress.phase("evaluation", held_out.count(), 0);
    let mut lines = Vec::new();
    let sighted = held_out.sighted_by(sampler, |question, answer, reward| {
        let example = &question.example;
        let line = AnswerLine {
            origin: &example.origin,
            question: &example.question,
            answer: example.answer.as_deref(),
            response: &answer.text,
            truncated: answer.truncated,
            right: reward.is_right(),
            reward: reward.total(),
            parts: reward.parts.iter().map(|part| (part.name.as_str(), part.value)).collect(),
        };
        let line = serde_json::to_string(&line).expect("texts and numbers have a JSON form");
        writeln!(lines, "{line}").expect("writing to memory does not fail");
        progress.step(&[]);
        Ok(())
    })?;
    progress.finish();
    if let Some(path) = answers {
        write_atomically(path, &lines)?;
    }
    let blind = held_out.blind_by(sampler)?;
    for passed_over in job.questions.passed_over() {
        progress.note(&passed_over);
    }
    if sighted.ungraded > 0 {
        progress.note(&format!("{} answers could not be graded; they are not right", sighted.ungraded));
    }
    Ok(HeldOutAccuracy { sighted, blind })
}

#[derive(Serialize)]
struct AnswerLine<'a> {
    origin: &'a str,
    question: &'a str,
    answer: Option<&'a str>,
    response: &'a str,
    truncated: bool,
    right: bool,
    reward: Option<f32>,
    parts: Vec<(&'a str, Option<f32>)>,
}
