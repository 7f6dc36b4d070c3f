// SPDX-License-Identifier: GPL-2.0-or-later
//! Where memory comes from when there is none: ephemeral pages go, whole frames at once, the oldest
//! first, from the client that has most of them for its weight.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use crate::entry::Entry;
use crate::layout::pool::Number as PoolNumber;
use crate::layout::{EXTENT_FRAMES, FRAME};
use crate::pool::Pool;
use crate::put::Lack;
use crate::space::Space;
use crate::sync::atomic::{AtomicU32, AtomicU64};
use crate::table::Kind;

/// Victims that may be in use, one after the other.
const TRIES: u32 = 256;
/// Evictions that have to yield a run of frames.
const ENOUGH: u32 = 64;
/// So many are passed over without waiting for one.
const PATIENCE: u32 = 8;

/// What has been evicted, and where to go on.
#[derive(Default)]
pub(crate) struct Evicted {
    frames: AtomicU64,
    unbuddied: AtomicU64,
    buddied: AtomicU64,
    nodes: AtomicU64,
    /// The frame after the node that was evicted last.
    hand: AtomicU32,
}

/// Evictions since the store was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Evictions {
    /// Frames that came free.
    pub evicted_raw_pages: u64,
    /// Pages that were alone in their frame.
    pub evicted_unbuddied_pages: u64,
    /// Pages that shared it.
    pub evicted_buddied_pages: u64,
    /// Parts of the index that held same-filled pages alone.
    pub evicted_nodes: u64,
}

impl Evicted {
    pub(crate) fn figures(&self) -> Evictions {
        Evictions {
            evicted_raw_pages: self.frames.load(Relaxed),
            evicted_unbuddied_pages: self.unbuddied.load(Relaxed),
            evicted_buddied_pages: self.buddied.load(Relaxed),
            evicted_nodes: self.nodes.load(Relaxed),
        }
    }
}

/// How the search for a victim ended.
enum Hunt {
    /// Pages have left.
    Evicted,
    /// The victim's pages, or its pool, are in use.
    Busy(Arc<Pool>),
    /// There is nothing that may be evicted.
    Nothing,
}

impl Space {
    /// Gets what a put lacks; `false`: it is not to be had. The caller holds no pool's lock, and
    /// tries again.
    pub(crate) fn reclaim(&self, lack: Lack) -> bool {
        let run = match lack {
            Lack::Frames(run) => run,
            // Any frame that comes free may be taken then.
            Lack::Reserved => 0,
            Lack::Cap => return false,
        };
        let mut hits = 0;
        let mut misses = 0;
        while hits < ENOUGH && misses < TRIES && self.ledger.has_ephemeral() {
            match self.evict(run, misses) {
                Hunt::Evicted => hits += 1,
                Hunt::Busy(pool) => {
                    misses += 1;
                    // With no lock held there is no harm in waiting, but others may be free.
                    if misses > PATIENCE {
                        pool.pass();
                    }
                    continue;
                }
                Hunt::Nothing => break,
            }
            if run == 0 || self.frames.has_run(run) {
                return true;
            }
        }
        // A single frame comes free sooner or later, a run perhaps never.
        run == 1 && hits > 0
    }

    /// Whether so many bytes are left when persistent pages keep what they have now.
    pub(crate) fn can_keep(&self, bytes: u64) -> bool {
        if bytes == 0 {
            return true;
        }
        let most = self.frames.most();
        let needed = self.frames.in_use() + bytes.div_ceil(FRAME);
        needed <= most || needed - self.evictable().min(needed) <= most
    }

    /// Frames of ephemeral pages.
    fn evictable(&self) -> u64 {
        self.holders().map(|(_, frames)| u64::from(frames)).sum()
    }

    /// The ephemeral pools that have frames, and how many.
    fn holders(&self) -> impl Iterator<Item = (Arc<Pool>, u32)> {
        let holders = self.pam.zbud().holders();
        holders.filter_map(|(number, frames)| Some((self.ephemeral_pool(number)?, frames)))
    }

    fn ephemeral_pool(&self, number: PoolNumber) -> Option<Arc<Pool>> {
        let pool = self.owners.get(number);
        pool.filter(|pool| pool.kind() != Kind::Persistent)
    }

    /// Evicts the pages of a frame, or else a node of the index, after so many misses.
    fn evict(&self, run: u32, misses: u32) -> Hunt {
        let Some(pool) = self.victim() else {
            return self.evict_node();
        };
        let zbud = self.pam.zbud();
        let Some(frame) = zbud.take_first(pool.number(), misses % 2 == 1) else {
            return Hunt::Busy(pool);
        };
        let evicted = self.evict_frame(frame);
        // A frame here and there makes no run.
        let first = frame - frame % EXTENT_FRAMES;
        let neighbours = if run > 1 { EXTENT_FRAMES } else { 0 };
        for neighbour in first..first + neighbours {
            let owner = zbud.owner(neighbour).and_then(|it| self.ephemeral_pool(it));
            let same = owner.is_some_and(|owner| Arc::ptr_eq(&owner.account, &pool.account));
            if same && !self.frames.has_run(run) {
                self.evict_frame(neighbour);
            }
        }
        if evicted {
            Hunt::Evicted
        } else {
            Hunt::Busy(pool)
        }
    }

    /// The pool that has to lose a frame: of the client that has most for its weight, and of that
    /// one's pools the one with the oldest frame.
    fn victim(&self) -> Option<Arc<Pool>> {
        let zbud = self.pam.zbud();
        let pools = self.holders().map(|(pool, _)| pool);
        pools.reduce(|one, two| {
            let shares = one.account.charge.compare_shares(&two.account.charge);
            let ages = || zbud.age(two.number()).cmp(&zbud.age(one.number()));
            if shares.then_with(ages).is_lt() {
                two
            } else {
                one
            }
        })
    }

    /// Evicts the ephemeral pages of a frame; whether any page left.
    fn evict_frame(&self, frame: u32) -> bool {
        let _watch = self.frames.watch();
        let (mut there, mut left) = (0, 0);
        for block in self.pam.zbud().blocks_in(frame) {
            there += 1;
            let evicted = self.with_owner(block, |page| {
                let ephemeral = page.is_ephemeral();
                if ephemeral {
                    page.evict();
                }
                ephemeral
            });
            left += u64::from(evicted == Some(true));
        }
        let pages = match there {
            2 => &self.evicted.buddied,
            _ => &self.evicted.unbuddied,
        };
        pages.fetch_add(left, Relaxed);
        let frames = u64::from(left > 0 && left == there);
        self.evicted.frames.fetch_add(frames, Relaxed);
        left > 0
    }

    /// Evicts all pages of a node of an ephemeral pool. Same-filled ones have no block that could
    /// be evicted, and a client may make a node for each.
    fn evict_node(&self) -> Hunt {
        let frames = self.frames.count();
        let start = self.evicted.hand.load(Relaxed) % frames;
        let mut hunt = Hunt::Nothing;
        for frame in (start..frames).chain(0..start) {
            match self.evict_node_in(frame) {
                Hunt::Evicted => {
                    self.evicted.nodes.fetch_add(1, Relaxed);
                    self.evicted.hand.store(frame + 1, Relaxed);
                    return Hunt::Evicted;
                }
                busy @ Hunt::Busy(_) => hunt = busy,
                Hunt::Nothing => {}
            }
        }
        hunt
    }

    fn evict_node_in(&self, frame: u32) -> Hunt {
        let node = self.frames.frame(frame);
        let owner = node.owner();
        let Some(pool) = owner.and_then(|owner| self.ephemeral_pool(owner)) else {
            return Hunt::Nothing;
        };
        let Some(mut state) = pool.try_lock() else {
            return Hunt::Busy(Arc::clone(&pool));
        };
        // As in `with_owner`: a pool's nodes come and go under its lock.
        let leaf = matches!(self.entry(node.parent()), Entry::Node { level: 1, .. });
        if node.owner() != owner || !leaf {
            return Hunt::Nothing;
        }
        state.evict(&pool, node.parent());
        Hunt::Evicted
    }
}
