// SPDX-License-Identifier: GPL-2.0-or-later
//! How long a store with many pages takes to serve again: `cargo bench -p kzt-store`. What a put
//! and a get cost, `kztmemd bench store` tells.

#![allow(clippy::unwrap_used, reason = "a benchmark may fail")]

use std::path::PathBuf;
use std::time::Instant;

use kzt_store::{Config, Context, ObjectId, PAGE_SIZE, Page, Store};

const PAGES: usize = 32 * 1024;
const DEVICE: ObjectId = ObjectId([0; 3]);

/// Pages of this machine's libraries.
fn corpus() -> Vec<Page> {
    let mut libraries: Vec<PathBuf> = std::fs::read_dir("/usr/lib/x86_64-linux-gnu")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.to_string_lossy().contains(".so"))
        .collect();
    libraries.sort();
    libraries
        .into_iter()
        .filter_map(|path| std::fs::read(path).ok())
        .flat_map(|bytes| {
            bytes
                .chunks_exact(PAGE_SIZE)
                .map(|page| page.try_into().unwrap())
                .collect::<Vec<Page>>()
        })
        .take(PAGES)
        .collect()
}

/// How long the next owner of an arena with `count` pages takes to serve.
fn recovery(count: u32, pages: &[Page]) {
    let arena = PathBuf::from(format!("/dev/shm/kzt-store-bench-{}", std::process::id()));
    let config = Config::new(&arena, 4 << 30);
    let (store, _) = Store::open(&config).unwrap();
    let pool = store.open_pool("bench").unwrap();
    let mut cx = Context::new();
    for (index, page) in (0..count).zip(pages.iter().cycle()) {
        pool.put(&mut cx, DEVICE, index, page).unwrap();
    }
    drop((pool, store));
    let start = Instant::now();
    let (store, recovery) = Store::open(&config).unwrap();
    let elapsed = start.elapsed().as_secs_f64();
    assert_eq!((recovery.pages, recovery.dropped), (u64::from(count), 0));
    let usage = store.usage().unwrap();
    println!(
        "recovery of {count} pages in {} MB: {elapsed:.3} s",
        usage.allocated / 1_000_000
    );
    drop(store);
    std::fs::remove_file(arena).unwrap();
}

fn main() {
    let pages = corpus();
    for count in [250_000, 1_000_000] {
        recovery(count, &pages);
    }
}
