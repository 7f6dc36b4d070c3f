// SPDX-License-Identifier: GPL-2.0-or-later
//! Blocks that pages share go to the disk tier like others, and each of their users finds its page.

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

use common::{ArenaPath, MIB, Random, SWAP, SpillPath, page};
use kzt_store::{Config, Context, GetError, OpenError, PAGE_SIZE, Page, Pool, Store, Usage};

const SIZES: (u64, u64) = (2 * MIB, 16 * MIB);
const PAGES: u32 = 1500;
const CLIENTS: [&str; 2] = ["a", "b"];
/// Header and payload of a raw page.
const BLOCK: u64 = 16 + PAGE_SIZE as u64;

fn config(arena: &ArenaPath, spill: &SpillPath, (memory, size): (u64, u64)) -> Config {
    Config {
        spill: Some(spill.config(size)),
        ..Config::new(arena.path(), memory)
    }
}

/// Opened with clients of one trust domain.
fn open(config: &Config) -> Store {
    let (store, recovery) = Store::open(config).unwrap();
    assert_eq!(recovery.dropped, 0);
    for client in CLIENTS {
        let client = store.client(client).unwrap();
        client.set_dedup(&"domain:x".parse().unwrap());
    }
    store
}

fn pools(store: &Store) -> [std::sync::Arc<Pool>; 2] {
    CLIENTS.map(|client| store.open_pool(client).unwrap())
}

/// A page that no codec shrinks.
fn raw(index: u32) -> Page {
    page(u64::from(index) * 4 + 3)
}

/// Each client puts the same pages, one right after the other. A few have left memory by then, and are
/// not shared.
fn fill(store: &Store) {
    let mut cx = Context::new();
    let pools = pools(store);
    for index in 0..PAGES {
        for pool in &pools {
            pool.put(&mut cx, SWAP, index, &raw(index)).unwrap();
        }
    }
}

/// How many pages are damaged; all others are right.
fn damaged(pool: &Pool) -> u64 {
    let mut cx = Context::new();
    let mut out = [0; PAGE_SIZE];
    let mut corrupt = 0;
    for index in 0..PAGES {
        match pool.get(&mut cx, SWAP, index, &mut out) {
            Err(GetError::Corrupt) => corrupt += 1,
            got => assert!(got == Ok(true) && out == raw(index), "{index}: {got:?}"),
        }
    }
    corrupt
}

fn on_disk(usage: Usage) -> (u64, u64) {
    let spill = usage.spill.unwrap();
    (spill.pages, spill.data)
}

/// Blocks on the disk that pages share.
fn shared_on_disk(store: &Store) -> u64 {
    let alone: u64 = pools(store).iter().map(|pool| pool.stats().spilled).sum();
    on_disk(store.usage().unwrap()).0 - alone
}

/// What does not depend on when memory was asked for or given back.
fn lasting(usage: Usage) -> Usage {
    Usage {
        allocated: 0,
        spare: 0,
        spill: None,
        ..usage
    }
}

#[test]
fn pages_that_share_a_block_leave_memory_and_come_back() {
    let (arena, spill) = (ArenaPath::new(), SpillPath::new());
    let config = config(&arena, &spill, SIZES);
    let store = open(&config);
    fill(&store);
    let usage = store.usage().unwrap();
    let (blocks, bytes) = on_disk(usage);
    let shared = shared_on_disk(&store);
    assert_eq!(bytes, blocks * BLOCK);
    let held = 2 * u64::from(PAGES) - usage.duplicates;
    assert_eq!(usage.data, (held - blocks) * PAGE_SIZE as u64);
    assert!(shared > 900, "{shared} of {blocks}");
    for pool in pools(&store) {
        assert_eq!(damaged(&pool), 0);
        let stats = pool.stats();
        // A client is charged in full for what others hold as well, wherever it is.
        let charged = u64::from(PAGES) - stats.spilled;
        assert_eq!(stats.stored_bytes, charged * BLOCK);
        assert_eq!(stats.spill_reads, stats.spilled + shared);
    }
    drop(store);

    let store = open(&config);
    let again = store.usage().unwrap();
    assert_eq!(lasting(again), lasting(usage));
    assert_eq!(on_disk(again), (blocks, bytes));
    let [a, b] = pools(&store);
    assert_eq!(a.flush_range(SWAP, 0, PAGES), u64::from(PAGES));
    assert!(on_disk(store.usage().unwrap()).0 >= shared);
    assert_eq!(damaged(&b), 0);
    store.destroy_pool("b").unwrap();
    let usage = store.usage().unwrap();
    assert_eq!((usage.data, usage.fragmentation), (0, 0));
    assert_eq!(usage.meta, 64 << 10);
    assert_eq!(on_disk(usage), (0, 0));
}

#[test]
fn one_users_change_is_no_other_users() {
    let (arena, spill) = (ArenaPath::new(), SpillPath::new());
    let store = open(&config(&arena, &spill, SIZES));
    fill(&store);
    let [a, b] = pools(&store);
    let mut cx = Context::new();
    let mut out = [0; PAGE_SIZE];
    for index in (0..PAGES).step_by(3) {
        a.update(&mut cx, SWAP, index, |page| page[9] ^= 1).unwrap();
        assert!(a.flush(SWAP, index + 1));
        // It was on the disk: it shares with nobody, and is in memory.
        a.put(&mut cx, SWAP, index + 2, &raw(index)).unwrap();
    }
    assert_eq!(damaged(&b), 0);
    for index in (0..PAGES).step_by(3) {
        assert!(a.get(&mut cx, SWAP, index, &mut out).unwrap());
        out[9] ^= 1;
        assert!(out == raw(index), "{index}");
        assert!(!a.get(&mut cx, SWAP, index + 1, &mut out).unwrap());
        assert!(a.get(&mut cx, SWAP, index + 2, &mut out).unwrap());
        assert!(out == raw(index), "{index}");
    }
}

/// Puts and flushes at random, of few different pages, in most of the file.
#[test]
fn what_several_pages_share_is_collected_like_the_rest() {
    let (arena, spill) = (ArenaPath::new(), SpillPath::new());
    let config = config(&arena, &spill, (2 * MIB, 5 * MIB));
    let mut random = Random(5);
    let mut cx = Context::new();
    let mut out = [0; PAGE_SIZE];
    let mut model = HashMap::new();
    let (mut collected, mut shared) = (0, 0);
    for _ in 0..3 {
        let store = open(&config);
        let pools = pools(&store);
        for _ in 0..8000 {
            let (client, index) = (random.below(2), random.below(1000) as u32);
            let pool = &pools[client as usize];
            if random.below(6) == 0 {
                let found = model.remove(&(client, index)).is_some();
                assert_eq!(pool.flush(SWAP, index), found);
            } else {
                let seed = random.below(1000) as u32;
                pool.put(&mut cx, SWAP, index, &raw(seed)).unwrap();
                model.insert((client, index), seed);
            }
        }
        for ((client, index), seed) in &model {
            let pool = &pools[*client as usize];
            assert!(pool.get(&mut cx, SWAP, *index, &mut out).unwrap());
            assert!(out == raw(*seed), "{index}");
        }
        let usage = store.usage().unwrap();
        shared = shared.max(shared_on_disk(&store));
        collected += usage.spill.unwrap().collected;
        assert_eq!(usage.pages, model.len() as u64);
    }
    assert!(shared > 20, "{shared}");
    assert!(collected > 500, "{collected}");
}

#[test]
fn a_missing_file_costs_every_user_its_page_and_no_more() {
    let (arena, spill) = (ArenaPath::new(), SpillPath::new());
    let there = config(&arena, &spill, SIZES);
    let store = open(&there);
    fill(&store);
    let shared = shared_on_disk(&store);
    let alone = pools(&store).map(|pool| pool.stats().spilled);
    drop(store);
    let users = 2 * shared + alone[0] + alone[1];
    let none = Config::new(arena.path(), SIZES.0);
    let opened = Store::open(&none);
    assert!(matches!(opened, Err(OpenError::SpillLost { pages, .. }) if pages == users));
    // Nothing was given up by that.
    for pool in pools(&open(&there)) {
        assert_eq!(damaged(&pool), 0);
    }
    let told = Config {
        abandon_spilled: true,
        ..none
    };
    let (store, recovery) = Store::open(&told).unwrap();
    assert_eq!((recovery.dropped, recovery.abandoned), (users, users));
    for (pool, alone) in pools(&store).into_iter().zip(alone) {
        assert_eq!(damaged(&pool), shared + alone);
    }
}

#[test]
fn a_damaged_file_costs_the_damaged_pages_users_only() {
    for seed in 0..6 {
        let (arena, spill) = (ArenaPath::new(), SpillPath::new());
        let config = config(&arena, &spill, SIZES);
        fill(&open(&config));
        let mut random = Random(seed);
        let file = OpenOptions::new().write(true).open(spill.path()).unwrap();
        let len = fs::metadata(spill.path()).unwrap().len();
        let cut = seed % 3 == 0;
        if cut {
            file.set_len(4096 + random.below(len - 4096)).unwrap();
        } else {
            for _ in 0..20 {
                let bytes = random.next().to_ne_bytes();
                let at = 4096 + random.below(len - 4096 - 8);
                file.write_all_at(&bytes, at).unwrap();
            }
        }
        let (store, recovery) = Store::open(&config).unwrap();
        assert_eq!(recovery.dropped > 0, cut);
        assert_eq!(recovery.pages + recovery.dropped, 2 * u64::from(PAGES));
        for pool in pools(&store) {
            let corrupt = damaged(&pool);
            assert!(corrupt > 0 && (cut || corrupt <= 40), "{corrupt}");
        }
        // All of it can be used again, whatever is collected meanwhile.
        fill(&store);
        drop(store);
        let store = open(&config);
        for pool in pools(&store) {
            assert_eq!(damaged(&pool), 0);
        }
        for client in CLIENTS {
            store.destroy_pool(client).unwrap();
        }
        let usage = store.usage().unwrap();
        assert_eq!(
            (usage.data, usage.meta, on_disk(usage)),
            (0, 64 << 10, (0, 0))
        );
    }
}
