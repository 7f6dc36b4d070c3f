// SPDX-License-Identifier: GPL-2.0-or-later
//! A process that is killed has carried out a prefix of its stores. Recovery from every one of
//! them, not only from those that a kill happens to hit.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use crate::arena::journal;
use crate::layout::EXTENT;
use crate::{Allocator, Config, Context, Dedup, ObjectId, PAGE_SIZE, Page, PutError, Store};

const MIB: u64 = 1 << 20;
const CLIENTS: [&str; 2] = ["a", "b"];
/// Has the rest of the memory where it has to be short.
const FILLER: &str = "filler";
/// Neighbours, and indices that need nodes of their own or a higher tree.
const INDICES: [u32; 9] = [0, 1, 2, 511, 512, 513, 1 << 18, (1 << 27) + 5, u32::MAX];
const OBJECTS: u64 = 6;

/// Client, object, index.
type Key = (usize, u64, u32);
/// What a key's page was made of.
type Pages = BTreeMap<Key, u64>;

#[derive(Debug, Clone, Copy)]
enum Op {
    Put(Key, u64),
    FlushRange(Key, u32),
    FlushObject(usize, u64),
    Destroy(usize),
    /// Compaction, above all.
    Maintain,
}

struct Random(u64);

impl Random {
    /// Knuth's generator for MMIX.
    fn below(&mut self, bound: u64) -> u64 {
        const FACTOR: u64 = 6_364_136_223_846_793_005;
        self.0 = self.0.wrapping_mul(FACTOR).wrapping_add(1);
        (self.0 >> 33) % bound
    }

    /// An operation; puts are of so many different pages.
    fn op(&mut self, contents: u64) -> Op {
        let index = INDICES[self.below(INDICES.len() as u64) as usize];
        let key = (self.below(2) as usize, self.below(OBJECTS), index);
        match self.below(25) {
            24 => Op::Maintain,
            0 => Op::Destroy(key.0),
            1 => Op::FlushObject(key.0, key.1),
            2..7 => Op::FlushRange(key, 1 + self.below(600) as u32),
            _ => Op::Put(key, self.below(contents)),
        }
    }
}

impl Op {
    fn touches(self, key: Key) -> bool {
        match self {
            Self::Put(put, _) => put == key,
            Self::FlushRange((client, object, first), count) => {
                (client, object) == (key.0, key.1)
                    && (first..=first.saturating_add(count - 1)).contains(&key.2)
            }
            Self::FlushObject(client, object) => (client, object) == (key.0, key.1),
            Self::Destroy(client) => client == key.0,
            Self::Maintain => false,
        }
    }

    /// Carries it out and changes `pages` alike; whether it was refused.
    fn carry_out(self, store: &Store, dedup: &Dedup, cx: &mut Context, pages: &mut Pages) -> bool {
        let mut put = None;
        match self {
            Self::Put((client, object, index), seed) => {
                store.client(CLIENTS[client]).unwrap().set_dedup(dedup);
                let pool = store.open_pool(CLIENTS[client]).unwrap();
                let done = pool.put(cx, id(object), index, &page(seed));
                put = Some(done.map(|()| seed));
            }
            Self::FlushRange((client, object, first), count) => {
                let pool = store.open_pool(CLIENTS[client]).unwrap();
                pool.flush_range(id(object), first, count);
            }
            Self::FlushObject(client, object) => {
                store
                    .open_pool(CLIENTS[client])
                    .unwrap()
                    .flush_object(id(object));
            }
            Self::Destroy(client) => {
                let _ = store.destroy_pool(CLIENTS[client]);
            }
            Self::Maintain => {
                store.maintain();
            }
        }
        if put != Some(Err(PutError::NoMemory)) {
            pages.retain(|key, _| !self.touches(*key));
        }
        if let (Self::Put(key, _), Some(Ok(seed))) = (self, put) {
            pages.insert(key, seed);
        }
        put.is_some_and(|put| put.is_err())
    }
}

fn id(object: u64) -> ObjectId {
    ObjectId([object, 0, 0])
}

/// The page that `seed` names, of one of the kinds that are stored in different ways.
fn page(seed: u64) -> Page {
    let mut random = Random(seed);
    let mut page = [0; PAGE_SIZE];
    let noise = match seed % 4 {
        0 => return [seed as u8; PAGE_SIZE],
        1 => 8,
        2 => 1500,
        _ => PAGE_SIZE,
    };
    page[..noise].fill_with(|| random.below(256) as u8);
    page
}

/// An arena that goes with the test.
struct Arena(PathBuf);

impl Arena {
    fn new(name: &str) -> Self {
        Self(format!("/dev/shm/kzt-store-prefixes-{}-{name}", std::process::id()).into())
    }

    fn open(&self, persistent: Allocator) -> (Store, crate::Recovery) {
        Store::open(&Config {
            persistent,
            ..Config::new(&self.0, MIB)
        })
        .unwrap()
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// The arena as the stores so far have left it, and where to recover it.
struct Killed {
    words: Vec<u64>,
    arena: Arena,
    /// Keys that were ever put.
    known: BTreeSet<Key>,
    recoveries: u32,
}

impl Killed {
    fn apply(&mut self, stores: &[(usize, u64)]) {
        for (offset, value) in stores {
            self.words[offset / 8] = *value;
        }
    }

    /// Recovers, from what recovery itself does as well, and asks `allowed` of every key.
    fn recover(&mut self, context: &str, allowed: impl Fn(Key, Option<&Page>) -> bool) {
        let killed = self.words.clone();
        let mut stores = self.recover_once(context, &allowed);
        // The first few say with which memory and codec it was opened.
        for store in stores.drain(..).skip(3) {
            self.apply(&[store]);
            self.recover_once(context, &allowed);
        }
        self.words = killed;
    }

    /// What recovery stored.
    fn recover_once(
        &mut self,
        context: &str,
        allowed: impl Fn(Key, Option<&Page>) -> bool,
    ) -> Vec<(usize, u64)> {
        self.recoveries += 1;
        let bytes: Vec<u8> = self
            .words
            .iter()
            .flat_map(|word| word.to_ne_bytes())
            .collect();
        fs::write(&self.arena.0, bytes).unwrap();
        let (store, recovery) = self.arena.open(Allocator::Zsmalloc);
        let stores = journal::take();
        assert_eq!(recovery.dropped, 0, "{context}");
        let mut cx = Context::new();
        let mut out = [0; PAGE_SIZE];
        let mut pages = store.open_pool(FILLER).unwrap().stats().pages;
        for key in &self.known {
            let pool = store.open_pool(CLIENTS[key.0]).unwrap();
            let found = pool.get(&mut cx, id(key.1), key.2, &mut out).unwrap();
            pages += u64::from(found);
            assert!(
                allowed(*key, found.then_some(&out)),
                "{key:?} after {context}"
            );
        }
        assert_eq!(pages, recovery.pages, "{context}");
        for client in CLIENTS.into_iter().chain([FILLER]) {
            let _ = store.destroy_pool(client);
        }
        let usage = store.usage().unwrap();
        let held = (usage.data, usage.fragmentation, usage.meta);
        assert_eq!(held, (0, 0, EXTENT), "{context}");
        journal::take();
        stores
    }
}

/// Carries `ops` operations out in an arena with room for `spare` raw pages, if that is given. Where
/// pages may share a block, there are few different ones, so that they do.
fn every_prefix(name: &str, ops: u32, spare: Option<u32>, allocator: Allocator, dedup: &str) {
    let dedup: Dedup = dedup.parse().unwrap();
    let contents = if dedup == Dedup::Off { 1 << 20 } else { 24 };
    let live = Arena::new(&format!("{name}-live"));
    let mut killed = Killed {
        words: vec![0; (MIB / 8) as usize],
        arena: Arena::new(name),
        known: BTreeSet::new(),
        recoveries: 0,
    };
    let (store, _) = live.open(allocator);
    let mut cx = Context::new();
    if let Some(spare) = spare {
        let pool = store.open_pool(FILLER).unwrap();
        let put = |index: &u32| pool.put(&mut cx, id(0), *index, &page(3)).is_ok();
        assert!((0..256).take_while(put).count() > 100);
        pool.flush_range(id(0), 0, spare);
    }
    killed.apply(&journal::take());

    let mut random = Random(1);
    let mut pages = Pages::new();
    let mut refused = 0;
    for _ in 0..ops {
        let op = random.op(contents);
        let context = format!("{op:?}");
        let old = pages.clone();
        refused += u32::from(op.carry_out(&store, &dedup, &mut cx, &mut pages));
        let stores = journal::take();
        if let Op::Put(key, _) = op {
            killed.known.insert(key);
        }
        let holds = |pages: &Pages, key, found: Option<&Page>| {
            pages.get(&key).map(|seed| page(*seed)).as_ref() == found
        };
        // At the limit the old page may leave before the new one is there.
        let between = |key, found: Option<&Page>| {
            let left = spare.is_some() && found.is_none() && op.touches(key);
            left || holds(&old, key, found) || holds(&pages, key, found)
        };
        for (n, made) in stores.iter().enumerate() {
            killed.apply(&[*made]);
            // From the middle of a page's bytes only now and then.
            let next = stores.get(n + 1);
            let amid = next.is_some_and(|next| next.0 == made.0 + 8);
            if !amid || random.below(200) == 0 {
                killed.recover(&context, between);
            }
        }
        killed.recover(&context, |key, found| holds(&pages, key, found));
    }
    assert!(
        killed.recoveries > 5 * ops,
        "{} recoveries",
        killed.recoveries
    );
    assert_eq!(refused > 0, spare.is_some());
}

#[test]
fn recovery_is_right_after_every_store() {
    every_prefix("room", 150, None, Allocator::Zsmalloc, "off");
}

#[test]
fn recovery_is_right_after_every_store_where_memory_is_short() {
    every_prefix("short", 150, Some(30), Allocator::Zsmalloc, "off");
}

#[test]
fn recovery_is_right_after_every_store_of_buddies() {
    every_prefix("zbud", 150, None, Allocator::Zbud, "off");
}

#[test]
fn recovery_is_right_after_every_store_where_pages_share() {
    every_prefix("shared", 150, None, Allocator::Zsmalloc, "domain:x");
}

#[test]
fn recovery_is_right_after_every_store_where_pages_share_short_memory() {
    every_prefix(
        "shared-short",
        150,
        Some(10),
        Allocator::Zsmalloc,
        "domain:x",
    );
}

#[test]
fn recovery_is_right_after_every_store_where_buddies_become_shared() {
    every_prefix("shared-zbud", 150, None, Allocator::Zbud, "domain:x");
}
