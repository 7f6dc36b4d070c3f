// SPDX-License-Identifier: GPL-2.0-or-later
//! Bugs that tmem and zcache had, one a test. `mutants.rs` puts each of them back into a copy of
//! the source and sees that its test fails.

#![allow(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test may fail"
)]

mod common;

use std::sync::mpsc;
use std::time::Duration;

use common::abi::{CACHE, EFAULT, EIO, ENODEV, EPERM, NOBODY, get, put_bytes};
use common::{ArenaPath, MIB, Random, SWAP, page};
use kzt_store::tmem::flags::{PERSIST, SHARED};
use kzt_store::tmem::{EEMPTY, op};
use kzt_store::{Context, Handle, ObjectId, PAGE_SIZE, Uuid};

/// Migration's "next page" began behind the first page of each pool, and read the list's head as
/// a page where there was but one.
#[test]
fn a_save_begins_with_the_first_page_of_each_pool() {
    let arena = ArenaPath::new();
    let (store, _) = arena.open(4 * MIB);
    let client = store.client("a").unwrap();
    let mut cx = Context::new();
    // Pools of one page, of two, and of none.
    for (pool, pages) in [(0, 1), (1, 2), (2, 0), (3, 1)] {
        assert_eq!(client.new_pool(CACHE | PERSIST, NOBODY), pool);
        for index in 0..pages {
            assert_eq!(put_bytes(&client, &mut cx, pool, index, &page(1)), 1);
        }
    }
    let mut save = client.save().unwrap();
    let mut found = Vec::new();
    let mut out = [0; PAGE_SIZE];
    while let Some(Handle { pool, index, .. }) = save.next_page(&mut cx, &mut out).unwrap() {
        assert_eq!(out, page(1));
        found.push((pool, index));
    }
    assert_eq!(found, [(0, 0), (1, 0), (1, 1), (3, 0)]);
}

/// An exclusive get that failed to copy the page out left it in the list of pages and not in the
/// tree: it took memory that nobody could get back.
#[test]
fn an_exclusive_get_that_fails_leaves_nothing_behind() {
    let arena = ArenaPath::new();
    let (store, _) = arena.open(4 * MIB);
    let client = store.client("a").unwrap();
    assert_eq!(client.new_pool(CACHE, NOBODY), 0);
    let mut cx = Context::new();
    assert_eq!(put_bytes(&client, &mut cx, 0, 0, &page(1)), 1);
    arena.damage_the_only_block();
    assert_eq!(get(&client, &mut cx, 0, 0), Err(-EIO));
    assert_eq!(get(&client, &mut cx, 0, 0), Err(-EEMPTY));
    let usage = store.usage().unwrap();
    assert_eq!((usage.pages, usage.data, usage.fragmentation), (0, 0, 0));
    assert_eq!(client.stats().pools[0].stats.pages, 0);
}

/// Every operation took a global lock for writing first: one guest held up all others.
#[test]
fn no_operation_waits_for_another_clients() {
    let arena = ArenaPath::new();
    let (store, _) = arena.open(8 * MIB);
    let slow = store.open_pool("slow").unwrap();
    let client = store.client("a").unwrap();
    let (done, finished) = mpsc::channel();
    std::thread::scope(|scope| {
        let mut cx = Context::new();
        let work = || {
            scope.spawn(|| {
                let mut cx = Context::new();
                for flags in [CACHE, CACHE | PERSIST] {
                    let pool = client.new_pool(flags, NOBODY);
                    assert_eq!(put_bytes(&client, &mut cx, pool, 0, &page(1)), 1);
                    assert_eq!(get(&client, &mut cx, pool, 0), Ok(page(1)));
                    assert_eq!(client.flush_page(pool, SWAP, 0), 1);
                    assert_eq!(client.flush_object(pool, SWAP), 1);
                    assert_eq!(client.destroy_pool(pool), 1);
                }
                client.freeze();
                client.thaw();
                store.maintain();
                done.send(()).unwrap();
            });
            // The other client's operation lasts until all this is done, if that ever comes.
            finished.recv_timeout(Duration::from_secs(20))
        };
        let mut waited = None;
        slow.update(&mut cx, SWAP, 0, |_| waited = Some(work()))
            .unwrap();
        assert_eq!(waited, Some(Ok(())), "it waited for another client");
    });
}

/// XSA-15: a negative pool number was an index before the array.
#[test]
fn a_negative_pool_number_is_no_index() {
    let arena = ArenaPath::new();
    let (store, _) = arena.open(8 * MIB);
    let client = store.client("a").unwrap();
    let mut cx = Context::new();
    for pool in 0..16 {
        assert_eq!(client.new_pool(CACHE | PERSIST, NOBODY), pool);
        assert_eq!(put_bytes(&client, &mut cx, pool, 0, &page(1)), 1);
    }
    for pool in (-300..0).chain([i32::MIN, i32::MIN + 1, i32::MIN + 15, -65_536, -65_535]) {
        assert_eq!(
            put_bytes(&client, &mut cx, pool, 0, &page(2)),
            -ENODEV,
            "{pool}"
        );
        assert_eq!(get(&client, &mut cx, pool, 0), Err(-ENODEV), "{pool}");
        assert_eq!(client.flush_page(pool, SWAP, 0), -ENODEV, "{pool}");
        assert_eq!(client.flush_object(pool, SWAP), -ENODEV, "{pool}");
        assert_eq!(client.destroy_pool(pool), -ENODEV, "{pool}");
    }
    for pool in 0..16 {
        assert_eq!(get(&client, &mut cx, pool, 0), Ok(page(1)));
    }
}

/// The host's part was open to guests. Here it has no number that a guest could say; nor has the
/// pool that the host's own devices use.
#[test]
fn what_is_the_hosts_is_out_of_a_guests_reach() {
    for number in [op::CONTROL, op::AUTH, op::RESTORE_NEW] {
        assert_eq!(op::refusal(number), -EPERM);
    }
    let arena = ArenaPath::new();
    let (store, _) = arena.open(8 * MIB);
    let client = store.client("a").unwrap();
    let device = client.device_pool().unwrap();
    let mut cx = Context::new();
    device.put(&mut cx, SWAP, 0, &page(1)).unwrap();
    for pool in -300..300 {
        assert_eq!(get(&client, &mut cx, pool, 0), Err(-ENODEV), "{pool}");
        assert_eq!(
            put_bytes(&client, &mut cx, pool, 0, &page(2)),
            -ENODEV,
            "{pool}"
        );
        assert_eq!(client.destroy_pool(pool), -ENODEV, "{pool}");
    }
    let mut out = [0; PAGE_SIZE];
    assert_eq!(device.get(&mut cx, SWAP, 0, &mut out), Ok(true));
    assert_eq!(out, page(1));
}

/// A client number that a guest said was believed. Here nothing that it says is a client: not a
/// pool's number, and not a UUID, which it may have from anywhere.
#[test]
fn a_client_is_not_who_it_says() {
    let arena = ArenaPath::new();
    let (store, _) = arena.open(8 * MIB);
    let uuid = Uuid([1, 2]);
    let [one, two] = ["one", "two"].map(|name| store.client(name).unwrap());
    store.authorize(uuid, "one");
    let mut cx = Context::new();
    for flags in [CACHE | PERSIST, CACHE | SHARED] {
        let pool = one.new_pool(flags, uuid);
        assert_eq!(two.new_pool(flags, uuid), pool);
        assert_eq!(put_bytes(&one, &mut cx, pool, 0, &page(1)), 1);
        assert_eq!(get(&two, &mut cx, pool, 0), Err(-EEMPTY));
        assert_eq!(put_bytes(&two, &mut cx, pool, 1, &page(2)), 1);
        assert_eq!(get(&one, &mut cx, pool, 1), Err(0));
        assert_eq!(two.flush_object(pool, SWAP), 1);
        assert_eq!(get(&one, &mut cx, pool, 0), Ok(page(1)));
    }
}

/// The size of what a guest handed over was not checked.
#[test]
fn a_page_has_a_pages_bytes() {
    let arena = ArenaPath::new();
    let (store, _) = arena.open(4 * MIB);
    let client = store.client("a").unwrap();
    assert_eq!(client.new_pool(CACHE | PERSIST, NOBODY), 0);
    let mut cx = Context::new();
    let bytes = [7; 3 * PAGE_SIZE];
    for length in (0..=bytes.len())
        .filter(|&length| length != PAGE_SIZE)
        .step_by(61)
    {
        assert_eq!(
            put_bytes(&client, &mut cx, 0, 0, &bytes[..length]),
            -EFAULT,
            "{length}"
        );
    }
    assert_eq!(get(&client, &mut cx, 0, 0), Err(-EEMPTY));
}

/// Assertions that a guest could make fail took the host down.
#[test]
fn nothing_that_a_guest_says_is_asserted() {
    let arena = ArenaPath::new();
    let (store, _) = arena.open(4 * MIB);
    let clients = ["a", "b"].map(|name| store.client(name).unwrap());
    store.authorize(NOBODY, "a");
    let mut random = Random(1);
    let mut cx = Context::new();
    let edge = |random: &mut Random| match random.below(8) {
        0 => random.next(),
        1 => 0,
        2 => u64::MAX,
        3 => u64::MAX - random.below(3),
        4 => 1 << random.below(64),
        5 => (1 << random.below(64)) - 1,
        _ => random.below(18),
    };
    for _ in 0..60_000 {
        let client = &clients[random.below(2) as usize];
        let (pool, index) = (edge(&mut random) as i32, edge(&mut random) as u32);
        let object = ObjectId([0; 3].map(|_: u64| edge(&mut random)));
        let answer = match random.below(8) {
            0 => {
                let kind = edge(&mut random) as u32;
                let flags = if random.below(2) == 0 {
                    kind
                } else {
                    CACHE | kind & 3
                };
                let uuid = Uuid([edge(&mut random), edge(&mut random)]);
                client.new_pool(flags, uuid)
            }
            1 => client.destroy_pool(pool),
            2 => client.flush_object(pool, object),
            3 => client.flush_page(pool, object, index),
            4 => {
                let bytes = [0; PAGE_SIZE];
                let length = edge(&mut random).min(PAGE_SIZE as u64) as usize;
                client.put_page(&mut cx, pool, object, index, &bytes[..length])
            }
            5 => client.get_page(&mut cx, pool, object, index, &mut [0; PAGE_SIZE]),
            _ => client.put_page(&mut cx, pool, object, index, &page(random.next())),
        };
        assert!((-1001..16).contains(&answer));
    }
}
