//! What is in files of rows, for who looks before a run.

use std::fmt::{self, Display};
use std::path::PathBuf;

use firesight_data::{DataSet, Layout, Row, Spread};
use serde::Serialize;

use crate::Error;

/// Rows whose images are measured.
const SAMPLE: u64 = 200;
/// Rows that are shown.
const SHOWN: usize = 3;

/// What is in files of rows.
#[derive(Debug, Clone, Serialize)]
pub struct Inspection {
    /// Each file with the rows that can be used and those that cannot.
    pub files: Vec<(PathBuf, u64, u64)>,
    /// Names and types of the columns; dots lead into structures.
    pub columns: Vec<(String, String)>,
    /// Rows without an answer.
    pub answers_missing: u64,
    /// Rows without a worked answer.
    pub completions_missing: u64,
    /// Least, mean and most of some numbers.
    pub numbers: Vec<(&'static str, [f64; 3])>,
    /// What is wrong with rows that cannot be used, and with images of the sample.
    pub problems: Vec<String>,
    /// The first rows: where they are, what is asked, what rewards compare with.
    pub rows: Vec<(String, String, Option<String>)>,
}

/// Looks at all rows of some files.
///
/// # Errors
/// When a file cannot be read, a column that the layout names is in no file, or no row can be used.
pub fn inspect(files: &[PathBuf], layout: &Layout) -> Result<Inspection, Error> {
    let data = DataSet::open(files, layout, usize::MAX)?;
    let summary = data.summary(SAMPLE)?;
    let spread = |(name, of): (_, Spread)| {
        (of.count() > 0).then(|| (name, [of.least() as f64, of.mean(), of.greatest() as f64]))
    };
    let numbers = [
        ("images of a row", summary.images),
        ("characters of a prompt", summary.prompt_characters),
        ("width of an image", summary.image_widths),
        ("height of an image", summary.image_heights),
    ];
    // Those that cannot be used are among the problems.
    let usable = (0..data.len().get()).map(|index| data.row(index));
    let usable = usable.filter(|row| !matches!(row, Err(firesight_data::Error::Row(_))));
    let shown = |row: Result<Row, firesight_data::Error>| {
        let row = row?;
        Ok((row.origin.to_string(), row.prompt, row.answer))
    };
    let unreadable = summary.unreadable_images.iter().map(ToString::to_string);
    Ok(Inspection {
        files: summary.files.iter().map(|file| (file.path.clone(), file.rows, file.bad_rows)).collect(),
        columns: data
            .columns()
            .iter()
            .map(|(name, types)| {
                (
                    name.clone(),
                    types.iter().map(|kind| format!("{kind:?}").to_lowercase()).collect::<Vec<_>>().join(" or "),
                )
            })
            .collect(),
        answers_missing: summary.answers_missing,
        completions_missing: summary.completions_missing,
        numbers: numbers.into_iter().filter_map(spread).collect(),
        problems: data.bad_rows().iter().map(ToString::to_string).chain(unreadable).collect(),
        rows: usable.take(SHOWN).map(shown).collect::<Result<_, Error>>()?,
    })
}

impl Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (path, rows, bad) in &self.files {
            let bad = if *bad > 0 { format!(", {bad} that cannot be used") } else { String::new() };
            writeln!(f, "{}: {rows} rows{bad}", path.display())?;
        }
        writeln!(f, "\ncolumns")?;
        for (name, types) in &self.columns {
            writeln!(f, "  {name:<32}{types}")?;
        }
        writeln!(f, "\n{:<34}{:>10}{:>10}{:>10}", "", "least", "mean", "most")?;
        for (name, [least, mean, most]) in &self.numbers {
            writeln!(f, "  {name:<32}{least:>10}{mean:>10.1}{most:>10}")?;
        }
        writeln!(f, "  {:<32}{:>10}", "rows without an answer", self.answers_missing)?;
        writeln!(f, "  {:<32}{:>10}", "rows without a worked answer", self.completions_missing)?;
        for (origin, question, answer) in &self.rows {
            write!(f, "\n--- {origin}\n{question}\nanswer: {}\n", answer.as_deref().unwrap_or("none"))?;
        }
        if !self.problems.is_empty() {
            writeln!(f, "\nproblems")?;
        }
        for problem in &self.problems {
            writeln!(f, "  {problem}")?;
        }
        Ok(())
    }
}
