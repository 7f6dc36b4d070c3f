// SPDX-License-Identifier: GPL-2.0-or-later
//! SIGKILL right after a store, for every place in the source that makes one: no acknowledged
//! page is lost, no flushed one comes back. `prefixes.rs` recovers from every store of one
//! thread; here real processes die, with other threads at work.
//!
//! `KZT_CRASH_ROUNDS` says how often each place kills.

#![allow(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test may fail"
)]

mod common;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Mutex;

use common::victim::{Witness, Work, order, orders, spawn, store_config, task, work};
use common::{ArenaPath, MIB, Random};
use kzt_store::crash_points::{Passes, kill_at, survey};
use kzt_store::{Config, Store};
use rustix::fs::{SeekFrom, seek};

/// Operations and indices of a victim's work, and of one that has to fill memory and a spill file.
const USUAL: (u64, u64) = (1200, 150);
const MUCH: (u64, u64) = (4500, 1000);
/// Rounds for each place.
const ROUNDS: u64 = 3;

/// One test at a time: a child being forked by another holds this one's arena open, and with it
/// its lock, until it executes.
static TURN: Mutex<()> = Mutex::new(());

/// Runs this process's part if it is a child.
fn be_child() -> bool {
    let Some(words) = task() else {
        return false;
    };
    let (config, its_work) = orders(&words[3..]);
    let (place, passes) = (&words[1], words[2].parse().unwrap());
    assert!(passes == 0 || kill_at(place, passes));
    match words[0].as_str() {
        "work" => work(&config, its_work, |f| f()),
        "survey" => {
            let total = Mutex::new(Passes::new());
            work(&config, its_work, |f| {
                let ((), passes) = survey(f);
                add(&mut total.lock().unwrap(), passes);
            });
            fs::write(places(&config), text(&total.into_inner().unwrap())).unwrap();
        }
        _ => drop(Store::open(&config).unwrap()),
    }
    true
}

fn add(total: &mut Passes, more: Passes) {
    for (place, count) in more {
        *total.entry(place).or_default() += count;
    }
}

/// Where a survey is written down.
fn places(config: &Config) -> std::path::PathBuf {
    config.arena.with_extension("places")
}

fn text(passes: &Passes) -> String {
    let lines: Vec<String> = passes
        .iter()
        .map(|(place, count)| format!("{place} {count}"))
        .collect();
    lines.join("\n")
}

/// Copies a file with its holes: what was never written stays that way.
fn copy(from: &Path, to: &Path) {
    let (from, to) = (File::open(from).unwrap(), File::create(to).unwrap());
    let len = from.metadata().unwrap().len();
    to.set_len(len).unwrap();
    let mut end = 0;
    while let Ok(start) = seek(&from, SeekFrom::Data(end)) {
        end = seek(&from, SeekFrom::Hole(start)).unwrap();
        let mut bytes = vec![0; (end - start) as usize];
        from.read_exact_at(&mut bytes, start).unwrap();
        to.write_all_at(&bytes, start).unwrap();
    }
}

/// Copies an arena and its spill file.
fn keep(from: &Path, to: &Path) {
    copy(from, to);
    let [from, to] = [from, to].map(|path| path.with_extension("spill"));
    if from.exists() {
        copy(&from, &to);
    } else {
        let _ = fs::remove_file(to);
    }
}

struct Rounds {
    test: &'static str,
    spill: u64,
    memory: u64,
    work: (u64, u64),
    random: Random,
    arena: ArenaPath,
    witness: Witness,
    /// How often each place has killed a process.
    kills: Passes,
    /// Puts that were refused.
    refused: u64,
}

impl Rounds {
    fn config(&self) -> Config {
        store_config(self.arena.path(), self.memory, self.spill)
    }

    fn order(&self, task: &str, place: &str, passes: u64, seed: u64) -> String {
        let work = Work {
            ops: self.work.0,
            indices: self.work.1,
            seed,
        };
        let order = order(&self.config(), work);
        format!("{task} {place} {passes} {order}")
    }

    /// An empty arena.
    fn begin_anew(&mut self) {
        let _ = fs::remove_file(self.arena.path());
        let _ = fs::remove_file(self.arena.path().with_extension("spill"));
        self.refused += self.witness.refused;
        self.witness = Witness::new(self.work.1);
    }

    /// Starts a child and waits for its end; whether it was killed.
    fn run(&mut self, task: &str, place: &str, passes: u64) -> bool {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let seed = self.random.next() >> 1;
        let order = self.order(task, place, passes, seed);
        let mut child = spawn(self.test, &order, Some(theirs));
        let mut messages = Vec::new();
        ours.read_to_end(&mut messages).unwrap();
        let status = child.wait().unwrap();
        if task != "recover" {
            self.witness.hear(&messages);
        }
        let killed = !status.success();
        assert!(!killed || status.code().is_none(), "{order}: {status}");
        if killed {
            *self.kills.entry(place.to_owned()).or_default() += 1;
        }
        killed
    }

    /// What places a victim passes that nobody kills, in a new arena.
    fn survey(&mut self) -> Passes {
        self.begin_anew();
        self.run("survey", "-", 0);
        let path = places(&self.config());
        let text = fs::read_to_string(&path).unwrap();
        fs::remove_file(path).unwrap();
        let line = |line: &str| {
            let (place, count) = line.split_once(' ').unwrap();
            (place.to_owned(), count.parse().unwrap())
        };
        text.lines().map(line).collect()
    }

    /// Opens the arena, checks it, and says what places its recovery passed.
    fn recover(&mut self, full: bool, context: &str) -> Passes {
        let (opened, passes) = survey(|| Store::open(&self.config()).unwrap());
        let (store, recovery) = opened;
        assert_eq!(recovery.dropped, 0, "{context}");
        let found = self.witness.check(&store, full, context);
        self.witness.settle(found);
        passes
    }
}

/// `full`: the memory and the spill file are too small for all pages.
fn rounds(test: &'static str, work: (u64, u64), memory: u64, spill: u64, full: bool) {
    if be_child() {
        return;
    }
    let _turn = TURN.lock();
    let wanted = std::env::var("KZT_CRASH_ROUNDS").map_or(ROUNDS, |text| text.parse().unwrap());
    let mut rounds = Rounds {
        test,
        spill,
        memory,
        work,
        random: Random(1),
        arena: ArenaPath::new(),
        witness: Witness::new(work.1),
        kills: Passes::new(),
        refused: 0,
    };
    let image = ArenaPath::new();
    let places = rounds.survey();
    for (place, &count) in &places {
        let mut most = count;
        for _ in 0..10 * wanted {
            if rounds
                .kills
                .get(place)
                .is_some_and(|&kills| kills >= wanted)
            {
                break;
            }
            let passes = 1 + rounds.random.below(most);
            let context = format!("killed at {place}, pass {passes}");
            if !rounds.run("work", place, passes) {
                // What an arena that is in use has behind it already, or what few victims meet.
                most = (passes / 2).max(1);
                rounds.begin_anew();
                continue;
            }
            keep(rounds.arena.path(), image.path());
            // Its recovery is killed too, wherever that changes anything.
            let ((), repairs) = survey(|| drop(Store::open(&rounds.config()).unwrap()));
            for (place, &count) in &repairs {
                if rounds.kills.get(place).is_none_or(|&kills| kills < wanted) {
                    keep(image.path(), rounds.arena.path());
                    let passes = 1 + rounds.random.below(count);
                    rounds.run("recover", place, passes);
                }
            }
            rounds.recover(full, &context);
        }
    }
    let short: BTreeMap<_, _> = places
        .keys()
        .map(|place| (place, rounds.kills.get(place).copied().unwrap_or_default()))
        .filter(|&(_, kills)| kills < wanted)
        .collect();
    let kills: u64 = rounds.kills.values().sum();
    println!("{kills} kills at {} places", rounds.kills.len());
    println!("{}", text(&rounds.kills));
    rounds.begin_anew();
    let _ = fs::remove_file(image.path().with_extension("spill"));
    assert!(short.len() * 10 <= places.len(), "{short:?}");
    assert_eq!(rounds.refused > 0, full);
}

#[test]
fn every_place_that_stores_may_kill() {
    rounds("every_place_that_stores_may_kill", USUAL, 8 * MIB, 0, false);
}

#[test]
fn every_place_that_stores_may_kill_at_the_memory_limit() {
    rounds(
        "every_place_that_stores_may_kill_at_the_memory_limit",
        USUAL,
        MIB,
        0,
        true,
    );
}

#[test]
fn every_place_that_stores_may_kill_with_a_spill_file() {
    rounds(
        "every_place_that_stores_may_kill_with_a_spill_file",
        MUCH,
        MIB,
        MIB + 4096,
        true,
    );
}
