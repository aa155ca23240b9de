//! A few rollouts of a step as a person would look at them: the picture, and what was said about it.

use std::fmt::Write as _;
use std::io::Cursor;
use std::path::PathBuf;

use firesight_rl::{Completion, Group, Reward};
use image::{ImageFormat, RgbImage};
use serde_json::{Value, json};

use crate::Error;
use crate::examples::Question;
use crate::policy::VlmPrompt;
use crate::reinforcement::Report;
use crate::run_directory::RunDirectory;

/// Writes `samples/step<step>-<n>.png` and `.txt` for the first `count` groups of a step.
pub(crate) fn write_samples(
    run: &RunDirectory,
    step: usize,
    questions: &[Question],
    report: &Report,
    count: usize,
) -> Result<(), Error> {
    for (index, (question, group)) in questions.iter().zip(&report.groups).take(count).enumerate() {
        let name = format!("samples/step{step:04}-{index}");
        run.write(&format!("{name}.png"), &png(&question.example.image))?;
        let text = describe(question, group, &report.advantages[index], &report.credit[index]);
        run.write(&format!("{name}.txt"), text.as_bytes())?;
    }
    Ok(())
}

/// Writes everything an update was to learn from: one line of JSON a group, with a picture beside it.
pub(crate) fn write_batch(
    run: &RunDirectory,
    step: usize,
    questions: &[Question],
    groups: &[Group<VlmPrompt>],
) -> Result<PathBuf, Error> {
    let name = format!("failed/step{step:04}");
    let mut lines = String::new();
    for (index, (question, group)) in questions.iter().zip(groups).enumerate() {
        let image = format!("{name}-{index}.png");
        run.write(&image, &png(&question.example.image))?;
        let completions: Vec<Value> = group.completions.iter().zip(&group.rewards).map(completion_json).collect();
        let line = json!({
            "question": question.example.question,
            "answer": question.example.answer,
            "image": image,
            "prompt_tokens": group.prompt.tokens(),
            "completions": completions,
        });
        let _ = writeln!(lines, "{line}");
    }
    run.write(&format!("{name}.jsonl"), lines.as_bytes())
}

fn completion_json((completion, reward): (&Completion, &Reward)) -> Value {
    // As text where JSON has no number for it: a reward that is not finite is what is looked for here.
    let number = |value: f32| if value.is_finite() { json!(value) } else { json!(value.to_string()) };
    json!({
        "text": completion.text,
        "tokens": completion.tokens,
        "log_probs": completion.log_probs.iter().copied().map(number).collect::<Vec<_>>(),
        "truncated": completion.truncated,
        "reward": reward.total().map(number),
    })
}

fn png(image: &RgbImage) -> Vec<u8> {
    let mut png = Cursor::new(Vec::new());
    image.write_to(&mut png, ImageFormat::Png).expect("a picture with pixels is encoded into memory");
    png.into_inner()
}

fn describe(question: &Question, group: &Group<VlmPrompt>, advantages: &[f32], credit: &[Vec<f32>]) -> String {
    let example = &question.example;
    let mut text = format!("{}\n{}\nanswer: {}\n", example.title, example.question, example.answer);
    for (index, completion) in group.completions.iter().enumerate() {
        let reward = &group.rewards[index];
        let _ = writeln!(
            text,
            "\n--- completion {index}: reward {}, advantage {:+.3}",
            shown_value(reward.total()),
            advantages[index]
        );
        for part in &reward.parts {
            let _ = writeln!(text, "    {} {}", part.name, shown_value(part.value));
        }
        // A group without an advantage is not trained on and has no weights.
        match credit.get(index) {
            Some(weights) => {
                let _ = writeln!(text, "    credit weights {}", runs(weights));
            }
            None => text.push_str("    no credit weights: the rewards of the group are all equal\n"),
        }
        let _ = writeln!(text, "{}", shown(completion));
    }
    text
}

/// Equal neighbours as `weight x tokens`: a paragraph's tokens share their weight.
fn runs(weights: &[f32]) -> String {
    let equal = |a: &f32, b: &f32| (a - b).abs() < 1e-6;
    let runs: Vec<String> = weights.chunk_by(equal).map(|run| format!("{:.3} x {}", run[0], run.len())).collect();
    runs.join(", ")
}

fn shown_value(value: Option<f32>) -> String {
    value.map_or_else(|| "none".into(), |value| value.to_string())
}

fn shown(completion: &Completion) -> String {
    format!("{}{}", completion.text, if completion.truncated { " [cut off at the length limit]" } else { "" })
}
