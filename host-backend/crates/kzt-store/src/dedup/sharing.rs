// SPDX-License-Identifier: GPL-2.0-or-later
//! Blocks with several users, and the records between the users' entries and their block.
//!
//! The first duplicate makes the record: with a copy of the block it is built aside, then the page
//! that was there is swung to it by one store. Every further page is one store. A record's block is
//! moved, or spilled, by swinging the record's word, whoever its users are. The lock of the shard that
//! its hash belongs to guards all of a record, but for an entry that leads to it, which keeps it alive.
//! A block in the spill file gets no further users: to compare it, the disk would have to be read.

use std::sync::atomic::Ordering::Relaxed;

use super::Domain;
use super::hints::{Hint, Hints, Shard};
use crate::codec::Encoding;
use crate::entry::{Entry, Spilled};
use crate::layout::{CHECK, HEADER, Location, hash_of, record};
use crate::owner::Owned;
use crate::space::{Held, Space};
use crate::sync::atomic::AtomicU64;

/// Smaller payloads are not worth a record: two users save one block and need one.
const MIN_PAYLOAD: usize = 2 * record::BYTES - HEADER;

/// What a store knows of its shared blocks, rebuilt by recovery.
pub(crate) struct Sharing {
    pub(super) hints: Hints,
    records: AtomicU64,
    saved_blocks: AtomicU64,
    saved_payload: AtomicU64,
    spilled_blocks: AtomicU64,
    spilled_payload: AtomicU64,
    spilled_bytes: AtomicU64,
}

/// What sharing saves: each user of a block but one would have its own.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Saved {
    pub(crate) blocks: u64,
    /// Their payload in bytes.
    pub(crate) payload: u64,
    /// Records there are for it.
    pub(crate) records: u64,
    /// Shared blocks that are in the spill file: their users don't know.
    pub(crate) spilled: SharedSpilled,
}

/// Shared blocks in the spill file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SharedSpilled {
    pub(crate) blocks: u64,
    /// Their payload in bytes.
    pub(crate) payload: u64,
    /// What they take in the file.
    pub(crate) bytes: u64,
}

impl Sharing {
    pub(crate) fn new(memory: u64) -> Self {
        Self {
            hints: Hints::new(memory),
            records: AtomicU64::new(0),
            saved_blocks: AtomicU64::new(0),
            saved_payload: AtomicU64::new(0),
            spilled_blocks: AtomicU64::new(0),
            spilled_payload: AtomicU64::new(0),
            spilled_bytes: AtomicU64::new(0),
        }
    }

    pub(crate) fn saved(&self) -> Saved {
        Saved {
            blocks: self.saved_blocks.load(Relaxed),
            payload: self.saved_payload.load(Relaxed),
            records: self.records.load(Relaxed),
            spilled: SharedSpilled {
                blocks: self.spilled_blocks.load(Relaxed),
                payload: self.spilled_payload.load(Relaxed),
                bytes: self.spilled_bytes.load(Relaxed),
            },
        }
    }

    /// A shared block is in the spill file now.
    pub(crate) fn count_spilled(&self, at: Spilled) {
        self.spilled_blocks.fetch_add(1, Relaxed);
        self.spilled_payload.fetch_add(at.len as u64, Relaxed);
        self.spilled_bytes.fetch_add(at.size() as u64, Relaxed);
    }

    fn discount_spilled(&self, at: Spilled) {
        self.spilled_blocks.fetch_sub(1, Relaxed);
        self.spilled_payload.fetch_sub(at.len as u64, Relaxed);
        self.spilled_bytes.fetch_sub(at.size() as u64, Relaxed);
    }

    fn count_user(&self, len: usize) {
        self.saved_blocks.fetch_add(1, Relaxed);
        self.saved_payload.fetch_add(len as u64, Relaxed);
    }

    fn discount_user(&self, len: usize) {
        self.saved_blocks.fetch_sub(1, Relaxed);
        self.saved_payload.fetch_sub(len as u64, Relaxed);
    }
}

/// A page as its block holds it.
#[derive(Clone, Copy)]
pub(crate) struct Payload<'a> {
    pub(crate) encoding: Encoding,
    pub(crate) bytes: &'a [u8],
    /// The block's check word: checksum, and hash if the page may share.
    pub(crate) check: u64,
}

impl<'a> Payload<'a> {
    pub(crate) fn new(encoding: Encoding, bytes: &'a [u8], domain: Option<&Domain>) -> Self {
        let hash = domain
            .filter(|_| bytes.len() > MIN_PAYLOAD)
            .map_or(0, |domain| domain.hash(encoding, bytes));
        let checksum = Location::checksum(encoding, bytes);
        Self {
            encoding,
            bytes,
            check: u64::from(hash) << u32::BITS | u64::from(checksum),
        }
    }

    pub(crate) fn hash(&self) -> u32 {
        hash_of(self.check)
    }
}

impl Space {
    /// Looks for the page among those of its domain, and takes a use of the record for it:
    /// [`unshare`](Self::unshare) gives it back.
    pub(crate) fn share(&self, domain: &Domain, payload: Payload<'_>) -> Option<u64> {
        if payload.hash() == 0 {
            return None;
        }
        let mut shard = self.sharing.hints.lock(payload.hash());
        shard.hints().find_map(|hint| match hint {
            Hint::Record(record) => self.join(record, domain, payload).then_some(record),
            Hint::Page(slot) => self
                .with_page(slot, |pool, page| {
                    let same = pool.domain() == Some(domain)
                        && self.holds(page.offset, page.location, payload);
                    same.then(|| self.found(&mut shard, domain, &page, payload))
                        .flatten()
                })
                .flatten(),
        })
    }

    /// Whether a block holds the page, byte by byte.
    fn holds(&self, offset: u64, location: Location, payload: Payload<'_>) -> bool {
        (location.encoding, location.len) == (payload.encoding, payload.bytes.len())
            && self.arena.load(offset + CHECK) == payload.check
            && self
                .arena
                .holds(self.payload(offset, location.place), payload.bytes)
    }

    /// Takes a use of a record whose shard is locked, if its block holds the page.
    fn join(&self, record: u64, domain: &Domain, payload: Payload<'_>) -> bool {
        let same = self.domain_words(record) == domain.words
            && self
                .record_block(record)
                .is_some_and(|(offset, location)| self.holds(offset, location, payload));
        if same {
            self.add_user(record, payload.bytes.len());
        }
        same
    }

    /// Makes a record for a page that was found to hold the same, and for the one to come.
    fn found(
        &self,
        shard: &mut Shard<'_>,
        domain: &Domain,
        page: &Owned<'_>,
        payload: Payload<'_>,
    ) -> Option<u64> {
        let record = self.pam.allocate(record::BYTES)?.offset;
        let Some(block) = self.pam.allocate_shared(HEADER + payload.bytes.len()) else {
            self.pam.free(record);
            return None;
        };
        self.write_block(block, payload);
        let location = Location {
            place: block.place,
            slot: record,
            ..page.location
        };
        self.arena.store(block.offset, location.encode());
        for (at, word) in record::domain(record).zip(domain.words) {
            self.arena.store(at, word);
        }
        let hash = record::hash_word(record, payload.hash(), &domain.words);
        self.arena.store(record + record::HASH, hash);
        self.arena.store(record + record::USERS, 1);
        self.set(record + record::ENTRY, Entry::Block(block.offset));
        let slot = page.location.slot;
        shard.promote(slot, record);
        // What the page's pool holds stays the same: it is charged in full.
        self.publish(slot, Entry::Block(page.offset), Entry::Shared(record));
        self.pam.free(page.offset);
        self.sharing.records.fetch_add(1, Relaxed);
        self.add_user(record, payload.bytes.len());
        Some(record)
    }

    /// Counts another user. The count is in the arena for want of a better place, and believed by
    /// this process alone.
    pub(crate) fn add_user(&self, record: u64, len: usize) {
        let users = record + record::USERS;
        self.arena.store(users, self.arena.load(users) + 1);
        self.sharing.count_user(len);
    }

    /// Gives a use of a record back; what it held.
    pub(crate) fn unshare(&self, record: u64) -> Held {
        let mut shard = self.lock_record(record);
        let Some(len) = self.shared_len(record) else {
            return Held::default();
        };
        let users = record + record::USERS;
        match self.arena.load(users) {
            0 | 1 => {
                shard.remove(Hint::Record(record));
                match self.shared_entry(record) {
                    Entry::Spilled(at) => {
                        self.sharing.discount_spilled(at);
                        self.release(Entry::Spilled(at));
                    }
                    Entry::Block(offset) => self.pam.free(offset),
                    _ => {}
                }
                self.pam.free(record);
                self.sharing.records.fetch_sub(1, Relaxed);
            }
            count => {
                self.arena.store(users, count - 1);
                self.sharing.discount_user(len);
            }
        }
        Held::shared(len)
    }

    /// Calls `f` with the entry of a record that the caller has a use of; it stays meanwhile.
    pub(crate) fn with_shared<R>(&self, record: u64, f: impl FnOnce(Entry) -> R) -> R {
        let _shard = self.lock_record(record);
        f(self.shared_entry(record))
    }

    /// Calls `f` with the entry of a record of that hash, which stays meanwhile; `None` if there is
    /// no such record. Nothing is read of what may be none.
    pub(crate) fn with_record<R>(
        &self,
        record: u64,
        hash: u32,
        f: impl FnOnce(Entry) -> Option<R>,
    ) -> Option<R> {
        let shard = self.sharing.hints.lock(hash);
        shard
            .has_record(record)
            .then(|| f(self.shared_entry(record)))
            .flatten()
    }

    /// Locks a record that the caller has a use of, so that its hash can be read.
    fn lock_record(&self, record: u64) -> Shard<'_> {
        let hash = self.arena.load(record + record::HASH) as u32;
        self.sharing.hints.lock(hash)
    }

    /// What a record leads to.
    pub(crate) fn shared_entry(&self, record: u64) -> Entry {
        self.entry(record + record::ENTRY)
    }

    /// The block in the arena that a record leads to.
    fn record_block(&self, record: u64) -> Option<(u64, Location)> {
        let Entry::Block(offset) = self.shared_entry(record) else {
            return None;
        };
        let location = Location::decode(self.arena.load(offset))?;
        (location.slot == record).then_some((offset, location))
    }

    /// Bytes of payload of the block that a record leads to.
    pub(crate) fn shared_len(&self, record: u64) -> Option<usize> {
        match self.shared_entry(record) {
            Entry::Spilled(at) => Some(at.len),
            _ => self.record_block(record).map(|(_, location)| location.len),
        }
    }

    fn domain_words(&self, record: u64) -> [u64; record::DOMAIN_WORDS] {
        let mut words = [0; record::DOMAIN_WORDS];
        for (word, at) in words.iter_mut().zip(record::domain(record)) {
            *word = self.arena.load(at);
        }
        words
    }

    /// Recovery: the hash of a record, if that is one. Its block is another matter.
    pub(crate) fn record_hash(&self, record: u64) -> Option<u32> {
        let word = self.arena.load(record + record::HASH);
        let hash = word as u32;
        (word == record::hash_word(record, hash, &self.domain_words(record))).then_some(hash)
    }

    /// Recovery: takes a record over for the first entry that was found to lead to it.
    pub(crate) fn adopt(&self, record: u64, hash: u32) {
        self.arena.store(record + record::USERS, 1);
        self.sharing.records.fetch_add(1, Relaxed);
        self.sharing.hints.lock(hash).add(Hint::Record(record));
    }

    /// Notes where a page is that has a block for itself.
    pub(crate) fn add_hint(&self, hash: u32, slot: u64) {
        if hash != 0 {
            self.sharing.hints.lock(hash).add(Hint::Page(slot));
        }
    }

    /// Forgets the page in the block at `offset`, which leaves its slot.
    pub(crate) fn remove_hint(&self, offset: u64) {
        let hash = hash_of(self.arena.load(offset + CHECK));
        if hash == 0 {
            return;
        }
        if let Some(location) = Location::decode(self.arena.load(offset)) {
            let mut shard = self.sharing.hints.lock(hash);
            shard.remove(Hint::Page(location.slot));
        }
    }
}
