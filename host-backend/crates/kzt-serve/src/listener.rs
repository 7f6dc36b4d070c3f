// SPDX-License-Identifier: GPL-2.0-or-later
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::net::{AddressFamily, Shutdown, SocketAddrUnix, SocketFlags, SocketType};

use crate::ServeError;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 64;

/// A listening unix socket that only its owner may connect to. Dropping it unlinks it.
pub(crate) struct Listener {
    socket: UnixListener,
    path: PathBuf,
    /// Device and inode: what is unlinked in the end has to be what was made.
    identity: (u64, u64),
}

impl Listener {
    /// Makes the socket; the file a dead server left behind is replaced.
    pub(crate) fn bind(path: &Path) -> Result<Self, ServeError> {
        clear_stale(path)?;
        Self::bind_new(path).map_err(|source| ServeError::Socket {
            path: path.to_owned(),
            source,
        })
    }

    fn bind_new(path: &Path) -> io::Result<Self> {
        let socket = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )?;
        rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
        // Nobody can connect before the socket listens: the mode is never too wide.
        fs::set_permissions(path, Permissions::from_mode(0o600))?;
        rustix::net::listen(&socket, BACKLOG)?;
        let metadata = fs::symlink_metadata(path)?;
        let identity = (metadata.dev(), metadata.ino());
        Ok(Self {
            socket: socket.into(),
            path: path.to_owned(),
            identity,
        })
    }

    /// Waits for a connection; `None` once the listener is closed.
    pub(crate) fn accept(&self) -> io::Result<Option<UnixStream>> {
        match self.socket.accept() {
            Ok((stream, _)) => Ok(Some(stream)),
            // Linux's answer on a listening socket that was shut down.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Ends `accept` in whatever thread waits in it. Connections not accepted yet are reset.
    pub(crate) fn close(&self) {
        // Fails on a socket that is not listening any more, which is what is wanted.
        let _ = rustix::net::shutdown(&self.socket, Shutdown::Both);
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Ok(metadata) = fs::symlink_metadata(&self.path) {
            if (metadata.dev(), metadata.ino()) == self.identity {
                // The directory may be gone or read-only by now; then there is nothing to do.
                let _ = fs::remove_file(&self.path);
            }
        }
    }
}

/// Unlinks a socket that nobody listens on.
fn clear_stale(path: &Path) -> Result<(), ServeError> {
    let failed = |source| ServeError::Socket {
        path: path.to_owned(),
        source,
    };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(ServeError::NotASocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(ServeError::InUse(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed)
        }
        Err(error) => Err(failed(error)),
    }
}
