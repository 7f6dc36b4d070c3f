// SPDX-License-Identifier: GPL-2.0-or-later
//! A pool's object directory: a trie over the keyed mix of the objects' ids.
//!
//! An entry is an object's record or a node of 16 more entries; a pool with one object has no
//! node at all. As in the radix trees, everything is built aside and published by one store.

use std::cmp::Ordering;

use crate::ObjectId;
use crate::entry::Entry;
use crate::error::GetError;
use crate::layout::{object, trie};
use crate::space::{Held, Path, Space};

/// Where an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// Its record.
    Record(u64),
    /// It is not there.
    Absent,
    /// What led to it was lost to damage.
    Poison,
}

impl Space {
    pub(crate) fn load_id(&self, record: u64) -> ObjectId {
        ObjectId([0, 8, 16].map(|word| self.arena.load(record + object::ID + word)))
    }

    /// Finds an object's record.
    pub(crate) fn find_object(&self, root: u64, id: ObjectId) -> Found {
        let path = self.path(id);
        let mut at = root;
        for depth in 0..=Path::LEVELS {
            match self.entry(at) {
                Entry::Trie(node) => at = node + path.step(depth),
                Entry::Object(record) if self.load_id(record) == id => {
                    return Found::Record(record);
                }
                Entry::Object(_) | Entry::Empty => return Found::Absent,
                _ => return Found::Poison,
            }
        }
        Found::Poison
    }

    /// Adds an object that is not there, without pages; `None` if there is no room, and nothing
    /// has changed. In place of something poisoned it begins with all its pages poisoned, and so
    /// stays every other object that may have been there.
    pub(crate) fn add_object(&self, root: u64, id: ObjectId, held: &mut Held) -> Option<u64> {
        let path = self.path(id);
        let mut at = root;
        let mut depth = 0;
        while let Entry::Trie(node) = self.entry(at) {
            at = node + path.step(depth);
            depth += 1;
        }
        let occupant = self.entry(at);
        let pages = match occupant {
            Entry::Empty | Entry::Object(_) => Entry::Empty,
            _ => Entry::Poison,
        };
        let record = self.pam.allocate(object::BYTES)?.offset;
        for (word, value) in [0, 8, 16].into_iter().zip(id.0) {
            self.arena.store(record + object::ID + word, value);
        }
        self.arena.store(record + object::CHECK, path.check());
        self.set(record + object::ROOT, pages);
        let mut added = Held::index(object::BYTES as u64);
        let Some(entry) = self.part(path, record, occupant, depth, &mut added) else {
            self.pam.free(record);
            return None;
        };
        self.set(at, entry);
        *held += added;
        Some(record)
    }

    /// Builds what takes the occupant's place at `depth`: nodes down to where no other id that the
    /// entry may stand for shares the path, and the record at their end.
    fn part(
        &self,
        path: Path,
        record: u64,
        occupant: Entry,
        depth: u32,
        added: &mut Held,
    ) -> Option<Entry> {
        let mut fill = Entry::Empty;
        // Depths of the nodes, and the occupant's path if it has one.
        let (nodes, theirs) = match occupant {
            Entry::Empty => (0..0, None),
            Entry::Object(other) => {
                let theirs = self.path(self.load_id(other));
                let last = (depth..Path::LEVELS).find(|&d| path.step(d) != theirs.step(d))?;
                (depth..last + 1, Some(theirs))
            }
            // Any other id may have been below.
            _ => {
                fill = Entry::Poison;
                (depth..Path::LEVELS, None)
            }
        };
        let mut child = None;
        for depth in nodes.rev() {
            let Some(node) = self.pam.allocate(trie::BYTES) else {
                self.free_chain(child);
                return None;
            };
            let node = node.offset;
            for number in 0..trie::ENTRIES {
                self.set(node + number * 8, fill);
            }
            let ours = child.map_or(Entry::Object(record), Entry::Trie);
            self.set(node + path.step(depth), ours);
            if let (None, Some(theirs)) = (child, theirs) {
                self.set(node + theirs.step(depth), occupant);
            }
            *added += Held::index(trie::BYTES as u64);
            child = Some(node);
        }
        Some(child.map_or(Entry::Object(record), Entry::Trie))
    }

    /// Frees nodes that `part` gave up: the records at their end stay.
    fn free_chain(&self, mut node: Option<u64>) {
        while let Some(current) = node {
            node = (0..trie::ENTRIES).find_map(|number| match self.entry(current + number * 8) {
                Entry::Trie(child) => Some(child),
                _ => None,
            });
            self.pam.free(current);
        }
    }

    /// The first object, in the order of the paths, from one on that may be there or not; or behind
    /// it. What damage hides is an error.
    pub(crate) fn next_object(
        &self,
        root: u64,
        from: Option<ObjectId>,
        behind: bool,
    ) -> Result<Option<(ObjectId, u64)>, GetError> {
        let from = from.map(|id| self.path(id));
        let found = self.next_below(root, 0, from, behind)?;
        Ok(found.map(|record| (self.load_id(record), record)))
    }

    fn next_below(
        &self,
        at: u64,
        depth: u32,
        from: Option<Path>,
        behind: bool,
    ) -> Result<Option<u64>, GetError> {
        match self.entry(at) {
            Entry::Empty => Ok(None),
            Entry::Object(record) => {
                let order = from.map(|from| self.path(self.load_id(record)).order(from));
                let follows = match order {
                    None | Some(Ordering::Greater) => true,
                    Some(Ordering::Equal) => !behind,
                    Some(Ordering::Less) => false,
                };
                Ok(follows.then_some(record))
            }
            Entry::Trie(node) if depth < Path::LEVELS => {
                let start = from.map_or(0, |from| from.step(depth));
                for child in (start..trie::BYTES as u64).step_by(8) {
                    let from = from.filter(|_| child == start);
                    let found = self.next_below(node + child, depth + 1, from, behind)?;
                    if found.is_some() {
                        return Ok(found);
                    }
                }
                Ok(None)
            }
            _ => Err(GetError::Corrupt),
        }
    }

    /// Removes an object with its pages, and the nodes that then part no objects any more.
    pub(crate) fn remove_object(&self, root: u64, id: ObjectId) -> Held {
        let mut freed = Held::default();
        self.remove_below(root, id, self.path(id), 0, &mut freed);
        freed
    }

    /// Removes it from below the entry at `at`.
    fn remove_below(&self, at: u64, id: ObjectId, path: Path, depth: u32, freed: &mut Held) {
        let entry = self.entry(at);
        match entry {
            Entry::Object(record) if self.load_id(record) == id => {
                self.arena.store(at, 0);
                *freed += self.release(entry);
            }
            Entry::Trie(node) if depth < Path::LEVELS => {
                let child = node + path.step(depth);
                self.remove_below(child, id, path, depth + 1, freed);
                let mut left = (0..trie::ENTRIES)
                    .map(|number| self.entry(node + number * 8))
                    .filter(|entry| *entry != Entry::Empty);
                // A node for one object is none for what it was made for: to part two.
                let entry = match (left.next(), left.next()) {
                    (None, _) => Entry::Empty,
                    (Some(object @ Entry::Object(_)), None) => object,
                    _ => return,
                };
                self.set(at, entry);
                self.pam.free(node);
                *freed += Held::index(trie::BYTES as u64);
            }
            _ => {}
        }
    }
}
