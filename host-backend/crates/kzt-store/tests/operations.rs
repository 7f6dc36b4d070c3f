// SPDX-License-Identifier: GPL-2.0-or-later
//! The operations of the tmem ABI, and each of their answers.

#![allow(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test may fail"
)]

mod common;

use common::abi::{
    CACHE, EFAULT, EIO, ENODEV, ENOMEM, ENOSPC, ENOSYS, EPERM, Lab, NOBODY, UUID, get, put,
};
use common::{MIB, SWAP, page};
use kzt_store::tmem::flags::{PERSIST, SHARED, VERSION_SHIFT};
use kzt_store::tmem::{EEMPTY, op};
use kzt_store::{Client, Context, ObjectId, PAGE_SIZE, Terms, Uuid};

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
