// SPDX-License-Identifier: GPL-2.0-or-later
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

/// A counter that the other side of a queue waits for or counts up.
pub(super) struct EventFd(File);

impl EventFd {
    /// Takes a descriptor from the frontend, which may have sent anything: a file whose reads never
    /// end, say. Only a true eventfd is taken, and it does not block: unless the frontend, whose it
    /// is as well, changes that again. Then the thread waits here until it is interrupted.
    pub(super) fn new(file: File) -> io::Result<Self> {
        let kind = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
        if kind.as_os_str() != "anon_inode:[eventfd]" {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not an eventfd",
            ));
        }
        let flags = fcntl_getfl(&file)?;
        fcntl_setfl(&file, flags | OFlags::NONBLOCK)?;
        Ok(Self(file))
    }

    /// Counts up. A counter at its end has told the other side already.
    pub(super) fn signal(&self) {
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    /// Sets the counter to zero.
    pub(super) fn clear(&self) {
        let _ = rustix::io::read(&self.0, &mut [0_u8; 8]);
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
