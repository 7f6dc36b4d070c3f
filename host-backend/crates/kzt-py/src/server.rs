// SPDX-License-Identifier: GPL-2.0-or-later
use std::path::PathBuf;
use std::time::Duration;

use kzt_serve::Sockets;
use kzt_store::Terms;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::{errors, figures, store};

/// A store that serves its clients' sockets.
#[pyclass(frozen, module = "kztmem._core")]
pub(crate) struct Server {
    server: kzt_serve::Server,
    recovery: Py<PyDict>,
}

#[pymethods]
impl Server {
    #[new]
    #[pyo3(signature = (*, arena, memory, codec, persistent="zsmalloc", spill=None, abandon_spilled=false))]
    fn new(
        py: Python<'_>,
        arena: PathBuf,
        memory: u64,
        codec: &str,
        persistent: &str,
        spill: Option<(PathBuf, u64)>,
        abandon_spilled: bool,
    ) -> PyResult<Self> {
        let config = store::config(arena, memory, codec, persistent, spill, abandon_spilled)?;
        let (server, recovery) = py
            .detach(|| kzt_serve::Server::open(&config))
            .map_err(|error| errors::open(&error))?;
        let recovery = figures::recovery(py, &recovery)?.unbind();
        Ok(Self { server, recovery })
    }

    #[getter]
    fn recovery(&self, py: Python<'_>) -> Py<PyDict> {
        self.recovery.clone_ref(py)
    }

    #[pyo3(signature = (name, swap, *, dedup, weight, cap, reservation, nbd, relay, vhost, tmem, ctl))]
    #[expect(
        clippy::needless_pass_by_value,
        clippy::too_many_arguments,
        reason = "keywords in Python, out of which paths come owned"
    )]
    fn add_client(
        &self,
        py: Python<'_>,
        name: &str,
        swap: u64,
        dedup: &str,
        weight: u32,
        cap: Option<u64>,
        reservation: u64,
        nbd: PathBuf,
        relay: PathBuf,
        vhost: PathBuf,
        tmem: PathBuf,
        ctl: PathBuf,
    ) -> PyResult<()> {
        let sockets = Sockets {
            nbd: &nbd,
            relay: &relay,
            vhost: &vhost,
            tmem: &tmem,
            ctl: &ctl,
        };
        let dedup = store::dedup(dedup)?;
        let terms = terms(weight, cap, reservation);
        py.detach(|| self.server.add_client(name, swap, &dedup, terms, sockets))
            .map_err(|error| errors::serve(&error))
    }

    #[pyo3(signature = (name, *, weight, cap, reservation))]
    fn settle(
        &self,
        py: Python<'_>,
        name: &str,
        weight: u32,
        cap: Option<u64>,
        reservation: u64,
    ) -> PyResult<()> {
        let terms = terms(weight, cap, reservation);
        py.detach(|| self.server.settle(name, terms))
            .map_err(|error| errors::serve(&error))
    }

    fn remove_client(&self, py: Python<'_>, name: &str) -> PyResult<()> {
        py.detach(|| self.server.remove_client(name))
            .map_err(|error| errors::serve(&error))
    }

    fn clients(&self, py: Python<'_>) -> Vec<String> {
        py.detach(|| self.server.clients())
    }

    fn pools(&self, py: Python<'_>) -> Vec<String> {
        py.detach(|| self.server.pools())
    }

    fn status<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let usage = py.detach(|| self.server.status())?;
        figures::usage(py, &usage)
    }

    fn zbud<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let usage = py.detach(|| self.server.zbud());
        figures::zbud(py, &usage)
    }

    fn evictions<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let evictions = py.detach(|| self.server.evictions());
        figures::evictions(py, &evictions)
    }

    fn pin(&self, py: Python<'_>) -> PyResult<()> {
        Ok(py.detach(|| self.server.pin())?)
    }

    fn client<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyDict>> {
        let stats = py
            .detach(|| self.server.client_stats(name))
            .ok_or_else(|| errors::NoClientError::new_err(format!("no client {name}")))?;
        figures::client(py, &stats)
    }

    fn shutdown(&self, py: Python<'_>, grace: f64) -> PyResult<()> {
        let grace = Duration::try_from_secs_f64(grace)
            .map_err(|error| PyValueError::new_err(format!("grace: {error}")))?;
        py.detach(|| self.server.shutdown(grace));
        Ok(())
    }
}

fn terms(weight: u32, cap: Option<u64>, reservation: u64) -> Terms {
    Terms {
        weight,
        cap,
        reservation,
        ..Terms::default()
    }
}
