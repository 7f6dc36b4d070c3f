// SPDX-License-Identifier: GPL-2.0-or-later
//! Files that belong to one process of this user: the arena and the spill file.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FlockOperation, OFlags};
use rustix::io::Errno;

use crate::error::OpenError;

/// To open such a file, with more flags. Its folder may be writable by everybody: no symbolic link
/// is followed.
pub(crate) fn options(flags: OFlags) -> OpenOptions {
    let flags = (flags | OFlags::NOFOLLOW).bits();
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .mode(0o600)
        .custom_flags(i32::from_ne_bytes(flags.to_ne_bytes()));
    options
}

/// Opens or creates the file and locks it against every other opener; its length. One that
/// somebody else put there is not used.
pub(crate) fn open(path: &Path) -> Result<(File, u64), OpenError> {
    let failed = |what| OpenError::io(path, what);
    let file = options(OFlags::empty())
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(failed("open"))?;
    let meta = file.metadata().map_err(failed("stat"))?;
    if !meta.is_file() || meta.uid() != rustix::process::geteuid().as_raw() {
        return Err(OpenError::NotOurs { path: path.into() });
    }
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Err(OpenError::Busy { path: path.into() }),
        Err(error) => return Err(failed("lock")(error.into())),
    }
    // Only now: the last owner may have resized it while we waited for nothing.
    let len = file.metadata().map_err(failed("stat"))?.len();
    Ok((file, len))
}
