//! A few rollouts of a step as a person would look at them: the picture, and what was said about it.

use std::fmt::Write as _;

use firesight_rl::{Completion, Group, StepReport, TokenCredit};

use crate::Error;
use crate::policy::VlmPrompt;
use crate::questions::Question;
use crate::rollouts::png;
use crate::run_directory::RunDirectory;

/// Writes `samples/step<step>-<n>.png` and `.txt` for the first `count` groups of a step.
pub(crate) fn write_samples(
    run: &RunDirectory,
    step: usize,
    questions: &[Question],
    report: &StepReport<VlmPrompt>,
    count: usize,
) -> Result<(), Error> {
    for (index, (question, group)) in questions.iter().zip(&report.groups).take(count).enumerate() {
        let name = format!("samples/step{step:04}-{index}");
        for (number, picture) in question.example.images.iter().enumerate() {
            let number = if number == 0 { String::new() } else { format!("-image{}", number + 1) };
            run.write(&format!("{name}{number}.png"), &png(&picture.pixels))?;
        }
        let text = describe(question, group, &report.advantages[index], &report.credit[index]);
        run.write(&format!("{name}.txt"), text.as_bytes())?;
    }
    Ok(())
}

fn describe(question: &Question, group: &Group<VlmPrompt>, advantages: &[f32], credit: &[TokenCredit]) -> String {
    let example = &question.example;
    let mut text =
        format!("{}\n{}\nanswer: {}\n", example.origin, example.question, example.answer.as_deref().unwrap_or("none"));
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
        // What is not trained on has no weights: a group without an advantage, a completion that is masked.
        match credit.get(index).map(|credit| credit.weights.as_slice()) {
            None => text.push_str("    no credit weights: the rewards of the group are all equal\n"),
            Some([]) => text.push_str("    no credit weights: left out of the loss\n"),
            Some(weights) => {
                let _ = writeln!(text, "    credit weights {}", runs(weights));
            }
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
