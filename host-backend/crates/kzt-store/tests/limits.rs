// SPDX-License-Identifier: GPL-2.0-or-later
//! Who gives way when memory is short, and who has to do with what he may have.

#![allow(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test may fail"
)]

mod common;

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use common::{ArenaPath, MIB, Random, SWAP, page};
use kzt_store::tmem::flags;
use kzt_store::{
    Client, Context, ObjectId, Overcommitted, PAGE_SIZE, Page, PutError, Store, Terms, UpdateError,
    Uuid,
};

const EPHEMERAL: u32 = 1 << flags::VERSION_SHIFT;
const PERSISTENT: u32 = EPHEMERAL | flags::PERSIST;
const SHARED: u32 = EPHEMERAL | flags::SHARED;
const ENOMEM: i32 = -12;
const ENOSPC: i32 = -28;

/// One of a client's pools.
struct Guest {
    client: Arc<Client>,
    pool: i32,
    cx: Context,
}

impl Guest {
    fn new(store: &Store, name: &str, flags: u32) -> Self {
        let client = store.client(name).unwrap();
        let pool = client.new_pool(flags, Uuid([1, 2]));
        assert!(pool >= 0);
        Self {
            client,
            pool,
            cx: Context::new(),
        }
    }

    fn put(&mut self, index: u32, page: &Page) -> i32 {
        self.client
            .put_page(&mut self.cx, self.pool, SWAP, index, page)
    }

    fn get(&mut self, index: u32) -> Option<Page> {
        let mut out = [0; PAGE_SIZE];
        let got = self
            .client
            .get_page(&mut self.cx, self.pool, SWAP, index, &mut out);
        (got == 1).then_some(out)
    }

    fn stats(&self) -> kzt_store::PoolStats {
        let id = u8::try_from(self.pool).unwrap();
        let pools = self.client.stats().pools;
        pools.iter().find(|pool| pool.id == Some(id)).unwrap().stats
    }

    fn pages(&self) -> u64 {
        self.stats().pages
    }

    /// Puts pages from `first` on until one is refused; how many went in, and the answer.
    fn fill(&mut self, first: u32, page: impl Fn(u32) -> Page) -> (u32, i32) {
        for index in first.. {
            let answer = self.put(index, &page(index));
            if answer != 1 {
                return (index - first, answer);
            }
        }
        unreachable!();
    }
}

/// Does not shrink.
fn random(index: u32) -> Page {
    page(u64::from(index) * 4 + 3)
}

/// Two of them fit into a frame.
fn third(index: u32) -> Page {
    let mut page = [0; PAGE_SIZE];
    let mut random = Random(index.into());
    page[..PAGE_SIZE / 3].fill_with(|| random.next() as u8);
    page
}

/// Needs nothing but its entry.
fn filled(index: u32) -> Page {
    [index as u8; PAGE_SIZE]
}

fn settle(guest: &Guest, change: impl Fn(&mut Terms)) -> Result<(), Overcommitted> {
    let mut terms = guest.client.terms();
    change(&mut terms);
    guest.client.settle(terms)
}

#[test]
fn a_put_at_the_limit_evicts_what_may_vanish() {
    for lasting in [random, third] {
        let arena = ArenaPath::new();
        let (store, _) = arena.open(8 * MIB);
        let mut cache = Guest::new(&store, "cache", EPHEMERAL);
        for index in 0..6000 {
            assert_eq!(cache.put(index, &third(index)), 1, "the oldest leave");
        }
        assert!(cache.stats().evicted > 1900);
        assert!(store.usage().unwrap().allocated > 7 * MIB);
        let mut swap = Guest::new(&store, "swap", PERSISTENT);
        let (pages, answer) = swap.fill(0, lasting);
        assert_eq!(answer, ENOMEM);
        assert_eq!(cache.pages(), 0, "nothing is refused for the cache's sake");
        assert!(swap.stats().stored_bytes > 6 * MIB, "{pages} pages");
        for index in 0..pages {
            assert_eq!(swap.get(index), Some(lasting(index)));
        }
    }
}

#[test]
fn ephemeral_pages_push_out_no_lasting_ones() {
    let arena = ArenaPath::new();
    let (store, _) = arena.open(4 * MIB);
    let mut swap = Guest::new(&store, "swap", PERSISTENT);
    let (pages, _) = swap.fill(0, third);
    let mut cache = Guest::new(&store, "cache", EPHEMERAL);
    let mut random = Random(1);
    let mut taken = 0;
    for index in 0..2000 {
        taken += u32::from(cache.put(index, &page(random.next())) == 1);
    }
    assert!(taken < 200, "{taken} fitted in somewhere");
    assert_eq!(swap.pages(), pages.into());
    for index in 0..pages {
        assert_eq!(swap.get(index), Some(third(index)));
    }
}

/// The ancestor's test for who is over his quota was the wrong way round.
#[test]
fn who_has_most_for_his_weight_gives_way() {
    let arena = ArenaPath::new();
    let (store, _) = arena.open(8 * MIB);
    let mut large = Guest::new(&store, "large", EPHEMERAL);
    let mut small = Guest::new(&store, "small", EPHEMERAL);
    for index in 0..900 {
        assert_eq!(large.put(index, &third(index)), 1);
        if index < 100 {
            assert_eq!(small.put(index, &third(index)), 1);
        }
    }
    let mut swap = Guest::new(&store, "swap", PERSISTENT);
    let mut index = 0;
    while large.pages() > 110 {
        assert_eq!(swap.put(index, &random(index)), 1);
        index += 1;
        assert_eq!(
            small.pages(),
            100,
            "{} of the other's are left",
            large.pages()
        );
    }

    settle(&small, |terms| terms.weight = 1000).unwrap();
    while large.pages() > 10 {
        assert_eq!(swap.put(index, &third(index)), 1);
        index += 1;
        assert_eq!(small.pages(), 100, "a share is by weight");
    }
}

#[test]
fn equal_clients_end_up_with_equal_shares() {
    let arena = ArenaPath::new();
    let (store, _) = arena.open(8 * MIB);
    let mut guests = ["a", "b", "c"].map(|name| Guest::new(&store, name, EPHEMERAL));
    settle(&guests[2], |terms| terms.weight = 2).unwrap();
    for index in 0..6000 {
        // The first one is three times as busy.
        for guest in [0, 0, 0, 1, 2] {
            let index = index * 3 + guest as u32;
            assert_eq!(guests[guest].put(index, &third(index)), 1);
        }
    }
    let [a, b, c] = guests.map(|guest| guest.client.stats().ephemeral_bytes);
    assert!(a.abs_diff(b) * 20 < b, "{a} {b}");
    assert!(c.abs_diff(2 * b) * 20 < c, "{c} {b}");
}

#[test]
fn the_oldest_frames_leave_first_and_whole() {
    let arena = ArenaPath::new();
    let (store, _) = arena.open(4 * MIB);
    let mut cache = Guest::new(&store, "cache", EPHEMERAL);
    for index in 0..3000 {
        assert_eq!(cache.put(index, &third(index)), 1);
    }
    let left = cache.pages() as u32;
    let evicted = store.evictions();
    assert_eq!(cache.stats().evicted, u64::from(3000 - left));
    let held = store.zbud();
    // Some went in again, when there was no room for their node.
    assert!((3000..3100).contains(&held.zbud_cumul_zpages));
    assert_eq!(held.zbud_curr_zpages, u64::from(left));
    assert_eq!(held.zbud_buddied_count, u64::from(left / 2));
    assert_eq!(held.zbud_curr_raw_pages, u64::from(left.div_ceil(2)));
    assert!((3000 * 1000..3000 * 2000).contains(&held.zbud_cumul_zbytes));
    // The frame of the page that came last is not full yet.
    assert!(evicted.evicted_buddied_pages >= u64::from(3000 - left - 1));
    assert!(evicted.evicted_raw_pages >= u64::from((3000 - left) / 2));
    for index in 0..3000 {
        let there = cache.get(index);
        assert_eq!(there.is_some(), index >= 3000 - left, "{index}");
        assert!(there.is_none_or(|page| page == third(index)));
    }
}

#[test]
fn a_shared_page_that_is_used_stays_longest() {
    let arena = ArenaPath::new();
    let (store, _) = arena.open(4 * MIB);
    store.authorize(Uuid([1, 2]), "cache");
    let mut cache = Guest::new(&store, "cache", SHARED);
    for index in 0..3000 {
        assert_eq!(cache.put(index, &third(index)), 1);
        assert!(cache.get(0).is_some(), "after {index} puts");
    }
    assert!(cache.get(1).is_some(), "its buddy");
    assert!(cache.get(2).is_none());
}

/// Pages of one word have no block that could be evicted, only entries, and each may have a node
/// to itself.
#[test]
fn an_index_of_same_filled_pages_is_evicted_too() {
    let arena = ArenaPath::new();
    let (store, _) = arena.open(4 * MIB);
    let mut cache = Guest::new(&store, "cache", EPHEMERAL);
    for number in 0..5000_u32 {
        let object = ObjectId([u64::from(number), 0, 0]);
        let answer = cache
            .client
            .put_page(&mut cache.cx, cache.pool, object, 0, &filled(number));
        assert_eq!(answer, 1);
    }
    assert!(store.evictions().evicted_nodes > 3000);
    let mut swap = Guest::new(&store, "swap", PERSISTENT);
    let (pages, _) = swap.fill(0, random);
    assert!(pages > 850, "{pages}");
    for index in 0..pages {
        assert_eq!(swap.get(index), Some(random(index)));
    }
}

/// With its header it is longer than a frame.
#[test]
fn ephemeral_pages_that_do_not_shrink_are_kept_and_evicted_like_others() {
    let arena = ArenaPath::new();
    let (store, _) = arena.open(4 * MIB);
    let mut cache = Guest::new(&store, "cache", EPHEMERAL);
    for index in 0..4000 {
        assert_eq!(cache.put(index, &page(index.into())), 1);
    }
    assert!(cache.stats().raw > 200);
    let there = (0..4000).filter(|&index| {
        let found = cache.get(index);
        assert!(found.is_none_or(|found| found == page(index.into())));
        found.is_some()
    });
    assert!(there.count() > 1200);
    assert_eq!(cache.pages(), 0);
    let usage = store.usage().unwrap();
    assert_eq!((usage.data, usage.fragmentation), (0, 0));
}

#[test]
fn no_client_has_more_than_its_cap() {
    let arena = ArenaPath::new();
    let (store, _) = arena.open(16 * MIB);
    let mut swap = Guest::new(&store, "swap", PERSISTENT);
    settle(&swap, |terms| terms.cap = Some(2 * MIB)).unwrap();
    let (pages, answer) = swap.fill(0, random);
    assert_eq!(answer, ENOMEM);
    let charged = swap.client.stats().persistent_bytes;
    assert!((2 * MIB - 8192..=2 * MIB).contains(&charged), "{charged}");
    let stats = swap.stats();
    assert_eq!(charged, stats.stored_bytes + stats.index_bytes);
    assert_eq!((stats.failed_puts, stats.over_cap), (1, 1));
    // A new object would need an index, too.
    let object = ObjectId([7; 3]);
    let put = swap
        .client
        .put_page(&mut swap.cx, swap.pool, object, 0, &filled(0));
    assert_eq!(put, ENOMEM);
    assert_eq!(swap.client.stats().persistent_bytes, charged);
    // Nor does a tree stay higher that was grown for nothing.
    for index in [1 << 10, 1 << 18, u32::MAX] {
        assert_eq!(swap.put(index, &filled(0)), ENOMEM);
        assert_eq!(swap.client.stats().persistent_bytes, charged, "{index}");
    }

    // What takes no more than what it replaces is admitted, even if the cap has been lowered.
    settle(&swap, |terms| terms.cap = Some(MIB)).unwrap();
    assert_eq!(swap.put(0, &random(77)), 1);
    assert_eq!(swap.get(0), Some(random(77)));
    assert_eq!(swap.put(1, &third(1)), 1);
    assert_eq!(swap.put(1, &random(1)), ENOSPC);
    assert_eq!(swap.get(1), None);
    assert_eq!(swap.put(pages, &random(0)), ENOMEM);

    settle(&swap, |terms| terms.cap = None).unwrap();
    assert_eq!(swap.put(pages, &random(pages)), 1);
    // What the client has no cap for is not its.
    let mut cache = Guest::new(&store, "swap", EPHEMERAL);
    settle(&swap, |terms| terms.cap = Some(0)).unwrap();
    assert_eq!(cache.put(0, &third(0)), 1);
}

#[test]
fn a_cap_holds_for_all_pools_of_a_client_at_once() {
    let arena = ArenaPath::new();
    let (store, _) = arena.open(16 * MIB);
    let cap = 3 * MIB;
    let done = AtomicBool::new(false);
    let client = store.client("a").unwrap();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|thread| {
                let mut guest = Guest::new(&store, "a", PERSISTENT);
                settle(&guest, |terms| terms.cap = Some(cap)).unwrap();
                scope.spawn(move || {
                    let mut random = Random(thread);
                    let mut refused = 0;
                    for _ in 0..3000 {
                        let index = random.below(600) as u32;
                        refused += u32::from(guest.put(index, &page(random.next())) != 1);
                    }
                    refused
                })
            })
            .collect();
        scope.spawn(|| {
            while !done.load(Relaxed) {
                let charged = client.stats().persistent_bytes;
                assert!(charged <= cap, "{charged}");
                std::thread::yield_now();
            }
        });
        let refused = threads.into_iter().map(|thread| thread.join().unwrap());
        assert!(refused.sum::<u32>() > 100);
        done.store(true, Relaxed);
    });
    let stats = client.stats();
    let held = |pool: &kzt_store::PoolEntry| pool.stats.stored_bytes + pool.stats.index_bytes;
    assert_eq!(stats.persistent_bytes, stats.pools.iter().map(held).sum());
}

#[test]
fn what_is_reserved_is_there_when_it_is_wanted() {
    for lasting in [random, third] {
        let arena = ArenaPath::new();
        let (store, _) = arena.open(16 * MIB);
        let mut owner = Guest::new(&store, "owner", PERSISTENT);
        let reserved = 8 * MIB;
        settle(&owner, |terms| terms.reservation = reserved).unwrap();
        let mut other = Guest::new(&store, "other", PERSISTENT);
        let too_much = settle(&other, |terms| terms.reservation = reserved);
        assert!(matches!(too_much, Err(Overcommitted { most }) if most < 2 * reserved));

        // A cache may use it meanwhile.
        let mut cache = Guest::new(&store, "cache", EPHEMERAL);
        for index in 0..8000 {
            assert_eq!(cache.put(index, &third(index)), 1);
        }
        assert!(cache.client.stats().ephemeral_bytes > 10 * MIB);
        let (pages, answer) = other.fill(0, lasting);
        assert_eq!(answer, ENOMEM);
        let charged = other.client.stats().persistent_bytes;
        assert!((5 * MIB..8 * MIB).contains(&charged), "{charged}");
        assert!(other.stats().over_reservation > 0);
        assert_eq!(other.put(0, &lasting(0)), 1, "that takes nothing more");

        let mut index = 0;
        while owner.client.stats().persistent_bytes < reserved - 8192 {
            assert_eq!(owner.put(index, &lasting(index)), 1, "{index}");
            index += 1;
        }
        for index in 0..pages {
            assert_eq!(other.get(index), Some(lasting(index)));
        }
        // It is the other's again when it is given up.
        settle(&owner, |terms| terms.reservation = 0).unwrap();
        assert_eq!(owner.client.destroy_pool(owner.pool), 1);
        assert_eq!(other.put(pages, &lasting(pages)), 1);
    }
}

#[test]
fn an_update_makes_room_as_well() {
    let arena = ArenaPath::new();
    let (store, _) = arena.open(4 * MIB);
    let mut cache = Guest::new(&store, "cache", EPHEMERAL);
    for index in 0..3000 {
        assert_eq!(cache.put(index, &third(index)), 1);
    }
    let device = store.open_pool("swap").unwrap();
    let mut cx = Context::new();
    let update =
        |cx: &mut Context, index| device.update(cx, SWAP, index, |page| *page = random(index));
    let full = (0..2000)
        .find(|&index| update(&mut cx, index).is_err())
        .unwrap();
    assert!(full > 850, "{full}");
    assert_eq!(cache.pages(), 0);
    assert_eq!(update(&mut cx, full), Err(UpdateError::NoMemory));
    assert_eq!(
        device.put(&mut cx, SWAP, full, &random(full)),
        Err(PutError::NoMemory)
    );
}

/// Caches and swap devices at the limit, with upkeep: no foreign page, none lost that lasts, and
/// never more blocks than memory.
#[test]
fn everything_at_once_stays_within_the_limit() {
    let memory = 8 * MIB;
    let arena = ArenaPath::new();
    let (store, _) = arena.open(memory);
    let done = AtomicBool::new(false);
    let most = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Relaxed) {
                let blocks = std::fs::metadata(arena.path()).unwrap().blocks();
                most.fetch_max(blocks * 512, Relaxed);
                store.maintain();
            }
        });
        let run = |name: &'static str, flags, seed| {
            let store = &store;
            move || {
                let mut guest = Guest::new(store, name, flags);
                let mut random = Random(seed);
                let mut model = std::collections::HashMap::new();
                for _ in 0..30_000 {
                    let index = random.below(2000) as u32;
                    match random.below(8) {
                        0..5 => {
                            let seed = random.next();
                            match guest.put(index, &page(seed)) {
                                1 => model.insert(index, seed),
                                ENOMEM => {
                                    assert!(flags == EPHEMERAL || !model.contains_key(&index));
                                    model.remove(&index)
                                }
                                ENOSPC => model.remove(&index),
                                other => panic!("{other}"),
                            };
                        }
                        5 => {
                            guest.client.flush_page(guest.pool, SWAP, index);
                            model.remove(&index);
                        }
                        _ => {
                            let found = guest.get(index);
                            let expected = model.get(&index).map(|seed| page(*seed));
                            if flags == EPHEMERAL {
                                assert!(found.is_none() || found == expected);
                                model.remove(&index);
                            } else {
                                assert_eq!(found, expected);
                            }
                        }
                    }
                }
                guest.stats()
            }
        };
        let caches = ["a", "b"].map(|name| scope.spawn(run(name, EPHEMERAL, 1)));
        let swaps = ["b", "c"].map(|name| scope.spawn(run(name, PERSISTENT, 2)));
        let evicted: u64 = caches
            .map(|thread| thread.join().unwrap().evicted)
            .iter()
            .sum();
        let refused: u64 = swaps
            .map(|thread| thread.join().unwrap().failed_puts)
            .iter()
            .sum();
        done.store(true, Relaxed);
        assert!(evicted > 1000 && refused == 0, "{evicted} {refused}");
    });
    let most = most.load(Relaxed);
    assert!(most <= memory && most > memory / 2, "{most}");
    for client in store.clients() {
        store.remove_client(&client).unwrap();
    }
    let usage = store.usage().unwrap();
    assert_eq!((usage.data, usage.fragmentation), (0, 0));
}
