//! Threads for jobs that run side by side.

use std::sync::{Mutex, PoisonError};

use burn::tensor::Device;
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::Error;

/// Operating-system threads that tensor operations are asked for on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// The one that asks, and no other.
    Caller,
    /// So many of their own.
    Own(usize),
}

impl Threads {
    /// As many as are wanted on burn's CPU backend, flex; [`Self::Caller`] on any other device.
    ///
    /// A GPU is one queue, whoever fills it, so threads gain nothing there. And burn's fusion must not see them: where
    /// one thread used what another had computed, a forward pass on wgpu was silently wrong every few steps (burn
    /// 0.22.1).
    #[must_use]
    pub fn on(device: &Device, wanted: usize) -> Self {
        #[cfg(feature = "flex")]
        if *device == Device::flex() {
            return Self::Own(wanted);
        }
        let _ = (device, wanted);
        Self::Caller
    }

    /// How many of so many jobs run at a time.
    pub(crate) fn workers(self, jobs: usize) -> usize {
        match self {
            Self::Caller => 1,
            Self::Own(threads) => threads.min(jobs),
        }
    }
}

/// Whether this thread is a rayon pool by itself: all that is asked of tensors here is then done by it.
#[must_use]
pub fn in_pool_of_one() -> bool {
    rayon::current_thread_index().is_some() && rayon::current_num_threads() == 1
}

/// Pools that nobody uses now. Their threads hold what matrix products work with, which is costly to make anew.
static IDLE: Mutex<Vec<ThreadPool>> = Mutex::new(Vec::new());

/// A pool that is the holder's alone; without one, its own thread.
pub(crate) struct Pool(Option<ThreadPool>);

impl Pool {
    /// One worker's share of the threads.
    ///
    /// # Errors
    /// [`Error::Threads`].
    pub(crate) fn share(threads: Threads, workers: usize) -> Result<Self, Error> {
        let Threads::Own(threads) = threads else { return Ok(Self(None)) };
        let threads = (threads / workers.max(1)).max(1);
        // Whoever asks is a pool of one already, and would only wait: so one thread does all, and its clock knows it.
        if workers <= 1 && threads == 1 && in_pool_of_one() {
            return Ok(Self(None));
        }
        let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
        let pool = match idle.iter().position(|pool| pool.current_num_threads() == threads) {
            Some(index) => idle.swap_remove(index),
            None => ThreadPoolBuilder::new().num_threads(threads).build().map_err(Error::Threads)?,
        };
        Ok(Self(Some(pool)))
    }

    /// Runs `work` on one of its threads; without any, on this one.
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
