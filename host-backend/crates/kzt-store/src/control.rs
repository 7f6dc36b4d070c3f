// SPDX-License-Identifier: GPL-2.0-or-later
//! The host's side of the tmem interface: what its CONTROL operation, AUTH and `RESTORE_NEW` do.
//!
//! They are methods of what only the host has; nothing that a guest sends leads here. Freezing,
//! the terms and the figures of one client are in `client.rs`, save and restore in `save.rs`, and
//! who may share a pool is in `store.rs`: docs/semantics.md lists them all.

use std::io;

use crate::client::{Client, ClientStats, PoolEntry};
use crate::store::Store;
use crate::table::Kind;
use crate::tmem::{VERSION, flags};

impl Store {
    /// LIST: the figures of every client, sorted by name.
    pub fn list(&self) -> Vec<ClientStats> {
        let clients = self.every_client().into_iter();
        clients.map(|client| client.stats()).collect()
    }

    /// `QUERY_FREEABLE_MB`, in bytes: what the host can have back without a guest's consent.
    ///
    /// # Errors
    /// If the file's size cannot be asked for.
    pub fn freeable(&self) -> io::Result<u64> {
        let mut held = self.shared.held();
        for client in self.every_client() {
            held += client.held(&[Kind::Ephemeral]);
        }
        Ok(self.usage()?.spare + held.stored() + held.index)
    }
}

impl Client {
    /// FLUSH: drops every page that may vanish from the client's own pools; how many there were.
    pub fn flush_ephemeral(&self) -> u64 {
        let pools = self.guests_pools().into_iter();
        let ephemeral = pools.filter(|(_, pool)| pool.kind() == Kind::Ephemeral);
        ephemeral.map(|(_, pool)| pool.flush_all()).sum()
    }

    /// Destroys the pools that the guest has made, for what it has flushed from them may not have
    /// arrived; persistent ones only with `lasting`. A shared pool is emptied and left: other
    /// members must not find there what was to be flushed, either.
    pub fn drop_pools(&self, lasting: bool) {
        for (id, pool) in self.guests_pools() {
            match pool.kind() {
                Kind::Persistent if !lasting => continue,
                Kind::Shared => {
                    pool.flush_all();
                }
                Kind::Persistent | Kind::Ephemeral => {}
            }
            self.destroy(id);
        }
    }
}

impl ClientStats {
    /// Flag of [`flags`](Self::flags): the client's pages are compressed.
    pub const COMPRESS: u32 = 1;
    /// Flag of [`flags`](Self::flags): the client is frozen.
    pub const FROZEN: u32 = 2;

    /// `GET_CLIENT_FLAGS`.
    #[must_use]
    pub fn flags(&self) -> u32 {
        let compress = if self.terms.compress {
            Self::COMPRESS
        } else {
            0
        };
        compress | if self.frozen { Self::FROZEN } else { 0 }
    }
}

impl PoolEntry {
    /// `GET_POOL_FLAGS`: flags that make such a pool.
    #[must_use]
    pub fn flags(&self) -> u32 {
        let kind = match self.kind {
            Kind::Persistent => flags::PERSIST,
            Kind::Ephemeral => 0,
            Kind::Shared => flags::SHARED,
        };
        VERSION << flags::VERSION_SHIFT | kind
    }
}
