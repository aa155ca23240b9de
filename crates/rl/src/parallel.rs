//! Work that is split over threads without the split showing in the result.

use burn::module::Module;
use burn::optim::{GradientsAccumulator, GradientsParams};

use crate::error::check_count;
use crate::in_order::in_order;
use crate::pool::Threads;
use crate::{Completion, Error, Sampler, Sampling};

/// Runs `jobs` forward and backward passes on [`threads`](Threads::on) threads and sums their gradients in the order of
/// the jobs, so that the sum does not depend on the number of threads. Also returns what else the jobs found.
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
    let threads = Threads::on(&device, threads);
    let workers = (0..threads.workers(jobs)).map(|_| module.clone().fork(&device)).collect();
    let mut accumulator = GradientsAccumulator::new();
    let mut found = Vec::with_capacity(jobs);
    in_order(
        workers,
        threads,
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

/// Draws `group_size` completions for every prompt on `threads`, `batch` prompts at a time.
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
    threads: Threads,
) -> Result<Vec<Vec<Completion>>, Error>
where
    P: Sync,
    S: Sampler<P> + Clone + Send,
{
    let draw = |sampler: &S, prompts: &[P], sampling| {
        let groups = sampler.sample(prompts, group_size, sampling)?;
        check_groups(&groups, prompts.len(), group_size)?;
        Ok(groups)
    };
    let groups = draw_in_parallel(sampler, prompts, group_size, sampling, batch, threads, draw)?;
    Ok(groups.into_iter().flatten().collect())
}

/// Runs `draw` over `batch` prompts at a time on `threads`, with the streams of their completions; what it
/// returns comes in the order of the prompts.
pub(crate) fn draw_in_parallel<P: Sync, S: Clone + Send, T: Send>(
    sampler: &S,
    prompts: &[P],
    group_size: usize,
    sampling: Sampling,
    batch: usize,
    threads: Threads,
    draw: impl Fn(&S, &[P], Sampling) -> Result<T, Error> + Sync,
) -> Result<Vec<T>, Error> {
    let batches: Vec<&[P]> = prompts.chunks(batch.max(1)).collect();
    let workers = vec![sampler.clone(); threads.workers(batches.len())];
    let mut drawn = Vec::with_capacity(batches.len());
    in_order(
        workers,
        threads,
        batches.len(),
        |sampler, job| {
            let first_stream = sampling.first_stream + (job * batch * group_size) as u64;
            draw(sampler, batches[job], Sampling { first_stream, ..sampling })
        },
        |found| {
            drawn.push(found);
            Ok(())
        },
    )?;
    Ok(drawn)
}

/// Refuses completions of a sampler that returned another number of anything than it was asked for.
pub(crate) fn check_groups(groups: &[Vec<Completion>], prompts: usize, group_size: usize) -> Result<(), Error> {
    check_count("groups of completions", groups.len(), prompts)?;
    for group in groups {
        check_count("completions in a group", group.len(), group_size)?;
        for completion in group {
            check_count("log-probabilities of a completion", completion.log_probs.len(), completion.tokens.len())?;
        }
    }
    Ok(())
}
