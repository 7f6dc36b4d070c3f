// SPDX-License-Identifier: GPL-2.0-or-later
//! Size classes over runs of frames, in the manner of the kernel's zsmalloc.
//!
//! A class packs blocks of one size, end to end, into runs of contiguous frames; the length of
//! the runs is chosen to waste least. Each class has its own lock. A frame's record says which
//! run and class it belongs to, a run's records have a bit for every block in use.

// Class numbers come from `CLASSES`-sized tables built here; frame numbers were checked.
#![expect(
    clippy::indexing_slicing,
    reason = "process-private tables, indices made here"
)]

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use crate::codec::RAW_ABOVE;
use crate::frames::{Frames, Use};
use crate::layout::pool::Number as PoolNumber;
use crate::layout::{EXTENT_FRAMES, FRAME, HEADER};
use crate::pam::{Block, Need, Pam, Target};
use crate::runs::Runs;
use crate::sync::Mutex;
use crate::{layout, lock};

/// Blocks are multiples of this.
const GRAIN: usize = 16;
/// Smallest block: a frame's record has 64 bits.
const MIN_BLOCK: usize = 64;
/// Largest block: a page that shrank just enough, and its header.
const MAX_BLOCK: usize = HEADER + RAW_ABOVE;
/// Runs up to this length are tried for every class. Longer ones waste little less, and are
/// hard to find in extents of 16 frames.
const MAX_RUN: u32 = 8;
/// A multiple of every run's length.
const COMMON: u32 = 840;
/// Bytes of [`COMMON`] frames that a shorter run may waste more: 1.5 %. Every class has a run that
/// is half empty, and in stores of some dozen MiB these are most of what is lost.
const NEGLIGIBLE: usize = COMMON as usize * FRAME as usize * 3 / 200;

/// One size class.
struct Class {
    /// Bytes of a block.
    size: usize,
    /// Frames of a run.
    frames: u32,
    /// Blocks of a run.
    blocks: u32,
    state: Mutex<Runs>,
}

impl Class {
    fn block(&self, run: u32, place: u32) -> Block {
        let offset = u64::from(run) * FRAME + u64::from(place) * self.size as u64;
        Block { offset, place }
    }
}

/// The allocator.
pub(crate) struct Zsmalloc {
    frames: Arc<Frames>,
    classes: Box<[Class]>,
    /// Class of a block by its size in grains, rounded up.
    by_size: Box<[u8]>,
}

impl Zsmalloc {
    pub(crate) fn new(frames: Arc<Frames>) -> Self {
        let mut classes: Vec<Class> = Vec::new();
        let mut by_size = vec![0; MIN_BLOCK / GRAIN];
        for size in (MIN_BLOCK..=MAX_BLOCK).step_by(GRAIN) {
            let (run, blocks) = shape(size);
            // Sizes that would share a shape share the class: the size that fills it.
            if classes
                .last()
                .is_none_or(|last| (last.frames, last.blocks) != (run, blocks))
            {
                let fill = run as usize * FRAME as usize / blocks as usize / GRAIN * GRAIN;
                classes.push(Class {
                    size: fill.min(MAX_BLOCK),
                    frames: run,
                    blocks,
                    state: Mutex::new(Runs::NONE),
                });
            }
            by_size.push((classes.len() - 1) as u8);
        }
        Self {
            frames,
            classes: classes.into(),
            by_size: by_size.into(),
        }
    }

    fn class_of(&self, bytes: usize) -> Option<(u8, &Class)> {
        let number = *self.by_size.get(bytes.div_ceil(GRAIN))?;
        Some((number, &self.classes[number as usize]))
    }

    /// The class of the run that begins with a frame, if one does. Read without a lock it may be a
    /// run of the past, but one that fits there.
    fn class_at(&self, frame: u32) -> Option<&Class> {
        let head = self.frames.frame(frame);
        let begins = head.usage() == Use::Run && head.position.load(Relaxed) == 0;
        let class = &self.classes[head.class.load(Relaxed) as usize];
        (begins && frame % EXTENT_FRAMES + class.frames <= EXTENT_FRAMES).then_some(class)
    }

    /// Frames of the runs that hold blocks of `bytes`.
    pub(crate) fn run_of(&self, bytes: usize) -> u32 {
        self.class_of(bytes).map_or(1, |(_, class)| class.frames)
    }

    /// Sets or clears a block's bit; whether that changed it.
    fn mark(&self, run: u32, place: u32, used: bool) -> bool {
        let bitmap = &self.frames.frame(run + place / 64).bitmap;
        let (bits, bit) = (bitmap.load(Relaxed), 1 << (place % 64));
        bitmap.store(if used { bits | bit } else { bits & !bit }, Relaxed);
        (bits & bit != 0) != used
    }

    /// Takes a block of the first run that has one free.
    fn take(&self, class: &Class, runs: &mut Runs) -> Option<Block> {
        let run = runs.with_room()?;
        let place = (0..class.frames).find_map(|word| {
            let bits = self.frames.frame(run + word).bitmap.load(Relaxed);
            (bits != u64::MAX).then(|| word * 64 + bits.trailing_ones())
        })?;
        self.mark(run, place, true);
        runs.used += 1;
        let used = &self.frames.frame(run).used;
        let count = used.load(Relaxed) + 1;
        used.store(count, Relaxed);
        if u32::from(count) == class.blocks {
            runs.filled(&self.frames, run);
        }
        Some(class.block(run, place))
    }

    /// Class, run and number of a block that is in use: as long as it is, its frame's record stays.
    fn locate(&self, offset: u64) -> (&Class, u32, u32) {
        let frame = self.frames.at(offset);
        let class = &self.classes[frame.class.load(Relaxed) as usize];
        let run = (offset / FRAME) as u32 - u32::from(frame.position.load(Relaxed));
        let place = (offset - u64::from(run) * FRAME) / class.size as u64;
        (class, run, place as u32)
    }

    /// Takes another block for what is in the block at `offset`, which is in use. The run that it was
    /// looked for in may have come free meanwhile, and be of another class or allocator.
    fn beside(&self, offset: u64) -> Option<Block> {
        if self.frames.at(offset).usage() != Use::Run {
            return None;
        }
        let (class, _, _) = self.locate(offset);
        self.take(class, &mut lock(&class.state))
    }
}

impl Pam for Zsmalloc {
    fn allocate(&self, _pool: PoolNumber, bytes: usize) -> Option<Block> {
        let (number, class) = self.class_of(bytes)?;
        let mut runs = lock(&class.state);
        if runs.with_room().is_none() {
            let run = self.frames.allocate(class.frames, Use::Run)?;
            for frame in run..run + class.frames {
                self.frames.frame(frame).class.store(number, Relaxed);
            }
            runs.open(&self.frames, run);
            runs.count += 1;
        }
        self.take(class, &mut runs)
    }

    fn free(&self, offset: u64) {
        let (class, run, place) = self.locate(offset);
        let mut runs = lock(&class.state);
        let freed = self.mark(run, place, false);
        debug_assert!(freed, "a block is freed once");
        let used = &self.frames.frame(run).used;
        let count = used.load(Relaxed) - 1;
        used.store(count, Relaxed);
        let full = u32::from(count) + 1 == class.blocks;
        runs.freed(&self.frames, run, full, count == 0);
        if count == 0 {
            self.frames.free(run, class.frames);
        }
    }

    fn compact(&self, need: Need, move_to: &dyn Fn(u64, Target<'_>) -> bool) -> u32 {
        let emptied = self.classes.iter().filter(|class| {
            let isolated = lock(&class.state).isolate(&self.frames, class.blocks, need);
            let Some(run) = isolated else {
                return false;
            };
            for place in 0..class.blocks {
                let bits = self.frames.frame(run + place / 64).bitmap.load(Relaxed);
                let offset = class.block(run, place).offset;
                let target = || self.beside(offset);
                if bits >> (place % 64) & 1 == 1 && !move_to(offset, &target) {
                    break;
                }
            }
            lock(&class.state).restore(&self.frames, run)
        });
        emptied.count() as u32
    }

    fn run(&self, frame: u32) -> Option<u32> {
        let class = self.class_at(frame)?;
        // Smaller blocks may be parts of the index.
        (class.size > layout::trie::BYTES).then_some(class.frames)
    }

    fn blocks(&self, run: u32, f: &mut dyn FnMut(u64) -> bool) {
        let Some(class) = self.class_at(run) else {
            return;
        };
        for place in 0..class.blocks {
            let bits = self.frames.frame(run + place / 64).bitmap.load(Relaxed);
            if bits >> (place % 64) & 1 == 1 && !f(class.block(run, place).offset) {
                break;
            }
        }
    }

    fn claim(
        &self,
        _pool: PoolNumber,
        block: Block,
        bytes: usize,
        present: &dyn Fn(u32) -> bool,
    ) -> bool {
        let Some((number, class)) = self.class_of(bytes) else {
            return false;
        };
        let inside = u64::from(block.place) * class.size as u64;
        let Some(start) = block.offset.checked_sub(inside) else {
            return false;
        };
        let Ok(run) = u32::try_from(start / FRAME) else {
            return false;
        };
        if start % FRAME != 0 || block.place >= class.blocks || run >= self.frames.count() {
            return false;
        }
        let head = self.frames.frame(run);
        let known = head.usage() == Use::Run
            && head.class.load(Relaxed) == number
            && head.position.load(Relaxed) == 0;
        if !known {
            if !self.frames.claim(run, class.frames, Use::Run, present) {
                return false;
            }
            for frame in run..run + class.frames {
                self.frames.frame(frame).class.store(number, Relaxed);
            }
            lock(&class.state).count += 1;
        }
        let claimed = self.mark(run, block.place, true);
        if claimed {
            head.used.store(head.used.load(Relaxed) + 1, Relaxed);
            lock(&class.state).used += 1;
        }
        claimed
    }

    fn settle(&self) {
        for run in 0..self.frames.count() {
            let head = self.frames.frame(run);
            if head.usage() == Use::Run && head.position.load(Relaxed) == 0 {
                let class = &self.classes[head.class.load(Relaxed) as usize];
                let mut runs = lock(&class.state);
                if u32::from(head.used.load(Relaxed)) < class.blocks {
                    runs.open(&self.frames, run);
                }
            }
        }
    }
}

/// Frames and blocks of a run for blocks of `size` bytes: the shortest run of those that waste
/// least, or hardly more.
fn shape(size: usize) -> (u32, u32) {
    let blocks = |run: u32| (run as usize * FRAME as usize / size) as u32;
    // All lengths of runs at once, so that wasted parts of them compare as integers.
    let waste = |run: u32| (run as usize * FRAME as usize % size) * (COMMON / run) as usize;
    let least = (1..=MAX_RUN).map(waste).min().unwrap_or_default();
    let best = (1..=MAX_RUN)
        .find(|run| waste(*run) <= least + NEGLIGIBLE)
        .unwrap_or(1);
    (best, blocks(best))
}

// Parts of the index have no header with a place: their classes' runs are single frames.
const _: () = assert!(FRAME as usize % MIN_BLOCK == 0 && layout::object::BYTES <= MIN_BLOCK);
const _: () = assert!(FRAME as usize % layout::trie::BYTES == 0);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_waste_little_and_fit_their_bitmaps() {
        for size in (MIN_BLOCK..=MAX_BLOCK).step_by(GRAIN) {
            let (run, blocks) = shape(size);
            let bytes = run as usize * FRAME as usize;
            let waste = bytes - blocks as usize * size;
            assert!(blocks <= run * 64 && blocks >= 1, "{size}");
            assert!(waste * 14 <= bytes, "{size}: {waste} of {bytes} wasted");
            assert!(blocks <= layout::place::ZBUD, "higher places are others'");
        }
    }
}
