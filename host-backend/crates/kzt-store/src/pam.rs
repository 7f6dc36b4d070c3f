// SPDX-License-Identifier: GPL-2.0-or-later
//! Page-accessible memory: what holds the bytes of compressed pages and of small index parts.

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
    /// A block of `bytes` (header included, at most a page and a header); `None` when neither
    /// the allocator nor the frames have room.
    fn allocate(&self, bytes: usize) -> Option<Block>;

    /// Takes back the block at `offset`. Nothing of it may be used any more: the entry that
    /// held it has been overwritten before.
    fn free(&self, offset: u64);

    /// Empties a few runs that hold little: `move_to` moves a block if it can. How many came free.
    fn compact(&self, need: Need, move_to: &dyn Fn(u64, Target<'_>) -> bool) -> u32;

    /// Recovery: takes the block that an entry holds, if it is one that `allocate` could have
    /// returned for `bytes`, its frames have content (`present`), and nothing overlaps it.
    fn claim(&self, block: Block, bytes: usize, present: &dyn Fn(u32) -> bool) -> bool;

    /// Recovery: all blocks in use have been claimed.
    fn settle(&self);
}
