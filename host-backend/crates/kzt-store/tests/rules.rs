// SPDX-License-Identifier: GPL-2.0-or-later
//! The rules of the tmem ABI, as docs/semantics.md numbers them.

#![allow(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test may fail"
)]

mod common;

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use common::abi::{CACHE, ENODEV, Lab, UUID, get, put};
use common::{MIB, Random, SWAP, page};
use kzt_store::tmem::flags::SHARED;
use kzt_store::tmem::{EEMPTY, EFROZEN};
use kzt_store::{Context, Kind, Terms, Uuid};

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
