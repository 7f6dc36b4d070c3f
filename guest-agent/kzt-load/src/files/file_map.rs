// SPDX-License-Identifier: GPL-2.0-or-later
//! Pages of a file in memory, shared with all who map it.

use std::os::fd::AsFd;
use std::ptr::{self, NonNull};

use rustix::mm::{self, MapFlags, ProtFlags};

use crate::mapping::{PAGE_SIZE, Page};

/// A mapping that others may change or cut short: it gives copies only, never references.
pub(crate) struct FileMap {
    start: NonNull<Page>,
    pages: u32,
}

impl FileMap {
    /// Map `pages` pages of a file, all of which exist.
    pub(crate) fn new(file: impl AsFd, first: u32, pages: u32) -> std::io::Result<FileMap> {
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory in use.
        let start = unsafe {
            mm::mmap(
                ptr::null_mut(),
                pages as usize * PAGE_SIZE,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                file,
                u64::from(first) * PAGE_SIZE as u64,
            )
        }?;
        let start = NonNull::new(start.cast()).ok_or(rustix::io::Errno::NOMEM)?;
        Ok(FileMap { start, pages })
    }

    fn page(&self, index: u32) -> *mut Page {
        let index = index.min(self.pages - 1) as usize;
        // SAFETY: below `pages`, so inside of the mapping.
        unsafe { self.start.as_ptr().add(index) }
    }

    pub(crate) fn read(&self, index: u32, into: &mut Page) {
        // SAFETY: the page is mapped, and no part of memory that Rust knows of.
        unsafe { self.page(index).copy_to_nonoverlapping(into, 1) };
    }

    pub(crate) fn write(&self, index: u32, from: &Page) {
        // SAFETY: as above, and writable.
        unsafe { self.page(index).copy_from_nonoverlapping(from, 1) };
    }
}

impl Drop for FileMap {
    fn drop(&mut self) {
        let length = self.pages as usize * PAGE_SIZE;
        // SAFETY: nothing refers to the mapping. Unmapping a whole mapping cannot fail.
        let _ = unsafe { mm::munmap(self.start.as_ptr().cast(), length) };
    }
}
