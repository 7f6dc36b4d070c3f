// SPDX-License-Identifier: GPL-2.0-or-later
//! A process that works on a store until it is killed, and a witness of what it said.
//!
//! The victim puts, flushes and destroys; before and after each operation it says so through a
//! socket. From that the witness knows what the arena must hold.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::collections::HashMap;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use kzt_store::{Config, Context, ObjectId, PAGE_SIZE, PutError, Store};

use super::{Random, SWAP, page};

/// Set in the children: what they are to do, words apart.
const CHILD: &str = "KZT_STORE_TEST_CHILD";

const OBJECTS: [ObjectId; 2] = [SWAP, ObjectId([7, 1 << 40, 3])];
const THREADS: u64 = 2;
/// Longest range that is flushed at once.
const RANGE: u64 = 64;
const MESSAGE_BYTES: usize = 48;

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
    fn random(random: &mut Random, indices: u64) -> Self {
        let (object, index) = (random.below(2), random.below(indices));
        match random.below(400) {
            0 => Self::Destroy,
            1..3 => Self::FlushObject { object },
            3..80 => Self::FlushRange {
                object,
                index,
                count: 1 + random.below(RANGE),
            },
            // Half the pages are of few contents, so that many share a block.
            op => Self::Put {
                object,
                index,
                seed: if op % 2 == 0 {
                    random.next()
                } else {
                    random.below(60)
                },
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

    fn touches(self, key: Key) -> bool {
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

/// How long a victim works, on how many indices of each object.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Work {
    pub(crate) ops: u64,
    pub(crate) indices: u64,
    pub(crate) seed: u64,
}

/// A message: thread, phase (0: begin, 1 and more: outcome), operation.
fn tell(socket: &Mutex<UnixStream>, thread: u64, phase: u64, op: Op) {
    let mut bytes = Vec::with_capacity(MESSAGE_BYTES);
    for word in [thread, phase].into_iter().chain(op.words()) {
        bytes.extend(word.to_ne_bytes());
    }
    socket.lock().unwrap().write_all(&bytes).unwrap();
}

fn client(thread: u64) -> String {
    format!("client-{thread}")
}

/// What a victim does. Each of its threads works through `around`.
pub(crate) fn work(config: &Config, work: Work, around: impl Fn(&mut dyn FnMut()) + Sync) {
    let stdin = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
    let socket = Mutex::new(UnixStream::from(stdin));
    let mut store = None;
    around(&mut || store = Some(Store::open(config).unwrap().0));
    let store = store.unwrap();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let (store, socket, around) = (&store, &socket, &around);
                scope.spawn(move || {
                    around(&mut || work_alone(store, socket, thread, work));
                })
            })
            .collect();
        around(&mut || {
            while !threads
                .iter()
                .all(std::thread::ScopedJoinHandle::is_finished)
            {
                store.maintain();
                std::thread::sleep(Duration::from_micros(200));
            }
        });
    });
}

fn work_alone(store: &Store, socket: &Mutex<UnixStream>, thread: u64, work: Work) {
    let mut cx = Context::new();
    let mut random = Random(work.seed + thread);
    for _ in 0..work.ops {
        let op = Op::random(&mut random, work.indices);
        tell(socket, thread, 0, op);
        let outcome = apply(store, &mut cx, thread, op);
        tell(socket, thread, 1 + outcome as u64, op);
    }
}

fn apply(store: &Store, cx: &mut Context, thread: u64, op: Op) -> Outcome {
    let pool = store.open_pool(&client(thread)).unwrap();
    let dedup = "domain:x".parse().unwrap();
    store.client(&client(thread)).unwrap().set_dedup(&dedup);
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

/// Runs the current test again in a process of its own, where [`task`] is what it has to do.
pub(crate) fn spawn(test: &str, task: &str, stdin: Option<UnixStream>) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(CHILD, task)
        .stdin(stdin.map_or_else(Stdio::null, |socket| Stdio::from(OwnedFd::from(socket))))
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// What this process was started for, if it is a child.
pub(crate) fn task() -> Option<Vec<String>> {
    let task = std::env::var(CHILD).ok()?;
    Some(task.split(' ').map(str::to_owned).collect())
}

pub(crate) fn kill(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Object and index.
type Key = (u64, u64);
/// What a client must hold: per key the seed of its page.
pub(crate) type Model = HashMap<Key, u64>;

/// Knows what the victims said.
pub(crate) struct Witness {
    models: Vec<Model>,
    /// What each thread was doing when the last victim died.
    in_flight: Vec<Option<Op>>,
    indices: u64,
    /// Operations acknowledged, in flight at a death, and refused.
    pub(crate) acknowledged: u64,
    pub(crate) interrupted: u64,
    pub(crate) refused: u64,
}

impl Witness {
    pub(crate) fn new(indices: u64) -> Self {
        Self {
            models: vec![Model::new(); THREADS as usize],
            in_flight: vec![None; THREADS as usize],
            indices,
            acknowledged: 0,
            interrupted: 0,
            refused: 0,
        }
    }

    /// Takes all that a victim said before it died.
    pub(crate) fn hear(&mut self, messages: &[u8]) {
        self.in_flight.fill(None);
        for message in messages.chunks_exact(MESSAGE_BYTES) {
            let words: Vec<u64> = message
                .chunks_exact(8)
                .map(|word| u64::from_ne_bytes(word.try_into().unwrap()))
                .collect();
            let (thread, phase) = (words[0] as usize, words[1]);
            let op = Op::from_words([words[2], words[3], words[4], words[5]]);
            if phase == 0 {
                self.in_flight[thread] = Some(op);
                continue;
            }
            self.in_flight[thread] = None;
            self.acknowledged += 1;
            self.refused += u64::from(phase > 1);
            let model = &mut self.models[thread];
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
        self.interrupted += self.in_flight.iter().flatten().count() as u64;
    }

    /// Asserts that every page is there and no other; what there is. `full` says whether puts
    /// may have met the limit, where the old page leaves before the new one is there.
    pub(crate) fn check(&self, store: &Store, full: bool, context: &str) -> Vec<Model> {
        let mut cx = Context::new();
        (0..)
            .zip(&self.models)
            .map(|(thread, model)| {
                let pool = store.open_pool(&client(thread)).unwrap();
                let mut found = Model::new();
                let indices = 0..self.indices + RANGE;
                for key in (0..2).flat_map(|object| indices.clone().map(move |i| (object, i))) {
                    let mut out = [0; PAGE_SIZE];
                    let there = pool
                        .get(&mut cx, OBJECTS[key.0 as usize], key.1 as u32, &mut out)
                        .unwrap();
                    let old = model.get(&key).copied();
                    let in_flight = self.in_flight[thread as usize].filter(|op| op.touches(key));
                    let (new, may_be_gone) = match in_flight {
                        None => (None, false),
                        Some(Op::Put { seed, .. }) => (Some(seed), full),
                        Some(_) => (None, true),
                    };
                    if there {
                        let seed = [new, old]
                            .into_iter()
                            .flatten()
                            .find(|seed| page(*seed) == out);
                        let seed = seed.unwrap_or_else(|| {
                            panic!(
                                "{context}: client {thread}, {key:?}: a foreign page or an old one"
                            )
                        });
                        found.insert(key, seed);
                    } else {
                        assert!(
                            old.is_none() || may_be_gone,
                            "{context}: client {thread}, {key:?}: lost"
                        );
                    }
                }
                assert_eq!(pool.stats().pages, found.len() as u64, "{context}");
                found
            })
            .collect()
    }

    /// From here on, what was in flight has happened as far as `found` says.
    pub(crate) fn settle(&mut self, found: Vec<Model>) {
        self.models = found;
        self.in_flight.fill(None);
    }
}

/// The words that tell a victim its arena and work.
pub(crate) fn order(arena: &Path, memory: u64, work: Work) -> String {
    let Work { ops, indices, seed } = work;
    format!("{} {memory} {ops} {indices} {seed}", arena.display())
}

/// Reads what `order` wrote.
pub(crate) fn orders(words: &[String]) -> (Config, Work) {
    let number = |at: usize| words[at].parse().unwrap();
    let work = Work {
        ops: number(2),
        indices: number(3),
        seed: number(4),
    };
    (Config::new(&words[0], number(1)), work)
}
