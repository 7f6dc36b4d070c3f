// SPDX-License-Identifier: GPL-2.0-or-later
//! The disk tier: persistent pages that memory has no room for, in a sparse file of its own.
//!
//! Pages go there as the blocks they were in the arena, many at once: a *cluster* is written whole,
//! and is reused or given back to the disk when no entry leads there any more. As in the arena, the
//! index is the truth: what is in the file is known from the entries alone, and a page's bytes are
//! on their way to the disk, without error, before its entry leads there.
//!
//! Which pages go, and how their entries change, is in `tier.rs`.

mod clusters;
mod file;
#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use clusters::Clusters;
use file::{ALIGN, Buffer, SpillFile};
pub(crate) use file::{ArenaId, CLUSTER};

use crate::entry::{Entry, Spilled};
use crate::error::{GetError, OpenError};
use crate::layout::{Location, hash_of};
use crate::sync::atomic::AtomicU64;
use crate::sync::{Mutex, MutexGuard};
use crate::{PAGE_SIZE, lock};

/// After a failed write the disk is left alone for so long.
const PAUSE: Duration = Duration::from_secs(1);
/// Most pages written at once.
const BATCH: usize = 2048;
/// Clusters looked through for one batch at most.
const SOURCES: usize = 16;
/// Live bytes that a cluster has at most when it is collected.
const COLLECTABLE: u32 = CLUSTER as u32 / 8 * 7;
/// Dead clusters that keep their blocks, to be written over.
const KEEP: u32 = 8;
/// Clusters given back to the disk by one call of upkeep.
const PUNCHES: u32 = 16;
/// Smallest file: some clusters, and one to collect the others into.
const MIN_SIZE: u64 = 4 * CLUSTER as u64 + ALIGN as u64;

/// The disk tier of a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpillConfig {
    /// The file, on a disk; created if it is missing. It belongs to one arena.
    pub path: PathBuf,
    /// Most bytes of the disk it may occupy.
    pub size: u64,
}

/// What the disk tier holds and has done. Counters count since the store was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SpillUsage {
    /// The limit in bytes.
    pub limit: u64,
    /// Bytes of the disk that the file occupies.
    pub allocated: u64,
    /// Pages in it; those that share a block count once.
    pub pages: u64,
    /// Bytes of their blocks, headers included.
    pub data: u64,
    /// Pages written, those moved within the file included.
    pub written: u64,
    /// Of these, pages moved within the file to make room.
    pub collected: u64,
    /// Pages read.
    pub read: u64,
    /// Writes that failed; nothing is lost by one.
    pub write_errors: u64,
    /// Reads that failed.
    pub read_errors: u64,
}

#[derive(Default)]
struct Counters {
    written: AtomicU64,
    collected: AtomicU64,
    read: AtomicU64,
    write_errors: AtomicU64,
    read_errors: AtomicU64,
}

/// An open spill file.
pub(crate) struct Spill {
    file: SpillFile,
    limit: u64,
    /// Innermost, as an allocator's lock: entries are released under their pool's.
    clusters: Mutex<Clusters>,
    /// Outermost: who has it holds no pool's lock.
    writer: Mutex<Writer>,
    /// How many batches there have been.
    batches: AtomicU64,
    counters: Counters,
}

/// What the writer of a batch needs.
struct Writer {
    buffer: Buffer,
    /// Bytes of it in use.
    len: usize,
    pages: Vec<Pending>,
    /// A cluster that is being collected.
    source: Vec<u8>,
    /// When a write failed last.
    failed: Option<Instant>,
    /// The frame that `tier.rs` looks at next.
    hand: u32,
}

/// A page in a batch.
struct Pending {
    /// What leads to it.
    old: Entry,
    location: Location,
    /// Where its block is in the batch.
    start: usize,
}

impl Spill {
    /// Opens or creates the file for an arena.
    pub(crate) fn open(config: &SpillConfig, arena: ArenaId) -> Result<Self, OpenError> {
        let (size, max) = (config.size, Spilled::MAX_POSITION);
        if !(MIN_SIZE..=max).contains(&size) {
            return Err(OpenError::SpillSize {
                size,
                min: MIN_SIZE,
                max,
            });
        }
        let most = |bytes: u64| ((bytes - ALIGN as u64) / CLUSTER as u64) as u32;
        let file = SpillFile::open(&config.path, arena)?;
        let limit = most(size);
        let count = limit.max(file.written.min(most(max)));
        Ok(Self {
            file,
            limit: size,
            clusters: Mutex::new(Clusters::new(count, limit)),
            writer: Mutex::new(Writer {
                buffer: Buffer::new(CLUSTER),
                len: 0,
                pages: Vec::with_capacity(BATCH),
                source: vec![0; CLUSTER],
                failed: None,
                hand: 0,
            }),
            batches: AtomicU64::new(0),
            counters: Counters::default(),
        })
    }

    fn clusters(&self) -> MutexGuard<'_, Clusters> {
        lock(&self.clusters)
    }

    /// Whether the file holds nothing of this arena: it was made just now, or is of another one.
    pub(crate) fn is_new(&self) -> bool {
        self.file.is_new
    }

    /// Recovery: takes the block that an entry leads to; `false` if the file has none there.
    pub(crate) fn claim(&self, at: Spilled) -> bool {
        let Some((cluster, _)) = place(at) else {
            return false;
        };
        self.reaches(at) && self.clusters().claim(cluster, at.size() as u32)
    }

    /// Recovery: whether a block can be there.
    pub(crate) fn reaches(&self, at: Spilled) -> bool {
        place(at).is_some_and(|(cluster, start)| {
            cluster < self.file.written && start + at.size() <= CLUSTER
        })
    }

    /// Recovery: all blocks have been claimed. A new file becomes the arena's.
    pub(crate) fn settle(&self) -> io::Result<()> {
        self.file.begin()?;
        self.clusters().settle(self.file.written);
        Ok(())
    }

    /// Keeps a page's bytes where they are until they have been read. To be called under the lock
    /// of the pool whose entry leads there.
    pub(crate) fn hold(&self, at: Spilled) -> Reading<'_> {
        if let Some((cluster, _)) = place(at) {
            self.clusters().hold(cluster, at.size() as u32);
        }
        Reading { spill: self, at }
    }

    /// No entry leads there any more.
    pub(crate) fn free(&self, at: Spilled) {
        if let Some((cluster, _)) = place(at) {
            self.clusters().free_bytes(cluster, at.size() as u32);
        }
    }

    /// Waits until no other batch is being written, and begins one. `None`: another one was
    /// finished meanwhile.
    pub(crate) fn begin(&self) -> Option<Batch<'_>> {
        let before = self.batches.load(Relaxed);
        let writer = lock(&self.writer);
        (self.batches.load(Relaxed) == before).then_some(Batch {
            spill: self,
            writer,
        })
    }

    /// Gives dead clusters back to the disk, a few at a time; how many.
    pub(crate) fn maintain(&self) -> u32 {
        let mut punched = 0;
        while punched < PUNCHES {
            let Some(dead) = self.clusters().take_surplus(KEEP) else {
                break;
            };
            let done = self.file.punch(dead).is_ok();
            self.clusters().retire(dead, done);
            if !done {
                break;
            }
            punched += 1;
        }
        punched
    }

    /// Whether the file is in memory and not on a disk.
    pub(crate) fn is_in_memory(&self) -> bool {
        self.file.is_in_memory()
    }

    /// The tier's figures; so many blocks are in it, of so many bytes.
    pub(crate) fn usage(&self, blocks: u64, bytes: u64) -> io::Result<SpillUsage> {
        let count = |counter: &AtomicU64| counter.load(Relaxed);
        Ok(SpillUsage {
            limit: self.limit,
            allocated: self.file.allocated()?,
            pages: blocks,
            data: bytes,
            written: count(&self.counters.written),
            collected: count(&self.counters.collected),
            read: count(&self.counters.read),
            write_errors: count(&self.counters.write_errors),
            read_errors: count(&self.counters.read_errors),
        })
    }
}

/// The cluster of a block, and where it begins there.
fn place(at: Spilled) -> Option<(u32, usize)> {
    let cluster = file::cluster_of(at.position)?;
    Some((cluster, (at.position - file::start(cluster)) as usize))
}

/// Bytes that nobody writes over.
pub(crate) struct Reading<'a> {
    spill: &'a Spill,
    pub(crate) at: Spilled,
}

impl Reading<'_> {
    /// Reads the page in the slot at `slot` into `block`, which has room for [`Spilled::size`]: its
    /// header, then its payload. The checksum is the caller's to compare.
    pub(crate) fn read(&self, slot: u64, block: &mut [u8]) -> Result<(Location, u32), GetError> {
        let counters = &self.spill.counters;
        counters.read.fetch_add(1, Relaxed);
        if let Err(error) = self.spill.file.read(self.at.position, block) {
            // The file ends before it: somebody has cut it off.
            if error.kind() == io::ErrorKind::UnexpectedEof {
                return Err(GetError::Corrupt);
            }
            counters.read_errors.fetch_add(1, Relaxed);
            return Err(GetError::Io);
        }
        let (location, check) = header(block).ok_or(GetError::Corrupt)?;
        let checksum = check as u32;
        let ours = location.slot == slot && location.len == self.at.len && self.at.agrees(checksum);
        ours.then_some((location, checksum))
            .ok_or(GetError::Corrupt)
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.spill.free(self.at);
    }
}

/// A block's header, if it is one: its location and its check word.
fn header(block: &[u8]) -> Option<(Location, u64)> {
    let (location, rest) = block.split_first_chunk()?;
    let location = Location::decode(u64::from_ne_bytes(*location))?;
    Some((location, u64::from_ne_bytes(*rest.first_chunk()?)))
}

/// A cluster's worth of pages on their way into the file.
pub(crate) struct Batch<'a> {
    spill: &'a Spill,
    writer: MutexGuard<'a, Writer>,
}

/// A page of a batch that is in the file, where nothing leads to it yet.
pub(crate) struct Written<'a> {
    /// What led to the page when it was added, and what its block said.
    pub(crate) old: Entry,
    pub(crate) location: Location,
    /// Where it is now.
    pub(crate) new: Spilled,
    /// Its block, and the hash that it has.
    pub(crate) block: &'a [u8],
    pub(crate) hash: u32,
}

impl Batch<'_> {
    /// Whether the disk is left alone because a write has just failed.
    pub(crate) fn is_pausing(&self) -> bool {
        let failed = self.writer.failed;
        failed.is_some_and(|failed| failed.elapsed() < PAUSE)
    }

    /// Whether the file has room for pages from memory: its last cluster is for collecting.
    pub(crate) fn has_room(&self) -> bool {
        self.spill.clusters().free() > 1
    }

    /// The frame to go on from in the search for cold pages.
    pub(crate) fn hand(&mut self) -> &mut u32 {
        &mut self.writer.hand
    }

    /// Whether there may be no room for another page.
    pub(crate) fn is_full(&self) -> bool {
        let writer = &self.writer;
        writer.len + Spilled::size_of(PAGE_SIZE) > CLUSTER || writer.pages.len() == BATCH
    }

    /// Adds the page that the entry `old` leads to. `copy` writes its block: header, payload and
    /// whatever is behind. `false`: there is no room.
    pub(crate) fn add(
        &mut self,
        old: Entry,
        location: Location,
        copy: impl FnOnce(&mut [u8]),
    ) -> bool {
        let Writer {
            buffer, pages, len, ..
        } = &mut *self.writer;
        let start = *len;
        let end = start + Spilled::size_of(location.len);
        let block = buffer.bytes_mut().get_mut(start..end);
        let Some(block) = block.filter(|_| pages.len() < BATCH) else {
            return false;
        };
        copy(block);
        *len = end;
        pages.push(Pending {
            old,
            location,
            start,
        });
        true
    }

    /// Adds what is live of the clusters that have least, as far as it fits. `is_live` tells
    /// whether the entry in a slot leads to a page, which has that hash.
    pub(crate) fn collect(&mut self, is_live: impl Fn(u64, u32, Spilled) -> bool) {
        // Where little can be gained the file is full. Who is refused for it will try again.
        if !self.spill.clusters().can_gain(COLLECTABLE) {
            return;
        }
        let mut source = std::mem::take(&mut self.writer.source);
        let mut seen = [u32::MAX; SOURCES];
        for tried in 0..SOURCES {
            if self.is_full() {
                break;
            }
            let emptiest = self.spill.clusters().emptiest(COLLECTABLE, &seen);
            let Some(cluster) = emptiest else {
                break;
            };
            if let Some(slot) = seen.get_mut(tried) {
                *slot = cluster;
            }
            if !self.collect_cluster(cluster, &mut source, &is_live) {
                self.spill.clusters().stick(cluster);
            }
        }
        let collected = self.writer.pages.len() as u64;
        self.spill.counters.collected.fetch_add(collected, Relaxed);
        self.writer.source = source;
    }

    /// Adds what is live of one cluster, as far as it fits; `false` if there is nothing.
    fn collect_cluster(
        &mut self,
        cluster: u32,
        source: &mut [u8],
        is_live: impl Fn(u64, u32, Spilled) -> bool,
    ) -> bool {
        let Ok(read) = self.spill.file.read_cluster(cluster, source) else {
            self.spill.counters.read_errors.fetch_add(1, Relaxed);
            return false;
        };
        let mut found = false;
        let mut start = 0;
        // Behind the last block there are zeros, the file's end, or blocks that nothing leads to.
        while let Some((location, check)) = source.get(start..read).and_then(header) {
            let position = file::start(cluster) + start as u64;
            let at = Spilled::new(position, location.len, check as u32);
            let Some(block) = source.get(start..start + at.size()) else {
                break;
            };
            if is_live(location.slot, hash_of(check), at) {
                if !self.add(Entry::Spilled(at), location, |to| to.copy_from_slice(block)) {
                    break;
                }
                found = true;
            }
            start += at.size();
        }
        found
    }

    /// Writes the batch into a cluster of its own, then has each of its pages `swing`: lead there
    /// if it is still what it was; whether it does. How many do.
    pub(crate) fn write(&mut self, mut swing: impl FnMut(Written<'_>) -> bool) -> u32 {
        let spill = self.spill;
        let writer = &mut *self.writer;
        let len = std::mem::take(&mut writer.len);
        let Some(cluster) = (len > 0).then(|| spill.clusters().take()).flatten() else {
            writer.pages.clear();
            return 0;
        };
        let whole = len.next_multiple_of(ALIGN);
        let bytes = writer.buffer.bytes_mut().get_mut(..whole);
        let bytes = bytes.unwrap_or_default();
        bytes.get_mut(len..).unwrap_or_default().fill(0);
        if spill.file.write(cluster, bytes).is_err() {
            spill.counters.write_errors.fetch_add(1, Relaxed);
            spill.clusters().retire(cluster, false);
            writer.failed = Some(Instant::now());
            writer.pages.clear();
            return 0;
        }
        writer.failed = None;
        let written = writer.pages.len() as u64;
        spill.counters.written.fetch_add(written, Relaxed);
        // All are live until they turn out not to be: the cluster can't die before the last one.
        spill.clusters().fill(cluster, len as u32);
        let mut moved = 0;
        for page in writer.pages.drain(..) {
            let block = bytes.get(page.start..).unwrap_or_default();
            let check = header(block).map_or(0, |(_, check)| check);
            let position = file::start(cluster) + page.start as u64;
            let new = Spilled::new(position, page.location.len, check as u32);
            let leads = swing(Written {
                old: page.old,
                location: page.location,
                new,
                block,
                hash: hash_of(check),
            });
            if leads {
                moved += 1;
            } else {
                spill.free(new);
            }
        }
        moved
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        self.spill.batches.fetch_add(1, Relaxed);
    }
}
