// SPDX-License-Identifier: GPL-2.0-or-later
//! A tmpfs that is full: puts are refused, nothing is lost, nobody dies of SIGBUS.
//!
//! The tmpfs is mounted by a child in a mount namespace of its own (with a user namespace where
//! the test does not run as root).

#![allow(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test may fail"
)]

mod common;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use common::{MIB, SWAP, block_entries, page};
use kzt_store::{Config, Context, OpenError, PAGE_SIZE, PutError, Store};

/// Set in the child: the folder where its tmpfs of 8 MiB is.
const CHILD: &str = "KZT_STORE_FULL_CHILD";

/// Fills the tmpfs to the last byte.
fn fill(path: &Path) {
    let mut file = File::create(path).unwrap();
    while file.write_all(&[1; PAGE_SIZE]).is_ok() {}
}

fn random_page(index: u32) -> [u8; PAGE_SIZE] {
    page(u64::from(index) * 4 + 3)
}

fn in_small_tmpfs(folder: &Path) {
    let config = |memory| Config::new(folder.join("arena"), memory);
    let filler = folder.join("filler");
    let opened = Store::open(&config(16 * MIB));
    assert!(matches!(opened, Err(OpenError::FilesystemFull { total, .. }) if total == 8 * MIB));

    let mut cx = Context::new();
    let mut out = [0; PAGE_SIZE];
    {
        let (store, recovery) = Store::open(&config(6 * MIB)).unwrap();
        assert!(recovery.warnings.is_empty());
        let pool = store.open_pool("a").unwrap();
        for index in 0..300 {
            pool.put(&mut cx, SWAP, index, &random_page(index)).unwrap();
        }
        fill(&filler);
        let refused = (300..10_000)
            .find(|&index| pool.put(&mut cx, SWAP, index, &random_page(index)).is_err())
            .unwrap();
        assert!(
            store.usage().unwrap().allocated < 3 * MIB,
            "far from its own limit"
        );
        assert_eq!(
            pool.put(&mut cx, SWAP, refused, &random_page(refused)),
            Err(PutError::NoMemory)
        );
        store.maintain();
        for index in 0..refused {
            assert!(pool.get(&mut cx, SWAP, index, &mut out).unwrap());
            assert_eq!(out, random_page(index));
        }
        pool.flush_range(SWAP, 300, 10_000);
    }
    // The daemon comes back while it is still full; and an entry leads into a hole.
    let bytes = fs::read(folder.join("arena")).unwrap();
    let (slot, _) = block_entries(&bytes)[0];
    let file = OpenOptions::new()
        .write(true)
        .open(folder.join("arena"))
        .unwrap();
    let hole: u64 = 6 * MIB - 4096;
    file.write_all_at(&(hole | 1).to_ne_bytes(), slot).unwrap();
    {
        let (store, recovery) = Store::open(&config(6 * MIB)).unwrap();
        assert_eq!((recovery.pages, recovery.dropped), (299, 1));
        assert_eq!(recovery.warnings.len(), 1);
        let pool = store.open_pool("a").unwrap();
        assert!(pool.get(&mut cx, SWAP, 299, &mut out).unwrap());
        fs::remove_file(&filler).unwrap();
        for index in 300..1000 {
            pool.put(&mut cx, SWAP, index, &random_page(index)).unwrap();
        }
    }
    fs::remove_file(folder.join("arena")).unwrap();
    // Nor can it be created there.
    fill(&filler);
    assert!(matches!(
        Store::open(&config(MIB)),
        Err(OpenError::FilesystemFull { .. })
    ));
}

#[test]
fn a_full_tmpfs_is_an_ordinary_refusal() {
    if let Some(folder) = std::env::var_os(CHILD) {
        in_small_tmpfs(Path::new(&folder));
        return;
    }
    let folder = std::env::temp_dir().join(format!("kzt-store-full-{}", std::process::id()));
    fs::create_dir(&folder).unwrap();
    let script = "mount -t tmpfs -o size=8m tmpfs \"$1\" || exit 77; exec \"$2\" --exact \
                  a_full_tmpfs_is_an_ordinary_refusal --nocapture";
    let status = Command::new("unshare")
        .args(["--map-root-user", "--mount", "sh", "-c", script, "sh"])
        .arg(&folder)
        .arg(std::env::current_exe().unwrap())
        .env(CHILD, &folder)
        .status();
    fs::remove_dir(&folder).unwrap();
    assert!(
        status.unwrap().success(),
        "unshare and mount work here, and so does the child"
    );
}
