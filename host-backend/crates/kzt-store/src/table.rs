// SPDX-License-Identifier: GPL-2.0-or-later
//! The pool table: which pools there are, whose, and of which kind.
//!
//! A pool's slot is nothing that can be worked out again: lost, it would cost all pages of the
//! pool. So it describes the pool twice, each time under a check of its own, and recovery mends
//! one by the other. The copy is written before the state word creates the pool and cleared after
//! the state word has destroyed it.

use std::sync::Arc;

use crate::arena::Arena;
use crate::layout::pool::{
    ENDED, IDENTITY_BYTES, NAME, NAME_BYTES, NAME_COPY, Number, ROOT, SLOTS, STATE, STATE_COPY,
    number, slot,
};
use crate::lock;
use crate::sync::Mutex;
use crate::tmem::MAX_POOLS;

/// Number, among its client's pools, of the pool that the host's own devices use.
pub(crate) const DEVICE: u8 = MAX_POOLS;

/// What becomes of a pool's pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// They stay until they are flushed: swap.
    Persistent,
    /// They may vanish at any time, and a get takes them out: the cache of one client.
    Ephemeral,
    /// They may vanish at any time, and a get leaves them: a cache that several clients share.
    Shared,
}

/// 128 bits of the client's choice that name a pool, or nothing in particular.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Uuid(pub [u64; 2]);

/// What a slot says of its pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Description {
    name: [u8; NAME_BYTES],
    /// The pool's number among its client's: 0 to 15, or [`DEVICE`].
    pub(crate) id: u8,
    pub(crate) kind: Kind,
    pub(crate) uuid: Uuid,
}

impl Description {
    const SHARED: u64 = 1 << 2;
    const ID_SHIFT: u32 = 8;

    /// `None` if no client can have that name.
    pub(crate) fn new(client: &str, id: u8, kind: Kind, uuid: Uuid) -> Option<Self> {
        let mut name = [0; NAME_BYTES];
        let valid = !client.is_empty() && client.bytes().all(|byte| byte.is_ascii_graphic());
        name.get_mut(..client.len())
            .filter(|_| valid)?
            .copy_from_slice(client.as_bytes());
        Some(Self {
            name,
            id,
            kind,
            uuid,
        })
    }

    /// The client's name.
    pub(crate) fn client(&self) -> &str {
        // It was made of a text, or compared with one.
        std::str::from_utf8(&self.name)
            .unwrap_or_default()
            .trim_end_matches('\0')
    }

    fn identity(&self) -> [u8; IDENTITY_BYTES] {
        let mut bytes = [0; IDENTITY_BYTES];
        let uuid = self.uuid.0.into_iter().flat_map(u64::to_ne_bytes);
        let fields = self.name.into_iter().chain(uuid);
        bytes
            .iter_mut()
            .zip(fields)
            .for_each(|(to, from)| *to = from);
        bytes
    }

    /// The state word: bits 0-1 are 1 for persistent and 2 for ephemeral, bit 2 means shared,
    /// bits 8-12 are the pool's number in its client, 32-63 a check of all this and of the name
    /// and the UUID.
    fn state(&self) -> u64 {
        let kind = match self.kind {
            Kind::Persistent => 1,
            Kind::Ephemeral => 2,
            Kind::Shared => 2 | Self::SHARED,
        };
        let low = kind | u64::from(self.id) << Self::ID_SHIFT;
        let check = crc32c::crc32c_append(low as u32, &self.identity());
        u64::from(check) << 32 | low
    }

    /// `None` if this is not how a pool is described.
    fn read(state: u64, identity: &[u8; IDENTITY_BYTES]) -> Option<Self> {
        let (name, uuid) = identity.split_first_chunk::<NAME_BYTES>()?;
        let word = |bytes: &[u8]| Some(u64::from_ne_bytes(*bytes.first_chunk()?));
        let uuid = Uuid([word(uuid)?, word(uuid.get(8..)?)?]);
        let client = std::str::from_utf8(name).ok()?.trim_end_matches('\0');
        let kind = match state & 0b111 {
            1 => Kind::Persistent,
            2 => Kind::Ephemeral,
            6 => Kind::Shared,
            _ => return None,
        };
        let id = (state >> Self::ID_SHIFT & 0x1f) as u8;
        Self::new(client, id, kind, uuid)
            .filter(|found| id <= DEVICE && found.state() == state && found.identity() == *identity)
    }
}

/// What recovery finds in a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Slot {
    Free,
    Pool(Description),
    /// One of the two descriptions was damaged and has been mended.
    Mended(Description),
    /// Nobody knows whose pool this was.
    Lost,
}

/// The table.
pub(crate) struct Table {
    arena: Arc<Arena>,
    /// A bit for every slot in use, private to the process: set before the slot is written, and
    /// cleared when its pool's pages are free, which is later than the slot says.
    used: Mutex<[u64; SLOTS.div_ceil(64) as usize]>,
}

impl Table {
    pub(crate) fn new(arena: Arc<Arena>) -> Self {
        Self {
            arena,
            used: Mutex::default(),
        }
    }

    /// Creates a pool without pages; the offset of its slot. `None` if the table is full.
    pub(crate) fn create(&self, pool: &Description) -> Option<u64> {
        let free = |slot: &u64| !self.mark(number(*slot), true);
        let slot = (0..SLOTS).map(slot).find(free)?;
        self.write(slot, NAME_COPY, STATE_COPY, pool);
        self.write(slot, NAME, STATE, pool);
        Some(slot)
    }

    /// Destroys a pool; its slot stays taken until it is given back.
    pub(crate) fn end(&self, slot: u64) {
        self.arena.store(slot + STATE, ENDED);
        self.clear(slot);
    }

    /// Lets the slot of a pool that has ended be used again.
    pub(crate) fn give_back(&self, slot: u64) {
        self.mark(number(slot), false);
    }

    /// Recovery: what is in a slot, put in order; a pool's slot is taken from now on.
    pub(crate) fn recover(&self, slot: u64) -> Slot {
        let [state, copy, root] =
            [STATE, STATE_COPY, ROOT].map(|word| self.arena.load(slot + word));
        let found = match (
            self.read(slot, NAME, state),
            self.read(slot, NAME_COPY, copy),
        ) {
            _ if state == ENDED => Slot::Free,
            (Some(pool), same) if same == Some(pool) => Slot::Pool(pool),
            (Some(pool), _) => {
                self.write(slot, NAME_COPY, STATE_COPY, &pool);
                Slot::Mended(pool)
            }
            // Its creator died, or had not said yet that it was there.
            _ if state == 0 && root == 0 => Slot::Free,
            (None, Some(pool)) => {
                self.write(slot, NAME, STATE, &pool);
                Slot::Mended(pool)
            }
            (None, None) => Slot::Lost,
        };
        match found {
            Slot::Pool(_) | Slot::Mended(_) => {
                self.mark(number(slot), true);
            }
            Slot::Lost => self.end(slot),
            Slot::Free if [state, copy, root] != [0; 3] => self.clear(slot),
            Slot::Free => {}
        }
        found
    }

    fn read(&self, slot: u64, name: u64, state: u64) -> Option<Description> {
        let mut identity = [0; IDENTITY_BYTES];
        self.arena.read(slot + name, &mut identity);
        Description::read(state, &identity)
    }

    fn write(&self, slot: u64, name: u64, state: u64, pool: &Description) {
        self.arena.write(slot + name, &pool.identity());
        self.arena.store(slot + state, pool.state());
    }

    /// Makes a slot like one that was never used, but for the names in it.
    fn clear(&self, slot: u64) {
        for word in [STATE_COPY, ROOT, STATE] {
            self.arena.store(slot + word, 0);
        }
    }

    /// Sets or clears a slot's bit; what it was.
    fn mark(&self, number: Number, used: bool) -> bool {
        let mut bits = lock(&self.used);
        let bit = 1 << (number % 64);
        let Some(word) = bits.get_mut(usize::from(number / 64)) else {
            return true;
        };
        let before = *word & bit != 0;
        *word = if used { *word | bit } else { *word & !bit };
        before
    }
}
