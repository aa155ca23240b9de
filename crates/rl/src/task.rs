use crate::{Completion, Reward};

/// What a task fails with: whatever its author likes.
pub type TaskError = Box<dyn std::error::Error + Send + Sync>;

/// A verifiable task: it turns a sample into a prompt and grades the answers.
///
/// A task that fails says so: an error stops the step and is reported with the place it happened at, since a reward
/// of zero for a broken verifier would be trained on.
pub trait Task {
    /// One row of the data.
    type Sample;
    /// What the policy is conditioned on.
    type Prompt;

    /// Renders the prompt of a sample.
    ///
    /// # Errors
    /// When the sample cannot be rendered.
    fn prompt(&self, sample: &Self::Sample) -> Result<Self::Prompt, TaskError>;

    /// Grades one completion. The total has to be finite.
    ///
    /// # Errors
    /// When the verifier itself fails; an answer that is merely wrong has a reward.
    fn reward(&self, sample: &Self::Sample, completion: &Completion) -> Result<Reward, TaskError>;

    /// What a stronger model answered to a sample, as the policy would have said it, where there is such a thing; asked
    /// for with [`crate::Algorithm::expert`] alone. Of the completion only the tokens and the text are read.
    ///
    /// # Errors
    /// When the answer cannot be encoded.
    fn expert(&self, _sample: &Self::Sample) -> Result<Option<Completion>, TaskError> {
        Ok(None)
    }

    /// Grades all completions of a rollout, each with its sample, in their order: one after the other unless the task
    /// knows better, as one does that waits for other programs.
    fn rewards(&self, batch: &[(&Self::Sample, &Completion)]) -> Vec<Result<Reward, TaskError>> {
        batch.iter().map(|(sample, completion)| self.reward(sample, completion)).collect()
    }
}
