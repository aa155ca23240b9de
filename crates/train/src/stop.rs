use std::io::{Write as _, stderr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::Error;
use crate::progress::terminal::above;

/// Asks a run to stop after the step it is at; clones ask the same run.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Asked for by an interrupt (Ctrl-C) or the signal to terminate, and says so on the standard error stream; a second
    /// one ends the process at once, with code 130.
    ///
    /// # Errors
    /// When the process has handlers of its own already.
    pub fn on_signals() -> Result<Self, Error> {
        let stop = Self::default();
        let asked = stop.clone();
        ctrlc::set_handler(move || {
            if asked.request() {
                std::process::exit(130);
            }
            above(|| {
                // Whether or not anybody reads it.
                let _ = writeln!(stderr(), "ends after this step; once more ends it at once");
            });
        })?;
        Ok(stop)
    }

    /// Asks for it. Returns whether that had been done before.
    #[must_use = "whoever asks twice may want more than to be heard"]
    pub fn request(&self) -> bool {
        self.0.swap(true, Ordering::Relaxed)
    }

    /// Whether it has been asked for.
    #[must_use]
    pub fn requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
