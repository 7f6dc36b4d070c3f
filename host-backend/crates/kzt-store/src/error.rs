// SPDX-License-Identifier: GPL-2.0-or-later
//! What can go wrong, one enum per kind of call.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Why an arena could not be opened. The file is left as it was found.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Another process (or another `Store` of this one) has the arena open.
    #[error("{path}: the arena is in use by another process")]
    Busy {
        /// The arena file.
        path: PathBuf,
    },
    /// Not a regular file of this user: somebody else may have put it there.
    #[error("{path}: not a regular file owned by this user")]
    NotOurs {
        /// The arena file.
        path: PathBuf,
    },
    /// The file does not begin with an arena's header, or the header is damaged.
    #[error("{path}: not an arena, or its header is damaged")]
    NotAnArena {
        /// The arena file.
        path: PathBuf,
    },
    /// The file was written by another format version.
    #[error("{path}: arena format {found}, this build reads format {expected} only")]
    Version {
        /// The arena file.
        path: PathBuf,
        /// Format version in the file.
        found: u32,
        /// Format version of this build.
        expected: u32,
    },
    /// `memory` is outside what an arena can have.
    #[error("memory of {memory} bytes: an arena has {min} to {max} bytes")]
    Memory {
        /// Bytes asked for.
        memory: u64,
        /// Smallest arena in bytes.
        min: u64,
        /// Largest arena in bytes.
        max: u64,
    },
    /// The arena holds more than the (smaller) `memory` it was opened with.
    #[error("{path}: holds {held} bytes, more than the memory of {memory} bytes it may have now")]
    Shrunk {
        /// The arena file.
        path: PathBuf,
        /// Bytes that its pages and their index occupy.
        held: u64,
        /// Bytes asked for.
        memory: u64,
    },
    /// The file system cannot hold `memory` bytes.
    #[error("{path}: needs {needed} bytes, the file system has {free} of {total} bytes free")]
    FilesystemFull {
        /// The arena file.
        path: PathBuf,
        /// Bytes the arena may still grow by.
        needed: u64,
        /// Bytes free.
        free: u64,
        /// Bytes in all.
        total: u64,
    },
    /// The spill file's size is outside what one can have.
    #[error("spill file of {size} bytes: one has {min} to {max} bytes")]
    SpillSize {
        /// Bytes asked for.
        size: u64,
        /// Smallest spill file in bytes.
        min: u64,
        /// Largest spill file in bytes.
        max: u64,
    },
    /// The spill file is another store's, or none at all.
    #[error(
        "{path}: not this arena's spill file: give another path, or remove the file if its store \
         is gone"
    )]
    SpillForeign {
        /// The spill file.
        path: PathBuf,
    },
    /// Pages of the arena are in a spill file that is not there, or not whole.
    #[error(
        "{path}: {pages} pages are in a spill file that is missing or cut short: give its path, or \
         have them abandoned"
    )]
    SpillLost {
        /// The arena file.
        path: PathBuf,
        /// How many pages.
        pages: u64,
    },
    /// A system call failed.
    #[error("{path}: {what}: {source}")]
    Io {
        /// The arena file.
        path: PathBuf,
        /// What was attempted.
        what: &'static str,
        /// The system's answer.
        source: io::Error,
    },
}

impl OpenError {
    /// Makes an error of what the system answered to `what`.
    pub(crate) fn io(path: &Path, what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io {
            path: path.into(),
            what,
            source,
        }
    }
}

/// Why a pool could not be opened or destroyed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Client names are 1 to 32 bytes of printable ASCII without spaces.
    #[error("a client's name has 1 to 32 printable ASCII characters")]
    BadName,
    /// The pool table is full.
    #[error("the arena has no room for another pool")]
    TooManyPools,
    /// The client has a pool of that number.
    #[error("there is a pool of that number")]
    PoolExists,
    /// The client or the pool is not there, or no longer.
    #[error("no such client")]
    NoDevice,
}

/// Why a client can't be saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SaveError {
    /// It is being saved already.
    #[error("the client is being saved already")]
    Busy,
    /// More pages have left it meanwhile than can be noted.
    #[error("too many pages were flushed meanwhile: save the client anew")]
    Overrun,
}

/// There is not so much memory to be reserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("reservations may have {most} bytes together; the rest is for what allocators waste")]
pub struct Overcommitted {
    /// Most that can be reserved.
    pub most: u64,
}

/// Why a put was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum PutError {
    /// The memory limit is reached; the key did not exist.
    #[error("no memory for a new page")]
    NoMemory,
    /// The memory limit is reached; the key existed and **its old page has been flushed**.
    #[error("no space for the page; the old one was flushed")]
    NoSpace,
    /// The pool has been destroyed.
    #[error("the pool is gone")]
    NoDevice,
}

/// Why a get failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum GetError {
    /// The stored page is damaged: its bytes are not handed out.
    #[error("the stored page is damaged")]
    Corrupt,
    /// The disk with the spill file can't be read. The page stays where it is.
    #[error("the page's disk can't be read")]
    Io,
    /// The pool has been destroyed.
    #[error("the pool is gone")]
    NoDevice,
}

/// Why an update failed. The page is as it was before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum UpdateError {
    /// The memory limit is reached.
    #[error("no memory for the page")]
    NoMemory,
    /// The stored page is damaged: there is nothing to update.
    #[error("the stored page is damaged")]
    Corrupt,
    /// The disk with the spill file can't be read.
    #[error("the page's disk can't be read")]
    Io,
    /// The pool has been destroyed.
    #[error("the pool is gone")]
    NoDevice,
}

impl From<GetError> for UpdateError {
    fn from(error: GetError) -> Self {
        match error {
            GetError::Corrupt => Self::Corrupt,
            GetError::Io => Self::Io,
            GetError::NoDevice => Self::NoDevice,
        }
    }
}
