// SPDX-License-Identifier: GPL-2.0-or-later
use std::path::PathBuf;

use kzt_bench::{Corpus, Error, Plan, Report, Row, Watch};
use kzt_store::{Allocator, Codec};
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::{errors, store};

/// Times puts and gets of the files' pages in the store and its peers.
#[pyfunction]
#[pyo3(signature = (files, *, codecs, allocators, threads, repetitions, limit, folder, progress))]
#[expect(
    clippy::needless_pass_by_value,
    clippy::too_many_arguments,
    reason = "they come out of Python owned, and have names there"
)]
pub(crate) fn bench(
    py: Python<'_>,
    files: Vec<PathBuf>,
    codecs: Vec<String>,
    allocators: Vec<String>,
    threads: Vec<usize>,
    repetitions: usize,
    limit: u64,
    folder: PathBuf,
    progress: Py<PyAny>,
) -> PyResult<Bound<'_, PyDict>> {
    if threads.contains(&0) || repetitions == 0 {
        return Err(PyValueError::new_err("at least one thread and repetition"));
    }
    let codecs = codecs
        .iter()
        .map(|codec| store::codec(codec))
        .collect::<PyResult<Vec<Codec>>>()?;
    let allocators = allocators
        .iter()
        .map(|allocator| store::allocator(allocator))
        .collect::<PyResult<Vec<Allocator>>>()?;
    let plan = Plan {
        codecs,
        allocators,
        threads,
        repetitions,
        folder,
    };
    let mut caller = Caller {
        progress,
        raised: None,
    };
    let measured = py.detach(|| {
        let corpus = Corpus::read(&files, limit)?;
        let report = kzt_bench::run(&corpus, &plan, &mut caller)?;
        Ok((corpus, report))
    });
    match (caller.raised, measured) {
        (Some(raised), _) => Err(raised),
        (None, Err(error)) => Err(failure(&error)),
        (None, Ok((corpus, report))) => figures(py, &corpus, &report),
    }
}

/// Python, told of each step and asked for signals meanwhile.
struct Caller {
    progress: Py<PyAny>,
    /// What it answered with: a signal, or an error of its own.
    raised: Option<PyErr>,
}

impl Caller {
    fn call(&mut self, f: impl FnOnce(Python<'_>, &Py<PyAny>) -> PyResult<()>) {
        let result = Python::attach(|py| f(py, &self.progress));
        self.raised = self.raised.take().or(result.err());
    }
}

impl Watch for Caller {
    fn step(&mut self, what: &str, done: usize, all: usize) {
        self.call(|py, progress| progress.call1(py, (what, done, all)).map(drop));
    }

    fn wanted(&mut self) -> bool {
        self.call(|py, _| py.check_signals());
        self.raised.is_none()
    }
}

fn failure(error: &Error) -> PyErr {
    match error {
        Error::Read { path, source } => {
            let strerror = source.to_string();
            PyOSError::new_err((source.raw_os_error(), strerror, path.clone()))
        }
        Error::Empty => PyValueError::new_err(error.to_string()),
        Error::Open(error) => errors::open(error),
        Error::Put(error) => errors::put(*error),
        Error::Get(error) => errors::get(*error),
        _ => errors::StoreError::new_err(error.to_string()),
    }
}

fn figures<'py>(py: Python<'py>, corpus: &Corpus, report: &Report) -> PyResult<Bound<'py, PyDict>> {
    let rows = report
        .rows
        .iter()
        .map(|each| row(py, corpus, each))
        .collect::<PyResult<Vec<_>>>()?;
    let incompressible = PyDict::new(py);
    for (codec, pages) in &report.incompressible {
        incompressible.set_item(codec.to_string(), pages)?;
    }
    let dict = PyDict::new(py);
    dict.set_item("pages", corpus.pages())?;
    dict.set_item("available", corpus.available)?;
    dict.set_item("incompressible", incompressible)?;
    dict.set_item("without_zram", &report.without_zram)?;
    dict.set_item("rows", rows)?;
    Ok(dict)
}

fn row<'py>(py: Python<'py>, corpus: &Corpus, row: &Row) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("engine", row.engine)?;
    dict.set_item("codec", row.codec.to_string())?;
    dict.set_item("alloc", row.alloc.map(|alloc| alloc.to_string()))?;
    dict.set_item("threads", row.threads)?;
    dict.set_item("warm", row.warm)?;
    dict.set_item("put_us", row.put.mean)?;
    dict.set_item("get_us", row.get.mean)?;
    dict.set_item("put_p99_us", row.put.p99)?;
    dict.set_item("get_p99_us", row.get.p99)?;
    dict.set_item("logical_bytes", corpus.logical_bytes())?;
    dict.set_item("data_bytes", row.memory.data)?;
    dict.set_item("fragmentation_bytes", row.memory.fragmentation)?;
    dict.set_item("meta_bytes", row.memory.meta)?;
    dict.set_item("same_filled", corpus.same_filled)?;
    dict.set_item("duplicates", corpus.duplicates)?;
    Ok(dict)
}
