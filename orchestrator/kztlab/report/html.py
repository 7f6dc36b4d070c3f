# SPDX-License-Identifier: GPL-2.0-or-later
"""The report: one HTML file that needs nothing else, not even a network."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from plotly.offline import get_plotlyjs  # type: ignore[import-untyped]

from kztlab.report.plots import Plots
from kztlab.report.summary import PAGE, read_summary
from kztlab.report.table import COLUMNS, NONE, count, rows, share
from kztlab.spec import format_duration, format_size

if TYPE_CHECKING:
    from pathlib import Path

    from kztlab.observe import RunDirectory
    from kztlab.report.chart import Chart
    from kztlab.report.summary import GuestResult, Summary


def write_report(run: RunDirectory) -> Path:
    """Writes report.html from summary.json and the samples."""
    summary = read_summary(run)
    environment = Environment(
        loader=PackageLoader("kztlab.report"),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"count": count, "size": _size, "percent": _percent, "micros": _micros}
    environment.filters["figure"] = _figure
    page = environment.get_template("report.html").render(
        **_context(run, summary),
        plotly=Markup(get_plotlyjs()),  # noqa: S704 -- the library's own code
    )
    return run.write(run.report.name, page)


def _context(run: RunDirectory, summary: Summary) -> dict[str, Any]:
    plots = Plots(run, summary)
    cluster = run.cluster()
    return {
        "summary": summary,
        "columns": COLUMNS,
        "rows": [
            (plots.color(guest), all(each.ok for each in guest.workloads), row)
            for guest, row in zip(summary.guests, rows(summary), strict=True)
        ],
        "tiles": _tiles(summary),
        "facts": _facts(summary, cluster.collect.interval),
        "failed": [
            (guest, workload)
            for guest in summary.guests
            for workload in guest.workloads
            if not workload.ok
        ],
        "host": plots.host(),
        "sections": [(guest, plots.color(guest), plots.guest(guest)) for guest in summary.guests],
        "cached": [guest for guest in summary.guests if guest.cleancache is not None],
        "clients": _clients(summary),
        "gaps": plots.gaps(),
        "duration": _duration(summary.seconds),
        "spec": run.spec.read_text(encoding="utf-8"),
    }


def _tiles(summary: Summary) -> list[tuple[str, str, str]]:
    """The figures at the top: heading, value, remark."""
    workloads = [workload for guest in summary.guests for workload in guest.workloads]
    passed = sum(workload.ok for workload in workloads)
    checked = sum((each.pages or 0) + (each.pages_read or 0) for each in workloads)
    bad = sum(workload.bad_pages or 0 for workload in workloads)
    load = sum(guest.load_pages for guest in summary.guests)
    out = sum(guest.swapped_out_pages or 0 for guest in summary.guests)
    into = sum(guest.swapped_in_pages or 0 for guest in summary.guests)
    times = (guest.longest_access_seconds for guest in summary.guests)
    slowest = max((time for time in times if time is not None), default=None)
    tiles = [
        ("workloads passed", f"{passed} of {len(workloads)}", "counted on each guest"),
        ("bad pages", count(bad), f"of {count(checked)} verified"),
        ("slowest page", NONE if slowest is None else f"{slowest:.2f} s", "written or verified"),
        ("pages out", count(out), f"{share(out, load)} of the load"),
        ("pages in", count(into), f"{share(into, load)} of the load"),
    ]
    pages = sum(guest.stored_pages or 0 for guest in summary.guests)
    size = sum(guest.stored_bytes or 0 for guest in summary.guests)
    if pages and size:
        ratio = pages * PAGE / size
        tiles += [
            ("stored", _size(pages * PAGE), f"in {_size(size)}: each guest's most, summed"),
            ("compression", f"{ratio:.2f}", f"saves {max(0, 1 - 1 / ratio):.0%}"),
        ]
    return tiles


def _facts(summary: Summary, interval: float) -> list[tuple[str, str]]:
    host = summary.host
    facts = [
        ("accelerator", summary.accel),
        ("host", f"{host.kernel}, {host.machine}, {host.cpus} CPUs, {_size(host.memory_bytes)}"),
    ]
    versions = dict(summary.versions)
    if summary.store is not None:
        limit = _size(summary.store["arena"]["limit_bytes"])
        spill = summary.store.get("spill")
        disk = f" and {_size(spill['limit_bytes'])} of disk" if spill else ""
        packing = f"codec {summary.store['codec']}, {summary.store['persistent']}"
        facts.append(("store", f"{limit}{disk}, {packing}"))
        if summary.deduplicated_bytes:
            saved = f"saved up to {_size(summary.deduplicated_bytes)}"
            facts.append(("deduplication", saved))
        versions["kztmemd"] = str(summary.store["version"])
    facts += [
        ("sampled every", format_duration(interval)),
        ("versions", ", ".join(f"{name} {text}" for name, text in versions.items())),
        ("run directory", summary.run),
    ]
    return facts


def _clients(summary: Summary) -> list[tuple[GuestResult, dict[str, Any]]]:
    """What the store says of each guest at the end."""
    if summary.store is None:
        return []
    clients = {client["name"]: client for client in summary.store["clients"]}
    return [
        (guest, clients[guest.client])
        for guest in summary.guests
        if guest.client is not None and guest.client in clients
    ]


def _figure(chart: Chart) -> Markup:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(chart.figure(), separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))  # noqa: S704


def _size(size: int | None) -> str:
    """``1,234.5 MiB``, or GiB from 10 GiB on; exact where that is short."""
    if size is None:
        return NONE
    exact = format_size(size)
    if size and len(exact) <= 7 and not exact.endswith("KiB"):
        return exact.replace("MiB", " MiB").replace("GiB", " GiB")
    return f"{size / (1 << 30):,.1f} GiB" if size >= 10 << 30 else f"{size / (1 << 20):,.1f} MiB"


def _percent(value: float | None) -> str:
    return NONE if value is None else f"{value:.1%}"


def _micros(value: float | None) -> str:
    """A latency; `None` where there was no such operation."""
    return NONE if value is None else f"{value:,.1f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes else f"{seconds:.1f} s"
