use std::path::PathBuf;

/// What can go wrong when rewards are made and when they grade.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// What one reward of the list failed with.
    #[error("reward {name:?}: {reason}")]
    Reward {
        /// Its name.
        name: String,
        /// What happened.
        reason: Box<Error>,
    },
    /// A setting out of range.
    #[error("{key} {problem}")]
    Setting {
        /// Its key in the entry of the list.
        key: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// A kind that this build leaves out.
    #[error("kind = {kind:?} needs a build with the cargo feature `{feature}`")]
    Feature {
        /// The kind.
        kind: &'static str,
        /// The feature.
        feature: &'static str,
    },
    /// The row has no answer, and this reward compares with one.
    #[error("the row has no answer to compare with")]
    NoAnswer,
    /// The answer of the row is of no use to this reward.
    #[error("the answer of the row, {answer:?}, {problem}")]
    Answer {
        /// The answer.
        answer: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A column of the row is of no use to this reward.
    #[error("column {column:?} of the row {problem}")]
    Column {
        /// The column.
        column: String,
        /// What is wrong with it.
        problem: String,
    },
    /// An image of the row is of no use to this reward.
    #[error("image {index} of the row {problem}")]
    Image {
        /// Which one, from 0.
        index: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// A reward that is no finite number.
    #[error("the value {value} is not finite")]
    NotFinite {
        /// The value.
        value: f32,
    },
    /// A reward that panicked.
    #[error("panicked: {message}")]
    Panicked {
        /// What it said.
        message: String,
    },
    /// A program that could not be started.
    #[error("cannot start {program:?}: {reason}")]
    Start {
        /// The program.
        program: String,
        /// What the operating system said.
        reason: std::io::Error,
    },
    /// A program that did not answer as it should; it was ended.
    #[error("{program:?} {problem}{}", after(stderr))]
    Program {
        /// The program.
        program: String,
        /// What it did.
        problem: String,
        /// The last lines of its standard error; empty where it wrote none.
        stderr: String,
    },
    /// What a program answered instead of a score.
    #[error("{program:?} says: {message}")]
    ProgramSays {
        /// The program.
        program: String,
        /// The text under `error`.
        message: String,
    },
    /// A judge that did not answer as it should.
    #[error("{url}: {problem}")]
    Judge {
        /// The endpoint.
        url: String,
        /// What happened.
        problem: String,
    },
    /// A file could not be read or written.
    #[error("{path}: {reason}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        reason: std::io::Error,
    },
    /// A file that is no cache.
    #[error("{path}:{line} is no line of a cache: {problem}")]
    Cache {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// What a reward of somebody's own failed with.
    #[error(transparent)]
    Other(#[from] Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    /// Says which reward it was.
    pub(crate) fn of(self, name: &str) -> Self {
        Self::Reward { name: name.into(), reason: Box::new(self) }
    }

    pub(crate) fn setting(key: &'static str, problem: impl Into<String>) -> Self {
        Self::Setting { key, problem: problem.into() }
    }

    pub(crate) fn answer(answer: &str, problem: impl Into<String>) -> Self {
        Self::Answer { answer: answer.into(), problem: problem.into() }
    }

    pub(crate) fn column(column: &str, problem: impl Into<String>) -> Self {
        Self::Column { column: column.into(), problem: problem.into() }
    }
}

/// The last lines of a standard error, below the message.
fn after(stderr: &str) -> String {
    if stderr.is_empty() { String::new() } else { format!("; its standard error ends in:\n{stderr}") }
}
