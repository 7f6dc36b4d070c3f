// SPDX-License-Identifier: GPL-2.0-or-later
//! Clients in parallel, in memory that is too small for them: whatever upkeep, eviction and
//! sharing do meanwhile, each finds its own persistent pages, and nobody a page of another key.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test may fail"
)]

mod common;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use common::{ArenaPath, MIB, Random, page};
use kzt_store::tmem::{self, EEMPTY, flags};
use kzt_store::{Client, Context, ObjectId, PAGE_SIZE, Page, Store, Uuid};

const THREADS: u64 = 4;
const OPS: u64 = 20_000;
const INDICES: u64 = 300;
const OBJECT: ObjectId = ObjectId([3, 2, 1]);
const UUID: Uuid = Uuid([1, 1]);

const PERSISTENT: i32 = 0;
const EPHEMERAL: i32 = 1;
const SHARED: i32 = 2;

const NO_MEMORY: i32 = -12;
const NO_SPACE: i32 = -28;
const EMPTY: i32 = -EEMPTY;

/// A page that says which key it belongs to; of the same seed, all threads' are the same.
fn keyed(index: u64, seed: u64) -> Page {
    let mut page = page(seed);
    page[..8].copy_from_slice(&index.to_ne_bytes());
    page
}

fn client(store: &Store, thread: u64) -> std::sync::Arc<Client> {
    store.client(&format!("client-{thread}")).unwrap()
}

/// Works on one client; what must be in its persistent pool then.
fn work(store: &Store, thread: u64) -> HashMap<u64, u64> {
    let client = client(store, thread);
    client.set_dedup(&"domain:all".parse().unwrap());
    let kinds = [flags::PERSIST, 0, flags::SHARED];
    for (number, kind) in (0..).zip(kinds) {
        let kind = kind | tmem::VERSION << flags::VERSION_SHIFT;
        assert_eq!(client.new_pool(kind, UUID), number);
    }
    let mut cx = Context::new();
    let mut out = [0; PAGE_SIZE];
    let mut random = Random(thread);
    let mut models = [HashMap::new(), HashMap::new()];
    for _ in 0..OPS {
        let (pool, index) = (random.below(3) as i32, random.below(INDICES));
        let mut model = models.get_mut(pool as usize);
        match random.below(10) {
            0..5 => {
                // Few contents, so that clients share many.
                let seed = random.below(50);
                let page = keyed(index, seed);
                let put = client.put_page(&mut cx, pool, OBJECT, index as u32, &page);
                match (put, &mut model) {
                    (1, Some(model)) => {
                        model.insert(index, seed);
                    }
                    (NO_MEMORY | NO_SPACE, Some(model)) => {
                        let old = model.remove(&index);
                        let right = old.is_some() == (put == NO_SPACE) || pool == EPHEMERAL;
                        assert!(right, "{put} for {old:?}");
                    }
                    (1 | NO_MEMORY | NO_SPACE, None) => {}
                    _ => panic!("put: {put}"),
                }
            }
            5..9 => {
                let got = client.get_page(&mut cx, pool, OBJECT, index as u32, &mut out);
                if got == 1 {
                    assert_eq!(out[..8], index.to_ne_bytes(), "another key's page");
                    if let Some(model) = &model {
                        let seed = *model.get(&index).expect("a page that was never put");
                        assert_eq!(out, keyed(index, seed), "an old page");
                    }
                } else {
                    assert!([0, EMPTY].contains(&got), "get: {got}");
                    let lost = pool == PERSISTENT && models[0].contains_key(&index);
                    assert!(!lost, "a page is lost");
                }
                if pool == EPHEMERAL {
                    models[1].remove(&index);
                }
            }
            _ => {
                assert_eq!(client.flush_page(pool, OBJECT, index as u32), 1);
                if let Some(model) = &mut model {
                    model.remove(&index);
                }
            }
        }
    }
    let [persistent, _] = models;
    persistent
}

#[test]
fn clients_at_work_in_parallel_keep_what_is_theirs() {
    let arena = ArenaPath::new();
    let memory = 2 * MIB;
    let (store, _) = arena.open(memory);
    for thread in 0..THREADS {
        store.authorize(UUID, &format!("client-{thread}"));
    }
    let done = AtomicBool::new(false);
    let models: Vec<_> = std::thread::scope(|scope| {
        let upkeep = scope.spawn(|| {
            while !done.load(Relaxed) {
                store.maintain();
                assert!(store.usage().unwrap().allocated <= memory);
            }
        });
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let store = &store;
                scope.spawn(move || work(store, thread))
            })
            .collect();
        let models = threads.into_iter().map(|t| t.join().unwrap()).collect();
        done.store(true, Relaxed);
        upkeep.join().unwrap();
        models
    });
    let check = |store: &Store| {
        let mut cx = Context::new();
        let mut out = [0; PAGE_SIZE];
        for (thread, model) in (0..).zip(&models) {
            let client = client(store, thread);
            for index in 0..INDICES {
                let got = client.get_page(&mut cx, PERSISTENT, OBJECT, index as u32, &mut out);
                assert_eq!(got == 1, model.contains_key(&index), "{index}: {got}");
                if let Some(seed) = model.get(&index) {
                    assert_eq!(out, keyed(index, *seed));
                }
            }
        }
    };
    check(&store);
    let found: u64 = models.iter().map(|model| model.len() as u64).sum();
    drop(store);
    let (store, recovery) = arena.open(memory);
    assert_eq!((recovery.pages, recovery.dropped), (found, 0));
    check(&store);
    let answer = client(&store, 0).flush_page(SHARED, OBJECT, 0);
    assert_eq!(answer, -19, "a shared pool has survived");
}
