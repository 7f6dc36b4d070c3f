// SPDX-License-Identifier: GPL-2.0-or-later
//! Buddies: at most two blocks in a frame, one from each end.
//!
//! That wastes more than size classes do, and buys what ephemeral pages need: a frame comes free by
//! evicting two pages at most. Each pool has frames of its own, so that eviction hits no other
//! client's pages, and keeps them by age: a list of those with two blocks, and one for each number of
//! free chunks of those with one.
//!
//! A pool's lists have a lock of their own, which guards the records of its frames too.

// List numbers come from chunk counts up to 64; frame numbers were checked.
#![expect(
    clippy::indexing_slicing,
    reason = "process-private tables, indices made here"
)]

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock};

use crate::frames::{Frames, NONE, Use};
use crate::layout::pool::{Number as PoolNumber, SLOTS};
use crate::layout::{FRAME, place};
use crate::lock;
use crate::pam::{Block, Pam};

/// Blocks are multiples of this.
const CHUNK: u64 = 64;
/// Chunks of a frame.
const CHUNKS: u32 = (FRAME / CHUNK) as u32;
/// The list of the frames with two blocks; the others' are numbered by their free chunks.
const BUDDIED: usize = 0;

/// A frame's record, as its word holds it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Buddies {
    /// Chunks of the block at the frame's start, and of the one at its end. 0: there is none.
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
        CHUNKS - self.chunks[0] - self.chunks[1]
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

    /// Where in the frame the block of that end begins.
    fn start(self, end: usize) -> u64 {
        match end {
            0 => 0,
            _ => FRAME - u64::from(self.chunks[1]) * CHUNK,
        }
    }
}

// A pool's number has ten bits there.
const _: () = assert!(SLOTS <= 1 << (Buddies::STAMP_SHIFT - Buddies::POOL_SHIFT));

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
}

impl Zbud {
    pub(crate) fn new(frames: Arc<Frames>) -> Self {
        Self {
            frames,
            pools: (0..SLOTS).map(|_| OnceLock::new()).collect(),
            clock: AtomicU64::new(0),
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

    /// Puts a frame at the young end of its list.
    fn link(&self, lists: &mut Lists, frame: u32, mut buddies: Buddies) {
        buddies.stamp = self.clock.fetch_add(1, Relaxed);
        self.store(frame, buddies);
        let record = self.frames.frame(frame);
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

    /// The youngest frame with one block and the least room that suffices.
    fn buddy(&self, lists: &Lists, chunks: u32) -> Option<u32> {
        let oldest = (chunks..CHUNKS).find_map(|free| lists.oldest(free as usize))?;
        Some(self.frames.frame(oldest).prev.load(Relaxed))
    }
}

/// Chunks of a block; `None` if it does not fit into a frame.
fn chunks(bytes: usize) -> Option<u32> {
    let chunks = (bytes as u64).div_ceil(CHUNK);
    (1..=u64::from(CHUNKS))
        .contains(&chunks)
        .then_some(chunks as u32)
}

impl Pam for Zbud {
    fn allocate(&self, pool: PoolNumber, bytes: usize) -> Option<Block> {
        let chunks = chunks(bytes)?;
        let owned = self.pool(pool);
        let mut lists = lock(&owned.lists);
        let (frame, mut buddies) = if let Some(frame) = self.buddy(&lists, chunks) {
            (frame, self.unlink(&mut lists, frame))
        } else {
            let frame = self.frames.allocate(1, Use::Buddies)?;
            owned.frames.fetch_add(1, Relaxed);
            let buddies = Buddies {
                pool,
                ..Buddies::default()
            };
            (frame, buddies)
        };
        let end = usize::from(buddies.chunks[0] != 0);
        buddies.chunks[end] = chunks;
        self.link(&mut lists, frame, buddies);
        Some(Block {
            offset: u64::from(frame) * FRAME + buddies.start(end),
            place: place::ZBUD + end as u32,
        })
    }

    fn free(&self, offset: u64) {
        let frame = (offset / FRAME) as u32;
        // A frame's pool does not change while one of its blocks is in use.
        let owned = self.pool(self.load(frame).pool);
        let mut lists = lock(&owned.lists);
        let mut buddies = self.unlink(&mut lists, frame);
        let end = usize::from(offset % FRAME != 0);
        debug_assert!(buddies.chunks[end] > 0, "a block is freed once");
        buddies.chunks[end] = 0;
        if buddies.is_empty() {
            owned.frames.fetch_sub(1, Relaxed);
            self.frames.free(frame, 1);
        } else {
            self.link(&mut lists, frame, buddies);
        }
    }

    fn run(&self, frame: u32) -> Option<u32> {
        (self.frames.frame(frame).usage() == Use::Buddies).then_some(1)
    }

    fn blocks(&self, run: u32, f: &mut dyn FnMut(u64) -> bool) {
        let buddies = self.load(run);
        // Without the lock the word may be any other use's.
        let used = |end: &usize| (1..=CHUNKS).contains(&buddies.chunks[*end]);
        let offsets = [0, 1].into_iter().filter(used);
        let mut offsets = offsets.map(|end| u64::from(run) * FRAME + buddies.start(end));
        offsets.all(f);
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
        let fits = buddies.pool == pool && buddies.chunks[end] == 0 && chunks <= buddies.free();
        buddies.chunks[end] = chunks;
        if !fits || buddies.start(end) != block.offset % FRAME {
            return false;
        }
        if !known && !self.frames.claim(frame, 1, Use::Buddies, present) {
            return false;
        }
        let owned = self.pool(pool);
        let mut lists = lock(&owned.lists);
        if known {
            self.unlink(&mut lists, frame);
        } else {
            owned.frames.fetch_add(1, Relaxed);
        }
        self.link(&mut lists, frame, buddies);
        true
    }
}
