// SPDX-License-Identifier: GPL-2.0-or-later
//! How a page gets into a pool: encoded, written aside, published by one store; and what is tried
//! before it is refused.

use std::mem;

use crate::client::Account;
use crate::codec::{self, Codec, Context, Encoding};
use crate::dedup::Payload;
use crate::directory::Found;
use crate::entry::Entry;
use crate::error::{PutError, UpdateError};
use crate::layout::{HEADER, Location, object};
use crate::pam::Block;
use crate::pool::{Pool, State};
use crate::radix::Place;
use crate::space::Held;
use crate::table::Kind;
use crate::{ObjectId, PAGE_SIZE, Page};

/// A page as it will be stored.
enum Encoded<'a> {
    /// In its entry.
    Inline(u32),
    Pattern([u8; size_of::<u64>()]),
    Payload(Encoding, &'a [u8]),
}

/// A page ready to be published.
enum Stored {
    Inline(u32),
    Block {
        block: Block,
        encoding: Encoding,
        len: usize,
        hash: u32,
    },
    /// A use of a record.
    Shared {
        record: u64,
        encoding: Encoding,
        len: usize,
    },
}

/// What a put lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lack {
    /// So many frames in a row.
    Frames(u32),
    /// There is memory, but it is reserved for other clients.
    Reserved,
    /// Its client may not have more.
    Cap,
}

/// How far a put goes for room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effort {
    /// Its allocator has to have some, and others' pages may have to leave for it.
    Usual,
    /// So it is, but any allocator will do.
    Anywhere,
    /// Nobody is asked any more.
    Last,
}

impl Encoded<'_> {
    fn of<'a>(cx: &'a mut Context, codec: Codec, page: &'a Page) -> Encoded<'a> {
        let Some(word) = codec::same_filled(page) else {
            let (encoding, payload) = cx.encode(codec, page);
            return Encoded::Payload(encoding, payload);
        };
        codec::half(word).map_or(Encoded::Pattern(word.to_ne_bytes()), Encoded::Inline)
    }
}

impl Pool {
    /// Stores a page. Once it returns `Ok`, the page is in the arena: it survives the process.
    ///
    /// While a put of an existing key is under way at the memory limit, its old page may leave
    /// before the new one is there. Where there is a spill file a put may wait for its disk.
    ///
    /// # Errors
    /// `NoMemory` for a new key, `NoSpace` for an existing one, whose old page is flushed then.
    pub fn put(
        &self,
        cx: &mut Context,
        object: ObjectId,
        index: u32,
        page: &Page,
    ) -> Result<(), PutError> {
        self.put_by(None, cx, object, index, page).map(|_| ())
    }

    /// The same for a client, by its own terms, which may be others than the pool's. Whether the
    /// page was taken: a frozen client puts no new key.
    pub(crate) fn put_by(
        &self,
        client: Option<&Account>,
        cx: &mut Context,
        object: ObjectId,
        index: u32,
        page: &Page,
    ) -> Result<bool, PutError> {
        let codec = client.unwrap_or(&self.account).codec(self.space.codec);
        let page = Encoded::of(cx, codec, page);
        let mut puts = 1;
        let mut effort = Effort::Usual;
        loop {
            let stored = self.store(&page, effort);
            let mut state = self.lock();
            state.counters.puts += mem::take(&mut puts);
            let frozen = client.is_some_and(Account::frozen);
            if !state.alive || frozen && !self.exists(&mut state, object, index) {
                if let Ok(stored) = stored {
                    self.discard(&stored);
                }
                return if state.alive {
                    Ok(false)
                } else {
                    Err(PutError::NoDevice)
                };
            }
            if client.is_some_and(Account::saving) {
                if let Ok(stored) = stored {
                    self.discard(&stored);
                }
                self.clear(&mut state, object, index, index);
                state.counters.failed_puts += 1;
                state.counters.put_to_flush += 1;
                return Err(PutError::NoSpace);
            }
            let published =
                stored.and_then(|stored| self.publish(&mut state, object, index, &stored));
            let Err(lack) = published else {
                return Ok(true);
            };
            if effort != Effort::Last {
                drop(state);
                effort = self.make_room(lack, effort);
                continue;
            }
            if !self.exists(&mut state, object, index) {
                return Err(state.refuse(lack, PutError::NoMemory));
            }
            // What the old page leaves may be what the new one needs.
            self.clear(&mut state, object, index, index);
            return self
                .store(&page, effort)
                .and_then(|stored| self.publish(&mut state, object, index, &stored))
                .map(|()| true)
                .map_err(|lack| {
                    state.counters.put_to_flush += 1;
                    state.refuse(lack, PutError::NoSpace)
                });
        }
    }

    /// Changes a page atomically: no other call sees or makes a change in between. An absent
    /// page begins as zeros. `f` runs under the pool's lock and must not use the pool; it runs
    /// again, on the page as it is then, if room had to be made first.
    ///
    /// # Errors
    /// See [`UpdateError`]; the page is then as it was before.
    pub fn update(
        &self,
        cx: &mut Context,
        object: ObjectId,
        index: u32,
        mut f: impl FnMut(&mut Page),
    ) -> Result<(), UpdateError> {
        let mut page = [0; PAGE_SIZE];
        let mut puts = 1;
        let mut effort = Effort::Usual;
        loop {
            let mut state = self.lock();
            state.counters.puts += mem::take(&mut puts);
            let found;
            (state, found) = self.read_held(state, cx, object, index, &mut page);
            if !found? {
                page.fill(0);
            }
            f(&mut page);
            let encoded = Encoded::of(cx, self.account.codec(self.space.codec), &page);
            let published = self
                .store(&encoded, effort)
                .and_then(|stored| self.publish(&mut state, object, index, &stored));
            let Err(lack) = published else {
                return Ok(());
            };
            if effort == Effort::Last {
                return Err(state.refuse(lack, UpdateError::NoMemory));
            }
            drop(state);
            effort = self.make_room(lack, effort);
        }
    }

    /// Tries to get what a put lacks; the effort that the next attempt is worth.
    fn make_room(&self, lack: Lack, effort: Effort) -> Effort {
        let spills = self.kind == Kind::Persistent && lack != Lack::Cap;
        match effort {
            _ if self.space.reclaim(lack) => effort,
            Effort::Usual => Effort::Anywhere,
            // A page that may vanish pushes out none that may not.
            Effort::Anywhere if spills && self.space.spill() => Effort::Usual,
            Effort::Anywhere | Effort::Last => Effort::Last,
        }
    }

    /// Whether there is a page, be it a damaged one.
    fn exists(&self, state: &mut State, object: ObjectId, index: u32) -> bool {
        let place = match self.find(state, object) {
            Found::Record(record) => self.space.find_page(record + object::ROOT, index),
            Found::Absent => Place::Absent,
            Found::Poison => Place::Poison,
        };
        match place {
            Place::Slot(at) => self.space.arena.load(at) != 0,
            Place::Absent => false,
            Place::Poison => true,
        }
    }

    /// Writes a page into the arena, not yet published.
    fn store(&self, page: &Encoded<'_>, effort: Effort) -> Result<Stored, Lack> {
        let (encoding, payload) = match page {
            Encoded::Inline(word) => return Ok(Stored::Inline(*word)),
            Encoded::Pattern(word) => (Encoding::Pattern, word.as_slice()),
            Encoded::Payload(encoding, payload) => (*encoding, *payload),
        };
        let domain = self.domain();
        let payload = Payload::new(encoding, payload, domain);
        let len = payload.bytes.len();
        if let Some(record) = domain.and_then(|domain| self.space.share(domain, payload)) {
            return Ok(Stored::Shared {
                record,
                encoding,
                len,
            });
        }
        let block = self.space.pam.allocate_page(
            self.kind,
            self.number(),
            HEADER + len,
            effort != Effort::Usual,
        )?;
        self.space.write_block(block, payload);
        Ok(Stored::Block {
            block,
            encoding,
            len,
            hash: payload.hash(),
        })
    }

    /// Frees what `store` wrote.
    fn discard(&self, stored: &Stored) {
        match stored {
            Stored::Inline(_) => {}
            Stored::Block { block, .. } => self.space.pam.free(block.offset),
            Stored::Shared { record, .. } => {
                self.space.unshare(*record);
            }
        }
    }

    /// Makes a stored page the one at its key. On failure it is freed, and what was there stays.
    fn publish(
        &self,
        state: &mut State,
        object: ObjectId,
        index: u32,
        stored: &Stored,
    ) -> Result<(), Lack> {
        let Some(at) = self.slot(state, object, index) else {
            self.discard(stored);
            return Err(Lack::Frames(1));
        };
        let (entry, added) = match *stored {
            Stored::Inline(word) => (Entry::Pattern(word), Held::INLINE),
            Stored::Shared {
                record,
                encoding,
                len,
            } => (Entry::Shared(record), Held::payload(encoding, len)),
            Stored::Block {
                block,
                encoding,
                len,
                ..
            } => {
                let location = Location {
                    encoding,
                    len,
                    place: block.place,
                    slot: at,
                };
                self.space.arena.store(block.offset, location.encode());
                (Entry::Block(block.offset), Held::block(location))
            }
        };
        let old = self.space.entry(at);
        if let Err(lack) = self.admit(state, added, self.space.held_by(old)) {
            self.discard(stored);
            if old == Entry::Empty {
                self.clear(state, object, index, index);
            }
            return Err(lack);
        }
        self.space.publish(at, old, entry);
        state.held += added;
        state.held -= self.space.release(old);
        if let &Stored::Block { hash, .. } = stored {
            self.space.add_hint(hash, at);
        }
        Ok(())
    }

    /// Charges the pool's client for a page that takes another one's place, and for the index
    /// that was made for it.
    fn admit(&self, state: &mut State, added: Held, old: Held) -> Result<(), Lack> {
        if self.kind != Kind::Persistent {
            return Ok(());
        }
        let mut held = state.held;
        held += added;
        held -= old;
        let due = held.bytes().saturating_sub(state.charged);
        if due == 0 {
            return Ok(());
        }
        let charge = &self.account.charge;
        if !charge.admit(due) {
            return Err(Lack::Cap);
        }
        // If it comes to nothing, the lock's end takes it back.
        state.charged += due;
        if self.space.can_keep(charge.kept_for_others()) {
            Ok(())
        } else {
            Err(Lack::Reserved)
        }
    }

    /// The slot of a page, made if need be.
    fn slot(&self, state: &mut State, object: ObjectId, index: u32) -> Option<u64> {
        let record = match self.find(state, object) {
            Found::Record(record) => record,
            Found::Absent | Found::Poison => {
                self.space
                    .add_object(self.root(), object, &mut state.held)?
            }
        };
        let root = record + object::ROOT;
        let at = self
            .space
            .make_page(self.number(), root, index, &mut state.held);
        // A new object that got no page goes again; not one whose pages were lost.
        if at.is_none() {
            state.held -= if self.space.arena.load(root) == 0 {
                self.space.remove_object(self.root(), object)
            } else {
                self.space.lower(root)
            };
        }
        at
    }
}

impl State {
    fn refuse<E>(&mut self, lack: Lack, error: E) -> E {
        let counters = &mut self.counters;
        counters.failed_puts += 1;
        match lack {
            Lack::Frames(_) => {}
            Lack::Reserved => counters.over_reservation += 1,
            Lack::Cap => counters.over_cap += 1,
        }
        error
    }
}
