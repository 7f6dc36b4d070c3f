// SPDX-License-Identifier: GPL-2.0-or-later
//! The disk under the spill file: full, failing, or standing still.
//!
//! Each test runs in a child of its own: one on a small tmpfs in a mount namespace, the others with
//! a library preloaded (`common/disk.c`) that makes the disk do what a file says.

#![allow(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test may fail"
)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use common::{ArenaPath, MIB, SWAP, page};
use kzt_store::{
    Config, Context, GetError, PAGE_SIZE, Pool, PutError, SpillConfig, Store, UpdateError,
};

/// Set in the child: the folder of its disk.
const CHILD: &str = "KZT_STORE_DISK_CHILD";
const MEMORY: u64 = 2 * MIB;

/// A page that no codec shrinks.
fn raw(index: u32) -> [u8; PAGE_SIZE] {
    page(u64::from(index) * 4 + 3)
}

fn open(arena: &ArenaPath, folder: &Path) -> Store {
    let config = Config {
        spill: Some(SpillConfig {
            path: folder.join("test.spill"),
            size: 64 * MIB,
        }),
        ..Config::new(arena.path(), MEMORY)
    };
    Store::open(&config).unwrap().0
}

fn put(pool: &Pool, index: u32) -> Result<(), PutError> {
    pool.put(&mut Context::new(), SWAP, index, &raw(index))
}

/// Puts pages until one is refused; which one.
fn put_until_refused(pool: &Pool, from: u32) -> u32 {
    (from..100_000)
        .find(|&index| put(pool, index) == Err(PutError::NoMemory))
        .unwrap()
}

/// Puts a page that was refused, as soon as the disk is tried again.
fn put_at_last(pool: &Pool, index: u32) {
    while put(pool, index).is_err() {
        std::thread::yield_now();
    }
}

fn assert_all(pool: &Pool, indices: impl IntoIterator<Item = u32>) {
    let mut cx = Context::new();
    let mut out = [0; PAGE_SIZE];
    for index in indices {
        assert_eq!(pool.get(&mut cx, SWAP, index, &mut out), Ok(true));
        assert!(out == raw(index), "{index} is another page");
    }
}

/// Removes a folder in the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let name = format!("kzt-store-disk-{}-{name}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs a test in a child with a disk that does what [`Disk::is`] says.
fn with_disk(test: &str, run: impl FnOnce(&Disk)) {
    if let Some(folder) = std::env::var_os(CHILD) {
        run(&Disk(folder.into()));
        return;
    }
    let folder = Folder::new(test);
    let library = folder.0.join("disk.so");
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .arg(&library)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/common/disk.c"))
        .status();
    assert!(built.unwrap().success());
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(CHILD, &folder.0)
        .env("LD_PRELOAD", &library)
        .env("KZT_TEST_DISK", folder.0.join("disk"))
        .status();
    assert!(status.unwrap().success());
}

struct Disk(PathBuf);

impl Disk {
    /// What it does from now on.
    fn is(&self, state: &str) {
        let new = self.0.join("new");
        fs::write(&new, state).unwrap();
        fs::rename(new, self.0.join("disk")).unwrap();
    }
}

#[test]
fn a_disk_without_room_is_a_refusal_and_loses_nothing() {
    with_disk(
        "a_disk_without_room_is_a_refusal_and_loses_nothing",
        |disk| {
            let arena = ArenaPath::new();
            let store = open(&arena, &disk.0);
            let pool = store.open_pool("a").unwrap();
            assert!((0..1000).all(|index| put(&pool, index).is_ok()));
            disk.is("enospc");
            let refused = put_until_refused(&pool, 1000);
            let usage = store.usage().unwrap().spill.unwrap();
            assert_eq!((usage.write_errors, usage.read_errors), (1, 0));
            assert_eq!(
                put(&pool, refused),
                Err(PutError::NoMemory),
                "it is left alone"
            );
            assert_all(&pool, 0..refused);
            disk.is("ok");
            put_at_last(&pool, refused);
            assert!((refused + 1..3000).all(|index| put(&pool, index).is_ok()));
            assert_all(&pool, 0..3000);
        },
    );
}

#[test]
fn a_page_that_cannot_be_read_is_an_error_and_stays() {
    with_disk("a_page_that_cannot_be_read_is_an_error_and_stays", |disk| {
        let arena = ArenaPath::new();
        let store = open(&arena, &disk.0);
        let pool = store.open_pool("a").unwrap();
        assert!((0..1000).all(|index| put(&pool, index).is_ok()));
        disk.is("eio");
        let mut cx = Context::new();
        let mut out = [0; PAGE_SIZE];
        let mut failed = 0;
        for index in 0..1000 {
            match pool.get(&mut cx, SWAP, index, &mut out) {
                Err(GetError::Io) => failed += 1,
                got => assert!(got == Ok(true) && out == raw(index)),
            }
        }
        let stats = pool.stats();
        assert_eq!((failed, failed), (stats.spilled, stats.io_errors));
        assert!(failed > 500);
        let change = pool.update(&mut cx, SWAP, 0, |page| page[0] = 0);
        assert_eq!(change, Err(UpdateError::Io));
        assert_eq!(pool.stats().crc_errors, 0);
        // What is not read can be replaced, and more be put.
        put(&pool, 0).unwrap();
        assert!((1000..1100).all(|index| put(&pool, index).is_ok()));
        disk.is("ok");
        assert_all(&pool, 0..1100);
    });
}

/// One client waits for its page, another for memory; nobody else does.
#[test]
fn who_needs_no_disk_does_not_wait_for_it() {
    with_disk("who_needs_no_disk_does_not_wait_for_it", |disk| {
        let arena = ArenaPath::new();
        let store = open(&arena, &disk.0);
        let [reader, writer, other] = ["reader", "writer", "other"].map(|name| {
            let pool = store.open_pool(name).unwrap();
            (0..400).for_each(|index| put(&pool, index).unwrap());
            pool
        });
        assert_eq!(reader.stats().spilled, 400);
        let in_memory: Vec<u32> = (1..400)
            .filter(|&index| {
                let before = other.stats().spill_reads;
                assert_all(&other, [index]);
                other.stats().spill_reads == before
            })
            .collect();
        assert!(in_memory.len() > 100);
        disk.is("still");
        let waiting = AtomicBool::new(true);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                assert_all(&reader, 0..1);
                assert!(!waiting.load(Relaxed), "the disk was moving");
            });
            scope.spawn(|| {
                (400..500).for_each(|index| put(&writer, index).unwrap());
                assert!(!waiting.load(Relaxed), "the disk was moving");
            });
            // The reader's own pages, too, but the one.
            while reader.stats().spill_reads == 0 {
                std::thread::yield_now();
            }
            assert!(reader.flush(SWAP, 1));
            for _ in 0..10 {
                assert_all(&other, in_memory.iter().copied());
                other
                    .put(&mut Context::new(), SWAP, 0, &[7; PAGE_SIZE])
                    .unwrap();
                assert!(other.flush(SWAP, 0));
            }
            waiting.store(false, Relaxed);
            disk.is("ok");
        });
        assert_all(&writer, 0..500);
    });
}

#[test]
fn a_small_disk_is_full_some_day() {
    if let Some(folder) = std::env::var_os(CHILD) {
        let arena = ArenaPath::new();
        let pages = {
            let store = open(&arena, Path::new(&folder));
            let pool = store.open_pool("a").unwrap();
            let full = put_until_refused(&pool, 0);
            assert_all(&pool, 0..full);
            // What is free already is written to first, so there is room again.
            assert_eq!(pool.flush_range(SWAP, 0, 1000), 1000);
            for index in full..full + 500 {
                put_at_last(&pool, index);
            }
            full + 500
        };
        let store = open(&arena, Path::new(&folder));
        assert_all(&store.open_pool("a").unwrap(), 1000..pages);
        return;
    }
    let folder = Folder::new("small");
    let script = "mount -t tmpfs -o size=8m tmpfs \"$1\" || exit 77; exec \"$2\" --exact \
                  a_small_disk_is_full_some_day --nocapture";
    let status = Command::new("unshare")
        .args(["--map-root-user", "--mount", "sh", "-c", script, "sh"])
        .arg(&folder.0)
        .arg(std::env::current_exe().unwrap())
        .env(CHILD, &folder.0)
        .status();
    assert!(
        status.unwrap().success(),
        "unshare and mount work here, and so does the child"
    );
}
