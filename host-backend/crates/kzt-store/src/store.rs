// SPDX-License-Identifier: GPL-2.0-or-later
//! The store: an open arena and its pools.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::arena::ArenaFile;
use crate::client::Client;
use crate::codec::Codec;
use crate::error::{OpenError, StoreError};
use crate::frames::{Frames, Upkeep};
use crate::header::{boot_id, format, inspect};
use crate::layout::{self, EXTENT, FRAME, HEADER, header, pool, raw, record};
use crate::lock;
use crate::pam::{Allocator, Need};
use crate::pool::Pool;
use crate::reclaim::Evictions;
use crate::recover::{Present, Recoverer};
use crate::shared::SharedPools;
use crate::space::{Space, fingerprint};
use crate::spill::{ArenaId, Spill, SpillConfig, SpillUsage};
use crate::sync::Mutex;
use crate::table::{Kind, Slot, Uuid};
use crate::zbud::ZbudUsage;

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
    /// Where persistent pages go that memory has no room for.
    pub spill: Option<SpillConfig>,
    /// Give up pages that are in a spill file which is not there: they answer with `Corrupt`.
    /// Otherwise the arena isn't opened.
    pub abandon_spilled: bool,
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
            spill: None,
            abandon_spilled: false,
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
    /// Of these, pages that were in a spill file which is not there.
    pub abandoned: u64,
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
    /// Pages stored, on the disk tier or not.
    pub pages: u64,
    /// Pages of these whose bytes another page's block holds.
    pub duplicates: u64,
    /// What their own blocks would take, headers included. Clients are charged for it all the same.
    pub deduplicated: u64,
    /// The disk tier, if there is one.
    pub spill: Option<SpillUsage>,
}

/// An open arena. Dropping it, and every pool opened from it, unlocks the file.
pub struct Store {
    space: Arc<Space>,
    pub(crate) shared: Arc<SharedPools>,
    memory: u64,
    /// Their lock is taken before a client's own.
    clients: Mutex<BTreeMap<String, Arc<Client>>>,
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
        let id = ArenaId {
            boot,
            key: fingerprint(key),
        };
        let spill = config.spill.as_ref().map(|spill| Spill::open(spill, id));
        let spill = spill.transpose()?;
        let store = Self {
            space: Arc::new(Space::new(frames, config.persistent, *codec, spill)),
            shared: Arc::default(),
            memory,
            clients: Mutex::default(),
        };
        let mut recovery = Recovery {
            origin,
            pools: 0,
            pages: 0,
            dropped: 0,
            abandoned: 0,
            elapsed: Duration::ZERO,
            warnings,
        };
        if origin == Origin::Recovered {
            let abandon = config.abandon_spilled;
            let held = store.recover(&mut recovery, abandon);
            let held = held.map_err(failed("recover"))?;
            if recovery.abandoned > 0 && !abandon {
                return Err(OpenError::SpillLost {
                    path: path.clone(),
                    pages: recovery.abandoned,
                });
            }
            if held > memory {
                return Err(OpenError::Shrunk {
                    path: path.clone(),
                    held,
                    memory,
                });
            }
        }
        store.begin_spilling(config, &mut recovery)?;
        recovery.elapsed = started.elapsed();
        Ok((store, recovery))
    }

    /// Takes the spill file into use, now that it is known what is in it.
    fn begin_spilling(&self, config: &Config, recovery: &mut Recovery) -> Result<(), OpenError> {
        if let (Some(spill), Some(config)) = (&self.space.spill, &config.spill) {
            spill
                .settle()
                .map_err(OpenError::io(&config.path, "write the header"))?;
            if spill.is_in_memory() {
                let path = config.path.display();
                let warning = format!("{path} is on a tmpfs: pages spilled there stay in memory");
                recovery.warnings.push(warning);
            }
        }
        Ok(())
    }

    /// Walks the index; the bytes that its extents occupy.
    fn recover(&self, recovery: &mut Recovery, abandon: bool) -> io::Result<u64> {
        let space = &self.space;
        let present = Present::of(space)?;
        let mut walk = Recoverer::new(space, &present, abandon);
        for slot in (0..pool::SLOTS).map(pool::slot) {
            let mut warn = |what: String| {
                let number = pool::number(slot);
                recovery
                    .warnings
                    .push(format!("slot {number} of the pool table {what}"));
            };
            let lost = "is damaged beyond repair: all pages of its pool are lost";
            let description = match space.table.recover(slot) {
                Slot::Free => continue,
                Slot::Pool(description) => description,
                Slot::Mended(description) => {
                    let client = description.client();
                    warn(format!("was damaged and is mended: a pool of {client}"));
                    description
                }
                Slot::Lost => {
                    warn(lost.to_owned());
                    walk.dropped += 1;
                    continue;
                }
            };
            // Flushes may have died with the process: no page that may vanish is believed.
            if description.kind != Kind::Persistent {
                space.table.end(slot);
                space.table.give_back(slot);
                continue;
            }
            let client = self.find_or_make(&mut lock(&self.clients), description.client());
            if client.has_pool(description.id) {
                // Another slot was copied over this one.
                warn(lost.to_owned());
                walk.dropped += 1;
                space.table.end(slot);
                space.table.give_back(slot);
                continue;
            }
            let before = walk.held;
            walk.pool(slot);
            let mut held = walk.held;
            held -= before;
            client.adopt(slot, &description, held);
            recovery.pools += 1;
        }
        space.pam.settle();
        let extents = space.frames.settle(|frame| present.has(frame))?;
        for entry in walk.unlinked.drain(..) {
            space.release(entry);
        }
        recovery.pages = walk.held.pages;
        recovery.dropped = walk.dropped;
        recovery.abandoned = walk.lost;
        Ok(u64::from(extents) * EXTENT)
    }

    /// The client of that name: found, or made.
    ///
    /// # Errors
    /// `BadName`.
    pub fn client(&self, name: &str) -> Result<Arc<Client>, StoreError> {
        if !Client::admits(name) {
            return Err(StoreError::BadName);
        }
        Ok(self.find_or_make(&mut lock(&self.clients), name))
    }

    fn find_or_make(&self, clients: &mut BTreeMap<String, Arc<Client>>, name: &str) -> Arc<Client> {
        if let Some(client) = clients.get(name) {
            return Arc::clone(client);
        }
        let shared = Arc::clone(&self.shared);
        let client = Arc::new(Client::new(name, Arc::clone(&self.space), shared));
        clients.insert(name.to_owned(), Arc::clone(&client));
        client
    }

    /// Destroys all pools of a client and forgets it.
    ///
    /// # Errors
    /// `NoDevice` if there is none.
    pub fn remove_client(&self, name: &str) -> Result<(), StoreError> {
        // A namesake made meanwhile would meet its pools: it waits for the lock.
        let mut clients = lock(&self.clients);
        let client = clients.remove(name).ok_or(StoreError::NoDevice)?;
        self.shared.forget(name);
        let pools = client.remove();
        drop(clients);
        for pool in pools {
            pool.reclaim();
        }
        Ok(())
    }

    /// Lets a client share the pool of that UUID.
    pub fn authorize(&self, uuid: Uuid, client: &str) {
        self.shared.authorize(uuid, client);
    }

    /// Takes that back; pools that the client shares already stay shared.
    pub fn revoke(&self, uuid: Uuid, client: &str) {
        self.shared.revoke(uuid, client);
    }

    /// The persistent pool that the host's own devices for a client use: found or created.
    ///
    /// # Errors
    /// `BadName` or `TooManyPools`.
    pub fn open_pool(&self, client: &str) -> Result<Arc<Pool>, StoreError> {
        self.client(client)?.device_pool()
    }

    /// Destroys that pool with all its pages.
    ///
    /// # Errors
    /// `NoDevice` if there is none.
    pub fn destroy_pool(&self, client: &str) -> Result<(), StoreError> {
        let client = lock(&self.clients).get(client).map(Arc::clone);
        client.ok_or(StoreError::NoDevice)?.destroy_device_pool()
    }

    pub(crate) fn every_client(&self) -> Vec<Arc<Client>> {
        lock(&self.clients).values().map(Arc::clone).collect()
    }

    /// Names of the clients that have a pool, sorted.
    pub fn clients(&self) -> Vec<String> {
        let clients = lock(&self.clients);
        let owners = clients.iter().filter(|(_, client)| client.has_pools());
        owners.map(|(name, _)| name.clone()).collect()
    }

    /// Where the memory is.
    ///
    /// # Errors
    /// If the file's size cannot be asked for.
    pub fn usage(&self) -> io::Result<Usage> {
        let mut held = self.shared.held();
        for client in lock(&self.clients).values() {
            held += client.held(&[Kind::Persistent, Kind::Ephemeral]);
        }
        let used = self.space.frames.in_use() * FRAME + EXTENT;
        let allocated = self.space.arena.allocated()?;
        let saved = self.space.sharing.saved();
        let shared = saved.spilled;
        let spill = self.space.spill.as_ref().map(|spill| {
            spill.usage(
                held.spilled + shared.blocks,
                held.spilled_bytes + shared.bytes,
            )
        });
        // A put under way has its use of a block before its pool has the page.
        let data = held.payload.saturating_sub(saved.payload + shared.payload);
        let blocks = held.blocks.saturating_sub(saved.blocks + shared.blocks);
        let records = saved.records * record::BYTES as u64;
        let frames = self.space.pam.raw().pages() * raw::BYTES;
        let meta = held.index + blocks * HEADER as u64 + frames + records + EXTENT;
        Ok(Usage {
            limit: self.memory,
            allocated,
            data,
            meta,
            fragmentation: used.saturating_sub(data + meta),
            spare: allocated.saturating_sub(used),
            pages: held.pages,
            duplicates: saved.blocks,
            deduplicated: saved.payload + saved.blocks * HEADER as u64,
            spill: spill.transpose()?,
        })
    }

    /// What frames hold that two pages may share, as ephemeral ones do.
    #[must_use]
    pub fn zbud(&self) -> ZbudUsage {
        self.space.pam.zbud().usage()
    }

    /// What has been evicted since the store was opened.
    #[must_use]
    pub fn evictions(&self) -> Evictions {
        self.space.evicted.figures()
    }

    /// Background upkeep: keeps touched memory in stock, so that puts rarely pay for a cold
    /// touch, moves blocks together where much is free between them, gives memory back to the
    /// host when more than a few MiB are free, and spills cold pages when little is. To be called
    /// from a thread of its own, every few milliseconds while it finds something to do and a
    /// few times a second otherwise. Holds up no other call.
    pub fn maintain(&self) -> Upkeep {
        let need = if self.space.frames.short() {
            Need::Short
        } else {
            Need::Slack
        };
        let emptied = self.space.compact(need);
        let spill = self.space.spill.as_ref();
        Upkeep {
            emptied,
            spilled: u32::from(self.space.spill_ahead()),
            punched: spill.map_or(0, Spill::maintain),
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
