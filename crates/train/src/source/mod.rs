//! Where the examples of a run come from.

mod charts;
mod files;

pub use files::Files;

use crate::Error;
use crate::example::Example;
use crate::questions::Purpose;
use crate::task::Charts;

/// Where the examples of a run come from. Example number n of a purpose does not depend on which were asked for before,
/// so how many a run has used up is all that it needs to go on. (Whether a row that cannot be used is an error depends on
/// how many others were.)
#[derive(Debug)]
pub enum Source {
    /// The built-in task.
    Charts(Charts),
    /// Rows of files.
    Files(Files),
}

impl Source {
    /// Example number `index` of a purpose, of a run with this seed, and what `render` makes of it.
    ///
    /// # Errors
    /// When it cannot be read or rendered.
    pub(crate) fn example<T>(
        &self,
        purpose: Purpose,
        seed: u64,
        index: u64,
        render: impl Fn(&Example) -> Result<T, Error>,
    ) -> Result<(Example, T), Error> {
        match self {
            Self::Charts(charts) => {
                let example = charts::example(charts, purpose, seed, index);
                let rendered = render(&example)?;
                Ok((example, rendered))
            }
            Self::Files(files) => files.example(purpose, seed, index, render),
        }
    }

    /// How many examples there are to train on; `None` when they never end.
    pub(crate) fn train(&self) -> Option<usize> {
        match self {
            Self::Charts(_) => None,
            Self::Files(files) => Some(files.train()),
        }
    }

    /// How many held-out examples there are; `None` when they never end.
    pub(crate) fn held_out(&self) -> Option<usize> {
        match self {
            Self::Charts(_) => None,
            Self::Files(files) => Some(files.held_out()),
        }
    }

    /// What was passed over since this was last asked.
    pub(crate) fn passed_over(&self) -> Vec<String> {
        match self {
            Self::Charts(_) => Vec::new(),
            Self::Files(files) => files.passed_over(),
        }
    }
}

impl From<Charts> for Source {
    fn from(charts: Charts) -> Self {
        Self::Charts(charts)
    }
}

impl From<Files> for Source {
    fn from(files: Files) -> Self {
        Self::Files(files)
    }
}
