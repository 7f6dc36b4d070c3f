# SPDX-License-Identifier: GPL-2.0-or-later
"""The daemon's figures for Prometheus, in tmem's words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from kztmem.schemas import (
    Arena,
    Client,
    Counters,
    Evictions,
    PoolFigures,
    PortCounters,
    Recovery,
    Spill,
    SpillCounters,
    Zbud,
    ZbudCounters,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic import BaseModel

    from kztmem.service import Service

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST

_QUANTILES: Final = {"p50_us": "0.5", "p99_us": "0.99", "p999_us": "0.999"}


def render(service: Service) -> bytes:
    """All metrics as text, taken now."""
    registry = CollectorRegistry()
    registry.register(_Figures(service))
    return generate_latest(registry)


class _Figures(Collector):
    """Takes the figures from the core; names and help texts are those of the API's models."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        status = self._service.status()
        keys = ("version", "codec", "persistent", "ephemeral", "dedup")
        info = {key: status[key] for key in keys}
        yield InfoMetricFamily("kztmem", "The daemon.", info)
        yield GaugeMetricFamily(
            "kztmem_uptime_seconds", "Time since it started.", status["uptime_seconds"]
        )
        for part, model in (("arena", Arena), ("recovery", Recovery)):
            for name, text in _figures(model):
                yield GaugeMetricFamily(f"kztmem_{part}_{name}", text, status[part][name])
        for name, text in _figures(Zbud):
            yield GaugeMetricFamily(f"kztmem_{name}", text, status["zbud"][name])
        for name, text in _figures(ZbudCounters):
            yield CounterMetricFamily(f"kztmem_{name}", text, status["zbud"][name])
        for name, text in _figures(Evictions):
            yield CounterMetricFamily(f"kztmem_{name}", text, status["evictions"][name])
        if status["spill"]:
            yield from _spill(status["spill"])
        yield from _clients(status["clients"])


def _figures(model: type[BaseModel]) -> Iterator[tuple[str, str]]:
    """Name and help text of each plain figure of a model."""
    for name, field in model.model_fields.items():
        if field.annotation in {int, float, int | None}:
            yield name, field.description or ""


def _spill(spill: dict[str, Any]) -> Iterator[Metric]:
    for name, text in _figures(Spill):
        yield GaugeMetricFamily(f"kztmem_spill_{name}", text, spill[name])
    for name, text in _figures(SpillCounters):
        yield CounterMetricFamily(f"kztmem_spill_{name}", text, spill["counters"][name])


def _clients(clients: list[dict[str, Any]]) -> Iterator[Metric]:
    yield from _gauges("kztmem", Client, clients)
    yield from _counters("kztmem", Counters, "counters", clients)
    for kind in ("persistent", "ephemeral"):
        pools = [{"name": client["name"], **client[kind]} for client in clients]
        yield from _gauges(f"kztmem_{kind}", PoolFigures, pools)
        yield from _counters(f"kztmem_{kind}", Counters, "counters", pools)
    for port in ("relay", "tmem"):
        yield from _counters(f"kztmem_{port}", PortCounters, f"{port}_counters", clients)
    latency = Metric(
        "kztmem_latency_seconds", "Time from a request's arrival to its answer.", "summary"
    )
    for client in clients:
        for operation, figures in client["latency"].items():
            labels = {"client": client["name"], "op": operation}
            for key, quantile in _QUANTILES.items():
                seconds = figures[key] / 1e6
                latency.add_sample(latency.name, {**labels, "quantile": quantile}, seconds)
            latency.add_sample(f"{latency.name}_count", labels, figures["count"])
    yield latency


def _gauges(prefix: str, model: type[BaseModel], clients: list[dict[str, Any]]) -> Iterator[Metric]:
    """A gauge for each figure of the model that clients have."""
    for name, text in _figures(model):
        gauge = GaugeMetricFamily(f"{prefix}_{name}", text, labels=["client"])
        for client in clients:
            if client[name] is not None:
                gauge.add_metric([client["name"]], client[name])
        yield gauge


def _counters(
    prefix: str, model: type[BaseModel], key: str, clients: list[dict[str, Any]]
) -> Iterator[Metric]:
    """A counter for each figure of the model that clients have under a key."""
    for name, text in _figures(model):
        counter = CounterMetricFamily(f"{prefix}_{name}", text, labels=["client"])
        for client in clients:
            counter.add_metric([client["name"]], client[key][name])
        yield counter
