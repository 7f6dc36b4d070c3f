// SPDX-License-Identifier: GPL-2.0-or-later
//! The disk tier: what memory has no room for goes to a file and comes back, and neither of them
//! is ever larger than it may be.

#![allow(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test may fail"
)]

mod common;

use std::collections::HashMap;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use common::blocks::{Sampler, occupied};
use common::{ArenaPath, MIB, Random, SWAP, SpillPath, page};
use kzt_store::{
    Config, Context, GetError, OpenError, PAGE_SIZE, Pool, PutError, Recovery, Store, UpdateError,
};

/// Bytes of a cluster of the file, and where the first one begins.
const CLUSTER: u64 = 256 << 10;
const START: u64 = 4096;

fn open(arena: &ArenaPath, spill: &SpillPath, sizes: (u64, u64)) -> (Store, Recovery) {
    Store::open(&config(arena, spill, sizes)).unwrap()
}

fn config(arena: &ArenaPath, spill: &SpillPath, (memory, size): (u64, u64)) -> Config {
    Config {
        spill: Some(spill.config(size)),
        ..Config::new(arena.path(), memory)
    }
}

/// A page that no codec shrinks.
fn raw(index: u32) -> [u8; PAGE_SIZE] {
    page(u64::from(index) * 4 + 3)
}

fn put_all(pool: &Pool, indices: impl IntoIterator<Item = u32>) {
    let mut cx = Context::new();
    for index in indices {
        pool.put(&mut cx, SWAP, index, &raw(index)).unwrap();
    }
}

fn assert_all(pool: &Pool, indices: impl IntoIterator<Item = u32>) {
    let mut cx = Context::new();
    let mut out = [0; PAGE_SIZE];
    for index in indices {
        assert!(pool.get(&mut cx, SWAP, index, &mut out).unwrap(), "{index}");
        assert!(out == raw(index), "{index} is another page");
    }
}

#[test]
fn pages_that_memory_has_no_room_for_come_back_from_the_disk() {
    let (arena, spill) = (ArenaPath::new(), SpillPath::new());
    let sizes = (2 * MIB, 16 * MIB);
    let check = |store: &Store| {
        let pool = store.open_pool("a").unwrap();
        assert_all(&pool, 0..3000);
        let (stats, usage) = (pool.stats(), store.usage().unwrap());
        assert_eq!((stats.pages, stats.failed_puts, stats.raw), (3000, 0, 3000));
        let disk = usage.spill.unwrap();
        assert_eq!(
            (disk.pages, disk.data),
            (stats.spilled, stats.spilled_bytes)
        );
        assert_eq!(stats.spilled_bytes, stats.spilled * 4112);
        assert_eq!(stats.stored_bytes, (3000 - stats.spilled) * 4112);
        assert!((2500..2700).contains(&stats.spilled), "{}", stats.spilled);
        assert_eq!(stats.spill_reads, stats.spilled);
        assert!(occupied(arena.path()) <= sizes.0 && occupied(spill.path()) <= sizes.1);
        assert!(disk.allocated >= disk.data);
        stats.spilled
    };
    let (store, recovery) = open(&arena, &spill, sizes);
    assert_eq!(recovery.warnings, Vec::<String>::new());
    put_all(&store.open_pool("a").unwrap(), 0..3000);
    let spilled = check(&store);
    drop(store);
    let (store, recovery) = open(&arena, &spill, sizes);
    assert_eq!((recovery.pages, recovery.dropped), (3000, 0));
    assert_eq!(check(&store), spilled);

    // What leaves gives its place back, page by page or with its pool.
    let pool = store.open_pool("a").unwrap();
    assert_eq!(pool.flush_range(SWAP, 0, 1500), 1500);
    assert_all(&pool, 1500..3000);
    store.destroy_pool("a").unwrap();
    while !store.maintain().is_idle() {}
    let usage = store.usage().unwrap();
    let disk = usage.spill.unwrap();
    assert_eq!((usage.pages, disk.pages, disk.data), (0, 0, 0));
    assert!(occupied(spill.path()) <= 9 * CLUSTER, "some are kept");
}

#[test]
fn pages_in_use_stay_in_memory() {
    let (arena, spill) = (ArenaPath::new(), SpillPath::new());
    let (store, _) = open(&arena, &spill, (4 * MIB, 64 * MIB));
    let pool = store.open_pool("a").unwrap();
    put_all(&pool, 0..60);
    for round in 1..30 {
        put_all(&pool, round * 100..round * 100 + 100);
        assert_all(&pool, 0..60);
    }
    assert!(pool.stats().spilled > 1500);
    assert_eq!(pool.stats().spill_reads, 0);
}

#[test]
fn cold_pages_are_written_before_memory_is_short() {
    let (arena, spill) = (ArenaPath::new(), SpillPath::new());
    let (store, _) = open(&arena, &spill, (8 * MIB, 16 * MIB));
    let pool = store.open_pool("a").unwrap();
    let first = (0..).take_while(|index| {
        put_all(&pool, [*index]);
        pool.stats().spilled == 0
    });
    let last = first.last().unwrap() + 1;
    while !store.maintain().is_idle() {}
    let before = pool.stats().spilled;
    put_all(&pool, last + 1..last + 20);
    assert_eq!(pool.stats().spilled, before, "there is some room");
    assert_all(&pool, 0..last + 20);
}

/// Puts and flushes at random, again and again, in twice the memory and most of the file.
#[test]
fn the_file_is_collected_and_nothing_is_lost_in_it() {
    let (arena, spill) = (ArenaPath::new(), SpillPath::new());
    let sizes = (2 * MIB, 6 * MIB);
    let (mut store, _) = open(&arena, &spill, sizes);
    let mut random = Random(3);
    let mut cx = Context::new();
    let mut out = [0; PAGE_SIZE];
    let mut model = HashMap::new();
    let mut collected = 0;
    for _ in 0..4 {
        let pool = store.open_pool("a").unwrap();
        for _ in 0..8000 {
            let index = random.below(1500) as u32;
            if random.below(8) == 0 {
                pool.flush(SWAP, index);
                model.remove(&index);
            } else {
                // Half of the pages is of any kind, the others take room.
                let seed = random.next() | (random.below(2) * 3);
                pool.put(&mut cx, SWAP, index, &page(seed)).unwrap();
                model.insert(index, seed);
            }
        }
        for (index, seed) in &model {
            assert!(pool.get(&mut cx, SWAP, *index, &mut out).unwrap());
            assert!(out == page(*seed), "{index}");
        }
        collected += store.usage().unwrap().spill.unwrap().collected;
        assert_eq!(pool.stats().pages, model.len() as u64);
        assert!(occupied(arena.path()) <= sizes.0 && occupied(spill.path()) <= sizes.1);
        drop((pool, store));
        store = open(&arena, &spill, sizes).0;
    }
    assert!(collected > 1000, "{collected}");
}

#[test]
fn with_both_full_a_put_is_refused_and_nothing_else_is_lost() {
    let (arena, spill) = (ArenaPath::new(), SpillPath::new());
    let sizes = (2 * MIB, 4 * MIB);
    let (store, _) = open(&arena, &spill, sizes);
    let pool = store.open_pool("a").unwrap();
    let mut cx = Context::new();
    let full = (0..10_000).find(|&index| pool.put(&mut cx, SWAP, index, &raw(index)).is_err());
    let full = full.unwrap();
    assert!((1250..1450).contains(&full), "{full}");
    assert_eq!(
        pool.put(&mut cx, SWAP, full, &raw(full)),
        Err(PutError::NoMemory)
    );
    assert_eq!(
        pool.update(&mut cx, SWAP, full, |page| *page = raw(full)),
        Err(UpdateError::NoMemory)
    );
    assert_all(&pool, 0..full);
    // In place of a page in memory there is room. One on the disk leaves none there: it goes.
    put_all(&pool, [full - 1]);
    let replaced = pool.put(&mut cx, SWAP, 0, &raw(0));
    assert_eq!(replaced, Err(PutError::NoSpace));
    assert_eq!(pool.get(&mut cx, SWAP, 0, &mut [0; PAGE_SIZE]), Ok(false));
    assert_all(&pool, 1..full);
    pool.flush_range(SWAP, 0, 500);
    put_all(&pool, full..full + 400);
    assert_all(&pool, 500..full + 400);
    assert!(occupied(arena.path()) <= sizes.0 && occupied(spill.path()) <= sizes.1);
}

/// Else each put that is refused would cost the disk some clusters: what is left of a single one was
/// moved into another, again and again.
#[test]
fn a_full_file_is_left_alone() {
    let (arena, spill) = (ArenaPath::new(), SpillPath::new());
    let (store, _) = open(&arena, &spill, (2 * MIB, 4 * MIB));
    let pool = store.open_pool("a").unwrap();
    let mut cx = Context::new();
    let mut put = |index| pool.put(&mut cx, SWAP, index, &raw(index)).is_ok();
    assert!((0..2000).take_while(|index| put(*index)).count() > 1000);
    // The first to come are the first to go: these are in one cluster.
    pool.flush_range(SWAP, 0, 20);
    for index in 2000..2010 {
        put(index);
    }
    let written = || store.usage().unwrap().spill.unwrap().written;
    let before = written();
    assert!((3000..3050).all(|index| !put(index)));
    assert_eq!(written(), before);
}

#[test]
fn a_page_on_the_disk_can_be_changed_in_part() {
    let (arena, spill) = (ArenaPath::new(), SpillPath::new());
    let (store, _) = open(&arena, &spill, (2 * MIB, 16 * MIB));
    let pool = store.open_pool("a").unwrap();
    put_all(&pool, 0..2000);
    let mut cx = Context::new();
    for index in 0..2000 {
        pool.update(&mut cx, SWAP, index, |page| page[1] = !raw(index)[1])
            .unwrap();
    }
    let mut out = [0; PAGE_SIZE];
    for index in 0..2000 {
        assert!(pool.get(&mut cx, SWAP, index, &mut out).unwrap());
        out[1] = !out[1];
        assert!(out == raw(index));
    }
}

/// Threads that put, get, flush and change at the limit, with upkeep in the background and both
/// files' blocks sampled all the time.
#[test]
fn neither_file_is_ever_larger_than_it_may_be() {
    let (arena, spill) = (ArenaPath::new(), SpillPath::new());
    let sizes = (4 * MIB, 12 * MIB);
    let (store, _) = open(&arena, &spill, sizes);
    let done = AtomicBool::new(false);
    let samplers = [arena.path(), spill.path()].map(Sampler::new);
    let load = |client: &'static str, store: &Store| {
        let pool = store.open_pool(client).unwrap();
        let mut cx = Context::new();
        let mut random = Random(u64::from(client.as_bytes()[0]));
        let mut out = [0; PAGE_SIZE];
        let mut model: HashMap<u32, [u8; PAGE_SIZE]> = HashMap::new();
        for _ in 0..12_000 {
            let index = random.below(1200) as u32;
            match random.below(8) {
                0..4 => {
                    let new = page(random.next() | (random.below(2) * 3));
                    pool.put(&mut cx, SWAP, index, &new).unwrap();
                    model.insert(index, new);
                }
                4 => {
                    let byte = random.next() as u8;
                    pool.update(&mut cx, SWAP, index, |page| page[7] = byte)
                        .unwrap();
                    model.entry(index).or_insert([0; PAGE_SIZE])[7] = byte;
                }
                5 => {
                    assert_eq!(pool.flush(SWAP, index), model.remove(&index).is_some());
                }
                _ => {
                    let found = pool.get(&mut cx, SWAP, index, &mut out).unwrap();
                    assert!(found.then_some(&out) == model.get(&index), "{index}");
                }
            }
        }
        assert_eq!(pool.stats().failed_puts, 0);
        assert!(pool.stats().spill_reads > 100);
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Relaxed) {
                store.maintain();
            }
        });
        let threads = ["a", "b", "c"].map(|client| scope.spawn(|| load(client, &store)));
        let ended = threads.map(|thread| thread.join().is_ok());
        done.store(true, Relaxed);
        assert_eq!(ended, [true; 3]);
    });
    let [memory, disk] = samplers.map(Sampler::most);
    assert!(memory <= sizes.0 && disk <= sizes.1, "{memory}, {disk}");
}

/// The pages of an arena whose spill file is not there: kept until somebody gives them up.
#[test]
fn an_arena_without_its_spill_file_is_not_opened_unless_told_to() {
    let (arena, spill) = (ArenaPath::new(), SpillPath::new());
    let sizes = (2 * MIB, 16 * MIB);
    let there = config(&arena, &spill, sizes);
    let pages = 2000;
    let spilled = {
        let (store, _) = Store::open(&there).unwrap();
        let pool = store.open_pool("a").unwrap();
        put_all(&pool, 0..pages);
        pool.stats().spilled
    };
    let elsewhere = SpillPath::new();
    let none = Config::new(arena.path(), sizes.0);
    let missing = config(&arena, &elsewhere, sizes);
    for config in [&none, &missing, &missing] {
        let opened = Store::open(config);
        assert!(matches!(opened, Err(OpenError::SpillLost { pages, .. }) if pages == spilled));
    }
    // Another store's file is not touched.
    let (other, foreign) = (ArenaPath::new(), SpillPath::new());
    drop(open(&other, &foreign, sizes));
    let before = fs::read(foreign.path()).unwrap();
    let opened = Store::open(&config(&arena, &foreign, sizes));
    assert!(matches!(opened, Err(OpenError::SpillForeign { .. })));
    assert_eq!(fs::read(foreign.path()).unwrap(), before);

    // It may be moved, and nothing is lost until then.
    fs::rename(spill.path(), elsewhere.path()).unwrap();
    {
        let (store, recovery) = Store::open(&missing).unwrap();
        assert_eq!((recovery.pages, recovery.dropped), (u64::from(pages), 0));
        assert_all(&store.open_pool("a").unwrap(), 0..pages);
    }
    let told = Config {
        abandon_spilled: true,
        ..none
    };
    let (store, recovery) = Store::open(&told).unwrap();
    assert_eq!((recovery.dropped, recovery.abandoned), (spilled, spilled));
    let pool = store.open_pool("a").unwrap();
    let mut cx = Context::new();
    let mut out = [0; PAGE_SIZE];
    let mut corrupt = 0;
    for index in 0..pages {
        match pool.get(&mut cx, SWAP, index, &mut out) {
            Err(GetError::Corrupt) => corrupt += 1,
            got => assert!(got == Ok(true) && out == raw(index)),
        }
    }
    assert_eq!(corrupt, spilled);
    drop((pool, store));
    assert_eq!(Store::open(&told).unwrap().1.abandoned, 0, "once is enough");
}

/// A file that is cut short or overwritten at random: pages are right or an error.
#[test]
fn a_damaged_spill_file_costs_the_damaged_pages_only() {
    let sizes = (2 * MIB, 16 * MIB);
    for seed in 0..12 {
        let (arena, spill) = (ArenaPath::new(), SpillPath::new());
        let mut random = Random(seed);
        {
            let (store, _) = open(&arena, &spill, sizes);
            put_all(&store.open_pool("a").unwrap(), 0..2000);
        }
        let file = OpenOptions::new().write(true).open(spill.path()).unwrap();
        let len = file.metadata().unwrap().len();
        let cut = seed % 3 == 0;
        if cut {
            file.set_len(START + random.below(len - START)).unwrap();
        } else {
            for _ in 0..20 {
                let bytes: Vec<u8> = (0..=random.below(64))
                    .map(|_| random.next() as u8)
                    .collect();
                file.write_all_at(&bytes, START + random.below(len - START - 64))
                    .unwrap();
            }
        }
        let (store, recovery) = open(&arena, &spill, sizes);
        assert_eq!(recovery.dropped > 0, cut);
        assert_eq!(recovery.pages + recovery.dropped, 2000);
        let pool = store.open_pool("a").unwrap();
        let mut cx = Context::new();
        let mut out = [0; PAGE_SIZE];
        let mut corrupt = 0;
        for index in 0..2000 {
            match pool.get(&mut cx, SWAP, index, &mut out) {
                Err(GetError::Corrupt) => corrupt += 1,
                got => assert!(got == Ok(true) && out == raw(index)),
            }
        }
        assert_eq!(pool.stats().crc_errors, corrupt);
        assert!(corrupt > 0 && (cut || corrupt <= 40), "{corrupt}");
        // All of it can be used again, whatever is collected meanwhile.
        put_all(&pool, 0..3000);
        assert_all(&pool, 0..3000);
        drop((pool, store));
        let (store, recovery) = open(&arena, &spill, sizes);
        assert_eq!((recovery.pages, recovery.dropped), (3000, 0));
        store.destroy_pool("a").unwrap();
        let usage = store.usage().unwrap();
        assert_eq!((usage.data, usage.spill.unwrap().data), (0, 0));
    }
}
