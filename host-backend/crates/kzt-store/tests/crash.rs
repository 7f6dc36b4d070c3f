// SPDX-License-Identifier: GPL-2.0-or-later
//! SIGKILL at any moment: no acknowledged page is lost, no flushed one comes back.
//!
//! The parent kills a victim somewhere in its work, kills a few recoveries too, then recovers
//! and compares with what it was told.

#![allow(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test may fail"
)]

mod common;

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::time::Duration;

use common::blocks::Sampler;
use common::victim::{Witness, Work, kill, order, orders, spawn, store_config, task, work};
use common::{ArenaPath, MIB, Random};
use kzt_store::Store;

const INDICES: u64 = 1500;

/// One test at a time: a child being forked by another holds this one's arena open, and with it
/// its lock, until it executes.
static TURN: Mutex<()> = Mutex::new(());

/// Runs this process's part if it is a child.
fn be_child() -> bool {
    let Some(words) = task() else {
        return false;
    };
    let (config, its_work) = orders(&words[1..]);
    if words[0] == "work" {
        work(&config, its_work, |f| f());
    } else {
        loop {
            drop(Store::open(&config).unwrap());
        }
    }
    true
}

fn rounds(test: &str, memory: u64, rounds: u64, refuses: bool) {
    if be_child() {
        return;
    }
    let _turn = TURN.lock();
    let arena = ArenaPath::new();
    let mut random = Random(rounds);
    let mut witness = Witness::new(INDICES);
    let sampler = Sampler::new(arena.path());
    for round in 0..rounds {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let its_work = Work {
            ops: u64::MAX,
            indices: INDICES,
            seed: random.next() >> 1,
        };
        let order = order(&store_config(arena.path(), memory, 0), its_work);
        let child = spawn(test, &format!("work {order}"), Some(theirs));
        let mut messages = vec![0];
        ours.read_exact(&mut messages).unwrap();
        let reader = std::thread::spawn(move || {
            ours.read_to_end(&mut messages).unwrap();
            messages
        });
        std::thread::sleep(Duration::from_micros(random.below(40_000)));
        kill(child);
        witness.hear(&reader.join().unwrap());

        // Recoveries killed in the middle: each changes the arena a little.
        for _ in 0..random.below(3) {
            let child = spawn(test, &format!("recover {order}"), None);
            std::thread::sleep(Duration::from_micros(random.below(8000)));
            kill(child);
        }

        let (store, recovery) = arena.open(memory);
        assert_eq!(recovery.dropped, 0, "round {round}");
        let found = witness.check(&store, refuses, &format!("round {round}"));
        witness.settle(found);
    }
    assert!(sampler.most() <= memory);
    assert!(
        witness.acknowledged > 50 * rounds,
        "{} operations",
        witness.acknowledged
    );
    assert!(witness.interrupted > 0, "some operation was in flight");
    assert_eq!(witness.refused > 0, refuses);
}

#[test]
fn no_page_is_lost_or_comes_back() {
    rounds("no_page_is_lost_or_comes_back", 64 * MIB, 40, false);
}

#[test]
fn no_page_is_lost_or_comes_back_at_the_memory_limit() {
    rounds(
        "no_page_is_lost_or_comes_back_at_the_memory_limit",
        MIB,
        40,
        true,
    );
}
