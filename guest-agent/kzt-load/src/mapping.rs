// SPDX-License-Identifier: GPL-2.0-or-later
//! Anonymous memory, one page at a time.

use std::ops::{Deref, DerefMut};
use std::ptr::{self, NonNull};

use rustix::io::Errno;
use rustix::mm::{self, Advice, MapFlags, ProtFlags};

/// Bytes in a page of x86-64.
pub(crate) const PAGE_SIZE: usize = 4096;

/// One page of memory.
pub(crate) type Page = [u8; PAGE_SIZE];

/// Private anonymous memory without huge pages, which would go out and come back 512 at once.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<Page>,
    pages: usize,
}

impl Mapping {
    /// Map `pages` pages of zeros; none of them takes memory before it is written.
    pub(crate) fn new(pages: u32) -> Result<Mapping, String> {
        let failed = |error: Errno| format!("cannot map {} KiB: {error}", u64::from(pages) * 4);
        let pages = pages as usize;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory in use.
        let start = unsafe {
            mm::mmap_anonymous(
                ptr::null_mut(),
                pages * PAGE_SIZE,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE,
            )
        };
        let start = NonNull::new(start.map_err(failed)?.cast()).ok_or(failed(Errno::NOMEM))?;
        let mapping = Mapping { start, pages };
        // SAFETY: the range is the mapping just made; this advice changes no content.
        let advised =
            unsafe { mm::madvise(mapping.raw(), mapping.length(), Advice::LinuxNoHugepage) };
        match advised {
            // A kernel without transparent huge pages refuses the advice, and needs none.
            Ok(()) | Err(Errno::INVAL) => Ok(mapping),
            Err(error) => Err(failed(error)),
        }
    }

    /// Keep the memory out of swap; false if the limits do not allow it.
    pub(crate) fn lock(&self) -> bool {
        // SAFETY: the range is this mapping; locking changes no content.
        unsafe { mm::mlock(self.raw(), self.length()) }.is_ok()
    }

    fn raw(&self) -> *mut core::ffi::c_void {
        self.start.as_ptr().cast()
    }

    fn length(&self) -> usize {
        self.pages * PAGE_SIZE
    }
}

impl Deref for Mapping {
    type Target = [Page];

    fn deref(&self) -> &[Page] {
        // SAFETY: `pages` pages are mapped, readable and initialised (zeros at first) for as long
        // as `self` lives; bytes have no alignment; writers need `&mut self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.pages) }
    }
}

impl DerefMut for Mapping {
    fn deref_mut(&mut self) -> &mut [Page] {
        // SAFETY: as above, and writable; `&mut self` makes this the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.pages) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: nobody refers to the mapping any longer: all references borrow from `self`.
        // Unmapping a whole mapping cannot fail.
        let _ = unsafe { mm::munmap(self.raw(), self.length()) };
    }
}
