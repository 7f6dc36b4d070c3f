// SPDX-License-Identifier: GPL-2.0-or-later
//! From a block to the pool whose page is in it: for whoever wants its memory rather than its page.

use std::sync::{Arc, Weak};

use crate::entry::{Entry, Spilled};
use crate::layout::pool::{Number, SLOTS};
use crate::layout::{CHECK, Location, hash_of};
use crate::lock;
use crate::pool::{Pool, State};
use crate::space::{Held, Space};
use crate::sync::Mutex;
use crate::table::Kind;

/// The pools by number. Its locks are innermost and held for no longer than a copy takes.
pub(crate) struct Owners(Box<[Mutex<Weak<Pool>>]>);

impl Owners {
    pub(crate) fn new() -> Self {
        Self((0..SLOTS).map(|_| Mutex::default()).collect())
    }

    /// Notes the pool of a slot, until it is dropped or another one is noted.
    pub(crate) fn note(&self, number: Number, pool: &Arc<Pool>) {
        if let Some(owner) = self.0.get(usize::from(number)) {
            *lock(owner) = Arc::downgrade(pool);
        }
    }

    pub(crate) fn get(&self, number: Number) -> Option<Arc<Pool>> {
        lock(self.0.get(usize::from(number))?).upgrade()
    }
}

/// A block that leads to its page or to a record, with what keeps both from changing.
pub(crate) struct Owned<'a> {
    space: &'a Space,
    /// The page's pool, locked; `None` for a record, whose shard is.
    pool: Option<(&'a Pool, &'a mut State)>,
    pub(crate) offset: u64,
    /// What the block holds, and the slot of its entry.
    pub(crate) location: Location,
}

impl Owned<'_> {
    /// Swings the entry to `entry`, which holds `held`, and frees the block. Users of a record hold
    /// what they did: they are charged in full for a page, wherever it is.
    pub(crate) fn replace(self, entry: Entry, held: Held) {
        let old = Entry::Block(self.offset);
        self.space.publish(self.location.slot, old, entry);
        let freed = self.space.free_block(self.offset);
        match (self.pool, entry) {
            (Some((_, state)), _) => {
                state.held += held;
                state.held -= freed;
            }
            (None, Entry::Spilled(at)) => self.space.sharing.count_spilled(at),
            (None, _) => {}
        }
    }

    /// Whether it leads to a record.
    pub(crate) fn is_shared(&self) -> bool {
        self.pool.is_none()
    }

    /// Whether the page may vanish.
    pub(crate) fn is_ephemeral(&self) -> bool {
        self.pool
            .as_ref()
            .is_some_and(|(pool, _)| pool.kind() != Kind::Persistent)
    }

    /// Removes the page.
    pub(crate) fn evict(self) {
        if let Some((pool, state)) = self.pool {
            state.evict(pool, self.location.slot);
        }
    }
}

impl Space {
    /// Calls `f` with what is in the block at `offset`, under its owner's lock; `None` if there is
    /// nothing (yet, or any more), or the owner is busy.
    ///
    /// Nothing that is read before the lock is held is believed: the block may be anybody's. But the
    /// caller has it from its allocator, under [`watch`](crate::frames::Frames::watch).
    pub(crate) fn with_owner<R>(&self, offset: u64, f: impl FnOnce(Owned<'_>) -> R) -> Option<R> {
        let slot = Location::decode(self.arena.load(offset))?.slot;
        let hash = hash_of(self.arena.load(offset + CHECK));
        self.with_slot(slot, hash, |page| (page.offset == offset).then(|| f(page)))
            .flatten()
    }

    /// The same for the block that is known by the slot it leads to and its hash; nothing of the
    /// arena is read that may be nobody's.
    pub(crate) fn with_slot<R>(
        &self,
        slot: u64,
        hash: u32,
        f: impl FnOnce(Owned<'_>) -> R,
    ) -> Option<R> {
        if self.frames.get(slot)?.owner().is_some() {
            return self.with_page(slot, |_, page| f(page));
        }
        self.with_record(slot, hash, |entry| {
            let Entry::Block(offset) = entry else {
                return None;
            };
            let location = Location::decode(self.arena.load(offset))?;
            let block = Owned {
                space: self,
                pool: None,
                offset,
                location,
            };
            (location.slot == slot).then(|| f(block))
        })
    }

    /// Calls `f` with the page in a slot, if it has a block for itself, and its pool, which is
    /// locked; `None` if there is none, or the pool is busy.
    pub(crate) fn with_page<R>(
        &self,
        slot: u64,
        f: impl FnOnce(&Pool, Owned<'_>) -> R,
    ) -> Option<R> {
        let number = self.frames.get(slot)?.owner()?;
        let pool = self.owners.get(number)?;
        let mut state = pool.try_lock()?;
        // Entries in nodes of this pool change under its lock alone: if the node is the pool's and
        // the block names the slot, the block is the page's until the lock is given back.
        if self.frames.get(slot)?.owner() != Some(number) {
            return None;
        }
        let Entry::Block(offset) = self.entry(slot) else {
            return None;
        };
        let location = Location::decode(self.arena.load(offset))?;
        let page = Owned {
            space: self,
            pool: Some((&pool, &mut state)),
            offset,
            location,
        };
        (location.slot == slot).then(|| f(&pool, page))
    }

    /// Calls `f` with the state of the pool whose page in `slot` is in the spill file, at `at`, under
    /// its lock, or without any if the slot is the record's of a page with that hash; `None` if it is
    /// there no more. Unlike the others it waits for a busy pool: who has no room left to put a page
    /// aside can't leave it where it is.
    pub(crate) fn with_spilled<R>(
        &self,
        slot: u64,
        hash: u32,
        at: Spilled,
        f: impl FnOnce(Option<&mut State>) -> R,
    ) -> Option<R> {
        let Some(number) = self.frames.get(slot)?.owner() else {
            return self.with_record(slot, hash, |entry| {
                (entry == Entry::Spilled(at)).then(|| f(None))
            });
        };
        let pool = self.owners.get(number)?;
        let mut state = pool.lock_alive()?;
        let ours = self.frames.get(slot)?.owner() == Some(number);
        (ours && self.entry(slot) == Entry::Spilled(at)).then(|| f(Some(&mut state)))
    }
}
