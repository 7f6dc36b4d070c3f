// SPDX-License-Identifier: GPL-2.0-or-later
//! Where pages with a hash may be found: a table of fixed size, private to the process.
//!
//! A hint is the offset of the word that leads to a block: a page's slot, or a record. Buckets of
//! eight hints are guarded by shards, each with its own lock, inside the pools' and outside the
//! allocators'. A shard's lock also guards the records whose hash belongs to it.
//!
//! Hints of pages are no more than that: what they lead to is looked at under its pool's lock, and
//! a full bucket loses one. A record's hint is there only while the record lives: under the shard's
//! lock it may be followed.

// Shards and buckets are counted here, and a hash picks one of them.
#![expect(
    clippy::indexing_slicing,
    reason = "process-private tables, indices made here"
)]

use crate::layout::FRAME;
use crate::lock;
use crate::sync::{Mutex, MutexGuard};

/// Locks there are.
const SHARDS: u64 = 64;
/// Hints of a bucket: a cache line.
const WAYS: usize = 8;
/// Buckets for each frame of memory, in halves: 32 bytes for each 4 KiB.
const FRAMES_PER_BUCKET: u64 = 2;

/// What may be stored under a hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hint {
    /// A page that has its block for itself, by its slot.
    Page(u64),
    /// A block that pages share, by its record.
    Record(u64),
}

/// A hint in a word: bits 0–36 the offset divided by 8, 37 set for a record, 38–63 a part of the
/// hash. No slot or record has the offset 0, so that 0 is no hint.
impl Hint {
    const KIND: u32 = 37;
    const TAG: u32 = 38;

    fn encode(self, hash: u32) -> u64 {
        let (offset, kind) = match self {
            Self::Page(slot) => (slot, 0),
            Self::Record(record) => (record, 1),
        };
        u64::from(hash) << Self::TAG | kind << Self::KIND | (offset / 8)
    }

    fn decode(word: u64, hash: u32) -> Option<Self> {
        let offset = (word & ((1 << Self::KIND) - 1)) * 8;
        if offset == 0 || word >> Self::TAG != u64::from(hash) << Self::TAG >> Self::TAG {
            return None;
        }
        Some(if is_record(word) {
            Self::Record(offset)
        } else {
            Self::Page(offset)
        })
    }
}

fn is_record(word: u64) -> bool {
    word >> Hint::KIND & 1 == 1
}

#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
struct Bucket([u64; WAYS]);

/// The table.
pub(crate) struct Hints {
    shards: Box<[Mutex<Vec<Bucket>>]>,
    /// Buckets of a shard, once it has had a hint.
    buckets: usize,
}

impl Hints {
    /// A table for so much memory; it takes its own with the first hints.
    pub(crate) fn new(memory: u64) -> Self {
        let buckets = (memory / FRAME / FRAMES_PER_BUCKET).div_ceil(SHARDS);
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            buckets: buckets as usize,
        }
    }

    /// Locks what belongs to a hash.
    pub(super) fn lock(&self, hash: u32) -> Shard<'_> {
        // The upper bits say which bucket of all it is; hints have the lower ones.
        let number = (u64::from(hash) * self.buckets as u64 * SHARDS) >> u32::BITS;
        Shard {
            buckets: lock(&self.shards[(number % SHARDS) as usize]),
            size: self.buckets,
            number: (number / SHARDS) as usize,
            hash,
        }
    }
}

/// A hash's bucket, and the records of the hash, locked.
pub(super) struct Shard<'a> {
    buckets: MutexGuard<'a, Vec<Bucket>>,
    size: usize,
    number: usize,
    hash: u32,
}

impl Shard<'_> {
    /// The hints there are for the hash.
    pub(super) fn hints(&self) -> impl Iterator<Item = Hint> + use<> {
        let bucket = self.buckets.get(self.number).map(|bucket| bucket.0);
        let hash = self.hash;
        bucket
            .into_iter()
            .flatten()
            .filter_map(move |word| Hint::decode(word, hash))
    }

    /// Whether a record lives, which the hash belongs to.
    pub(super) fn has_record(&self, record: u64) -> bool {
        self.hints().any(|hint| hint == Hint::Record(record))
    }

    /// Adds a hint, in place of any page's if the bucket is full; whether it found a place.
    pub(super) fn add(&mut self, hint: Hint) -> bool {
        if self.buckets.is_empty() {
            self.buckets.resize(self.size, Bucket([0; WAYS]));
        }
        let word = hint.encode(self.hash);
        let Bucket(words) = &mut self.buckets[self.number];
        let free = words.iter().position(|&known| known == 0);
        // From anywhere on: pages must not always push out the same one.
        let start = (word / 2) as usize;
        let place = free.or_else(|| {
            (start..start + WAYS)
                .map(|way| way % WAYS)
                .find(|&way| !is_record(words[way]))
        });
        if let Some(place) = place {
            words[place] = word;
        }
        place.is_some()
    }

    /// Removes a hint, if it is there.
    pub(super) fn remove(&mut self, hint: Hint) {
        self.swap(hint, 0);
    }

    /// Puts a record's hint in the place of a page's; whether that was there.
    pub(super) fn promote(&mut self, slot: u64, record: u64) -> bool {
        let word = Hint::Record(record).encode(self.hash);
        self.swap(Hint::Page(slot), word)
    }

    fn swap(&mut self, hint: Hint, word: u64) -> bool {
        let old = hint.encode(self.hash);
        let known = self
            .buckets
            .get_mut(self.number)
            .and_then(|Bucket(words)| words.iter_mut().find(|known| **known == old));
        let found = known.is_some();
        if let Some(known) = known {
            *known = word;
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::EXTENT;

    const MIB: u64 = 1 << 20;

    fn hints(shard: &Shard<'_>) -> Vec<Hint> {
        shard.hints().collect()
    }

    #[test]
    fn hints_are_found_under_their_hash_alone() {
        let table = Hints::new(MIB);
        let (page, record) = (Hint::Page((1 << 40) - 8), Hint::Record(64));
        assert!(
            table.lock(7).hints().next().is_none(),
            "nothing is allocated yet"
        );
        assert!(table.lock(7).add(page));
        assert!(table.lock(7).add(record));
        assert_eq!(hints(&table.lock(7)), [page, record]);
        // Of the same bucket, and one of the last.
        assert_eq!(hints(&table.lock(8)), []);
        assert_eq!(hints(&table.lock(u32::MAX)), []);
        assert!(table.lock(7).has_record(64) && !table.lock(7).has_record((1 << 40) - 8));
        table.lock(7).remove(Hint::Record((1 << 40) - 8));
        table.lock(7).remove(record);
        assert_eq!(hints(&table.lock(7)), [page]);
        assert!(table.lock(7).promote((1 << 40) - 8, 128));
        assert!(!table.lock(7).promote((1 << 40) - 8, 128));
        assert_eq!(hints(&table.lock(7)), [Hint::Record(128)]);
    }

    /// A record without its hint could be neither moved nor shared any further.
    #[test]
    fn pages_never_push_out_a_record() {
        let table = Hints::new(MIB);
        let mut shard = table.lock(7);
        let records: Vec<u64> = (1..5).map(|number| number * 64).collect();
        for record in &records {
            assert!(shard.add(Hint::Record(*record)));
        }
        for number in 1..100 {
            assert!(shard.add(Hint::Page(number * 4096)));
        }
        assert_eq!(hints(&shard).len(), WAYS);
        assert!(records.iter().all(|record| shard.has_record(*record)));
        for number in 5..9 {
            assert!(shard.add(Hint::Record(number * 64)), "a page goes");
        }
        assert!(!shard.add(Hint::Record(9 * 64)) && !shard.add(Hint::Page(8)));
    }

    /// What lib.rs says about the heap.
    #[test]
    fn the_table_has_32_bytes_for_each_frame() {
        for memory in [MIB, 10 * MIB + EXTENT, 1 << 30] {
            let table = Hints::new(memory);
            let bytes = table.buckets as u64 * SHARDS * size_of::<Bucket>() as u64;
            let frames = memory / FRAME;
            assert!(
                (frames * 32..frames * 32 + SHARDS * 64).contains(&bytes),
                "{bytes}"
            );
        }
        for hash in [0, 1, u32::MAX / 2, u32::MAX] {
            let table = Hints::new(MIB);
            assert!(
                table.lock(hash).add(Hint::Page(8)),
                "{hash:#x} has a bucket"
            );
        }
    }
}
