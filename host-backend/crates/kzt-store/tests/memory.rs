// SPDX-License-Identifier: GPL-2.0-or-later
//! The memory limit: the arena file's blocks, and the heap beside it.

#![allow(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test may fail"
)]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use common::{ArenaPath, MIB, Random, SWAP, SpillPath, page};
use kzt_store::{Context, OpenError, PAGE_SIZE};

/// Counts what the process has on its heap.
struct Counting;

static HEAP: AtomicU64 = AtomicU64::new(0);

// SAFETY: hands everything to the system's allocator and only counts.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HEAP.fetch_add(layout.size() as u64, Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        HEAP.fetch_sub(layout.size() as u64, Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn blocks(arena: &ArenaPath) -> u64 {
    std::fs::metadata(arena.path()).unwrap().blocks() * 512
}

/// Puts, overwrites and flushes at the limit, with upkeep in the background and the file's
/// blocks sampled all the time.
#[test]
fn the_file_never_has_more_blocks_than_memory() {
    for memory in [MIB, 5 * MIB + 12_345, 32 * MIB] {
        let arena = ArenaPath::new();
        let (store, _) = arena.open(memory);
        let done = AtomicBool::new(false);
        let samples = AtomicU64::new(0);
        let most = AtomicU64::new(0);
        let refused = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Relaxed) {
                    most.fetch_max(blocks(&arena), Relaxed);
                    samples.fetch_add(1, Relaxed);
                }
            });
            scope.spawn(|| {
                while !done.load(Relaxed) {
                    store.maintain();
                }
            });
            let load = |client: &'static str| {
                let store = &store;
                move || {
                    let pool = store.open_pool(client).unwrap();
                    let mut cx = Context::new();
                    let mut random = Random(memory);
                    let keys = memory / 2048;
                    for _ in 0..4 {
                        for _ in 0..keys {
                            let index = random.below(keys) as u32;
                            let _ = pool.put(&mut cx, SWAP, index, &page(random.next()));
                        }
                        pool.flush_range(SWAP, 0, keys as u32 / 2);
                    }
                    pool.stats().failed_puts
                }
            };
            let threads = ["a", "b"].map(|client| scope.spawn(load(client)));
            let refused: u64 = threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .sum();
            done.store(true, Relaxed);
            refused
        });
        assert!(refused > 0, "the limit was reached");
        assert!(samples.load(Relaxed) > 10);
        assert!(
            most.load(Relaxed) <= memory,
            "{} of {memory}",
            most.load(Relaxed)
        );
        let usage = store.usage().unwrap();
        assert_eq!(
            usage.allocated,
            usage.data + usage.meta + usage.fragmentation + usage.spare
        );
    }
}

#[test]
fn flushed_memory_goes_back_to_the_host() {
    let arena = ArenaPath::new();
    let (store, _) = arena.open(64 * MIB);
    let pool = store.open_pool("a").unwrap();
    let mut cx = Context::new();
    for index in 0..10_000 {
        pool.put(&mut cx, SWAP, index, &page(u64::from(index) * 4 + 3))
            .unwrap();
    }
    while !store.maintain().is_idle() {}
    assert!(blocks(&arena) > 40 * MIB);
    assert_eq!(pool.flush_range(SWAP, 0, 10_000), 10_000);
    while !store.maintain().is_idle() {}
    assert!(blocks(&arena) <= 4 * MIB, "{} left", blocks(&arena));
    assert!(blocks(&arena) >= MIB, "some is kept ready");
}

#[test]
fn an_arena_can_grow_and_shrink_to_what_it_holds() {
    let arena = ArenaPath::new();
    let mut cx = Context::new();
    {
        let (store, _) = arena.open(8 * MIB);
        let pool = store.open_pool("a").unwrap();
        for index in 0..1000 {
            pool.put(&mut cx, SWAP, index, &page(u64::from(index) * 4 + 3))
                .unwrap();
        }
    }
    let small = kzt_store::Store::open(&arena.config(2 * MIB, kzt_store::Codec::Lzo));
    assert!(matches!(small, Err(OpenError::Shrunk { held, .. }) if held > 4 * MIB));
    for memory in [6 * MIB, 16 * MIB, 6 * MIB] {
        let (store, recovery) = arena.open(memory);
        assert_eq!(recovery.pages, 1000);
        while !store.maintain().is_idle() {}
        assert!(blocks(&arena) <= memory);
        let pool = store.open_pool("a").unwrap();
        let full = (1000..100_000).find(|&index| {
            pool.put(&mut cx, SWAP, index, &page(u64::from(index) * 4 + 3))
                .is_err()
        });
        assert!(blocks(&arena) <= memory);
        pool.flush_range(SWAP, 1000, full.unwrap());
        let mut out = [0; PAGE_SIZE];
        assert!(pool.get(&mut cx, SWAP, 999, &mut out).unwrap());
        assert_eq!(out, page(999 * 4 + 3));
    }
}

/// What lib.rs promises about the heap. The other tests of this file use it too, so it is
/// measured in a process of its own.
#[test]
fn the_heap_is_bounded() {
    const CHILD: &str = "KZT_STORE_HEAP_CHILD";
    if std::env::var_os(CHILD).is_none() {
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "the_heap_is_bounded",
                "--test-threads=1",
                "--nocapture",
            ])
            .env(CHILD, "1")
            .status()
            .unwrap();
        assert!(status.success());
        return;
    }
    let (arena, spill) = (ArenaPath::new(), SpillPath::new());
    let mut cx = Context::new();
    let mut random = Random(1);
    for (memory, disk) in [(64 * MIB, 0), (64 * MIB, 0), (8 * MIB, 256 * MIB)] {
        let before = HEAP.load(Relaxed);
        let mut bound = memory / 4096 * 28 + memory / 65536 * 12 + MIB;
        let mut config = arena.config(memory, kzt_store::Codec::Lzo);
        if disk > 0 {
            bound += disk / (256 << 10) * 12 + 700 * 1024;
            config.spill = Some(spill.config(disk));
            std::fs::remove_file(arena.path()).unwrap();
        }
        let (store, _) = kzt_store::Store::open(&config).unwrap();
        for client in 0..100 {
            let pool = store.open_pool(&format!("client-{client}")).unwrap();
            for _ in 0..150 {
                let object = kzt_store::ObjectId([random.below(20), 0, 0]);
                let _ = pool.put(&mut cx, object, random.next() as u32, &page(random.next()));
            }
        }
        let heap = HEAP.load(Relaxed) - before;
        assert!(heap <= bound, "{heap} bytes, {bound} promised");
        let settled = HEAP.load(Relaxed);
        let pool = store.open_pool("client-0").unwrap();
        let mut out = [0; PAGE_SIZE];
        for _ in 0..1000 {
            let index = random.next() as u32;
            let _ = pool.put(&mut cx, SWAP, index, &page(random.next()));
            let _ = pool.get(&mut cx, SWAP, index, &mut out);
            pool.flush(SWAP, index);
        }
        assert_eq!(HEAP.load(Relaxed), settled, "pages take no heap");
        let spilled = store.usage().unwrap().spill.map_or(0, |spill| spill.pages);
        assert_eq!(spilled > 0, disk > 0);
    }
}
