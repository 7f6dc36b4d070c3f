// SPDX-License-Identifier: GPL-2.0-or-later
//! From a block to the pool whose page is in it: for whoever wants its memory rather than its page.

use std::sync::{Arc, Mutex, Weak};

use crate::entry::Entry;
use crate::layout::Location;
use crate::layout::pool::{Number, SLOTS};
use crate::lock;
use crate::pool::{Pool, State};
use crate::space::{Held, Space};

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

    fn get(&self, number: Number) -> Option<Arc<Pool>> {
        lock(self.0.get(usize::from(number))?).upgrade()
    }
}

/// A page in a block, its pool locked.
pub(crate) struct Owned<'a> {
    space: &'a Space,
    state: &'a mut State,
    /// What the block holds, and the slot of its entry.
    pub(crate) location: Location,
}

impl Owned<'_> {
    /// Swings the page's entry to `entry`, which holds `held`, and frees the block.
    pub(crate) fn replace(self, entry: Entry, held: Held) {
        let at = self.location.slot;
        let old = self.space.entry(at);
        self.space.publish(at, old, entry);
        self.state.held += held;
        self.state.held -= self.space.release(old);
    }
}

impl Space {
    /// Calls `f` with the page that is in the block at `offset`, under its pool's lock; `None` if
    /// there is none (yet, or any more), or the pool is busy.
    ///
    /// Nothing that is read before the lock is held is believed: the block may be anybody's.
    pub(crate) fn with_owner<R>(&self, offset: u64, f: impl FnOnce(Owned<'_>) -> R) -> Option<R> {
        let slot = Location::decode(self.arena.load(offset))?.slot;
        let number = self.frames.get(slot)?.owner()?;
        let pool = self.owners.get(number)?;
        let mut state = pool.try_lock()?;
        // Entries in nodes of this pool change under its lock alone: if the node is the pool's and
        // the entry leads here, the block is the page's until the lock is given back.
        let location = Location::decode(self.arena.load(offset))?;
        let ours = location.slot == slot && self.frames.get(slot)?.owner() == Some(number);
        let found = self.entry(slot);
        (ours && found == Entry::Block(offset)).then(|| {
            f(Owned {
                space: self,
                state: &mut state,
                location,
            })
        })
    }
}
