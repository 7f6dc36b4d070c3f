// SPDX-License-Identifier: GPL-2.0-or-later
//! The store's own threads under a scheduler that chooses, at every lock and at every word they share,
//! who goes on: few threads, a small store, some hundred schedules. Pages come back right, nothing is
//! held when all are flushed, and nobody waits for ever.
//!
//! Memory is sequentially consistent here; what weaker machines do is not tried. `KZT_SCHEDULES` says
//! how many schedules each test tries, `KZT_SCHEDULES_SEED` which ones: the same seed means the same
//! ones, as far as they don't depend on the key that each arena draws.

#![allow(
    clippy::cast_possible_truncation,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test may fail"
)]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use common::{ArenaPath, MIB, Random, SWAP, SpillPath};
use kzt_store::tmem::{VERSION, flags};
use kzt_store::{
    Allocator, Client, Config, Context, Dedup, PAGE_SIZE, Page, Pool, PutError, Store, Uuid,
};
use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::thread::{JoinHandle, spawn};
use shuttle::{FailurePersistence, MaxSteps, Runner};

/// Schedules of a test, half of them by either scheduler.
const SCHEDULES: u64 = 300;
const SEED: u64 = 1;
/// Priority changes of a schedule: a bug needs so many surprises to show.
const DEPTH: usize = 4;
/// The smallest store, in which pages and index can have so many frames.
const MEMORY: u64 = MIB;
const FRAMES: u32 = 15 * 16;
/// Frames of an extent.
const EXTENT: u32 = 16;
const PERSISTENT: u32 = flags::PERSIST | EPHEMERAL;
const EPHEMERAL: u32 = VERSION << flags::VERSION_SHIFT;
/// Pages of so many bytes share runs with a few others; of so many, frames with none.
const SMALL: usize = 1300;
const LARGE: usize = 2600;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

/// Runs a test under many schedules, fewer the `longer` one takes; each has a store of its own.
fn explore(longer: u64, test: fn()) {
    let seed = setting("KZT_SCHEDULES_SEED", SEED);
    let schedules = setting("KZT_SCHEDULES", SCHEDULES);
    println!("KZT_SCHEDULES_SEED={seed} KZT_SCHEDULES={schedules}");
    let schedules = (schedules / longer / 2).max(1) as usize;
    run(RandomScheduler::new_from_seed(seed, schedules), test);
    run(PctScheduler::new_from_seed(seed, DEPTH, schedules), test);
}

fn run(scheduler: impl Scheduler + 'static, test: fn()) {
    let mut config = shuttle::Config::new();
    config.stack_size = 1 << 19;
    // Millions of steps: a seed says as much.
    config.failure_persistence = FailurePersistence::None;
    config.max_steps = MaxSteps::FailAfter(20_000_000);
    // Orders weaker than sequential consistency are not modelled: said above.
    config.silence_warnings = true;
    Runner::new(scheduler, config).run(test);
}

/// A page that says which version of which key it is, with so many bytes that no codec shrinks.
fn content(key: u32, version: u32, bytes: usize) -> Page {
    let mut page = [0; PAGE_SIZE];
    let mut random = Random(u64::from(key) << 32 | u64::from(version));
    page[..bytes].fill_with(|| random.next() as u8);
    page[..4].copy_from_slice(&key.to_ne_bytes());
    page[4..8].copy_from_slice(&version.to_ne_bytes());
    page
}

/// A thread with a pool of which it knows all that is in it.
struct User {
    pool: Arc<Pool>,
    cx: Context,
    bytes: usize,
    /// The version of each key.
    model: BTreeMap<u32, u32>,
    refused: u32,
}

impl User {
    fn new(pool: &Arc<Pool>, bytes: usize) -> Self {
        Self {
            pool: Arc::clone(pool),
            cx: Context::new(),
            bytes,
            model: BTreeMap::new(),
            refused: 0,
        }
    }

    fn put(&mut self, key: u32, version: u32) {
        let page = content(key, version, self.bytes);
        let old = match self.pool.put(&mut self.cx, SWAP, key, &page) {
            Ok(()) => {
                self.model.insert(key, version);
                return;
            }
            Err(PutError::NoMemory) => false,
            Err(PutError::NoSpace) => true,
            Err(PutError::NoDevice) => panic!("the pool is gone"),
        };
        self.refused += 1;
        assert_eq!(self.model.remove(&key).is_some(), old, "{key}");
    }

    fn flush(&mut self, key: u32) {
        let there = self.model.remove(&key).is_some();
        assert_eq!(self.pool.flush(SWAP, key), there, "{key}");
    }

    fn check(&mut self, key: u32) {
        let mut out = [0; PAGE_SIZE];
        let found = self.pool.get(&mut self.cx, SWAP, key, &mut out).unwrap();
        let version = self.model.get(&key);
        assert_eq!(found, version.is_some(), "{key}");
        if let Some(version) = version {
            assert!(out == content(key, *version, self.bytes), "{key} is wrong");
        }
    }

    fn check_all(&mut self) {
        for key in self.model.keys().copied().collect::<Vec<_>>() {
            self.check(key);
        }
    }

    /// Ends the thread's work: its pages are there, then gone.
    fn finish(&mut self) {
        self.check_all();
        for key in self.model.keys().copied().collect::<Vec<_>>() {
            self.flush(key);
        }
    }
}

/// Reads what another thread has: any version of a page, but a whole one.
fn look(pool: &Pool, keys: impl IntoIterator<Item = u32>, bytes: usize) {
    let mut cx = Context::new();
    let mut out = [0; PAGE_SIZE];
    for key in keys {
        if pool.get(&mut cx, SWAP, key, &mut out).unwrap() {
            let version = u32::from_ne_bytes(*out[4..].first_chunk().unwrap());
            assert!(out == content(key, version, bytes), "{key} is wrong");
        }
    }
}

/// A store whose files have no names any more: a schedule that fails leaves nothing behind.
fn open(allocator: Allocator, spill: Option<u64>) -> Arc<Store> {
    let (arena, spill_path) = (ArenaPath::new(), SpillPath::new());
    let config = Config {
        persistent: allocator,
        spill: spill.map(|size| spill_path.config(size)),
        ..Config::new(arena.path(), MEMORY)
    };
    Arc::new(Store::open(&config).unwrap().0)
}

fn client(store: &Store, name: &str, dedup: &str) -> Arc<Client> {
    let client = store.client(name).unwrap();
    client.set_dedup(&dedup.parse::<Dedup>().unwrap());
    client
}

fn upkeep(store: &Arc<Store>, emptied: &'static AtomicU64) -> JoinHandle<()> {
    let store = Arc::clone(store);
    spawn(move || {
        for _ in 0..2 {
            emptied.fetch_add(store.maintain().emptied.into(), Relaxed);
        }
    })
}

/// Nothing is in use any more.
fn assert_empty(store: &Store) {
    let usage = store.usage().unwrap();
    let held = (usage.pages, usage.data, usage.fragmentation);
    assert_eq!(held, (0, 0, 0), "{usage:?}");
    assert_eq!(usage.meta, 65_536, "{usage:?}");
    assert_eq!((usage.duplicates, usage.deduplicated), (0, 0), "{usage:?}");
    if let Some(spill) = usage.spill {
        assert_eq!((spill.pages, spill.data), (0, 0), "{spill:?}");
    }
}

fn move_pages_in_use(allocator: Allocator, emptied: &'static AtomicU64) {
    let store = open(allocator, None);
    let pool = store.open_pool("a").unwrap();
    let mut user = User::new(&pool, SMALL);
    (0..36).for_each(|key| user.put(key, 0));
    (0..36)
        .filter(|key| key % 3 != 1)
        .for_each(|key| user.flush(key));
    let user = spawn(move || {
        // What moves is replaced by what may take the place that it has left.
        (1..36).step_by(3).for_each(|key| user.put(key, 1));
        user.flush(7);
        user.check_all();
        user
    });
    let reader = spawn(move || look(&pool, [10, 4, 1], SMALL));
    let upkeep = upkeep(&store, emptied);
    let mut user = user.join().unwrap();
    reader.join().unwrap();
    upkeep.join().unwrap();
    user.finish();
    assert_eq!(user.refused, 0);
    assert_empty(&store);
}

#[test]
fn pages_in_use_move_between_runs() {
    static EMPTIED: AtomicU64 = AtomicU64::new(0);
    explore(1, || move_pages_in_use(Allocator::Zsmalloc, &EMPTIED));
    assert!(EMPTIED.load(Relaxed) > 0, "nothing was ever moved");
}

#[test]
fn pages_in_use_move_between_chunks() {
    static EMPTIED: AtomicU64 = AtomicU64::new(0);
    explore(1, || move_pages_in_use(Allocator::Xvmalloc, &EMPTIED));
    assert!(EMPTIED.load(Relaxed) > 0, "nothing was ever moved");
}

/// Two pools of a domain put, replace and flush the same pages, which move meanwhile.
#[test]
fn shared_blocks_are_counted() {
    static EMPTIED: AtomicU64 = AtomicU64::new(0);
    static SHARED: AtomicU64 = AtomicU64::new(0);
    explore(1, || {
        let store = open(Allocator::Zsmalloc, None);
        let users = ["a", "b"].map(|name| {
            client(&store, name, "domain:all");
            let mut user = User::new(&store.open_pool(name).unwrap(), SMALL);
            (0..12).for_each(|key| user.put(key, 0));
            (0..12)
                .filter(|key| key % 4 != 1)
                .for_each(|key| user.flush(key));
            user
        });
        let users = users.map(|mut user| {
            spawn(move || {
                user.put(2, 0);
                user.put(1, 1);
                user.check_all();
                user.flush(5);
                user.put(2, 1);
                user.put(1, 0);
                user.check_all();
                user
            })
        });
        let upkeep = upkeep(&store, &EMPTIED);
        let users = users.map(|user| user.join().unwrap());
        upkeep.join().unwrap();
        SHARED.fetch_add(store.usage().unwrap().duplicates, Relaxed);
        for mut user in users {
            user.finish();
            assert_eq!(user.refused, 0);
        }
        assert_empty(&store);
    });
    assert!(SHARED.load(Relaxed) > 0, "nothing was ever shared");
}

/// An ephemeral page is the last one that was put there, or gone.
fn get_or_miss(client: &Client, cx: &mut Context, pool: i32, key: u32, version: u32) {
    let mut out = [0; PAGE_SIZE];
    if client.get_page(cx, pool, SWAP, key, &mut out) == 1 {
        assert!(out == content(key, version, LARGE), "{key} is wrong");
    }
}

#[test]
fn pages_in_use_are_evicted() {
    static EVICTED: AtomicU64 = AtomicU64::new(0);
    explore(5, || {
        let store = open(Allocator::Zsmalloc, None);
        let ephemeral = client(&store, "e", "off");
        let pool = ephemeral.new_pool(EPHEMERAL, Uuid([0, 0]));
        let mut cx = Context::new();
        // A little more than there is room for: the first ones leave.
        for key in 0..FRAMES {
            let page = content(key, 0, LARGE);
            assert_eq!(ephemeral.put_page(&mut cx, pool, SWAP, key, &page), 1);
        }
        let mut user = User::new(&store.open_pool("a").unwrap(), SMALL);
        let user = spawn(move || {
            (0..6).for_each(|key| user.put(key, 0));
            user.check_all();
            user.flush(3);
            user
        });
        // The oldest pages are the ones that are evicted.
        let keys = (0..FRAMES).filter(|key| key % 2 == 0).take(12);
        let owner = Arc::clone(&ephemeral);
        let owner = spawn(move || {
            let mut cx = Context::new();
            for key in keys {
                get_or_miss(&owner, &mut cx, pool, key, 0);
                if key % 8 == 0 {
                    let page = content(key, 1, LARGE);
                    owner.put_page(&mut cx, pool, SWAP, key, &page);
                    get_or_miss(&owner, &mut cx, pool, key, 1);
                }
            }
        });
        let flusher = Arc::clone(&ephemeral);
        let flusher = spawn(move || {
            for key in [1, 3, 5, 7, 9, 11] {
                assert_eq!(flusher.flush_page(pool, SWAP, key), 1);
            }
        });
        let mut user = user.join().unwrap();
        owner.join().unwrap();
        flusher.join().unwrap();
        EVICTED.fetch_add(store.evictions().evicted_raw_pages, Relaxed);
        for key in [1, 3, 5, 7, 9, 11] {
            let mut out = [0; PAGE_SIZE];
            assert_eq!(ephemeral.get_page(&mut cx, pool, SWAP, key, &mut out), 0);
        }
        user.finish();
        assert_eq!(user.refused, 0);
        assert_eq!(ephemeral.flush_object(pool, SWAP), 1);
        assert_empty(&store);
    });
    assert!(EVICTED.load(Relaxed) > 0, "nothing was ever evicted");
}

/// The last extent is on its way to one thread when another needs it: neither is refused.
#[test]
fn the_last_extent_is_waited_for() {
    explore(1, || {
        let store = open(Allocator::Zsmalloc, None);
        let mut users = ["a", "b"].map(|name| {
            let pool = store.open_pool(name).unwrap();
            User::new(&pool, PAGE_SIZE)
        });
        // All of the other extents are in use but for a few frames, the index's among them.
        (0..FRAMES - EXTENT - 6).for_each(|key| users[0].put(key, 0));
        let users = users.map(|mut user| {
            spawn(move || {
                (1000..1003).for_each(|key| user.put(key, 0));
                user
            })
        });
        let users = users.map(|user| user.join().unwrap());
        for mut user in users {
            assert_eq!(user.refused, 0);
            user.finish();
        }
        assert_empty(&store);
    });
}

/// Pages are got, replaced and flushed while they are written to the disk and moved there. A put may
/// be refused: what is in use at the moment makes no room.
#[test]
fn pages_in_use_are_spilled_and_collected() {
    static COLLECTED: AtomicU64 = AtomicU64::new(0);
    explore(10, || {
        let store = open(Allocator::Zsmalloc, Some(MEMORY + 4096));
        let pools = ["a", "b"].map(|name| store.open_pool(name).unwrap());
        let mut users = pools.each_ref().map(|pool| User::new(pool, PAGE_SIZE));
        // Three of the file's four clusters: the next page needs one to be collected.
        for key in 0..205 {
            for user in &mut users {
                user.put(key, 0);
            }
        }
        for user in &mut users {
            (0..60).step_by(2).for_each(|key| user.flush(key));
        }
        let users = users.map(|mut user| {
            spawn(move || {
                // Some are on the disk, the others on the way there.
                for key in (1..205).step_by(17) {
                    user.put(300 + key, 0);
                    user.check(key);
                    user.put(key, 1);
                    user.flush(key + 2);
                }
                user
            })
        });
        let [pool, _] = pools;
        let reader = spawn(move || look(&pool, [1, 3, 5, 151, 13], PAGE_SIZE));
        let users = users.map(|user| user.join().unwrap());
        reader.join().unwrap();
        COLLECTED.fetch_add(store.usage().unwrap().spill.unwrap().collected, Relaxed);
        for mut user in users {
            user.finish();
        }
        assert_empty(&store);
    });
    assert!(COLLECTED.load(Relaxed) > 0, "nothing was ever collected");
}

/// A pool ends while pages are put there, moved and flushed: all that it held comes free.
#[test]
fn a_pool_ends_while_it_is_used() {
    const NO_DEVICE: i32 = -19;
    static EMPTIED: AtomicU64 = AtomicU64::new(0);
    explore(1, || {
        let store = open(Allocator::Zsmalloc, None);
        let client = client(&store, "a", "client");
        let pools = [PERSISTENT, EPHEMERAL].map(|kind| client.new_pool(kind, Uuid([0, 0])));
        let mut cx = Context::new();
        for key in 0..36 {
            let page = content(key, 0, SMALL);
            assert_eq!(client.put_page(&mut cx, pools[0], SWAP, key, &page), 1);
            if key % 3 != 1 {
                assert_eq!(client.flush_page(pools[0], SWAP, key), 1);
            }
        }
        let threads = pools.map(|pool| {
            let client = Arc::clone(&client);
            spawn(move || {
                let mut cx = Context::new();
                for key in 0..6 {
                    // Every other one shares its block.
                    let page = content(key / 2, 0, SMALL);
                    let put = client.put_page(&mut cx, pool, SWAP, 100 + key, &page);
                    assert!([1, NO_DEVICE].contains(&put), "{put}");
                    let flushed = client.flush_page(pool, SWAP, 98 + key);
                    assert!([1, NO_DEVICE].contains(&flushed), "{flushed}");
                }
            })
        });
        let upkeep = upkeep(&store, &EMPTIED);
        let ender = Arc::clone(&client);
        let ender = spawn(move || {
            for pool in pools {
                assert_eq!(ender.destroy_pool(pool), 1);
            }
        });
        for thread in threads {
            thread.join().unwrap();
        }
        upkeep.join().unwrap();
        ender.join().unwrap();
        assert_empty(&store);
    });
}
