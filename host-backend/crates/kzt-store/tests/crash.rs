// SPDX-License-Identifier: GPL-2.0-or-later
//! SIGKILL at any moment: no acknowledged page is lost, no flushed one comes back.
//!
//! A child process puts, flushes and destroys; before and after each operation it says so
//! through a socket. The parent kills it somewhere in between, kills a few recoveries too, then
//! recovers and compares with what it was told.

#![allow(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test may fail"
)]

mod common;

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use common::{ArenaPath, MIB, Random, SWAP, page};
use kzt_store::{Codec, Config, Context, ObjectId, PAGE_SIZE, PutError, Store};

/// Set in the children: what they are to do, for which arena, from which seed.
const CHILD: &str = "KZT_STORE_CRASH_CHILD";

const OBJECTS: [ObjectId; 2] = [SWAP, ObjectId([7, 1 << 40, 3])];
const INDICES: u64 = 1500;
const THREADS: u64 = 2;

/// One test at a time: a child being forked by another holds this one's arena open, and with it
/// its lock, until it executes.
static TURN: Mutex<()> = Mutex::new(());

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Op {
    Put { object: u64, index: u64, seed: u64 },
    FlushRange { object: u64, index: u64, count: u64 },
    FlushObject { object: u64 },
    Destroy,
}

/// How an operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Done,
    NoMemory,
    NoSpace,
}

impl Op {
    fn random(random: &mut Random) -> Self {
        let (object, index) = (random.below(2), random.below(INDICES));
        match random.below(400) {
            0 => Self::Destroy,
            1..3 => Self::FlushObject { object },
            3..80 => Self::FlushRange {
                object,
                index,
                count: 1 + random.below(64),
            },
            _ => Self::Put {
                object,
                index,
                seed: random.next(),
            },
        }
    }

    fn words(self) -> [u64; 4] {
        match self {
            Self::Put {
                object,
                index,
                seed,
            } => [0, object, index, seed],
            Self::FlushRange {
                object,
                index,
                count,
            } => [1, object, index, count],
            Self::FlushObject { object } => [2, object, 0, 0],
            Self::Destroy => [3, 0, 0, 0],
        }
    }

    fn from_words(words: [u64; 4]) -> Self {
        match words {
            [0, object, index, seed] => Self::Put {
                object,
                index,
                seed,
            },
            [1, object, index, count] => Self::FlushRange {
                object,
                index,
                count,
            },
            [2, object, ..] => Self::FlushObject { object },
            _ => Self::Destroy,
        }
    }

    fn touches(self, key: (u64, u64)) -> bool {
        match self {
            Self::Put { object, index, .. } => key == (object, index),
            Self::FlushRange {
                object,
                index,
                count,
            } => key.0 == object && (index..index + count).contains(&key.1),
            Self::FlushObject { object } => key.0 == object,
            Self::Destroy => true,
        }
    }
}

/// A message: thread, phase (0: begin, 1 and more: outcome), operation.
fn tell(socket: &Mutex<UnixStream>, thread: u64, phase: u64, op: Op) {
    let mut bytes = Vec::with_capacity(48);
    for word in [thread, phase].into_iter().chain(op.words()) {
        bytes.extend(word.to_ne_bytes());
    }
    socket.lock().unwrap().write_all(&bytes).unwrap();
}

fn client(thread: u64) -> String {
    format!("client-{thread}")
}

/// The child that is killed under load.
fn load(config: &Config, seed: u64) {
    let stdin = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
    let socket = Mutex::new(UnixStream::from(stdin));
    let (store, _) = Store::open(config).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            loop {
                store.maintain();
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        for thread in 0..THREADS {
            let (store, socket) = (&store, &socket);
            scope.spawn(move || {
                let mut cx = Context::new();
                let mut random = Random(seed + thread);
                loop {
                    let op = Op::random(&mut random);
                    tell(socket, thread, 0, op);
                    let outcome = apply(store, &mut cx, thread, op);
                    tell(socket, thread, 1 + outcome as u64, op);
                }
            });
        }
    });
}

fn apply(store: &Store, cx: &mut Context, thread: u64, op: Op) -> Outcome {
    let pool = store.open_pool(&client(thread)).unwrap();
    match op {
        Op::Put {
            object,
            index,
            seed,
        } => match pool.put(cx, OBJECTS[object as usize], index as u32, &page(seed)) {
            Ok(()) => return Outcome::Done,
            Err(PutError::NoMemory) => return Outcome::NoMemory,
            Err(PutError::NoSpace) => return Outcome::NoSpace,
            Err(PutError::NoDevice) => panic!("the pool is its own"),
        },
        Op::FlushRange {
            object,
            index,
            count,
        } => {
            pool.flush_range(OBJECTS[object as usize], index as u32, count as u32);
        }
        Op::FlushObject { object } => {
            pool.flush_object(OBJECTS[object as usize]);
        }
        Op::Destroy => store.destroy_pool(&client(thread)).unwrap(),
    }
    Outcome::Done
}

/// What a client must hold: per key the seed of its page.
type Model = HashMap<(u64, u64), u64>;

/// Takes the messages in; what each thread was doing when they ended.
fn replay(messages: &[u8], models: &mut [Model]) -> Vec<Option<Op>> {
    let mut in_flight = vec![None; models.len()];
    for message in messages.chunks_exact(48) {
        let words: Vec<u64> = message
            .chunks_exact(8)
            .map(|word| u64::from_ne_bytes(word.try_into().unwrap()))
            .collect();
        let (thread, phase) = (words[0] as usize, words[1]);
        let op = Op::from_words([words[2], words[3], words[4], words[5]]);
        if phase == 0 {
            in_flight[thread] = Some(op);
            continue;
        }
        in_flight[thread] = None;
        let model = &mut models[thread];
        match op {
            Op::Put {
                object,
                index,
                seed,
            } if phase == 1 => {
                model.insert((object, index), seed);
            }
            Op::Put { .. } if phase == 1 + Outcome::NoMemory as u64 => {
                assert!(
                    !model.keys().any(|key| op.touches(*key)),
                    "NoMemory: a new key"
                );
            }
            _ => model.retain(|key, _| !op.touches(*key)),
        }
    }
    in_flight
}

fn spawn(test: &str, task: &str, config: &Config, seed: u64, socket: Option<UnixStream>) -> Child {
    let arena = config.arena.display();
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(CHILD, format!("{task} {arena} {} {seed}", config.memory))
        .stdin(socket.map_or_else(Stdio::null, |socket| Stdio::from(OwnedFd::from(socket))))
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

fn kill(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Runs this process's part if it is a child.
fn be_child() -> bool {
    let Ok(task) = std::env::var(CHILD) else {
        return false;
    };
    let words: Vec<&str> = task.split(' ').collect();
    let config = Config::new(words[1], words[2].parse().unwrap());
    match words[0] {
        "load" => load(&config, words[3].parse().unwrap()),
        _ => loop {
            drop(Store::open(&config).unwrap());
        },
    }
    true
}

fn rounds(test: &str, memory: u64, rounds: u64, refuses: bool) {
    if be_child() {
        return;
    }
    let _turn = TURN.lock();
    let arena = ArenaPath::new();
    let config = arena.config(memory, Codec::Lzo);
    let mut random = Random(rounds);
    let mut models = vec![Model::new(); THREADS as usize];
    let (mut acknowledged, mut interrupted, mut met_limit) = (0, 0, false);
    let mut cx = Context::new();
    let mut out = [0; PAGE_SIZE];
    for round in 0..rounds {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let child = spawn(test, "load", &config, random.next(), Some(theirs));
        let mut messages = Vec::new();
        let mut first = [0; 48];
        ours.read_exact(&mut first).unwrap();
        messages.extend(first);
        let reader = std::thread::spawn(move || {
            ours.read_to_end(&mut messages).unwrap();
            messages
        });
        std::thread::sleep(Duration::from_micros(random.below(40_000)));
        kill(child);
        let messages = reader.join().unwrap();
        let in_flight = replay(&messages, &mut models);
        acknowledged += messages.len() / 96;
        met_limit |= messages.chunks_exact(48).any(|message| message[8] > 1);
        interrupted += in_flight.iter().flatten().count();

        // Recoveries killed in the middle: each changes the arena a little.
        for _ in 0..random.below(3) {
            let child = spawn(test, "recover", &config, 0, None);
            std::thread::sleep(Duration::from_micros(random.below(8000)));
            kill(child);
        }

        let (store, recovery) = Store::open(&config).unwrap();
        assert_eq!(recovery.dropped, 0, "round {round}");
        for (thread, model) in models.iter_mut().enumerate() {
            let pool = store.open_pool(&client(thread as u64)).unwrap();
            let mut pages = 0;
            for key in (0..2).flat_map(|object| (0..INDICES + 64).map(move |i| (object, i))) {
                let id = OBJECTS[key.0 as usize];
                let found = pool.get(&mut cx, id, key.1 as u32, &mut out).unwrap();
                pages += u64::from(found);
                let old = model.get(&key).copied();
                let is = |seed: Option<u64>| match seed {
                    Some(seed) => found && out == page(seed),
                    None => !found,
                };
                match in_flight[thread].filter(|op| op.touches(key)) {
                    None => assert!(is(old), "round {round}, {thread}, {key:?}: {old:?}"),
                    // Old or new; at the limit a put lets the old page go first.
                    Some(Op::Put { seed, .. }) => {
                        assert!(
                            is(old) || is(Some(seed)) || refuses && is(None),
                            "round {round}, {thread}, {key:?}"
                        );
                        model.remove(&key);
                        if found {
                            let now = if is(Some(seed)) { Some(seed) } else { old };
                            model.insert(key, now.unwrap());
                        }
                    }
                    Some(_) => {
                        assert!(is(old) || is(None), "round {round}, {thread}, {key:?}");
                        if !found {
                            model.remove(&key);
                        }
                    }
                }
            }
            assert_eq!(pool.stats().pages, pages);
        }
    }
    assert!(
        acknowledged > 100 * rounds as usize,
        "{acknowledged} operations"
    );
    assert!(interrupted > 0, "some operation was in flight");
    assert_eq!(met_limit, refuses);
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
