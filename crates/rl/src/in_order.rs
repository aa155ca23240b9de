use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use crate::Error;
use crate::pool::{Pool, Threads};

/// Runs `jobs` numbered jobs with one worker each at a time and folds their results in the order of their numbers, so
/// the outcome does not depend on how many workers there are.
///
/// Every worker but the calling thread has a rayon pool of its own, and `threads` are divided among them: where there
/// are as many workers as threads, the tensor operations of a job are spread no further, and hand nothing to another
/// thread. One pool for all of them would not do: autodiff holds a lock while it runs operations, and a task of another
/// job, stolen in the middle of one, could want the same lock.
///
/// # Errors
/// That of the job with the smallest number, of those that failed; later jobs are then not started.
pub(crate) fn in_order<W: Send, T: Send>(
    workers: Vec<W>,
    threads: Threads,
    jobs: usize,
    work: impl Fn(&mut W, usize) -> Result<T, Error> + Sync,
    mut fold: impl FnMut(T) -> Result<(), Error>,
) -> Result<(), Error> {
    let count = workers.len();
    let pool = |worker| Ok((worker, Pool::share(threads, count)?));
    let mut workers = workers.into_iter().map(pool).collect::<Result<Vec<(W, Pool)>, Error>>()?;
    let work = |(worker, pool): &mut (W, Pool), job| pool.run(|| work(worker, job));
    if let [worker] = workers.as_mut_slice() {
        return (0..jobs).try_for_each(|job| fold(work(worker, job)?));
    }
    let next = AtomicUsize::new(0);
    let failed = AtomicBool::new(false);
    let (sender, receiver) = mpsc::channel();
    thread::scope(|scope| {
        for mut worker in workers {
            let (sender, work, next, failed) = (sender.clone(), &work, &next, &failed);
            scope.spawn(move || {
                while !failed.load(Ordering::Relaxed) {
                    let job = next.fetch_add(1, Ordering::Relaxed);
                    if job >= jobs {
                        break;
                    }
                    let result = work(&mut worker, job);
                    failed.fetch_or(result.is_err(), Ordering::Relaxed);
                    // The receiver is gone when an earlier job or the fold has failed: nobody wants this result.
                    if sender.send((job, result)).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        let mut early = BTreeMap::new();
        let mut expected = 0;
        for (job, result) in receiver {
            early.insert(job, result);
            while let Some(result) = early.remove(&expected) {
                fold(result?)?;
                expected += 1;
            }
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Duration;

    use burn::tensor::Device;

    use super::{Threads, in_order};
    use crate::Error;

    #[test]
    fn results_arrive_in_order_although_the_first_job_is_the_slowest() {
        for workers in 1..4 {
            let mut found = Vec::new();
            in_order(
                vec![(); workers],
                Threads::Own(4),
                9,
                |(), job| {
                    thread::sleep(Duration::from_millis(if job == 0 { 30 } else { 1 }));
                    Ok(job)
                },
                |job| {
                    found.push(job);
                    Ok(())
                },
            )
            .unwrap();
            assert_eq!(found, (0..9).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_first_failure_is_the_one_reported() {
        for workers in 1..4 {
            let mut folded = 0;
            let outcome = in_order(
                vec![(); workers],
                Threads::Own(1),
                6,
                |(), job| {
                    thread::sleep(Duration::from_millis(if job == 2 { 20 } else { 1 }));
                    if job >= 2 { Err(Error::NonFiniteReward { group: job, completion: 0 }) } else { Ok(()) }
                },
                |()| {
                    folded += 1;
                    Ok(())
                },
            );
            assert!(matches!(outcome, Err(Error::NonFiniteReward { group: 2, .. })), "{outcome:?}");
            assert_eq!(folded, 2);
        }
    }

    #[test]
    fn a_caller_that_wants_no_threads_gets_none() {
        let threads = |threads: Threads| {
            let mut found = Vec::new();
            let workers = vec![(); threads.workers(3)];
            in_order(
                workers,
                threads,
                3,
                |(), _| Ok(thread::current().id()),
                |id| {
                    found.push(id);
                    Ok(())
                },
            )
            .unwrap();
            found
        };
        let own = thread::current().id();
        assert_eq!(threads(Threads::Caller), [own; 3]);
        assert!(threads(Threads::Own(1)).iter().all(|id| *id != own));
        // Nor does one that is a pool by itself: it would only wait.
        let alone = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        let (outer, inner) = alone.install(|| (thread::current().id(), threads(Threads::Own(1))));
        assert_eq!(inner, [outer; 3]);
        assert_eq!(Threads::on(&Device::flex().autodiff(), 2), Threads::Own(2));
    }
}
