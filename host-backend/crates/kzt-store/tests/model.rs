// SPDX-License-Identifier: GPL-2.0-or-later
//! Random operations against a `HashMap`: with restarts, at the memory limit, and from several
//! threads.

#![allow(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test may fail"
)]

mod common;

use std::collections::{HashMap, HashSet};

use common::{ArenaPath, MIB, Random, page};
use kzt_store::{
    Allocator, Codec, Config, Context, Dedup, ObjectId, PAGE_SIZE, Pool, PutError, Store,
    UpdateError,
};
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Op {
    Put {
        key: Key,
        seed: u64,
    },
    Get {
        key: Key,
    },
    Update {
        key: Key,
        offset: u16,
        byte: u8,
    },
    Flush {
        key: Key,
    },
    FlushRange {
        key: Key,
        count: u32,
    },
    FlushObject {
        key: Key,
    },
    Destroy {
        client: u8,
    },
    Maintain,
    /// With another allocator, maybe.
    Reopen(Allocator),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    client: u8,
    object: u8,
    index: u32,
}

impl Key {
    fn object(self) -> ObjectId {
        // Object 0 is a swap device's; the others differ in one word each.
        let mut id = [0; 3];
        id[usize::from(self.object % 3)] = u64::from(self.object);
        ObjectId(id)
    }
}

fn key() -> impl Strategy<Value = Key> {
    let index = prop_oneof![
        8 => 0_u32..200,
        1 => (0_u32..4).prop_map(|i| (1 << 18) - 2 + i),
        1 => (0_u32..4).prop_map(|i| u32::MAX - i),
    ];
    (0_u8..3, 0_u8..6, index).prop_map(|(client, object, index)| Key {
        client,
        object,
        index,
    })
}

fn allocator() -> impl Strategy<Value = Allocator> {
    proptest::sample::select(vec![
        Allocator::Zsmalloc,
        Allocator::Xvmalloc,
        Allocator::Zbud,
    ])
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        15 => (key(), any::<u64>()).prop_map(|(key, seed)| Op::Put { key, seed }),
        // Of few contents: some share a block.
        15 => (key(), 0_u64..40).prop_map(|(key, seed)| Op::Put { key, seed }),
        10 => key().prop_map(|key| Op::Get { key }),
        4 => (key(), 0_u16..4096, any::<u8>())
            .prop_map(|(key, offset, byte)| Op::Update { key, offset, byte }),
        6 => key().prop_map(|key| Op::Flush { key }),
        2 => (key(), 0_u32..100).prop_map(|(key, count)| Op::FlushRange { key, count }),
        1 => key().prop_map(|key| Op::FlushObject { key }),
        1 => (0_u8..3).prop_map(|client| Op::Destroy { client }),
        1 => Just(Op::Maintain),
        1 => allocator().prop_map(Op::Reopen),
    ]
}

fn dedup() -> impl Strategy<Value = Dedup> {
    proptest::sample::select(vec!["off", "client", "domain:x", "domain:y"])
        .prop_map(|dedup| dedup.parse().unwrap())
}

type Model = HashMap<Key, [u8; PAGE_SIZE]>;

struct Pair {
    store: Option<Store>,
    config: Config,
    dedups: [Dedup; 3],
    model: Model,
    cx: Context,
}

impl Pair {
    fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    fn pool(&self, client: u8) -> std::sync::Arc<Pool> {
        let name = format!("client-{client}");
        let dedup = &self.dedups[usize::from(client)];
        self.store().client(&name).unwrap().set_dedup(dedup);
        self.store().open_pool(&name).unwrap()
    }

    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Put { key, seed } => {
                let page = page(seed);
                let pool = self.pool(key.client);
                match pool.put(&mut self.cx, key.object(), key.index, &page) {
                    Ok(()) => {
                        self.model.insert(key, page);
                    }
                    Err(PutError::NoMemory) => assert!(!self.model.contains_key(&key)),
                    Err(PutError::NoSpace) => {
                        assert!(self.model.remove(&key).is_some(), "it existed");
                    }
                    Err(PutError::NoDevice) => panic!("the pool is there"),
                }
            }
            Op::Get { key } => self.check(key),
            Op::Update { key, offset, byte } => {
                let pool = self.pool(key.client);
                let change = |page: &mut [u8; PAGE_SIZE]| page[usize::from(offset)] = byte;
                match pool.update(&mut self.cx, key.object(), key.index, change) {
                    Ok(()) => change(self.model.entry(key).or_insert([0; PAGE_SIZE])),
                    Err(UpdateError::NoMemory) => self.check(key),
                    Err(error) => panic!("{error}"),
                }
            }
            Op::Flush { key } => {
                let found = self.pool(key.client).flush(key.object(), key.index);
                assert_eq!(found, self.model.remove(&key).is_some());
            }
            Op::FlushRange { key, count } => {
                let found = self
                    .pool(key.client)
                    .flush_range(key.object(), key.index, count);
                let before = self.model.len();
                self.model.retain(|k, _| {
                    let same = k.client == key.client && k.object() == key.object();
                    let last = u64::from(key.index) + u64::from(count);
                    !(same && k.index >= key.index && u64::from(k.index) < last)
                });
                assert_eq!(found, (before - self.model.len()) as u64);
            }
            Op::FlushObject { key } => {
                let found = self.pool(key.client).flush_object(key.object());
                let before = self.model.len();
                self.model
                    .retain(|k, _| k.client != key.client || k.object() != key.object());
                assert_eq!(found, (before - self.model.len()) as u64);
            }
            Op::Destroy { client } => {
                let _ = self.store().destroy_pool(&format!("client-{client}"));
                self.model.retain(|k, _| k.client != client);
            }
            Op::Maintain => {
                self.store().maintain();
            }
            Op::Reopen(allocator) => {
                let before = self.store().usage().unwrap();
                self.store = None;
                self.config.persistent = allocator;
                let (store, recovery) = Store::open(&self.config).unwrap();
                assert_eq!(recovery.pages, self.model.len() as u64);
                assert_eq!(recovery.dropped, 0);
                let after = store.usage().unwrap();
                assert_eq!((before.data, before.meta), (after.data, after.meta));
                assert_eq!(before.fragmentation, after.fragmentation);
                self.store = Some(store);
            }
        }
    }

    fn check(&mut self, key: Key) {
        let mut out = [0; PAGE_SIZE];
        let pool = self.pool(key.client);
        let found = pool
            .get(&mut self.cx, key.object(), key.index, &mut out)
            .unwrap();
        assert_eq!(found.then_some(&out), self.model.get(&key), "{key:?}");
    }

    /// Every page, the figures, and what `runs` says.
    fn check_all(&mut self) {
        let keys: Vec<Key> = self.model.keys().copied().collect();
        for key in &keys {
            self.check(*key);
        }
        for client in 0..3 {
            let pool = self.pool(client);
            let own = keys.iter().filter(|key| key.client == client);
            assert_eq!(pool.stats().pages, own.clone().count() as u64);
            for object in 0..6 {
                let id = Key {
                    client,
                    object,
                    index: 0,
                }
                .object();
                let mut at = 0_u64;
                let mut present = Vec::new();
                pool.runs(id, 0, u32::MAX, |pages, there| {
                    if there {
                        present.extend(at..at + u64::from(pages));
                    }
                    at += u64::from(pages);
                });
                assert_eq!(at, u64::from(u32::MAX));
                let mut expected: Vec<u64> = own
                    .clone()
                    .filter(|key| key.object() == id && key.index < u32::MAX)
                    .map(|key| u64::from(key.index))
                    .collect();
                expected.sort_unstable();
                expected.dedup();
                assert_eq!(present, expected);
            }
        }
        let usage = self.store().usage().unwrap();
        assert_eq!(usage.pages, keys.len() as u64);
        assert!(usage.duplicates <= self.duplicates());
    }

    /// Pages that another one of their domain is like.
    fn duplicates(&self) -> u64 {
        let domain = |client: u8| match &self.dedups[usize::from(client)] {
            Dedup::Off => None,
            Dedup::Client => Some(client.to_string()),
            dedup @ Dedup::Domain(_) => Some(dedup.to_string()),
        };
        let pages = self
            .model
            .iter()
            .filter_map(|(key, page)| Some((domain(key.client)?, page)));
        let all = pages.clone().count();
        (all - pages.collect::<HashSet<_>>().len()) as u64
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..Default::default() })]

    #[test]
    fn the_store_does_what_a_map_does(
        ops in proptest::collection::vec(op(), 1..2000),
        codec in prop_oneof![Just(Codec::Lzo), Just(Codec::Lz4), Just(Codec::None)],
        allocator in allocator(),
        dedups in proptest::array::uniform3(dedup()),
    ) {
        let arena = ArenaPath::new();
        // Small enough for the limit to be met often.
        let config = Config { persistent: allocator, ..arena.config(MIB, codec) };
        let store = Some(Store::open(&config).unwrap().0);
        let mut pair = Pair {
            store,
            config,
            dedups,
            model: HashMap::new(),
            cx: Context::new(),
        };
        for op in &ops {
            pair.apply(op);
        }
        pair.check_all();
        pair.apply(&Op::Reopen(allocator));
        pair.check_all();
        for client in 0..3 {
            pair.apply(&Op::Destroy { client });
        }
        let usage = pair.store().usage().unwrap();
        prop_assert_eq!((usage.data, usage.fragmentation, usage.meta), (0, 0, 64 * 1024));
    }
}

/// Threads on one pool, each with its own indices, and on another one: all that a thread put
/// last is what it gets, whatever the others do.
#[test]
fn threads_do_not_disturb_each_other() {
    threads("off", u64::MAX);
}

/// Nor if their pages share blocks, which all of them take, give back and move.
#[test]
fn threads_that_share_do_not_disturb_each_other() {
    threads("domain:x", 40);
}

fn threads(dedup: &str, contents: u64) {
    let arena = ArenaPath::new();
    let (store, _) = arena.open(16 * MIB);
    for client in ["shared", "own"] {
        let dedup = dedup.parse().unwrap();
        store.client(client).unwrap().set_dedup(&dedup);
    }
    std::thread::scope(|scope| {
        for thread in 0..4_u32 {
            let store = &store;
            scope.spawn(move || {
                let pool = store
                    .open_pool(if thread < 3 { "shared" } else { "own" })
                    .unwrap();
                let mut cx = Context::new();
                let mut random = Random(u64::from(thread));
                let mut model = HashMap::new();
                let object = ObjectId([0; 3]);
                let mut out = [0; PAGE_SIZE];
                for _ in 0..20_000 {
                    let index = random.below(400) as u32 * 3 + thread % 3;
                    match random.below(10) {
                        0..5 => {
                            let seed = random.below(contents);
                            pool.put(&mut cx, object, index, &page(seed)).unwrap();
                            model.insert(index, seed);
                        }
                        5..8 => {
                            let found = pool.get(&mut cx, object, index, &mut out).unwrap();
                            assert_eq!(found, model.contains_key(&index));
                            if let Some(seed) = model.get(&index) {
                                assert_eq!(out, page(*seed));
                            }
                        }
                        8 => {
                            assert_eq!(pool.flush(object, index), model.remove(&index).is_some());
                        }
                        _ => {
                            store.maintain();
                        }
                    }
                }
            });
        }
    });
    let (shared, own) = (
        store.open_pool("shared").unwrap(),
        store.open_pool("own").unwrap(),
    );
    let before = (
        shared.stats().pages,
        own.stats().pages,
        store.usage().unwrap(),
    );
    drop((shared, own, store));
    let (store, recovery) = arena.open(16 * MIB);
    assert_eq!(recovery.pages, before.0 + before.1);
    let usage = store.usage().unwrap();
    assert_eq!(
        (usage.data, usage.meta, usage.duplicates),
        (before.2.data, before.2.meta, before.2.duplicates)
    );
    assert_eq!(usage.duplicates > 0, contents < u64::MAX);
    for client in ["shared", "own"] {
        store.destroy_pool(client).unwrap();
    }
    let usage = store.usage().unwrap();
    assert_eq!(
        (usage.data, usage.fragmentation, usage.meta),
        (0, 0, 64 * 1024)
    );
}

/// A counter in a page, counted up by several threads: no count is lost.
#[test]
fn updates_are_atomic() {
    let arena = ArenaPath::new();
    let (store, _) = arena.open(MIB);
    let pool = store.open_pool("a").unwrap();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut cx = Context::new();
                for _ in 0..2000 {
                    let count = |page: &mut [u8; PAGE_SIZE]| {
                        let value = u32::from_ne_bytes(*page.first_chunk().unwrap()) + 1;
                        page[..4].copy_from_slice(&value.to_ne_bytes());
                    };
                    pool.update(&mut cx, ObjectId([0; 3]), 7, count).unwrap();
                }
            });
        }
    });
    let mut out = [0; PAGE_SIZE];
    assert!(
        pool.get(&mut Context::new(), ObjectId([0; 3]), 7, &mut out)
            .unwrap()
    );
    assert_eq!(out[..4], 6000_u32.to_ne_bytes());
}

/// Pools created, filled and destroyed by many threads at once.
#[test]
fn pools_come_and_go_in_parallel() {
    let arena = ArenaPath::new();
    let (store, _) = arena.open(16 * MIB);
    std::thread::scope(|scope| {
        for thread in 0..8_u64 {
            let store = &store;
            scope.spawn(move || {
                let mut random = Random(thread);
                let mut cx = Context::new();
                for _ in 0..300 {
                    let name = format!("client-{}", random.below(20));
                    let Ok(pool) = store.open_pool(&name) else {
                        continue;
                    };
                    let dedup = "domain:x".parse().unwrap();
                    store.client(&name).unwrap().set_dedup(&dedup);
                    for index in 0..20 {
                        let seed = random.below(100);
                        let put = pool.put(&mut cx, ObjectId([0; 3]), index, &page(seed));
                        assert!(matches!(put, Ok(()) | Err(PutError::NoDevice)));
                    }
                    if random.below(2) == 0 {
                        let _ = store.destroy_pool(&name);
                    }
                }
            });
        }
    });
    for client in store.clients() {
        store.destroy_pool(&client).unwrap();
    }
    let usage = store.usage().unwrap();
    assert_eq!(
        (usage.data, usage.fragmentation, usage.meta),
        (0, 0, 64 * 1024)
    );
}
