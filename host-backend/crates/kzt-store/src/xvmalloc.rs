// SPDX-License-Identifier: GPL-2.0-or-later
//! Segregated fit on two levels, in the manner of xvMalloc: blocks of any number of chunks side by
//! side in a run of frames, holes that are neighbours coalesced.
//!
//! The first level lists the runs by their largest hole, with a bit for each list that has any; in the
//! run that is found the block goes into the tightest hole. A page has 57 chunks at most: there is a
//! list for each size that matters, and none needs a second index.
//!
//! A run's records have a bit for each chunk: a block of *n* chunks is *n* − 1 ones and a zero. So a
//! chunk is free if neither its bit nor the one before is set, holes coalesce by themselves, and where
//! a block ends is known without asking the arena.
//!
//! One lock guards all of it, for some tens of nanoseconds.

// Words and lists are counted here; what entries say is checked in `claim`.
#![expect(
    clippy::indexing_slicing,
    reason = "process-private tables, indices made here"
)]

use std::iter;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use crate::codec::RAW_ABOVE;
use crate::frames::{Frames, Use};
use crate::layout::pool::Number as PoolNumber;
use crate::layout::{EXTENT_FRAMES, FRAME, HEADER, place};
use crate::lock;
use crate::pam::{Block, Need, Pam, Target};
use crate::runs::{Emptying, List, is_sparse};
use crate::sync::Mutex;

/// Blocks are multiples of this.
const CHUNK: usize = 64;
/// Frames of a run. A record has as many bits as a frame has chunks.
const FRAMES: usize = 8;
const BITS: usize = FRAME as usize / CHUNK;
/// Chunks of a run.
const CHUNKS: usize = FRAMES * BITS;
/// Chunks of the smallest and of the largest block: with fewer than two it would have no bit.
const MIN: usize = 2;
const MAX: usize = (HEADER + RAW_ABOVE).div_ceil(CHUNK);

const _: () = assert!(BITS == u64::BITS as usize && MAX < BITS);
const _: () = assert!(EXTENT_FRAMES as usize % FRAMES == 0);

/// The allocator.
pub(crate) struct Xvmalloc {
    frames: Arc<Frames>,
    state: Mutex<State>,
}

struct State {
    /// Runs by their largest hole; the last has all that take any block.
    lists: [List; MAX + 1],
    /// A bit for each list that has a run.
    listed: u64,
    emptying: Emptying,
    /// How many runs there are.
    runs: u32,
    /// Chunks in use.
    used: u32,
    /// So many were in use when a run could not be emptied last.
    tried: u32,
}

/// A bit for each chunk of a run.
#[derive(Clone, Copy)]
struct Map([u64; FRAMES]);

impl Map {
    /// Chunks in use, of one that has what records have.
    fn used(self) -> Self {
        let Self(mut words) = self;
        let mut carry = 0;
        for word in &mut words {
            let bits = *word;
            *word = bits | bits << 1 | carry;
            carry = bits >> (BITS - 1);
        }
        Self(words)
    }

    fn inverted(self) -> Self {
        Self(self.0.map(|word| !word))
    }

    /// The first bit set from `from` on, or [`CHUNKS`].
    fn find(&self, from: usize) -> usize {
        let mut mask = u64::MAX << (from % BITS);
        for word in from / BITS..FRAMES {
            let bits = self.0[word] & mask;
            if bits != 0 {
                return word * BITS + bits.trailing_zeros() as usize;
            }
            mask = u64::MAX;
        }
        CHUNKS
    }

    /// The runs of bits set: where each begins, and its length.
    fn spans(self) -> impl Iterator<Item = (usize, usize)> {
        let unset = self.inverted();
        let mut at = 0;
        iter::from_fn(move || {
            let start = self.find(at);
            at = unset.find(start);
            (start < CHUNKS).then_some((start, at - start))
        })
    }
}

/// Chunks of a block; `None` if none is of that size.
fn chunks(bytes: usize) -> Option<usize> {
    let chunks = bytes.div_ceil(CHUNK).max(MIN);
    (chunks <= MAX).then_some(chunks)
}

fn block(run: u32, start: usize) -> Block {
    Block {
        offset: u64::from(run) * FRAME + (start * CHUNK) as u64,
        place: place::XVMALLOC + (start / BITS) as u32,
    }
}

impl Xvmalloc {
    /// Frames of the runs that hold blocks.
    pub(crate) const RUN: u32 = FRAMES as u32;

    pub(crate) fn new(frames: Arc<Frames>) -> Self {
        Self {
            frames,
            state: Mutex::new(State {
                lists: [List::EMPTY; MAX + 1],
                listed: 0,
                emptying: Emptying::NONE,
                runs: 0,
                used: 0,
                tried: u32::MAX,
            }),
        }
    }

    fn map(&self, run: u32) -> Map {
        let mut words = [0; FRAMES];
        for (frame, word) in (run..).zip(&mut words) {
            *word = self.frames.frame(frame).bitmap.load(Relaxed);
        }
        Map(words)
    }

    /// Run, first chunk and number of chunks of a block in use; `None` if none begins there.
    fn locate(&self, offset: u64) -> Option<(u32, usize, usize)> {
        let frame = self.frames.get(offset)?;
        let run = ((offset / FRAME) as u32).checked_sub(frame.position.load(Relaxed).into())?;
        let start = (offset - u64::from(run) * FRAME) as usize / CHUNK;
        let map = self.map(run);
        let begins = start
            .checked_sub(1)
            .is_none_or(|before| map.find(before) != before);
        let ones = map.inverted().find(start) - start;
        let known = frame.usage() == Use::Chunks && begins && ones > 0;
        known.then_some((run, start, ones + 1))
    }

    /// Sets or clears the bits of a block, and counts it.
    fn mark(&self, state: &mut State, run: u32, start: usize, chunks: usize, set: bool) {
        for chunk in start..start + chunks - 1 {
            let bitmap = &self.frames.frame(run + (chunk / BITS) as u32).bitmap;
            let (bits, bit) = (bitmap.load(Relaxed), 1 << (chunk % BITS));
            bitmap.store(if set { bits | bit } else { bits & !bit }, Relaxed);
        }
        let used = &self.frames.frame(run).used;
        let (count, chunks) = (used.load(Relaxed), chunks as u32);
        if set {
            used.store(count + chunks as u16, Relaxed);
            state.used += chunks;
        } else {
            used.store(count - chunks as u16, Relaxed);
            state.used -= chunks;
        }
    }

    /// Puts a run that is in no list into the one of its largest hole.
    fn list(&self, state: &mut State, run: u32) {
        let holes = self.map(run).used().inverted().spans();
        let largest = holes.map(|(_, chunks)| chunks).max().unwrap_or(0);
        let list = largest.min(MAX);
        self.frames.frame(run).class.store(list as u8, Relaxed);
        state.lists[list].push(&self.frames, run);
        state.listed |= 1 << list;
    }

    fn unlist(&self, state: &mut State, run: u32) {
        let list = usize::from(self.frames.frame(run).class.load(Relaxed));
        state.lists[list].remove(&self.frames, run);
        if state.lists[list].first().is_none() {
            state.listed &= !(1 << list);
        }
    }

    /// Takes chunks of a run that has so many in a row.
    fn take(&self, state: &mut State, chunks: usize) -> Option<Block> {
        let list = (state.listed & u64::MAX << chunks).trailing_zeros() as usize;
        let run = state.lists.get(list)?.first()?;
        let holes = self.map(run).used().inverted().spans();
        let fitting = holes.filter(|(_, hole)| *hole >= chunks);
        let (start, _) = fitting.min_by_key(|(_, hole)| *hole)?;
        self.unlist(state, run);
        self.mark(state, run, start, chunks, true);
        self.list(state, run);
        Some(block(run, start))
    }

    /// Takes another block for what is in the one at `offset`.
    fn beside(&self, offset: u64) -> Option<Block> {
        let mut state = lock(&self.state);
        let (_, _, chunks) = self.locate(offset)?;
        self.take(&mut state, chunks)
    }

    /// Takes an almost empty run out of its list, if there is room elsewhere.
    fn isolate(&self, need: Need) -> Option<u32> {
        let mut state = lock(&self.state);
        // Holes may be too small for what is to move: then only what comes free can help.
        let hopeless = state.used + CHUNKS as u32 > state.tried;
        if hopeless || !is_sparse(state.runs, CHUNKS as u32, state.used, need) {
            return None;
        }
        let lists = state.lists;
        let runs = lists.iter().rev().flat_map(|list| list.iter(&self.frames));
        let run = state.emptying.begin(&self.frames, runs)?;
        self.unlist(&mut state, run);
        Some(run)
    }

    /// Ends what `isolate` began; whether the run came free.
    fn restore(&self, run: u32) -> bool {
        let mut state = lock(&self.state);
        let left = state.emptying.end(run);
        if left {
            state.tried = state.used;
            self.list(&mut state, run);
        }
        !left
    }
}

impl Pam for Xvmalloc {
    fn allocate(&self, _pool: PoolNumber, bytes: usize) -> Option<Block> {
        let chunks = chunks(bytes)?;
        let mut state = lock(&self.state);
        self.take(&mut state, chunks).or_else(|| {
            let run = self.frames.allocate(Self::RUN, Use::Chunks)?;
            state.runs += 1;
            state.tried = u32::MAX;
            self.list(&mut state, run);
            self.take(&mut state, chunks)
        })
    }

    fn free(&self, offset: u64) {
        let mut state = lock(&self.state);
        let Some((run, start, chunks)) = self.locate(offset) else {
            debug_assert!(false, "a block is freed once");
            return;
        };
        let emptying = state.emptying.is(run);
        if !emptying {
            self.unlist(&mut state, run);
        }
        self.mark(&mut state, run, start, chunks, false);
        if self.frames.frame(run).used.load(Relaxed) == 0 {
            if emptying {
                state.emptying.succeed();
            }
            state.runs -= 1;
            self.frames.free(run, Self::RUN);
        } else if !emptying {
            self.list(&mut state, run);
        }
    }

    fn compact(&self, need: Need, move_to: &dyn Fn(u64, Target<'_>) -> bool) -> u32 {
        let Some(run) = self.isolate(need) else {
            return 0;
        };
        self.blocks(run, &mut |offset| move_to(offset, &|| self.beside(offset)));
        u32::from(self.restore(run))
    }

    fn run(&self, frame: u32) -> Option<u32> {
        let head = self.frames.frame(frame);
        let begins = head.usage() == Use::Chunks && head.position.load(Relaxed) == 0;
        // Without a lock it may be about to become something else.
        (begins && frame % EXTENT_FRAMES + Self::RUN <= EXTENT_FRAMES).then_some(Self::RUN)
    }

    fn blocks(&self, run: u32, f: &mut dyn FnMut(u64) -> bool) {
        if self.run(run).is_some() {
            let mut blocks = self.map(run).spans();
            // The ones of a block and its zero: no two blocks are one span.
            blocks.all(|(start, _)| f(block(run, start).offset));
        }
    }

    fn claim(
        &self,
        _pool: PoolNumber,
        claimed: Block,
        bytes: usize,
        present: &dyn Fn(u32) -> bool,
    ) -> bool {
        let position = claimed.place.wrapping_sub(place::XVMALLOC);
        let (Some(chunks), Ok(frame)) = (chunks(bytes), u32::try_from(claimed.offset / FRAME))
        else {
            return false;
        };
        let Some(run) = frame.checked_sub(position) else {
            return false;
        };
        let start = position as usize * BITS + (claimed.offset % FRAME) as usize / CHUNK;
        let inside = position < Self::RUN && start + chunks <= CHUNKS;
        if !inside || block(run, start) != claimed || frame >= self.frames.count() {
            return false;
        }
        let mut state = lock(&self.state);
        let head = self.frames.frame(run);
        let known = head.usage() == Use::Chunks && head.position.load(Relaxed) == 0;
        if !known {
            if !self.frames.claim(run, Self::RUN, Use::Chunks, present) {
                return false;
            }
            state.runs += 1;
        }
        if self.map(run).used().find(start) < start + chunks {
            return false;
        }
        self.mark(&mut state, run, start, chunks, true);
        true
    }

    fn settle(&self) {
        let mut state = lock(&self.state);
        for run in 0..self.frames.count() {
            if self.run(run).is_some() {
                self.list(&mut state, run);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_know_where_blocks_end() {
        // Blocks of 2 and 3 chunks side by side; one from the last two chunks of a frame on.
        let mut map = Map([0; FRAMES]);
        map.0[0] = 0b01101 | 0b11 << 62;
        assert_eq!(map.spans().collect::<Vec<_>>(), [(0, 1), (2, 2), (62, 2)]);
        let used: Vec<_> = map.used().spans().collect();
        assert_eq!(used, [(0, 5), (62, 3)]);
        let holes: Vec<_> = map.used().inverted().spans().collect();
        assert_eq!(holes, [(5, 57), (65, CHUNKS - 65)]);
        assert_eq!(Map([u64::MAX; FRAMES]).inverted().spans().count(), 0);
    }
}
