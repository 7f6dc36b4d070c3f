// SPDX-License-Identifier: GPL-2.0-or-later
//! Pages that share memory: with whom, what it saves, and that nobody else is any the wiser.

#![allow(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test may fail"
)]

mod common;

use std::fs;
use std::os::unix::fs::FileExt;

use common::{ArenaPath, MIB, SWAP, block_entries, page, payload};
use kzt_store::{Codec, Context, Dedup, GetError, PAGE_SIZE, Page, Pool, PoolStats, Store, Usage};

const PAGES: u32 = 300;

/// Pages that do not compress: each takes a block of its own, unless it shares one.
fn content(index: u32) -> Page {
    page(u64::from(index) * 4 + 3)
}

fn set_dedup(store: &Store, client: &str, dedup: &str) {
    let dedup: Dedup = dedup.parse().unwrap();
    store.client(client).unwrap().set_dedup(&dedup);
}

fn fill(store: &Store, client: &str, cx: &mut Context) {
    let pool = store.open_pool(client).unwrap();
    for index in 0..PAGES {
        pool.put(cx, SWAP, index, &content(index)).unwrap();
    }
}

fn verify(pool: &Pool, cx: &mut Context) {
    let mut out = [0; PAGE_SIZE];
    for index in 0..PAGES {
        assert!(pool.get(cx, SWAP, index, &mut out).unwrap());
        assert_eq!(out, content(index), "{index}");
    }
}

/// The store's memory and what the clients are charged, after each of them has put the same pages.
fn two_clients(dedups: [&str; 2]) -> (Usage, PoolStats) {
    let arena = ArenaPath::new();
    let (store, _) = arena.open(8 * MIB);
    let mut cx = Context::new();
    for (client, dedup) in ["a", "b"].into_iter().zip(dedups) {
        set_dedup(&store, client, dedup);
        fill(&store, client, &mut cx);
    }
    let stats = ["a", "b"].map(|client| {
        let pool = store.open_pool(client).unwrap();
        verify(&pool, &mut cx);
        PoolStats {
            puts: 0,
            gets: 0,
            get_hits: 0,
            ..pool.stats()
        }
    });
    assert_eq!(stats[0], stats[1], "one is charged like the other");
    (store.usage().unwrap(), stats[0])
}

#[test]
fn clients_of_different_domains_share_nothing() {
    let apart = [
        ["off", "off"],
        ["client", "client"],
        ["client", "off"],
        ["domain:x", "domain:y"],
        ["domain:x", "client"],
        ["domain:x", "off"],
        // Named like the other client, which is another domain.
        ["client", "domain:a"],
    ];
    for dedups in apart {
        let (usage, stats) = two_clients(dedups);
        assert_eq!((usage.duplicates, usage.deduplicated), (0, 0), "{dedups:?}");
        let blocks = 2 * u64::from(PAGES);
        assert_eq!(usage.data, blocks * PAGE_SIZE as u64, "{dedups:?}");
        assert_eq!(
            stats.stored_bytes,
            u64::from(PAGES) * (PAGE_SIZE as u64 + 16)
        );
    }
}

#[test]
fn clients_of_one_domain_share_and_are_charged_in_full() {
    let (apart, alone) = two_clients(["off", "off"]);
    let (usage, stats) = two_clients(["domain:x", "domain:x"]);
    assert_eq!(stats, alone);
    assert_eq!(usage.pages, apart.pages);
    assert_eq!(usage.duplicates, u64::from(PAGES));
    assert_eq!(usage.deduplicated, alone.stored_bytes);
    assert_eq!(usage.data, apart.data / 2);
    assert_eq!(
        usage.meta,
        apart.meta + u64::from(PAGES) * (64 - 16 - 8),
        "a record each, and a header less and its word"
    );
}

#[test]
fn a_clients_own_pages_share() {
    let arena = ArenaPath::new();
    let (store, _) = arena.open(8 * MIB);
    let mut cx = Context::new();
    set_dedup(&store, "a", "client");
    let pool = store.open_pool("a").unwrap();
    for index in 0..PAGES {
        pool.put(&mut cx, SWAP, index, &content(index % 3)).unwrap();
    }
    let usage = store.usage().unwrap();
    assert_eq!(usage.data, 3 * PAGE_SIZE as u64);
    assert_eq!(usage.duplicates, u64::from(PAGES) - 3);
    let mut out = [0; PAGE_SIZE];
    for index in 0..PAGES {
        assert!(pool.get(&mut cx, SWAP, index, &mut out).unwrap());
        assert_eq!(out, content(index % 3), "{index}");
    }
}

/// Whatever becomes of a page, the others that shared its block have theirs.
#[test]
fn a_shared_page_lives_as_long_as_its_last_user() {
    let arena = ArenaPath::new();
    let (store, _) = arena.open(8 * MIB);
    let mut cx = Context::new();
    let clients = ["a", "b", "c"];
    for client in clients {
        set_dedup(&store, client, "domain:x");
        fill(&store, client, &mut cx);
    }
    let [a, b, c] = clients.map(|client| store.open_pool(client).unwrap());
    let records = |usage: Usage| usage.meta - 64 * 1024;
    let mut out = [0; PAGE_SIZE];

    // Flushed by its first user, whose block it was once.
    assert_eq!(a.flush_range(SWAP, 0, PAGES), u64::from(PAGES));
    assert_eq!(store.usage().unwrap().duplicates, u64::from(PAGES));
    for pool in [&b, &c] {
        verify(pool, &mut cx);
    }
    // Rewritten by the second: the third has it to itself.
    for index in 0..PAGES {
        b.put(&mut cx, SWAP, index, &content(PAGES + index))
            .unwrap();
    }
    assert_eq!(store.usage().unwrap().duplicates, 0);
    verify(&c, &mut cx);
    assert!(!a.get(&mut cx, SWAP, 0, &mut out).unwrap());

    // The only user puts it again, changes it, rewrites it, flushes it.
    let before = store.usage().unwrap();
    c.put(&mut cx, SWAP, 0, &content(0)).unwrap();
    let after = store.usage().unwrap();
    assert_eq!((after.data, after.meta), (before.data, before.meta));
    c.update(&mut cx, SWAP, 1, |page| page[0] ^= 1).unwrap();
    c.put(&mut cx, SWAP, 2, &content(5000)).unwrap();
    assert!(c.flush(SWAP, 3));
    let expected = [Some(content(0)), None, Some(content(5000))];
    for (index, expected) in (0..).zip(expected) {
        assert!(c.get(&mut cx, SWAP, index, &mut out).unwrap());
        let expected = expected.unwrap_or_else(|| {
            let mut page = content(1);
            page[0] ^= 1;
            page
        });
        assert_eq!(out, expected, "{index}");
    }
    assert!(!c.get(&mut cx, SWAP, 3, &mut out).unwrap());
    // What came after can be shared again.
    a.put(&mut cx, SWAP, 9, &content(5000)).unwrap();
    assert_eq!(store.usage().unwrap().duplicates, 1);

    b.flush_range(SWAP, 0, PAGES);
    a.flush_object(SWAP);
    store.destroy_pool("c").unwrap();
    let usage = store.usage().unwrap();
    assert_eq!((usage.data, usage.fragmentation, records(usage)), (0, 0, 0));
}

#[test]
fn recovery_finds_who_shares_and_what_could_be_shared() {
    let arena = ArenaPath::new();
    let mut cx = Context::new();
    let before = {
        let (store, _) = arena.open(8 * MIB);
        for client in ["a", "b"] {
            set_dedup(&store, client, "domain:x");
        }
        fill(&store, "a", &mut cx);
        let b = store.open_pool("b").unwrap();
        for index in 0..PAGES / 2 {
            b.put(&mut cx, SWAP, index, &content(index)).unwrap();
        }
        store.usage().unwrap()
    };
    let (store, recovery) = arena.open(8 * MIB);
    assert_eq!((recovery.dropped, recovery.pages), (0, before.pages));
    let after = store.usage().unwrap();
    assert_eq!(
        Usage {
            allocated: 0,
            spare: 0,
            ..after
        },
        Usage {
            allocated: 0,
            spare: 0,
            ..before
        }
    );
    // In no domain yet: nothing new is shared, and what was shared stays so.
    let b = store.open_pool("b").unwrap();
    b.put(&mut cx, SWAP, 1000, &content(0)).unwrap();
    b.put(&mut cx, SWAP, 1001, &content(PAGES - 1)).unwrap();
    assert_eq!(store.usage().unwrap().duplicates, before.duplicates);
    b.flush_range(SWAP, 1000, 2);

    for client in ["a", "b"] {
        set_dedup(&store, client, "domain:x");
    }
    // Records, and pages that had their block for themselves.
    fill(&store, "b", &mut cx);
    assert_eq!(store.usage().unwrap().duplicates, u64::from(PAGES));
    for client in ["a", "b"] {
        verify(&store.open_pool(client).unwrap(), &mut cx);
        store.destroy_pool(client).unwrap();
    }
    let usage = store.usage().unwrap();
    assert_eq!(
        (usage.data, usage.fragmentation, usage.meta),
        (0, 0, 64 * 1024)
    );
}

/// What is compared is what is stored.
#[test]
fn pages_of_different_encodings_are_different() {
    let arena = ArenaPath::new();
    let mut cx = Context::new();
    let content = |index: u32| page(u64::from(index) * 4 + 2);
    // Raw pages are the same for each codec, and the smallest never share.
    let compressed = |index: &u32| {
        let random = content(*index).iter().filter(|byte| **byte != 0).count();
        (300..2000).contains(&random)
    };
    for (codec, client) in [(Codec::Lzo, "a"), (Codec::Lz4, "b"), (Codec::Lz4, "c")] {
        let (store, _) = Store::open(&arena.config(8 * MIB, codec)).unwrap();
        for client in ["a", "b", "c"] {
            set_dedup(&store, client, "domain:x");
        }
        let pool = store.open_pool(client).unwrap();
        let mut stored = 0;
        for index in (0..PAGES).filter(compressed) {
            pool.put(&mut cx, SWAP, index, &content(index)).unwrap();
            stored += 1;
        }
        let shared = if client == "c" { stored } else { 0 };
        assert_eq!(store.usage().unwrap().duplicates, shared, "{client}");
    }
}

/// Neither hash nor checksum says that bytes are the same: a damaged block, whose header has both
/// as before, is nobody else's page.
#[test]
fn bytes_decide() {
    let arena = ArenaPath::new();
    let mut cx = Context::new();
    let (store, _) = arena.open(8 * MIB);
    for client in ["a", "b", "c"] {
        set_dedup(&store, client, "domain:x");
    }
    let [a, b, c] = ["a", "b", "c"].map(|client| store.open_pool(client).unwrap());
    a.put(&mut cx, SWAP, 0, &content(0)).unwrap();
    let bytes = fs::read(arena.path()).unwrap();
    let (_, block) = block_entries(&bytes)[0];
    let file = fs::OpenOptions::new()
        .write(true)
        .open(arena.path())
        .unwrap();
    let last = payload(&bytes, block) + PAGE_SIZE as u64 - 1;
    let byte = content(0)[PAGE_SIZE - 1] ^ 1;
    file.write_all_at(&[byte], last).unwrap();
    let mut out = [0; PAGE_SIZE];
    for pool in [&b, &c] {
        pool.put(&mut cx, SWAP, 0, &content(0)).unwrap();
        assert!(pool.get(&mut cx, SWAP, 0, &mut out).unwrap());
        assert_eq!(out, content(0));
    }
    assert_eq!(a.get(&mut cx, SWAP, 0, &mut out), Err(GetError::Corrupt));
    assert_eq!(store.usage().unwrap().duplicates, 1, "the sound ones share");
}

/// Compaction moves a block without knowing its users.
#[test]
fn shared_blocks_move() {
    let arena = ArenaPath::new();
    let mut cx = Context::new();
    let (store, _) = arena.open(64 * MIB);
    for client in ["a", "b"] {
        set_dedup(&store, client, "domain:x");
    }
    let pools = ["a", "b"].map(|client| store.open_pool(client).unwrap());
    let many = 10_000;
    // Raw ones and smaller ones.
    let content = |index: u32| {
        let mut page = content(index);
        page[2000 * (1 + index as usize % 2)..].fill(0);
        page
    };
    for pool in &pools {
        for index in 0..many {
            pool.put(&mut cx, SWAP, index, &content(index)).unwrap();
        }
    }
    let kept = |index: u32| index % 15 == 5;
    for pool in &pools {
        for index in (0..many).filter(|index| !kept(*index)) {
            assert!(pool.flush(SWAP, index));
        }
    }
    let before = store.usage().unwrap();
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
    assert!(
        after.fragmentation < before.fragmentation / 4,
        "{before:?}, then {after:?}"
    );
    assert_eq!((after.data, after.meta), (before.data, before.meta));
    assert_eq!(after.duplicates, before.duplicates);
    let check = |store: &Store, cx: &mut Context| {
        let mut out = [0; PAGE_SIZE];
        for client in ["a", "b"] {
            let pool = store.open_pool(client).unwrap();
            for index in (0..many).filter(|index| kept(*index)) {
                assert!(pool.get(cx, SWAP, index, &mut out).unwrap());
                assert_eq!(out, content(index));
            }
        }
    };
    check(&store, &mut cx);
    // Where a block is now is where a further user finds it.
    set_dedup(&store, "c", "domain:x");
    let c = store.open_pool("c").unwrap();
    for index in (0..many).filter(|index| kept(*index)) {
        c.put(&mut cx, SWAP, index, &content(index)).unwrap();
    }
    assert_eq!(store.usage().unwrap().data, after.data);
    drop((pools, c, store));
    let (store, recovery) = arena.open(64 * MIB);
    assert_eq!(recovery.dropped, 0);
    check(&store, &mut cx);
}

/// A full store has room for a page that is there already.
#[test]
fn at_the_limit_a_duplicate_of_a_shared_page_needs_no_memory() {
    let arena = ArenaPath::new();
    let mut cx = Context::new();
    let (store, _) = arena.open(MIB);
    set_dedup(&store, "a", "client");
    let pool = store.open_pool("a").unwrap();
    for index in 0..2 {
        pool.put(&mut cx, SWAP, index, &content(0)).unwrap();
    }
    let full = (2..500)
        .find(|&index| pool.put(&mut cx, SWAP, index, &content(index)).is_err())
        .unwrap();
    for index in full..500 {
        pool.put(&mut cx, SWAP, index, &content(0)).unwrap();
    }
    assert_eq!(store.usage().unwrap().duplicates, u64::from(500 - full) + 1);
    // One that is not shared yet needs a record and a copy first; else it is refused like any.
    assert!(pool.put(&mut cx, SWAP, 600, &content(5)).is_err());
    assert_eq!(pool.stats().pages, 500);
}
