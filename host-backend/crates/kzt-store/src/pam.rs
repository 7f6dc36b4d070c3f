// SPDX-License-Identifier: GPL-2.0-or-later
//! Page-accessible memory: what holds the bytes of compressed pages and of small index parts.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::frames::{Frames, Use};
use crate::layout::place;
use crate::layout::pool::Number as PoolNumber;
use crate::put::Lack;
use crate::raw::{self, Raw};
use crate::table::Kind;
use crate::xvmalloc::Xvmalloc;
use crate::zbud::Zbud;
use crate::zsmalloc::Zsmalloc;

/// Where a block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Block {
    /// Offset in the arena, a multiple of 16.
    pub(crate) offset: u64,
    /// Number of the block in its run, kept in the block's header: with it recovery finds the
    /// run that the block belongs to.
    pub(crate) place: u32,
}

/// Where a block that is moved may go; no new run is made for it.
pub(crate) type Target<'a> = &'a dyn Fn() -> Option<Block>;

/// How much memory is worth a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// There is memory: a good part of a class has to be free.
    Slack,
    /// Memory is short: a run is a run.
    Short,
}

/// An allocator of blocks in the arena.
///
/// Its state is private to the process; the arena's index is the truth. What it must keep:
///
/// - A block belongs to the caller from `allocate` to `free`, and no other block overlaps it.
/// - All memory comes from [`Frames`](crate::frames::Frames) and goes back there, in whole
///   runs, as soon as the last block of a run is free: the limit is kept there.
/// - `allocate` and `free` may be called from any thread, with a pool's lock held or not; the
///   allocator's own locks are inside the pools' and never wait for one.
/// - Recovery is single-threaded: `claim` for each block that the index holds, then `settle`
///   once; only after that `allocate` and `free`.
pub(crate) trait Pam: Send + Sync {
    /// A block of `bytes` (header included, at most a page and a header) for a pool's page;
    /// `None` when neither the allocator nor the frames have room.
    fn allocate(&self, pool: PoolNumber, bytes: usize) -> Option<Block>;

    /// Takes back the block at `offset`. Nothing of it may be used any more: the entry that
    /// held it has been overwritten before.
    fn free(&self, offset: u64);

    /// Empties a few runs that hold little: `move_to` moves a block if it can. How many came free.
    fn compact(&self, _need: Need, _move_to: &dyn Fn(u64, Target<'_>) -> bool) -> u32 {
        0
    }

    /// How many frames the run has that begins with a frame, if one does that holds pages alone.
    /// Without a lock that says so only for now, and so does `blocks`.
    fn run(&self, frame: u32) -> Option<u32>;

    /// Calls `f` with the offsets of a run's blocks in use, until it says `false`.
    fn blocks(&self, run: u32, f: &mut dyn FnMut(u64) -> bool);

    /// Recovery: takes the block that an entry holds, if it is one that `allocate` could have
    /// returned for `bytes`, its frames have content (`present`), and nothing overlaps it.
    fn claim(
        &self,
        pool: PoolNumber,
        block: Block,
        bytes: usize,
        present: &dyn Fn(u32) -> bool,
    ) -> bool;

    /// Recovery: all blocks in use have been claimed.
    fn settle(&self) {}
}

/// What holds a pool's pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allocator {
    /// Size classes over runs of frames: the densest.
    Zsmalloc,
    /// Blocks of any size side by side: next to nothing is lost where there are few pages.
    Xvmalloc,
    /// At most two pages in a frame.
    Zbud,
}

impl fmt::Display for Allocator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Zsmalloc => "zsmalloc",
            Self::Xvmalloc => "xvmalloc",
            Self::Zbud => "zbud",
        })
    }
}

/// The text names no allocator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown allocator {0:?}: zsmalloc, xvmalloc or zbud")]
pub struct UnknownAllocator(String);

impl FromStr for Allocator {
    type Err = UnknownAllocator;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "zsmalloc" => Ok(Self::Zsmalloc),
            "xvmalloc" => Ok(Self::Xvmalloc),
            "zbud" => Ok(Self::Zbud),
            _ => Err(UnknownAllocator(text.to_owned())),
        }
    }
}

/// All allocators of an arena. Which one a block is of, its frame's record says, and to recovery the
/// block's place.
pub(crate) struct Pams {
    frames: Arc<Frames>,
    zsmalloc: Zsmalloc,
    xvmalloc: Xvmalloc,
    zbud: Zbud,
    raw: Raw,
    persistent: Allocator,
}

impl Pams {
    pub(crate) fn new(frames: &Arc<Frames>, persistent: Allocator) -> Self {
        Self {
            frames: Arc::clone(frames),
            zsmalloc: Zsmalloc::new(Arc::clone(frames)),
            xvmalloc: Xvmalloc::new(Arc::clone(frames)),
            zbud: Zbud::new(Arc::clone(frames)),
            raw: Raw::new(Arc::clone(frames)),
            persistent,
        }
    }

    /// A block for a small part of the index.
    pub(crate) fn allocate(&self, bytes: usize) -> Option<Block> {
        self.zsmalloc.allocate(0, bytes)
    }

    /// A block for a page that is no single pool's.
    pub(crate) fn allocate_shared(&self, bytes: usize) -> Option<Block> {
        let pam: &dyn Pam = match self.persistent {
            _ if bytes == raw::BLOCK => &self.raw,
            Allocator::Xvmalloc => &self.xvmalloc,
            // Buddies have a pool.
            Allocator::Zsmalloc | Allocator::Zbud => &self.zsmalloc,
        };
        pam.allocate(0, bytes)
    }

    /// A block for a page of a pool of that kind; `anywhere`: with whatever allocator has one.
    pub(crate) fn allocate_page(
        &self,
        kind: Kind,
        pool: PoolNumber,
        bytes: usize,
        anywhere: bool,
    ) -> Result<Block, Lack> {
        let buddy = || {
            let block = self.zbud.allocate(pool, bytes);
            block.ok_or(Lack::Frames(Zbud::run_of(bytes)))
        };
        if kind != Kind::Persistent {
            return buddy();
        }
        if bytes == raw::BLOCK {
            let block = self.raw.allocate(pool, bytes);
            return block.ok_or(Lack::Frames(1));
        }
        let (pam, run): (&dyn Pam, u32) = match self.persistent {
            Allocator::Zbud => return buddy(),
            Allocator::Zsmalloc => (&self.zsmalloc, self.zsmalloc.run_of(bytes)),
            Allocator::Xvmalloc => (&self.xvmalloc, Xvmalloc::RUN),
        };
        match pam.allocate(pool, bytes) {
            Some(block) => Ok(block),
            // It gets by with the shortest runs.
            None if anywhere => buddy(),
            None => Err(Lack::Frames(run)),
        }
    }

    /// Makes a page's block one that is evicted last.
    pub(crate) fn touch(&self, offset: u64) {
        if self.frames.at(offset).usage() == Use::Buddies {
            self.zbud.touch(offset);
        }
    }

    /// The allocator of ephemeral pages.
    pub(crate) fn zbud(&self) -> &Zbud {
        &self.zbud
    }

    /// What raw pages are in.
    pub(crate) fn raw(&self) -> &Raw {
        &self.raw
    }

    pub(crate) fn free(&self, offset: u64) {
        match self.frames.at(offset).usage() {
            Use::Buddies => self.zbud.free(offset),
            Use::Run => self.zsmalloc.free(offset),
            Use::Chunks => self.xvmalloc.free(offset),
            Use::Headers => self.raw.free(offset),
            Use::Free | Use::Node | Use::Raw => debug_assert!(false, "{offset:#x} is no block"),
        }
    }

    pub(crate) fn compact(&self, need: Need, move_to: &dyn Fn(u64, Target<'_>) -> bool) -> u32 {
        let pams: [&dyn Pam; 3] = [&self.zsmalloc, &self.xvmalloc, &self.raw];
        pams.iter().map(|pam| pam.compact(need, move_to)).sum()
    }

    /// How many frames the run has that begins with a frame, if one does that holds pages alone.
    pub(crate) fn run(&self, frame: u32) -> Option<u32> {
        self.of(frame)?.run(frame)
    }

    /// Calls `f` with the offsets of a run's blocks in use, until it says `false`.
    pub(crate) fn blocks(&self, run: u32, f: &mut dyn FnMut(u64) -> bool) {
        if let Some(pam) = self.of(run) {
            pam.blocks(run, f);
        }
    }

    fn of(&self, frame: u32) -> Option<&dyn Pam> {
        match self.frames.frame(frame).usage() {
            Use::Buddies => Some(&self.zbud),
            Use::Run => Some(&self.zsmalloc),
            Use::Chunks => Some(&self.xvmalloc),
            Use::Raw => Some(&self.raw),
            Use::Free | Use::Node | Use::Headers => None,
        }
    }

    /// Recovery: takes what [`allocate`](Self::allocate) has returned.
    pub(crate) fn claim(&self, block: Block, bytes: usize, present: &dyn Fn(u32) -> bool) -> bool {
        self.claim_page(0, block, bytes, present)
    }

    /// Recovery: takes the block of a pool's page.
    pub(crate) fn claim_page(
        &self,
        pool: PoolNumber,
        block: Block,
        bytes: usize,
        present: &dyn Fn(u32) -> bool,
    ) -> bool {
        let pam: &dyn Pam = match block.place {
            ..place::ZBUD => &self.zsmalloc,
            place::RAW => &self.raw,
            place::XVMALLOC.. => &self.xvmalloc,
            _ => &self.zbud,
        };
        pam.claim(pool, block, bytes, present)
    }

    /// Recovery: all blocks in use have been claimed.
    pub(crate) fn settle(&self) {
        self.zsmalloc.settle();
        self.xvmalloc.settle();
        self.raw.settle();
    }
}
