// SPDX-License-Identifier: GPL-2.0-or-later
//! What allocators have in common that pack blocks into runs of frames: lists of the runs that have
//! room, and the run that is being emptied; and where all runs have places for as many blocks,
//! [`Runs`] of them. All of it is guarded by the allocator's lock.

use std::iter;
use std::sync::atomic::Ordering::Relaxed;

use crate::frames::{Frames, NONE};
use crate::pam::Need;

/// With memory to be had, one free place for so many used ones is not worth a move.
const SLACK: u32 = 8;
/// Runs looked at for the emptiest.
const LOOK: usize = 32;

/// A list of runs, linked in the records of their first frames.
#[derive(Debug, Clone, Copy)]
pub(crate) struct List(u32);

impl List {
    pub(crate) const EMPTY: Self = Self(NONE);

    pub(crate) fn first(self) -> Option<u32> {
        (self.0 != NONE).then_some(self.0)
    }

    pub(crate) fn push(&mut self, frames: &Frames, run: u32) {
        let record = frames.frame(run);
        record.next.store(self.0, Relaxed);
        record.prev.store(NONE, Relaxed);
        if let Some(first) = self.first() {
            frames.frame(first).prev.store(run, Relaxed);
        }
        self.0 = run;
    }

    /// Takes out a run that is in the list.
    pub(crate) fn remove(&mut self, frames: &Frames, run: u32) {
        let record = frames.frame(run);
        let (next, prev) = (record.next.load(Relaxed), record.prev.load(Relaxed));
        if prev == NONE {
            self.0 = next;
        } else {
            frames.frame(prev).next.store(next, Relaxed);
        }
        if next != NONE {
            frames.frame(next).prev.store(prev, Relaxed);
        }
    }

    pub(crate) fn iter(self, frames: &Frames) -> impl Iterator<Item = u32> {
        let next = |run: &u32| Self(frames.frame(*run).next.load(Relaxed)).first();
        iter::successors(self.first(), next)
    }
}

/// The run that is being emptied, which is in no list, so that nothing is put there.
#[derive(Debug)]
pub(crate) struct Emptying {
    run: u32,
    /// The run that could not be emptied last.
    stuck: u32,
}

impl Emptying {
    pub(crate) const NONE: Self = Self {
        run: NONE,
        stuck: NONE,
    };

    /// The emptiest of the first of these runs, to be taken out of its list; `None` as well while
    /// another one is being emptied.
    pub(crate) fn begin(
        &mut self,
        frames: &Frames,
        runs: impl Iterator<Item = u32>,
    ) -> Option<u32> {
        if self.run != NONE {
            return None;
        }
        let run = runs
            .take(LOOK)
            .filter(|run| *run != self.stuck)
            .min_by_key(|run| frames.frame(*run).used.load(Relaxed))?;
        self.run = run;
        Some(run)
    }

    pub(crate) fn is(&self, run: u32) -> bool {
        self.run == run
    }

    /// The run is empty, and goes.
    pub(crate) fn succeed(&mut self) {
        self.run = NONE;
    }

    /// Whether the run is not empty yet, and has to be put back.
    ///
    /// If it came free, was taken and isolated again by another thread, that one only ends early.
    pub(crate) fn end(&mut self, run: u32) -> bool {
        let there = self.is(run);
        if there {
            self.run = NONE;
            self.stuck = run;
        }
        there
    }
}

/// Runs that have places for as many blocks each.
#[derive(Debug)]
pub(crate) struct Runs {
    /// Those that have room; each has used places, too, unless it is new.
    partial: List,
    emptying: Emptying,
    /// How many there are.
    pub(crate) count: u32,
    /// Their places in use.
    pub(crate) used: u32,
}

impl Runs {
    pub(crate) const NONE: Self = Self {
        partial: List::EMPTY,
        emptying: Emptying::NONE,
        count: 0,
        used: 0,
    };

    /// The run to take a place of.
    pub(crate) fn with_room(&self) -> Option<u32> {
        self.partial.first()
    }

    /// The run has room from now on: it is new, or recovery has found it so.
    pub(crate) fn open(&mut self, frames: &Frames, run: u32) {
        self.partial.push(frames, run);
    }

    /// The run that had room is full.
    pub(crate) fn filled(&mut self, frames: &Frames, run: u32) {
        self.partial.remove(frames, run);
    }

    /// A place of a run has come free: it was `full`, and is `empty` now, in which case it goes.
    pub(crate) fn freed(&mut self, frames: &Frames, run: u32, full: bool, empty: bool) {
        self.used -= 1;
        let emptying = self.emptying.is(run);
        if full && !emptying {
            self.partial.push(frames, run);
        }
        if empty {
            if emptying {
                self.emptying.succeed();
            } else {
                self.partial.remove(frames, run);
            }
            self.count -= 1;
        }
    }

    /// Takes the emptiest of the first runs out of the list, if of their `places` enough are free
    /// elsewhere.
    pub(crate) fn isolate(&mut self, frames: &Frames, places: u32, need: Need) -> Option<u32> {
        if !is_sparse(self.count, places, self.used, need) {
            return None;
        }
        let run = self.emptying.begin(frames, self.partial.iter(frames))?;
        self.partial.remove(frames, run);
        Some(run)
    }

    /// Ends what `isolate` began; whether the run came free.
    pub(crate) fn restore(&mut self, frames: &Frames, run: u32) -> bool {
        let left = self.emptying.end(run);
        if left {
            self.partial.push(frames, run);
        }
        !left
    }
}

/// Whether so much is free that blocks may move: of runs with `places`, `used` of all are in use.
pub(crate) fn is_sparse(runs: u32, places: u32, used: u32, need: Need) -> bool {
    let free = runs * places - used;
    let slack = match need {
        Need::Slack => used / SLACK + places,
        Need::Short => 0,
    };
    // Without the run's worth of places elsewhere nothing comes free.
    free >= places + slack
}
