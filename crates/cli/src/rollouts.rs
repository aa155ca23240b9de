//! `firesight rollouts`.

use std::cmp::Ordering;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, ValueEnum};
use firesight_train::{RolloutCompletion, RolloutGroup, RolloutNumber, read_rollouts, rollout_steps};
use serde::Serialize;

use crate::output::Output;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The run directory.
    run: PathBuf,
    /// Only this step; may be given several times [default: the last that was written; "all" for all].
    #[arg(long, value_name = "NUMBER|all")]
    step: Vec<Step>,
    /// Only answers to questions, or of questions, that hold this text.
    #[arg(long, value_name = "TEXT")]
    contains: Option<String>,
    /// Only answers worth at least this.
    #[arg(long, value_name = "REWARD", allow_negative_numbers = true)]
    least: Option<f64>,
    /// Only answers worth at most this.
    #[arg(long, value_name = "REWARD", allow_negative_numbers = true)]
    most: Option<f64>,
    /// Only answers that met the length limit.
    #[arg(long)]
    truncated: bool,
    /// The order, lowest first.
    #[arg(long, value_enum, default_value = "place")]
    sort: Sort,
    /// Highest first.
    #[arg(long)]
    descending: bool,
    /// How many to show; 0 for all.
    #[arg(long, default_value_t = 10)]
    show: usize,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Sort {
    /// Step, question, answer.
    Place,
    Reward,
    Advantage,
    /// Tokens.
    Length,
    /// Mean log-probability of the tokens.
    LogProb,
}

/// The steps that are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    All,
    Number(usize),
}

impl FromStr for Step {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "all" => Ok(Self::All),
            number => number.parse().map(Self::Number).map_err(|_| "is a number, or all".into()),
        }
    }
}

/// An answer with what it answers.
#[derive(Serialize)]
struct Row<'a> {
    step: usize,
    index: usize,
    completion: usize,
    origin: Option<&'a str>,
    question: &'a str,
    answer: Option<&'a str>,
    images: Vec<PathBuf>,
    response: &'a RolloutCompletion,
}

pub(crate) fn run(arguments: &Arguments, output: Output) -> anyhow::Result<()> {
    let groups = groups(arguments)?;
    let mut rows: Vec<Row<'_>> = groups.iter().flat_map(|group| rows(group, arguments)).collect();
    let key = |row: &Row<'_>| match arguments.sort {
        Sort::Place => 0.0,
        Sort::Reward => value(row.response.reward.as_ref()),
        Sort::Advantage => value(row.response.advantage.as_ref()),
        Sort::Length => row.response.log_probs.len() as f64,
        Sort::LogProb => {
            let log_probs = &row.response.log_probs;
            log_probs.iter().map(RolloutNumber::value).sum::<f64>() / log_probs.len() as f64
        }
    };
    let order = |a: &Row<'_>, b: &Row<'_>| {
        let (a, b) = (key(a), key(b));
        let known = if arguments.descending { b.total_cmp(&a) } else { a.total_cmp(&b) };
        // What has no number comes last in either direction.
        a.is_nan().cmp(&b.is_nan()).then(if a.is_nan() { Ordering::Equal } else { known })
    };
    rows.sort_by(order);
    let found = rows.len();
    rows.truncate(if arguments.show == 0 { found } else { arguments.show });
    let shown: Vec<String> = rows.iter().map(shown).collect();
    output.result(&rows, format!("{}\n{} of {found} answers", shown.join("\n"), rows.len()))
}

/// Those of the steps that are asked for. Only these are kept in memory.
fn groups(arguments: &Arguments) -> anyhow::Result<Vec<RolloutGroup>> {
    let steps = &arguments.step;
    if !steps.is_empty() {
        let wanted = |step| steps.iter().any(|asked| [Step::All, Step::Number(step)].contains(asked));
        return Ok(read_rollouts(&arguments.run, wanted)?);
    }
    let last = rollout_steps(&arguments.run)?.pop();
    Ok(read_rollouts(&arguments.run, |step| Some(step) == last)?)
}

fn rows<'a>(group: &'a RolloutGroup, arguments: &'a Arguments) -> impl Iterator<Item = Row<'a>> {
    let wanted = |completion: &RolloutCompletion| {
        let reward = value(completion.reward.as_ref());
        let text = arguments.contains.as_ref();
        text.is_none_or(|text| completion.text.contains(text) || group.question.contains(text))
            && arguments.least.is_none_or(|least| reward >= least)
            && arguments.most.is_none_or(|most| reward <= most)
            && (completion.truncated || !arguments.truncated)
    };
    let wanted = group.completions.iter().enumerate().filter(move |(_, completion)| wanted(completion));
    wanted.map(|(place, response)| Row {
        step: group.step,
        index: group.index,
        completion: place,
        origin: group.origin.as_deref(),
        question: &group.question,
        answer: group.answer.as_deref(),
        images: group.images.iter().map(|image| arguments.run.join(image)).collect(),
        response,
    })
}

/// NaN where there is none, which no bound lets through.
fn value(number: Option<&RolloutNumber>) -> f64 {
    number.map_or(f64::NAN, RolloutNumber::value)
}

fn shown(row: &Row<'_>) -> String {
    let Row { step, index, completion, question, response, .. } = row;
    let parts = response.parts.iter().map(|(name, part)| format!("{name} {}", number(part.as_ref())));
    let mut about = vec![row.origin.unwrap_or_default().to_owned()];
    about.extend(row.images.iter().map(|image| image.display().to_string()));
    format!(
        "--- step {step}, prompt {index}, answer {completion}: reward {} ({}), advantage {}, {} tokens{}\n{}\n\
         {question}\nwanted: {}\n\n{}\n",
        number(response.reward.as_ref()),
        parts.collect::<Vec<_>>().join(", "),
        number(response.advantage.as_ref()),
        response.log_probs.len(),
        if response.truncated { ", cut off" } else { "" },
        about.join("\n"),
        row.answer.unwrap_or("none"),
        response.text,
    )
}

fn number(number: Option<&RolloutNumber>) -> String {
    number.map_or("none".into(), |number| format!("{:.3}", number.value()))
}
