use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use crate::Error;

/// Runs `jobs` numbered jobs on one operating-system thread per worker and folds their results in the order of their
/// numbers, so the outcome does not depend on how many workers there are. With one worker nothing is spawned.
///
/// These are plain threads and no rayon tasks on purpose: autodiff holds a lock while it runs tensor operations that
/// use rayon themselves, and a task stolen in the middle of one could want the same lock.
///
/// # Errors
/// That of the job with the smallest number, of those that failed; later jobs are then not started.
pub(crate) fn in_order<W: Send, T: Send>(
    mut workers: Vec<W>,
    jobs: usize,
    work: impl Fn(&mut W, usize) -> Result<T, Error> + Sync,
    mut fold: impl FnMut(T) -> Result<(), Error>,
) -> Result<(), Error> {
    if workers.len() <= 1 || jobs <= 1 {
        return match workers.first_mut() {
            Some(worker) => (0..jobs).try_for_each(|job| fold(work(worker, job)?)),
            None => Ok(()),
        };
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
    use std::time::Duration;

    use super::in_order;
    use crate::Error;

    #[test]
    fn results_arrive_in_order_although_the_first_job_is_the_slowest() {
        for workers in 1..4 {
            let mut found = Vec::new();
            in_order(
                vec![(); workers],
                9,
                |(), job| {
                    std::thread::sleep(Duration::from_millis(if job == 0 { 30 } else { 1 }));
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
                6,
                |(), job| {
                    std::thread::sleep(Duration::from_millis(if job == 2 { 20 } else { 1 }));
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
}
