// SPDX-License-Identifier: GPL-2.0-or-later
//! What all workers know: in shared memory, what each file has to hold, and who may touch it.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use rustix::fs::{self, MemfdFlags};
use rustix::mm::{self, MapFlags, ProtFlags};

/// The lock's value while one worker has the file for itself.
const EXCLUSIVE: u32 = u32::MAX;
const PATIENCE: Duration = Duration::from_micros(200);

/// Words before the versions: the lock, the length in pages.
const HEAD: usize = 2;
/// Words before the files: a worker has failed.
const START: usize = 1;

/// A table of `files`, each of at most `pages` pages, mapped by every worker.
///
/// A page's version is the number of its content; 0 are zeros. Versions are only ever changed by
/// whoever holds the file's lock exclusively.
pub(crate) struct Table {
    words: NonNull<AtomicU32>,
    length: usize,
    pages: usize,
}

impl Table {
    /// A descriptor of a table of zeros, to be mapped by this process and those it starts.
    pub(crate) fn create(files: usize, pages: usize) -> Result<OwnedFd, String> {
        let failed = |error| format!("cannot make the table of versions: {error}");
        // Without CLOEXEC: workers inherit it.
        let file = fs::memfd_create("kzt-load", MemfdFlags::empty()).map_err(failed)?;
        fs::ftruncate(&file, (words(files, pages) * 4) as u64).map_err(failed)?;
        Ok(file)
    }

    pub(crate) fn map(file: impl AsFd, files: usize, pages: usize) -> Result<Table, String> {
        let length = words(files, pages);
        let failed = |error| {
            let number = file.as_fd().as_raw_fd();
            format!("cannot map the table of versions, descriptor {number}: {error}")
        };
        let size = fs::fstat(&file).map_err(failed)?.st_size;
        if u64::try_from(size).ok() != Some(length as u64 * 4) {
            return Err(failed(rustix::io::Errno::INVAL));
        }
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory in use.
        let start = unsafe {
            mm::mmap(
                ptr::null_mut(),
                length * 4,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &file,
                0,
            )
        };
        let words = NonNull::new(start.map_err(failed)?.cast());
        let words = words.ok_or_else(|| failed(rustix::io::Errno::NOMEM))?;
        Ok(Table {
            words,
            length,
            pages,
        })
    }

    fn words(&self) -> &[AtomicU32] {
        // SAFETY: as many words are mapped as long as `self` lives, page-aligned, and other
        // processes access them as atomics as well.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr(), self.length) }
    }

    fn file(&self, file: usize) -> &[AtomicU32] {
        let size = HEAD + self.pages;
        let start = START + file * size;
        self.words().get(start..start + size).unwrap_or_default()
    }

    /// Whether a worker has given up: then so do the others, that may wait for its locks.
    pub(crate) fn failed(&self) -> bool {
        self.words()
            .first()
            .is_some_and(|word| word.load(Ordering::Relaxed) != 0)
    }

    pub(crate) fn fail(&self) {
        if let Some(word) = self.words().first() {
            word.store(1, Ordering::Relaxed);
        }
    }

    /// The file for reading, together with other readers; None if a worker has failed.
    pub(crate) fn shared(&self, file: usize) -> Option<Held<'_>> {
        self.lock(file, |held| (held < EXCLUSIVE - 1).then(|| held + 1), 1)
    }

    /// The file for this worker alone; None if another has failed.
    pub(crate) fn exclusive(&self, file: usize) -> Option<Held<'_>> {
        self.lock(file, |held| (held == 0).then_some(EXCLUSIVE), EXCLUSIVE)
    }

    fn lock(&self, file: usize, take: impl Fn(u32) -> Option<u32>, share: u32) -> Option<Held<'_>> {
        let [lock, length, versions @ ..] = self.file(file) else {
            return None;
        };
        while lock
            .fetch_update(Ordering::Acquire, Ordering::Relaxed, &take)
            .is_err()
        {
            if self.failed() {
                return None;
            }
            thread::sleep(PATIENCE);
        }
        Some(Held {
            lock,
            share,
            length,
            versions,
        })
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        // SAFETY: all references borrow from `self`. Unmapping a whole mapping cannot fail.
        let _ = unsafe { mm::munmap(self.words.as_ptr().cast(), self.length * 4) };
    }
}

fn words(files: usize, pages: usize) -> usize {
    START + files * (HEAD + pages)
}

/// A file's versions, while its lock is held.
pub(crate) struct Held<'a> {
    lock: &'a AtomicU32,
    share: u32,
    length: &'a AtomicU32,
    versions: &'a [AtomicU32],
}

impl Held<'_> {
    /// In pages.
    pub(crate) fn length(&self) -> u32 {
        self.length.load(Ordering::Relaxed)
    }

    pub(crate) fn set_length(&self, pages: u32) {
        self.length.store(pages, Ordering::Relaxed);
    }

    pub(crate) fn version(&self, page: u32) -> u32 {
        self.versions
            .get(page as usize)
            .map_or(0, |version| version.load(Ordering::Relaxed))
    }

    pub(crate) fn set_version(&self, page: u32, version: u32) {
        if let Some(word) = self.versions.get(page as usize) {
            word.store(version, Ordering::Relaxed);
        }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.lock.fetch_sub(self.share, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        Table::map(Table::create(2, 3).unwrap(), 2, 3).unwrap()
    }

    #[test]
    fn readers_share_and_writers_do_not() {
        let table = table();
        let one = table.shared(0).unwrap();
        let two = table.shared(0).unwrap();
        table.fail(); // from now on nobody waits
        assert!(table.exclusive(0).is_none());
        drop((one, two));
        let writer = table.exclusive(0).unwrap();
        assert!(table.shared(0).is_none());
        assert!(table.exclusive(1).is_some());
        drop(writer);
        assert!(table.shared(0).is_some());
    }

    #[test]
    fn files_do_not_overlap() {
        let table = table();
        let (one, two) = (table.exclusive(0).unwrap(), table.exclusive(1).unwrap());
        one.set_length(3);
        one.set_version(2, 7);
        two.set_version(0, 8);
        assert_eq!((one.length(), one.version(2)), (3, 7));
        assert_eq!((two.length(), two.version(0), two.version(2)), (0, 8, 0));
        assert!(table.shared(2).is_none());
    }

    #[test]
    fn a_table_of_another_size_is_refused() {
        assert!(Table::map(Table::create(2, 3).unwrap(), 2, 4).is_err());
    }
}
