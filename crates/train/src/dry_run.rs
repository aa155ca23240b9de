//! What a run would do, without doing it: the prompts it would show, the grades it would give, what it would take.

use std::fmt::{self, Display};

use firesight_rl::{Completion, Error as TrainerError, MicroBatch, RewardFailure, Task as _};
use firesight_vlm::{Component, Grid, MemoryPlan, Trained, Workload};
use serde::Serialize;

use crate::Error;
use crate::config::RunConfig;
use crate::device::{hardware, precision};
use crate::error::chain;
use crate::evaluate::BATCH as MEASURED_TOGETHER;
use crate::job::Job;
use crate::questions::{Purpose, Question};
use crate::supervised::target;
use crate::trainable::trainable_table;

/// Prompts that are shown.
const SHOWN: usize = 3;
/// Prompts that are measured for the memory plan.
const MEASURED: usize = 32;

/// What a run would do.
#[derive(Debug, Clone, Serialize)]
pub struct DryRun {
    /// Rows that are left out, and why.
    pub left_out: Vec<String>,
    /// Rows to train on; `None` where they never end.
    pub train: Option<usize>,
    /// Held-out questions that will be asked.
    pub held_out: usize,
    /// The first prompts of reinforcement learning.
    pub prompts: Vec<ShownPrompt>,
    /// What is trained, as a table.
    pub trainable: String,
    /// What a micro-batch on one thread takes, as a table, and the longest prompt it was reckoned with.
    pub memory: String,
}

/// A prompt as the model gets it.
#[derive(Debug, Clone, Serialize)]
pub struct ShownPrompt {
    /// Where it comes from.
    pub origin: String,
    /// As the chat template renders it, with one placeholder for each image.
    pub text: String,
    /// Its length, image placeholders expanded.
    pub tokens: usize,
    /// `(width, height)` of each image in pixels, as it came and as the model sees it.
    pub images: Vec<[(u32, u32); 2]>,
    /// What rewards compare with.
    pub answer: Option<String>,
    /// Made-up answers, and what they are worth.
    pub grades: Vec<ShownGrade>,
}

/// A made-up answer and its grade.
#[derive(Debug, Clone, Serialize)]
pub struct ShownGrade {
    /// The answer.
    pub response: String,
    /// Its reward; none if no part of it applies.
    pub reward: Option<f32>,
    /// Its parts by name, before they are weighted.
    pub parts: Vec<(String, Option<f32>)>,
    /// Why it could not be graded.
    pub failed: Option<String>,
}

/// Reads the data, renders prompts, grades made-up answers, and reckons what a run would take. The weights of the model
/// are not read, and nothing is written.
///
/// # Errors
/// Those that the run would begin with.
pub fn dry_run(config: &RunConfig) -> Result<DryRun, Error> {
    let config = &config.clone().resolved()?;
    config.check()?;
    let job = Job::new(config)?;
    let train = job.questions.train();
    let questions =
        job.questions.batch(Purpose::Reinforcement, 0, train.map_or(MEASURED, |rows| rows.min(MEASURED)))?;
    if config.supervised.max_steps > 0 {
        let stage = &job.stages[0];
        for question in
            stage.batch(Purpose::Supervised, 0, stage.train().map_or(MEASURED, |rows| rows.min(MEASURED)))?
        {
            target(&job.base.processor, &question, config.reinforcement.max_tokens)?;
        }
    }
    let stops = config.reinforcement.reward_failure == RewardFailure::Stop;
    let prompts = questions.iter().take(SHOWN).map(|question| shown(question, &job, stops));
    let prompts = prompts.collect::<Result<_, _>>()?;
    Ok(DryRun {
        left_out: job.questions.passed_over(),
        train,
        held_out: job.questions.held_out(config.evaluation.examples),
        prompts,
        trainable: trainable_table(&job.base.outline(&config.trainable)?),
        memory: memory(&questions, &job, config),
    })
}

fn shown(question: &Question, job: &Job, stops: bool) -> Result<ShownPrompt, Error> {
    let example = &question.example;
    let describe = |source| Error::Example { origin: example.origin.clone(), source };
    let resized = question.prompt.image_sizes();
    let answer = example.answer.as_deref().unwrap_or_default();
    // Right and in the box, right and outside of it, and no answer at all.
    let made_up = [format!("\\boxed{{{answer}}}"), format!("I think it is {answer}"), "I do not know.".to_owned()];
    Ok(ShownPrompt {
        origin: example.origin.clone(),
        text: job.base.processor.text(&example.messages).map_err(describe)?,
        tokens: question.prompt.tokens().len(),
        images: example.images.iter().zip(resized).map(|(image, seen)| [image.pixels.dimensions(), seen]).collect(),
        answer: example.answer.clone(),
        grades: made_up.into_iter().map(|response| grade(question, response, job, stops)).collect::<Result<_, _>>()?,
    })
}

/// What a made-up answer is worth. One that cannot be graded is an error where it `stops` a run.
fn grade(question: &Question, response: String, job: &Job, stops: bool) -> Result<ShownGrade, Error> {
    let tokens = job.base.processor.tokenizer().encode(&response).unwrap_or_default();
    let completion = Completion { tokens, text: response.clone(), ..Completion::default() };
    match job.grader.reward(question, &completion) {
        Ok(reward) => Ok(ShownGrade {
            response,
            reward: reward.total(),
            parts: reward.parts.into_iter().map(|part| (part.name, part.value)).collect(),
            failed: None,
        }),
        Err(source) if stops => Err(TrainerError::Reward { group: 0, completion: 0, source }.into()),
        Err(error) => Ok(ShownGrade { response, reward: None, parts: Vec::new(), failed: Some(chain(&*error)) }),
    }
}

fn memory(questions: &[Question], job: &Job, config: &RunConfig) -> String {
    let settings = &config.reinforcement;
    let text = |question: &Question| question.prompt.tokens().len() - question.prompt.image_tokens();
    let longest = questions.iter().max_by_key(|question| question.prompt.tokens().len());
    let (images, image_tokens): (Vec<Grid>, usize) =
        longest.map_or((Vec::new(), 0), |longest| (longest.prompt.grids(), longest.prompt.image_tokens()));
    let text_tokens = questions.iter().map(text).max().unwrap_or_default();
    let tokens = text_tokens + image_tokens;
    let prompts = match settings.micro_batch {
        MicroBatch::Groups(groups) => groups,
        MicroBatch::Tokens(budget) => budget / (tokens + settings.group_size * settings.max_tokens),
    };
    let workload = Workload {
        prompts: prompts.clamp(1, settings.prompts / settings.mini_batches),
        generation_prompts: settings.prompts.min(crate::reinforcement::SAMPLING_BATCH),
        completions: settings.group_size,
        text_tokens,
        images,
        completion_tokens: settings.max_tokens,
    };
    let frozen: &[Component] =
        if config.trainable.freeze_vision_tower { &[Component::Vision, Component::Merger] } else { &[] };
    let trained = Trained {
        frozen,
        lora: config.trainable.lora.as_ref(),
        activation_checkpointing: config.activation_checkpointing,
    };
    let (hardware, precision) = (hardware(&config.device), precision(&config.device, config.dtype.into()));
    let plan = |workload: &Workload| MemoryPlan::new(&job.base.model_config, workload, trained, hardware, precision);
    // Greedy answers are drawn for more questions at a time than rollouts are.
    let measuring = plan(&Workload {
        generation_prompts: MEASURED_TOGETHER.min(job.questions.held_out(config.evaluation.examples)),
        completions: 1,
        ..workload.clone()
    });
    format!(
        "{}{:<20}{:>10.2} GiB\n\nfor {} prompts of {tokens} tokens at a time and {} completions of {} tokens each, on one \
         thread; a reference policy comes on top",
        plan(&workload),
        "measuring, peak",
        measuring.generation_peak() as f64 / f64::from(1 << 30),
        workload.prompts,
        workload.completions,
        workload.completion_tokens
    )
}

impl Display for DryRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for row in &self.left_out {
            writeln!(f, "{row}")?;
        }
        let train = self.train.map_or("rows without end".into(), |rows| format!("{rows} rows"));
        writeln!(f, "{train} to train on, {} held-out questions", self.held_out)?;
        for prompt in &self.prompts {
            writeln!(f, "\n--- {} ({} tokens)", prompt.origin, prompt.tokens)?;
            for [(width, height), (seen_width, seen_height)] in &prompt.images {
                writeln!(f, "image of {width} x {height} pixels, seen at {seen_width} x {seen_height}")?;
            }
            writeln!(f, "{}", prompt.text.trim_end())?;
            writeln!(f, "answer: {}", prompt.answer.as_deref().unwrap_or("none"))?;
            for grade in &prompt.grades {
                let value = |value: Option<f32>| value.map_or("none".into(), |value| value.to_string());
                let parts: Vec<String> =
                    grade.parts.iter().map(|(name, part)| format!("{name} {}", value(*part))).collect();
                match &grade.failed {
                    Some(reason) => writeln!(f, "  {:?} cannot be graded: {reason}", grade.response)?,
                    None => {
                        writeln!(f, "  {:?} is worth {} ({})", grade.response, value(grade.reward), parts.join(", "))?;
                    }
                }
            }
        }
        write!(f, "\n{}\n\n{}", self.trainable, self.memory)
    }
}
