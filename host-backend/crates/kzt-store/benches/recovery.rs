// SPDX-License-Identifier: GPL-2.0-or-later
//! How long a store with a million pages takes to serve again: `cargo bench -p kzt-store`, all cases or
//! those that are named behind `--`. What a put and a get cost, `kztmemd bench store` tells.

#![allow(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a benchmark may fail"
)]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use kzt_store::{Allocator, Config, Context, Dedup, ObjectId, PAGE_SIZE, Page, SpillConfig, Store};

const PAGES: usize = 32 * 1024;
/// Openings of each arena; the median and the range are told.
const ROUNDS: usize = 5;
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

/// What the pages of a store are like.
struct Case {
    name: &'static str,
    memory: u64,
    /// Most bytes of a spill file, if there is one.
    spill: Option<u64>,
    /// Whether pages share memory. Each of them is there some thirty times.
    dedup: Dedup,
    persistent: Allocator,
}

impl Case {
    fn config(&self) -> Config {
        let name = format!("kzt-store-bench-{}", std::process::id());
        let path = std::env::temp_dir().join(&name);
        Config {
            persistent: self.persistent,
            spill: self.spill.map(|size| SpillConfig { path, size }),
            ..Config::new(PathBuf::from("/dev/shm").join(name), self.memory)
        }
    }

    /// How long the next owner of an arena with `count` pages takes to serve.
    fn measure(&self, count: u32, pages: &[Page]) {
        let config = self.config();
        let (store, _) = Store::open(&config).unwrap();
        store.client("bench").unwrap().set_dedup(&self.dedup);
        let pool = store.open_pool("bench").unwrap();
        let mut cx = Context::new();
        for (index, page) in (0..count).zip(pages.iter().cycle()) {
            pool.put(&mut cx, DEVICE, index, page).unwrap();
        }
        drop((pool, store));
        let mut seconds: Vec<f64> = (0..ROUNDS)
            .map(|_| {
                let (start, waited) = (Instant::now(), waited_for_cpu());
                let (store, recovery) = Store::open(&config).unwrap();
                let elapsed = start
                    .elapsed()
                    .saturating_sub(waited_for_cpu().saturating_sub(waited));
                assert_eq!((recovery.pages, recovery.dropped), (u64::from(count), 0));
                drop(store);
                elapsed.as_secs_f64()
            })
            .collect();
        seconds.sort_by(f64::total_cmp);
        let (store, _) = Store::open(&config).unwrap();
        let usage = store.usage().unwrap();
        let spilled = usage.spill.map_or(0, |spill| spill.pages);
        println!(
            "{}: {count} pages, {} of them shared, {spilled} spilled, {} MB: \
             {:.3} s, {:.3} to {:.3}",
            self.name,
            usage.duplicates,
            usage.allocated / 1_000_000,
            seconds[ROUNDS / 2],
            seconds[0],
            seconds[ROUNDS - 1],
        );
        drop(store);
        std::fs::remove_file(&config.arena).unwrap();
        if let Some(spill) = config.spill {
            std::fs::remove_file(spill.path).unwrap();
        }
    }
}

/// How long this thread has been ready to run and was not running: not the store's time.
fn waited_for_cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let waited = text.split_ascii_whitespace().nth(1);
    Duration::from_nanos(waited.and_then(|field| field.parse().ok()).unwrap_or(0))
}

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let pages = corpus();
    let plain = || Case {
        name: "zsmalloc",
        memory: 4 << 30,
        spill: None,
        dedup: Dedup::Off,
        persistent: Allocator::Zsmalloc,
    };
    let cases = [
        plain(),
        Case {
            name: "xvmalloc",
            persistent: Allocator::Xvmalloc,
            ..plain()
        },
        Case {
            name: "dedup",
            dedup: Dedup::Client,
            ..plain()
        },
        Case {
            name: "spill",
            memory: 1 << 30,
            spill: Some(4 << 30),
            ..plain()
        },
    ];
    let chosen = |case: &Case| wanted.iter().any(|name| name == case.name);
    let any = cases.iter().any(chosen);
    for case in cases.iter().filter(|case| !any || chosen(case)) {
        case.measure(1_000_000, &pages);
    }
}
