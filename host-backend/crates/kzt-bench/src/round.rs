// SPDX-License-Identifier: GPL-2.0-or-later
//! One pass of all threads over their pages, timed page by page.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Barrier, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use crate::Error;
use crate::corpus::{Aligned, Corpus};
use crate::engine::Worker;

/// How often somebody is asked whether to go on.
const ASKED_EVERY: Duration = Duration::from_millis(100);

/// Who waits for the figures.
pub trait Watch {
    /// A part of the work begins: `done` of `all` parts are behind it.
    fn step(&mut self, what: &str, done: usize, all: usize);

    /// Whether to go on; asked a few times a second.
    fn wanted(&mut self) -> bool;
}

/// What one pass took, in µs per page.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pass {
    /// Time of the threads by the pages they did, less what they waited for a processor.
    pub(crate) mean: f64,
    /// 99th percentile of single pages.
    pub(crate) p99: f64,
}

/// One thread's share of the corpus, and where its times go.
pub(crate) struct Share {
    /// Positions in the corpus.
    order: Vec<usize>,
    /// The same, shuffled: a store is not read in the order it was filled.
    shuffled: Vec<usize>,
    laps: Vec<u32>,
}

/// Deals the corpus out page by page, so that each thread gets the like of it.
pub(crate) fn deal(corpus: &Corpus, threads: usize) -> Vec<Share> {
    let share = |thread: usize| {
        let order: Vec<usize> = (thread..corpus.pages.len()).step_by(threads).collect();
        Share {
            shuffled: shuffle(order.clone()),
            // Not zeros: those would be untouched memory.
            laps: vec![u32::MAX; order.len()],
            order,
        }
    };
    (0..threads).map(share).collect()
}

/// The same order every time (Fisher-Yates, by the generator of Knuth's MMIX).
fn shuffle(mut order: Vec<usize>) -> Vec<usize> {
    let mut seed = 1_u64;
    for last in (1..order.len()).rev() {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let high = usize::try_from(seed >> 33).unwrap_or(0);
        order.swap(last, high % (last + 1));
    }
    order
}

/// Puts every page.
pub(crate) fn put<W: Worker>(
    corpus: &Corpus,
    workers: &mut [W],
    shares: &mut [Share],
    watch: &mut dyn Watch,
) -> Result<Pass, Error> {
    pass(workers, shares, watch, |worker, share, go_on| {
        time(&share.order, &mut share.laps, go_on, |index| {
            corpus
                .pages
                .get(index)
                .map_or(Ok(()), |page| worker.put(index, page))
        })
    })
}

/// Gets every page.
pub(crate) fn get<W: Worker>(
    workers: &mut [W],
    shares: &mut [Share],
    watch: &mut dyn Watch,
) -> Result<Pass, Error> {
    pass(workers, shares, watch, |worker, share, go_on| {
        let mut out = Aligned::ZERO;
        time(&share.shuffled, &mut share.laps, go_on, |index| {
            worker.get(index, &mut out.0)
        })
    })
}

/// Gets every page and compares it, untimed.
pub(crate) fn verify<W: Worker>(
    engine: &'static str,
    corpus: &Corpus,
    workers: &mut [W],
    shares: &mut [Share],
    watch: &mut dyn Watch,
) -> Result<(), Error> {
    let checked = pass(workers, shares, watch, |worker, share, go_on| {
        let mut out = Aligned::ZERO;
        time(&share.shuffled, &mut share.laps, go_on, |index| {
            worker.get(index, &mut out.0)?;
            let same = corpus.pages.get(index).is_some_and(|page| page.0 == out.0);
            same.then_some(()).ok_or(Error::Wrong {
                engine,
                page: index,
            })
        })
    });
    checked.map(drop)
}

/// Runs all threads at once, to their end or until the figures are not wanted any more.
fn pass<W: Worker>(
    workers: &mut [W],
    shares: &mut [Share],
    watch: &mut dyn Watch,
    job: impl Fn(&mut W, &mut Share, &AtomicBool) -> Result<Duration, Error> + Sync,
) -> Result<Pass, Error> {
    let go_on = AtomicBool::new(true);
    let start = Barrier::new(workers.len());
    let (send, ended) = mpsc::channel();
    let mut took = Duration::ZERO;
    let mut failure = None;
    thread::scope(|scope| {
        for (worker, share) in workers.iter_mut().zip(shares.iter_mut()) {
            let (send, start, go_on, job) = (send.clone(), &start, &go_on, &job);
            scope.spawn(move || {
                start.wait();
                // The receiver stays until all senders are gone.
                let _ = send.send(job(worker, share, go_on));
            });
        }
        drop(send);
        loop {
            match ended.recv_timeout(ASKED_EVERY) {
                Ok(Ok(time)) => took += time,
                Ok(Err(error)) => {
                    go_on.store(false, Relaxed);
                    failure = failure.take().or(Some(error));
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    if !watch.wanted() {
                        go_on.store(false, Relaxed);
                    }
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
            }
        }
    });
    if let Some(error) = failure {
        return Err(error);
    }
    let mut laps: Vec<u32> = shares
        .iter()
        .flat_map(|share| share.laps.iter().copied())
        .collect();
    Ok(Pass {
        mean: took.as_secs_f64() * 1e6 / laps.len() as f64,
        p99: percentile(&mut laps, 99) / 1e3,
    })
}

/// Times every call: one clock read each. What the thread waited for a processor is not in the sum,
/// so that other work on the machine disturbs less; what it waited for a lock is.
fn time(
    order: &[usize],
    laps: &mut [u32],
    go_on: &AtomicBool,
    mut call: impl FnMut(usize) -> Result<(), Error>,
) -> Result<Duration, Error> {
    // What is waited between the two readings is within what is timed.
    let start = Instant::now();
    let waited = waited_for_cpu();
    let mut last = Instant::now();
    for (&index, lap) in order.iter().zip(laps) {
        if !go_on.load(Relaxed) {
            return Err(Error::Interrupted);
        }
        call(index)?;
        let now = Instant::now();
        *lap = u32::try_from((now - last).as_nanos()).unwrap_or(u32::MAX);
        last = now;
    }
    let waited = waited_for_cpu().saturating_sub(waited);
    Ok(start.elapsed().saturating_sub(waited))
}

/// How long this thread has been ready to run and was not running; zero where the kernel does not
/// count it.
fn waited_for_cpu() -> Duration {
    let read = fs::read_to_string("/proc/thread-self/schedstat");
    let nanoseconds = read.ok().and_then(|text| {
        let field = text.split_ascii_whitespace().nth(1)?;
        field.parse().ok()
    });
    Duration::from_nanos(nanoseconds.unwrap_or(0))
}

/// The smallest of the values that `percent` of them do not exceed.
fn percentile(values: &mut [u32], percent: usize) -> f64 {
    let rank = (values.len() * percent).div_ceil(100).saturating_sub(1);
    if rank >= values.len() {
        return 0.0;
    }
    f64::from(*values.select_nth_unstable(rank).1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_there() {
        let mut values: Vec<u32> = (1..=200).rev().collect();
        assert!((percentile(&mut values, 99) - 198.0).abs() < f64::EPSILON);
        assert!((percentile(&mut [7], 99) - 7.0).abs() < f64::EPSILON);
    }

    #[test]
    fn a_shuffled_share_has_the_same_pages() {
        let order: Vec<usize> = (0..100).collect();
        let mut shuffled = shuffle(order.clone());
        assert_ne!(shuffled, order);
        shuffled.sort_unstable();
        assert_eq!(shuffled, order);
    }
}
