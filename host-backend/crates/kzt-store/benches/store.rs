// SPDX-License-Identifier: GPL-2.0-or-later
//! What a put and a get cost next to the bare codec, on real pages.
//!
//! `cargo bench -p kzt-store -- [FILE...]`; without files, on libraries of this machine.
//! Every figure is the median of several rounds over the same pages, in µs of CPU time per page.
//! Cold is the first round, in which the arena's memory is touched for the first time.

#![allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_wrap,
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a benchmark may fail"
)]

use std::path::PathBuf;
use std::time::Instant;

use kzt_store::{Codec, Config, Context, ObjectId, PAGE_SIZE, Page, Store};
use rustix::time::{ClockId, clock_gettime};

const PAGES: usize = 32 * 1024;
const ROUNDS: usize = 5;
const DEVICE: ObjectId = ObjectId([0; 3]);

/// A codec as its library has it.
trait Raw {
    fn compress(&mut self, page: &Page, out: &mut [u8]) -> usize;
    fn decompress(&mut self, packed: &[u8], out: &mut Page);
}

mod lzo {
    use std::ffi::{c_int, c_void};

    #[link(name = "lzo2")]
    unsafe extern "C" {
        pub(crate) fn lzo1x_1_compress(
            source: *const u8,
            source_len: usize,
            target: *mut u8,
            target_len: *mut usize,
            work: *mut c_void,
        ) -> c_int;
        pub(crate) fn lzo1x_decompress_safe(
            source: *const u8,
            source_len: usize,
            target: *mut u8,
            target_len: *mut usize,
            work: *mut c_void,
        ) -> c_int;
    }
}

struct Lzo(Vec<u64>);

impl Raw for Lzo {
    fn compress(&mut self, page: &Page, out: &mut [u8]) -> usize {
        let mut len = out.len();
        assert!(len >= 2 * PAGE_SIZE && self.0.len() >= 16 * 1024);
        // SAFETY: `out` has room for the worst case and the working memory its 128 KiB.
        let status = unsafe {
            lzo::lzo1x_1_compress(
                page.as_ptr(),
                PAGE_SIZE,
                out.as_mut_ptr(),
                &raw mut len,
                self.0.as_mut_ptr().cast(),
            )
        };
        assert_eq!(status, 0);
        len
    }

    fn decompress(&mut self, packed: &[u8], out: &mut Page) {
        let mut len = PAGE_SIZE;
        // SAFETY: both buffers are valid for their lengths.
        let status = unsafe {
            lzo::lzo1x_decompress_safe(
                packed.as_ptr(),
                packed.len(),
                out.as_mut_ptr(),
                &raw mut len,
                std::ptr::null_mut(),
            )
        };
        assert_eq!((status, len), (0, PAGE_SIZE));
    }
}

struct Lz4;

impl Raw for Lz4 {
    fn compress(&mut self, page: &Page, out: &mut [u8]) -> usize {
        // SAFETY: both buffers are valid for their lengths.
        let len = unsafe {
            lz4_sys::LZ4_compress_default(
                page.as_ptr().cast(),
                out.as_mut_ptr().cast(),
                PAGE_SIZE as i32,
                out.len() as i32,
            )
        };
        usize::try_from(len).unwrap()
    }

    fn decompress(&mut self, packed: &[u8], out: &mut Page) {
        // SAFETY: both buffers are valid for their lengths.
        let len = unsafe {
            lz4_sys::LZ4_decompress_safe(
                packed.as_ptr().cast(),
                out.as_mut_ptr().cast(),
                packed.len() as i32,
                PAGE_SIZE as i32,
            )
        };
        assert_eq!(len, PAGE_SIZE as i32);
    }
}

struct Zstd(i32, zstd_safe::CCtx<'static>, zstd_safe::DCtx<'static>);

impl Raw for Zstd {
    fn compress(&mut self, page: &Page, out: &mut [u8]) -> usize {
        self.1.compress(out, page, self.0).unwrap()
    }

    fn decompress(&mut self, packed: &[u8], out: &mut Page) {
        self.2.decompress(out.as_mut_slice(), packed).unwrap();
    }
}

struct Copy;

impl Raw for Copy {
    fn compress(&mut self, page: &Page, out: &mut [u8]) -> usize {
        out[..PAGE_SIZE].copy_from_slice(page);
        PAGE_SIZE
    }

    fn decompress(&mut self, packed: &[u8], out: &mut Page) {
        out.copy_from_slice(packed);
    }
}

fn raw(codec: Codec) -> Box<dyn Raw> {
    match codec {
        Codec::None => Box::new(Copy),
        Codec::Lzo => Box::new(Lzo(vec![0; 16 * 1024])),
        Codec::Lz4 => Box::new(Lz4),
        Codec::Zstd(level) => Box::new(Zstd(
            level,
            zstd_safe::CCtx::create(),
            zstd_safe::DCtx::create(),
        )),
    }
}

fn corpus(files: Vec<PathBuf>) -> Vec<Page> {
    let files = if files.is_empty() {
        let mut found: Vec<_> = std::fs::read_dir("/usr/lib/x86_64-linux-gnu")
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.to_string_lossy().contains(".so"))
            .collect();
        found.sort();
        found
    } else {
        files
    };
    files
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

/// Time this thread has run, in µs: other load on the machine matters less.
fn cpu_time() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
}

/// Median time per page, in µs.
fn time(pages: usize, mut round: impl FnMut()) -> f64 {
    let mut times: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let start = cpu_time();
            round();
            (cpu_time() - start) / pages as f64
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[ROUNDS / 2]
}

fn measure(codec: Codec, pages: &[Page], indices: &[u32]) {
    let count = pages.len();
    let mut raw = raw(codec);
    let mut scratch = vec![0; 2 * PAGE_SIZE];
    let raw_put = time(count, || {
        for page in pages {
            std::hint::black_box(raw.compress(page, &mut scratch));
        }
    });
    let packed: Vec<Vec<u8>> = pages
        .iter()
        .map(|page| {
            let len = raw.compress(page, &mut scratch);
            scratch[..len].to_vec()
        })
        .collect();
    let mut out = [0; PAGE_SIZE];
    let raw_get = time(count, || {
        for index in indices {
            raw.decompress(&packed[*index as usize], &mut out);
        }
    });

    let arena = PathBuf::from(format!("/dev/shm/kzt-store-bench-{}", std::process::id()));
    let config = Config {
        codec,
        ..Config::new(&arena, 1 << 30)
    };
    let (store, _) = Store::open(&config).unwrap();
    let pool = store.open_pool("bench").unwrap();
    let mut cx = Context::new();
    let mut put_all = || {
        for (index, page) in (0..).zip(pages) {
            pool.put(&mut cx, DEVICE, index, page).unwrap();
        }
    };
    let start = cpu_time();
    put_all();
    let cold = (cpu_time() - start) / count as f64;
    let put = time(count, put_all);
    let mut cx = Context::new();
    let get = time(count, || {
        for index in indices {
            assert!(pool.get(&mut cx, DEVICE, *index, &mut out).unwrap());
        }
    });
    let (usage, stats) = (store.usage().unwrap(), pool.stats());
    println!(
        "{:8} put {put:5.2} ({cold:5.2} cold) raw {raw_put:5.2} = {:4.2}   get {get:5.2} raw \
         {raw_get:5.2} = {:4.2}   data {:6.2} meta {:4.2} fragmentation {:4.2} MB, {} raw, {} \
         same-filled",
        codec.to_string(),
        put / raw_put,
        get / raw_get,
        usage.data as f64 / 1e6,
        usage.meta as f64 / 1e6,
        usage.fragmentation as f64 / 1e6,
        stats.raw,
        stats.same_filled,
    );
    drop((store, pool));
    std::fs::remove_file(arena).unwrap();
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
    // Cargo passes its own flags along.
    let files = std::env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with("--"));
    let pages = corpus(files.map(PathBuf::from).collect());
    println!(
        "{} pages, µs per page, median of {ROUNDS} rounds",
        pages.len()
    );
    // Gets come in another order than puts: a store is not read like a file.
    let mut indices: Vec<u32> = (0..pages.len() as u32).collect();
    let mut seed = 1_u64;
    for i in (1..indices.len()).rev() {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        indices.swap(i, (seed >> 33) as usize % (i + 1));
    }
    for codec in [
        Codec::Lzo,
        Codec::Lz4,
        Codec::Zstd(1),
        Codec::Zstd(-3),
        Codec::None,
    ] {
        measure(codec, &pages, &indices);
    }
    for count in [250_000, 1_000_000] {
        recovery(count, &pages);
    }
}
