// SPDX-License-Identifier: GPL-2.0-or-later
//! Pools that several clients share, and who may.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::client::Account;
use crate::error::StoreError;
use crate::lock;
use crate::pool::Pool;
use crate::space::{Held, Space};
use crate::sync::Mutex;
use crate::table::{Description, Uuid};

/// Shared pools there may be in all.
const MAX_SHARED: usize = 16;

/// The shared pools of a store. Its lock is taken after a client's and before any pool's.
#[derive(Default)]
pub(crate) struct SharedPools(Mutex<State>);

#[derive(Default)]
struct State {
    authorized: BTreeSet<(Uuid, String)>,
    pools: Vec<SharedPool>,
}

struct SharedPool {
    uuid: Uuid,
    pool: Arc<Pool>,
    /// Pool numbers of clients that lead here.
    members: usize,
}

impl SharedPools {
    /// Lets a client share the pool of that UUID.
    pub(crate) fn authorize(&self, uuid: Uuid, client: &str) {
        lock(&self.0).authorized.insert((uuid, client.to_owned()));
    }

    /// Takes that back, for pools joined from now on.
    pub(crate) fn revoke(&self, uuid: Uuid, client: &str) {
        lock(&self.0).authorized.remove(&(uuid, client.to_owned()));
    }

    /// Takes back all that a client may share.
    pub(crate) fn forget(&self, client: &str) {
        lock(&self.0).authorized.retain(|(_, name)| name != client);
    }

    pub(crate) fn admits(&self, uuid: Uuid, client: &str) -> bool {
        // All ones want no partner, whatever the host says.
        uuid != Uuid([u64::MAX; 2])
            && lock(&self.0)
                .authorized
                .contains(&(uuid, client.to_owned()))
    }

    /// The pool of that UUID, created for its first member.
    pub(crate) fn join(
        &self,
        space: &Arc<Space>,
        description: &Description,
    ) -> Result<Arc<Pool>, StoreError> {
        let mut state = lock(&self.0);
        let uuid = description.uuid;
        if let Some(shared) = state.pools.iter_mut().find(|shared| shared.uuid == uuid) {
            shared.members += 1;
            return Ok(Arc::clone(&shared.pool));
        }
        if state.pools.len() == MAX_SHARED {
            return Err(StoreError::TooManyPools);
        }
        // It is no client's: what its members were promised or denied is not for it.
        let account = Arc::new(Account::new(&space.ledger));
        let pool = Pool::create(space, &account, description)?;
        state.pools.push(SharedPool {
            uuid,
            pool: Arc::clone(&pool),
            members: 1,
        });
        Ok(pool)
    }

    /// One member less; whether it was the last.
    pub(crate) fn leave(&self, pool: &Pool) -> bool {
        let mut state = lock(&self.0);
        let found = |shared: &SharedPool| std::ptr::eq(&raw const *shared.pool, pool);
        let Some(at) = state.pools.iter().position(found) else {
            return false;
        };
        if let Some(shared) = state.pools.get_mut(at) {
            shared.members -= 1;
            if shared.members > 0 {
                return false;
            }
        }
        state.pools.swap_remove(at);
        true
    }

    pub(crate) fn held(&self) -> Held {
        let mut held = Held::default();
        for shared in &lock(&self.0).pools {
            held += shared.pool.held();
        }
        held
    }
}
