// SPDX-License-Identifier: GPL-2.0-or-later
//! What is measured, in which order, and what becomes of the figures.

use std::path::PathBuf;

use kzt_store::{Allocator, Codec};

use crate::Error;
use crate::corpus::Corpus;
use crate::engine::Engine;
use crate::raw::Raw;
use crate::round::{self, Pass, Share, Watch};
use crate::store::Arena;
use crate::zram::{Device, Zram};

/// What to measure: each codec with each number of threads, and in the store each allocator.
pub struct Plan {
    /// Codecs.
    pub codecs: Vec<Codec>,
    /// What holds the store's pages.
    pub allocators: Vec<Allocator>,
    /// Numbers of threads, each 1 or more.
    pub threads: Vec<usize>,
    /// How often; figures are medians.
    pub repetitions: usize,
    /// Where arenas are made: a tmpfs.
    pub folder: PathBuf,
}

/// µs per page.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Times {
    /// Median of the repetitions' means.
    pub mean: f64,
    /// Median of the repetitions' 99th percentiles of single pages.
    pub p99: f64,
}

/// Bytes of the host's memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// Packed pages.
    pub data: u64,
    /// What is lost between them; unknown to the bare codec.
    pub fragmentation: Option<u64>,
    /// Index and headers, where the engine tells.
    pub meta: Option<u64>,
}

/// One engine's figures.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// `raw`, `store` or `zram`.
    pub engine: &'static str,
    /// The codec.
    pub codec: Codec,
    /// Its allocator, if it has one.
    pub alloc: Option<Allocator>,
    /// Threads at once, each with its own pages and its own client.
    pub threads: usize,
    /// Whether the memory had been touched before.
    pub warm: bool,
    /// Puts.
    pub put: Times,
    /// Gets.
    pub get: Times,
    /// Memory held after them.
    pub memory: Memory,
}

/// What came out.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// By codec, threads and engine.
    pub rows: Vec<Row>,
    /// Pages that each codec cannot shrink below seven eighths.
    pub incompressible: Vec<(Codec, u64)>,
    /// Why rows of zram are missing.
    pub without_zram: Vec<String>,
}

/// Puts and gets of all pages, and the memory they took.
struct Round {
    put: Pass,
    get: Pass,
    memory: Memory,
}

/// The rounds of one row to be.
struct Series {
    engine: &'static str,
    alloc: Option<Allocator>,
    warm: bool,
    rounds: Vec<Round>,
}

impl Series {
    const fn new(engine: &'static str, alloc: Option<Allocator>, warm: bool) -> Self {
        Self {
            engine,
            alloc,
            warm,
            rounds: Vec::new(),
        }
    }

    fn row(self, codec: Codec, threads: usize) -> Option<Row> {
        let times = |pass: fn(&Round) -> Pass| Times {
            mean: median(self.rounds.iter().map(|round| pass(round).mean)),
            p99: median(self.rounds.iter().map(|round| pass(round).p99)),
        };
        Some(Row {
            engine: self.engine,
            codec,
            alloc: self.alloc,
            threads,
            warm: self.warm,
            put: times(|round| round.put),
            get: times(|round| round.get),
            memory: self.rounds.last()?.memory,
        })
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// Measures.
///
/// # Errors
/// `Interrupted` if the watch does not want the figures any more; an engine's failure.
pub fn run(corpus: &Corpus, plan: &Plan, watch: &mut dyn Watch) -> Result<Report, Error> {
    let mut report = Report {
        rows: Vec::new(),
        incompressible: Vec::new(),
        without_zram: Vec::new(),
    };
    let device = Device::add().map_err(|why| report.without_zram.push(why));
    let device = device.ok();
    let rounds = plan.codecs.len() * plan.threads.len() * plan.repetitions;
    let mut bench = Bench {
        corpus,
        shares: Vec::new(),
        watch,
        done: 0,
        all: rounds * (2 + plan.allocators.len()),
    };
    for &codec in &plan.codecs {
        let raw = Raw::new(codec, corpus)?;
        let mut incompressible = 0;
        for &threads in &plan.threads {
            bench.shares = round::deal(corpus, threads);
            let mut of_raw = Series::new(Raw::NAME, None, true);
            let of_store = |&alloc| (alloc, pair(Arena::NAME, alloc));
            let mut of_stores: Vec<_> = plan.allocators.iter().map(of_store).collect();
            let mut of_zram = pair(Zram::NAME, Allocator::Zsmalloc);
            for repetition in 1..=plan.repetitions {
                let verify = repetition == 1;
                bench.step(Raw::NAME, codec, repetition);
                of_raw.rounds.push(bench.round(&raw, verify)?);
                for (alloc, of_store) in &mut of_stores {
                    bench.step(&format!("store, {alloc}"), codec, repetition);
                    let arena = Arena::new(&plan.folder, codec, *alloc, corpus)?;
                    bench.both(&arena, verify, of_store)?;
                    incompressible = arena.incompressible()?;
                }
                bench.step(Zram::NAME, codec, repetition);
                if let Some(device) = &device {
                    match device.fresh(codec, corpus) {
                        Ok(zram) => bench.both(&zram, verify, &mut of_zram)?,
                        Err(why) if report.without_zram.contains(&why) => {}
                        Err(why) => report.without_zram.push(why),
                    }
                }
            }
            let of_stores = of_stores.into_iter().flat_map(|(_, pair)| pair);
            let all = [of_raw].into_iter().chain(of_stores).chain(of_zram);
            let rows = all.filter_map(|series| series.row(codec, threads));
            report.rows.extend(rows);
        }
        report.incompressible.push((codec, incompressible));
    }
    Ok(report)
}

fn pair(engine: &'static str, alloc: Allocator) -> [Series; 2] {
    [false, true].map(|warm| Series::new(engine, Some(alloc), warm))
}

/// The corpus, dealt to a number of threads.
struct Bench<'a> {
    corpus: &'a Corpus,
    shares: Vec<Share>,
    watch: &'a mut dyn Watch,
    /// Parts of the work behind us, of all.
    done: usize,
    all: usize,
}

impl Bench<'_> {
    fn step(&mut self, engine: &str, codec: Codec, repetition: usize) {
        let what = format!(
            "{codec}, threads: {}, repetition {repetition}: {engine}",
            self.shares.len()
        );
        self.watch.step(&what, self.done, self.all);
        self.done += 1;
    }

    /// The first round, which touches the memory, and the second, over the first one's pages.
    fn both<E: Engine>(
        &mut self,
        engine: &E,
        verify: bool,
        series: &mut [Series; 2],
    ) -> Result<(), Error> {
        for series in series {
            series.rounds.push(self.round(engine, verify)?);
        }
        Ok(())
    }

    fn round<E: Engine>(&mut self, engine: &E, verify: bool) -> Result<Round, Error> {
        let (corpus, shares) = (self.corpus, &mut self.shares);
        let mut workers = engine.workers(shares.len())?;
        let put = round::put(corpus, &mut workers, shares, self.watch)?;
        let get = round::get(&mut workers, shares, self.watch)?;
        if verify {
            round::verify(E::NAME, corpus, &mut workers, shares, self.watch)?;
        }
        let memory = engine.memory()?;
        Ok(Round { put, get, memory })
    }
}
