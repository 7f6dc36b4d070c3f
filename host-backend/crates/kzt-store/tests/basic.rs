// SPDX-License-Identifier: GPL-2.0-or-later
//! One behaviour a test.

#![allow(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test may fail"
)]

mod common;

use common::{ArenaPath, MIB, SWAP, page};
use kzt_store::{Codec, Context, GetError, ObjectId, OpenError, Origin, PAGE_SIZE, Page};
use kzt_store::{PutError, Store, StoreError};

#[test]
fn a_get_returns_the_bytes_of_the_latest_put() {
    for codec in [
        Codec::None,
        Codec::Lzo,
        Codec::Lz4,
        Codec::Zstd(1),
        Codec::Zstd(-3),
    ] {
        let arena = ArenaPath::new();
        let (store, recovery) = Store::open(&arena.config(8 * MIB, codec)).unwrap();
        assert_eq!(recovery.origin, Origin::New);
        assert!(recovery.warnings.is_empty());
        let pool = store.open_pool("a").unwrap();
        let mut cx = Context::new();
        let mut out: Page = [0; PAGE_SIZE];
        for round in 0..2 {
            for index in 0..400 {
                pool.put(&mut cx, SWAP, index, &page(u64::from(index + round)))
                    .unwrap();
            }
            for index in 0..400 {
                assert!(pool.get(&mut cx, SWAP, index, &mut out).unwrap());
                assert_eq!(out, page(u64::from(index + round)), "{codec} {index}");
            }
        }
        assert!(!pool.get(&mut cx, SWAP, 400, &mut out).unwrap());
        assert_eq!(pool.stats().pages, 400);
        assert_eq!(pool.stats().same_filled, 100);
    }
}

#[test]
fn pages_are_there_again_after_reopening() {
    let arena = ArenaPath::new();
    let mut cx = Context::new();
    let objects = [SWAP, ObjectId([1, 2, 3]), ObjectId([u64::MAX; 3])];
    let indices = [0, 1, 511, 512, 1 << 18, 1 << 27, u32::MAX];
    let before = {
        let (store, _) = arena.open(8 * MIB);
        for client in ["a", "b"] {
            let pool = store.open_pool(client).unwrap();
            for object in objects {
                for index in indices {
                    let seed = object.0[0] ^ u64::from(index) ^ u64::from(client.as_bytes()[0]);
                    pool.put(&mut cx, object, index, &page(seed)).unwrap();
                }
            }
        }
        store.usage().unwrap()
    };
    let (store, recovery) = arena.open(8 * MIB);
    assert_eq!(
        (recovery.origin, recovery.pools, recovery.pages),
        (Origin::Recovered, 2, 42)
    );
    assert_eq!(recovery.dropped, 0);
    let after = store.usage().unwrap();
    assert_eq!(
        (after.data, after.meta, after.fragmentation),
        (before.data, before.meta, before.fragmentation)
    );
    let mut out = [0; PAGE_SIZE];
    for client in ["a", "b"] {
        let pool = store.open_pool(client).unwrap();
        for object in objects {
            for index in indices {
                let seed = object.0[0] ^ u64::from(index) ^ u64::from(client.as_bytes()[0]);
                assert!(pool.get(&mut cx, object, index, &mut out).unwrap());
                assert_eq!(out, page(seed));
            }
        }
        for object in objects {
            assert_eq!(pool.flush_object(object), indices.len() as u64);
        }
    }
    let empty = store.usage().unwrap();
    assert_eq!((empty.data, empty.fragmentation, empty.pages), (0, 0, 0));
    assert_eq!(empty.meta, 64 * 1024, "no node or record is left behind");
}

#[test]
fn an_arena_is_opened_once_at_a_time() {
    let arena = ArenaPath::new();
    let (store, _) = arena.open(MIB);
    let second = Store::open(&arena.config(MIB, Codec::Lzo));
    assert!(matches!(second, Err(OpenError::Busy { .. })));
    drop(store);
    arena.open(MIB);
}

#[test]
fn a_full_store_refuses_new_keys_and_flushes_the_old_page_of_existing_ones() {
    let arena = ArenaPath::new();
    let (store, _) = arena.open(MIB);
    let pool = store.open_pool("a").unwrap();
    let mut cx = Context::new();
    let random = |index: u32| page(u64::from(index) * 4 + 3);
    let full = (0..10_000)
        .find(|&i| pool.put(&mut cx, SWAP, i, &random(i)).is_err())
        .unwrap();
    assert!(full > 150, "{full} random pages in 1 MiB");
    assert_eq!(
        pool.put(&mut cx, SWAP, full, &random(full)),
        Err(PutError::NoMemory)
    );
    // The same size goes in place of the old page.
    pool.put(&mut cx, SWAP, 0, &random(1000)).unwrap();
    // A page of a size for which there is no run: its class has none, and no frame is free.
    pool.put(&mut cx, SWAP, 1, &[7; PAGE_SIZE]).unwrap();
    pool.put(&mut cx, SWAP, full, &random(full)).unwrap();
    assert_eq!(
        pool.put(&mut cx, SWAP, 1, &random(1)),
        Err(PutError::NoSpace)
    );
    let mut out = [0; PAGE_SIZE];
    assert_eq!(
        pool.get(&mut cx, SWAP, 1, &mut out),
        Ok(false),
        "the old page is gone"
    );
    assert!(pool.get(&mut cx, SWAP, 0, &mut out).unwrap());
    assert_eq!(out, random(1000));
}

#[test]
fn a_destroyed_pool_answers_no_device_and_its_name_begins_anew() {
    let arena = ArenaPath::new();
    let (store, _) = arena.open(MIB);
    let old = store.open_pool("a").unwrap();
    let mut cx = Context::new();
    old.put(&mut cx, SWAP, 5, &page(2)).unwrap();
    store.destroy_pool("a").unwrap();
    let mut out = [0; PAGE_SIZE];
    assert_eq!(old.put(&mut cx, SWAP, 5, &page(2)), Err(PutError::NoDevice));
    assert_eq!(old.get(&mut cx, SWAP, 5, &mut out), Err(GetError::NoDevice));
    assert!(!old.flush(SWAP, 5));
    assert_eq!(store.destroy_pool("a"), Err(StoreError::NoDevice));
    let new = store.open_pool("a").unwrap();
    assert_eq!(new.get(&mut cx, SWAP, 5, &mut out), Ok(false));
    assert_eq!(store.clients(), ["a"]);
}

#[test]
fn an_update_changes_part_of_a_page() {
    let arena = ArenaPath::new();
    let (store, _) = arena.open(MIB);
    let pool = store.open_pool("a").unwrap();
    let mut cx = Context::new();
    pool.update(&mut cx, SWAP, 9, |page| page[100] = 1).unwrap();
    pool.update(&mut cx, SWAP, 9, |page| page[200] = 2).unwrap();
    let mut out = [0; PAGE_SIZE];
    assert!(pool.get(&mut cx, SWAP, 9, &mut out).unwrap());
    let mut expected = [0; PAGE_SIZE];
    (expected[100], expected[200]) = (1, 2);
    assert_eq!(out, expected);
}

#[test]
fn runs_alternate_and_cover_the_range() {
    let arena = ArenaPath::new();
    let (store, _) = arena.open(MIB);
    let pool = store.open_pool("a").unwrap();
    let mut cx = Context::new();
    let runs = |first, count| {
        let mut runs = Vec::new();
        pool.runs(SWAP, first, count, |pages, present| {
            runs.push((pages, present));
        });
        runs
    };
    assert_eq!(runs(0, 10), [(10, false)]);
    for index in [3, 4, 511, 512, 300_000] {
        pool.put(&mut cx, SWAP, index, &page(0)).unwrap();
    }
    assert_eq!(
        runs(0, 600),
        [(3, false), (2, true), (506, false), (2, true), (87, false)]
    );
    assert_eq!(runs(4, 1), [(1, true)]);
    assert_eq!(
        runs(513, u32::MAX - 513),
        [(299_487, false), (1, true), (u32::MAX - 300_001, false)]
    );
    assert_eq!(runs(u32::MAX, 1), [(1, false)]);
    assert_eq!(runs(5, 0), []);
}

#[test]
fn counters_count_pages() {
    let arena = ArenaPath::new();
    let (store, _) = arena.open(MIB);
    let pool = store.open_pool("a").unwrap();
    let mut cx = Context::new();
    let mut out = [0; PAGE_SIZE];
    // One of each kind: same-filled, compressible, raw.
    for (index, seed) in [(0, 4), (1, 1), (2, 3)] {
        pool.put(&mut cx, SWAP, index, &page(seed)).unwrap();
    }
    for index in 0..5 {
        let _ = pool.get(&mut cx, SWAP, index, &mut out);
    }
    pool.flush_range(SWAP, 1, 10);
    let stats = pool.stats();
    assert_eq!(
        (
            stats.pages,
            stats.same_filled,
            stats.raw,
            stats.stored_bytes
        ),
        (1, 1, 0, 0)
    );
    assert_eq!((stats.puts, stats.failed_puts), (3, 0));
    assert_eq!((stats.gets, stats.get_hits, stats.crc_errors), (5, 3, 0));
    assert_eq!((stats.flushes, stats.flush_found), (10, 2));
}

#[test]
fn names_are_checked_and_the_pool_table_has_an_end() {
    let arena = ArenaPath::new();
    let (store, _) = arena.open(MIB);
    for name in ["", "a b", "é", "a\0", &"x".repeat(33)] {
        assert!(
            matches!(store.open_pool(name), Err(StoreError::BadName)),
            "{name:?}"
        );
    }
    let opened = (0..10_000)
        .take_while(|i| store.open_pool(&format!("c{i}")).is_ok())
        .count();
    assert_eq!(opened, 480);
    store.open_pool("c7").unwrap();
    store.destroy_pool("c7").unwrap();
    store.open_pool(&"x".repeat(32)).unwrap();
}
