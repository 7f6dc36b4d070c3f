// SPDX-License-Identifier: GPL-2.0-or-later
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kzt_store::{Context, ObjectId, PAGE_SIZE, Terms, Uuid};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::{errors, figures};

/// A client of the store, as a guest's tmem operations meet it.
#[pyclass(frozen, module = "kztmem._core")]
pub(crate) struct Client {
    client: Arc<kzt_store::Client>,
    context: Mutex<Context>,
}

impl Client {
    pub(crate) fn new(client: Arc<kzt_store::Client>) -> Self {
        Self {
            client,
            context: Mutex::new(Context::new()),
        }
    }

    fn context(&self) -> MutexGuard<'_, Context> {
        self.context.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Terms)) -> PyResult<()> {
        let mut terms = self.client.terms();
        change(&mut terms);
        self.client.settle(terms).map_err(errors::terms)
    }
}

#[pymethods]
impl Client {
    fn new_pool(&self, py: Python<'_>, flags: u32, uuid_lo: u64, uuid_hi: u64) -> i32 {
        py.detach(|| self.client.new_pool(flags, Uuid([uuid_lo, uuid_hi])))
    }

    fn destroy_pool(&self, py: Python<'_>, id: i32) -> i32 {
        py.detach(|| self.client.destroy_pool(id))
    }

    fn put_page(&self, py: Python<'_>, id: i32, object: [u64; 3], index: u32, page: &[u8]) -> i32 {
        py.detach(|| {
            self.client
                .put_page(&mut self.context(), id, ObjectId(object), index, page)
        })
    }

    fn get_page<'py>(
        &self,
        py: Python<'py>,
        id: i32,
        object: [u64; 3],
        index: u32,
    ) -> (i32, Option<Bound<'py, PyBytes>>) {
        let mut page = [0; PAGE_SIZE];
        let answer = py.detach(|| {
            self.client
                .get_page(&mut self.context(), id, ObjectId(object), index, &mut page)
        });
        (answer, (answer == 1).then(|| PyBytes::new(py, &page)))
    }

    fn flush_page(&self, py: Python<'_>, id: i32, object: [u64; 3], index: u32) -> i32 {
        py.detach(|| self.client.flush_page(id, ObjectId(object), index))
    }

    fn flush_object(&self, py: Python<'_>, id: i32, object: [u64; 3]) -> i32 {
        py.detach(|| self.client.flush_object(id, ObjectId(object)))
    }

    fn freeze(&self, py: Python<'_>) {
        py.detach(|| self.client.freeze());
    }

    fn thaw(&self) {
        self.client.thaw();
    }

    fn set_weight(&self, weight: u32) -> PyResult<()> {
        self.change(|terms| terms.weight = weight)
    }

    fn set_cap(&self, cap: Option<u64>) -> PyResult<()> {
        self.change(|terms| terms.cap = cap)
    }

    fn set_compress(&self, compress: bool) -> PyResult<()> {
        self.change(|terms| terms.compress = compress)
    }

    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = py.detach(|| self.client.stats());
        figures::tmem_client(py, &stats)
    }
}
