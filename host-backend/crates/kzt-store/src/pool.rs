// SPDX-License-Identifier: GPL-2.0-or-later
//! A pool: get and flush; `put.rs` has how a page gets into it.

use std::ops::{AddAssign, Deref, DerefMut};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, TryLockError};

use crate::client::Account;
use crate::codec::{self, Context, Encoding};
use crate::dedup::Domain;
use crate::directory::Found;
use crate::entry::Entry;
use crate::error::{GetError, SaveError, StoreError};
use crate::layout::{self, HEADER, Location, object};
use crate::radix::Place;
use crate::save::{Left, Log};
use crate::space::{Held, Space};
use crate::spill::Reading;
use crate::sync::atomic::AtomicU64;
use crate::sync::{Mutex, MutexGuard};
use crate::table::{Description, Kind, Uuid};
use crate::{ObjectId, Page, lock};

/// A pool's figures. Counters count pages, since the store was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Pages stored.
    pub pages: u64,
    /// Bytes of their blocks in memory, headers included.
    pub stored_bytes: u64,
    /// Pages that are one repeated word.
    pub same_filled: u64,
    /// Pages kept uncompressed.
    pub raw: u64,
    /// Bytes of the pool's index.
    pub index_bytes: u64,
    /// Puts, refused ones included.
    pub puts: u64,
    /// Gets.
    pub gets: u64,
    /// Gets that found their page.
    pub get_hits: u64,
    /// Pages asked to be flushed; a whole object counts as one.
    pub flushes: u64,
    /// Pages flushed.
    pub flush_found: u64,
    /// Puts refused. The next two are among them; the others met the memory limit.
    pub failed_puts: u64,
    /// Puts refused for their client's cap.
    pub over_cap: u64,
    /// Puts refused for what other clients have reserved.
    pub over_reservation: u64,
    /// Refused puts that flushed the page they were to replace.
    pub put_to_flush: u64,
    /// Pages evicted.
    pub evicted: u64,
    /// Gets that found their page damaged.
    pub crc_errors: u64,
    /// Gets whose page could not be read from the disk.
    pub io_errors: u64,
    /// Of the pages, those in the spill file.
    pub spilled: u64,
    /// Bytes of their blocks there.
    pub spilled_bytes: u64,
    /// Pages read from there.
    pub spill_reads: u64,
}

impl PoolStats {
    /// What is left of them when the pool is.
    pub(crate) fn past(self) -> Self {
        Self {
            pages: 0,
            stored_bytes: 0,
            same_filled: 0,
            raw: 0,
            index_bytes: 0,
            spilled: 0,
            spilled_bytes: 0,
            ..self
        }
    }
}

impl AddAssign for PoolStats {
    fn add_assign(&mut self, other: Self) {
        let Self {
            pages,
            stored_bytes,
            same_filled,
            raw,
            index_bytes,
            puts,
            gets,
            get_hits,
            flushes,
            flush_found,
            failed_puts,
            over_cap,
            over_reservation,
            put_to_flush,
            evicted,
            crc_errors,
            io_errors,
            spilled,
            spilled_bytes,
            spill_reads,
        } = other;
        self.pages += pages;
        self.stored_bytes += stored_bytes;
        self.same_filled += same_filled;
        self.raw += raw;
        self.index_bytes += index_bytes;
        self.puts += puts;
        self.gets += gets;
        self.get_hits += get_hits;
        self.flushes += flushes;
        self.flush_found += flush_found;
        self.failed_puts += failed_puts;
        self.over_cap += over_cap;
        self.over_reservation += over_reservation;
        self.put_to_flush += put_to_flush;
        self.evicted += evicted;
        self.crc_errors += crc_errors;
        self.io_errors += io_errors;
        self.spilled += spilled;
        self.spilled_bytes += spilled_bytes;
        self.spill_reads += spill_reads;
    }
}

/// A pool. It stays usable when the [`Store`](crate::Store) is gone, and answers `NoDevice` when
/// it was destroyed.
pub struct Pool {
    pub(crate) space: Arc<Space>,
    pub(crate) account: Arc<Account>,
    pub(crate) kind: Kind,
    uuid: Uuid,
    /// Offset of the pool's slot in the pool table.
    slot: u64,
    state: Mutex<State>,
    crc_errors: AtomicU64,
    io_errors: AtomicU64,
    spill_reads: AtomicU64,
}

/// What the pool's lock guards, besides its part of the index.
pub(crate) struct State {
    pub(crate) alive: bool,
    /// What a pool that has ended still holds.
    left: Option<Entry>,
    pub(crate) held: Held,
    /// Bytes of it that the pool's account knows of.
    pub(crate) charged: u64,
    /// The object used last and its record: swap devices have but one.
    recent: Option<(ObjectId, u64)>,
    pub(crate) counters: Counters,
    /// What has left since a save began.
    log: Option<Log>,
}

impl State {
    fn note_left(&mut self, object: ObjectId, first: u32, last: u32, freed: Held) {
        if let Some(log) = self.log.as_mut().filter(|_| freed.pages > 0) {
            log.add(object, first, last);
        }
    }

    /// Evicts what hangs on a slot of the pool's, maybe with the object that was used last.
    pub(crate) fn evict(&mut self, pool: &Pool, slot: u64) {
        let (object, first, last) = pool.space.pages_below(slot);
        let freed = pool.space.vacate(pool.root(), slot);
        self.held -= freed;
        self.counters.evicted += freed.pages;
        self.recent = None;
        self.note_left(object, first, last, freed);
    }
}

#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) puts: u64,
    gets: u64,
    get_hits: u64,
    flushes: u64,
    flush_found: u64,
    pub(crate) failed_puts: u64,
    pub(crate) over_cap: u64,
    pub(crate) over_reservation: u64,
    pub(crate) put_to_flush: u64,
    pub(crate) evicted: u64,
}

/// A pool's state, its lock held. When the lock is given back, the pool's account is told what
/// the pool holds.
pub(crate) struct Locked<'a> {
    pool: &'a Pool,
    state: MutexGuard<'a, State>,
}

impl Deref for Locked<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        &self.state
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut State {
        &mut self.state
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        let (before, now) = (self.state.charged, self.state.held.bytes());
        if now != before {
            self.state.charged = now;
            let charge = &self.pool.account.charge;
            match self.pool.kind {
                Kind::Persistent => charge.correct_persistent(before, now),
                Kind::Ephemeral | Kind::Shared => charge.correct_ephemeral(before, now),
            }
        }
    }
}

/// A page as found in the index, its payload in the context or still on the disk.
pub(crate) enum Fetched<'a> {
    Absent,
    Pattern(u32),
    Payload {
        encoding: Encoding,
        len: usize,
        checksum: u32,
    },
    Spilled {
        slot: u64,
        /// Whose word leads to it: the slot, or the record that the slot's entry leads to.
        owner: u64,
        reading: Reading<'a>,
    },
}

/// When a page leaves that a get finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leave {
    Never,
    /// Before anybody else can find it, readable or not.
    AtOnce,
    /// Once it has been read, for it was promised to stay.
    Once,
}

/// What a get found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Got {
    Page,
    Nothing,
    /// Nothing, nor any other page in the pool.
    EmptyPool,
}

impl Pool {
    /// Creates a pool in the arena.
    pub(crate) fn create(
        space: &Arc<Space>,
        account: &Arc<Account>,
        description: &Description,
    ) -> Result<Arc<Self>, StoreError> {
        let slot = space.table.create(description);
        let slot = slot.ok_or(StoreError::TooManyPools)?;
        Ok(Self::new(
            space,
            account,
            slot,
            description,
            Held::default(),
        ))
    }

    /// The pool that is in a slot of the pool table already.
    pub(crate) fn new(
        space: &Arc<Space>,
        account: &Arc<Account>,
        slot: u64,
        description: &Description,
        held: Held,
    ) -> Arc<Self> {
        let state = State {
            alive: true,
            left: None,
            held,
            charged: 0,
            recent: None,
            counters: Counters::default(),
            log: None,
        };
        let pool = Arc::new(Self {
            space: Arc::clone(space),
            account: Arc::clone(account),
            kind: description.kind,
            uuid: description.uuid,
            slot,
            state: Mutex::new(state),
            crc_errors: AtomicU64::new(0),
            io_errors: AtomicU64::new(0),
            spill_reads: AtomicU64::new(0),
        });
        space.owners.note(pool.number(), &pool);
        space.pam.zbud().add_pool(pool.number());
        // What recovery has found is charged.
        drop(pool.lock());
        pool
    }

    /// What becomes of its pages.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The UUID it was made with.
    pub fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// Fetches a page; whether it was there. It stays, unless the pool is an ephemeral one that is
    /// not shared, or its client wants it otherwise.
    ///
    /// # Errors
    /// `Corrupt` if its stored bytes are damaged, `Io` if they can't be read from the disk; it
    /// stays. What `out` holds then is not to be used.
    pub fn get(
        &self,
        cx: &mut Context,
        object: ObjectId,
        index: u32,
        out: &mut Page,
    ) -> Result<bool, GetError> {
        self.look_up(cx, object, index, out)
            .map(|got| got == Got::Page)
    }

    /// The same, and whether the pool has any page.
    pub(crate) fn look_up(
        &self,
        cx: &mut Context,
        object: ObjectId,
        index: u32,
        out: &mut Page,
    ) -> Result<Got, GetError> {
        let leave = match self.kind {
            Kind::Persistent if self.account.exclusive() => Leave::Once,
            Kind::Ephemeral => Leave::AtOnce,
            Kind::Persistent | Kind::Shared => Leave::Never,
        };
        self.read(cx, object, index, out, leave)
    }

    fn read(
        &self,
        cx: &mut Context,
        object: ObjectId,
        index: u32,
        out: &mut Page,
        leave: Leave,
    ) -> Result<Got, GetError> {
        let mut state = self.lock();
        state.counters.gets += 1;
        if !state.alive {
            return Err(GetError::NoDevice);
        }
        let nothing = if state.held.pages == 0 {
            Got::EmptyPool
        } else {
            Got::Nothing
        };
        let got = |found| if found { Got::Page } else { nothing };
        if leave == Leave::Once {
            let (mut state, found) = self.read_held(state, cx, object, index, out);
            state.counters.get_hits += u64::from(found != Ok(false));
            if found == Ok(true) {
                self.clear(&mut state, object, index, index);
            }
            return found.map(got);
        }
        let fetched = self.fetch(&mut state, cx, object, index);
        let absent = matches!(fetched, Ok(Fetched::Absent));
        state.counters.get_hits += u64::from(!absent);
        if leave == Leave::AtOnce && !absent {
            self.clear(&mut state, object, index, index);
        }
        drop(state);
        self.expand(cx, &fetched, out).map(got)
    }

    /// The first page behind that one in some order, whose bytes are read and stay.
    pub(crate) fn next_page(
        &self,
        cx: &mut Context,
        mut behind: Option<(ObjectId, u32)>,
        out: &mut Page,
    ) -> Result<Option<(ObjectId, u32)>, GetError> {
        loop {
            let Some((object, index)) = self.next_key(behind)? else {
                return Ok(None);
            };
            match self.read(cx, object, index, out, Leave::Never) {
                Ok(Got::Page) => return Ok(Some((object, index))),
                // It was flushed meanwhile.
                Ok(_) => behind = Some((object, index)),
                Err(GetError::NoDevice) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    fn next_key(
        &self,
        behind: Option<(ObjectId, u32)>,
    ) -> Result<Option<(ObjectId, u32)>, GetError> {
        let state = self.lock();
        let mut from = behind.map(|(object, _)| object);
        // The last page's successor is in another object.
        let mut passed = behind.is_some_and(|(_, index)| index == u32::MAX);
        if !state.alive {
            return Ok(None);
        }
        loop {
            let next = self.space.next_object(self.root(), from, passed)?;
            let Some((object, record)) = next else {
                return Ok(None);
            };
            let first = match behind {
                Some((last, index)) if last == object => index + 1,
                _ => 0,
            };
            let page = self.space.next_page(record + object::ROOT, first);
            if let Some(index) = page {
                return Ok(Some((object, index)));
            }
            (from, passed) = (Some(object), true);
        }
    }

    /// Removes a page; whether it was there. It never comes back.
    pub fn flush(&self, object: ObjectId, index: u32) -> bool {
        self.flush_range(object, index, 1) > 0
    }

    /// Removes the pages `first..first + count`; how many there were.
    pub fn flush_range(&self, object: ObjectId, first: u32, count: u32) -> u64 {
        let mut state = self.lock();
        state.counters.flushes += u64::from(count);
        let Some(more) = count.checked_sub(1) else {
            return 0;
        };
        if !state.alive {
            return 0;
        }
        let freed = self.clear(&mut state, object, first, first.saturating_add(more));
        state.counters.flush_found += freed.pages;
        freed.pages
    }

    /// Removes the pages `first..=last`, all that there can be if need be.
    pub(crate) fn flush_pages(&self, object: ObjectId, first: u32, last: u32) {
        let mut state = self.lock();
        if state.alive {
            self.clear(&mut state, object, first, last);
        }
    }

    /// Removes all pages; how many there were.
    pub(crate) fn flush_all(&self) -> u64 {
        let mut state = self.lock();
        if !state.alive {
            return 0;
        }
        state.recent = None;
        let directory = self.space.entry(self.root());
        self.space.set(self.root(), Entry::Empty);
        let freed = self.space.release(directory);
        state.held -= freed;
        state.counters.flush_found += freed.pages;
        freed.pages
    }

    /// Removes all pages of an object; how many there were.
    pub fn flush_object(&self, object: ObjectId) -> u64 {
        let mut state = self.lock();
        state.counters.flushes += 1;
        if !state.alive {
            return 0;
        }
        state.recent = None;
        let freed = self.space.remove_object(self.root(), object);
        state.note_left(object, 0, u32::MAX, freed);
        state.held -= freed;
        state.counters.flush_found += freed.pages;
        freed.pages
    }

    /// Calls `f(pages, present)` for the alternating runs of pages that are there and that are
    /// not, over `first..first + count`, in order. `f` runs under the pool's lock and must not
    /// use the pool.
    pub fn runs(&self, object: ObjectId, first: u32, count: u32, mut f: impl FnMut(u32, bool)) {
        let Some(more) = count.checked_sub(1) else {
            return;
        };
        let last = first.saturating_add(more);
        let mut run = (0_u64, false);
        let mut emit = |(pages, present): (u64, bool)| {
            if let Ok(pages @ 1..) = u32::try_from(pages) {
                f(pages, present);
            }
        };
        let mut state = self.lock();
        let record = match self.find(&mut state, object) {
            Found::Record(record) if state.alive => record,
            found => {
                emit((
                    u64::from(last - first) + 1,
                    state.alive && found == Found::Poison,
                ));
                return;
            }
        };
        self.space
            .walk(record + object::ROOT, first, last, &mut |pages, present| {
                if present == run.1 {
                    run.0 += pages;
                } else {
                    emit(run);
                    run = (pages, present);
                }
            });
        emit(run);
    }

    /// The pool's figures.
    pub fn stats(&self) -> PoolStats {
        let state = self.lock();
        let (held, counters) = (state.held, &state.counters);
        PoolStats {
            pages: held.pages,
            stored_bytes: held.stored(),
            same_filled: held.same_filled,
            raw: held.raw,
            index_bytes: held.index,
            puts: counters.puts,
            gets: counters.gets,
            get_hits: counters.get_hits,
            flushes: counters.flushes,
            flush_found: counters.flush_found,
            failed_puts: counters.failed_puts,
            over_cap: counters.over_cap,
            over_reservation: counters.over_reservation,
            put_to_flush: counters.put_to_flush,
            evicted: counters.evicted,
            crc_errors: self.crc_errors.load(Relaxed),
            io_errors: self.io_errors.load(Relaxed),
            spilled: held.spilled,
            spilled_bytes: held.spilled_bytes,
            spill_reads: self.spill_reads.load(Relaxed),
        }
    }

    /// With whom its pages may share memory. Ephemeral ones share with nobody: they leave by whole
    /// frames, whoever else used what is in them.
    pub(crate) fn domain(&self) -> Option<&Domain> {
        match self.kind {
            Kind::Persistent => self.account.domain.get(),
            Kind::Ephemeral | Kind::Shared => None,
        }
    }

    pub(crate) fn held(&self) -> Held {
        self.lock().held
    }

    /// Ends the pool: from now on every call fails, and it will not be recovered.
    pub(crate) fn end(&self) {
        let mut state = self.lock();
        state.alive = false;
        state.recent = None;
        state.left = Some(self.space.entry(self.root()));
        self.space.table.end(self.slot);
    }

    /// Frees what a pool held that has ended, which may take a while.
    pub(crate) fn reclaim(&self) {
        let mut state = self.lock();
        if let Some(directory) = state.left.take() {
            state.held -= self.space.release(directory);
            self.space.table.give_back(self.slot);
        }
    }

    pub(crate) fn lock(&self) -> Locked<'_> {
        Locked {
            pool: self,
            state: lock(&self.state),
        }
    }

    /// The pool's lock, unless the pool is gone.
    pub(crate) fn lock_alive(&self) -> Option<Locked<'_>> {
        Some(self.lock()).filter(|state| state.alive)
    }

    /// The pool's lock, if nobody has it and the pool is not gone.
    pub(crate) fn try_lock(&self) -> Option<Locked<'_>> {
        let state = match self.state.try_lock() {
            Ok(state) => state,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        state.alive.then_some(Locked { pool: self, state })
    }

    /// Notes from now on what leaves, or no longer.
    pub(crate) fn set_log(&self, log: Option<Log>) {
        self.lock().log = log;
    }

    /// Takes out something that has left since.
    pub(crate) fn next_left(&self) -> Result<Left, SaveError> {
        let mut state = self.lock();
        if !state.alive {
            return Ok(Left::Pool);
        }
        state.log.as_mut().map_or(Ok(Left::Nothing), Log::take)
    }

    /// Waits until whoever uses the pool right now is done.
    pub(crate) fn pass(&self) {
        drop(self.lock());
    }

    /// Its slot's number.
    pub(crate) fn number(&self) -> layout::pool::Number {
        layout::pool::number(self.slot)
    }

    pub(crate) fn root(&self) -> u64 {
        self.slot + layout::pool::ROOT
    }

    pub(crate) fn find(&self, state: &mut State, object: ObjectId) -> Found {
        if let Some((_, record)) = state.recent.filter(|&(id, _)| id == object) {
            return Found::Record(record);
        }
        let found = self.space.find_object(self.root(), object);
        if let Found::Record(record) = found {
            state.recent = Some((object, record));
        }
        found
    }

    /// Reads a page that is to be changed: whether there is one, and the lock, which is given back
    /// while the disk is read. Until it is given back again the page is the one that was read.
    pub(crate) fn read_held<'a>(
        &'a self,
        mut state: Locked<'a>,
        cx: &mut Context,
        object: ObjectId,
        index: u32,
        out: &mut Page,
    ) -> (Locked<'a>, Result<bool, GetError>) {
        loop {
            if !state.alive {
                return (state, Err(GetError::NoDevice));
            }
            let fetched = self.fetch(&mut state, cx, object, index);
            let Ok(Fetched::Spilled {
                slot,
                owner,
                reading,
            }) = &fetched
            else {
                return (state, self.expand(cx, &fetched, out));
            };
            drop(state);
            let found = self.expand(cx, &fetched, out);
            state = self.lock();
            // What is being read is not written over: the same entry is the same page.
            if self.find_slot(&mut state, object, index) == Some(*slot)
                && self.space.entry_on_disk(*slot) == Some((*owner, reading.at))
            {
                return (state, found);
            }
        }
    }

    /// The slot of a page, if there is one.
    fn find_slot(&self, state: &mut State, object: ObjectId, index: u32) -> Option<u64> {
        let Found::Record(record) = self.find(state, object) else {
            return None;
        };
        match self.space.find_page(record + object::ROOT, index) {
            Place::Slot(at) => Some(at),
            Place::Absent | Place::Poison => None,
        }
    }

    /// Removes pages from the index, and the object with its last one.
    pub(crate) fn clear(&self, state: &mut State, object: ObjectId, first: u32, last: u32) -> Held {
        let Found::Record(record) = self.find(state, object) else {
            return Held::default();
        };
        let mut freed = self.space.clear(record + object::ROOT, first, last);
        if self.space.arena.load(record + object::ROOT) == 0 {
            state.recent = None;
            freed += self.space.remove_object(self.root(), object);
        } else {
            freed += self.space.lower(record + object::ROOT);
        }
        state.note_left(object, first, last, freed);
        state.held -= freed;
        freed
    }

    /// Looks a page up and copies its payload into the context.
    pub(crate) fn fetch(
        &self,
        state: &mut State,
        cx: &mut Context,
        object: ObjectId,
        index: u32,
    ) -> Result<Fetched<'_>, GetError> {
        let record = match self.find(state, object) {
            Found::Record(record) => record,
            Found::Absent => return Ok(Fetched::Absent),
            Found::Poison => return Err(GetError::Corrupt),
        };
        let at = match self.space.find_page(record + object::ROOT, index) {
            Place::Slot(at) => at,
            Place::Absent => return Ok(Fetched::Absent),
            Place::Poison => return Err(GetError::Corrupt),
        };
        match self.space.entry(at) {
            Entry::Empty => Ok(Fetched::Absent),
            Entry::Pattern(word) => Ok(Fetched::Pattern(word)),
            Entry::Shared(record) => self
                .space
                .with_shared(record, |entry| self.fetch_block(cx, at, record, entry)),
            entry => self.fetch_block(cx, at, at, entry),
        }
    }

    /// Copies the payload of the page in the slot at `at` into the context, whose block is where the
    /// entry of `owner` says, or keeps it where it is on the disk.
    fn fetch_block(
        &self,
        cx: &mut Context,
        at: u64,
        owner: u64,
        entry: Entry,
    ) -> Result<Fetched<'_>, GetError> {
        match entry {
            Entry::Block(offset) => {
                let location = Location::decode(self.space.arena.load(offset))
                    .filter(|location| location.slot == owner)
                    .ok_or(GetError::Corrupt)?;
                if self.kind == Kind::Shared {
                    self.space.pam.touch(offset);
                }
                Ok(self.copy_out(cx, offset, location))
            }
            Entry::Spilled(spilled) => {
                let spill = self.space.spill.as_ref().ok_or(GetError::Corrupt)?;
                Ok(Fetched::Spilled {
                    slot: at,
                    owner,
                    reading: spill.hold(spilled),
                })
            }
            _ => Err(GetError::Corrupt),
        }
    }

    /// Copies a block's payload into the context.
    fn copy_out(&self, cx: &mut Context, offset: u64, location: Location) -> Fetched<'_> {
        let Location { encoding, len, .. } = location;
        let from = self.space.payload(offset, location.place);
        self.space.touch(from);
        self.space
            .arena
            .read(from, cx.payload_mut(len.next_multiple_of(8)));
        // The upper half may have a hash of the page.
        let checksum = self.space.arena.load(offset + layout::CHECK) as u32;
        Fetched::Payload {
            encoding,
            len,
            checksum,
        }
    }

    /// Turns what was fetched into a page; whether there was one.
    pub(crate) fn expand(
        &self,
        cx: &mut Context,
        fetched: &Result<Fetched<'_>, GetError>,
        out: &mut Page,
    ) -> Result<bool, GetError> {
        let page = match fetched {
            Ok(Fetched::Absent) => return Ok(false),
            Ok(Fetched::Pattern(word)) => {
                codec::fill(out, u64::from(*word) << 32 | u64::from(*word));
                Ok(())
            }
            Ok(Fetched::Payload {
                encoding,
                len,
                checksum,
            }) => Self::decode(cx, *encoding, *len, *checksum, out),
            Ok(Fetched::Spilled { owner, reading, .. }) => {
                self.spill_reads.fetch_add(1, Relaxed);
                let read = reading.read(*owner, cx.payload_mut(reading.at.size()));
                read.and_then(|(Location { encoding, len, .. }, checksum)| {
                    cx.skip(HEADER);
                    Self::decode(cx, encoding, len, checksum, out)
                })
            }
            Err(error) => Err(*error),
        };
        match page {
            Err(GetError::Corrupt) => self.crc_errors.fetch_add(1, Relaxed),
            Err(GetError::Io) => self.io_errors.fetch_add(1, Relaxed),
            _ => 0,
        };
        page.map(|()| true)
    }

    /// Decodes the payload in the context.
    fn decode(
        cx: &mut Context,
        encoding: Encoding,
        len: usize,
        checksum: u32,
        out: &mut Page,
    ) -> Result<(), GetError> {
        let sound = Location::checksum(encoding, cx.payload(len)) == checksum;
        let page = sound.then(|| cx.decode(encoding, len, out)).flatten();
        page.ok_or(GetError::Corrupt)
    }
}
