// SPDX-License-Identifier: GPL-2.0-or-later
//! Time for the kernel to be done with a connection that is gone.
//!
//! nbd's receiver reads from the socket that its device has at the time, not from the one that it was
//! started for. If it has not come to the end of its connection, or not even begun, when the next one
//! is attached, it takes replies off that beside the new one's receiver, and pages get bytes that are
//! not theirs. It is woken when its connection ends, but nothing tells us that it has ended itself.
//!
//! So it gets many times what it needs, in pieces. Not by the clock alone, which goes on while the
//! guest is stopped, or one of its processors is: each piece begins on another processor, which has
//! to run for that, and which is left to everybody else until the piece ends.

use std::time::{Duration, Instant};

use rustix::thread::{self, CpuSet};

/// How many pieces there are, and at least for each processor.
const PIECES: usize = 20;
const PIECES_EACH: usize = 2;
const PIECE: Duration = Duration::from_millis(50);

/// One rest, from its beginning on.
pub(crate) struct Rest {
    /// The processors of this process, while it is bound to one of them.
    all: Option<CpuSet>,
    processor: usize,
    left: usize,
    until: Instant,
}

impl Rest {
    pub(crate) fn begin(now: Instant) -> Self {
        let all = thread::sched_getaffinity(None).ok();
        let each = all.map_or(0, |all| PIECES_EACH * all.count() as usize);
        Self {
            all,
            processor: 0,
            left: PIECES.max(each),
            until: now,
        }
    }

    /// When the piece ends that has begun.
    pub(crate) const fn until(&self) -> Instant {
        self.until
    }

    /// Goes on with the next piece if one has ended; whether that was the last one.
    pub(crate) fn step(&mut self, now: Instant) -> bool {
        if self.until > now {
            return false;
        }
        if self.left == 0 {
            self.bind(None);
            return true;
        }
        self.left -= 1;
        self.until = now + PIECE;
        let Some(all) = self.all else {
            return false;
        };
        let next = (self.processor + 1..CpuSet::MAX_CPU).chain(0..=self.processor);
        if let Some(next) = next.into_iter().find(|next| all.is_set(*next)) {
            self.processor = next;
            self.bind(Some(next));
        }
        false
    }

    /// Binds this process to one processor, or to none. One that went offline is passed over: the
    /// process stays where it was.
    fn bind(&self, processor: Option<usize>) {
        if let Some(all) = self.all {
            let mut wanted = all;
            if let Some(processor) = processor {
                wanted = CpuSet::new();
                wanted.set(processor);
            }
            let _ = thread::sched_setaffinity(None, &wanted);
        }
    }
}

impl Drop for Rest {
    fn drop(&mut self) {
        self.bind(None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rest_has_all_its_pieces_on_all_processors_however_far_the_clock_jumps() {
        let all = thread::sched_getaffinity(None).unwrap();
        let mut now = Instant::now();
        let mut rest = Rest::begin(now);
        let mut seen = CpuSet::new();
        let mut pieces = 0;
        while !rest.step(now) {
            assert!(rest.until() > now);
            assert!(!rest.step(now));
            let bound = thread::sched_getaffinity(None).unwrap();
            assert_eq!(bound.count(), 1);
            (0..CpuSet::MAX_CPU)
                .filter(|cpu| bound.is_set(*cpu))
                .for_each(|cpu| seen.set(cpu));
            pieces += 1;
            now += Duration::from_secs(3600);
        }
        assert!(pieces >= PIECES);
        assert_eq!(seen, all);
        assert_eq!(thread::sched_getaffinity(None).unwrap(), all);
    }

    #[test]
    fn a_rest_that_is_given_up_leaves_the_process_all_processors() {
        let all = thread::sched_getaffinity(None).unwrap();
        let now = Instant::now();
        let mut rest = Rest::begin(now);
        assert!(!rest.step(now));
        drop(rest);
        assert_eq!(thread::sched_getaffinity(None).unwrap(), all);
    }
}
