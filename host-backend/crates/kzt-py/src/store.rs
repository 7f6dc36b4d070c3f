// SPDX-License-Identifier: GPL-2.0-or-later
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use kzt_store::{
    Allocator, Codec, Context, Dedup, ObjectId, PAGE_SIZE, Page, SpillConfig, Terms,
    UnknownAllocator, UnknownCodec, UnknownDedup, Uuid,
};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::client::Client;
use crate::{errors, figures};

/// The store without sockets, to test against a model.
#[pyclass(frozen, module = "kztmem._core")]
pub(crate) struct Store {
    /// Absent once closed.
    store: Mutex<Option<Arc<kzt_store::Store>>>,
    recovery: Py<PyDict>,
}

/// A client's pool.
#[pyclass(frozen, module = "kztmem._core")]
pub(crate) struct Pool {
    pool: Arc<kzt_store::Pool>,
    context: Mutex<Context>,
}

#[pymethods]
impl Store {
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
        let config = config(arena, memory, codec, persistent, spill, abandon_spilled)?;
        let (store, recovery) = py
            .detach(|| kzt_store::Store::open(&config))
            .map_err(|error| errors::open(&error))?;
        let recovery = figures::recovery(py, &recovery)?.unbind();
        Ok(Self {
            store: Mutex::new(Some(Arc::new(store))),
            recovery,
        })
    }

    #[getter]
    fn recovery(&self, py: Python<'_>) -> Py<PyDict> {
        self.recovery.clone_ref(py)
    }

    #[pyo3(signature = (name, *, weight=1, cap=None, reservation=0, compress=true, dedup="off"))]
    #[expect(clippy::too_many_arguments, reason = "keywords in Python")]
    fn client(
        &self,
        py: Python<'_>,
        name: &str,
        weight: u32,
        cap: Option<u64>,
        reservation: u64,
        compress: bool,
        dedup: &str,
    ) -> PyResult<Client> {
        let store = self.open()?;
        let dedup = self::dedup(dedup)?;
        let terms = Terms {
            weight,
            cap,
            reservation,
            compress,
            ..Terms::default()
        };
        let client = py.detach(|| store.client(name)).map_err(errors::pool)?;
        client.settle(terms).map_err(errors::terms)?;
        client.set_dedup(&dedup);
        Ok(Client::new(client))
    }

    fn remove_client(&self, py: Python<'_>, name: &str) -> PyResult<()> {
        let store = self.open()?;
        py.detach(|| store.remove_client(name))
            .map_err(errors::pool)
    }

    fn authorize(&self, py: Python<'_>, uuid_lo: u64, uuid_hi: u64, name: &str) -> PyResult<()> {
        let store = self.open()?;
        py.detach(|| store.authorize(Uuid([uuid_lo, uuid_hi]), name));
        Ok(())
    }

    fn pool(&self, py: Python<'_>, client: &str) -> PyResult<Pool> {
        let store = self.open()?;
        let pool = py
            .detach(|| store.open_pool(client))
            .map_err(errors::pool)?;
        Ok(Pool {
            pool,
            context: Mutex::new(Context::new()),
        })
    }

    fn clients(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        let store = self.open()?;
        Ok(py.detach(|| store.clients()))
    }

    fn destroy_pool(&self, py: Python<'_>, client: &str) -> PyResult<()> {
        let store = self.open()?;
        py.detach(|| store.destroy_pool(client))
            .map_err(errors::pool)
    }

    fn usage<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let store = self.open()?;
        let usage = py.detach(|| store.usage())?;
        figures::usage(py, &usage)
    }

    fn maintain(&self, py: Python<'_>) -> PyResult<()> {
        let store = self.open()?;
        py.detach(|| store.maintain());
        Ok(())
    }

    fn close(&self, py: Python<'_>) {
        let store = self.lock().take();
        py.detach(|| drop(store));
    }
}

impl Store {
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Arc<kzt_store::Store>>> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self) -> PyResult<Arc<kzt_store::Store>> {
        self.lock()
            .clone()
            .ok_or_else(|| errors::StoreError::new_err("the store is closed"))
    }
}

#[pymethods]
impl Pool {
    fn put(&self, py: Python<'_>, object: [u64; 3], index: u32, page: &[u8]) -> PyResult<()> {
        let page = as_page(page)?;
        py.detach(|| {
            self.pool
                .put(&mut self.context(), ObjectId(object), index, page)
        })
        .map_err(errors::put)
    }

    fn get<'py>(
        &self,
        py: Python<'py>,
        object: [u64; 3],
        index: u32,
    ) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let mut page = [0; PAGE_SIZE];
        let found = py
            .detach(|| {
                self.pool
                    .get(&mut self.context(), ObjectId(object), index, &mut page)
            })
            .map_err(errors::get)?;
        Ok(found.then(|| PyBytes::new(py, &page)))
    }

    fn update(
        &self,
        py: Python<'_>,
        object: [u64; 3],
        index: u32,
        start: usize,
        data: &[u8],
    ) -> PyResult<()> {
        let range = start..start.saturating_add(data.len());
        if range.end > PAGE_SIZE {
            return Err(PyValueError::new_err(
                "the data reaches beyond the page's end",
            ));
        }
        py.detach(|| {
            self.pool
                .update(&mut self.context(), ObjectId(object), index, |page| {
                    if let Some(target) = page.get_mut(range.clone()) {
                        target.copy_from_slice(data);
                    }
                })
        })
        .map_err(errors::update)
    }

    fn flush(&self, py: Python<'_>, object: [u64; 3], index: u32) -> bool {
        py.detach(|| self.pool.flush(ObjectId(object), index))
    }

    fn flush_range(&self, py: Python<'_>, object: [u64; 3], first: u32, count: u32) -> u64 {
        py.detach(|| self.pool.flush_range(ObjectId(object), first, count))
    }

    fn flush_object(&self, py: Python<'_>, object: [u64; 3]) -> u64 {
        py.detach(|| self.pool.flush_object(ObjectId(object)))
    }

    fn runs(&self, py: Python<'_>, object: [u64; 3], first: u32, count: u32) -> Vec<(u32, bool)> {
        py.detach(|| {
            let mut runs = Vec::new();
            self.pool
                .runs(ObjectId(object), first, count, |length, stored| {
                    runs.push((length, stored));
                });
            runs
        })
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = py.detach(|| self.pool.stats());
        figures::pool(py, &stats)
    }
}

impl Pool {
    fn context(&self) -> std::sync::MutexGuard<'_, Context> {
        self.context.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What both ways of opening a store need.
pub(crate) fn config(
    arena: PathBuf,
    memory: u64,
    codec: &str,
    persistent: &str,
    spill: Option<(PathBuf, u64)>,
    abandon_spilled: bool,
) -> PyResult<kzt_store::Config> {
    Ok(kzt_store::Config {
        codec: self::codec(codec)?,
        persistent: allocator(persistent)?,
        spill: spill.map(|(path, size)| SpillConfig { path, size }),
        abandon_spilled,
        ..kzt_store::Config::new(arena, memory)
    })
}

pub(crate) fn codec(name: &str) -> PyResult<Codec> {
    name.parse()
        .map_err(|error: UnknownCodec| PyValueError::new_err(error.to_string()))
}

pub(crate) fn allocator(name: &str) -> PyResult<Allocator> {
    name.parse()
        .map_err(|error: UnknownAllocator| PyValueError::new_err(error.to_string()))
}

/// With whom a client's pages may share memory.
pub(crate) fn dedup(text: &str) -> PyResult<Dedup> {
    text.parse()
        .map_err(|error: UnknownDedup| PyValueError::new_err(error.to_string()))
}

fn as_page(bytes: &[u8]) -> PyResult<&Page> {
    bytes.try_into().map_err(|_| {
        PyValueError::new_err(format!("a page has {PAGE_SIZE} bytes, not {}", bytes.len()))
    })
}
