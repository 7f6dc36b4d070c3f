// SPDX-License-Identifier: GPL-2.0-or-later
//! Pools that come and go while others use them.

#![allow(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test may fail"
)]

mod common;

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use common::abi::{CACHE, ENODEV, ENOMEM, ENOSPC, Lab, NOBODY, UUID, get, put};
use common::{MIB, Random, SWAP, page};
use kzt_store::tmem::EEMPTY;
use kzt_store::tmem::flags::{PERSIST, SHARED};
use kzt_store::{Context, Kind};

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
