use std::error::Error;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use crate::{Completion, Reward, Task};

/// A task whose rewards have to come within a time, for verifiers that may hang.
///
/// Every reward is computed on a thread of its own. One that overruns its deadline is an error of that reward, which
/// [`crate::Options::reward_failure`] turns into the end of the step or an abstention; its thread cannot be stopped and
/// is left to itself.
#[derive(Debug)]
pub struct Deadline<T> {
    task: Arc<T>,
    limit: Duration,
}

impl<T> Deadline<T> {
    /// Wraps a task.
    #[must_use]
    pub fn new(task: T, limit: Duration) -> Self {
        Self { task: Arc::new(task), limit }
    }
}

impl<T> Task for Deadline<T>
where
    T: Task + Send + Sync + 'static,
    T::Sample: Clone + Send + 'static,
{
    type Sample = T::Sample;
    type Prompt = T::Prompt;

    fn prompt(&self, sample: &T::Sample) -> Result<T::Prompt, Box<dyn Error + Send + Sync>> {
        self.task.prompt(sample)
    }

    fn reward(&self, sample: &T::Sample, completion: &Completion) -> Result<Reward, Box<dyn Error + Send + Sync>> {
        let (sender, receiver) = mpsc::channel();
        let (task, sample, completion) = (self.task.clone(), sample.clone(), completion.clone());
        thread::Builder::new().name("reward".into()).spawn(move || {
            // Nobody listens any more once the deadline is over.
            let _ = sender.send(task.reward(&sample, &completion));
        })?;
        match receiver.recv_timeout(self.limit) {
            Ok(reward) => reward,
            Err(RecvTimeoutError::Timeout) => Err(format!("no reward within {:?}", self.limit).into()),
            Err(RecvTimeoutError::Disconnected) => Err("the reward function panicked".into()),
        }
    }
}
