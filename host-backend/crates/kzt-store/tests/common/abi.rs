// SPDX-License-Identifier: GPL-2.0-or-later
//! The tmem ABI as a guest has it: its errors, a few pools, and a lab to use them in.

use std::sync::Arc;

use kzt_store::tmem::flags::{PERSIST, VERSION_SHIFT};
use kzt_store::{Client, Context, PAGE_SIZE, Page, Store, Uuid};

use super::{ArenaPath, MIB, SWAP, page};

pub(crate) const EPERM: i32 = 1;
pub(crate) const EIO: i32 = 5;
pub(crate) const ENOMEM: i32 = 12;
pub(crate) const EFAULT: i32 = 14;
pub(crate) const ENODEV: i32 = 19;
pub(crate) const ENOSPC: i32 = 28;
pub(crate) const ENOSYS: i32 = 38;

/// Flags of a private ephemeral pool.
pub(crate) const CACHE: u32 = 1 << VERSION_SHIFT;
pub(crate) const NOBODY: Uuid = Uuid([0; 2]);
pub(crate) const UUID: Uuid = Uuid([0x0123_4567, 0x89ab_cdef]);

/// A store of 8 MiB, a client, and a context to use it with.
pub(crate) struct Lab {
    pub(crate) store: Store,
    pub(crate) client: Arc<Client>,
    pub(crate) cx: Context,
    pub(crate) arena: ArenaPath,
}

impl Lab {
    pub(crate) fn new() -> Self {
        Self::with_memory(8 * MIB)
    }

    pub(crate) fn with_memory(memory: u64) -> Self {
        let arena = ArenaPath::new();
        let (store, _) = arena.open(memory);
        let client = store.client("a").unwrap();
        Self {
            store,
            client,
            cx: Context::new(),
            arena,
        }
    }

    /// With pool 0, which is persistent, and pool 1, which is ephemeral.
    pub(crate) fn with_pools() -> Self {
        let lab = Self::new();
        assert_eq!(lab.client.new_pool(CACHE | PERSIST, NOBODY), 0);
        assert_eq!(lab.client.new_pool(CACHE, NOBODY), 1);
        lab
    }

    pub(crate) fn put(&mut self, pool: i32, index: u32, seed: u64) -> i32 {
        put(&self.client, &mut self.cx, pool, index, seed)
    }

    pub(crate) fn get(&mut self, pool: i32, index: u32) -> Result<Page, i32> {
        get(&self.client, &mut self.cx, pool, index)
    }
}

pub(crate) fn put(client: &Client, cx: &mut Context, pool: i32, index: u32, seed: u64) -> i32 {
    put_bytes(client, cx, pool, index, &page(seed))
}

/// What may be no page.
pub(crate) fn put_bytes(
    client: &Client,
    cx: &mut Context,
    pool: i32,
    index: u32,
    bytes: &[u8],
) -> i32 {
    client.put_page(cx, pool, SWAP, index, bytes)
}

/// The page, or the answer.
pub(crate) fn get(client: &Client, cx: &mut Context, pool: i32, index: u32) -> Result<Page, i32> {
    let mut out = [0; PAGE_SIZE];
    match client.get_page(cx, pool, SWAP, index, &mut out) {
        1 => Ok(out),
        answer => Err(answer),
    }
}
