//! The scores of a search for vision-critical heads as a table with bars.

use comfy_table::presets::UTF8_BORDERS_ONLY;
use comfy_table::{CellAlignment, Table};
use firesight_kawhi::VisionCriticalHeads;

/// Fewer cells show nothing, more are only wide.
const BAR: std::ops::RangeInclusive<usize> = 10..=60;

/// The share of right answers without each head as a table that is `width` characters wide if its bars can make it so,
/// with the fall from the whole model and the standard error of that, paired over the questions.
#[must_use]
pub fn heads_table(found: &VisionCriticalHeads, width: usize) -> String {
    let around = rendered(found, 1).lines().next().unwrap_or_default().chars().count();
    let table = rendered(found, (width + 1).saturating_sub(around).clamp(*BAR.start(), *BAR.end()));
    let critical: Vec<String> = found.critical.iter().map(ToString::to_string).collect();
    let critical = if critical.is_empty() { "none".into() } else { critical.join(", ") };
    let questions = found.questions.map_or(String::new(), |questions| format!("{questions} "));
    format!(
        "{table}\n± standard error of the fall, paired over the {questions}questions\n\
         | threshold: an accuracy of {}, {} of the whole model's less\ncritical heads: {critical}",
        percent(found.limit()),
        percent(found.threshold),
    )
}

fn rendered(found: &VisionCriticalHeads, bar: usize) -> String {
    let mut table = Table::new();
    table.load_style(UTF8_BORDERS_ONLY);
    table.set_header(["without head", "accuracy", "fall", "±", "", ""]);
    let longest = found.scores.iter().copied().fold(found.baseline, f64::max).max(f64::MIN_POSITIVE);
    let cells = |score: f64| (score / longest * bar as f64).round() as usize;
    let drawn = |score: f64| -> String {
        let (filled, limit) = (cells(score), cells(found.limit()));
        let cell = |at| match at {
            at if at == limit => '|',
            at if at < filled => '█',
            _ => ' ',
        };
        (0..bar).map(cell).collect()
    };
    table.add_row([
        "none".into(),
        percent(found.baseline),
        String::new(),
        String::new(),
        String::new(),
        drawn(found.baseline),
    ]);
    for (head, (&score, &error)) in found.scores.iter().zip(&found.standard_errors).enumerate() {
        let fall = found.fall(head);
        let verdict = match (found.critical.contains(&head), fall < 2.0 * error) {
            (false, _) => "",
            (true, false) => "critical",
            (true, true) => "critical, or chance",
        };
        let points = |share: f64| format!("{:.1}", 100.0 * share);
        table.add_row([head.to_string(), percent(score), points(fall), points(error), verdict.into(), drawn(score)]);
    }
    for column in table.column_iter_mut().take(4) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}
