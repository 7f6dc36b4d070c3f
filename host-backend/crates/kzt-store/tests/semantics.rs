// SPDX-License-Identifier: GPL-2.0-or-later
//! The tmem ABI and its rules, one row of docs/semantics.md a test.

#![allow(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test may fail"
)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use common::{ArenaPath, MIB, Random, SWAP, page};
use kzt_store::tmem::flags::{PERSIST, SHARED, VERSION_SHIFT};
use kzt_store::tmem::{EEMPTY, EFROZEN, op};
use kzt_store::{Client, Context, Kind, ObjectId, PAGE_SIZE, Page, Store, Terms, Uuid};

const EPERM: i32 = 1;
const EIO: i32 = 5;
const ENOMEM: i32 = 12;
const EFAULT: i32 = 14;
const ENODEV: i32 = 19;
const ENOSPC: i32 = 28;
const ENOSYS: i32 = 38;

/// Flags of a private ephemeral pool.
const CACHE: u32 = 1 << VERSION_SHIFT;
const NOBODY: Uuid = Uuid([0; 2]);
const UUID: Uuid = Uuid([0x0123_4567, 0x89ab_cdef]);

/// A store of 8 MiB, a client, and a context to use it with.
struct Lab {
    store: Store,
    client: Arc<Client>,
    cx: Context,
    arena: ArenaPath,
}

impl Lab {
    fn new() -> Self {
        Self::with_memory(8 * MIB)
    }

    fn with_memory(memory: u64) -> Self {
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
    fn with_pools() -> Self {
        let lab = Self::new();
        assert_eq!(lab.client.new_pool(CACHE | PERSIST, NOBODY), 0);
        assert_eq!(lab.client.new_pool(CACHE, NOBODY), 1);
        lab
    }

    fn put(&mut self, pool: i32, index: u32, seed: u64) -> i32 {
        put(&self.client, &mut self.cx, pool, index, seed)
    }

    fn get(&mut self, pool: i32, index: u32) -> Result<Page, i32> {
        get(&self.client, &mut self.cx, pool, index)
    }
}

fn put(client: &Client, cx: &mut Context, pool: i32, index: u32, seed: u64) -> i32 {
    client.put_page(cx, pool, SWAP, index, &page(seed))
}

/// The page, or the answer.
fn get(client: &Client, cx: &mut Context, pool: i32, index: u32) -> Result<Page, i32> {
    let mut out = [0; PAGE_SIZE];
    match client.get_page(cx, pool, SWAP, index, &mut out) {
        1 => Ok(out),
        answer => Err(answer),
    }
}

#[test]
fn new_pool_returns_the_lowest_free_number() {
    let lab = Lab::new();
    for id in 0..16 {
        assert_eq!(lab.client.new_pool(CACHE | PERSIST, NOBODY), id);
    }
    assert_eq!(lab.client.destroy_pool(7), 1);
    assert_eq!(lab.client.destroy_pool(3), 1);
    assert_eq!(lab.client.new_pool(CACHE, NOBODY), 3);
    assert_eq!(lab.client.new_pool(CACHE, NOBODY), 7);
}

#[test]
fn new_pool_refuses_what_no_pool_may_be() {
    let lab = Lab::new();
    let precompressed = 4;
    let reserved = (0..32)
        .map(|bit| 1 << bit)
        .filter(|bit| 0x00ff_ff00 & bit != 0);
    let page_sizes = (1..16).map(|size| size << 4);
    for flag in reserved
        .chain(page_sizes)
        .chain([precompressed, 8, PERSIST | SHARED])
    {
        assert_eq!(lab.client.new_pool(CACHE | flag, UUID), -EPERM, "{flag:#x}");
    }
    for version in (0..=255).filter(|version| *version != 1) {
        let flags = version << VERSION_SHIFT | PERSIST;
        assert_eq!(
            lab.client.new_pool(flags, UUID),
            -EPERM,
            "version {version}"
        );
    }
    assert_eq!(lab.client.stats().pools, []);
}

#[test]
fn new_pool_is_refused_when_the_client_has_sixteen() {
    let lab = Lab::new();
    for _ in 0..16 {
        assert!(lab.client.new_pool(CACHE, NOBODY) >= 0);
    }
    assert_eq!(lab.client.new_pool(CACHE, NOBODY), -ENOMEM);
    assert_eq!(lab.client.new_pool(CACHE | PERSIST, NOBODY), -ENOMEM);
    // The host's own pool is none of them.
    lab.client.device_pool().unwrap();
}

#[test]
fn new_pool_is_refused_when_the_arena_has_no_room_for_another() {
    let lab = Lab::new();
    let made = |client: &Client| (0..16).all(|id| client.new_pool(CACHE, NOBODY) == id);
    for number in 0..30 {
        assert!(made(&lab.store.client(&format!("c{number}")).unwrap()));
    }
    assert_eq!(lab.client.new_pool(CACHE, NOBODY), -ENOMEM);
    lab.store.remove_client("c5").unwrap();
    assert!(made(&lab.client));
}

#[test]
fn there_are_sixteen_shared_pools_in_all() {
    let lab = Lab::new();
    let other = lab.store.client("b").unwrap();
    for number in 0..17 {
        for name in ["a", "b"] {
            lab.store.authorize(Uuid([number, 7]), name);
        }
    }
    for number in 0..16 {
        let uuid = Uuid([number, 7]);
        assert_eq!(lab.client.new_pool(CACHE | SHARED, uuid), number as i32);
    }
    let last = Uuid([16, 7]);
    assert_eq!(other.new_pool(CACHE | SHARED, last), -ENOMEM);
    // One that is there can still be joined.
    assert_eq!(other.new_pool(CACHE | SHARED, Uuid([0, 7])), 0);
    assert_eq!(lab.client.destroy_pool(3), 1);
    assert_eq!(other.new_pool(CACHE | SHARED, last), 1);
}

#[test]
fn destroy_pool_takes_its_pages_along() {
    let mut lab = Lab::with_pools();
    for pool in [0, 1] {
        assert_eq!(lab.put(pool, 5, 1), 1);
        assert_eq!(lab.client.destroy_pool(pool), 1);
        assert_eq!(lab.get(pool, 5), Err(-ENODEV));
        assert_eq!(lab.client.destroy_pool(pool), -ENODEV);
    }
    assert_eq!(lab.client.new_pool(CACHE | PERSIST, NOBODY), 0);
    assert_eq!(lab.get(0, 5), Err(-EEMPTY));
    let usage = lab.store.usage().unwrap();
    assert_eq!((usage.pages, usage.data, usage.fragmentation), (0, 0, 0));
}

#[test]
fn put_page_refuses_a_new_key_without_memory() {
    let mut lab = Lab::with_memory(MIB);
    lab.client.new_pool(CACHE | PERSIST, NOBODY);
    // Pages that do not shrink.
    let full = (0..1000).find(|&index| lab.put(0, index, 3) != 1).unwrap();
    assert_eq!(lab.put(0, full, 3), -ENOMEM);
    assert_eq!(lab.get(0, full), Err(0));
    assert_eq!(lab.get(0, 0), Ok(page(3)));
}

#[test]
fn put_page_flushes_the_old_page_when_the_new_one_has_no_room() {
    let mut lab = Lab::with_memory(MIB);
    lab.client.new_pool(CACHE | PERSIST, NOBODY);
    let full = (0..1000).find(|&index| lab.put(0, index, 3) != 1).unwrap();
    // Something small in place of a large page, and another large one where that was.
    assert_eq!(lab.put(0, 1, 0), 1);
    assert_eq!(lab.put(0, full, 3), 1);
    assert_eq!(lab.put(0, 1, 3), -ENOSPC);
    assert_eq!(lab.get(0, 1), Err(0), "it has been flushed");
    assert_eq!(lab.get(0, full), Ok(page(3)));
}

/// Rule 1 for what is not even a page: the guest has said that the old one is out of date.
#[test]
fn put_page_of_what_is_no_page_is_a_fault_and_flushes_the_old_one() {
    let mut lab = Lab::with_pools();
    let bytes = [1; 2 * PAGE_SIZE];
    for length in [0, 1, 8, PAGE_SIZE - 1, PAGE_SIZE + 1, 2 * PAGE_SIZE] {
        for pool in [0, 1] {
            assert_eq!(lab.put(pool, 0, 1), 1);
            assert_eq!(lab.put(pool, 1, 1), 1);
            let short = &bytes[..length];
            let answer = lab.client.put_page(&mut lab.cx, pool, SWAP, 0, short);
            assert_eq!(answer, -EFAULT);
            assert_eq!(lab.get(pool, 0), Err(0));
            assert_eq!(lab.get(pool, 1), Ok(page(1)));
        }
    }
}

#[test]
fn get_page_tells_a_miss_from_an_empty_pool() {
    let mut lab = Lab::with_pools();
    for pool in [0, 1] {
        assert_eq!(lab.get(pool, 0), Err(-EEMPTY));
        assert_eq!(lab.put(pool, 0, 1), 1);
        assert_eq!(lab.get(pool, 1), Err(0));
        assert_eq!(lab.client.flush_page(pool, SWAP, 0), 1);
        assert_eq!(lab.get(pool, 0), Err(-EEMPTY));
    }
}

/// A damaged page of a persistent pool stays one: it does not turn into a miss, which the guest
/// would take for a page that it never wrote.
#[test]
fn get_page_of_a_damaged_page_is_an_error_until_it_is_replaced() {
    let mut lab = Lab::with_pools();
    let terms = |exclusive| Terms {
        exclusive,
        ..Terms::default()
    };
    assert_eq!(lab.put(0, 0, 1), 1);
    lab.arena.damage_the_only_block();
    for exclusive in [false, true] {
        lab.client.settle(terms(exclusive)).unwrap();
        for _ in 0..2 {
            assert_eq!(lab.get(0, 0), Err(-EIO));
        }
    }
    lab.client.settle(terms(false)).unwrap();
    assert_eq!(lab.put(0, 0, 2), 1);
    assert_eq!(lab.get(0, 0), Ok(page(2)));
}

#[test]
fn flush_page_and_flush_object_succeed_found_or_not() {
    let mut lab = Lab::with_pools();
    for pool in [0, 1] {
        for _ in 0..2 {
            assert_eq!(lab.client.flush_page(pool, SWAP, 9), 1);
            assert_eq!(lab.client.flush_object(pool, SWAP), 1);
            for index in [9, 10, u32::MAX] {
                assert_eq!(lab.put(pool, index, 1), 1);
            }
        }
        assert_eq!(lab.client.flush_page(pool, SWAP, 9), 1);
        assert_eq!(lab.get(pool, 9), Err(0));
        assert_eq!(lab.client.flush_object(pool, ObjectId([0, 0, 1])), 1);
        assert_eq!(lab.get(pool, 10), Ok(page(1)));
        assert_eq!(lab.client.flush_object(pool, SWAP), 1);
        assert_eq!(lab.get(pool, u32::MAX), Err(-EEMPTY));
    }
}

#[test]
fn every_operation_on_no_pool_answers_no_device() {
    let mut lab = Lab::with_pools();
    // Pool 2 is another client's, 16 the host's own for this one.
    let other = lab.store.client("b").unwrap();
    for id in 0..3 {
        assert_eq!(other.new_pool(CACHE | PERSIST, NOBODY), id);
        assert_eq!(put(&other, &mut lab.cx, id, 0, 2), 1);
    }
    let device = lab.client.device_pool().unwrap();
    device.put(&mut lab.cx, SWAP, 0, &page(2)).unwrap();
    for pool in [
        2,
        15,
        16,
        17,
        255,
        256,
        1 << 16,
        i32::MAX,
        -1,
        -2,
        -16,
        -256,
        i32::MIN,
    ] {
        assert_eq!(lab.put(pool, 0, 1), -ENODEV);
        assert_eq!(lab.get(pool, 0), Err(-ENODEV));
        assert_eq!(lab.client.flush_page(pool, SWAP, 0), -ENODEV);
        assert_eq!(lab.client.flush_object(pool, SWAP), -ENODEV);
        assert_eq!(lab.client.destroy_pool(pool), -ENODEV);
        let short = lab.client.put_page(&mut lab.cx, pool, SWAP, 0, b"short");
        assert_eq!(short, -ENODEV);
    }
    assert_eq!(get(&other, &mut lab.cx, 2, 0), Ok(page(2)));
    let mut out = [0; PAGE_SIZE];
    assert_eq!(device.get(&mut lab.cx, SWAP, 0, &mut out), Ok(true));
}

#[test]
fn operations_that_were_dropped_or_never_were_are_not_there() {
    let served = [
        op::NEW_POOL,
        op::DESTROY_POOL,
        op::PUT_PAGE,
        op::GET_PAGE,
        op::FLUSH_PAGE,
        op::FLUSH_OBJECT,
    ];
    assert_eq!(served, [1, 2, 4, 5, 6, 7]);
    for number in [3, 8, 9, 10, 11, 99, 100, 103, 1 << 31, u32::MAX] {
        assert_eq!(op::refusal(number), -ENOSYS, "{number}");
    }
}

#[test]
fn the_hosts_operations_are_not_a_guests() {
    for number in [op::CONTROL, op::AUTH, op::RESTORE_NEW] {
        assert_eq!(op::refusal(number), -EPERM);
    }
    assert_eq!((op::CONTROL, op::AUTH, op::RESTORE_NEW), (0, 101, 102));
}

#[test]
fn rule_1_a_get_returns_the_latest_page_put() {
    let mut lab = Lab::with_pools();
    for pool in [0, 1] {
        for seed in 0..40 {
            assert_eq!(lab.put(pool, 0, seed), 1);
            assert_eq!(lab.put(pool, 0, seed + 1), 1);
            assert_eq!(lab.get(pool, 0), Ok(page(seed + 1)));
        }
    }
}

#[test]
fn rule_2_no_hit_follows_a_miss() {
    let mut lab = Lab::with_pools();
    for pool in [0, 1] {
        assert_eq!(lab.put(pool, 0, 1), 1);
        assert_eq!(lab.put(pool, 1, 1), 1);
        assert_eq!(lab.client.flush_page(pool, SWAP, 0), 1);
        for _ in 0..3 {
            assert_eq!(lab.get(pool, 0), Err(0));
        }
    }
}

#[test]
fn rule_3_an_ephemeral_private_get_takes_the_page_out() {
    let mut lab = Lab::with_pools();
    for seed in 0..4 {
        assert_eq!(lab.put(1, 0, seed), 1);
        assert_eq!(lab.get(1, 0), Ok(page(seed)));
        assert_eq!(lab.get(1, 0), Err(-EEMPTY));
    }
    let usage = lab.store.usage().unwrap();
    assert_eq!((usage.pages, usage.data, usage.fragmentation), (0, 0, 0));
}

#[test]
fn rule_3_an_ephemeral_shared_get_leaves_the_page() {
    let mut lab = Lab::new();
    lab.store.authorize(UUID, "a");
    assert_eq!(lab.client.new_pool(CACHE | SHARED, UUID), 0);
    assert_eq!(lab.put(0, 0, 1), 1);
    for _ in 0..3 {
        assert_eq!(lab.get(0, 0), Ok(page(1)));
    }
}

#[test]
fn rule_3_a_persistent_get_leaves_the_page_unless_the_host_wants_it_out() {
    let mut lab = Lab::with_pools();
    assert_eq!(lab.put(0, 0, 1), 1);
    for _ in 0..3 {
        assert_eq!(lab.get(0, 0), Ok(page(1)));
    }
    let exclusive = Terms {
        exclusive: true,
        ..Terms::default()
    };
    lab.client.settle(exclusive).unwrap();
    assert_eq!(lab.get(0, 0), Ok(page(1)));
    assert_eq!(lab.get(0, 0), Err(-EEMPTY));
}

/// Of several that ask for the same page at once, one gets it.
#[test]
fn rule_3_an_exclusive_get_is_for_one() {
    let mut lab = Lab::with_pools();
    let exclusive = Terms {
        exclusive: true,
        ..Terms::default()
    };
    lab.client.settle(exclusive).unwrap();
    for round in 0..300 {
        for pool in [0, 1] {
            assert_eq!(lab.put(pool, 0, 1 + 4 * round), 1);
            let hits: usize = std::thread::scope(|scope| {
                let asks = [0; 3].map(|_| {
                    let client = &lab.client;
                    scope.spawn(move || {
                        let found = get(client, &mut Context::new(), pool, 0);
                        usize::from(found == Ok(page(1 + 4 * round)))
                    })
                });
                asks.map(|ask| ask.join().unwrap()).iter().sum()
            });
            assert_eq!(hits, 1);
        }
    }
}

#[test]
fn rule_4_a_persistent_page_outlives_the_process_and_an_ephemeral_pool_does_not() {
    let Lab {
        store,
        client,
        mut cx,
        arena,
    } = Lab::with_pools();
    for pool in [0, 1] {
        for index in 0..100 {
            assert_eq!(put(&client, &mut cx, pool, index, index.into()), 1);
        }
    }
    drop((store, client));
    let (store, recovery) = arena.open(8 * MIB);
    assert_eq!(
        (recovery.pools, recovery.pages, recovery.dropped),
        (1, 100, 0)
    );
    let client = store.client("a").unwrap();
    for index in 0..100 {
        assert_eq!(get(&client, &mut cx, 0, index), Ok(page(index.into())));
    }
    assert_eq!(get(&client, &mut cx, 1, 0), Err(-ENODEV));
    assert_eq!(client.destroy_pool(0), 1);
    let usage = store.usage().unwrap();
    let held = (usage.data, usage.fragmentation, usage.meta);
    assert_eq!(held, (0, 0, 64 * 1024), "no page is left behind");
}

/// Whatever is done at the same time: once flushed, never seen.
#[test]
fn rule_5_an_acknowledged_flush_is_final() {
    let lab = Lab::with_pools();
    for pool in [0, 1] {
        let client = &lab.client;
        std::thread::scope(|scope| {
            for thread in 0..3 {
                scope.spawn(move || {
                    let mut cx = Context::new();
                    let mut random = Random(thread);
                    for _ in 0..3000 {
                        // Its own index, between those of the others.
                        let index = random.below(40) as u32 * 3 + thread as u32;
                        assert_eq!(put(client, &mut cx, pool, index, random.next()), 1);
                        assert_eq!(client.flush_page(pool, SWAP, index), 1);
                        assert!(get(client, &mut cx, pool, index).is_err());
                    }
                });
            }
        });
    }
}

#[test]
fn rule_6_a_frozen_client_puts_no_new_key() {
    let mut lab = Lab::with_pools();
    for pool in [0, 1] {
        assert_eq!(lab.put(pool, 0, 1), 1);
        assert_eq!(lab.put(pool, 1, 1), 1);
        lab.client.freeze();
        assert!(lab.client.stats().frozen);
        assert_eq!(lab.put(pool, 2, 1), -EFROZEN);
        assert_eq!(lab.put(pool, 0, 2), 1, "it is there");
        assert_eq!(lab.get(pool, 2), Err(0));
        assert_eq!(lab.get(pool, 0), Ok(page(2)));
        lab.client.thaw();
        assert_eq!(lab.put(pool, 2, 1), 1);
        assert_eq!(lab.client.flush_object(pool, SWAP), 1);
    }
}

#[test]
fn rule_6_a_frozen_clients_flushes_are_done_and_answered_as_frozen() {
    let mut lab = Lab::with_pools();
    for pool in [0, 1] {
        for index in 0..3 {
            assert_eq!(lab.put(pool, index, 1), 1);
        }
        lab.client.freeze();
        assert_eq!(lab.client.flush_page(pool, SWAP, 0), -EFROZEN);
        assert_eq!(lab.client.flush_page(pool, SWAP, 7), -EFROZEN);
        assert_eq!(lab.get(pool, 0), Err(0));
        assert_eq!(lab.client.flush_object(pool, SWAP), -EFROZEN);
        assert_eq!(lab.get(pool, 1), Err(-EEMPTY));
        lab.client.thaw();
    }
}

/// When `freeze` returns, no put that began before it can bring a new key any more.
#[test]
fn rule_6_freezing_waits_for_the_puts_under_way() {
    let lab = Lab::with_pools();
    for round in 0..30 {
        let done = AtomicBool::new(false);
        let client = &lab.client;
        std::thread::scope(|scope| {
            let done = &done;
            for thread in 0..2 {
                scope.spawn(move || {
                    let mut cx = Context::new();
                    for index in (0..).map(|index| index * 2 + thread) {
                        let answer = put(client, &mut cx, 0, index, index.into());
                        assert!([1, -EFROZEN].contains(&answer));
                        if answer == -EFROZEN || done.load(SeqCst) {
                            break;
                        }
                    }
                });
            }
            std::thread::sleep(std::time::Duration::from_micros(50 * round));
            client.freeze();
            let pages = || client.stats().pools[0].stats.pages;
            let before = pages();
            std::thread::sleep(std::time::Duration::from_micros(500));
            assert_eq!(pages(), before);
            done.store(true, SeqCst);
        });
        client.thaw();
        assert_eq!(client.flush_object(0, SWAP), 1);
    }
}

#[test]
fn rule_6_one_clients_freeze_is_no_others() {
    let mut lab = Lab::new();
    let other = lab.store.client("b").unwrap();
    for (name, client) in [("a", &lab.client), ("b", &other)] {
        lab.store.authorize(UUID, name);
        assert_eq!(client.new_pool(CACHE | SHARED, UUID), 0);
    }
    lab.client.freeze();
    assert_eq!(lab.put(0, 0, 1), -EFROZEN);
    assert_eq!(put(&other, &mut lab.cx, 0, 0, 1), 1);
    assert_eq!(lab.put(0, 0, 2), 1, "it is there by now");
    assert_eq!(get(&other, &mut lab.cx, 0, 0), Ok(page(2)));
}

/// A block device can't be told to wait, so the host does not ask it to: it stops the guest.
#[test]
fn rule_6_freezing_leaves_the_hosts_own_device_alone() {
    let mut lab = Lab::new();
    let device = lab.client.device_pool().unwrap();
    lab.client.freeze();
    assert_eq!(device.put(&mut lab.cx, SWAP, 0, &page(1)), Ok(()));
}

#[test]
fn rule_7_a_shared_pool_takes_the_hosts_authorization() {
    let mut lab = Lab::new();
    let (two, stranger) = (
        lab.store.client("b").unwrap(),
        lab.store.client("c").unwrap(),
    );
    lab.store.authorize(UUID, "a");
    lab.store.authorize(UUID, "b");
    for client in [&lab.client, &two, &stranger] {
        assert_eq!(client.new_pool(CACHE | SHARED, UUID), 0);
    }
    let kinds = [&lab.client, &two, &stranger].map(|client| client.stats().pools[0].kind);
    assert_eq!(kinds, [Kind::Shared, Kind::Shared, Kind::Ephemeral]);
    assert_eq!(lab.put(0, 0, 1), 1);
    assert_eq!(get(&two, &mut lab.cx, 0, 0), Ok(page(1)));
    assert_eq!(get(&stranger, &mut lab.cx, 0, 0), Err(-EEMPTY));
    // Nor does the stranger's page get to the others.
    assert_eq!(put(&stranger, &mut lab.cx, 0, 1, 2), 1);
    assert_eq!(lab.get(0, 1), Err(0));
    lab.store.revoke(UUID, "b");
    assert_eq!(two.new_pool(CACHE | SHARED, UUID), 1);
    assert_eq!(get(&two, &mut lab.cx, 1, 0), Err(-EEMPTY));
}

#[test]
fn rule_7_a_uuid_of_ones_is_never_shared() {
    let mut lab = Lab::new();
    let ones = Uuid([u64::MAX; 2]);
    let other = lab.store.client("b").unwrap();
    for (name, client) in [("a", &lab.client), ("b", &other)] {
        lab.store.authorize(ones, name);
        assert_eq!(client.new_pool(CACHE | SHARED, ones), 0);
    }
    assert_eq!(lab.put(0, 0, 1), 1);
    assert_eq!(get(&other, &mut lab.cx, 0, 0), Err(-EEMPTY));
    assert_eq!(lab.get(0, 0), Ok(page(1)));
    assert_eq!(
        lab.get(0, 0),
        Err(-EEMPTY),
        "it is private, so a get takes it out"
    );
}

#[test]
fn rule_7_a_shared_pool_goes_with_its_last_member() {
    let mut lab = Lab::new();
    let other = lab.store.client("b").unwrap();
    for (name, client) in [("a", &lab.client), ("b", &other)] {
        lab.store.authorize(UUID, name);
        assert_eq!(client.new_pool(CACHE | SHARED, UUID), 0);
    }
    // A client may be a member twice.
    assert_eq!(lab.client.new_pool(CACHE | SHARED, UUID), 1);
    assert_eq!(lab.put(1, 0, 1), 1);
    assert_eq!(lab.client.destroy_pool(0), 1);
    assert_eq!(lab.get(1, 0), Ok(page(1)));
    lab.store.remove_client("a").unwrap();
    assert_eq!(lab.get(1, 0), Err(-ENODEV));
    assert_eq!(get(&other, &mut lab.cx, 0, 0), Ok(page(1)));
    assert_eq!(other.destroy_pool(0), 1);
    let usage = lab.store.usage().unwrap();
    assert_eq!((usage.pages, usage.data, usage.fragmentation), (0, 0, 0));
    assert_eq!(other.new_pool(CACHE | SHARED, UUID), 0);
    assert_eq!(get(&other, &mut lab.cx, 0, 0), Err(-EEMPTY));
}

#[test]
fn the_ends_of_the_number_space_are_places_like_all_others() {
    let lab = Lab::with_memory(32 * MIB);
    assert_eq!(lab.client.new_pool(CACHE | PERSIST, NOBODY), 0);
    let mut cx = Context::new();
    let words = [0, 1, u64::MAX / 2, u64::MAX - 1, u64::MAX];
    let objects = (0..125).map(|n| ObjectId([words[n / 25], words[n / 5 % 5], words[n % 5]]));
    let indices = [0, 1, 511, 512, 1 << 18, 1 << 27, u32::MAX - 1, u32::MAX];
    let keys = objects.flat_map(|object| indices.map(|index| (object, index)));
    let keys: Vec<_> = (0..).zip(keys).collect();
    for &(seed, (object, index)) in &keys {
        let answer = lab.client.put_page(&mut cx, 0, object, index, &page(seed));
        assert_eq!(answer, 1);
    }
    for &(seed, (object, index)) in &keys {
        let mut out = [0; PAGE_SIZE];
        let answer = lab.client.get_page(&mut cx, 0, object, index, &mut out);
        assert_eq!((answer, out), (1, page(seed)));
        assert_eq!(lab.client.flush_page(0, object, index), 1);
    }
    let usage = lab.store.usage().unwrap();
    assert_eq!((usage.pages, usage.data, usage.fragmentation), (0, 0, 0));
}

/// Uncompressed where the host says so; same-filled pages take no room either way.
#[test]
fn a_clients_pages_are_compressed_unless_the_host_says_otherwise() {
    let mut lab = Lab::with_pools();
    assert_eq!(lab.put(0, 0, 1), 1);
    let plain = Terms {
        compress: false,
        ..Terms::default()
    };
    lab.client.settle(plain).unwrap();
    assert_eq!(lab.put(0, 1, 1), 1);
    assert_eq!(lab.put(0, 2, 4), 1);
    let stats = lab.client.stats().pools[0].stats;
    assert_eq!((stats.pages, stats.raw, stats.same_filled), (3, 1, 1));
    assert_eq!(lab.get(0, 0), Ok(page(1)));
    assert_eq!(lab.get(0, 1), Ok(page(1)));
}

/// Puts, gets and flushes in a pool that is being destroyed: each is answered as before or after.
#[test]
fn a_pool_that_is_being_destroyed_takes_nothing_more() {
    let lab = Lab::with_pools();
    let client = &lab.client;
    for round in 0..40 {
        std::thread::scope(|scope| {
            for thread in 0..2_u32 {
                scope.spawn(move || {
                    let mut cx = Context::new();
                    for index in (0..).map(|n| n * 2 + thread) {
                        let answers = [
                            put(client, &mut cx, 2, index % 900, index.into()),
                            get(client, &mut cx, 2, index % 700).map_or_else(|no| no, |_| 1),
                            client.flush_page(2, SWAP, index % 500),
                        ];
                        if index > 20 && answers[0] == -ENODEV {
                            break;
                        }
                        let known = [1, 0, -ENODEV, -EEMPTY];
                        assert!(answers.iter().all(|answer| known.contains(answer)));
                    }
                });
            }
            let flags = if round % 2 == 0 {
                CACHE
            } else {
                CACHE | PERSIST
            };
            assert_eq!(client.new_pool(flags, NOBODY), 2);
            std::thread::sleep(std::time::Duration::from_micros(200 * (round % 7)));
            assert_eq!(client.destroy_pool(2), 1);
        });
        let usage = lab.store.usage().unwrap();
        assert_eq!((usage.pages, usage.data, usage.fragmentation), (0, 0, 0));
    }
}

/// A hundred clients that create, fill and destroy pools as they please, each with pages of its
/// own making, and a few removed and made anew.
#[test]
fn a_hundred_clients_create_and_destroy_pools_at_random() {
    let lab = Lab::with_memory(64 * MIB);
    let store = &lab.store;
    for number in 0..100 {
        store.authorize(UUID, &format!("c{number}"));
    }
    let refused = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for number in 0..100_u64 {
            let refused = &refused;
            scope.spawn(move || {
                let name = format!("c{number}");
                let mut client = store.client(&name).unwrap();
                let mut cx = Context::new();
                let mut random = Random(number);
                // A page says whose it is.
                let mine = |seed: u64| {
                    let mut page = page(seed);
                    page[..8].copy_from_slice(&number.to_ne_bytes());
                    page
                };
                for _ in 0..150 {
                    let pool = random.below(18) as i32 - 1;
                    let index = random.below(30) as u32;
                    match random.below(12) {
                        0..3 => {
                            let flags = [CACHE, CACHE | PERSIST, CACHE | SHARED];
                            let flags = flags[random.below(3) as usize];
                            let answer = client.new_pool(flags, UUID);
                            if answer == -ENOMEM {
                                refused.store(true, SeqCst);
                            } else {
                                assert!((0..16).contains(&answer));
                            }
                        }
                        3 => {
                            let answer = client.destroy_pool(pool);
                            assert!([1, -ENODEV].contains(&answer));
                        }
                        4 if random.below(8) == 0 => {
                            store.remove_client(&name).unwrap();
                            assert_eq!(client.new_pool(CACHE, UUID), -ENODEV);
                            client = store.client(&name).unwrap();
                        }
                        4..9 => {
                            let page = mine(random.next());
                            let answer = client.put_page(&mut cx, pool, SWAP, index, &page);
                            assert!([1, -ENODEV, -ENOMEM, -ENOSPC].contains(&answer));
                        }
                        _ => {
                            let shared = client.stats().pools.iter().any(|p| {
                                p.id.map(i32::from) == Some(pool) && p.kind == Kind::Shared
                            });
                            if let Ok(page) = get(&client, &mut cx, pool, index) {
                                let whose = u64::from_ne_bytes(*page.first_chunk().unwrap());
                                assert!(shared || whose == number, "a page of c{whose}");
                            }
                        }
                    }
                }
            });
        }
    });
    assert!(refused.load(SeqCst), "the pool table was full at times");
    let mut pages = 0;
    for number in 0..100 {
        let client = store.client(&format!("c{number}")).unwrap();
        let own = client.stats().pools;
        let persistent = own.iter().filter(|pool| pool.kind == Kind::Persistent);
        pages += persistent.map(|pool| pool.stats.pages).sum::<u64>();
    }
    let Lab {
        store,
        client,
        arena,
        ..
    } = lab;
    drop((store, client));
    let (store, recovery) = arena.open(64 * MIB);
    assert_eq!((recovery.pages, recovery.dropped), (pages, 0));
    assert_eq!(recovery.warnings, [""; 0]);
    for name in store.clients() {
        store.remove_client(&name).unwrap();
    }
    let usage = store.usage().unwrap();
    let held = (usage.data, usage.fragmentation, usage.meta);
    assert_eq!(held, (0, 0, 64 * 1024));
}

#[test]
fn the_host_lists_its_clients() {
    let mut lab = Lab::with_pools();
    assert_eq!(lab.client.new_pool(CACHE | PERSIST, UUID), 2);
    for index in 0..5 {
        assert_eq!(lab.put(2, index, 1), 1);
    }
    lab.store
        .client("b")
        .unwrap()
        .settle(Terms {
            weight: 7,
            cap: Some(3 * MIB),
            reservation: MIB,
            compress: false,
            exclusive: true,
        })
        .unwrap();
    lab.store.client("b").unwrap().freeze();
    let list = lab.store.list();
    let names: Vec<_> = list.iter().map(|client| client.name.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!((list[0].flags(), list[1].flags()), (1, 2));
    assert_eq!(
        (list[1].terms.weight, list[1].terms.cap),
        (7, Some(3 * MIB))
    );
    let pools: Vec<_> = list[0]
        .pools
        .iter()
        .map(|pool| (pool.id, pool.flags(), pool.uuid, pool.stats.pages))
        .collect();
    let expected = [
        (Some(0), CACHE | PERSIST, NOBODY, 0),
        (Some(1), CACHE, NOBODY, 0),
        (Some(2), CACHE | PERSIST, UUID, 5),
    ];
    assert_eq!(pools, expected);
}

#[test]
fn the_host_takes_back_what_may_vanish_and_nothing_else() {
    let mut lab = Lab::with_pools();
    for pool in [0, 1] {
        for index in 0..200 {
            assert_eq!(lab.put(pool, index, 3), 1);
        }
    }
    // Half the pages, which do not shrink, may vanish.
    assert!(lab.store.freeable().unwrap() > 200 * PAGE_SIZE as u64);
    assert_eq!(lab.client.flush_ephemeral(), 200);
    assert_eq!(lab.client.flush_ephemeral(), 0);
    assert_eq!(lab.get(1, 0), Err(-EEMPTY));
    assert_eq!(lab.get(0, 0), Ok(page(3)));
    let (usage, freeable) = (lab.store.usage().unwrap(), lab.store.freeable().unwrap());
    assert_eq!((usage.pages, usage.spare), (200, freeable));
}

#[test]
fn a_new_session_of_the_guest_finds_no_pool_that_may_be_stale() {
    let mut lab = Lab::with_pools();
    let other = lab.store.client("b").unwrap();
    for (client, name, id) in [(&lab.client, "a", 2), (&other, "b", 0)] {
        lab.store.authorize(UUID, name);
        assert_eq!(client.new_pool(CACHE | SHARED, UUID), id);
    }
    for pool in [0, 1, 2] {
        assert_eq!(lab.put(pool, 0, 3), 1);
    }
    lab.client.drop_pools(false);
    assert_eq!(lab.get(0, 0), Ok(page(3)));
    assert_eq!(lab.get(1, 0), Err(-ENODEV));
    assert_eq!(lab.get(2, 0), Err(-ENODEV));
    // What one member has flushed must not come back by way of another.
    assert_eq!(get(&other, &mut lab.cx, 0, 0), Err(-EEMPTY));
    lab.client.device_pool().unwrap();
    lab.client.drop_pools(true);
    assert_eq!(lab.get(0, 0), Err(-ENODEV));
    assert_eq!(lab.client.new_pool(CACHE | PERSIST, NOBODY), 0);
    assert_eq!(lab.get(0, 0), Err(-EEMPTY));
    // The host's own pool has no number, and stays.
    assert_eq!(lab.client.stats().pools.len(), 2);
}

#[test]
fn a_clients_totals_outlast_its_pools() {
    let mut lab = Lab::with_pools();
    for pool in [0, 1] {
        for index in 0..3 {
            assert_eq!(lab.put(pool, index, 3), 1);
        }
        assert_eq!(lab.get(pool, 0), Ok(page(3)));
    }
    let before = lab.client.stats().totals;
    assert_eq!((before.persistent.pages, before.ephemeral.pages), (3, 2));
    assert_eq!((before.persistent.puts, before.ephemeral.get_hits), (3, 1));
    lab.client.drop_pools(true);
    assert_eq!(lab.client.new_pool(CACHE, NOBODY), 0);
    assert_eq!(lab.put(0, 0, 3), 1);
    let after = lab.client.stats().totals;
    assert_eq!((after.persistent.pages, after.ephemeral.pages), (0, 1));
    assert_eq!((after.persistent.puts, after.ephemeral.puts), (3, 4));
    assert_eq!(after.persistent.stored_bytes, 0);
}

#[test]
fn a_run_of_pages_is_flushed_as_far_as_there_are_indices() {
    let mut lab = Lab::with_pools();
    let indices = [0, 5, 600, u32::MAX - 1, u32::MAX];
    for index in indices {
        assert_eq!(lab.put(0, index, 3), 1);
    }
    assert_eq!(lab.client.flush_pages(0, SWAP, 1, 600), 1);
    assert_eq!(
        indices.map(|index| lab.get(0, index).is_ok()),
        [true, false, false, true, true]
    );
    assert_eq!(lab.client.flush_pages(0, SWAP, u32::MAX, u32::MAX), 1);
    assert_eq!(
        indices.map(|index| lab.get(0, index).is_ok()),
        [true, false, false, true, false]
    );
    assert_eq!(lab.client.flush_pages(0, SWAP, 0, u32::MAX), 1);
    assert_eq!(lab.client.stats().totals.persistent.pages, 0);
    assert_eq!(lab.client.flush_pages(3, SWAP, 0, 1), -ENODEV);
}

/// docs/semantics.md names tests: they are there, and so is every test of this file in it.
#[test]
fn the_document_names_tests_that_exist() {
    let here = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let document = std::fs::read_to_string(here.join("../../../docs/semantics.md")).unwrap();
    let tests = |binary: &str| {
        let path = here.join("tests").join(binary).with_extension("rs");
        std::fs::read_to_string(path).unwrap_or_default()
    };
    let named: Vec<_> = document
        .split('`')
        .filter_map(|code| code.split_once("::"))
        .filter(|(binary, _)| !tests(binary).is_empty())
        .collect();
    assert!(named.len() > 60);
    for (binary, test) in &named {
        let there = tests(binary).contains(&format!("#[test]\nfn {test}() {{"));
        assert!(there, "{binary}::{test}");
    }
    for binary in ["semantics", "ancestors", "save"] {
        for test in tests(binary).split("#[test]\nfn ").skip(1) {
            let test = test.split('(').next().unwrap();
            let known = named.contains(&(binary, test));
            assert!(
                known || test.starts_with("the_document"),
                "{binary}::{test}"
            );
        }
    }
}
