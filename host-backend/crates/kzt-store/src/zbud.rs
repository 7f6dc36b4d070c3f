// SPDX-License-Identifier: GPL-2.0-or-later
//! Buddies: at most two blocks in a frame, one from each end.
//!
//! That wastes more than size classes do, and buys what ephemeral pages need: a frame comes free by
//! evicting two pages at most. Each pool has frames of its own, so that eviction hits no other
//! client's pages, and keeps them by age: a list of those with two blocks, and one for each number of
//! free chunks of those with one. A page that does not shrink is longer than a frame with its header:
//! it begins in a frame that is its own, and has its end where others have their first block. Only
//! pages that may vanish are here in that way, so recovery meets none.
//!
//! A pool's lists have a lock of their own, which guards the records of its frames too.

// List numbers come from chunk counts up to 64; frame numbers were checked.
#![expect(
    clippy::indexing_slicing,
    reason = "process-private tables, indices made here"
)]

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, OnceLock};

use crate::frames::{Frames, NONE, Use};
use crate::layout::pool::{Number as PoolNumber, SLOTS};
use crate::layout::{FRAME, HEADER, place};
use crate::pam::{Block, Pam};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU32, AtomicU64};
use crate::{PAGE_SIZE, lock};

/// Blocks are multiples of this.
const CHUNK: u64 = 64;
/// Chunks of a frame.
const CHUNKS: u32 = (FRAME / CHUNK) as u32;
/// Chunks of a block that is longer than a frame.
const LONG: u32 = CHUNKS + 1;
/// The list of the frames with two blocks; the others' are numbered by their free chunks.
const BUDDIED: usize = 0;

/// A frame's record, as its word holds it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Buddies {
    /// Chunks of the block at the frame's start, and of the one at its end. 0: there is none.
    /// [`LONG`]: it begins in the frame before, whose own record says the same.
    chunks: [u32; 2],
    pool: PoolNumber,
    /// When the frame joined the list it is in.
    stamp: u64,
}

impl Buddies {
    const LAST_SHIFT: u32 = 7;
    const POOL_SHIFT: u32 = 14;
    const STAMP_SHIFT: u32 = 24;

    fn decode(bits: u64) -> Self {
        let chunks = |shift: u32| (bits >> shift & 0x7f) as u32;
        Self {
            chunks: [chunks(0), chunks(Self::LAST_SHIFT)],
            pool: (bits >> Self::POOL_SHIFT & 0x3ff) as PoolNumber,
            stamp: bits >> Self::STAMP_SHIFT,
        }
    }

    fn encode(self) -> u64 {
        u64::from(self.chunks[0])
            | u64::from(self.chunks[1]) << Self::LAST_SHIFT
            | u64::from(self.pool) << Self::POOL_SHIFT
            | self.stamp << Self::STAMP_SHIFT
    }

    fn free(self) -> u32 {
        let frames = 1 + u32::from(self.chunks[0] == LONG);
        frames * CHUNKS - self.chunks[0] - self.chunks[1]
    }

    fn is_empty(self) -> bool {
        self.chunks == [0, 0]
    }

    /// The list that the frame belongs to.
    fn list(self) -> usize {
        if self.chunks.contains(&0) {
            self.free() as usize
        } else {
            BUDDIED
        }
    }

    fn age(self) -> Age {
        Age {
            buddied: self.list() == BUDDIED,
            stamp: self.stamp,
        }
    }

    /// Where the block of that end begins if the frame is number `frame`.
    fn offset(self, frame: u32, end: usize) -> u64 {
        let start = u64::from(frame) * FRAME;
        match (end, self.chunks) {
            (0, [LONG, _]) => start - FRAME,
            (0, _) => start,
            (_, [_, last]) => start + FRAME - u64::from(last) * CHUNK,
        }
    }
}

// A pool's number has ten bits there.
const _: () = assert!(SLOTS <= 1 << (Buddies::STAMP_SHIFT - Buddies::POOL_SHIFT));

/// In which order frames are evicted: the least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Age {
    buddied: bool,
    stamp: u64,
}

/// A pool's frames by age.
struct Lists {
    /// Oldest frame of each list; its `prev` is the youngest one.
    oldest: [u32; CHUNKS as usize],
}

impl Lists {
    fn oldest(&self, list: usize) -> Option<u32> {
        Some(self.oldest[list]).filter(|frame| *frame != NONE)
    }
}

/// A pool's frames, and how many there are.
struct Owned {
    lists: Mutex<Lists>,
    frames: AtomicU32,
}

impl Default for Owned {
    fn default() -> Self {
        let oldest = [NONE; CHUNKS as usize];
        Self {
            lists: Mutex::new(Lists { oldest }),
            frames: AtomicU32::new(0),
        }
    }
}

/// The allocator.
pub(crate) struct Zbud {
    frames: Arc<Frames>,
    pools: Box<[OnceLock<Box<Owned>>]>,
    clock: AtomicU64,
    counters: Counters,
}

#[derive(Default)]
struct Counters {
    pages: AtomicU64,
    buddied: AtomicU64,
    all_pages: AtomicU64,
    all_bytes: AtomicU64,
}

/// What frames of buddies hold. The last two count since the store was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ZbudUsage {
    /// Frames.
    pub zbud_curr_raw_pages: u64,
    /// Pages in them.
    pub zbud_curr_zpages: u64,
    /// Frames that have two.
    pub zbud_buddied_count: u64,
    /// Pages that were put there.
    pub zbud_cumul_zpages: u64,
    /// Their bytes, compressed.
    pub zbud_cumul_zbytes: u64,
}

impl Zbud {
    pub(crate) fn new(frames: Arc<Frames>) -> Self {
        Self {
            frames,
            pools: (0..SLOTS).map(|_| OnceLock::new()).collect(),
            clock: AtomicU64::new(0),
            counters: Counters::default(),
        }
    }

    pub(crate) fn usage(&self) -> ZbudUsage {
        let frames = self.holders().map(|(_, frames)| u64::from(frames));
        ZbudUsage {
            zbud_curr_raw_pages: frames.sum(),
            zbud_curr_zpages: self.counters.pages.load(Relaxed),
            zbud_buddied_count: self.counters.buddied.load(Relaxed),
            zbud_cumul_zpages: self.counters.all_pages.load(Relaxed),
            zbud_cumul_zbytes: self.counters.all_bytes.load(Relaxed),
        }
    }

    fn pool(&self, number: PoolNumber) -> &Owned {
        self.pools[usize::from(number)].get_or_init(Box::default)
    }

    fn load(&self, frame: u32) -> Buddies {
        Buddies::decode(self.frames.frame(frame).bitmap.load(Relaxed))
    }

    fn store(&self, frame: u32, buddies: Buddies) {
        self.frames
            .frame(frame)
            .bitmap
            .store(buddies.encode(), Relaxed);
    }

    /// The frame whose record is that of the blocks in a frame: the next one for the first frame of
    /// a long block.
    fn main(&self, frame: u32) -> u32 {
        let first = self.frames.frame(frame).position.load(Relaxed) == 0;
        if first && self.load(frame).chunks[0] == LONG {
            // Only who holds no lock can see what makes no sense.
            (frame + 1).min(self.frames.count() - 1)
        } else {
            frame
        }
    }

    /// Puts a frame at the young end of its list.
    fn link(&self, lists: &mut Lists, frame: u32, mut buddies: Buddies) {
        buddies.stamp = self.clock.fetch_add(1, Relaxed);
        self.store(frame, buddies);
        let record = self.frames.frame(frame);
        let full = u64::from(buddies.list() == BUDDIED);
        self.counters.buddied.fetch_add(full, Relaxed);
        let oldest = &mut lists.oldest[buddies.list()];
        if *oldest == NONE {
            *oldest = frame;
            record.prev.store(frame, Relaxed);
            record.next.store(frame, Relaxed);
        } else {
            let first = self.frames.frame(*oldest);
            let youngest = first.prev.swap(frame, Relaxed);
            self.frames.frame(youngest).next.store(frame, Relaxed);
            record.prev.store(youngest, Relaxed);
            record.next.store(*oldest, Relaxed);
        }
    }

    fn unlink(&self, lists: &mut Lists, frame: u32) -> Buddies {
        let buddies = self.load(frame);
        let full = u64::from(buddies.list() == BUDDIED);
        self.counters.buddied.fetch_sub(full, Relaxed);
        let record = self.frames.frame(frame);
        let (next, prev) = (record.next.load(Relaxed), record.prev.load(Relaxed));
        self.frames.frame(prev).next.store(next, Relaxed);
        self.frames.frame(next).prev.store(prev, Relaxed);
        let oldest = &mut lists.oldest[buddies.list()];
        if *oldest == frame {
            *oldest = if next == frame { NONE } else { next };
        }
        buddies
    }

    /// Makes a new pool's lists, so that no page takes heap.
    pub(crate) fn add_pool(&self, number: PoolNumber) {
        self.pool(number);
    }

    /// Frames in a row that a block of `bytes` may need.
    pub(crate) fn run_of(bytes: usize) -> u32 {
        (bytes as u64).div_ceil(FRAME) as u32
    }

    /// Numbers of the pools that have frames, and how many.
    pub(crate) fn holders(&self) -> impl Iterator<Item = (PoolNumber, u32)> {
        (0..).zip(&self.pools).filter_map(|(number, pool)| {
            let frames = pool.get()?.frames.load(Relaxed);
            (frames > 0).then_some((number, frames))
        })
    }

    /// How soon a pool has to lose a frame, next to others of its client.
    pub(crate) fn age(&self, pool: PoolNumber) -> Option<Age> {
        let lists = lock(&self.pool(pool).lists);
        self.first(&lists, false).map(|(_, buddies)| buddies.age())
    }

    /// The frame that a pool has to lose first. It is the last one of its like from now on: if its
    /// pages are in use, it is the next one's turn. It may be the only one of its like: `other`
    /// has those with two blocks go first.
    pub(crate) fn take_first(&self, pool: PoolNumber, other: bool) -> Option<u32> {
        let mut lists = lock(&self.pool(pool).lists);
        let (frame, _) = self.first(&lists, other)?;
        let buddies = self.unlink(&mut lists, frame);
        self.link(&mut lists, frame, buddies);
        Some(frame)
    }

    /// Makes the frame of a block in use the youngest.
    pub(crate) fn touch(&self, offset: u64) {
        let frame = self.main((offset / FRAME) as u32);
        let mut lists = lock(&self.pool(self.load(frame).pool).lists);
        let buddies = self.unlink(&mut lists, frame);
        self.link(&mut lists, frame, buddies);
    }

    /// The pool whose blocks are in a frame, if it is one of buddies.
    pub(crate) fn owner(&self, frame: u32) -> Option<PoolNumber> {
        let ours = self.frames.frame(frame).usage() == Use::Buddies;
        ours.then(|| self.load(frame).pool)
    }

    /// Offsets of the blocks in a frame, if it is one of buddies.
    pub(crate) fn blocks_in(&self, frame: u32) -> impl Iterator<Item = u64> {
        let frame = self.main(frame);
        let ours = self.frames.frame(frame).usage() == Use::Buddies;
        let buddies = if ours {
            self.load(frame)
        } else {
            Buddies::default()
        };
        (0..2)
            .filter(move |&end| buddies.chunks[end] > 0)
            .map(move |end| buddies.offset(frame, end))
    }

    /// The frame to go first: one with one block rather than with two, unless `other` says the
    /// contrary, then the oldest.
    fn first(&self, lists: &Lists, other: bool) -> Option<(u32, Buddies)> {
        let oldest = lists.oldest.iter().filter(|frame| **frame != NONE);
        oldest
            .map(|&frame| (frame, self.load(frame)))
            .min_by_key(|(_, buddies)| {
                let age = buddies.age();
                (age.buddied != other, age)
            })
    }

    /// The youngest frame with one block and the least room that suffices.
    fn buddy(&self, lists: &Lists, chunks: u32) -> Option<u32> {
        let oldest = (chunks..CHUNKS).find_map(|free| lists.oldest(free as usize))?;
        Some(self.frames.frame(oldest).prev.load(Relaxed))
    }
}

/// Chunks of a block; `None` if none is of that size.
fn chunks(bytes: usize) -> Option<u32> {
    let chunks = (bytes as u64).div_ceil(CHUNK);
    (1..=u64::from(LONG))
        .contains(&chunks)
        .then_some(chunks as u32)
}

const _: () = assert!(HEADER + PAGE_SIZE <= LONG as usize * CHUNK as usize);

impl Pam for Zbud {
    fn allocate(&self, pool: PoolNumber, bytes: usize) -> Option<Block> {
        let chunks = chunks(bytes)?;
        let owned = self.pool(pool);
        let mut lists = lock(&owned.lists);
        let (frame, mut buddies) = if let Some(frame) = self.buddy(&lists, chunks) {
            (frame, self.unlink(&mut lists, frame))
        } else {
            let length = Self::run_of(bytes);
            let first = self.frames.allocate(length, Use::Buddies)?;
            owned.frames.fetch_add(length, Relaxed);
            let mut buddies = Buddies {
                pool,
                ..Buddies::default()
            };
            if chunks == LONG {
                buddies.chunks[0] = LONG;
                self.store(first, buddies);
                buddies.chunks[0] = 0;
            }
            (first + length - 1, buddies)
        };
        let end = usize::from(buddies.chunks[0] != 0);
        buddies.chunks[end] = chunks;
        self.link(&mut lists, frame, buddies);
        let payload = bytes.saturating_sub(HEADER) as u64;
        self.counters.pages.fetch_add(1, Relaxed);
        self.counters.all_pages.fetch_add(1, Relaxed);
        self.counters.all_bytes.fetch_add(payload, Relaxed);
        Some(Block {
            offset: buddies.offset(frame, end),
            place: place::ZBUD + end as u32,
        })
    }

    fn free(&self, offset: u64) {
        let frame = self.main((offset / FRAME) as u32);
        // A frame's pool does not change while one of its blocks is in use.
        let owned = self.pool(self.load(frame).pool);
        let mut lists = lock(&owned.lists);
        let mut buddies = self.unlink(&mut lists, frame);
        let first = buddies.chunks[0] > 0 && offset == buddies.offset(frame, 0);
        let end = usize::from(!first);
        debug_assert!(buddies.chunks[end] > 0, "a block is freed once");
        if buddies.chunks[end] == LONG {
            self.frames.frame(frame).position.store(0, Relaxed);
            owned.frames.fetch_sub(1, Relaxed);
            self.frames.free(frame - 1, 1);
        }
        buddies.chunks[end] = 0;
        self.counters.pages.fetch_sub(1, Relaxed);
        if buddies.is_empty() {
            owned.frames.fetch_sub(1, Relaxed);
            self.frames.free(frame, 1);
        } else {
            self.link(&mut lists, frame, buddies);
        }
    }

    fn run(&self, frame: u32) -> Option<u32> {
        let record = self.frames.frame(frame);
        if record.usage() != Use::Buddies || record.position.load(Relaxed) > 0 {
            return None;
        }
        Some(1 + u32::from(self.main(frame) != frame))
    }

    fn blocks(&self, run: u32, f: &mut dyn FnMut(u64) -> bool) {
        self.blocks_in(run).all(f);
    }

    fn claim(
        &self,
        pool: PoolNumber,
        block: Block,
        bytes: usize,
        present: &dyn Fn(u32) -> bool,
    ) -> bool {
        let (Some(chunks), Ok(frame)) = (chunks(bytes), u32::try_from(block.offset / FRAME)) else {
            return false;
        };
        let end = match block.place.checked_sub(place::ZBUD) {
            Some(end @ (0 | 1)) if frame < self.frames.count() => end as usize,
            _ => return false,
        };
        let known = self.frames.frame(frame).usage() == Use::Buddies;
        let mut buddies = if known {
            self.load(frame)
        } else {
            Buddies {
                pool,
                ..Buddies::default()
            }
        };
        let free = buddies.pool == pool && buddies.chunks[end] == 0 && chunks <= buddies.free();
        buddies.chunks[end] = chunks;
        if !free || buddies.offset(frame, end) != block.offset {
            return false;
        }
        if !known && !self.frames.claim(frame, 1, Use::Buddies, present) {
            return false;
        }
        let owned = self.pool(pool);
        let mut lists = lock(&owned.lists);
        if known {
            self.unlink(&mut lists, frame);
        }
        owned.frames.fetch_add(u32::from(!known), Relaxed);
        self.counters.pages.fetch_add(1, Relaxed);
        self.link(&mut lists, frame, buddies);
        true
    }
}
