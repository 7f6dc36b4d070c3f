// SPDX-License-Identifier: GPL-2.0-or-later
//! Arenas that are not what they should be: damaged, cut, of another version, from another boot.

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
use std::sync::OnceLock;

use common::{ArenaPath, MIB, Random, SWAP, block_entries, frame_word, page};
use kzt_store::{
    Allocator, Codec, Config, Context, GetError, ObjectId, OpenError, Origin, PAGE_SIZE, Store,
};
use proptest::prelude::*;

const OBJECTS: [ObjectId; 3] = [SWAP, ObjectId([1, 0, 0]), ObjectId([2, 0, 0])];
const CLIENTS: [&str; 2] = ["a", "b"];
const ALLOCATORS: [Allocator; 3] = [Allocator::Zsmalloc, Allocator::Zbud, Allocator::Xvmalloc];

type Pages = HashMap<(usize, usize, u32), u64>;

/// The content of an arena with pages of every kind, and what it holds.
fn sample() -> &'static (Vec<u8>, Pages) {
    static SAMPLE: OnceLock<(Vec<u8>, Pages)> = OnceLock::new();
    SAMPLE.get_or_init(|| make_sample(u64::MAX))
}

/// One in which many pages share a block.
fn shared_sample() -> &'static (Vec<u8>, Pages) {
    static SAMPLE: OnceLock<(Vec<u8>, Pages)> = OnceLock::new();
    SAMPLE.get_or_init(|| make_sample(200))
}

fn share(store: &Store) {
    for client in CLIENTS {
        let dedup = "domain:x".parse().unwrap();
        store.client(client).unwrap().set_dedup(&dedup);
    }
}

/// Makes the file that content, with a hole at its end.
fn write(arena: &ArenaPath, bytes: &[u8]) {
    let used = bytes.iter().rposition(|byte| *byte != 0).unwrap_or(0) + 1;
    fs::write(arena.path(), &bytes[..used]).unwrap();
    OpenOptions::new()
        .write(true)
        .open(arena.path())
        .unwrap()
        .set_len(4 * MIB)
        .unwrap();
}

fn make_sample(contents: u64) -> (Vec<u8>, Pages) {
    let arena = ArenaPath::new();
    let mut pages = HashMap::new();
    let mut random = Random(5);
    let mut cx = Context::new();
    for (c, client) in CLIENTS.into_iter().enumerate() {
        for (o, object) in OBJECTS.into_iter().enumerate() {
            // Each opening's pages are another allocator's.
            let (store, _) = Store::open(&Config {
                persistent: ALLOCATORS[(c + o) % ALLOCATORS.len()],
                ..Config::new(arena.path(), 4 * MIB)
            })
            .unwrap();
            if contents < u64::MAX {
                share(&store);
            }
            let pool = store.open_pool(client).unwrap();
            for i in 0..124 {
                let index = if i < 120 { i } else { random.next() as u32 };
                let seed = random.below(contents);
                pool.put(&mut cx, object, index, &page(seed)).unwrap();
                pages.insert((c, o, index), seed);
            }
        }
    }
    (fs::read(arena.path()).unwrap(), pages)
}

/// Opens a damaged arena and uses all of it. Whatever happens: no panic, no page with bytes it
/// never had, and every byte is accounted for in the end.
fn survive(config: &Config, pages: &Pages) {
    let Ok((store, recovery)) = Store::open(config) else {
        return;
    };
    let mut cx = Context::new();
    let mut out = [0; PAGE_SIZE];
    let mut corrupt = 0;
    for (&(c, o, index), &seed) in pages {
        let pool = store.open_pool(CLIENTS[c]).unwrap();
        match pool.get(&mut cx, OBJECTS[o], index, &mut out) {
            Ok(true) => assert_eq!(out, page(seed), "wrong bytes"),
            Ok(false) => {}
            Err(GetError::Corrupt) => corrupt += 1,
            Err(GetError::Io) => panic!("there is no disk"),
            Err(GetError::NoDevice) => panic!("the pool is there"),
        }
    }
    let crc_errors: u64 = CLIENTS
        .iter()
        .map(|client| store.open_pool(client).unwrap().stats().crc_errors)
        .sum();
    assert_eq!(corrupt, crc_errors);
    drop(store);

    // The first recovery has settled all there was to settle.
    let (store, again) = Store::open(config).unwrap();
    assert_eq!((again.dropped, again.pages), (0, recovery.pages));
    share(&store);
    let mut random = Random(recovery.pages);
    for &(c, o, index) in pages.keys() {
        let pool = store.open_pool(CLIENTS[c]).unwrap();
        match random.below(3) {
            0 => {
                let seed = random.next();
                if pool.put(&mut cx, OBJECTS[o], index, &page(seed)).is_ok() {
                    assert!(pool.get(&mut cx, OBJECTS[o], index, &mut out).unwrap());
                    assert_eq!(out, page(seed));
                }
            }
            1 => {
                pool.flush(OBJECTS[o], index);
                assert!(!matches!(
                    pool.get(&mut cx, OBJECTS[o], index, &mut out),
                    Ok(true)
                ));
            }
            _ => {
                let mut covered = 0;
                pool.runs(OBJECTS[o], index, 1000, |pages, _| {
                    covered += u64::from(pages);
                });
                assert_eq!(covered, 1000.min(u64::from(u32::MAX - index) + 1));
            }
        }
    }
    for object in OBJECTS {
        store
            .open_pool("a")
            .unwrap()
            .flush_range(object, 0, u32::MAX);
    }
    for client in store.clients() {
        store.destroy_pool(&client).unwrap();
    }
    let usage = store.usage().unwrap();
    assert_eq!(
        (usage.data, usage.fragmentation, usage.meta),
        (0, 0, 64 * 1024)
    );
}

#[derive(Debug, Clone)]
enum Damage {
    /// A byte of the part of the file that is in use.
    Byte(u64, u8),
    /// A whole word, with an arbitrary value or one from elsewhere in the file.
    Word(u64, u64),
    Copy(u64, u64),
    /// A hole.
    Zeros(u64),
    Cut(u64),
}

fn damage() -> impl Strategy<Value = Damage> {
    // The offsets are taken modulo the size; half of them fall on the frames of the index.
    prop_oneof![
        6 => (any::<u64>(), any::<u8>()).prop_map(|(at, byte)| Damage::Byte(at, byte)),
        6 => (any::<u64>(), any::<u64>()).prop_map(|(at, word)| Damage::Word(at, word)),
        6 => (any::<u64>(), any::<u64>()).prop_map(|(at, from)| Damage::Copy(at, from)),
        1 => any::<u64>().prop_map(Damage::Zeros),
        1 => any::<u64>().prop_map(Damage::Cut),
    ]
}

/// Frames that look like parts of the index: mostly empty words and tagged entries.
fn index_frames(bytes: &[u8]) -> Vec<u64> {
    (0..bytes.len() / 4096)
        .filter(|frame| {
            let words = bytes[frame * 4096..][..4096].chunks_exact(8);
            let entries = words.filter(|word| {
                let word = u64::from_ne_bytes((*word).try_into().unwrap());
                word != 0 && word << 24 >> 24 < bytes.len() as u64 && matches!(word & 7, 1 | 3..6)
            });
            entries.count() > 0
        })
        .map(|frame| frame as u64 * 4096)
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 80, failure_persistence: None, ..Default::default() })]

    #[test]
    fn damage_is_met_with_errors_never_wrong_pages(
        damages in proptest::collection::vec((any::<bool>(), damage()), 1..12),
        shared in any::<bool>(),
    ) {
        let arena = ArenaPath::new();
        let (bytes, pages) = if shared { shared_sample() } else { sample() };
        write(&arena, bytes);
        let frames = index_frames(bytes);
        let used = bytes.iter().rposition(|byte| *byte != 0).unwrap() as u64;
        let file = OpenOptions::new().write(true).open(arena.path()).unwrap();
        for (in_index, damage) in damages {
            let place = |at: u64| if in_index {
                frames[(at >> 12) as usize % frames.len()] + at % 4096
            } else {
                at % used
            };
            match damage {
                Damage::Byte(at, byte) => file.write_all_at(&[byte], place(at)).unwrap(),
                Damage::Word(at, word) => {
                    file.write_all_at(&word.to_ne_bytes(), place(at) / 8 * 8).unwrap();
                }
                Damage::Copy(at, from) => {
                    let from = place(from) as usize / 8 * 8;
                    file.write_all_at(&bytes[from..from + 8], place(at) / 8 * 8).unwrap();
                }
                Damage::Zeros(at) => {
                    file.write_all_at(&[0; 4096], place(at) / 4096 * 4096).unwrap();
                }
                Damage::Cut(at) => file.set_len(at % bytes.len() as u64).unwrap(),
            }
        }
        survive(&arena.config(4 * MIB, Codec::Lzo), pages);
    }
}

/// A flipped bit in a page's payload, header or entry.
#[test]
fn each_damaged_page_is_reported_and_the_others_are_right() {
    flip_bits(sample());
}

#[test]
fn each_damaged_shared_page_is_reported_and_the_others_are_right() {
    flip_bits(shared_sample());
}

fn flip_bits((bytes, pages): &(Vec<u8>, Pages)) {
    let arena = ArenaPath::new();
    write(&arena, bytes);
    let mut random = Random(1);
    let mut met = 0;
    let used = bytes.iter().rposition(|byte| *byte != 0).unwrap() as u64;
    let is_zero = |at: u64| bytes[at as usize / 8 * 8..][..8] == [0; 8];
    for flip in 0..60 {
        let file = OpenOptions::new().write(true).open(arena.path()).unwrap();
        let mut anywhere = || 65_536 + random.below(used - 65_536);
        let mut at = anywhere();
        // Every other one where something is or was.
        while flip % 2 == 0 && is_zero(at) {
            at = anywhere();
        }
        let byte = bytes[at as usize] ^ 1 << random.below(8);
        file.write_all_at(&[byte], at).unwrap();
        let (store, recovery) = arena.open(4 * MIB);
        let mut cx = Context::new();
        let mut out = [0; PAGE_SIZE];
        let mut corrupt = 0;
        for (&(c, o, index), &seed) in pages {
            let pool = store.open_pool(CLIENTS[c]).unwrap();
            match pool.get(&mut cx, OBJECTS[o], index, &mut out) {
                Ok(found) => {
                    assert!(found, "byte {at}: not there, and no error");
                    assert_eq!(out, page(seed));
                }
                Err(_) => corrupt += 1,
            }
        }
        assert!(recovery.dropped == 0 || corrupt > 0 || is_zero(at));
        met += u64::from(corrupt > 0);
        drop(store);
        drop(file);
        write(&arena, bytes);
    }
    assert!(met > 10, "{met} of 60 flips met something in use");
}

/// An entry that leads to another entry's block is caught, and the block's own page is safe;
/// whichever of the two recovery meets first.
#[test]
fn a_copied_entry_costs_only_the_page_it_was_copied_over() {
    let (bytes, pages) = sample();
    let entries = block_entries(bytes);
    let (first, last) = (entries[0], entries[entries.len() - 1]);
    for (to, from) in [(first, last), (last, first)] {
        let arena = ArenaPath::new();
        write(&arena, bytes);
        let file = OpenOptions::new().write(true).open(arena.path()).unwrap();
        file.write_all_at(&(from.1 | 1).to_ne_bytes(), to.0)
            .unwrap();
        let (store, recovery) = arena.open(4 * MIB);
        assert_eq!(
            (recovery.dropped, recovery.pages),
            (1, pages.len() as u64 - 1)
        );
        let mut cx = Context::new();
        let mut out = [0; PAGE_SIZE];
        let right = pages.iter().filter(|&(&(c, o, index), &seed)| {
            let pool = store.open_pool(CLIENTS[c]).unwrap();
            pool.get(&mut cx, OBJECTS[o], index, &mut out) == Ok(true) && out == page(seed)
        });
        assert_eq!(right.count(), pages.len() - 1);
    }
}

/// The word beside a raw page's header is guarded by its own check: another's page is never taken
/// for this one's, and stays where it is.
#[test]
fn a_damaged_word_beside_a_header_costs_its_page_alone() {
    let (bytes, pages) = sample();
    let words: Vec<u64> = block_entries(bytes)
        .into_iter()
        .filter_map(|(_, block)| frame_word(bytes, block))
        .collect();
    let (first, last) = (words[0], words[words.len() - 1]);
    let another = |at: u64| bytes[at as usize..][..8].to_vec();
    let flips = (0..64).map(|bit| {
        let mut word = another(first);
        word[bit / 8] ^= 1 << (bit % 8);
        (first, word)
    });
    let swapped = [(first, another(last)), (last, another(first))];
    for (at, damage) in flips.chain(swapped).chain([(first, vec![0; 8])]) {
        let arena = ArenaPath::new();
        write(&arena, bytes);
        let file = OpenOptions::new().write(true).open(arena.path()).unwrap();
        file.write_all_at(&damage, at).unwrap();
        let (store, recovery) = arena.open(4 * MIB);
        assert_eq!(recovery.dropped, 1, "{damage:x?}");
        assert_eq!(answers(&store, pages), (pages.len() - 1, 1));
        drop(store);
        survive(&arena.config(4 * MIB, Codec::Lzo), pages);
    }
}

/// Leaf entries that lead to a record: (slot, record).
fn shared_entries(bytes: &[u8]) -> Vec<(u64, u64)> {
    let word = |offset: u64| u64::from_ne_bytes(*bytes[offset as usize..].first_chunk().unwrap());
    let records: Vec<u64> = block_entries(bytes)
        .into_iter()
        .map(|(slot, _)| slot)
        .filter(|slot| slot % 64 == 0 && word(slot + 24) == 2)
        .collect();
    (65_536..bytes.len() as u64)
        .step_by(8)
        .filter_map(|slot| {
            let record = word(slot) & 0xff_ffff_fff8;
            (word(slot) & 7 == 7 && records.contains(&record)).then_some((slot, record))
        })
        .collect()
}

/// How many pages answer as they should, and how many with an error, which are all others.
fn answers(store: &Store, pages: &Pages) -> (usize, usize) {
    let mut cx = Context::new();
    let mut out = [0; PAGE_SIZE];
    let right = pages.iter().filter(|&(&(c, o, index), &seed)| {
        let pool = store.open_pool(CLIENTS[c]).unwrap();
        match pool.get(&mut cx, OBJECTS[o], index, &mut out) {
            Ok(found) => {
                assert!(found && out == page(seed));
                true
            }
            Err(error) => {
                assert_eq!(error, GetError::Corrupt);
                false
            }
        }
    });
    let right = right.count();
    (right, pages.len() - right)
}

/// The block names its record, not its users: their entries are guarded by their own check.
#[test]
fn a_copied_shared_entry_costs_only_the_page_it_was_copied_over() {
    let (bytes, pages) = shared_sample();
    let entries = shared_entries(bytes);
    let (first, last) = (entries[0], entries[entries.len() - 1]);
    assert_ne!(first.1, last.1);
    for (to, from) in [(first, last), (last, first)] {
        let arena = ArenaPath::new();
        write(&arena, bytes);
        let file = OpenOptions::new().write(true).open(arena.path()).unwrap();
        let entry = &bytes[from.0 as usize..][..8];
        file.write_all_at(entry, to.0).unwrap();
        let (store, recovery) = arena.open(4 * MIB);
        assert_eq!(recovery.dropped, 1);
        assert_eq!(answers(&store, pages), (pages.len() - 1, 1));
        survive(&arena.config(4 * MIB, Codec::Lzo), pages);
    }
}

/// A record that leads to another one's block, or is not what it was, costs its own users.
#[test]
fn a_damaged_record_costs_its_users() {
    let (bytes, pages) = shared_sample();
    let entries = shared_entries(bytes);
    let (record, other) = (entries[0].1, entries[entries.len() - 1].1);
    let users = entries.iter().filter(|entry| entry.1 == record).count();
    assert!(users > 1);
    let another = bytes[other as usize..][..8].to_vec();
    let flipped = |at: u64| vec![bytes[(record + at) as usize] ^ 1];
    let damages = [
        (0, another),
        (0, vec![0; 8]),
        (8, flipped(8)),
        (12, flipped(12)),
        (24, flipped(24)),
        (32, flipped(32)),
    ];
    for (at, damage) in damages {
        let arena = ArenaPath::new();
        write(&arena, bytes);
        let file = OpenOptions::new().write(true).open(arena.path()).unwrap();
        file.write_all_at(&damage, record + at).unwrap();
        let (store, recovery) = arena.open(4 * MIB);
        assert_eq!(recovery.dropped, users as u64, "byte {at}");
        assert_eq!(answers(&store, pages), (pages.len() - users, users));
        drop(store);
        survive(&arena.config(4 * MIB, Codec::Lzo), pages);
    }
    // The count is not believed.
    let arena = ArenaPath::new();
    write(&arena, bytes);
    let file = OpenOptions::new().write(true).open(arena.path()).unwrap();
    file.write_all_at(&[0xff; 8], record + 16).unwrap();
    let (store, recovery) = arena.open(4 * MIB);
    assert_eq!(recovery.dropped, 0);
    assert_eq!(answers(&store, pages), (pages.len(), 0));
    drop(store);
    survive(&arena.config(4 * MIB, Codec::Lzo), pages);
}

/// What a put leaves that was killed after it made its nodes and before it published its page.
#[test]
fn nodes_that_never_got_their_page_are_given_back() {
    let arena = ArenaPath::new();
    {
        let (store, _) = arena.open(MIB);
        let pool = store.open_pool("a").unwrap();
        let mut cx = Context::new();
        for object in [ObjectId([1, 0, 0]), ObjectId([2, 0, 0])] {
            pool.put(&mut cx, object, 1 << 20, &page(1)).unwrap();
        }
    }
    let file = OpenOptions::new().write(true).open(arena.path()).unwrap();
    for (slot, _) in block_entries(&fs::read(arena.path()).unwrap()) {
        file.write_all_at(&[0; 8], slot).unwrap();
    }
    let (store, recovery) = arena.open(MIB);
    assert_eq!((recovery.pages, recovery.dropped), (0, 0));
    let usage = store.usage().unwrap();
    assert_eq!(
        (usage.data, usage.fragmentation, usage.meta),
        (0, 0, 64 * 1024)
    );
}

/// A same-filled page has nothing but its entry: each of its bits is guarded there.
#[test]
fn a_changed_pattern_is_damage() {
    let arena = ArenaPath::new();
    let mut cx = Context::new();
    {
        let (store, _) = arena.open(MIB);
        store
            .open_pool("a")
            .unwrap()
            .put(&mut cx, SWAP, 0, &[0x5a; PAGE_SIZE])
            .unwrap();
    }
    let bytes = fs::read(arena.path()).unwrap();
    let is_pattern = |slot: &usize| {
        let word = u64::from_ne_bytes(bytes[*slot..*slot + 8].try_into().unwrap());
        word & 7 == 2 && (word >> 3) as u32 == 0x5a5a_5a5a
    };
    let slot = (65_536..bytes.len()).step_by(8).find(is_pattern).unwrap();
    for bit in 0..64 {
        fs::write(arena.path(), &bytes).unwrap();
        let file = OpenOptions::new().write(true).open(arena.path()).unwrap();
        let byte = bytes[slot + bit / 8] ^ 1 << (bit % 8);
        file.write_all_at(&[byte], (slot + bit / 8) as u64).unwrap();
        let (store, recovery) = arena.open(MIB);
        assert_eq!((recovery.dropped, recovery.pages), (1, 0), "bit {bit}");
        let got = store
            .open_pool("a")
            .unwrap()
            .get(&mut cx, SWAP, 0, &mut [0; PAGE_SIZE]);
        assert_eq!(got, Err(GetError::Corrupt));
    }
}

fn with_header(
    change: impl FnOnce(&mut [u8]),
) -> (ArenaPath, Result<(Store, kzt_store::Recovery), OpenError>) {
    let arena = ArenaPath::new();
    let mut bytes = sample().0.clone();
    change(&mut bytes);
    fs::write(arena.path(), &bytes).unwrap();
    let opened = Store::open(&arena.config(4 * MIB, Codec::Lzo));
    if opened.is_err() {
        assert_eq!(fs::read(arena.path()).unwrap(), bytes, "the file is kept");
    }
    (arena, opened)
}

fn crc(bytes: &mut [u8]) {
    let crc = crc32c::crc32c(&bytes[8..56]);
    bytes[56..60].copy_from_slice(&crc.to_ne_bytes());
}

#[test]
fn another_version_is_refused() {
    let (_arena, opened) = with_header(|bytes| {
        bytes[8] = 3;
        crc(bytes);
    });
    assert!(matches!(
        opened,
        Err(OpenError::Version {
            found: 3,
            expected: 2,
            ..
        })
    ));
}

#[test]
fn a_damaged_header_is_refused() {
    for offset in [0, 16, 40, 57] {
        let (_arena, opened) = with_header(|bytes| bytes[offset] ^= 1);
        assert!(
            matches!(opened, Err(OpenError::NotAnArena { .. })),
            "byte {offset}"
        );
    }
    let (_arena, opened) = with_header(|bytes| bytes[..8].fill(0));
    assert!(
        matches!(opened, Err(OpenError::NotAnArena { .. })),
        "it has pools"
    );
}

/// Offset of a used slot of the pool table, and the words that describe its pool, each of them
/// twice; the one between is the directory's root.
const SLOT: usize = 4096;
const FIRST: [std::ops::Range<usize>; 2] = [SLOT..SLOT + 8, SLOT + 16..SLOT + 64];
const COPY: [std::ops::Range<usize>; 2] = [SLOT + 64..SLOT + 72, SLOT + 80..SLOT + 128];

/// A pool's slot is all that leads to its pages: no damage to one description costs any.
#[test]
fn a_damaged_pool_slot_is_mended_by_its_copy() {
    let pages = &sample().1;
    let words = [FIRST, COPY]
        .concat()
        .into_iter()
        .flat_map(|r| r.step_by(8));
    let flips = words
        .clone()
        .flat_map(|at| [0, 8, 19, 41, 63].map(|bit| (at, 1_u64 << bit)));
    // And whole words that are lost.
    for (at, mask) in flips.chain(words.map(|at| (at, 0))) {
        let arena = ArenaPath::new();
        let mut bytes = sample().0.clone();
        let word: &mut [u8; 8] = (&mut bytes[at..at + 8]).try_into().unwrap();
        let value = u64::from_ne_bytes(*word);
        let damaged = if mask == 0 { 0 } else { value ^ mask };
        *word = damaged.to_ne_bytes();
        fs::write(arena.path(), &bytes).unwrap();
        let (store, recovery) = arena.open(4 * MIB);
        let told = usize::from(damaged != value);
        assert_eq!(recovery.warnings.len(), told, "{:?}", recovery.warnings);
        assert!(recovery.warnings.iter().all(|text| text.contains("mended")));
        let found = (recovery.pools, recovery.pages, recovery.dropped);
        assert_eq!(found, (2, pages.len() as u64, 0), "word {at}, {mask:#x}");
        assert_eq!(store.clients(), CLIENTS);
        drop(store);
        let (_, again) = arena.open(4 * MIB);
        assert_eq!((again.warnings.len(), again.pages), (0, recovery.pages));
    }
}

/// Nobody is given such a pool's pages, and nobody is told that all is well.
#[test]
fn a_pool_slot_beyond_repair_is_told() {
    let all = sample().1.len() as u64;
    for (first, copy) in [
        (SLOT, SLOT + 64),
        (SLOT + 16, SLOT + 80),
        (SLOT + 3, SLOT + 100),
    ] {
        let arena = ArenaPath::new();
        let mut bytes = sample().0.clone();
        bytes[first] ^= 0x10;
        bytes[copy] ^= 0x20;
        fs::write(arena.path(), &bytes).unwrap();
        let (store, recovery) = arena.open(4 * MIB);
        let found = (recovery.pools, recovery.pages, recovery.dropped);
        assert_eq!(found, (1, all / 2, 1));
        assert!(recovery.warnings[0].contains("beyond repair"));
        assert_eq!(store.clients(), CLIENTS[1..]);
    }
}

/// A slot that was copied over another would let two pools have the same pages.
#[test]
fn a_pool_slot_that_is_there_twice_counts_once() {
    let arena = ArenaPath::new();
    let mut bytes = sample().0.clone();
    bytes.copy_within(SLOT..SLOT + 128, SLOT + 128);
    fs::write(arena.path(), &bytes).unwrap();
    let (store, recovery) = arena.open(4 * MIB);
    let found = (recovery.pools, recovery.pages, recovery.dropped);
    assert_eq!(found, (1, sample().1.len() as u64 / 2, 1));
    assert_eq!(store.clients(), CLIENTS[..1]);
}

#[test]
fn an_arena_from_before_a_reboot_begins_anew() {
    let (arena, opened) = with_header(|bytes| {
        bytes[16] ^= 1;
        crc(bytes);
    });
    let (store, recovery) = opened.unwrap();
    assert_eq!((recovery.origin, recovery.pages), (Origin::Reboot, 0));
    assert!(store.clients().is_empty());
    assert!(store.usage().unwrap().allocated <= MIB);
    drop(store);
    let (_, recovery) = arena.open(4 * MIB);
    assert_eq!(recovery.origin, Origin::Recovered);
}

#[test]
fn a_creation_that_was_interrupted_is_done_again() {
    let arena = ArenaPath::new();
    fs::write(arena.path(), vec![0; 65_536]).unwrap();
    let (_, recovery) = arena.open(MIB);
    assert_eq!(recovery.origin, Origin::New);
}

/// Each state that a creation can be interrupted in: the header's words come in order, the magic
/// last.
#[test]
fn a_creation_that_was_interrupted_anywhere_is_done_again() {
    let made = ArenaPath::new();
    drop(made.open(MIB));
    let header = fs::read(made.path()).unwrap()[..64].to_vec();
    for words in 1..=7 {
        let arena = ArenaPath::new();
        let mut bytes = vec![0; MIB as usize];
        bytes[8..8 + words * 8].copy_from_slice(&header[8..8 + words * 8]);
        fs::write(arena.path(), &bytes[..65_536]).unwrap();
        let file = OpenOptions::new().write(true).open(arena.path()).unwrap();
        file.set_len(MIB).unwrap();
        let (_, recovery) = arena.open(MIB);
        assert_eq!(recovery.origin, Origin::New, "{words} words");
    }
}

/// A file that begins with zeros is not ours for that.
#[test]
fn a_file_without_magic_that_holds_anything_is_not_touched() {
    for at in [64, 4095, 4096, 65_535, 65_536, 900_000] {
        let arena = ArenaPath::new();
        fs::write(arena.path(), vec![0; 65_536]).unwrap();
        let file = OpenOptions::new().write(true).open(arena.path()).unwrap();
        file.set_len(MIB).unwrap();
        file.write_all_at(b"x", at).unwrap();
        let before = fs::read(arena.path()).unwrap();
        let opened = Store::open(&arena.config(MIB, Codec::Lzo));
        assert!(matches!(opened, Err(OpenError::NotAnArena { .. })), "{at}");
        assert_eq!(fs::read(arena.path()).unwrap(), before);
    }
}

#[test]
fn other_files_are_not_touched() {
    let arena = ArenaPath::new();
    fs::write(arena.path(), b"precious").unwrap();
    let opened = Store::open(&arena.config(MIB, Codec::Lzo));
    assert!(matches!(opened, Err(OpenError::NotAnArena { .. })));
    assert_eq!(fs::read(arena.path()).unwrap(), b"precious");
    let link = ArenaPath::new();
    std::os::unix::fs::symlink(arena.path(), link.path()).unwrap();
    assert!(matches!(
        Store::open(&link.config(MIB, Codec::Lzo)),
        Err(OpenError::Io { .. })
    ));
    let folder = Config::new("/dev/shm", MIB);
    assert!(Store::open(&folder).is_err());
}

/// Tables for what it claims to be would take gigabytes of heap.
#[test]
fn a_file_longer_than_any_arena_is_refused() {
    let arena = ArenaPath::new();
    write(&arena, &sample().0);
    let file = OpenOptions::new().write(true).open(arena.path()).unwrap();
    for (len, sound) in [((1 << 40) + 1, false), (4 * MIB, true)] {
        file.set_len(len).unwrap();
        let opened = Store::open(&arena.config(4 * MIB, Codec::Lzo));
        match opened {
            Err(OpenError::NotAnArena { .. }) => assert!(!sound),
            opened => assert!(sound && opened.is_ok()),
        }
    }
}

#[test]
fn sizes_are_checked() {
    let arena = ArenaPath::new();
    for memory in [0, MIB - 1, (1 << 40) + 1, u64::MAX] {
        let opened = Store::open(&arena.config(memory, Codec::Lzo));
        assert!(matches!(opened, Err(OpenError::Memory { .. })));
    }
    let opened = Store::open(&arena.config(1 << 40, Codec::Lzo));
    assert!(matches!(opened, Err(OpenError::FilesystemFull { needed, free, .. }) if needed > free));
}

#[test]
fn a_disk_is_warned_of() {
    let path = std::env::temp_dir().join(format!("kzt-store-test-{}", std::process::id()));
    let config = Config::new(&path, MIB);
    let opened = Store::open(&config);
    let _ = fs::remove_file(&path);
    let tmpfs = config.arena.starts_with("/dev/shm");
    assert_eq!(opened.unwrap().1.warnings.is_empty(), tmpfs);
}

/// A put below something that was lost makes its own page good, and no other object's pages
/// zeros: those were lost as well.
#[test]
fn an_object_put_anew_does_not_make_its_lost_neighbours_absent() {
    const POOL_ROOT: u64 = 4096 + 8;
    let arena = ArenaPath::new();
    write(&arena, &sample().0);
    let file = OpenOptions::new().write(true).open(arena.path()).unwrap();
    file.write_all_at(&[7; 8], POOL_ROOT).unwrap();
    let mut cx = Context::new();
    let mut out = [0; PAGE_SIZE];
    let mut lost: Vec<ObjectId> = OBJECTS.to_vec();
    lost.extend((3..60).map(|id| ObjectId([id, 0, 0])));
    while let Some(object) = lost.pop() {
        let (store, _) = arena.open(4 * MIB);
        let pool = store.open_pool("a").unwrap();
        pool.put(&mut cx, object, 5, &page(1)).unwrap();
        assert_eq!(pool.get(&mut cx, object, 5, &mut out), Ok(true));
        for other in lost.iter().chain(&[ObjectId([u64::MAX; 3])]) {
            let got = pool.get(&mut cx, *other, 5, &mut out);
            assert_eq!(got, Err(GetError::Corrupt), "{other:?} after {object:?}");
        }
    }
    let (store, _) = arena.open(4 * MIB);
    for client in CLIENTS {
        store.destroy_pool(client).unwrap();
    }
    let usage = store.usage().unwrap();
    assert_eq!((usage.data, usage.fragmentation), (0, 0));
}

/// However far a put below something that was lost gets before it is refused.
#[test]
fn a_refused_put_does_not_make_a_lost_page_absent() {
    const POOL_ROOT: u64 = 4096 + 8;
    let arena = ArenaPath::new();
    write(&arena, &sample().0);
    let file = OpenOptions::new().write(true).open(arena.path()).unwrap();
    file.write_all_at(&[7; 8], POOL_ROOT).unwrap();
    let (store, _) = arena.open(4 * MIB);
    let lost = store.open_pool("a").unwrap();
    let other = store.open_pool("b").unwrap();
    let mut cx = Context::new();
    let mut out = [0; PAGE_SIZE];
    // Each of these takes a frame, for its node, and nothing else.
    let alone = |number: u32| number * 512;
    let filled = (1..4096)
        .find(|&i| {
            let put = other.put(&mut cx, SWAP, alone(i), &[0; PAGE_SIZE]);
            put.is_err()
        })
        .unwrap();
    let mut refused = 0;
    while lost.put(&mut cx, OBJECTS[1], 5, &[1; PAGE_SIZE]).is_err() {
        let got = lost.get(&mut cx, OBJECTS[1], 5, &mut out);
        assert_eq!(got, Err(GetError::Corrupt), "with {refused} frames free");
        refused += 1;
        assert!(other.flush(SWAP, alone(filled - refused)));
    }
    assert!(refused > 3, "for directory and tree");
}
