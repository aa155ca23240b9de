use std::fmt;
use std::path::PathBuf;

/// Where a row comes from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin {
    /// The data file.
    pub file: PathBuf,
    /// Counted from 1: the line of a JSONL file, the row of a Parquet file.
    pub row: u64,
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}, row {}", self.file.display(), self.row)
    }
}

/// A row that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadRow {
    /// Where it is.
    pub origin: Origin,
    /// The column, its name dotted where it lies in a struct; `None` if the whole row is meant.
    pub column: Option<String>,
    /// What is wrong with it.
    pub problem: String,
}

impl fmt::Display for BadRow {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.origin)?;
        if let Some(column) = &self.column {
            write!(formatter, ", column {column}")?;
        }
        write!(formatter, ": {}", self.problem)
    }
}

impl std::error::Error for BadRow {}

/// What is wrong with a row whose place the caller knows.
#[derive(Debug)]
pub(crate) struct Problem {
    pub(crate) column: Option<String>,
    pub(crate) problem: String,
}

impl Problem {
    pub(crate) fn of_row(problem: impl Into<String>) -> Self {
        Self { column: None, problem: problem.into() }
    }

    pub(crate) fn of_column(column: &str, problem: impl Into<String>) -> Self {
        Self { column: Some(column.into()), problem: problem.into() }
    }

    pub(crate) fn at(self, origin: Origin) -> BadRow {
        BadRow { origin, column: self.column, problem: self.problem }
    }
}

/// What can go wrong with a data set.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or directory could not be read.
    #[error("cannot read {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },
    /// A file that is no Parquet, or is damaged.
    #[error("cannot read {path} as Parquet")]
    Parquet {
        /// The file.
        path: PathBuf,
        /// What the reader found.
        #[source]
        source: parquet::errors::ParquetError,
    },
    /// A file that is not read as it is: of another kind, or with bytes where a text is wanted.
    #[error("{path}: {problem}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is the matter with it.
        problem: String,
    },
    /// A directory without data files.
    #[error("{path} holds no .jsonl, .ndjson or .parquet file")]
    NoFiles {
        /// The directory.
        path: PathBuf,
    },
    /// A file that was written to after the data set was opened.
    #[error("{path} has changed since the data set was opened")]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// A setting out of range.
    #[error("{key} {problem}")]
    Setting {
        /// Dotted key of the layout.
        key: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// A template that is no Jinja.
    #[error("template: {source}")]
    Template {
        /// Line and reason.
        source: minijinja::Error,
    },
    /// A column that no file has.
    #[error("{key}: there is no column {column:?}; there are: {available}")]
    Column {
        /// Dotted key of the layout.
        key: String,
        /// The column it names.
        column: String,
        /// The columns that there are, with dots for fields of structs.
        available: String,
    },
    /// More rows that cannot be used than there may be.
    #[error("{} cannot be used:\n{}{}", rows(bad.len() as u64 + more), lines(bad), and_more(*more))]
    Rows {
        /// The first of them in the order of the files.
        bad: Vec<BadRow>,
        /// How many more there are.
        more: u64,
    },
    /// No rows, or none that can be used.
    #[error("the data set is empty: {files} without a row that can be used")]
    Empty {
        /// The files.
        files: String,
    },
    /// A row that cannot be used.
    #[error(transparent)]
    Row(#[from] BadRow),
    /// A row beyond the end.
    #[error("there is no row {index}: the data set has {len}")]
    Index {
        /// The row, counted from 0.
        index: u64,
        /// How many rows there are.
        len: u64,
    },
    /// An image that cannot be decoded.
    #[error("{origin}, image {image}{}", named(path.as_deref()))]
    Image {
        /// The row.
        origin: Origin,
        /// Counted from 1 within the row.
        image: usize,
        /// What the data file calls it.
        path: Option<String>,
        /// What the decoder found.
        #[source]
        source: Box<image::ImageError>,
    },
}

impl Error {
    /// The row that the error is about, if others may be in order: one that cannot be used, or an image of it.
    #[must_use]
    pub fn row(&self) -> Option<&Origin> {
        match self {
            Self::Row(bad) => Some(&bad.origin),
            Self::Image { origin, .. } => Some(origin),
            _ => None,
        }
    }
}

fn rows(count: u64) -> String {
    if count == 1 { "a row".into() } else { format!("{count} rows") }
}

fn lines(bad: &[BadRow]) -> String {
    bad.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

fn and_more(more: u64) -> String {
    if more == 0 { String::new() } else { format!("\nand {more} more") }
}

fn named(path: Option<&str>) -> String {
    path.map(|path| format!(" ({path})")).unwrap_or_default()
}
