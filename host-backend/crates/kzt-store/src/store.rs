// SPDX-License-Identifier: GPL-2.0-or-later
//! The store: an open arena and its pools.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use std::{fs, io};

use rustix::rand::{GetRandomFlags, getrandom};

use crate::arena::{Arena, ArenaFile};
use crate::codec::Codec;
use crate::error::{OpenError, StoreError};
use crate::frames::{Frames, Upkeep};
use crate::layout::{self, EXTENT, FRAME, HEADER, header, pool};
use crate::lock;
use crate::owner::Owners;
use crate::pam::{Allocator, Need, Pams};
use crate::pool::Pool;
use crate::recover::{Present, Recoverer};
use crate::space::{Held, Space};

/// What to open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The arena file, on a tmpfs; created if it is missing.
    pub arena: PathBuf,
    /// Most bytes of host memory the arena may occupy, index and spare room included.
    pub memory: u64,
    /// How pages are compressed from now on.
    pub codec: Codec,
    /// What holds the pages of persistent pools from now on.
    pub persistent: Allocator,
}

impl Config {
    /// An arena of that size; all else as it is by default.
    #[must_use]
    pub fn new(arena: impl Into<PathBuf>, memory: u64) -> Self {
        Self {
            arena: arena.into(),
            memory,
            codec: Codec::Lzo,
            persistent: Allocator::Zsmalloc,
        }
    }
}

/// How the arena was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// It is new.
    New,
    /// It holds what the last owner left.
    Recovered,
    /// It is from before the host's last boot: begun anew.
    Reboot,
}

/// What opening found.
#[derive(Debug, Clone)]
pub struct Recovery {
    /// How the arena was found.
    pub origin: Origin,
    /// Pools recovered.
    pub pools: u64,
    /// Pages recovered.
    pub pages: u64,
    /// Damaged entries. The pages below them answer with `Corrupt` until they are overwritten
    /// or flushed.
    pub dropped: u64,
    /// How long it took.
    pub elapsed: Duration,
    /// What the host's administrator should know.
    pub warnings: Vec<String>,
}

/// Where the memory is, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// The limit.
    pub limit: u64,
    /// Blocks of the arena file: what the host has given. The sum of the next four.
    pub allocated: u64,
    /// Payload of pages.
    pub data: u64,
    /// Header, pool table, index, block headers.
    pub meta: u64,
    /// Frames in use that hold neither.
    pub fragmentation: u64,
    /// Frames not in use: in stock for the next puts, or about to be given back.
    pub spare: u64,
    /// Pages stored.
    pub pages: u64,
}

/// An open arena. Dropping it, and every pool opened from it, unlocks the file.
pub struct Store {
    space: Arc<Space>,
    codec: Codec,
    memory: u64,
    pools: Mutex<BTreeMap<String, (u64, Arc<Pool>)>>,
}

impl Store {
    /// Creates the arena or recovers it. It belongs to this `Store` alone until all of it is
    /// dropped, and until every process has ended that was forked meanwhile without executing
    /// another program: they share the lock.
    ///
    /// # Errors
    /// See [`OpenError`]; the file is never thrown away because of one.
    pub fn open(config: &Config) -> Result<(Self, Recovery), OpenError> {
        let started = Instant::now();
        let Config {
            arena: path,
            memory,
            codec,
            ..
        } = config;
        let failed = |what| OpenError::io(path, what);
        let (min, max) = (layout::MIN_MEMORY, layout::MAX_MEMORY);
        if !(min..=max).contains(memory) {
            return Err(OpenError::Memory {
                memory: *memory,
                min,
                max,
            });
        }
        let memory = memory / EXTENT * EXTENT;
        let mut file = ArenaFile::open(path)?;
        let boot = boot_id().map_err(failed("read the boot id"))?;
        let origin = inspect(&file, path, boot)?;
        if origin == Origin::Reboot {
            file.clear().map_err(failed("truncate"))?;
        }
        let warnings = match file.check_filesystem(path, memory) {
            // Whoever filled the file system meanwhile: the pages that are here stay reachable.
            Err(full @ OpenError::FilesystemFull { .. }) if origin == Origin::Recovered => {
                vec![full.to_string()]
            }
            checked => checked?.into_iter().collect(),
        };
        let arena = Arc::new(file.map(memory).map_err(failed("map"))?);
        // The header's extent may be a hole, in a new file or in part after a crash.
        arena.back(0).map_err(failed("allocate"))?;
        if origin != Origin::Recovered {
            format(&arena, boot).map_err(failed("create"))?;
        }
        arena.store(header::MEMORY, memory);
        let mut name = [0; header::CODEC_BYTES];
        name.iter_mut()
            .zip(codec.to_string().bytes())
            .for_each(|(to, from)| *to = from);
        arena.write(header::CODEC, &name);

        let frames = Arc::new(Frames::new(Arc::clone(&arena), memory));
        let key = [0, 8, 16].map(|word| arena.load(header::KEY + word));
        let pam = Pams::new(&frames, config.persistent);
        let space = Arc::new(Space {
            arena,
            frames,
            pam,
            owners: Owners::new(),
            key,
        });
        let mut store = Self {
            space,
            codec: *codec,
            memory,
            pools: Mutex::new(BTreeMap::new()),
        };
        let mut recovery = Recovery {
            origin,
            pools: 0,
            pages: 0,
            dropped: 0,
            elapsed: Duration::ZERO,
            warnings,
        };
        if origin == Origin::Recovered {
            let held = store.recover(&mut recovery).map_err(failed("recover"))?;
            if held > memory {
                return Err(OpenError::Shrunk {
                    path: path.clone(),
                    held,
                    memory,
                });
            }
        }
        recovery.elapsed = started.elapsed();
        Ok((store, recovery))
    }

    /// Walks the index; the bytes that its extents occupy.
    fn recover(&mut self, recovery: &mut Recovery) -> io::Result<u64> {
        let space = &self.space;
        let present = Present::of(space)?;
        let mut walk = Recoverer::new(space, &present);
        let mut found = BTreeMap::new();
        for slot in (0..pool::SLOTS).map(pool::slot) {
            let state = space.arena.load(slot + pool::STATE);
            if state == 0 {
                continue;
            }
            let mut bytes = [0; pool::NAME_BYTES];
            space.arena.read(slot + pool::NAME, &mut bytes);
            let name = (state == pool::live(&bytes))
                .then(|| client_name(&bytes))
                .flatten();
            let Some(name) = name.filter(|name| !found.contains_key(name)) else {
                // Nobody could name this pool any more.
                walk.dropped += 1;
                space.arena.store(slot + pool::STATE, 0);
                continue;
            };
            let before = walk.held;
            walk.pool(slot);
            let mut held = walk.held;
            held -= before;
            found.insert(name, (slot, held));
        }
        space.pam.settle();
        let extents = space.frames.settle(|frame| present.has(frame))?;
        for entry in walk.unlinked.drain(..) {
            space.release(entry);
        }
        recovery.pools = found.len() as u64;
        recovery.pages = walk.held.pages;
        recovery.dropped = walk.dropped;
        self.pools = Mutex::new(
            found
                .into_iter()
                .map(|(name, (slot, held))| (name, (slot, self.pool(slot, held))))
                .collect(),
        );
        Ok(u64::from(extents) * EXTENT)
    }

    fn pool(&self, slot: u64, held: Held) -> Arc<Pool> {
        let pool = Arc::new(Pool::new(Arc::clone(&self.space), self.codec, slot, held));
        self.space.owners.note(pool::number(slot), &pool);
        pool
    }

    /// The client's persistent pool: found again or created.
    ///
    /// # Errors
    /// `BadName` or `TooManyPools`.
    pub fn open_pool(&self, client: &str) -> Result<Arc<Pool>, StoreError> {
        let name = name_bytes(client).ok_or(StoreError::BadName)?;
        let mut pools = lock(&self.pools);
        if let Some((_, pool)) = pools.get(client) {
            return Ok(Arc::clone(pool));
        }
        let arena = &self.space.arena;
        let slot = (0..pool::SLOTS)
            .map(pool::slot)
            .find(|slot| arena.load(slot + pool::STATE) == 0)
            .ok_or(StoreError::TooManyPools)?;
        arena.write(slot + pool::NAME, &name);
        arena.store(slot + pool::ROOT, 0);
        // This store creates the pool.
        arena.store(slot + pool::STATE, pool::live(&name));
        let pool = self.pool(slot, Held::default());
        pools.insert(client.to_owned(), (slot, Arc::clone(&pool)));
        Ok(pool)
    }

    /// The owners of the pools there are, sorted.
    pub fn clients(&self) -> Vec<String> {
        lock(&self.pools).keys().cloned().collect()
    }

    /// Destroys a client's pool with all its pages.
    ///
    /// # Errors
    /// `NoDevice` if there is none.
    pub fn destroy_pool(&self, client: &str) -> Result<(), StoreError> {
        // The lock is held until the slot is free, so that the name can't come back before.
        let mut pools = lock(&self.pools);
        let (_, pool) = pools.remove(client).ok_or(StoreError::NoDevice)?;
        pool.destroy();
        Ok(())
    }

    /// Where the memory is.
    ///
    /// # Errors
    /// If the file's size cannot be asked for.
    pub fn usage(&self) -> io::Result<Usage> {
        let mut held = Held::default();
        for (_, pool) in lock(&self.pools).values() {
            held += pool.held();
        }
        let used = self.space.frames.in_use() * FRAME + EXTENT;
        let allocated = self.space.arena.allocated()?;
        let meta = held.index + held.blocks * HEADER as u64 + EXTENT;
        Ok(Usage {
            limit: self.memory,
            allocated,
            data: held.payload,
            meta,
            fragmentation: used.saturating_sub(held.payload + meta),
            spare: allocated.saturating_sub(used),
            pages: held.pages,
        })
    }

    /// Background upkeep: keeps touched memory in stock, so that puts rarely pay for a cold
    /// touch, moves blocks together where much is free between them, and gives memory back to the
    /// host when more than a few MiB are free. To be called
    /// from a thread of its own, every few milliseconds while it finds something to do and a
    /// few times a second otherwise. Holds up no other call.
    pub fn maintain(&self) -> Upkeep {
        let need = if self.space.frames.short() {
            Need::Short
        } else {
            Need::Slack
        };
        let emptied = self.space.compact(need);
        Upkeep {
            emptied,
            ..self.space.frames.maintain()
        }
    }

    /// Locks the arena in memory, page by page as it comes into use.
    ///
    /// # Errors
    /// The host's limit on locked memory is too small: it may swap the arena out.
    pub fn pin(&self) -> io::Result<()> {
        self.space.arena.pin()
    }
}

/// What the file is, before anything of it is mapped.
fn inspect(file: &ArenaFile, path: &Path, boot: [u64; 2]) -> Result<Origin, OpenError> {
    let damaged = || OpenError::NotAnArena { path: path.into() };
    if file.len == 0 {
        return Ok(Origin::New);
    }
    if !(EXTENT..=layout::MAX_MEMORY).contains(&file.len) {
        return Err(damaged());
    }
    let mut bytes = vec![0; EXTENT as usize];
    file.read_start(&mut bytes)
        .map_err(OpenError::io(path, "read"))?;
    let word = |offset: u64| {
        let chunk = bytes.get(offset as usize..).and_then(<[u8]>::first_chunk);
        u64::from_ne_bytes(chunk.copied().unwrap_or_default())
    };
    if word(header::MAGIC) == 0 {
        // Its creator died before there was an arena; unless there are pools.
        let pools = (0..pool::SLOTS).any(|slot| word(pool::slot(slot) + pool::STATE) != 0);
        return if pools {
            Err(damaged())
        } else {
            Ok(Origin::New)
        };
    }
    if word(header::MAGIC) != layout::MAGIC {
        return Err(damaged());
    }
    let found = word(header::VERSION);
    if found != u64::from(layout::VERSION) {
        return Err(match u32::try_from(found) {
            Ok(found) => OpenError::Version {
                path: path.into(),
                found,
                expected: layout::VERSION,
            },
            Err(_) => damaged(),
        });
    }
    let checked = bytes
        .get(header::VERSION as usize..header::CHECK as usize)
        .unwrap_or_default();
    if word(header::CHECK) != u64::from(crc32c::crc32c(checked)) {
        return Err(damaged());
    }
    let same_boot = [word(header::BOOT_ID), word(header::BOOT_ID + 8)] == boot;
    Ok(if same_boot {
        Origin::Recovered
    } else {
        Origin::Reboot
    })
}

/// Writes a new arena's header. The magic comes last: it makes it an arena.
fn format(arena: &Arena, boot: [u64; 2]) -> io::Result<()> {
    let mut key = [0_u8; 24];
    // 256 bytes or less come in one piece.
    getrandom(&mut key, GetRandomFlags::empty())?;
    let mut words = Vec::with_capacity((header::CHECK - header::VERSION) as usize);
    words.extend(u64::from(layout::VERSION).to_ne_bytes());
    words.extend(boot.into_iter().flat_map(u64::to_ne_bytes));
    words.extend(key);
    arena.write(header::VERSION, &words);
    arena.store(header::CHECK, u64::from(crc32c::crc32c(&words)));
    arena.store(header::MAGIC, layout::MAGIC);
    Ok(())
}

/// The host's boot id: tmpfs content does not outlive it.
fn boot_id() -> io::Result<[u64; 2]> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let id = u128::from_str_radix(&text.trim().replace('-', ""), 16).map_err(io::Error::other)?;
    Ok([(id >> 64) as u64, id as u64])
}

/// A client's name as the pool table has it.
fn name_bytes(client: &str) -> Option<[u8; pool::NAME_BYTES]> {
    let mut bytes = [0; pool::NAME_BYTES];
    let valid = !client.is_empty() && client.bytes().all(|byte| byte.is_ascii_graphic());
    bytes
        .get_mut(..client.len())
        .filter(|_| valid)?
        .copy_from_slice(client.as_bytes());
    Some(bytes)
}

/// The name in a pool's slot, if a client can have it.
fn client_name(bytes: &[u8; pool::NAME_BYTES]) -> Option<String> {
    let text = std::str::from_utf8(bytes).ok()?.trim_end_matches('\0');
    (name_bytes(text).as_ref() == Some(bytes)).then(|| text.to_owned())
}
