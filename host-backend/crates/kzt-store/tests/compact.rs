// SPDX-License-Identifier: GPL-2.0-or-later
//! Compaction: flushed pages' memory comes back even where each run still holds a page.

#![allow(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test may fail"
)]

mod common;

use common::{ArenaPath, MIB, SWAP, page};
use kzt_store::{Allocator, Config, Context, PAGE_SIZE, Pool, Store};

const PAGES: u32 = 20_000;
/// Of so many neighbours one stays; odd, so that pages of each kind do.
const STRIDE: u32 = 15;

/// Pages of every kind, most of which share a run with hundreds of others.
fn content(index: u32) -> [u8; PAGE_SIZE] {
    page(u64::from(index))
}

fn stays(index: u32) -> bool {
    index % STRIDE == 5
}

fn fill_and_thin(pool: &Pool, cx: &mut Context) {
    for index in 0..PAGES {
        pool.put(cx, SWAP, index, &content(index)).unwrap();
    }
    for index in (0..PAGES).filter(|index| !stays(*index)) {
        assert!(pool.flush(SWAP, index));
    }
}

fn verify(pool: &Pool, cx: &mut Context) {
    let mut out = [0; PAGE_SIZE];
    for index in 0..PAGES {
        let found = pool.get(cx, SWAP, index, &mut out).unwrap();
        assert_eq!(found, stays(index), "{index}");
        assert!(!found || out == content(index), "{index}");
    }
}

const ALLOCATORS: [Allocator; 2] = [Allocator::Zsmalloc, Allocator::Xvmalloc];

fn open(arena: &ArenaPath, persistent: Allocator, memory: u64) -> Store {
    let config = Config {
        persistent,
        ..Config::new(arena.path(), memory)
    };
    Store::open(&config).unwrap().0
}

#[test]
fn sparse_runs_are_emptied_and_every_page_stays() {
    ALLOCATORS.into_iter().for_each(sparse_runs_are_emptied);
}

fn sparse_runs_are_emptied(allocator: Allocator) {
    let arena = ArenaPath::new();
    let mut cx = Context::new();
    {
        let store = open(&arena, allocator, 128 * MIB);
        let pool = store.open_pool("a").unwrap();
        fill_and_thin(&pool, &mut cx);
        let before = store.usage().unwrap();
        assert!(
            before.fragmentation > 2 * before.data,
            "nothing to do: {before:?}"
        );
        let mut emptied = 0;
        loop {
            let done = store.maintain();
            emptied += done.emptied;
            if done.is_idle() {
                break;
            }
        }
        let after = store.usage().unwrap();
        assert!(emptied > 100, "{emptied}");
        // What is left of size classes is little more than a run for each of nearly 200.
        assert!(
            after.fragmentation * 2 < before.fragmentation,
            "{before:?}, then {after:?}"
        );
        assert_eq!((after.data, after.pages), (before.data, before.pages));
        assert_eq!(after.meta, before.meta);
        verify(&pool, &mut cx);
    }
    // The index is the truth: it leads to where the pages are now.
    let (store, recovery) = arena.open(128 * MIB);
    let kept = (0..PAGES).filter(|index| stays(*index)).count() as u64;
    assert_eq!((recovery.dropped, recovery.pages), (0, kept));
    verify(&store.open_pool("a").unwrap(), &mut cx);
}

/// Movers, writers and readers of the same pages at once.
#[test]
fn pages_move_under_load() {
    ALLOCATORS.into_iter().for_each(move_under_load);
}

fn move_under_load(allocator: Allocator) {
    const ROUNDS: u64 = 300;
    let arena = ArenaPath::new();
    let store = open(&arena, allocator, 64 * MIB);
    let done = std::sync::atomic::AtomicBool::new(false);
    let emptied = std::thread::scope(|scope| {
        let mover = scope.spawn(|| {
            let mut emptied = 0;
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                emptied += store.maintain().emptied;
            }
            emptied
        });
        let clients: Vec<_> = ["a", "b"]
            .map(|client| {
                let pool = store.open_pool(client).unwrap();
                scope.spawn(move || {
                    let mut cx = Context::new();
                    let mut out = [0; PAGE_SIZE];
                    for round in 0..ROUNDS {
                        let content = |index: u32| page(round * 1000 + u64::from(index) * 4 + 2);
                        for index in 0..200 {
                            pool.put(&mut cx, SWAP, index, &content(index)).unwrap();
                        }
                        for index in (0..200).filter(|index| index % 8 != 1) {
                            pool.flush(SWAP, index);
                        }
                        for index in (1..200).step_by(8) {
                            assert!(pool.get(&mut cx, SWAP, index, &mut out).unwrap());
                            assert_eq!(out, content(index));
                        }
                    }
                })
            })
            .into_iter()
            .collect();
        for client in clients {
            client.join().unwrap();
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        mover.join().unwrap()
    });
    assert!(emptied > 0, "nothing was ever moved");
}
