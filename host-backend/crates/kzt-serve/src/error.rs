// SPDX-License-Identifier: GPL-2.0-or-later
use std::io;
use std::path::PathBuf;

use kzt_store::{Overcommitted, StoreError};
use thiserror::Error;

/// Why a client could not be added, changed or removed. Nothing has changed then.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ServeError {
    /// A client of the name is being served.
    #[error("client {0} exists")]
    Exists(String),
    /// Neither a client of the name is served nor does the store hold a pool of it.
    #[error("no client {0}")]
    NoClient(String),
    /// A swap device is a whole number of pages, at most 2³² of them.
    #[error("swap of {0} bytes: must be a multiple of 4096 bytes from 4096 to 16 TiB")]
    SwapSize(u64),
    /// Somebody serves on the socket.
    #[error("{0}: address in use: another server listens there")]
    InUse(PathBuf),
    /// Something that is not a socket has the socket's name.
    #[error("{0}: exists and is not a socket")]
    NotASocket(PathBuf),
    /// The socket could not be made.
    #[error("{path}: {source}")]
    Socket {
        /// The socket's path.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// No thread could be started.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is not so much memory to be reserved for the client.
    #[error(transparent)]
    Overcommitted(#[from] Overcommitted),
    /// The server has been shut down.
    #[error("the server is shut down")]
    ShutDown,
}
