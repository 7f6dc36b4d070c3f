// SPDX-License-Identifier: GPL-2.0-or-later
//! Python's exceptions for the Rust core's errors. All are `StoreError`s.

use kzt_serve::ServeError;
use kzt_store::{
    GetError, OpenError, Overcommitted, PutError, StoreError as PoolError, UpdateError,
};
use pyo3::exceptions::PyException;
use pyo3::{PyErr, create_exception};

create_exception!(
    kztmem._core,
    StoreError,
    PyException,
    "The page store can't do what was asked."
);
create_exception!(
    kztmem._core,
    ArenaBusyError,
    StoreError,
    "Another process has the arena open."
);
create_exception!(
    kztmem._core,
    ArenaFormatError,
    StoreError,
    "The file is no arena this build reads."
);
create_exception!(
    kztmem._core,
    ArenaSpaceError,
    StoreError,
    "The memory asked for can't be had."
);
create_exception!(
    kztmem._core,
    ClientExistsError,
    StoreError,
    "The client is being served already."
);
create_exception!(
    kztmem._core,
    NoClientError,
    StoreError,
    "There is no such client, or no longer."
);
create_exception!(
    kztmem._core,
    SocketError,
    StoreError,
    "The socket can't be made."
);
create_exception!(
    kztmem._core,
    NoMemoryError,
    StoreError,
    "The store is full; the page is new."
);
create_exception!(
    kztmem._core,
    NoSpaceError,
    StoreError,
    "The store is full; the page's old contents were flushed."
);
create_exception!(
    kztmem._core,
    CorruptPageError,
    StoreError,
    "The stored page is damaged."
);
create_exception!(
    kztmem._core,
    DiskError,
    StoreError,
    "The disk with the spill file can't be read."
);
create_exception!(
    kztmem._core,
    OvercommittedError,
    StoreError,
    "There is not so much memory to be reserved."
);
create_exception!(
    kztmem._core,
    SpillError,
    StoreError,
    "The spill file is not there, or not the arena's."
);

pub(crate) fn open(error: &OpenError) -> PyErr {
    let message = error.to_string();
    match error {
        OpenError::Busy { .. } => ArenaBusyError::new_err(message),
        OpenError::NotOurs { .. } | OpenError::NotAnArena { .. } | OpenError::Version { .. } => {
            ArenaFormatError::new_err(message)
        }
        OpenError::Memory { .. } | OpenError::Shrunk { .. } | OpenError::FilesystemFull { .. } => {
            ArenaSpaceError::new_err(message)
        }
        OpenError::SpillForeign { .. }
        | OpenError::SpillLost { .. }
        | OpenError::SpillSize { .. } => SpillError::new_err(message),
        _ => StoreError::new_err(message),
    }
}

pub(crate) fn serve(error: &ServeError) -> PyErr {
    let message = error.to_string();
    match error {
        ServeError::Exists(_) => ClientExistsError::new_err(message),
        ServeError::NoClient(_) => NoClientError::new_err(message),
        ServeError::InUse(_) | ServeError::NotASocket(_) | ServeError::Socket { .. } => {
            SocketError::new_err(message)
        }
        ServeError::Store(error) => pool(*error),
        ServeError::Overcommitted(error) => terms(*error),
        _ => StoreError::new_err(message),
    }
}

pub(crate) fn pool(error: PoolError) -> PyErr {
    match error {
        PoolError::NoDevice => NoClientError::new_err(error.to_string()),
        _ => StoreError::new_err(error.to_string()),
    }
}

pub(crate) fn terms(error: Overcommitted) -> PyErr {
    OvercommittedError::new_err(error.to_string())
}

pub(crate) fn put(error: PutError) -> PyErr {
    let message = error.to_string();
    match error {
        PutError::NoMemory => NoMemoryError::new_err(message),
        PutError::NoSpace => NoSpaceError::new_err(message),
        PutError::NoDevice => NoClientError::new_err(message),
    }
}

pub(crate) fn get(error: GetError) -> PyErr {
    let message = error.to_string();
    match error {
        GetError::Corrupt => CorruptPageError::new_err(message),
        GetError::Io => DiskError::new_err(message),
        GetError::NoDevice => NoClientError::new_err(message),
    }
}

pub(crate) fn update(error: UpdateError) -> PyErr {
    let message = error.to_string();
    match error {
        UpdateError::NoMemory => NoMemoryError::new_err(message),
        UpdateError::Corrupt => CorruptPageError::new_err(message),
        UpdateError::Io => DiskError::new_err(message),
        UpdateError::NoDevice => NoClientError::new_err(message),
    }
}
