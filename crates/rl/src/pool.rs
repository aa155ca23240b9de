//! Thread pools of their own for jobs that run side by side.

use std::sync::{Mutex, PoisonError};

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::Error;

/// Pools that nobody uses now. Their threads hold what matrix products work with, which is costly to make anew.
static IDLE: Mutex<Vec<ThreadPool>> = Mutex::new(Vec::new());

/// A pool that is the holder's alone.
pub(crate) struct Pool(Option<ThreadPool>);

impl Pool {
    /// Of so many threads.
    ///
    /// # Errors
    /// [`Error::Threads`].
    pub(crate) fn new(threads: usize) -> Result<Self, Error> {
        let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
        let pool = match idle.iter().position(|pool| pool.current_num_threads() == threads) {
            Some(index) => idle.swap_remove(index),
            None => ThreadPoolBuilder::new().num_threads(threads).build().map_err(Error::Threads)?,
        };
        Ok(Self(Some(pool)))
    }

    /// Runs `work` on one of its threads.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        match &self.0 {
            Some(pool) => pool.install(work),
            None => work(),
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        IDLE.lock().unwrap_or_else(PoisonError::into_inner).extend(self.0.take());
    }
}
