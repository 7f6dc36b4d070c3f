// SPDX-License-Identifier: GPL-2.0-or-later
//! A client: its pools, and what the host has settled for it.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, OnceLock, PoisonError};

use crate::codec::Codec;
use crate::dedup::{Dedup, Domain};
use crate::error::{Overcommitted, StoreError};
use crate::limits::{Charge, Ledger};
use crate::lock;
use crate::pool::{Pool, PoolStats};
use crate::shared::SharedPools;
use crate::space::{Held, Space};
use crate::sync::atomic::AtomicBool;
use crate::sync::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};
use crate::table::{DEVICE, Description, Kind, Uuid};
use crate::tmem::MAX_POOLS;

/// What the host settles for a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// Its share of the memory when clients compete for it.
    pub weight: u32,
    /// Most bytes that its persistent pages and their index may take.
    pub cap: Option<u64>,
    /// Bytes that nobody else may take.
    pub reservation: u64,
    /// Whether its pages are compressed.
    pub compress: bool,
    /// Whether a get takes a page out of its persistent pools as well.
    pub exclusive: bool,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            weight: 1,
            cap: None,
            reservation: 0,
            compress: true,
            exclusive: false,
        }
    }
}

/// A client's terms and state, as its pools see them: changed at any time, without a lock.
pub(crate) struct Account {
    pub(crate) charge: Charge,
    compress: AtomicBool,
    exclusive: AtomicBool,
    frozen: AtomicBool,
    pub(crate) saving: AtomicBool,
    /// With whom its persistent pages may share memory; unset: with nobody.
    pub(crate) domain: OnceLock<Domain>,
}

impl Account {
    /// The account of a client that has the usual terms.
    pub(crate) fn new(ledger: &Arc<Ledger>) -> Self {
        let Terms {
            compress,
            exclusive,
            ..
        } = Terms::default();
        Self {
            charge: Charge::new(ledger),
            compress: AtomicBool::new(compress),
            exclusive: AtomicBool::new(exclusive),
            frozen: AtomicBool::default(),
            saving: AtomicBool::default(),
            domain: OnceLock::new(),
        }
    }

    pub(crate) fn terms(&self) -> Terms {
        Terms {
            weight: self.charge.weight(),
            cap: self.charge.cap(),
            reservation: self.charge.reservation(),
            compress: self.compress.load(Relaxed),
            exclusive: self.exclusive.load(Relaxed),
        }
    }

    fn settle(&self, terms: Terms) -> Result<(), Overcommitted> {
        let Terms {
            weight,
            cap,
            reservation,
            ..
        } = terms;
        self.charge.settle(weight, cap, reservation)?;
        self.compress.store(terms.compress, Relaxed);
        self.exclusive.store(terms.exclusive, Relaxed);
        Ok(())
    }

    /// How pages are encoded that come in now.
    pub(crate) fn codec(&self, usual: Codec) -> Codec {
        if self.compress.load(Relaxed) {
            usual
        } else {
            Codec::None
        }
    }

    /// Whether new keys are refused. Where that must be certain, it is asked under the lock of the
    /// pool: who has frozen the client, or begun to save it, passes that lock before going on.
    pub(crate) fn frozen(&self) -> bool {
        self.frozen.load(Relaxed) || self.saving()
    }

    /// Whether pages must not come back that have left.
    pub(crate) fn saving(&self) -> bool {
        self.saving.load(Relaxed)
    }

    pub(crate) fn exclusive(&self) -> bool {
        self.exclusive.load(Relaxed)
    }
}

/// A client of the store: who it is was decided by the socket it came in on.
pub struct Client {
    name: String,
    space: Arc<Space>,
    pub(crate) shared: Arc<SharedPools>,
    pub(crate) account: Arc<Account>,
    pools: RwLock<Pools>,
    past: Mutex<Totals>,
}

/// The client's pools by their number; its lock is taken before any pool's.
#[derive(Default)]
struct Pools {
    /// The host has removed the client: it gets no new pool, which a namesake's would meet.
    removed: bool,
    by_id: [Option<Arc<Pool>>; DEVICE as usize + 1],
}

/// One of a client's pools.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolEntry {
    /// Its number: 0 to 15, or `None` for the pool that the host's own devices use.
    pub id: Option<u8>,
    /// What becomes of its pages.
    pub kind: Kind,
    /// The UUID it was made with.
    pub uuid: Uuid,
    /// Its figures.
    pub stats: PoolStats,
}

/// Figures of the pools that a guest has made, those that are gone included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Of pools whose pages stay.
    pub persistent: PoolStats,
    /// Of pools whose pages may vanish, shared ones among them.
    pub ephemeral: PoolStats,
}

impl Totals {
    fn of(&mut self, kind: Kind) -> &mut PoolStats {
        match kind {
            Kind::Persistent => &mut self.persistent,
            Kind::Ephemeral | Kind::Shared => &mut self.ephemeral,
        }
    }
}

/// A client's figures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientStats {
    /// Its name.
    pub name: String,
    /// What the host has settled for it.
    pub terms: Terms,
    /// Whether it is frozen.
    pub frozen: bool,
    /// Bytes of its persistent pages and their index: what its cap and its reservation are of.
    pub persistent_bytes: u64,
    /// Bytes of its ephemeral pages and their index.
    pub ephemeral_bytes: u64,
    /// Its pools, sorted by number. A shared pool appears with each of its members.
    pub pools: Vec<PoolEntry>,
    /// All of the pools that the guest has made since the store was opened.
    pub totals: Totals,
}

impl Client {
    pub(crate) fn new(name: &str, space: Arc<Space>, shared: Arc<SharedPools>) -> Self {
        Self {
            name: name.to_owned(),
            account: Arc::new(Account::new(&space.ledger)),
            space,
            shared,
            pools: RwLock::default(),
            past: Mutex::default(),
        }
    }

    /// Whether a client can have that name.
    pub(crate) fn admits(name: &str) -> bool {
        Description::new(name, DEVICE, Kind::Persistent, Uuid::default()).is_some()
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the host has settled for it.
    #[must_use]
    pub fn terms(&self) -> Terms {
        self.account.terms()
    }

    /// Bytes of its persistent pages and their index: what its cap and its reservation are of.
    #[must_use]
    pub fn charged(&self) -> u64 {
        self.account.charge.persistent_bytes()
    }

    /// Settles anew what the client may have. Pages that it has are not touched.
    ///
    /// # Errors
    /// There is not so much memory to be reserved; nothing has changed.
    pub fn settle(&self, terms: Terms) -> Result<(), Overcommitted> {
        self.account.settle(terms)
    }

    /// Says with which pages the client's persistent ones may share memory. What is said first,
    /// other than `Off`, holds as long as the store is open; pages that share already go on to.
    pub fn set_dedup(&self, dedup: &Dedup) {
        if let Some(domain) = Domain::new(dedup, &self.name, self.space.key) {
            let _ = self.account.domain.set(domain);
        }
    }

    /// The persistent pool that the host's own devices for this client use: found or created.
    ///
    /// # Errors
    /// `TooManyPools`, or `NoDevice` if the client has been removed.
    pub fn device_pool(&self) -> Result<Arc<Pool>, StoreError> {
        let known = self.read().by_id.last().and_then(Clone::clone);
        if let Some(pool) = known {
            return Ok(pool);
        }
        let mut pools = self.write();
        if let Some(Some(pool)) = pools.by_id.last() {
            return Ok(Arc::clone(pool));
        }
        self.create_in(&mut pools, DEVICE, Kind::Persistent, Uuid::default())
    }

    /// Destroys that pool with all its pages.
    ///
    /// # Errors
    /// `NoDevice` if there is none.
    pub fn destroy_device_pool(&self) -> Result<(), StoreError> {
        let destroyed = self.destroy(DEVICE);
        destroyed.then_some(()).ok_or(StoreError::NoDevice)
    }

    /// Takes no new page from the client until it is thawed. When this returns, the last one has
    /// been taken; a page that is there may still be replaced.
    pub fn freeze(&self) {
        self.account.frozen.store(true, Relaxed);
        // A put that did not see it has the pool's lock, or is done with it.
        for (_, pool) in self.guests_pools() {
            pool.pass();
        }
    }

    /// Ends a freeze; a client that is being saved stays frozen until that is done.
    pub fn thaw(&self) {
        self.account.frozen.store(false, Relaxed);
    }

    /// Its figures.
    #[must_use]
    pub fn stats(&self) -> ClientStats {
        // A pool that is being destroyed is missing for a moment, but never counted twice.
        let mut totals = *lock(&self.past);
        let pools = self.read();
        let entries = (0..).zip(&pools.by_id).filter_map(|(id, pool)| {
            let pool = pool.as_ref()?;
            Some(PoolEntry {
                id: (id != DEVICE).then_some(id),
                kind: pool.kind(),
                uuid: pool.uuid(),
                stats: pool.stats(),
            })
        });
        let entries: Vec<_> = entries.collect();
        for entry in entries.iter().filter(|entry| entry.id.is_some()) {
            *totals.of(entry.kind) += entry.stats;
        }
        ClientStats {
            name: self.name.clone(),
            terms: self.terms(),
            frozen: self.account.frozen(),
            persistent_bytes: self.account.charge.persistent_bytes(),
            ephemeral_bytes: self.account.charge.ephemeral_bytes(),
            pools: entries,
            totals,
        }
    }

    pub(crate) fn has_pools(&self) -> bool {
        self.read().by_id.iter().any(Option::is_some)
    }

    /// What its pools of these kinds hold. A pool that it shares is counted where all of them are.
    pub(crate) fn held(&self, kinds: &[Kind]) -> Held {
        let mut held = Held::default();
        for pool in self.read().by_id.iter().flatten() {
            if kinds.contains(&pool.kind()) {
                held += pool.held();
            }
        }
        held
    }

    /// A pool's number as a guest may say it.
    pub(crate) fn guests(id: i32) -> Option<u8> {
        u8::try_from(id).ok().filter(|&id| id < MAX_POOLS)
    }

    /// The pool of a number that came from anywhere.
    pub(crate) fn pool(&self, id: i32) -> Option<Arc<Pool>> {
        let id = usize::from(Self::guests(id)?);
        self.read().by_id.get(id)?.clone()
    }

    /// The pools that the guest has made.
    pub(crate) fn guests_pools(&self) -> Vec<(u8, Arc<Pool>)> {
        let pools = self.read();
        let made = (0..MAX_POOLS).zip(&pools.by_id);
        made.filter_map(|(id, pool)| Some((id, Arc::clone(pool.as_ref()?))))
            .collect()
    }

    /// What a pool becomes: one that may not be shared is the client's own.
    pub(crate) fn permitted(&self, kind: Kind, uuid: Uuid) -> Kind {
        match kind {
            Kind::Shared if !self.shared.admits(uuid, &self.name) => Kind::Ephemeral,
            kind => kind,
        }
    }

    /// Creates a pool, or joins the shared one of that UUID; its number.
    pub(crate) fn create(&self, kind: Kind, uuid: Uuid) -> Result<u8, StoreError> {
        let mut pools = self.write();
        let free = (0..MAX_POOLS)
            .zip(&pools.by_id)
            .find(|(_, pool)| pool.is_none());
        let (id, _) = free
            .filter(|_| !self.account.saving())
            .ok_or(StoreError::TooManyPools)?;
        self.create_in(&mut pools, id, kind, uuid)?;
        Ok(id)
    }

    /// Creates a pool of that number, or joins the shared one.
    pub(crate) fn create_as(&self, id: u8, kind: Kind, uuid: Uuid) -> Result<(), StoreError> {
        let mut pools = self.write();
        if matches!(pools.by_id.get(usize::from(id)), Some(Some(_))) {
            return Err(StoreError::PoolExists);
        }
        self.create_in(&mut pools, id, kind, uuid).map(|_| ())
    }

    fn create_in(
        &self,
        pools: &mut Pools,
        id: u8,
        kind: Kind,
        uuid: Uuid,
    ) -> Result<Arc<Pool>, StoreError> {
        if pools.removed {
            return Err(StoreError::NoDevice);
        }
        let description =
            Description::new(&self.name, id, kind, uuid).ok_or(StoreError::BadName)?;
        let pool = if kind == Kind::Shared {
            self.shared.join(&self.space, &description)?
        } else {
            Pool::create(&self.space, &self.account, &description)?
        };
        if let Some(entry) = pools.by_id.get_mut(usize::from(id)) {
            *entry = Some(Arc::clone(&pool));
        }
        Ok(pool)
    }

    /// Whether it has a pool of that number.
    pub(crate) fn has_pool(&self, id: u8) -> bool {
        matches!(self.read().by_id.get(usize::from(id)), Some(Some(_)))
    }

    /// Takes in a pool that recovery has found.
    pub(crate) fn adopt(&self, slot: u64, description: &Description, held: Held) {
        if let Some(entry) = self.write().by_id.get_mut(usize::from(description.id)) {
            *entry = Some(Pool::new(
                &self.space,
                &self.account,
                slot,
                description,
                held,
            ));
        }
    }

    /// Destroys a pool, or leaves a shared one; whether there was one of that number.
    pub(crate) fn destroy(&self, id: u8) -> bool {
        let mut pools = self.write();
        let Some(pool) = pools.by_id.get_mut(usize::from(id)).and_then(Option::take) else {
            return false;
        };
        // The pool has ended before its number can be used again; nobody waits for its pages.
        self.leave(&pool);
        drop(pools);
        pool.reclaim();
        *lock(&self.past).of(pool.kind()) += pool.stats().past();
        true
    }

    /// Ends all its pools, to be reclaimed; from now on it gets no other.
    pub(crate) fn remove(&self) -> Vec<Arc<Pool>> {
        let mut pools = self.write();
        pools.removed = true;
        let left = std::mem::take(&mut pools.by_id);
        let left: Vec<_> = left.into_iter().flatten().collect();
        for pool in &left {
            self.leave(pool);
        }
        left
    }

    fn leave(&self, pool: &Pool) {
        if pool.kind() != Kind::Shared || self.shared.leave(pool) {
            pool.end();
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Pools> {
        self.pools.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Pools> {
        self.pools.write().unwrap_or_else(PoisonError::into_inner)
    }
}
