// SPDX-License-Identifier: GPL-2.0-or-later
//! The core's figures as dictionaries, under the names the HTTP API gives them.

use kzt_serve::{ClientStats, Latency, PortCounters, Report};
use kzt_store::{
    ClientStats as TmemStats, Evictions, Kind, Origin, PoolEntry, PoolStats, Recovery, SpillUsage,
    Usage, Uuid, ZbudUsage,
};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

pub(crate) fn recovery<'py>(py: Python<'py>, recovery: &Recovery) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    let reason = match recovery.origin {
        Origin::New => "new",
        Origin::Recovered => "recovered",
        Origin::Reboot => "reboot",
    };
    dict.set_item("reason", reason)?;
    dict.set_item("pools", recovery.pools)?;
    dict.set_item("pages", recovery.pages)?;
    dict.set_item("dropped", recovery.dropped)?;
    dict.set_item("abandoned", recovery.abandoned)?;
    dict.set_item("seconds", recovery.elapsed.as_secs_f64())?;
    dict.set_item("warnings", &recovery.warnings)?;
    Ok(dict)
}

pub(crate) fn usage<'py>(py: Python<'py>, usage: &Usage) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("limit_bytes", usage.limit)?;
    dict.set_item("allocated_bytes", usage.allocated)?;
    dict.set_item("data_bytes", usage.data)?;
    dict.set_item("meta_bytes", usage.meta)?;
    dict.set_item("fragmentation_bytes", usage.fragmentation)?;
    dict.set_item("spare_bytes", usage.spare)?;
    dict.set_item("pages", usage.pages)?;
    dict.set_item("duplicate_pages", usage.duplicates)?;
    dict.set_item("deduplicated_bytes", usage.deduplicated)?;
    let spill = usage.spill.as_ref();
    dict.set_item(
        "spill",
        spill.map(|disk| spill_usage(py, disk)).transpose()?,
    )?;
    Ok(dict)
}

pub(crate) fn zbud<'py>(py: Python<'py>, usage: &ZbudUsage) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("zbud_curr_raw_pages", usage.zbud_curr_raw_pages)?;
    dict.set_item("zbud_curr_zpages", usage.zbud_curr_zpages)?;
    dict.set_item("zbud_buddied_count", usage.zbud_buddied_count)?;
    dict.set_item("zbud_cumul_zpages", usage.zbud_cumul_zpages)?;
    dict.set_item("zbud_cumul_zbytes", usage.zbud_cumul_zbytes)?;
    Ok(dict)
}

pub(crate) fn evictions<'py>(
    py: Python<'py>,
    evictions: &Evictions,
) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("evicted_raw_pages", evictions.evicted_raw_pages)?;
    dict.set_item("evicted_unbuddied_pages", evictions.evicted_unbuddied_pages)?;
    dict.set_item("evicted_buddied_pages", evictions.evicted_buddied_pages)?;
    dict.set_item("evicted_nodes", evictions.evicted_nodes)?;
    Ok(dict)
}

fn spill_usage<'py>(py: Python<'py>, usage: &SpillUsage) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("limit_bytes", usage.limit)?;
    dict.set_item("allocated_bytes", usage.allocated)?;
    dict.set_item("data_bytes", usage.data)?;
    dict.set_item("pages", usage.pages)?;
    let counters = PyDict::new(py);
    counters.set_item("written", usage.written)?;
    counters.set_item("collected", usage.collected)?;
    counters.set_item("read", usage.read)?;
    counters.set_item("write_errors", usage.write_errors)?;
    counters.set_item("read_errors", usage.read_errors)?;
    dict.set_item("counters", counters)?;
    Ok(dict)
}

pub(crate) fn client<'py>(py: Python<'py>, stats: &ClientStats) -> PyResult<Bound<'py, PyDict>> {
    let mut all = stats.pool;
    all += stats.totals.persistent;
    all += stats.totals.ephemeral;
    let dict = pool(py, &all)?;
    dict.set_item("persistent", pool(py, &stats.totals.persistent)?)?;
    dict.set_item("ephemeral", pool(py, &stats.totals.ephemeral)?)?;
    dict.set_item("pools", pools(py, &stats.pools)?)?;
    dict.set_item("swap_bytes", stats.swap_bytes)?;
    dict.set_item("weight", stats.terms.weight)?;
    dict.set_item("cap_bytes", stats.terms.cap)?;
    dict.set_item("reservation_bytes", stats.terms.reservation)?;
    dict.set_item("charged_bytes", stats.charged)?;
    dict.set_item("ephemeral_bytes", stats.ephemeral)?;
    dict.set_item("connections", stats.connections)?;
    let latencies = PyDict::new(py);
    latencies.set_item("put", latency(py, &stats.put)?)?;
    latencies.set_item("get", latency(py, &stats.get)?)?;
    latencies.set_item("flush", latency(py, &stats.flush)?)?;
    dict.set_item("latency", latencies)?;
    dict.set_item("relay_counters", port(py, &stats.port)?)?;
    dict.set_item("tmem_counters", port(py, &stats.tmem)?)?;
    let last = stats.report.as_ref();
    dict.set_item("report", last.map(|last| report(py, last)).transpose()?)?;
    Ok(dict)
}

fn port<'py>(py: Python<'py>, counters: &PortCounters) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("sessions", counters.sessions)?;
    dict.set_item("frames", counters.frames)?;
    dict.set_item("ignored_frames", counters.ignored)?;
    dict.set_item("damaged_frames", counters.damaged)?;
    dict.set_item("skipped_bytes", counters.skipped)?;
    Ok(dict)
}

fn report<'py>(py: Python<'py>, report: &Report) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("age_seconds", report.received.elapsed().as_secs_f64())?;
    dict.set_item("session", report.session)?;
    dict.set_item("sequence", report.sequence)?;
    dict.set_item("content", PyBytes::new(py, &report.content))?;
    Ok(dict)
}

pub(crate) fn tmem_client<'py>(py: Python<'py>, stats: &TmemStats) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("name", &stats.name)?;
    dict.set_item("weight", stats.terms.weight)?;
    dict.set_item("cap_bytes", stats.terms.cap)?;
    dict.set_item("reservation_bytes", stats.terms.reservation)?;
    dict.set_item("compress", stats.terms.compress)?;
    dict.set_item("frozen", stats.frozen)?;
    dict.set_item("persistent_bytes", stats.persistent_bytes)?;
    dict.set_item("ephemeral_bytes", stats.ephemeral_bytes)?;
    dict.set_item("pools", pools(py, &stats.pools)?)?;
    Ok(dict)
}

fn pools<'py>(py: Python<'py>, entries: &[PoolEntry]) -> PyResult<Vec<Bound<'py, PyDict>>> {
    let pools = entries.iter().map(|entry| {
        let dict = pool(py, &entry.stats)?;
        let kind = match entry.kind {
            Kind::Persistent => "persistent",
            Kind::Ephemeral => "ephemeral",
            Kind::Shared => "shared",
        };
        dict.set_item("id", entry.id)?;
        dict.set_item("kind", kind)?;
        let Uuid([low, high]) = entry.uuid;
        dict.set_item("uuid", (low, high))?;
        Ok(dict)
    });
    pools.collect()
}

pub(crate) fn pool<'py>(py: Python<'py>, stats: &PoolStats) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("stored_pages", stats.pages)?;
    dict.set_item("stored_bytes", stats.stored_bytes)?;
    dict.set_item("index_bytes", stats.index_bytes)?;
    dict.set_item("same_filled_pages", stats.same_filled)?;
    dict.set_item("raw_pages", stats.raw)?;
    dict.set_item("spilled_pages", stats.spilled)?;
    dict.set_item("spilled_bytes", stats.spilled_bytes)?;
    let counters = PyDict::new(py);
    counters.set_item("puts", stats.puts)?;
    counters.set_item("gets", stats.gets)?;
    counters.set_item("get_hits", stats.get_hits)?;
    counters.set_item("flushes", stats.flushes)?;
    counters.set_item("flush_found", stats.flush_found)?;
    counters.set_item("failed_puts", stats.failed_puts)?;
    counters.set_item("over_cap", stats.over_cap)?;
    counters.set_item("over_reservation", stats.over_reservation)?;
    counters.set_item("put_to_flush", stats.put_to_flush)?;
    counters.set_item("evicted", stats.evicted)?;
    counters.set_item("crc_errors", stats.crc_errors)?;
    counters.set_item("io_errors", stats.io_errors)?;
    counters.set_item("spill_reads", stats.spill_reads)?;
    dict.set_item("counters", counters)?;
    Ok(dict)
}

fn latency<'py>(py: Python<'py>, latency: &Latency) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("count", latency.count)?;
    dict.set_item("p50_us", latency.p50.as_secs_f64() * 1e6)?;
    dict.set_item("p99_us", latency.p99.as_secs_f64() * 1e6)?;
    dict.set_item("p999_us", latency.p999.as_secs_f64() * 1e6)?;
    Ok(dict)
}
