// SPDX-License-Identifier: GPL-2.0-or-later
//! Recovery: walks the index, which is the truth, and rebuilds the allocators from it.
//!
//! Nothing in the file is believed: offsets, alignment, sizes, back-references and overlaps are
//! checked before anything is followed. What is damaged becomes poison, so that its pages answer
//! with an error and not with zeros; nodes that hold nothing (their page was never published)
//! are unlinked. Each change is one store and makes the next walk's work smaller: a process
//! that dies in the middle is recovered like any other.

use std::sync::atomic::Ordering::Relaxed;

use crate::ObjectId;
use crate::entry::{Entry, Spilled};
use crate::layout::pool::Number as PoolNumber;
use crate::layout::{CHECK, EXTENT, FRAME, HEADER, Location, hash_of, object, pool, record, trie};
use crate::pam::Block;
use crate::radix::ENTRIES;
use crate::space::{Held, Path, Space};
use crate::spill::Spill;

/// The frames of the arena that have blocks in the file. The others are not touched: reading a
/// hole would allocate it, and on a full tmpfs that kills the process.
pub(crate) struct Present(Vec<u64>);

impl Present {
    /// Asks the file system.
    pub(crate) fn of(space: &Space) -> std::io::Result<Self> {
        let frames = space.frames.count() as usize;
        let mut bits = vec![0_u64; frames.div_ceil(64)];
        space.arena.data_ranges(|start, end| {
            for frame in start.div_ceil(FRAME)..end / FRAME {
                if let Some(word) = bits.get_mut((frame / 64) as usize) {
                    *word |= 1 << (frame % 64);
                }
            }
        })?;
        Ok(Self(bits))
    }

    /// Whether a frame has content.
    pub(crate) fn has(&self, frame: u32) -> bool {
        self.0
            .get(frame as usize / 64)
            .is_some_and(|word| word >> (frame % 64) & 1 == 1)
    }
}

/// One walk over the arena.
pub(crate) struct Recoverer<'a> {
    space: &'a Space,
    present: &'a Present,
    /// The pool whose index is walked.
    number: PoolNumber,
    /// What has been found so far.
    pub(crate) held: Held,
    /// Entries that were damaged.
    pub(crate) dropped: u64,
    /// Records found so far, a bit for each 64 bytes of a frame; empty as long as there is none.
    records: Vec<u64>,
    /// Pages in a spill file that is not there.
    pub(crate) lost: u64,
    /// Whether these are given up.
    abandon: bool,
    /// Parts of the index that hold nothing and are in no slot any more: to be released when
    /// the allocators have settled.
    pub(crate) unlinked: Vec<Entry>,
}

impl<'a> Recoverer<'a> {
    pub(crate) fn new(space: &'a Space, present: &'a Present, abandon: bool) -> Self {
        Self {
            space,
            present,
            number: 0,
            held: Held::default(),
            dropped: 0,
            records: Vec::new(),
            lost: 0,
            abandon,
            unlinked: Vec::new(),
        }
    }

    /// Recovers the pool in a slot of the pool table.
    pub(crate) fn pool(&mut self, slot: u64) {
        self.number = pool::number(slot);
        self.directory(slot + pool::ROOT, 0, &mut Vec::new());
    }

    fn load(&self, at: u64) -> Entry {
        self.space.entry(at)
    }

    /// Poisons an entry, which counts as dropped unless an earlier recovery has done so.
    fn poison(&mut self, at: u64) -> bool {
        let poison = Entry::Poison.encode(at);
        if self.space.arena.load(at) != poison {
            self.dropped += 1;
            self.space.arena.store(at, poison);
        }
        true
    }

    /// Whether an aligned range lies in one frame behind the first extent that has content.
    fn readable(&self, offset: u64, bytes: usize) -> bool {
        offset >= EXTENT
            && offset % bytes.next_power_of_two() as u64 == 0
            && u32::try_from(offset / FRAME).is_ok_and(|frame| self.present.has(frame))
    }

    /// Recovers what the directory's entry at `at` leads to; `steps` is the way there. Whether
    /// the entry is still in use.
    fn directory(&mut self, at: u64, depth: u32, steps: &mut Vec<u64>) -> bool {
        match self.load(at) {
            Entry::Empty => false,
            Entry::Object(record) => self.object(at, record, steps),
            Entry::Trie(node) if depth < Path::LEVELS => {
                if !self.small(node, trie::BYTES) {
                    return self.poison(at);
                }
                let mut used = false;
                for number in 0..trie::ENTRIES {
                    steps.push(number * 8);
                    used |= self.directory(node + number * 8, depth + 1, steps);
                    steps.pop();
                }
                self.keep(at, used, trie::BYTES as u64)
            }
            _ => self.poison(at),
        }
    }

    /// Takes a small part of the index, which has no header: its run is the frame it is in.
    fn small(&self, offset: u64, bytes: usize) -> bool {
        let size = bytes.next_power_of_two();
        let place = (offset % FRAME) as u32 / size as u32;
        self.readable(offset, bytes)
            && self
                .space
                .pam
                .claim(Block { offset, place }, bytes, &|f| self.present.has(f))
    }

    /// Counts a part of the index that holds something, and unlinks one that holds nothing.
    fn keep(&mut self, at: u64, used: bool, bytes: u64) -> bool {
        if used {
            self.held += Held::index(bytes);
        } else {
            self.unlinked.push(self.load(at));
            self.space.arena.store(at, 0);
        }
        used
    }

    fn object(&mut self, at: u64, record: u64, steps: &[u64]) -> bool {
        if !self.readable(record, object::BYTES) {
            return self.poison(at);
        }
        let words = [0, 8, 16].map(|word| self.space.arena.load(record + object::ID + word));
        let path = self.space.path(ObjectId(words));
        let sound = self.space.arena.load(record + object::CHECK) == path.check()
            && (0..)
                .zip(steps)
                .all(|(depth, &step)| path.step(depth) == step);
        if !sound || !self.small(record, object::BYTES) {
            return self.poison(at);
        }
        let used = self.radix(record + object::ROOT, None);
        self.keep(at, used, object::BYTES as u64)
    }

    /// Recovers a radix node of the level that its parent asks for.
    fn radix(&mut self, at: u64, expected: Option<u32>) -> bool {
        match self.load(at) {
            Entry::Empty => false,
            Entry::Node { frame, level } if expected.is_none_or(|expected| expected == level) => {
                let claimed = u32::try_from(frame / FRAME).is_ok_and(|number| {
                    self.space
                        .frames
                        .claim_node(self.number, number, |f| self.present.has(f))
                });
                if !claimed {
                    return self.poison(at);
                }
                let mut used = 0;
                for child in (0..ENTRIES).map(|number| frame + number * 8) {
                    used += u16::from(if level == 1 {
                        self.page(child)
                    } else {
                        self.radix(child, Some(level - 1))
                    });
                }
                let record = self.space.frames.at(frame);
                record.set_parent(at);
                record.used.store(used, Relaxed);
                self.keep(at, used > 0, FRAME)
            }
            _ => self.poison(at),
        }
    }

    fn page(&mut self, at: u64) -> bool {
        match self.load(at) {
            Entry::Empty => false,
            Entry::Pattern(_) => {
                self.held += Held::INLINE;
                true
            }
            Entry::Block(offset) => {
                let claim = |block, bytes| {
                    let present = |frame| self.present.has(frame);
                    self.space
                        .pam
                        .claim_page(self.number, block, bytes, &present)
                };
                let Some(location) = self.block(at, offset, claim) else {
                    return self.poison(at);
                };
                self.space
                    .add_hint(hash_of(self.space.arena.load(offset + CHECK)), at);
                self.held += Held::block(location);
                true
            }
            Entry::Shared(record) => self.shared(at, record),
            Entry::Spilled(place) => self.spilled(at, place),
            _ => self.poison(at),
        }
    }

    /// Takes a page that shares its block.
    fn shared(&mut self, at: u64, record: u64) -> bool {
        if !self.readable(record, record::BYTES) {
            return self.poison(at);
        }
        if self.spill().is_none() && matches!(self.space.shared_entry(record), Entry::Spilled(_)) {
            // The file may come back, and then the record is needed; its first user takes it.
            if !self.abandon {
                self.small(record, record::BYTES);
            }
            return self.lose(at);
        }
        let Some(len) = self.record(record) else {
            return self.poison(at);
        };
        self.held += Held::shared(len);
        true
    }

    /// Takes a record, and its block with the first entry that leads to it; bytes of its payload.
    fn record(&mut self, record: u64) -> Option<usize> {
        self.records.resize(self.space.frames.count() as usize, 0);
        let bit = 1 << (record % FRAME / record::BYTES as u64);
        let frame = (record / FRAME) as usize;
        if self.records.get(frame).is_some_and(|bits| bits & bit != 0) {
            let len = self.space.shared_len(record)?;
            self.space.add_user(record, len);
            return Some(len);
        }
        let hash = self.space.record_hash(record)?;
        let len = match self.space.shared_entry(record) {
            Entry::Block(offset) => self.shared_block(record, offset, hash)?,
            Entry::Spilled(place) => self.shared_spilled(record, place)?,
            _ => return None,
        };
        if let Some(bits) = self.records.get_mut(frame) {
            *bits |= bit;
        }
        self.space.adopt(record, hash);
        Some(len)
    }

    /// Takes a record with its block.
    fn shared_block(&mut self, record: u64, offset: u64, hash: u32) -> Option<usize> {
        let claim = |block, bytes| {
            let present = |frame| self.present.has(frame);
            self.space.pam.claim(block, bytes, &present)
        };
        let location = self.block(record, offset, claim)?;
        if hash_of(self.space.arena.load(offset + CHECK)) != hash
            || !self.small(record, record::BYTES)
        {
            self.unlinked.push(Entry::Block(offset));
            return None;
        }
        Some(location.len)
    }

    /// Takes a record with its block in the spill file.
    fn shared_spilled(&self, record: u64, place: Spilled) -> Option<usize> {
        let spill = self.spill()?;
        let taken = spill.reaches(place) && self.small(record, record::BYTES) && spill.claim(place);
        taken.then(|| {
            self.space.sharing.count_spilled(place);
            place.len
        })
    }

    /// The spill file, if pages can be in it.
    fn spill(&self) -> Option<&'a Spill> {
        self.space.spill.as_ref().filter(|spill| !spill.is_new())
    }

    /// Counts a page in a spill file that is not there.
    fn lose(&mut self, at: u64) -> bool {
        self.lost += 1;
        !self.abandon || self.poison(at)
    }

    /// Takes a page in the spill file. That the right page is there shows when it is read.
    fn spilled(&mut self, at: u64, place: Spilled) -> bool {
        let Some(spill) = self.spill() else {
            return self.lose(at);
        };
        if !spill.claim(place) {
            return self.poison(at);
        }
        self.held += Held::spilled(place);
        true
    }

    /// Takes the block at `offset` for the entry at `at`, if it is that entry's.
    fn block(
        &self,
        at: u64,
        offset: u64,
        claim: impl FnOnce(Block, usize) -> bool,
    ) -> Option<Location> {
        if !self.readable(offset, HEADER) {
            return None;
        }
        let location = Location::decode(self.space.arena.load(offset))?;
        let block = Block {
            offset,
            place: location.place,
        };
        (location.slot == at && claim(block, HEADER + location.len)).then_some(location)
    }
}
