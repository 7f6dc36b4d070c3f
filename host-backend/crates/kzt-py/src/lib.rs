// SPDX-License-Identifier: GPL-2.0-or-later
//! `kztmem._core`: the page store for Python.
//!
//! A thin binding; `host-backend/kztmem/_core.pyi` is its reference. Every call that reaches the
//! store or waits for a thread releases the GIL, and no thread that serves pages ever takes it.

mod bench;
mod client;
mod errors;
mod figures;
mod logger;
mod server;
mod store;

#[pyo3::pymodule]
mod _core {
    use pyo3::prelude::*;

    #[pymodule_export]
    use crate::bench::bench;
    #[pymodule_export]
    use crate::client::Client;
    #[pymodule_export]
    use crate::errors::{
        ArenaBusyError, ArenaFormatError, ArenaSpaceError, ClientExistsError, CorruptPageError,
        DiskError, NoClientError, NoMemoryError, NoSpaceError, OvercommittedError, SocketError,
        SpillError, StoreError,
    };
    #[pymodule_export]
    use crate::server::Server;
    #[pymodule_export]
    use crate::store::{Pool, Store};

    #[pymodule_init]
    #[expect(clippy::unnecessary_wraps, reason = "the attribute asks for it")]
    fn init(_module: &Bound<'_, PyModule>) -> PyResult<()> {
        crate::logger::install();
        Ok(())
    }
}
