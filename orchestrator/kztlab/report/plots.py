# SPDX-License-Identifier: GPL-2.0-or-later
"""The charts of a report, out of a run's samples."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kztlab.report.chart import INK, PALETTE, QUIET, Chart
from kztlab.report.series import Gap, Series, Window, extract, gaps, merged
from kztlab.report.summary import PAGE, arena_series, client_series, swap_series

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from kztlab.observe import RunDirectory, Sample
    from kztlab.report.summary import GuestResult, Summary

MIB = 1 << 20


class Plots:
    """Draws one run. Times are seconds since its start."""

    def __init__(self, run: RunDirectory, summary: Summary) -> None:
        self._summary = summary
        self._interval = run.cluster().collect.interval
        self._host = run.samples("host")
        self._store = run.samples("store")
        self._guests = {guest.name: run.samples(f"guest-{guest.name}") for guest in summary.guests}
        self._colors = {
            guest.name: PALETTE[index % len(PALETTE)] for index, guest in enumerate(summary.guests)
        }

    def color(self, guest: GuestResult) -> str:
        """The guest's colour, the same in all charts."""
        return self._colors[guest.name]

    def gaps(self) -> list[tuple[str, Gap]]:
        """All gaps of the run by source, relative to its start."""
        sources = {"host": self._host, "store": self._store} | self._guests
        origin = self._summary.origin
        return [
            (source, Gap(gap.start - origin, gap.end - origin, gap.reason))
            for source, samples in sources.items()
            for gap in gaps(samples, self._interval)
        ]

    def host(self) -> list[Chart]:
        """Charts of all guests together."""
        charts = [self._memory_taken(), self._all_traffic(), self._machine()]
        if self._store:
            charts.insert(0, self._store_by_client())
        return charts

    def guest(self, guest: GuestResult) -> list[Chart]:
        """Charts of one guest."""
        charts = [self._memory(guest)]
        if guest.swap_bytes:
            charts.append(self._traffic(guest))
            charts += [self._stored(guest), self._ratio(guest)] if guest.client else []
            charts += [] if guest.client else [self._swap_in_use(guest)]
        if guest.ephemeral is not None:
            charts.append(self._cache(guest))
        return [*charts, self._pressure(guest), self._processor(guest)]

    # --- all guests

    def _store_by_client(self) -> Chart:
        chart = self._chart(
            "Store by guest",
            "Memory that each guest's pages take in the store, compressed, stacked. The dotted line"
            " is the store's limit, the dashed one what its file occupies, index included.",
            "MiB",
        )
        chart.stack(
            [
                (guest.name, self._client(guest.client, "stored_bytes", MIB), self.color(guest))
                for guest in self._summary.guests
                if guest.client is not None
            ]
        )
        allocated = self._arena("allocated_bytes")
        chart.line("occupied", allocated, INK, dash="dash")
        limit = self._arena("limit_bytes").peak()
        if limit is not None:
            chart.level("limit", limit, allocated)
        self._mark_gaps(chart, self._store)
        return chart

    def _memory_taken(self) -> Chart:
        chart = self._chart(
            "Host memory taken",
            "Memory of each guest's QEMU, stacked: the guest's RAM as far as it has been touched,"
            " and under emulation the code translated so far. The store's memory is not in it.",
            "MiB",
        )
        chart.stack(
            [
                (guest.name, self._process(guest, "resident", 1 / MIB), self.color(guest))
                for guest in self._summary.guests
            ]
        )
        self._mark_gaps(chart, self._host)
        return chart

    def _all_traffic(self) -> Chart:
        chart = self._chart(
            "Pages swapped out, by guest",
            "Pages that each guest writes to its swap device per second.",
            "pages/s",
        )
        for guest in self._summary.guests:
            if guest.swap_bytes:
                out = swap_series(self._guests[guest.name], "pswpout", self._interval).rate()
                chart.line(guest.name, out, self.color(guest), hover="%{y:,.0f}")
        return chart

    def _machine(self) -> Chart:
        chart = self._chart(
            "The host as a whole",
            "CPU time in use on all CPUs, and memory in use, by everything that runs on the host.",
            "% of the host",
        )
        busy = extract(self._host, lambda sample: sample["cpu"] * 100, self._interval)
        used = extract(
            self._host,
            lambda sample: 100 * (1 - sample["memory"]["available"] / sample["memory"]["total"]),
            self._interval,
        )
        chart.line("CPU", busy, INK)
        chart.line("memory", used, QUIET, dash="dash")
        self._mark_gaps(chart, self._host)
        return chart

    # --- one guest

    def _memory(self, guest: GuestResult) -> Chart:
        chart = self._chart(
            "Memory",
            "Used is what is neither free nor quickly reclaimable (MemTotal − MemAvailable)."
            " The dashed line is what the workloads' control group holds in RAM; the dotted one all"
            " the RAM the guest's kernel has.",
            "MiB",
            guest,
        )
        used = self._meminfo(guest, "MemTotal", "MemAvailable")
        chart.line("used", used, self.color(guest), filled=True)
        chart.line("available", self._meminfo(guest, "MemAvailable"), QUIET)
        held = self._value(guest, lambda sample: sample["cgroup"]["current"] / MIB)
        if held.points():
            chart.line("workloads", held, INK, dash="dash")
        total = self._meminfo(guest, "MemTotal").peak()
        if total is not None:
            chart.level("RAM", total, used)
        self._mark_gaps(chart, self._guests[guest.name])
        return chart

    def _traffic(self, guest: GuestResult) -> Chart:
        chart = self._chart(
            "Swap traffic",
            "Pages written to (out) and read from (in) the swap device per second, as the guest's"
            " kernel counts them: pswpout and pswpin, with zswpout and zswpin.",
            "pages/s",
            guest,
        )
        for name, key in (("out", "pswpout"), ("in", "pswpin")):
            rate = swap_series(self._guests[guest.name], key, self._interval).rate()
            color = self.color(guest) if name == "out" else INK
            chart.line(name, rate, color, filled=name == "out", hover="%{y:,.0f}")
        self._mark_gaps(chart, self._guests[guest.name])
        return chart

    def _cache(self, guest: GuestResult) -> Chart:
        chart = self._chart(
            "Cached pages of files",
            "Clean pages that the guest's kernel puts into ephemeral pools, pages that it asks for"
            " there, and those it finds (hits), per second.",
            "pages/s",
            guest,
        )
        for name, key, color in (
            ("puts", "puts", self.color(guest)),
            ("gets", "gets", QUIET),
            ("hits", "get_hits", INK),
        ):
            pages = client_series(self._store, guest.client or "", key, self._interval, "ephemeral")
            chart.line(name, pages.rate(), color, filled=name == "puts", hover="%{y:,.0f}")
        self._mark_gaps(chart, self._store)
        return chart

    def _stored(self, guest: GuestResult) -> Chart:
        chart = self._chart(
            "Pages stored",
            "What the guest has in the store: the size of its pages, and the memory they take"
            " compressed. The distance between the two is what the host saves. The dashed line is"
            " what is on the store's disk.",
            "MiB",
            guest,
        )
        chart.line("pages", self._client(guest.client, "stored_pages", MIB // PAGE), INK)
        taken = self._client(guest.client, "stored_bytes", MIB)
        chart.line("compressed", taken, self.color(guest), filled=True)
        disk = self._client(guest.client, "spilled_bytes", MIB)
        if disk.peak():
            chart.line("on the disk", disk, INK, dash="dash")
        self._mark_gaps(chart, self._store)
        return chart

    def _ratio(self, guest: GuestResult) -> Chart:
        chart = self._chart(
            "Compression ratio",
            "Size of the stored pages over the memory and disk they take. Same-filled pages, such"
            " as all zeroes, take next to none; the dashed line leaves them out. Drawn from 1 MiB"
            " on.",
            "ratio",
            guest,
        )
        pages = self._client(guest.client, "stored_pages")
        same = self._client(guest.client, "same_filled_pages")
        size = Series(
            pages.times,
            [
                None if memory is None or disk is None else memory + disk
                for memory, disk in zip(
                    self._client(guest.client, "stored_bytes").values,
                    self._client(guest.client, "spilled_bytes").values,
                    strict=True,
                )
            ],
        )
        chart.line("all pages", _ratio(pages, size), self.color(guest), hover="%{y:.2f}")
        others = Series(
            pages.times, [_minus(*pair) for pair in zip(pages.values, same.values, strict=True)]
        )
        chart.line(
            "without same-filled", _ratio(others, size), QUIET, dash="dash", hover="%{y:.2f}"
        )
        self._mark_gaps(chart, self._store)
        return chart

    def _swap_in_use(self, guest: GuestResult) -> Chart:
        chart = self._chart(
            "Swap in use",
            "Part of the swap device that holds pages (SwapTotal − SwapFree).",
            "MiB",
            guest,
        )
        chart.line(
            "in use", self._meminfo(guest, "SwapTotal", "SwapFree"), self.color(guest), filled=True
        )
        self._mark_gaps(chart, self._guests[guest.name])
        return chart

    def _pressure(self, guest: GuestResult) -> Chart:
        chart = self._chart(
            "Memory pressure",
            "Time in which some, or all, of the guest's tasks that had something to do waited for"
            " memory instead: reclaim, or a page on its way back from swap.",
            "% of the time",
            guest,
        )
        some = self._value(guest, lambda sample: sample["pressure"]["memory"]["some"])
        full = self._value(guest, lambda sample: sample["pressure"]["memory"]["full"])
        chart.line("some", _scaled(some.rate(), 100), self.color(guest), filled=True)
        chart.line("all", _scaled(full.rate(), 100), INK)
        self._mark_gaps(chart, self._guests[guest.name])
        return chart

    def _processor(self, guest: GuestResult) -> Chart:
        chart = self._chart(
            "Host CPU",
            "CPUs of the host that the guest's QEMU keeps busy, its disks included.",
            "CPUs",
            guest,
        )
        busy = self._process(guest, "cpu_seconds", 1).rate()
        chart.line("busy", busy, self.color(guest), filled=True, hover="%{y:.2f}")
        self._mark_gaps(chart, self._host)
        return chart

    # --- series

    def _chart(
        self, title: str, explanation: str, unit: str, guest: GuestResult | None = None
    ) -> Chart:
        """A chart with the workloads' windows shaded: of one guest, or of all."""
        chart = Chart(title, explanation, unit, self._summary.origin, self._summary.seconds)
        guests = self._summary.guests if guest is None else [guest]
        workloads = [
            ((each.started, each.ended), each.name) for one in guests for each in one.workloads
        ]
        chart.shade(_labelled(workloads), INK if guest is None else self.color(guest))
        return chart

    def _mark_gaps(self, chart: Chart, samples: Sequence[Sample]) -> None:
        chart.mark_gaps([(gap.start, gap.end) for gap in gaps(samples, self._interval)])

    def _value(self, guest: GuestResult, value: Callable[[Sample], float]) -> Series:
        return extract(self._guests[guest.name], value, self._interval)

    def _meminfo(self, guest: GuestResult, key: str, less: str | None = None) -> Series:
        def value(sample: Sample) -> float:
            fields = sample["meminfo"]
            return float(fields[key] - (fields[less] if less else 0)) / MIB

        return self._value(guest, value)

    def _process(self, guest: GuestResult, key: str, factor: float) -> Series:
        def value(sample: Sample) -> float:
            usage = sample["guests"].get(guest.name)  # not there before its start and after its end
            return float(usage[key]) * factor if usage else 0.0

        return extract(self._host, value, self._interval)

    def _client(self, client: str | None, key: str, unit: int = 1) -> Series:
        series = client_series(self._store, client or "", key, self._interval)
        return _scaled(series, 1 / unit)

    def _arena(self, key: str) -> Series:
        return _scaled(arena_series(self._store, key, self._interval), 1 / MIB)


def _ratio(pages: Series, size: Series) -> Series:
    """Ratios of pages to bytes; none for so few pages that the ratio says nothing."""
    values = [
        held * PAGE / taken if held and taken and held * PAGE >= MIB else None
        for held, taken in zip(pages.values, size.values, strict=True)
    ]
    return Series(pages.times, values)


def _scaled(series: Series, factor: float) -> Series:
    values = [None if value is None else value * factor for value in series.values]
    return Series(series.times, values)


def _minus(whole: float | None, part: float | None) -> float | None:
    return None if whole is None or part is None else whole - part


def _labelled(workloads: Iterable[tuple[Window, str]]) -> list[tuple[Window, str]]:
    """Disjoint windows, each with the names of what ran in it."""
    known = list(workloads)
    labelled = []
    for start, end in merged(window for window, _ in known):
        names = dict.fromkeys(name for (began, _), name in known if start <= began <= end)
        labelled.append(((start, end), ", ".join(names)))
    return labelled
