//! What a comparison says, as a table.

use comfy_table::presets::{ASCII_MARKDOWN, UTF8_BORDERS_ONLY};
use comfy_table::{CellAlignment, Table, TableStyle};

use super::findings::{Findings, Found};
use super::statistics::Mean;

impl Findings {
    /// The table for a terminal.
    #[must_use]
    pub fn table(&self) -> String {
        self.rendered(UTF8_BORDERS_ONLY)
    }

    /// The same in Markdown.
    #[must_use]
    pub fn markdown(&self) -> String {
        self.rendered(ASCII_MARKDOWN)
    }

    /// What is in the table, in a few sentences.
    #[must_use]
    pub fn legend(&self) -> String {
        let legend = format!(
            "Held-out accuracy in percent after {} steps ({} questions, greedy), ± standard error over the seeds.\n\
             A difference, in points, is paired over the seeds; one below twice its standard error means nothing.\n\
             p: paired t-test, two-sided, not corrected for several tests.\n\
             Cost: seconds of a step, measuring left out, relative to those of the row that is subtracted.",
            self.steps, self.questions
        );
        let ungraded = self.rows.iter().filter(|row| row.ungraded > 0);
        let ungraded: Vec<String> = ungraded.map(|row| format!("{} {}", row.name, row.ungraded)).collect();
        if ungraded.is_empty() {
            return legend;
        }
        format!("{legend}\nAnswers that could not be graded, and count as not right: {}.", ungraded.join(", "))
    }

    fn rendered(&self, style: TableStyle) -> String {
        let mut table = Table::new();
        table.load_style(style);
        table.set_header(["", "accuracy", "minus", "difference", "p", "cost", "seeds"]);
        let seeds = self.seeds.len().to_string();
        let warm_up = self.warm_up.map_or(String::new(), |mean| points(mean, false));
        table.add_row(["after the warm-up", &warm_up, "", "", "", "", &seeds]);
        for row in &self.rows {
            table.add_row(cells(row));
        }
        for (place, column) in table.column_iter_mut().enumerate() {
            if place != 0 && place != 2 {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        format!("{table}\n\n{}", self.legend())
    }
}

fn cells(row: &Found) -> [String; 7] {
    let shown = |mean: Option<Mean>, signed| mean.map_or(String::new(), |mean| points(mean, signed));
    let p = row.p.map_or(String::new(), |p| if p < 0.001 { "<0.001".into() } else { format!("{p:.3}") });
    [
        row.name.clone(),
        shown(row.accuracy, false),
        row.base.clone().unwrap_or_default(),
        shown(row.difference, true),
        p,
        row.cost
            .map_or(String::new(), |Mean { mean, standard_error }| with_error(format!("{mean:.2}"), standard_error, 2)),
        row.seeds.len().to_string(),
    ]
}

/// A share in percent.
fn points(Mean { mean, standard_error }: Mean, signed: bool) -> String {
    // Nothing is minus zero.
    let mean = (1000.0 * mean).round() / 10.0 + 0.0;
    let mean = if signed { format!("{mean:+.1}") } else { format!("{mean:.1}") };
    with_error(mean, standard_error.map(|error| 100.0 * error), 1)
}

fn with_error(mean: String, standard_error: Option<f64>, digits: usize) -> String {
    match standard_error {
        Some(error) => format!("{mean} ± {error:.digits$}"),
        None => mean,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_stand_beside_means_and_ungraded_answers_below() {
        let mean = |mean, error| Some(Mean { mean, standard_error: error });
        let row = |name: &str, base: Option<&str>, ungraded| Found {
            name: name.into(),
            seeds: vec![0, 1],
            accuracy: mean(0.7004, Some(0.012)),
            base: base.map(Into::into),
            difference: base.and_then(|_| mean(-0.0002, Some(0.003))),
            p: base.map(|_| 0.0004),
            ungraded,
            cost: base.and_then(|_| mean(1.074, Some(0.031))),
        };
        let rows = vec![row("uniform", None, 0), row("vppo", Some("uniform"), 0)];
        let mut findings = Findings { steps: 5, questions: 9, seeds: vec![0, 1], warm_up: mean(0.5, None), rows };
        let table = findings.markdown();
        let cells = |line: usize| table.lines().nth(line).unwrap_or("").split('|').map(str::trim).collect::<Vec<_>>();
        assert_eq!(cells(2)[1..4], ["after the warm-up", "50.0", ""]);
        let expected = ["vppo", "70.0 ± 1.2", "uniform", "+0.0 ± 0.3", "<0.001", "1.07 ± 0.03", "2"];
        assert_eq!(cells(4)[1..8], expected);
        assert!(!table.contains("graded"), "{table}");
        findings.rows[1].ungraded = 3;
        assert!(findings.legend().ends_with("count as not right: vppo 3."));
    }
}
