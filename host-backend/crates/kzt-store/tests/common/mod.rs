// SPDX-License-Identifier: GPL-2.0-or-later
//! What the tests share: arenas in /dev/shm that go when the test ends, and pages.

#![allow(dead_code, reason = "each test binary uses a part of it")]

pub(crate) mod abi;
pub(crate) mod blocks;
pub(crate) mod victim;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use kzt_store::{Codec, Config, ObjectId, PAGE_SIZE, Page, Recovery, SpillConfig, Store};

/// The object of a swap device.
pub(crate) const SWAP: ObjectId = ObjectId([0; 3]);

pub(crate) const MIB: u64 = 1 << 20;

/// An arena's path, removed on drop.
pub(crate) struct ArenaPath(PathBuf);

impl ArenaPath {
    pub(crate) fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = format!("/dev/shm/kzt-store-test-{}-{number}", std::process::id());
        Self(path.into())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn config(&self, memory: u64, codec: Codec) -> Config {
        Config {
            codec,
            ..Config::new(&self.0, memory)
        }
    }

    pub(crate) fn open(&self, memory: u64) -> (Store, Recovery) {
        Store::open(&Config::new(&self.0, memory)).unwrap()
    }
}

impl ArenaPath {
    /// Changes a byte of the payload of the only page that is in a block.
    pub(crate) fn damage_the_only_block(&self) {
        let bytes = std::fs::read(self.path()).unwrap();
        let [(_, block)] = block_entries(&bytes)[..] else {
            panic!("there is one block");
        };
        let file = File::options().write(true).open(self.path()).unwrap();
        file.write_all_at(b"damage", payload(&bytes, block) + 4)
            .unwrap();
    }
}

impl Drop for ArenaPath {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A spill file's path on a disk, removed on drop.
pub(crate) struct SpillPath(PathBuf);

impl SpillPath {
    pub(crate) fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("kzt-store-test-{}-{number}.spill", std::process::id());
        Self(std::env::temp_dir().join(name))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn config(&self, size: u64) -> SpillConfig {
        SpillConfig {
            path: self.0.clone(),
            size,
        }
    }
}

impl Drop for SpillPath {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A small generator (`SplitMix64`) for reproducible tests.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ x >> 31
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// The page that `seed` names: a quarter each same-filled, nearly empty, half random, random.
pub(crate) fn page(seed: u64) -> Page {
    let mut random = Random(seed);
    let mut page = [0; PAGE_SIZE];
    let random_bytes = match seed % 4 {
        0 => {
            let word = match seed / 4 % 3 {
                0 => random.next(),
                1 => 0,
                _ => (random.next() >> 32) * 0x1_0000_0001,
            };
            page.chunks_exact_mut(8)
                .for_each(|chunk| chunk.copy_from_slice(&word.to_ne_bytes()));
            return page;
        }
        1 => 16,
        2 => 8 + random.below(3000) as usize,
        _ => PAGE_SIZE,
    };
    page[..random_bytes]
        .iter_mut()
        .for_each(|byte| *byte = random.next() as u8);
    page[PAGE_SIZE - 1] ^= 1;
    page
}

/// Where the word is that says in which frame a raw page is, if the block is one's.
pub(crate) fn frame_word(bytes: &[u8], block: u64) -> Option<u64> {
    let location = u64::from_ne_bytes(*bytes[block as usize..].first_chunk().unwrap());
    let number = block % 4096 / 16;
    (location >> 16 & 0x3ff == 514).then(|| block - block % 4096 + 170 * 16 + number * 8)
}

/// Where a block's payload is.
pub(crate) fn payload(bytes: &[u8], block: u64) -> u64 {
    frame_word(bytes, block).map_or(block + 16, |word| {
        let word = u64::from_ne_bytes(*bytes[word as usize..].first_chunk().unwrap());
        word & 0xff_ffff_f000
    })
}

/// Leaf entries of an arena's content that lead to a block: (slot, block). A block's location
/// word says which slot is its own.
pub(crate) fn block_entries(bytes: &[u8]) -> Vec<(u64, u64)> {
    let word = |offset: u64| {
        let bytes = bytes.get(offset as usize..)?.first_chunk()?;
        Some(u64::from_ne_bytes(*bytes))
    };
    (65_536..bytes.len() as u64)
        .step_by(8)
        .filter_map(|slot| {
            let block = word(slot)?.checked_sub(1).filter(|block| block % 16 == 0)?;
            (word(block)? >> 26 == slot / 8).then_some((slot, block))
        })
        .collect()
}
