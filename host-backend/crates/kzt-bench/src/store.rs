// SPDX-License-Identifier: GPL-2.0-or-later
//! The store, without sockets: an arena of its own, and a client for each thread.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kzt_store::{Allocator, Codec, Config, Context, ObjectId, Page, Pool, Store};

use crate::corpus::Corpus;
use crate::engine::{Engine, Worker};
use crate::{Error, Memory};

/// What a client's swap device is in its pool.
const DEVICE: ObjectId = ObjectId([0; 3]);

/// Room for all pages uncompressed, with headers and index, and for what two rounds of puts leave
/// in half-empty runs.
fn limit(corpus: &Corpus) -> u64 {
    let bytes = corpus.logical_bytes();
    bytes + bytes / 4 + (16 << 20)
}

pub(crate) struct Arena {
    store: Store,
}

impl Arena {
    /// Opens an arena in `folder`, which is a tmpfs. It has no name there: it ends with us.
    pub(crate) fn new(
        folder: &Path,
        codec: Codec,
        alloc: Allocator,
        corpus: &Corpus,
    ) -> Result<Self, Error> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path: PathBuf = folder.join(format!("kztmem-bench-{}-{number}", std::process::id()));
        let config = Config {
            codec,
            persistent: alloc,
            ..Config::new(&path, limit(corpus))
        };
        let opened = Store::open(&config);
        let _ = fs::remove_file(&path);
        let (store, _) = opened?;
        Ok(Self { store })
    }

    /// Pages that the codec could not shrink.
    pub(crate) fn incompressible(&self) -> Result<u64, Error> {
        let clients = self.store.clients();
        clients.iter().try_fold(0, |sum, client| {
            Ok(sum + self.store.open_pool(client)?.stats().raw)
        })
    }
}

impl Engine for Arena {
    const NAME: &str = "store";

    type Worker = StoreWorker;

    fn workers(&self, threads: usize) -> Result<Vec<StoreWorker>, Error> {
        let worker = |number| {
            let pool = self.store.open_pool(&format!("bench-{number}"))?;
            let cx = Context::new();
            Ok(StoreWorker { cx, pool })
        };
        (0..threads).map(worker).collect()
    }

    fn memory(&self) -> Result<Memory, Error> {
        let usage = self.store.usage().map_err(|source| Error::Host {
            what: "cannot ask for the arena's size".into(),
            source,
        })?;
        Ok(Memory {
            data: usage.data,
            fragmentation: Some(usage.fragmentation),
            meta: Some(usage.meta),
        })
    }
}

pub(crate) struct StoreWorker {
    cx: Context,
    pool: Arc<Pool>,
}

impl Worker for StoreWorker {
    fn put(&mut self, index: usize, page: &Page) -> Result<(), Error> {
        Ok(self.pool.put(&mut self.cx, DEVICE, number(index), page)?)
    }

    fn get(&mut self, index: usize, out: &mut Page) -> Result<(), Error> {
        let found = self.pool.get(&mut self.cx, DEVICE, number(index), out)?;
        found.then_some(()).ok_or(Error::Wrong {
            engine: Arena::NAME,
            page: index,
        })
    }
}

/// A corpus that fits in memory has fewer pages than a swap device may have.
fn number(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}
