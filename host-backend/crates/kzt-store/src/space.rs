// SPDX-License-Identifier: GPL-2.0-or-later
//! What all pools of a store share, and how much of it a pool holds.

use std::cmp::Ordering;
use std::sync::Arc;

use crate::arena::Arena;
use crate::codec::{Codec, Encoding};
use crate::dedup::Sharing;
use crate::entry::{Entry, Spilled};
use crate::frames::Frames;
use crate::layout::{self, FRAME, HEADER, Location};
use crate::limits::Ledger;
use crate::owner::Owners;
use crate::pam::{Allocator, Pams};
use crate::reclaim::Evicted;
use crate::spill::Spill;
use crate::table::Table;
use crate::{ObjectId, PAGE_SIZE};

/// The arena with its allocators.
pub(crate) struct Space {
    pub(crate) arena: Arc<Arena>,
    pub(crate) frames: Arc<Frames>,
    pub(crate) pam: Pams,
    pub(crate) table: Table,
    pub(crate) owners: Owners,
    pub(crate) spill: Option<Spill>,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) evicted: Evicted,
    /// How pages are compressed from now on.
    pub(crate) codec: Codec,
    pub(crate) sharing: Sharing,
    /// Random per arena: clients can't foresee where an object's id leads in the directory.
    pub(crate) key: [u64; 3],
}

impl Space {
    /// The space of an arena that has its header, nothing of which is in use yet.
    pub(crate) fn new(
        frames: Arc<Frames>,
        persistent: Allocator,
        codec: Codec,
        spill: Option<Spill>,
    ) -> Self {
        let arena = Arc::clone(frames.arena());
        Self {
            pam: Pams::new(&frames, persistent),
            table: Table::new(Arc::clone(&arena)),
            owners: Owners::new(),
            ledger: Arc::new(Ledger::of(frames.most() * FRAME)),
            spill,
            evicted: Evicted::default(),
            codec,
            sharing: Sharing::new(frames.most() * FRAME),
            key: [0, 8, 16].map(|word| arena.load(layout::header::KEY + word)),
            frames,
            arena,
        }
    }

    /// What the slot at `at` holds.
    pub(crate) fn entry(&self, at: u64) -> Entry {
        Entry::decode(self.arena.load(at), at)
    }

    /// Where the page in a slot of the caller's is in the spill file, if it is there, and whose word
    /// says so: the slot's or a record's.
    pub(crate) fn entry_on_disk(&self, slot: u64) -> Option<(u64, Spilled)> {
        let (owner, entry) = match self.entry(slot) {
            Entry::Shared(record) => (record, self.shared_entry(record)),
            entry => (slot, entry),
        };
        match entry {
            Entry::Spilled(at) => Some((owner, at)),
            _ => None,
        }
    }

    /// Publishes an entry in the slot at `at`.
    #[cfg_attr(feature = "crash-points", track_caller)]
    pub(crate) fn set(&self, at: u64, entry: Entry) {
        if let Entry::Node { frame, .. } = entry {
            self.frames.at(frame).set_parent(at);
        }
        self.arena.store(at, entry.encode(at));
    }

    /// The path of an object's id through the directory: an invertible mix, so that different
    /// ids part somewhere.
    pub(crate) fn path(&self, id: ObjectId) -> Path {
        let mut words = id.0;
        let mut carry = 0;
        for (word, key) in words.iter_mut().zip(self.key) {
            *word = mix(*word ^ key ^ carry);
            carry = *word;
        }
        // The last word depends on all of the id: it leads.
        words.reverse();
        Path(words)
    }
}

/// An object's path through the directory, 4 bits a level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Path([u64; 3]);

impl Path {
    /// Levels there are.
    pub(crate) const LEVELS: u32 = 48;

    /// Offset, in a directory's node at `depth`, of the entry that the path takes.
    pub(crate) fn step(self, depth: u32) -> u64 {
        let [a, b, c] = self.0;
        let word = match depth / 16 {
            0 => a,
            1 => b,
            _ => c,
        };
        (word >> (depth % 16 * 4)) % layout::trie::ENTRIES * 8
    }

    /// How it compares with another one, step by step.
    pub(crate) fn order(self, other: Self) -> Ordering {
        let steps = |path: Self| (0..Self::LEVELS).map(move |depth| path.step(depth));
        steps(self).cmp(steps(other))
    }

    /// A check of the whole id, kept in the object's record.
    pub(crate) fn check(self) -> u64 {
        let [a, b, c] = self.0;
        mix(a ^ b.rotate_left(21) ^ c.rotate_left(42))
    }
}

/// What can be told of an arena's key without telling the key.
pub(crate) fn fingerprint(key: [u64; 3]) -> u64 {
    key.into_iter().fold(0, |sum, word| mix(sum ^ word))
}

/// An invertible mix of 64 bits (the finalizer of `SplitMix64`).
fn mix(mut x: u64) -> u64 {
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

/// What part of an index holds. Sums are exact: every page that enters or leaves is counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Held {
    /// Pages.
    pub(crate) pages: u64,
    /// Pages that are one repeated word.
    pub(crate) same_filled: u64,
    /// Pages kept as they are.
    pub(crate) raw: u64,
    /// Blocks of pages.
    pub(crate) blocks: u64,
    /// Their payload in bytes.
    pub(crate) payload: u64,
    /// Bytes of radix nodes, records and directory nodes.
    pub(crate) index: u64,
    /// Pages in the spill file.
    pub(crate) spilled: u64,
    /// Bytes of their blocks, headers included.
    pub(crate) spilled_bytes: u64,
}

impl Held {
    /// A page without a block.
    pub(crate) const INLINE: Self = Self {
        pages: 1,
        same_filled: 1,
        raw: 0,
        blocks: 0,
        payload: 0,
        index: 0,
        spilled: 0,
        spilled_bytes: 0,
    };

    /// A page in a block.
    pub(crate) fn block(location: Location) -> Self {
        Self::payload(location.encoding, location.len)
    }

    /// A page in a block with that payload.
    pub(crate) fn payload(encoding: Encoding, len: usize) -> Self {
        Self {
            pages: 1,
            same_filled: u64::from(encoding == Encoding::Pattern),
            raw: u64::from(encoding == Encoding::Raw),
            blocks: 1,
            payload: len as u64,
            ..Self::default()
        }
    }

    /// A page that shares a block with such a payload, wherever that is.
    pub(crate) fn shared(len: usize) -> Self {
        Self {
            pages: 1,
            // No other encoding has payloads of that length, and patterns are too short to share.
            raw: u64::from(len == PAGE_SIZE),
            blocks: 1,
            payload: len as u64,
            ..Self::default()
        }
    }

    /// A page in the spill file.
    pub(crate) fn spilled(at: Spilled) -> Self {
        Self {
            pages: 1,
            // As above.
            raw: u64::from(at.len == PAGE_SIZE),
            spilled: 1,
            spilled_bytes: at.size() as u64,
            ..Self::default()
        }
    }

    /// A part of the index.
    pub(crate) fn index(bytes: u64) -> Self {
        Self {
            index: bytes,
            ..Self::default()
        }
    }

    /// All of it in bytes.
    pub(crate) fn bytes(self) -> u64 {
        self.stored() + self.index
    }

    /// Bytes of blocks, headers included.
    pub(crate) fn stored(self) -> u64 {
        self.payload + self.blocks * HEADER as u64
    }

    fn zip(self, other: Self, f: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            pages: f(self.pages, other.pages),
            same_filled: f(self.same_filled, other.same_filled),
            raw: f(self.raw, other.raw),
            blocks: f(self.blocks, other.blocks),
            payload: f(self.payload, other.payload),
            index: f(self.index, other.index),
            spilled: f(self.spilled, other.spilled),
            spilled_bytes: f(self.spilled_bytes, other.spilled_bytes),
        }
    }
}

impl std::ops::AddAssign for Held {
    fn add_assign(&mut self, other: Self) {
        *self = self.zip(other, u64::wrapping_add);
    }
}

impl std::ops::SubAssign for Held {
    fn sub_assign(&mut self, other: Self) {
        *self = self.zip(other, u64::wrapping_sub);
    }
}
