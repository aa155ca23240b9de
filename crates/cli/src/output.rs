//! How results and progress are shown.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write as _, stdout};

use firesight_train::{Progress, harmless_lines};
use serde::Serialize;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    pub(crate) json: bool,
    pub(crate) quiet: bool,
}

impl Output {
    pub(crate) fn progress(self) -> Progress {
        match self {
            Self { quiet: true, .. } => Progress::silent(),
            Self { json: true, .. } => Progress::json(),
            Self { .. } => Progress::detect(),
        }
    }

    /// Prints a result: for a program, or for a person.
    pub(crate) fn result(self, value: &impl Serialize, shown: impl Display) -> anyhow::Result<()> {
        let mut out = stdout().lock();
        if self.json {
            serde_json::to_writer_pretty(&mut out, value).map_err(io::Error::from)?;
            writeln!(out)?;
        } else {
            // What models, data and other programs say is in it.
            writeln!(out, "{}", harmless_lines(&shown.to_string()))?;
        }
        Ok(())
    }
}

/// Whether nobody reads the output any more.
pub(crate) fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}
