// SPDX-License-Identifier: GPL-2.0-or-later
//! The arena file: opened, locked and mapped once, then seen as atomic words.
//!
//! Everything else in the crate reaches the mapping through [`Arena`]'s bounds-checked words, so
//! a damaged offset can at worst read wrong words, never foreign memory.

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::{Errno, retry_on_intr};
use rustix::mm::{Advice, MapFlags, MlockFlags, ProtFlags};

use crate::error::OpenError;
use crate::layout::{EXTENT, FRAME};
use crate::ours;

const WORD: u64 = size_of::<u64>() as u64;
pub(crate) const TMPFS_MAGIC: u64 = 0x0102_1994;

/// An arena file that is ours alone, not yet mapped.
pub(crate) struct ArenaFile {
    file: File,
    /// Its length when it was opened.
    pub(crate) len: u64,
}

impl ArenaFile {
    /// Opens or creates the file and locks it against every other opener.
    pub(crate) fn open(path: &Path) -> Result<Self, OpenError> {
        let (file, len) = ours::open(path)?;
        Ok(Self { file, len })
    }

    /// Makes sure that the file system can hold `memory` bytes; a warning if it is no tmpfs.
    pub(crate) fn check_filesystem(
        &self,
        path: &Path,
        memory: u64,
    ) -> Result<Option<String>, OpenError> {
        let failed = |what| OpenError::io(path, what);
        let fs = rustix::fs::fstatfs(&self.file).map_err(|e| failed("statfs")(e.into()))?;
        let held = self.file.metadata().map_err(failed("stat"))?.blocks() * 512;
        let block = u64::try_from(fs.f_bsize).unwrap_or(FRAME);
        let (total, free) = (fs.f_blocks * block, fs.f_bavail * block);
        let needed = memory.saturating_sub(held);
        // A tmpfs without a size limit reports no blocks at all.
        if total > 0 && free < needed {
            return Err(OpenError::FilesystemFull {
                path: path.into(),
                needed,
                free,
                total,
            });
        }
        let tmpfs = u64::try_from(fs.f_type).is_ok_and(|magic| magic == TMPFS_MAGIC);
        Ok((!tmpfs).then(|| format!("{} is not on a tmpfs: pages go to its disk", path.display())))
    }

    /// Reads the first bytes without mapping anything.
    pub(crate) fn read_start(&self, bytes: &mut [u8]) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.file, bytes, 0)
    }

    /// Whether anything but a hole is behind an offset.
    pub(crate) fn has_data(&self, offset: u64) -> io::Result<bool> {
        match rustix::fs::seek(&self.file, SeekFrom::Data(offset)) {
            Ok(_) => Ok(true),
            Err(Errno::NXIO) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Throws everything in the file away.
    pub(crate) fn clear(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.len = 0;
        Ok(())
    }

    /// Grows the file to `len` bytes if it is smaller, and maps all of it.
    pub(crate) fn map(self, len: u64) -> io::Result<Arena> {
        let len = len.max(self.len / EXTENT * EXTENT);
        if self.len < len {
            self.file.set_len(len)?;
        }
        let bytes = usize::try_from(len).map_err(io::Error::other)?;
        // SAFETY: a new shared mapping at an address of the kernel's choice; it aliases no
        // memory of this process, and `Arena` hands out nothing but atomics into it.
        let base = unsafe {
            rustix::mm::mmap(
                ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::NORESERVE,
                &self.file,
                0,
            )
        }?;
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Arena {
            file: self.file,
            base,
            bytes,
        })
    }
}

/// The mapped arena. Offsets are bytes from its start.
///
/// An offset outside the arena reads as zero and swallows what is stored: offsets come from
/// entries that recovery has validated or this process has written, so this is a second line
/// of defence, not a way to report anything.
pub(crate) struct Arena {
    file: File,
    base: NonNull<AtomicU64>,
    bytes: usize,
}

// SAFETY: the mapping belongs to this value alone and is reached by atomics only, which may be
// used and sent between threads; a file descriptor may too.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Arena {
    pub(crate) fn len(&self) -> u64 {
        self.bytes as u64
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: `base` maps `bytes` bytes, page aligned, until drop; any bits are a valid
        // word, and nothing in this process makes a non-atomic reference to the mapping.
        // (The file must not be truncated from outside: that is SIGBUS, for any mapping.)
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.bytes / size_of::<u64>()) }
    }

    fn word(&self, offset: u64) -> Option<&AtomicU64> {
        self.words().get(usize::try_from(offset / WORD).ok()?)
    }

    fn span(&self, offset: u64, bytes: usize) -> &[AtomicU64] {
        let span = || {
            let first = usize::try_from(offset / WORD).ok()?;
            self.words()
                .get(first..first.checked_add(bytes.div_ceil(size_of::<u64>()))?)
        };
        span().unwrap_or_default()
    }

    /// Reads the word at `offset`, seeing everything that was written before it was published.
    pub(crate) fn load(&self, offset: u64) -> u64 {
        #[cfg(feature = "shuttle")]
        crate::sync::point();
        self.word(offset)
            .map_or(0, |word| word.load(Ordering::Acquire))
    }

    /// Publishes a word: a process that dies right after has published all it wrote before.
    #[cfg_attr(feature = "crash-points", track_caller)]
    pub(crate) fn store(&self, offset: u64, value: u64) {
        #[cfg(feature = "shuttle")]
        crate::sync::point();
        if let Some(word) = self.word(offset) {
            self.set(word, value, Ordering::Release);
        }
    }

    /// Every store of this process to the mapping, for the tests that recover from each of them.
    #[cfg_attr(feature = "crash-points", track_caller)]
    #[cfg_attr(
        not(test),
        expect(clippy::unused_self, reason = "only the tests' journal asks where")
    )]
    fn set(&self, word: &AtomicU64, value: u64, order: Ordering) {
        interrupt(word);
        word.store(value, order);
        #[cfg(test)]
        journal::add(ptr::from_ref(word).addr() - self.base.addr().get(), value);
        #[cfg(feature = "crash-points")]
        crate::crash_points::passed();
    }

    /// Copies whole words out: `out.len()` and `offset` are multiples of 8.
    pub(crate) fn read(&self, offset: u64, out: &mut [u8]) {
        let words = self.span(offset, out.len());
        for (bytes, word) in out.chunks_exact_mut(size_of::<u64>()).zip(words) {
            bytes.copy_from_slice(&peek(word).to_ne_bytes());
        }
    }

    /// Whether the bytes at `offset`, a multiple of 8, are these.
    pub(crate) fn holds(&self, offset: u64, bytes: &[u8]) -> bool {
        let words = self.span(offset, bytes.len());
        let same = |(word, bytes): (&AtomicU64, &[u8])| peek(word).to_ne_bytes().starts_with(bytes);
        words.len() == bytes.len().div_ceil(size_of::<u64>())
            && words.iter().zip(bytes.chunks(size_of::<u64>())).all(same)
    }

    /// Copies bytes in; `offset` is a multiple of 8. The last word is filled up with zeros.
    #[cfg_attr(feature = "crash-points", track_caller)]
    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) {
        let words = self.span(offset, bytes.len());
        let mut chunks = bytes.chunks_exact(size_of::<u64>());
        for (word, bytes) in words.iter().zip(chunks.by_ref()) {
            let mut whole = [0; size_of::<u64>()];
            whole.copy_from_slice(bytes);
            self.set(word, u64::from_ne_bytes(whole), Ordering::Relaxed);
        }
        if let (Some(word), rest @ [_, ..]) = (words.last(), chunks.remainder()) {
            let mut whole = [0; size_of::<u64>()];
            whole
                .iter_mut()
                .zip(rest)
                .for_each(|(to, from)| *to = *from);
            self.set(word, u64::from_ne_bytes(whole), Ordering::Relaxed);
        }
    }

    /// Copies `bytes` from one place to another, word by word; `from` and `to` are multiples of 8.
    #[cfg_attr(feature = "crash-points", track_caller)]
    pub(crate) fn copy(&self, from: u64, to: u64, bytes: usize) {
        let words = self.span(from, bytes).iter().zip(self.span(to, bytes));
        for (from, to) in words {
            self.set(to, peek(from), Ordering::Relaxed);
        }
    }

    /// Sets every word of a frame.
    #[cfg_attr(feature = "crash-points", track_caller)]
    pub(crate) fn fill_frame(&self, offset: u64, value: u64) {
        for word in self.span(offset, FRAME as usize) {
            self.set(word, value, Ordering::Relaxed);
        }
    }

    /// Allocates the blocks of an extent that no other thread uses yet, and touches all of them: no later touch
    /// raises SIGBUS, and recovery finds them in [`data_ranges`](Self::data_ranges), which leaves
    /// out what is allocated but was never touched. Fails with ENOSPC on a full file system.
    pub(crate) fn back(&self, offset: u64) -> io::Result<()> {
        self.allocate(offset)?;
        if !self.populate(offset) {
            self.touch(offset);
        }
        Ok(())
    }

    fn allocate(&self, offset: u64) -> io::Result<()> {
        #[cfg(feature = "shuttle")]
        crate::sync::point();
        retry_on_intr(|| {
            rustix::fs::fallocate(&self.file, FallocateFlags::empty(), offset, EXTENT)
        })?;
        #[cfg(feature = "crash-points")]
        crate::crash_points::passed();
        Ok(())
    }

    /// Touches an extent in one call; `false` if it could not: Linux before 5.14 has no such call.
    fn populate(&self, offset: u64) -> bool {
        let span = self.span(offset, EXTENT as usize);
        let start = span.as_ptr().cast_mut().cast::<c_void>();
        // SAFETY: the range lies within the mapping (it is a slice of it); populating changes
        // page tables only, no content.
        unsafe { rustix::mm::madvise(start, size_of_val(span), Advice::LinuxPopulateWrite) }.is_ok()
    }

    /// Touches an extent frame by frame. Its words stay what they are, if nobody else stores any.
    fn touch(&self, offset: u64) {
        for frame in (offset..offset + EXTENT).step_by(FRAME as usize) {
            self.store(frame, self.load(frame));
        }
    }

    /// Gives the blocks of an extent back to the host.
    pub(crate) fn punch(&self, offset: u64) -> io::Result<()> {
        #[cfg(feature = "shuttle")]
        crate::sync::point();
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        retry_on_intr(|| rustix::fs::fallocate(&self.file, flags, offset, EXTENT))?;
        #[cfg(feature = "crash-points")]
        crate::crash_points::passed();
        Ok(())
    }

    /// Bytes of host memory that the file occupies.
    pub(crate) fn allocated(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.blocks() * 512)
    }

    /// Calls `f` with every range of the file that has blocks, in order.
    pub(crate) fn data_ranges(&self, mut f: impl FnMut(u64, u64)) -> io::Result<()> {
        let mut position = 0;
        while position < self.len() {
            let start = match rustix::fs::seek(&self.file, SeekFrom::Data(position)) {
                Ok(start) => start,
                Err(Errno::NXIO) => break,
                Err(error) => return Err(error.into()),
            };
            let end = rustix::fs::seek(&self.file, SeekFrom::Hole(start))?;
            f(start, end);
            position = end;
        }
        Ok(())
    }

    /// Keeps the host from swapping the arena out, page by page as it is touched.
    pub(crate) fn pin(&self) -> io::Result<()> {
        // SAFETY: exactly this value's own mapping; locking changes no content.
        unsafe {
            rustix::mm::mlock_with(self.base.as_ptr().cast(), self.bytes, MlockFlags::ONFAULT)
        }?;
        Ok(())
    }
}

/// A load that is one of many.
fn peek(word: &AtomicU64) -> u64 {
    interrupt(word);
    word.load(Ordering::Relaxed)
}

/// Long copies can be interrupted here and there: at each word the others' turns would be lost among
/// those of the copies.
#[cfg_attr(
    not(feature = "shuttle"),
    expect(unused_variables, reason = "no scheduler")
)]
fn interrupt(word: &AtomicU64) {
    #[cfg(feature = "shuttle")]
    if ptr::from_ref(word).addr() % 1024 == 0 {
        crate::sync::point();
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: exactly what `ArenaFile::map` mapped; every borrow of it ended with `self`.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

/// What this thread has stored in arenas, store by store.
#[cfg(test)]
pub(crate) mod journal {
    use std::cell::RefCell;

    thread_local!(static STORES: RefCell<Vec<(usize, u64)>> = const { RefCell::new(Vec::new()) });

    pub(super) fn add(offset: usize, value: u64) {
        STORES.with_borrow_mut(|stores| stores.push((offset, value)));
    }

    /// All since the last call: offset and value.
    pub(crate) fn take() -> Vec<(usize, u64)> {
        STORES.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without a touch, recovery would take a part of a run that has no block yet for a hole, and
    /// with it the whole run for damaged.
    #[test]
    fn a_touched_extent_is_data_with_the_kernels_help_or_without() {
        let path = format!("/dev/shm/kzt-store-arena-{}", std::process::id());
        let arena = ArenaFile::open(Path::new(&path)).unwrap().map(4 * EXTENT);
        std::fs::remove_file(&path).unwrap();
        let arena = arena.unwrap();
        let data = || {
            let mut ranges = Vec::new();
            arena
                .data_ranges(|start, end| ranges.push((start, end)))
                .unwrap();
            ranges
        };
        arena.allocate(EXTENT).unwrap();
        assert_eq!(data(), [], "allocated and never touched");
        arena.touch(EXTENT);
        assert_eq!(data(), [(EXTENT, 2 * EXTENT)]);
        arena.back(3 * EXTENT).unwrap();
        assert_eq!(data(), [(EXTENT, 2 * EXTENT), (3 * EXTENT, 4 * EXTENT)]);
    }
}
