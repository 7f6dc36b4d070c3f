// SPDX-License-Identifier: GPL-2.0-or-later
//! A process that is killed has carried out a prefix of its stores. Recovery from every one of
//! them, not only from those that a kill happens to hit.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use crate::arena::journal;
use crate::layout::EXTENT;
use crate::{
    Allocator, Config, Context, Dedup, ObjectId, PAGE_SIZE, Page, PutError, SpillConfig, Store,
    Uuid, tmem,
};

const MIB: u64 = 1 << 20;
const CLIENTS: [&str; 2] = ["a", "b"];
/// Has the rest of the memory where it has to be short.
const FILLER: &str = "filler";
/// The same with pages that may vanish.
const CACHE: &str = "cache";
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

/// An arena, and its spill file if it has one, that go with the test.
struct Arena {
    path: PathBuf,
    spill: Option<PathBuf>,
}

impl Arena {
    fn new(name: &str, spill: bool) -> Self {
        let name = format!("kzt-store-prefixes-{}-{name}", std::process::id());
        Self {
            path: PathBuf::from("/dev/shm").join(&name),
            spill: spill.then(|| std::env::temp_dir().join(name)),
        }
    }

    fn open(&self, persistent: Allocator) -> (Store, crate::Recovery) {
        let spill = self.spill.clone().map(|path| SpillConfig {
            path,
            size: 64 * MIB,
        });
        Store::open(&Config {
            persistent,
            spill,
            ..Config::new(&self.path, MIB)
        })
        .unwrap()
    }

    /// Has the other's spill file as it is now. It has been written to before any entry led there,
    /// and is so large that nothing in it is written over.
    fn copy_spill(&self, other: &Self) {
        if let (Some(to), Some(from)) = (&self.spill, &other.spill) {
            fs::copy(from, to).unwrap();
        }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        for path in [Some(&self.path), self.spill.as_ref()]
            .into_iter()
            .flatten()
        {
            let _ = fs::remove_file(path);
        }
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
        fs::write(&self.arena.path, bytes).unwrap();
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

/// What the operations meet in the arena.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Memory {
    /// Room for all they put.
    Enough,
    /// Room for so many raw pages.
    Spare(u32),
    /// No room, but a spill file. Other pages push theirs out.
    Spilled,
    /// No room but that of pages that may vanish, which more and more of them are put.
    Cached,
}

/// Puts pages that may vanish anywhere, so that others go with their nodes and objects.
fn fill_cache(store: &Store, puts: u32, random: &mut Random, cx: &mut Context) {
    let cache = store.client(CACHE).unwrap();
    if cache.stats().pools.is_empty() {
        let flags = tmem::VERSION << tmem::flags::VERSION_SHIFT;
        assert_eq!(cache.new_pool(flags, Uuid([0; 2])), 0);
    }
    for _ in 0..puts {
        let index = INDICES[random.below(INDICES.len() as u64) as usize];
        let content = page(random.below(1 << 20));
        let object = id(random.below(60));
        assert_eq!(cache.put_page(cx, 0, object, index, &content), 1);
    }
}

/// Carries `ops` operations out in an arena, and where memory spills as many more as it takes until
/// one of the pages in question has left it: which ones do hangs on the arena's random key. Where
/// pages may share a block, there are few different ones, so that they do.
fn every_prefix(name: &str, ops: u32, memory: Memory, allocator: Allocator, dedup: &str) {
    let dedup: Dedup = dedup.parse().unwrap();
    let contents = if dedup == Dedup::Off { 1 << 20 } else { 24 };
    let spilled = memory == Memory::Spilled;
    let live = Arena::new(&format!("{name}-live"), spilled);
    let mut killed = Killed {
        words: vec![0; (MIB / 8) as usize],
        arena: Arena::new(name, spilled),
        known: BTreeSet::new(),
        recoveries: 0,
    };
    let (store, _) = live.open(allocator);
    let mut cx = Context::new();
    if let Memory::Spare(spare) = memory {
        let pool = store.open_pool(FILLER).unwrap();
        let put = |index: &u32| pool.put(&mut cx, id(0), *index, &page(3)).is_ok();
        assert!((0..256).take_while(put).count() > 100);
        pool.flush_range(id(0), 0, spare);
    }
    let mut random = Random(1);
    if memory == Memory::Cached {
        fill_cache(&store, 400, &mut random, &mut cx);
    }
    killed.apply(&journal::take());

    let before = store.evictions();
    let mut pages = Pages::new();
    let mut refused = 0;
    let mut left_memory = false;
    for n in 0..ops * 10 {
        if n >= ops && left_memory == spilled {
            break;
        }
        if spilled {
            let pool = store.open_pool(FILLER).unwrap();
            for index in (0..6).map(|more| (n * 6 + more) % 300) {
                pool.put(&mut cx, id(0), index, &page(3)).unwrap();
            }
        }
        if memory == Memory::Cached {
            fill_cache(&store, 2, &mut random, &mut cx);
        }
        let op = random.op(contents);
        let context = format!("{op:?}");
        let old = pages.clone();
        refused += u32::from(op.carry_out(&store, &dedup, &mut cx, &mut pages));
        let stores = journal::take();
        killed.arena.copy_spill(&live);
        if let Op::Put(key, _) = op {
            killed.known.insert(key);
        }
        let holds = |pages: &Pages, key, found: Option<&Page>| {
            pages.get(&key).map(|seed| page(*seed)).as_ref() == found
        };
        // At the limit the old page may leave before the new one is there.
        let between = |key, found: Option<&Page>| {
            let left = matches!(memory, Memory::Spare(_)) && found.is_none() && op.touches(key);
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
        let pools = CLIENTS.map(|client| store.open_pool(client).unwrap().stats());
        let spilled: u64 = pools.iter().map(|pool| pool.spilled).sum();
        left_memory |= if dedup == Dedup::Off {
            spilled > 0
        } else {
            // Of a block that pages share the pools don't know.
            let known = spilled + store.open_pool(FILLER).unwrap().stats().spilled;
            let spill = store.usage().unwrap().spill;
            spill.is_some_and(|spill| spill.pages > known)
        };
        // To ask makes the pool again of a client whose one was destroyed.
        killed.apply(&journal::take());
    }
    assert!(
        killed.recoveries > 5 * ops,
        "{} recoveries",
        killed.recoveries
    );
    assert_eq!(refused > 0, matches!(memory, Memory::Spare(_)));
    assert_eq!(left_memory, spilled);
    let evicted = store.evictions().evicted_raw_pages - before.evicted_raw_pages;
    assert_eq!(evicted > ops.into(), memory == Memory::Cached, "{evicted}");
}

#[test]
fn recovery_is_right_after_every_store() {
    every_prefix("room", 150, Memory::Enough, Allocator::Zsmalloc, "off");
}

#[test]
fn recovery_is_right_after_every_store_where_memory_is_short() {
    every_prefix("short", 150, Memory::Spare(30), Allocator::Zsmalloc, "off");
}

#[test]
fn recovery_is_right_after_every_store_of_buddies() {
    every_prefix("zbud", 150, Memory::Enough, Allocator::Zbud, "off");
}

#[test]
fn recovery_is_right_after_every_store_of_chunks() {
    every_prefix("chunks", 150, Memory::Enough, Allocator::Xvmalloc, "off");
}

#[test]
fn recovery_is_right_after_every_store_where_chunks_become_shared() {
    every_prefix(
        "shared-chunks",
        100,
        Memory::Spare(10),
        Allocator::Xvmalloc,
        "domain:x",
    );
}

#[test]
fn recovery_is_right_after_every_store_where_pages_share() {
    every_prefix(
        "shared",
        150,
        Memory::Enough,
        Allocator::Zsmalloc,
        "domain:x",
    );
}

#[test]
fn recovery_is_right_after_every_store_where_pages_share_short_memory() {
    every_prefix(
        "shared-short",
        150,
        Memory::Spare(10),
        Allocator::Zsmalloc,
        "domain:x",
    );
}

#[test]
fn recovery_is_right_after_every_store_where_buddies_become_shared() {
    every_prefix(
        "shared-zbud",
        150,
        Memory::Enough,
        Allocator::Zbud,
        "domain:x",
    );
}

#[test]
fn recovery_is_right_after_every_store_where_shared_pages_are_spilled() {
    every_prefix(
        "spill-shared",
        60,
        Memory::Spilled,
        Allocator::Zsmalloc,
        "domain:x",
    );
}

#[test]
fn recovery_is_right_after_every_store_where_pages_are_evicted() {
    every_prefix("evict", 20, Memory::Cached, Allocator::Zsmalloc, "off");
}

#[test]
fn recovery_is_right_after_every_store_where_pages_are_spilled() {
    every_prefix("spill", 60, Memory::Spilled, Allocator::Zsmalloc, "off");
}
