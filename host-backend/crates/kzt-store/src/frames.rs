// SPDX-License-Identifier: GPL-2.0-or-later
//! Frames: who uses which, and which extents have host memory behind them.
//!
//! All of it is private to the process and rebuilt by recovery. A frame's record ([`Frame`]) is
//! guarded by the lock of whoever owns the frame (a size class, a pool's index); the extents
//! have a lock of their own, which is the innermost of all.

// Indices are frame and extent numbers made by this module for tables it sized itself; claims
// from the arena are checked against `contains` first.
#![expect(
    clippy::indexing_slicing,
    reason = "process-private tables, indices made here"
)]

use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError, TryLockError};

use crate::arena::Arena;
use crate::entry::Entry;
use crate::layout::pool::Number as PoolNumber;
use crate::layout::{EXTENT, EXTENT_FRAMES, FRAME};
use crate::lock;
use crate::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64};
use crate::sync::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard};

/// No frame or extent: the end of a list.
pub(crate) const NONE: u32 = u32::MAX;

/// The owner of what is no node.
const NOBODY: PoolNumber = PoolNumber::MAX;

/// Ready extents (backed by host memory, unused) that upkeep keeps in stock for the page path.
const LOW: u32 = 16;
const TARGET: u32 = 32;
/// More ready extents than this go back to the host, down to `TARGET`.
const HIGH: u32 = 64;

/// What a frame is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Use {
    Free = 0,
    Node = 1,
    Run = 2,
    Buddies = 3,
    /// Of raw pages.
    Headers = 4,
    /// A raw page.
    Raw = 5,
    /// A run of `xvmalloc`.
    Chunks = 6,
}

/// One frame's record: 24 bytes for every 4 KiB of arena.
pub(crate) struct Frame {
    /// Run: blocks in use, 64 a frame. Chunks: see `xvmalloc`. Buddies: see `zbud`. Headers: number of their list, see `raw`.
    /// Raw page: offset of its header. Node: offset of its entry's slot.
    pub(crate) bitmap: AtomicU64,
    /// Run: neighbours in a list of runs with room; headers and chunks alike. Buddies: in their
    /// pool's.
    pub(crate) next: AtomicU32,
    pub(crate) prev: AtomicU32,
    /// Run's head: blocks in use; headers alike. Chunks: those in use. Node: entries that are not empty.
    pub(crate) used: AtomicU16,
    usage: AtomicU8,
    /// Run: the size class. Chunks' head: the list it is in.
    pub(crate) class: AtomicU8,
    /// Run, chunks: number of this frame in it.
    pub(crate) position: AtomicU8,
    /// Run: whether one of its pages has been got since [`Frames::cool`].
    warm: AtomicBool,
    /// Node: the pool whose it is. [`NOBODY`] for all else.
    owner: AtomicU16,
}

impl Default for Frame {
    fn default() -> Self {
        Self {
            bitmap: AtomicU64::new(0),
            next: AtomicU32::new(NONE),
            prev: AtomicU32::new(NONE),
            used: AtomicU16::new(0),
            usage: AtomicU8::new(Use::Free as u8),
            class: AtomicU8::new(0),
            position: AtomicU8::new(0),
            warm: AtomicBool::new(false),
            owner: AtomicU16::new(NOBODY),
        }
    }
}

impl Frame {
    pub(crate) fn usage(&self) -> Use {
        match self.usage.load(Relaxed) {
            0 => Use::Free,
            1 => Use::Node,
            2 => Use::Run,
            3 => Use::Buddies,
            4 => Use::Headers,
            5 => Use::Raw,
            _ => Use::Chunks,
        }
    }

    /// The pool whose node this is. It changes from and to a pool under that pool's lock alone: who
    /// holds the lock and reads the pool's number here knows that the node is the pool's.
    pub(crate) fn owner(&self) -> Option<PoolNumber> {
        let owner = self.owner.load(Relaxed);
        (owner != NOBODY).then_some(owner)
    }

    /// Marks the run as being in use.
    pub(crate) fn warm(&self) {
        // Mostly it is, and other threads look at the record, too.
        if !self.warm.load(Relaxed) {
            self.warm.store(true, Relaxed);
        }
    }

    /// The slot that holds a node's entry, in a node or an object's record.
    pub(crate) fn parent(&self) -> u64 {
        self.bitmap.load(Relaxed)
    }

    pub(crate) fn set_parent(&self, slot: u64) {
        self.bitmap.store(slot, Relaxed);
    }

    fn take(&self, usage: Use) {
        self.owner.store(NOBODY, Relaxed);
        self.usage.store(usage as u8, Relaxed);
        self.used.store(0, Relaxed);
        self.bitmap.store(0, Relaxed);
    }
}

/// All frames of an arena.
pub(crate) struct Frames {
    arena: Arc<Arena>,
    records: Box<[Frame]>,
    extents: Mutex<Extents>,
    /// Signalled when an extent has arrived: see [`Extents::moving`].
    arrived: Condvar,
    /// Outermost, and never waited for by who punches: see [`watch`](Frames::watch).
    watched: RwLock<()>,
}

/// What a call of upkeep did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Upkeep {
    /// Extents of 64 KiB made ready for the page path.
    pub readied: u32,
    /// Extents of 64 KiB given back to the host.
    pub returned: u32,
    /// Runs of frames whose blocks were moved elsewhere.
    pub emptied: u32,
    /// Batches of cold pages written into the spill file.
    pub spilled: u32,
    /// Clusters of 256 KiB of that file given back to its disk.
    pub punched: u32,
}

impl Upkeep {
    /// Whether there was nothing to do: call again later rather than sooner.
    #[must_use]
    pub fn is_idle(self) -> bool {
        self == Self::default()
    }
}

impl Frames {
    /// Every extent is a hole, but for the first, which holds header and pool table.
    pub(crate) fn new(arena: Arc<Arena>, memory: u64) -> Self {
        let count = arena.len() / EXTENT;
        let records = (0..count * u64::from(EXTENT_FRAMES))
            .map(|_| Frame::default())
            .collect();
        let extents = Extents::new(count as u32, (memory / EXTENT) as u32);
        Self {
            arena,
            records,
            extents: Mutex::new(extents),
            arrived: Condvar::new(),
            watched: RwLock::new(()),
        }
    }

    /// The arena that they are of.
    pub(crate) fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }

    /// The record of a frame, by number.
    pub(crate) fn frame(&self, number: u32) -> &Frame {
        &self.records[number as usize]
    }

    /// The record of the frame that holds an offset from somewhere doubtful.
    pub(crate) fn get(&self, offset: u64) -> Option<&Frame> {
        self.records.get((offset / FRAME) as usize)
    }

    /// The record of the frame that holds an offset of the arena.
    pub(crate) fn at(&self, offset: u64) -> &Frame {
        self.frame((offset / FRAME) as u32)
    }

    /// How many frames there are.
    pub(crate) fn count(&self) -> u32 {
        self.records.len() as u32
    }

    fn extents(&self) -> MutexGuard<'_, Extents> {
        lock(&self.extents)
    }

    /// Takes `length` (1 to 16) contiguous frames of one extent, backed by host memory; the
    /// first one's number. `None`: the limit is reached or the host's tmpfs is full.
    pub(crate) fn allocate(&self, length: u32, usage: Use) -> Option<u32> {
        let first = self.reserve(length)?;
        for number in first..first + length {
            let frame = self.frame(number);
            frame.take(usage);
            frame.position.store((number - first) as u8, Relaxed);
        }
        Some(first)
    }

    fn reserve(&self, length: u32) -> Option<u32> {
        let mut extents = self.extents();
        loop {
            if let Some(first) = extents.take(length) {
                return Some(first);
            }
            // Nothing in stock. What is on its way right now may be the last there is.
            if let Some(hole) = extents.take_hole() {
                extents = self.back(extents, hole)?;
            } else if extents.moving > 0 {
                extents = self
                    .arrived
                    .wait(extents)
                    .unwrap_or_else(PoisonError::into_inner);
            } else {
                return None;
            }
        }
    }

    /// Backs a hole, which takes the host tens of microseconds: not under the lock. `None` if
    /// it has no memory.
    fn back<'a>(
        &'a self,
        extents: MutexGuard<'a, Extents>,
        hole: u32,
    ) -> Option<MutexGuard<'a, Extents>> {
        drop(extents);
        let backed = self.arena.back(u64::from(hole) * EXTENT).is_ok();
        let extents = self.arrive(hole, backed);
        backed.then_some(extents)
    }

    /// Gives an extent back to the host, unless somebody has asked that none be.
    fn punch(&self, extent: u32) -> bool {
        let unwatched = match self.watched.try_write() {
            Ok(unwatched) => unwatched,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        let punched = self.arena.punch(u64::from(extent) * EXTENT).is_ok();
        drop(unwatched);
        punched
    }

    /// While this is held, no memory goes back to the host. To be held by who reads blocks that are
    /// somebody else's and may come free meanwhile: what is in use now can be read until then. To
    /// read a hole would allocate it, beyond the limit, or end the process on a full tmpfs.
    pub(crate) fn watch(&self) -> RwLockReadGuard<'_, ()> {
        self.watched.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts an extent where it belongs that has been backed or punched, or could not be.
    fn arrive(&self, extent: u32, backed: bool) -> MutexGuard<'_, Extents> {
        let mut extents = self.extents();
        extents.arrive(extent, backed);
        self.arrived.notify_all();
        extents
    }

    /// Gives back what `allocate` returned.
    pub(crate) fn free(&self, first: u32, length: u32) {
        for number in first..first + length {
            self.frame(number).take(Use::Free);
        }
        self.extents().put(first, length);
    }

    /// Takes a frame for a radix node of a pool, whose lock is held; its words are all `fill`.
    pub(crate) fn allocate_node(&self, pool: PoolNumber, fill: Entry) -> Option<u64> {
        let number = self.allocate(1, Use::Node)?;
        self.own(number, pool);
        let offset = u64::from(number) * FRAME;
        // Neither nothing nor poison says where it is.
        self.arena.fill_frame(offset, fill.encode(offset));
        Some(offset)
    }

    /// Notes whose node a frame is.
    fn own(&self, number: u32, pool: PoolNumber) {
        self.frame(number).owner.store(pool, Relaxed);
    }

    pub(crate) fn free_node(&self, offset: u64) {
        self.free((offset / FRAME) as u32, 1);
    }

    /// Makes extents ready or gives them back, whichever is due; never holds the lock during a
    /// system call.
    pub(crate) fn maintain(&self) -> Upkeep {
        let mut done = Upkeep::default();
        let mut extents = self.extents();
        if extents.ready < LOW {
            while extents.ready < TARGET {
                let Some(hole) = extents.take_hole() else {
                    break;
                };
                let Some(guard) = self.back(extents, hole) else {
                    break;
                };
                extents = guard;
                done.readied += 1;
            }
        } else if extents.ready > HIGH {
            while extents.ready > TARGET {
                let Some(ready) = extents.take_ready() else {
                    break;
                };
                drop(extents);
                let punched = self.punch(ready);
                extents = self.arrive(ready, !punched);
                if !punched {
                    break;
                }
                done.returned += 1;
            }
        }
        done
    }

    /// Whether no extent is left to be backed: what is used next has to be free already.
    pub(crate) fn short(&self) -> bool {
        let extents = self.extents();
        extents.backed >= extents.limit && extents.ready < LOW
    }

    /// Takes the marks of use off a run; whether there were any.
    pub(crate) fn cool(&self, run: u32, length: u32) -> bool {
        (run..run + length).fold(false, |warm, number| {
            self.frame(number).warm.swap(false, Relaxed) | warm
        })
    }

    /// Whether less than one frame in `part` is free.
    pub(crate) fn scarce(&self, part: u64) -> bool {
        let extents = self.extents();
        let all = u64::from(extents.limit) * u64::from(EXTENT_FRAMES);
        all.saturating_sub(extents.in_use + u64::from(EXTENT_FRAMES)) * part < all
    }

    /// Most that may be in use.
    pub(crate) fn most(&self) -> u64 {
        u64::from(self.extents().limit - 1) * u64::from(EXTENT_FRAMES)
    }

    /// Whether `length` contiguous frames are free and backed.
    pub(crate) fn has_run(&self, length: u32) -> bool {
        let extents = self.extents();
        extents.by_run[length as usize..]
            .iter()
            .any(|list| *list != NONE)
    }

    /// Frames in use, without the first extent.
    pub(crate) fn in_use(&self) -> u64 {
        self.extents().in_use
    }

    /// Recovery: takes `length` frames that the index says are used, if they are free, lie in
    /// one extent behind the header's, and `present` says they have content.
    pub(crate) fn claim(
        &self,
        first: u32,
        length: u32,
        usage: Use,
        present: impl Fn(u32) -> bool,
    ) -> bool {
        let claimable = self.is_claimable(first, length, present);
        if claimable {
            for number in first..first + length {
                let frame = self.frame(number);
                frame.take(usage);
                frame.position.store((number - first) as u8, Relaxed);
            }
        }
        claimable
    }

    /// Recovery: whether `claim` takes these frames.
    pub(crate) fn is_claimable(
        &self,
        first: u32,
        length: u32,
        present: impl Fn(u32) -> bool,
    ) -> bool {
        let Some(last) = first.checked_add(length - 1) else {
            return false;
        };
        first >= EXTENT_FRAMES
            && last < self.count()
            && first / EXTENT_FRAMES == last / EXTENT_FRAMES
            && (first..=last)
                .all(|number| self.frame(number).usage() == Use::Free && present(number))
    }

    /// Recovery: takes the frame of a pool's radix node, as `claim` does.
    pub(crate) fn claim_node(
        &self,
        pool: PoolNumber,
        number: u32,
        present: impl Fn(u32) -> bool,
    ) -> bool {
        let claimed = self.claim(number, 1, Use::Node, present);
        if claimed {
            self.own(number, pool);
        }
        claimed
    }

    /// Recovery: settles every extent by the frames that were claimed. Those in use are backed
    /// in full again (a host that died while punching may have left holes), the others are
    /// holes from now on. The extents in use, with the first.
    pub(crate) fn settle(&self, present: impl Fn(u32) -> bool) -> io::Result<u32> {
        let mut extents = self.extents();
        extents.clear();
        let mut held = 1;
        for extent in 1..extents.table.len() as u32 {
            let offset = u64::from(extent) * EXTENT;
            let mut frames = extent * EXTENT_FRAMES..(extent + 1) * EXTENT_FRAMES;
            let mut free = 0_u16;
            for (bit, number) in frames.clone().enumerate() {
                free |= u16::from(self.frame(number).usage() == Use::Free) << bit;
            }
            if free == u16::MAX {
                if frames.any(&present) {
                    self.arena.punch(offset)?;
                }
                extents.add_unused(extent);
            } else {
                // Only a file that was tampered with has holes here. Without memory for them
                // their frames stay unused.
                if !frames.clone().all(&present) && self.arena.back(offset).is_err() {
                    for (bit, number) in frames.enumerate() {
                        free &= !(u16::from(!present(number)) << bit);
                    }
                }
                extents.add_used(extent, free);
                held += 1;
            }
        }
        Ok(held)
    }
}

/// An extent's record.
#[derive(Clone, Copy)]
struct Extent {
    /// A bit for every free frame; meaningless for holes.
    free: u16,
    next: u32,
    prev: u32,
}

/// The extents by what can be had from them.
struct Extents {
    table: Box<[Extent]>,
    /// Heads of the lists of backed extents, by their longest run of free frames.
    by_run: [u32; EXTENT_FRAMES as usize + 1],
    /// Head of the list of extents without host memory.
    holes: u32,
    /// Extents that have host memory, being backed and punched included: at most `limit`.
    backed: u32,
    limit: u32,
    /// Of these, the ones being backed or punched right now: in no list, and free soon.
    moving: u32,
    /// Backed extents that are wholly free.
    ready: u32,
    /// Frames in use.
    in_use: u64,
}

impl Extents {
    fn new(count: u32, limit: u32) -> Self {
        let blank = Extent {
            free: 0,
            next: NONE,
            prev: NONE,
        };
        let mut extents = Self {
            table: vec![blank; count as usize].into_boxed_slice(),
            by_run: [NONE; EXTENT_FRAMES as usize + 1],
            holes: NONE,
            backed: 1,
            limit,
            moving: 0,
            ready: 0,
            in_use: 0,
        };
        extents.clear();
        for extent in (1..count).rev() {
            extents.add_unused(extent);
        }
        extents
    }

    fn clear(&mut self) {
        self.by_run.fill(NONE);
        self.holes = NONE;
        self.backed = 1;
        self.ready = 0;
        self.in_use = 0;
    }

    /// Takes frames from the backed extent that they fit most tightly.
    fn take(&mut self, length: u32) -> Option<u32> {
        let run = (length as usize..self.by_run.len()).find(|&run| self.by_run[run] != NONE)?;
        let extent = self.by_run[run];
        let free = self.table[extent as usize].free;
        // Bits that start a run of `length` free frames.
        let starts = (1..length).fold(free, |starts, shift| starts & free >> shift);
        let bit = starts.trailing_zeros();
        self.change(extent, free & !mask(bit, length));
        self.in_use += u64::from(length);
        Some(extent * EXTENT_FRAMES + bit)
    }

    fn put(&mut self, first: u32, length: u32) {
        let extent = first / EXTENT_FRAMES;
        let free = self.table[extent as usize].free;
        self.change(extent, free | mask(first % EXTENT_FRAMES, length));
        self.in_use -= u64::from(length);
    }

    /// Moves a backed extent to the list that its new free frames belong to.
    fn change(&mut self, extent: u32, free: u16) {
        self.unlist(extent);
        self.list(extent, free);
    }

    fn list(&mut self, extent: u32, free: u16) {
        self.ready += u32::from(free == u16::MAX);
        let run = longest_run(free);
        let next = self.by_run[run];
        self.table[extent as usize] = Extent {
            free,
            next,
            prev: NONE,
        };
        if next != NONE {
            self.table[next as usize].prev = extent;
        }
        self.by_run[run] = extent;
    }

    fn unlist(&mut self, extent: u32) {
        let Extent { free, next, prev } = self.table[extent as usize];
        self.ready -= u32::from(free == u16::MAX);
        if prev == NONE {
            self.by_run[longest_run(free)] = next;
        } else {
            self.table[prev as usize].next = next;
        }
        if next != NONE {
            self.table[next as usize].prev = prev;
        }
    }

    /// Takes a hole to be backed; its memory counts from now on.
    fn take_hole(&mut self) -> Option<u32> {
        let hole = self.holes;
        if hole == NONE || self.backed >= self.limit {
            return None;
        }
        self.holes = self.table[hole as usize].next;
        self.backed += 1;
        self.moving += 1;
        Some(hole)
    }

    /// Takes a free extent to be punched; its memory counts until it has arrived as a hole.
    fn take_ready(&mut self) -> Option<u32> {
        let extent = self.by_run[EXTENT_FRAMES as usize];
        (extent != NONE).then(|| {
            self.unlist(extent);
            self.moving += 1;
            extent
        })
    }

    /// What was taken has host memory now, or none.
    fn arrive(&mut self, extent: u32, backed: bool) {
        self.moving -= 1;
        if backed {
            self.list(extent, u16::MAX);
        } else {
            self.backed -= 1;
            self.add_unused(extent);
        }
    }

    fn add_unused(&mut self, extent: u32) {
        self.table[extent as usize].next = self.holes;
        self.holes = extent;
    }

    fn add_used(&mut self, extent: u32, free: u16) {
        self.backed += 1;
        self.in_use += u64::from(free.count_zeros());
        self.list(extent, free);
    }
}

/// `length` bits from `bit` on.
fn mask(bit: u32, length: u32) -> u16 {
    u16::MAX >> (EXTENT_FRAMES - length) << bit
}

fn longest_run(mut free: u16) -> usize {
    let mut run = 0;
    while free != 0 {
        free &= free >> 1;
        run += 1;
    }
    run
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn longest_run_counts_the_widest_gap() {
        assert_eq!(longest_run(0), 0);
        assert_eq!(longest_run(0b0110_1110), 3);
        assert_eq!(longest_run(u16::MAX), 16);
    }

    #[test]
    fn frames_are_taken_from_the_tightest_fit() {
        let mut extents = Extents::new(4, 4);
        for _ in 0..2 {
            let hole = extents.take_hole().unwrap();
            extents.arrive(hole, true);
        }
        let a = extents.take(12).unwrap();
        assert_eq!(
            extents.take(4).unwrap(),
            a + 12,
            "the rest of the first extent fits exactly"
        );
        extents.put(a, 12);
        let b = extents.take(16).unwrap();
        assert_ne!(a / EXTENT_FRAMES, b / EXTENT_FRAMES, "a whole one is left");
        assert_eq!(extents.in_use, 20);
        assert_eq!(extents.take(13), None);
    }

    #[test]
    fn no_more_extents_are_backed_than_the_limit_allows() {
        let mut extents = Extents::new(10, 3);
        let holes: Vec<_> = std::iter::from_fn(|| extents.take_hole()).collect();
        assert_eq!(holes.len(), 2, "the header's extent counts");
        extents.arrive(holes[0], false);
        assert!(extents.take_hole().is_some());
    }

    /// Else who moves or evicts others' blocks could read a hole, and thereby allocate it.
    #[test]
    fn no_memory_goes_back_while_blocks_are_watched() {
        let path = format!("/dev/shm/kzt-store-frames-{}", std::process::id());
        let file = crate::arena::ArenaFile::open(std::path::Path::new(&path)).unwrap();
        let memory = 2 * u64::from(HIGH) * EXTENT;
        let arena = Arc::new(file.map(memory).unwrap());
        std::fs::remove_file(&path).unwrap();
        let frames = Frames::new(arena, memory);
        let runs: Vec<_> = (0..=HIGH)
            .map(|_| frames.allocate(EXTENT_FRAMES, Use::Run).unwrap())
            .collect();
        for run in runs {
            frames.free(run, EXTENT_FRAMES);
        }
        let watch = frames.watch();
        assert_eq!(frames.maintain(), Upkeep::default());
        drop(watch);
        assert_eq!(frames.maintain().returned, HIGH + 1 - TARGET);
    }

    /// Else a put at the limit would be refused for an extent that is being given back.
    #[test]
    fn extents_under_way_are_known_in_both_directions() {
        let mut extents = Extents::new(3, 3);
        for _ in 0..2 {
            let hole = extents.take_hole().unwrap();
            assert_eq!(extents.moving, 1);
            extents.arrive(hole, true);
        }
        let punched = extents.take_ready().unwrap();
        extents.take(16).unwrap();
        assert_eq!((extents.take(1), extents.take_hole()), (None, None));
        assert_eq!(extents.moving, 1, "it is worth waiting");
        extents.arrive(punched, false);
        assert_eq!(extents.moving, 0);
        assert_eq!(extents.take_hole(), Some(punched));
    }
}
