// SPDX-License-Identifier: GPL-2.0-or-later
//! A process that works on a store until it is killed, and a witness of what it said.
//!
//! The victim puts, gets, flushes and destroys; before and after each operation it says so through a
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

use kzt_store::tmem::{self, flags};
use kzt_store::{
    Allocator, Config, Context, Kind, ObjectId, PAGE_SIZE, Pool, PutError, SpillConfig, Store, Uuid,
};

use super::{Random, SWAP, page};

/// Set in the children: what they are to do, words apart.
const CHILD: &str = "KZT_STORE_TEST_CHILD";

const OBJECTS: [ObjectId; 2] = [SWAP, ObjectId([7, 1 << 40, 3])];
const THREADS: u64 = 2;
/// Longest range that is flushed at once.
const RANGE: u64 = 64;
const MESSAGE_BYTES: usize = 56;
const NO_DEVICE: i32 = -19;
const EMPTY: i32 = -tmem::EEMPTY;
const NO_MEMORY: i32 = -12;
const NO_SPACE: i32 = -28;

/// A page's pool, object and index. Pool 0 is the one that the host's devices use; the others are
/// the client's own, in the order of [`POOLS`].
type Key = (u64, u64, u64);

/// Flags of the pools that a client makes: persistent, ephemeral, shared.
const POOLS: [u32; 3] = [flags::PERSIST, 0, flags::SHARED];
const UUID: Uuid = Uuid([5, 5]);
/// Pools 0 and 1 survive; the others don't, and nobody asks what was in them.
const SURVIVE: u64 = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Op {
    Put(Key, u64),
    Get(Key),
    /// So many indices in pool 0, one in the others.
    Flush(Key, u64),
    /// The key's object.
    FlushObject(Key),
    /// The key's pool.
    Destroy(Key),
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
        let key = (random.below(4), random.below(2), random.below(indices));
        match random.below(400) {
            0 => Self::Destroy(key),
            1..3 => Self::FlushObject(key),
            3..80 if key.0 == 0 => Self::Flush(key, 1 + random.below(RANGE)),
            3..80 => Self::Flush(key, 1),
            80..120 => Self::Get(key),
            // Some pages are met again and again: they may share a block.
            120..200 => Self::Put(key, random.below(40)),
            _ => Self::Put(key, random.next()),
        }
    }

    fn words(self) -> [u64; 5] {
        let (number, (pool, object, index), more) = match self {
            Self::Put(key, seed) => (0, key, seed),
            Self::Get(key) => (1, key, 0),
            Self::Flush(key, count) => (2, key, count),
            Self::FlushObject(key) => (3, key, 0),
            Self::Destroy(key) => (4, key, 0),
        };
        [number, pool, object, index, more]
    }

    fn from_words(words: &[u64]) -> Self {
        let key = (words[1], words[2], words[3]);
        match words[0] {
            0 => Self::Put(key, words[4]),
            1 => Self::Get(key),
            2 => Self::Flush(key, words[4]),
            3 => Self::FlushObject(key),
            _ => Self::Destroy(key),
        }
    }

    fn touches(self, (pool, object, index): Key) -> bool {
        match self {
            Self::Put(key, _) => key == (pool, object, index),
            Self::Get(_) => false,
            Self::Flush((p, o, first), count) => {
                (p, o) == (pool, object) && (first..first + count).contains(&index)
            }
            Self::FlushObject((p, o, _)) => (p, o) == (pool, object),
            Self::Destroy((p, ..)) => p == pool,
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
    for thread in 0..THREADS {
        store.authorize(UUID, &client(thread));
    }
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
    let client = store.client(&client(thread)).unwrap();
    client.set_dedup(&"domain:x".parse().unwrap());
    let [_, pool, object, index, more] = op.words();
    let (id, index) = (OBJECTS[object as usize], index as u32);
    let Some(pool) = pool.checked_sub(1).map(|pool| pool as i32) else {
        return apply_to_device(&client.device_pool().unwrap(), cx, op);
    };
    // The lowest number that is free is the next pool's.
    for (number, kind) in (0..).zip(POOLS) {
        if client.flush_page(number, ObjectId([9; 3]), 0) == NO_DEVICE {
            let kind = kind | tmem::VERSION << flags::VERSION_SHIFT;
            assert_eq!(client.new_pool(kind, UUID), number);
        }
    }
    let answer = match op {
        Op::Put(_, seed) => client.put_page(cx, pool, id, index, &page(seed)),
        Op::Get(_) => client
            .get_page(cx, pool, id, index, &mut [0; PAGE_SIZE])
            .max(1),
        Op::Flush(..) => client.flush_page(pool, id, index),
        Op::FlushObject(_) => client.flush_object(pool, id),
        Op::Destroy(_) => client.destroy_pool(pool),
    };
    match answer {
        1 => Outcome::Done,
        NO_MEMORY => Outcome::NoMemory,
        NO_SPACE => Outcome::NoSpace,
        _ => panic!("{op:?} {more}: {answer}"),
    }
}

fn apply_to_device(pool: &Pool, cx: &mut Context, op: Op) -> Outcome {
    match op {
        Op::Put((_, object, index), seed) => {
            match pool.put(cx, OBJECTS[object as usize], index as u32, &page(seed)) {
                Ok(()) => return Outcome::Done,
                Err(PutError::NoMemory) => return Outcome::NoMemory,
                Err(PutError::NoSpace) => return Outcome::NoSpace,
                Err(PutError::NoDevice) => panic!("the pool is its own"),
            }
        }
        Op::Get((_, object, index)) => {
            let mut out = [0; PAGE_SIZE];
            pool.get(cx, OBJECTS[object as usize], index as u32, &mut out)
                .unwrap();
        }
        Op::Flush((_, object, first), count) => {
            pool.flush_range(OBJECTS[object as usize], first as u32, count as u32);
        }
        Op::FlushObject((_, object, _)) => {
            pool.flush_object(OBJECTS[object as usize]);
        }
        // A device's pool is destroyed with its client.
        Op::Destroy(_) => {
            pool.flush_object(OBJECTS[0]);
            pool.flush_object(OBJECTS[1]);
        }
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
            let op = Op::from_words(&words[2..]);
            if phase == 0 {
                self.in_flight[thread] = Some(op);
                continue;
            }
            self.in_flight[thread] = None;
            self.acknowledged += 1;
            self.refused += u64::from(phase > 1);
            let model = &mut self.models[thread];
            match op {
                Op::Put(key, seed) if phase == 1 => {
                    model.insert(key, seed);
                }
                Op::Put(key, _) if phase == 1 + Outcome::NoMemory as u64 => {
                    assert!(!model.contains_key(&key), "NoMemory: a new key");
                }
                _ => model.retain(|key, _| !op.touches(*key)),
            }
            model.retain(|key, _| key.0 < SURVIVE);
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
                let client = store.client(&client(thread)).unwrap();
                let device = client.device_pool().unwrap();
                let mut found = Model::new();
                let keys = (0..SURVIVE).flat_map(|pool| {
                    let indices = 0..self.indices + RANGE;
                    indices.flat_map(move |index| [(pool, 0, index), (pool, 1, index)])
                });
                for key in keys {
                    let mut out = [0; PAGE_SIZE];
                    let (id, index) = (OBJECTS[key.1 as usize], key.2 as u32);
                    let there = match key.0 {
                        0 => device.get(&mut cx, id, index, &mut out).unwrap(),
                        _ => {
                            match client.get_page(&mut cx, key.0 as i32 - 1, id, index, &mut out) {
                                1 => true,
                                0 | EMPTY | NO_DEVICE => false,
                                answer => panic!("{context}: client {thread}, {key:?}: {answer}"),
                            }
                        }
                    };
                    let old = model.get(&key).copied();
                    let in_flight = self.in_flight[thread as usize].filter(|op| op.touches(key));
                    let (new, may_be_gone) = match in_flight {
                        None => (None, false),
                        Some(Op::Put(_, seed)) => (Some(seed), full),
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
                let pools = client.stats().pools;
                assert!(
                    pools.iter().all(|pool| pool.kind == Kind::Persistent),
                    "{context}: {pools:?}"
                );
                let pages: u64 = pools.iter().map(|pool| pool.stats.pages).sum();
                assert_eq!(pages, found.len() as u64, "{context}");
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

/// The words that tell a victim its store and its work. A spill file lies beside the arena.
pub(crate) fn order(config: &Config, work: Work) -> String {
    let (arena, memory) = (config.arena.display(), config.memory);
    let spill = config.spill.as_ref().map_or(0, |spill| spill.size);
    let Work { ops, indices, seed } = work;
    format!("{arena} {memory} {spill} {ops} {indices} {seed}")
}

/// Reads what `order` wrote.
pub(crate) fn orders(words: &[String]) -> (Config, Work) {
    let number = |at: usize| words[at].parse().unwrap();
    let work = Work {
        ops: number(3),
        indices: number(4),
        seed: number(5),
    };
    let config = Config {
        // An arena may hold pages of several allocators.
        persistent: [Allocator::Zsmalloc, Allocator::Xvmalloc][work.seed as usize % 2],
        ..store_config(Path::new(&words[0]), number(1), number(2))
    };
    (config, work)
}

/// A store with `spill` bytes beside its arena, or none.
pub(crate) fn store_config(arena: &Path, memory: u64, spill: u64) -> Config {
    let path = arena.with_extension("spill");
    Config {
        spill: (spill > 0).then_some(SpillConfig { path, size: spill }),
        ..Config::new(arena, memory)
    }
}
