// SPDX-License-Identifier: GPL-2.0-or-later
//! Requests a second through a vhost-user-blk queue, from a driver without a guest around it.
//!
//! ```text
//! cargo bench -p kzt-serve --bench vhost -- rate [SOCKET]   this store, and another's socket beside it
//! cargo bench -p kzt-serve --bench vhost -- share           with and without a greedy neighbour
//! ```
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    missing_docs,
    reason = "a measurement that fails may panic"
)]

#[path = "../tests/common/mod.rs"]
mod common;

use std::cell::Cell;
use std::fs;
use std::path::Path;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::driver::{DATA, Driver, IN, OK, OUT, status_of};
use common::{Lab, noise};

const MIB: u64 = 1 << 20;
const DISK: u64 = 64 * MIB;
/// Requests in flight in each queue.
const DEPTH: u16 = 32;
/// How long each figure is taken.
const SPAN: Duration = Duration::from_secs(2);
const PAIRS: usize = 10;

/// What a driver does when nothing has been used.
type Pause = fn(&Driver);
const LOOK: Pause = |_| thread::yield_now();
/// As a guest does that has nothing else to do.
const SLEEP: Pause = |driver| driver.rest(0);

fn main() {
    // `cargo bench` adds an argument of its own.
    let words: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| word != "--bench")
        .collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["rate"] => rate(None),
        ["rate", socket] => rate(Some(Path::new(socket))),
        ["share"] => share(),
        _ => println!("say `rate [SOCKET]` or `share`"),
    }
}

/// Keeps queues full with random requests of a page until told to stop; how many were served.
fn load(driver: &mut Driver, queues: u16, kind: u32, pause: Pause, stop: &dyn Fn() -> bool) -> u64 {
    let mut random = 0x5eed_u64;
    let mut sector = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % (DISK / 4096) * 8
    };
    let mut submit = |driver: &mut Driver, queue: u16, slot: u16| {
        let page = u64::from(queue) * u64::from(DEPTH) + u64::from(slot);
        driver.request(queue, 3 * slot, kind, sector(), (DATA + page * 4096, 4096));
        driver.offer(queue, 3 * slot);
    };
    let mut busy = 0;
    for queue in 0..queues {
        for slot in 0..DEPTH {
            // The first half of a page cannot be shrunk, the second is zeroes.
            let page = u64::from(queue) * u64::from(DEPTH) + u64::from(slot);
            driver.fill(DATA + page * 4096, &noise(page)[..2048]);
            submit(driver, queue, slot);
            busy += 1;
        }
        driver.kick(queue);
    }
    let mut served = 0;
    while busy > 0 {
        let mut idle = true;
        for queue in 0..queues {
            let mut more = false;
            while let Some(head) = driver.poll_used(queue) {
                (idle, busy, served) = (false, busy - 1, served + 1);
                assert_eq!(driver.bytes(status_of(queue, head), 1), [OK]);
                if !stop() {
                    submit(driver, queue, head / 3);
                    (busy, more) = (busy + 1, true);
                }
            }
            if more {
                driver.kick(queue);
            }
        }
        if idle {
            pause(driver);
        }
    }
    served
}

/// Thousands of requests a second, through the first queue.
fn measure(driver: &mut Driver, kind: u32, pause: Pause) -> f64 {
    let begin = Instant::now();
    let served = load(driver, 1, kind, pause, &|| begin.elapsed() > SPAN);
    served as f64 / begin.elapsed().as_secs_f64() / 1000.0
}

fn rate(other: Option<&Path>) {
    let lab = Lab::new(128 * MIB);
    lab.add("a", DISK);
    let mut own = Driver::ready(&lab.socket("a.vhost"), 1);
    let mut other = other.map(|socket| Driver::ready(socket, 1));
    println!("4 KiB, random, queue depth {DEPTH}, thousands a second: this store, the other");
    for round in 0..PAIRS {
        for (name, kind) in [("write", OUT), ("read", IN)] {
            let own = measure(&mut own, kind, LOOK);
            print!("{round} {name:<5} {own:8.1}");
            if let Some(other) = &mut other {
                let other = measure(other, kind, LOOK);
                print!(" {other:8.1}  ratio {:.2}", own / other);
            }
            println!();
        }
    }
}

/// A client with one queue, alone and beside one that keeps 16 queues full: what it has then of what
/// it has alone. Both could use two processors, and with the other they share them.
fn share() {
    let lab = Lab::new(256 * MIB);
    lab.add("victim", DISK);
    lab.add("attacker", DISK);
    let mut victim = Driver::ready(&lab.socket("victim.vhost"), 1);
    let mut attacker = Driver::ready(&lab.socket("attacker.vhost"), 16);
    // Both have touched their memory before.
    measure(&mut victim, OUT, SLEEP);
    let begin = Instant::now();
    load(&mut attacker, 16, OUT, LOOK, &|| begin.elapsed() > SPAN);
    println!("thousands a second; of the processors, what others than this process had meanwhile");
    let mut shares = Vec::new();
    for pair in 0..PAIRS {
        let mut run = |with_attacker: bool| {
            Others::during(|| {
                if with_attacker {
                    beside(&mut victim, &mut attacker)
                } else {
                    measure(&mut victim, OUT, SLEEP)
                }
            })
        };
        // One pair begins alone, the next one ends so: what drifts favours neither.
        let swapped = pair % 2 == 1;
        let (first, second) = (run(swapped), run(!swapped));
        let (alone, beside) = if swapped {
            (second, first)
        } else {
            (first, second)
        };
        let share = beside.0 / alone.0;
        println!(
            "{pair} alone {:6.1} (others {:2.0} %)  beside {:6.1} (others {:2.0} %)  share {share:.2}",
            alone.0, alone.1, beside.0, beside.1
        );
        shares.push(share);
    }
    let mean = shares.iter().sum::<f64>() / PAIRS as f64;
    let squares: f64 = shares.iter().map(|share| (share - mean).powi(2)).sum();
    // Student's t for nine degrees of freedom.
    let half = 2.262 * (squares / (PAIRS - 1) as f64 / PAIRS as f64).sqrt();
    println!("share {mean:.3} ± {half:.3} (95 %)");
}

/// The victim's rate while the attacker has all its queues full.
fn beside(victim: &mut Driver, attacker: &mut Driver) -> f64 {
    let (begun, done) = (Barrier::new(2), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            let first = Cell::new(true);
            load(attacker, 16, OUT, LOOK, &|| {
                // It asks when the first request has been served.
                if first.take() {
                    begun.wait();
                }
                done.load(Ordering::Relaxed)
            });
        });
        begun.wait();
        let rate = measure(victim, OUT, SLEEP);
        done.store(true, Ordering::Relaxed);
        rate
    })
}

/// Processor time, in clock ticks.
struct Others {
    /// Of all processors.
    total: i64,
    /// Of them, idle ones.
    idle: i64,
    /// Of this process.
    own: i64,
}

impl Others {
    /// What some work returns, and the percentage of the processors that others had meanwhile.
    fn during(work: impl FnOnce() -> f64) -> (f64, f64) {
        let before = Self::now();
        let result = work();
        let after = Self::now();
        let [total, idle, own] = [
            after.total - before.total,
            after.idle - before.idle,
            after.own - before.own,
        ]
        .map(|ticks| ticks as f64);
        (result, 100.0 * (total - idle - own) / total)
    }

    fn now() -> Self {
        let numbers = |text: &str| -> Vec<i64> {
            text.split_whitespace()
                .filter_map(|word| word.parse().ok())
                .collect()
        };
        let all = fs::read_to_string("/proc/stat").unwrap();
        // user, nice, system, idle, iowait, irq, softirq, steal; guests' time is in the first two.
        let all = &numbers(all.lines().next().unwrap())[..8];
        let own = fs::read_to_string("/proc/self/stat").unwrap();
        // The name, in parentheses, may hold spaces; what follows begins with a letter.
        let own = numbers(own.rsplit(')').next().unwrap());
        Self {
            total: all.iter().sum(),
            idle: all[3] + all[4],
            own: own[10] + own[11],
        }
    }
}
