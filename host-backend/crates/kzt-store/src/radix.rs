// SPDX-License-Identifier: GPL-2.0-or-later
//! The radix tree of an object's pages: nodes of 512 entries, grown upwards as indices need.
//!
//! Every function works under the lock of the pool that owns the tree. Whatever takes more than
//! one store is built aside and published by one; what leaves is unlinked by one store before
//! any of it is freed.

use std::sync::atomic::Ordering::Relaxed;

use crate::ObjectId;
use crate::entry::{Entry, MAX_LEVEL};
use crate::frames::Use;
use crate::layout::pool::Number as PoolNumber;
use crate::layout::{self, FRAME, Location};
use crate::space::{Held, Space};

/// Bits of an index that one level resolves.
const BITS: u32 = 9;
/// Entries of a node.
pub(crate) const ENTRIES: u64 = 1 << BITS;

/// Pages below an entry that is held by a node of `level`.
pub(crate) fn span(level: u32) -> u64 {
    1 << (BITS * (level - 1))
}

/// Offset of the entry for `index` in a node.
fn slot(frame: u64, level: u32, index: u64) -> u64 {
    frame + index / span(level) % ENTRIES * 8
}

/// Where a page's entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// In this slot, which may be empty.
    Slot(u64),
    /// There is no node for it.
    Absent,
    /// Its node was lost to damage.
    Poison,
}

impl Space {
    /// Finds the slot of a page.
    pub(crate) fn find_page(&self, root: u64, index: u32) -> Place {
        let index = u64::from(index);
        let mut at = root;
        // The tree's height bounds the walk even if its entries are damaged.
        for _ in 0..MAX_LEVEL {
            match self.entry(at) {
                Entry::Node { frame, level } => {
                    if index / span(level) >= ENTRIES && at == root {
                        return Place::Absent;
                    }
                    at = slot(frame, level, index);
                    if level == 1 {
                        return Place::Slot(at);
                    }
                }
                Entry::Empty => return Place::Absent,
                _ => return Place::Poison,
            }
        }
        Place::Poison
    }

    /// Finds the slot of a page, making the nodes it needs; `None` if there is no room for them,
    /// and no page has changed. If the slot stays empty, `clear` takes the nodes back.
    pub(crate) fn make_page(
        &self,
        pool: PoolNumber,
        root: u64,
        index: u32,
        held: &mut Held,
    ) -> Option<u64> {
        let index = u64::from(index);
        self.grow(pool, root, index, held)?;
        let mut at = root;
        loop {
            match self.entry(at) {
                Entry::Node { frame, level } => {
                    at = slot(frame, level, index);
                    if level == 1 {
                        return Some(at);
                    }
                    let child = self.entry(at);
                    if !matches!(child, Entry::Node { .. }) {
                        let chain = self.chain(pool, level - 1, index, child, held)?;
                        self.publish(at, child, chain);
                    }
                }
                // `grow` and the step above leave nothing but nodes.
                _ => return None,
            }
        }
    }

    /// Gives the tree a root node that covers `index`.
    fn grow(&self, pool: PoolNumber, root: u64, index: u64, held: &mut Held) -> Option<()> {
        loop {
            let old = self.entry(root);
            let new = match old {
                Entry::Node { level, .. } if index / span(level) < ENTRIES => return Some(()),
                Entry::Node { level, .. } => {
                    let frame = self.frames.allocate_node(pool, Entry::Empty)?;
                    *held += Held::index(FRAME);
                    self.set(frame, old);
                    self.frames.at(frame).used.store(1, Relaxed);
                    Entry::Node {
                        frame,
                        level: level + 1,
                    }
                }
                Entry::Empty => {
                    let level = (1..MAX_LEVEL).find(|&level| index / span(level) < ENTRIES);
                    self.chain(pool, level.unwrap_or(MAX_LEVEL), index, old, held)?
                }
                // How high the tree was is not known any more: everything is poisoned.
                _ => self.chain(pool, MAX_LEVEL, index, Entry::Poison, held)?,
            };
            self.set(root, new);
        }
    }

    /// Builds nodes from `level` down to 1 for the path to `index`, aside. Where they take the
    /// place of something poisoned, all else in them is poison.
    fn chain(
        &self,
        pool: PoolNumber,
        level: u32,
        index: u64,
        replaced: Entry,
        held: &mut Held,
    ) -> Option<Entry> {
        let (fill, others) = match replaced {
            Entry::Empty => (Entry::Empty, 0),
            _ => (Entry::Poison, ENTRIES as u16 - 1),
        };
        let mut child = fill;
        for level in 1..=level {
            let Some(frame) = self.frames.allocate_node(pool, fill) else {
                if child != fill {
                    *held -= self.release(child);
                }
                return None;
            };
            *held += Held::index(FRAME);
            self.set(slot(frame, level, index), child);
            let used = others + u16::from(child != Entry::Empty);
            self.frames.at(frame).used.store(used, Relaxed);
            child = Entry::Node { frame, level };
        }
        Some(child)
    }

    /// Puts an entry into a node's slot, which held `old`, and counts it there.
    pub(crate) fn publish(&self, at: u64, old: Entry, new: Entry) {
        self.set(at, new);
        if old == Entry::Empty {
            let used = &self.frames.at(at).used;
            used.store(used.load(Relaxed) + 1, Relaxed);
        }
    }

    /// Removes the pages `first..=last`, and the nodes that become empty, from the tree.
    pub(crate) fn clear(&self, root: u64, first: u32, last: u32) -> Held {
        let mut freed = Held::default();
        let top = match self.entry(root) {
            Entry::Node { level, .. } => level,
            _ => MAX_LEVEL,
        };
        let range = (u64::from(first), u64::from(last));
        self.clear_entry(root, 0, span(top + 1), range, &mut freed);
        freed
    }

    /// Removes the part of `range` that lies below the entry at `at`, which covers `pages` pages
    /// from `base`. Whether the entry is empty then.
    fn clear_entry(
        &self,
        at: u64,
        base: u64,
        pages: u64,
        range: (u64, u64),
        freed: &mut Held,
    ) -> bool {
        let entry = self.entry(at);
        let (first, last) = range;
        if entry == Entry::Empty {
            return true;
        }
        // A tree of full height covers more than there are indices.
        if first <= base && (base + (pages - 1)).min(u64::from(u32::MAX)) <= last {
            self.arena.store(at, 0);
            *freed += self.release(entry);
            return true;
        }
        // A poisoned entry that is cleared in part stays: nobody knows the other part.
        let Entry::Node { frame, level } = entry else {
            return false;
        };
        let step = span(level);
        let from = first.saturating_sub(base) / step;
        let to = (last.saturating_sub(base) / step).min(ENTRIES - 1);
        let mut emptied = 0;
        for number in from..=to {
            let child = frame + number * 8;
            if self.arena.load(child) != 0
                && self.clear_entry(child, base + number * step, step, range, freed)
            {
                emptied += 1;
            }
        }
        let used = &self.frames.at(frame).used;
        let left = used.load(Relaxed) - emptied;
        used.store(left, Relaxed);
        if left > 0 {
            return false;
        }
        self.arena.store(at, 0);
        self.frames.free_node(frame);
        *freed += Held::index(FRAME);
        true
    }

    /// Removes the page in a slot of a node, the nodes that become empty, and the object with its
    /// last page from the pool whose directory is `directory`.
    pub(crate) fn vacate(&self, directory: u64, slot: u64) -> Held {
        let entry = self.entry(slot);
        self.arena.store(slot, 0);
        let mut freed = self.release(entry);
        let mut at = slot;
        while self.frames.at(at).usage() == Use::Node {
            let node = self.frames.at(at);
            let left = node.used.load(Relaxed) - 1;
            node.used.store(left, Relaxed);
            if left > 0 {
                return freed;
            }
            let frame = at - at % FRAME;
            at = node.parent();
            self.arena.store(at, 0);
            self.frames.free_node(frame);
            freed += Held::index(FRAME);
        }
        // What holds a node's entry and is no node is an object's record.
        let id = self.load_id(at - layout::object::ROOT);
        freed += self.remove_object(directory, id);
        freed
    }

    /// Takes root nodes away that lead to a lower one alone: a tree is as high as its pages need, or
    /// a put that was refused after it had grown the tree would leave its client charged for that.
    pub(crate) fn lower(&self, root: u64) -> Held {
        let mut freed = Held::default();
        while let Entry::Node { frame, level: 2.. } = self.entry(root) {
            let first = self.entry(frame);
            let alone = self.frames.at(frame).used.load(Relaxed) == 1;
            if !alone || !matches!(first, Entry::Node { .. }) {
                break;
            }
            self.set(root, first);
            self.frames.free_node(frame);
            freed += Held::index(FRAME);
        }
        freed
    }

    /// The object that a node's slot is of, and the first and the last page below the slot.
    pub(crate) fn pages_below(&self, slot: u64) -> (ObjectId, u32, u32) {
        let mut at = slot;
        let (mut first, mut pages) = (0, None);
        while self.frames.at(at).usage() == Use::Node {
            let parent = self.frames.at(at).parent();
            if let Entry::Node { level, .. } = self.entry(parent) {
                first += at % FRAME / 8 * span(level);
                pages.get_or_insert(span(level));
            }
            at = parent;
        }
        let last = first + (pages.unwrap_or(span(MAX_LEVEL + 1)) - 1);
        let id = self.load_id(at - layout::object::ROOT);
        (id, first as u32, last.min(u32::MAX.into()) as u32)
    }

    /// What a page's entry stands for.
    pub(crate) fn held_by(&self, page: Entry) -> Held {
        match page {
            Entry::Pattern(_) => Held::INLINE,
            Entry::Block(offset) => {
                Location::decode(self.arena.load(offset)).map_or_else(Held::default, Held::block)
            }
            Entry::Shared(record) => self
                .with_shared(record, |_| self.shared_len(record))
                .map_or_else(Held::default, Held::shared),
            Entry::Spilled(at) => Held::spilled(at),
            _ => Held::default(),
        }
    }

    /// Frees all that hangs on an entry which is in no slot any more.
    pub(crate) fn release(&self, entry: Entry) -> Held {
        match entry {
            Entry::Empty | Entry::Poison => Held::default(),
            Entry::Pattern { .. } => Held::INLINE,
            Entry::Spilled(at) => {
                if let Some(spill) = &self.spill {
                    spill.free(at);
                }
                Held::spilled(at)
            }
            Entry::Block(offset) => {
                self.remove_hint(offset);
                self.free_block(offset)
            }
            Entry::Shared(record) => self.unshare(record),
            Entry::Node { frame, .. } => {
                let mut freed = Held::index(FRAME);
                for number in 0..ENTRIES {
                    let child = self.entry(frame + number * 8);
                    freed += self.release(child);
                }
                self.frames.free_node(frame);
                freed
            }
            Entry::Object(record) => {
                let mut freed = Held::index(layout::object::BYTES as u64);
                freed += self.release(self.entry(record + layout::object::ROOT));
                self.pam.free(record);
                freed
            }
            Entry::Trie(node) => {
                let mut freed = Held::index(layout::trie::BYTES as u64);
                for number in 0..layout::trie::ENTRIES {
                    let child = self.entry(node + number * 8);
                    freed += self.release(child);
                }
                self.pam.free(node);
                freed
            }
        }
    }

    /// Frees a block that nothing leads to any more; what it held.
    pub(crate) fn free_block(&self, offset: u64) -> Held {
        let location = Location::decode(self.arena.load(offset));
        self.pam.free(offset);
        location.map_or_else(Held::default, Held::block)
    }

    /// Calls `f` with runs of pages that are all there, or all not, over `first..=last`, in
    /// order; neighbouring runs may be alike. Poisoned pages are there: to get one is an error.
    pub(crate) fn walk(&self, root: u64, first: u32, last: u32, f: &mut impl FnMut(u64, bool)) {
        let (mut index, end) = (u64::from(first), u64::from(last) + 1);
        while index < end {
            let (present, until) = self.presence(root, index);
            let until = until.min(end);
            f(until - index, present);
            index = until;
        }
    }

    /// The first page from `index` on; a poisoned one is one.
    pub(crate) fn next_page(&self, root: u64, index: u32) -> Option<u32> {
        let mut index = index;
        loop {
            let (present, until) = self.presence(root, index.into());
            if present {
                return Some(index);
            }
            index = u32::try_from(until).ok()?;
        }
    }

    /// Whether a page is there, and up to which index the same entry says so.
    fn presence(&self, root: u64, index: u64) -> (bool, u64) {
        let mut at = root;
        let mut pages = u64::MAX;
        loop {
            match self.entry(at) {
                Entry::Node { frame, level } => {
                    if at == root && index / span(level) >= ENTRIES {
                        return (false, u64::MAX);
                    }
                    at = slot(frame, level, index);
                    pages = span(level);
                }
                entry => {
                    let until = (index / pages).saturating_add(1).saturating_mul(pages);
                    return (entry != Entry::Empty, until);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Codec;
    use crate::directory::Found;
    use crate::layout::{HEADER, pool};
    use crate::pam::Allocator;
    use crate::pam_tests;
    use crate::table::Kind;

    /// Some share nodes, others make the tree higher.
    const INDICES: [u32; 7] = [0, 1, 511, 512, 1 << 18, 1 << 27, u32::MAX];

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

        /// Trees that grow and shrink between, pages known by nothing but their slots.
        #[test]
        fn vacated_pages_take_along_what_becomes_empty(
            pages in prop::collection::vec((0..4_u64, prop::sample::select(&INDICES)), 1..60),
            order in any::<u64>(),
        ) {
            let space = Space::new(pam_tests::frames(2 << 20), Allocator::Zsmalloc, Codec::Lzo, None);
            let directory = pool::slot(0) + pool::ROOT;
            let mut held = Held::default();
            let mut slots = std::collections::BTreeSet::new();
            let object = |number| ObjectId([number, 0, 0]);
            for (number, index) in pages {
                let record = match space.find_object(directory, object(number)) {
                    Found::Record(record) => record,
                    _ => space.add_object(directory, object(number), &mut held).unwrap(),
                };
                let root = record + layout::object::ROOT;
                let at = space.make_page(0, root, index, &mut held).unwrap();
                if !slots.insert(at) {
                    continue;
                }
                prop_assert_eq!(space.pages_below(at), (object(number), index, index));
                let block = space.pam.allocate_page(Kind::Persistent, 0, HEADER + 100, false).unwrap();
                let location = Location {
                    encoding: crate::codec::Encoding::Lzo,
                    len: 100,
                    place: block.place,
                    slot: at,
                };
                space.arena.store(block.offset, location.encode());
                space.publish(at, Entry::Empty, Entry::Block(block.offset));
                held += Held::block(location);
            }
            let mut slots: Vec<u64> = slots.into_iter().collect();
            slots.sort_by_key(|slot| (slot ^ order).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            for (left, slot) in (0..slots.len() as u64).rev().zip(slots) {
                held -= space.vacate(directory, slot);
                prop_assert_eq!(held.pages, left);
            }
            prop_assert_eq!(held, Held::default());
            prop_assert_eq!(space.entry(directory), Entry::Empty);
            prop_assert_eq!(space.frames.in_use(), 0);
        }
    }
}
