//! Work that is split over threads without the split showing in the result.

use burn::module::Module;
use burn::optim::{GradientsAccumulator, GradientsParams};

use crate::error::check_count;
use crate::in_order::in_order;
use crate::{Completion, Error, Sampler, Sampling};

/// Runs `jobs` forward and backward passes on `threads` threads and sums their gradients in the order of the jobs, so
/// that the sum does not depend on the number of threads. Also returns what else the jobs found.
///
/// Every thread works on a copy of the module whose parameters are leaves of their own: graphs that share a leaf are
/// merged behind one lock, and their backward passes would wait for each other.
///
/// # Errors
/// [`Error::NotDifferentiable`] for a module without parameters; else the first failed job's error.
pub fn gradients_in_parallel<M: Module, T: Send>(
    module: &M,
    jobs: usize,
    threads: usize,
    work: impl Fn(&M, usize) -> Result<(GradientsParams, T), Error> + Sync,
) -> Result<(GradientsParams, Vec<T>), Error> {
    let device = module.devices().first().cloned().ok_or(Error::NotDifferentiable)?;
    let workers = (0..threads.min(jobs)).map(|_| module.clone().fork(&device)).collect();
    let mut accumulator = GradientsAccumulator::new();
    let mut found = Vec::with_capacity(jobs);
    in_order(
        workers,
        jobs,
        |module, job| work(module, job),
        |(gradients, other)| {
            accumulator.accumulate(module, gradients);
            found.push(other);
            Ok(())
        },
    )?;
    Ok((accumulator.grads(), found))
}

/// Draws `group_size` completions for every prompt on `threads` threads, `batch` prompts at a time.
///
/// Completion `i` of the output has stream `first_stream + i`, whatever the batches.
///
/// # Errors
/// The sampler's, and [`Error::Count`] when it returns another number of anything than it was asked for.
pub fn sample_in_parallel<P, S>(
    sampler: &S,
    prompts: &[P],
    group_size: usize,
    sampling: Sampling,
    batch: usize,
    threads: usize,
) -> Result<Vec<Vec<Completion>>, Error>
where
    P: Sync,
    S: Sampler<P> + Clone + Send,
{
    let batches: Vec<&[P]> = prompts.chunks(batch.max(1)).collect();
    let workers = vec![sampler.clone(); threads.min(batches.len())];
    let mut sampled = Vec::with_capacity(prompts.len());
    in_order(
        workers,
        batches.len(),
        |sampler, job| {
            let first_stream = sampling.first_stream + (job * batch * group_size) as u64;
            let groups = sampler.sample(batches[job], group_size, Sampling { first_stream, ..sampling })?;
            check_count("groups of completions", groups.len(), batches[job].len())?;
            for group in &groups {
                check_count("completions in a group", group.len(), group_size)?;
                for completion in group {
                    check_count(
                        "log-probabilities of a completion",
                        completion.log_probs.len(),
                        completion.tokens.len(),
                    )?;
                }
            }
            Ok(groups)
        },
        |groups| {
            sampled.extend(groups);
            Ok(())
        },
    )?;
    Ok(sampled)
}
