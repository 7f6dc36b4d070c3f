// SPDX-License-Identifier: GPL-2.0-or-later
//! The spill file on its disk: header, and clusters read and written.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::{Advice, FallocateFlags, OFlags};
use rustix::io::retry_on_intr;

use crate::arena::TMPFS_MAGIC;
use crate::error::OpenError;
use crate::ours;

/// Bytes of a cluster: what is written, reused and given back to the disk at a time.
pub(crate) const CLUSTER: usize = 256 << 10;
/// What direct writes are aligned to, in memory and in the file.
pub(super) const ALIGN: usize = 4096;

const MAGIC: u64 = u64::from_le_bytes(*b"KZTSPILL");
const VERSION: u64 = 1;
/// Words of the header that its check covers: magic, version, arena.
const CHECKED: usize = 5;

/// Which arena a spill file belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ArenaId {
    pub(crate) boot: [u64; 2],
    /// Made of the arena's random key, which can't be told from it.
    pub(crate) key: u64,
}

/// An open spill file that is ours alone.
pub(super) struct SpillFile {
    /// For reads, through the host's page cache.
    file: File,
    /// For writes around it: they must have met their errors when they return, and the pages are
    /// written because memory is short. Unset where the file system has no such thing.
    direct: OnceLock<File>,
    path: PathBuf,
    arena: ArenaId,
    /// Whether there was no header for this arena in it.
    pub(super) is_new: bool,
    /// Clusters in which something had been written when the file was opened.
    pub(super) written: u32,
}

impl SpillFile {
    /// Opens or creates the file for an arena; what is in it stays until [`begin`](Self::begin).
    ///
    /// A file from before the host's last boot is as good as none: its arena is gone. Any other
    /// that is not this arena's is refused.
    pub(super) fn open(path: &Path, arena: ArenaId) -> Result<Self, OpenError> {
        let failed = |what| OpenError::io(path, what);
        let (file, len) = ours::open(path)?;
        let mut is_new = true;
        if len > 0 {
            let foreign = || OpenError::SpillForeign { path: path.into() };
            let mut bytes = [0; ALIGN];
            let read = file.read_at(&mut bytes, 0).map_err(failed("read"))?;
            let found = bytes.get(..read).and_then(decode).ok_or_else(foreign)?;
            if found.boot == arena.boot && found != arena {
                return Err(foreign());
            }
            is_new = found != arena;
        }
        let data = if is_new {
            0
        } else {
            len.saturating_sub(ALIGN as u64)
        };
        Ok(Self {
            path: path.into(),
            file,
            direct: OnceLock::new(),
            arena,
            is_new,
            written: u32::try_from(data.div_ceil(CLUSTER as u64)).unwrap_or(u32::MAX),
        })
    }

    /// Makes the file the arena's, before anything else is written.
    pub(super) fn begin(&self) -> io::Result<()> {
        if self.is_new {
            self.file.set_len(0)?;
            #[cfg(feature = "crash-points")]
            crate::crash_points::passed();
        }
        let mut header = Buffer::new(ALIGN);
        encode(self.arena, header.bytes_mut());
        // Whether a file system has direct I/O shows when it is used. What is there already is
        // written once more.
        let ino = self.file.metadata()?.ino();
        let direct = ours::options(OFlags::DIRECT)
            .open(&self.path)
            .ok()
            .filter(|direct| {
                direct.metadata().is_ok_and(|meta| meta.ino() == ino)
                    && direct.write_all_at(header.bytes_mut(), 0).is_ok()
            });
        if let Some(direct) = direct {
            self.direct.get_or_init(|| direct);
        } else {
            self.file.write_all_at(header.bytes_mut(), 0)?;
            self.file.sync_data()?;
        }
        #[cfg(feature = "crash-points")]
        crate::crash_points::passed();
        // Pages are read one by one, as guests want them. It is a hint.
        let _ = rustix::fs::fadvise(&self.file, 0, None, Advice::Random);
        Ok(())
    }

    /// Whether it is on a tmpfs.
    pub(super) fn is_in_memory(&self) -> bool {
        let fs = rustix::fs::fstatfs(&self.file);
        fs.is_ok_and(|fs| u64::try_from(fs.f_type).is_ok_and(|magic| magic == TMPFS_MAGIC))
    }

    /// Writes a cluster's start from an aligned buffer, whole blocks. When it returns `Ok` the
    /// bytes are where no error can meet them any more but one that a read will report.
    pub(super) fn write(&self, cluster: u32, bytes: &[u8]) -> io::Result<()> {
        if let Some(direct) = self.direct.get() {
            direct.write_all_at(bytes, start(cluster))?;
        } else {
            self.file.write_all_at(bytes, start(cluster))?;
            self.file.sync_data()?;
        }
        #[cfg(feature = "crash-points")]
        crate::crash_points::passed();
        Ok(())
    }

    /// Reads what has been written; beyond the file's end is an error.
    pub(super) fn read(&self, position: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(bytes, position)
    }

    /// Reads a cluster as far as the file goes; how many bytes that were.
    pub(super) fn read_cluster(&self, cluster: u32, bytes: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match self.file.read_at(rest, start(cluster) + done as u64) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    /// Gives a cluster's blocks back to the disk.
    pub(super) fn punch(&self, cluster: u32) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        retry_on_intr(|| rustix::fs::fallocate(&self.file, flags, start(cluster), CLUSTER as u64))?;
        #[cfg(feature = "crash-points")]
        crate::crash_points::passed();
        Ok(())
    }

    /// Bytes of the disk that the file occupies.
    pub(super) fn allocated(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.blocks() * 512)
    }
}

/// Position of a cluster in the file, behind the header.
pub(super) fn start(cluster: u32) -> u64 {
    ALIGN as u64 + u64::from(cluster) * CLUSTER as u64
}

/// The cluster that a position lies in.
pub(super) fn cluster_of(position: u64) -> Option<u32> {
    u32::try_from(position.checked_sub(ALIGN as u64)? / CLUSTER as u64).ok()
}

fn encode(arena: ArenaId, header: &mut [u8]) {
    let mut words = vec![MAGIC, VERSION];
    words.extend(arena.boot);
    words.push(arena.key);
    let bytes: Vec<u8> = words.into_iter().flat_map(u64::to_ne_bytes).collect();
    let check = u64::from(crc32c::crc32c(&bytes)).to_ne_bytes();
    for (to, from) in header.iter_mut().zip(bytes.into_iter().chain(check)) {
        *to = from;
    }
}

fn decode(header: &[u8]) -> Option<ArenaId> {
    let mut words = [0; CHECKED + 1];
    for (word, bytes) in words.iter_mut().zip(header.chunks_exact(8)) {
        *word = u64::from_ne_bytes(bytes.try_into().ok()?);
    }
    let [magic, version, high, low, key, check] = words;
    let sound = u64::from(crc32c::crc32c(header.get(..CHECKED * 8)?)) == check;
    (magic == MAGIC && version == VERSION && sound).then_some(ArenaId {
        boot: [high, low],
        key,
    })
}

/// Memory that direct I/O can be done from.
pub(super) struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Buffer {
    pub(super) fn new(len: usize) -> Self {
        // Never grown, so it stays where it is.
        let bytes = vec![0; len + ALIGN];
        let start = bytes.as_ptr().align_offset(ALIGN);
        Self { bytes, start, len }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        let range = self.start..self.start + self.len;
        self.bytes.get_mut(range).unwrap_or_default()
    }
}
