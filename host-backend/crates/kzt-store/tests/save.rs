// SPDX-License-Identifier: GPL-2.0-or-later
//! Saving a client and restoring it elsewhere, while its guest goes on.

#![allow(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test may fail"
)]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use common::abi::{CACHE, ENODEV, ENOMEM, ENOSPC, NOBODY};
use common::{ArenaPath, MIB, Random, SWAP, page};
use kzt_store::tmem::flags::{PERSIST, SHARED};
use kzt_store::tmem::{EEMPTY, EFROZEN};
use kzt_store::{Client, Context, GetError, Handle, Invalid, Kind, ObjectId, PAGE_SIZE, Page};
use kzt_store::{Save, SaveError, Store, StoreError, Uuid};

const SWAP_POOL: u32 = CACHE | PERSIST;

/// All that can be had of a save.
fn pages(save: &mut Save) -> BTreeMap<Handle, Page> {
    let mut cx = Context::new();
    let mut out = [0; PAGE_SIZE];
    let mut pages = BTreeMap::new();
    while let Some(handle) = save.next_page(&mut cx, &mut out).unwrap() {
        assert_eq!(pages.insert(handle, out), None, "each page once");
    }
    pages
}

fn handle(pool: u8, object: u64, index: u32) -> Handle {
    let object = ObjectId([0, object, 0]);
    Handle {
        pool,
        object,
        index,
    }
}

fn put(client: &Client, cx: &mut Context, at: Handle, seed: u64) -> i32 {
    client.put_page(cx, at.pool.into(), at.object, at.index, &page(seed))
}

fn flush(client: &Client, at: Handle) -> i32 {
    client.flush_page(at.pool.into(), at.object, at.index)
}

/// A store with a client and its persistent pool 0.
fn lab() -> (ArenaPath, Store, Arc<Client>, Context) {
    let arena = ArenaPath::new();
    let (store, _) = arena.open(32 * MIB);
    let client = store.client("a").unwrap();
    assert_eq!(client.new_pool(SWAP_POOL, NOBODY), 0);
    (arena, store, client, Context::new())
}

#[test]
fn a_save_has_every_page_of_every_persistent_pool() {
    let (_arena, store, client, mut cx) = lab();
    assert_eq!(client.new_pool(CACHE, NOBODY), 1);
    assert_eq!(client.new_pool(SWAP_POOL, NOBODY), 2);
    assert_eq!(client.new_pool(SWAP_POOL, NOBODY), 3);
    let mut expected = BTreeMap::new();
    let indices = [0, 1, 511, 512, 1 << 18, 1 << 27, u32::MAX];
    for object in 0..60 {
        for index in indices {
            let at = handle(0, object, index);
            let seed = object ^ u64::from(index);
            assert_eq!(put(&client, &mut cx, at, seed), 1);
            expected.insert(at, page(seed));
        }
    }
    // A pool with one page, one with none, and what is not saved.
    let only = handle(2, 9, 0);
    assert_eq!(put(&client, &mut cx, only, 5), 1);
    expected.insert(only, page(5));
    assert_eq!(put(&client, &mut cx, handle(1, 0, 0), 5), 1);
    let device = client.device_pool().unwrap();
    device.put(&mut cx, SWAP, 0, &page(1)).unwrap();
    let other = store.client("b").unwrap();
    assert_eq!(other.new_pool(SWAP_POOL, NOBODY), 0);
    assert_eq!(put(&other, &mut cx, handle(0, 0, 0), 77), 1);

    let mut save = client.save().unwrap();
    assert!(pages(&mut save) == expected);
    assert_eq!(save.next_invalid(), Ok(None));
}

#[test]
fn a_client_that_is_being_saved_is_frozen_until_it_is_done() {
    let (_arena, _store, client, mut cx) = lab();
    let (old, new) = (handle(0, 0, 0), handle(0, 0, 1));
    for frozen in [false, true] {
        assert_eq!(put(&client, &mut cx, old, 1), 1);
        if frozen {
            client.freeze();
        }
        let save = client.save().unwrap();
        assert!(client.stats().frozen);
        assert_eq!(client.save().err(), Some(SaveError::Busy));
        assert_eq!(client.new_pool(CACHE, NOBODY), -ENOMEM);
        assert_eq!(put(&client, &mut cx, new, 1), -EFROZEN);
        drop(save);
        assert_eq!(client.stats().frozen, frozen);
    }
    client.thaw();
    // Nor can it be thawed meanwhile.
    let save = client.save().unwrap();
    client.thaw();
    assert_eq!(put(&client, &mut cx, new, 1), -EFROZEN);
    drop(save);
    assert_eq!(put(&client, &mut cx, new, 1), 1);
}

#[test]
fn rule_6_a_put_on_an_existing_key_becomes_a_flush_during_a_save() {
    let (_arena, _store, client, mut cx) = lab();
    let at = handle(0, 3, 4);
    // Of any kind, be it one that needs no memory.
    for (seed, other) in [(1, 3), (3, 4), (4, 1)] {
        assert_eq!(put(&client, &mut cx, at, seed), 1);
        let mut save = client.save().unwrap();
        assert_eq!(put(&client, &mut cx, at, other), -ENOSPC);
        let mut out = [0; PAGE_SIZE];
        let answer = client.get_page(&mut cx, 0, at.object, at.index, &mut out);
        assert_eq!(answer, -EEMPTY);
        assert!(pages(&mut save).is_empty());
        let invalid = Invalid::Pages {
            pool: 0,
            object: at.object,
            first: 4,
            last: 4,
        };
        assert_eq!(save.next_invalid(), Ok(Some(invalid)));
        assert_eq!(save.next_invalid(), Ok(None));
    }
}

/// The guest puts, flushes and destroys as it pleases while it is saved and restored; then it is
/// stopped, and the copy is what it has, page for page.
#[test]
fn rule_5_what_is_restored_is_what_the_client_has_in_the_end() {
    for seed in 0..12 {
        let (_arena, _store, source, mut cx) = lab();
        assert_eq!(source.new_pool(SWAP_POOL, Uuid([1, 2])), 1);
        assert_eq!(source.new_pool(SWAP_POOL, NOBODY), 2);
        let mut random = Random(seed);
        let random_handle = |random: &mut Random| {
            let index = random.below(400) as u32;
            handle(random.below(3) as u8, random.below(5), index)
        };
        for _ in 0..3000 {
            let at = random_handle(&mut random);
            assert_eq!(put(&source, &mut cx, at, random.next()), 1);
        }

        let there = ArenaPath::new();
        let (store, _) = there.open(32 * MIB);
        let target = store.client("moved").unwrap();
        target.freeze();
        let mut save = source.save().unwrap();
        for pool in source.stats().pools {
            let id = pool.id.unwrap();
            target.restore_pool(id, pool.kind, pool.uuid).unwrap();
        }
        std::thread::scope(|scope| {
            let source = &source;
            scope.spawn(move || {
                let mut cx = Context::new();
                let mut random = Random(seed + 100);
                for _ in 0..2000 {
                    let at = random_handle(&mut random);
                    let answer = match random.below(1000) {
                        0..3 => source.flush_object(at.pool.into(), at.object),
                        3 if at.pool == 2 => source.destroy_pool(2),
                        4..400 => put(source, &mut cx, at, random.next()),
                        _ => flush(source, at),
                    };
                    assert!([1, -EFROZEN, -ENOSPC, -ENODEV].contains(&answer));
                }
            });
            let mut out = [0; PAGE_SIZE];
            let mut sent = 0;
            while let Some(at) = save.next_page(&mut cx, &mut out).unwrap() {
                target.restore_put(&mut cx, at, &out).unwrap();
                sent += 1;
                // Some of what is invalid may well be sent in between.
                if sent % 50 == 0 {
                    if let Some(invalid) = save.next_invalid().unwrap() {
                        target.restore_flush(invalid);
                    }
                }
            }
            assert!(sent > 100);
        });
        while let Some(invalid) = save.next_invalid().unwrap() {
            target.restore_flush(invalid);
        }
        drop(save);
        let (mut left, mut arrived) = (source.save().unwrap(), target.save().unwrap());
        assert!(pages(&mut left) == pages(&mut arrived), "seed {seed}");
        let pools = [&source, &target].map(|client| {
            let pools = client.stats().pools.into_iter();
            let facts = pools.map(|pool| (pool.id, pool.kind, pool.uuid, pool.stats.pages));
            facts.collect::<Vec<_>>()
        });
        assert_eq!(pools[0], pools[1]);
    }
}

#[test]
fn a_pool_that_is_destroyed_during_a_save_is_invalid() {
    let (_arena, _store, client, mut cx) = lab();
    assert_eq!(put(&client, &mut cx, handle(0, 0, 0), 1), 1);
    let mut save = client.save().unwrap();
    assert_eq!(pages(&mut save).len(), 1);
    assert_eq!(client.destroy_pool(0), 1);
    assert!(pages(&mut save).is_empty());
    assert_eq!(save.next_invalid(), Ok(Some(Invalid::Pool(0))));
    assert_eq!(save.next_invalid(), Ok(None));
}

/// The host keeps no more of it than it has promised to; the guest must not decide that.
#[test]
fn a_save_that_misses_too_much_has_to_begin_anew() {
    let (_arena, _store, client, mut cx) = lab();
    let places = 70_000;
    for index in 0..places {
        // Neighbours would be one record.
        assert_eq!(put(&client, &mut cx, handle(0, 0, index * 2), 0), 1);
    }
    let mut save = client.save().unwrap();
    for index in 0..places {
        assert_eq!(flush(&client, handle(0, 0, index * 2)), -EFROZEN);
    }
    assert_eq!(save.next_invalid(), Err(SaveError::Overrun));
    drop(save);
    let mut save = client.save().unwrap();
    assert!(pages(&mut save).is_empty());
    assert_eq!(save.next_invalid(), Ok(None));
}

#[test]
fn flushed_neighbours_are_invalid_in_one_piece() {
    let (_arena, _store, client, mut cx) = lab();
    for index in 0..1000 {
        assert_eq!(put(&client, &mut cx, handle(0, 0, index), 0), 1);
    }
    let mut save = client.save().unwrap();
    for index in 100..1000 {
        assert_eq!(flush(&client, handle(0, 0, index)), -EFROZEN);
    }
    let invalid = Invalid::Pages {
        pool: 0,
        object: ObjectId([0; 3]),
        first: 100,
        last: 999,
    };
    assert_eq!(save.next_invalid(), Ok(Some(invalid)));
    assert_eq!(save.next_invalid(), Ok(None));
    assert_eq!(pages(&mut save).len(), 100);
}

#[test]
fn a_damaged_page_is_not_saved_as_if_it_were_well() {
    let (arena, _store, client, mut cx) = lab();
    assert_eq!(put(&client, &mut cx, handle(0, 0, 0), 1), 1);
    arena.damage_the_only_block();
    let mut save = client.save().unwrap();
    for _ in 0..2 {
        let next = save.next_page(&mut cx, &mut [0; PAGE_SIZE]);
        assert_eq!(next, Err(GetError::Corrupt));
    }
    flush(&client, handle(0, 0, 0));
    assert!(pages(&mut save).is_empty());
}

#[test]
fn restoring_is_as_careful_as_a_guests_operations() {
    let (_arena, store, client, mut cx) = lab();
    let restore = |id, kind| client.restore_pool(id, kind, NOBODY);
    assert_eq!(restore(0, Kind::Persistent), Err(StoreError::PoolExists));
    assert_eq!(restore(16, Kind::Persistent), Err(StoreError::NoDevice));
    assert_eq!(restore(255, Kind::Ephemeral), Err(StoreError::NoDevice));
    assert_eq!(restore(9, Kind::Ephemeral), Ok(()));
    // Shared where it came from; here it takes this host's authorization.
    assert_eq!(restore(10, Kind::Shared), Ok(()));
    store.authorize(NOBODY, "a");
    assert_eq!(restore(11, Kind::Shared), Ok(()));
    let kinds: Vec<_> = client.stats().pools.iter().map(|pool| pool.kind).collect();
    let private = Kind::Ephemeral;
    assert_eq!(kinds, [Kind::Persistent, private, private, Kind::Shared]);
    let absent = handle(5, 0, 0);
    let put = client.restore_put(&mut cx, absent, &page(1));
    assert_eq!(put, Err(kzt_store::PutError::NoDevice));
    for id in [5, 16, 255] {
        client.restore_flush(Invalid::Pool(id));
        client.restore_flush(Invalid::Pages {
            pool: id,
            object: SWAP,
            first: 0,
            last: u32::MAX,
        });
    }
    assert_eq!(client.stats().pools.len(), 4);
    assert_eq!(client.new_pool(CACHE | SHARED, NOBODY), 1);
}
