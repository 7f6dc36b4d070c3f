# SPDX-License-Identifier: GPL-2.0-or-later
"""What a run came to: summary.json, and the JSON object at the end of ``up --json``."""

from __future__ import annotations

import os
import platform
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kztlab.errors import BadInput
from kztlab.report.series import Series, Window, extract

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kztlab.observe import RunDirectory, Sample
    from kztlab.spec import Guest

PAGE = 4096


class Result(BaseModel):
    """A part of the summary."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class WorkloadResult(Result):
    """One workload on one guest."""

    name: str
    ok: bool
    seconds: float = Field(description="Its own time, without the wait for its start.")
    bad_pages: int | None = Field(default=None, description="Pages that verified wrong.")
    pages: int | None = Field(default=None, description="Pages it filled.")
    longest_access_seconds: float | None = Field(
        default=None, description="What the slowest page took to be written or verified."
    )
    operations: int | None = Field(default=None, description="On files.")
    pages_read: int | None = Field(default=None, description="Of files, and verified.")
    pages_written: int | None = Field(default=None, description="Of files.")
    longest_operation_seconds: float | None = Field(
        default=None,
        description="What the slowest operation on a file took, the wait for others included.",
    )
    started: float = Field(description="On the host's monotonic clock, seconds.")
    ended: float = Field(description="On the host's monotonic clock, seconds.")
    failure: str | None = Field(default=None, description="Why it counts as failed.")
    output: str = Field(default="", description="The end of what it printed.")


class Ran(Result):
    """A guest that took part, as whoever ran the lab saw it."""

    guest: str
    client: str | None = Field(default=None, description="Its name in the store, if it has one.")
    workloads: list[WorkloadResult] = []


class RunError(Result):
    """Something that went wrong beyond any one workload."""

    message: str
    guest: str | None = None


class Traffic(Result):
    """Pages one way between a guest and its swap, counted at both ends in the same window."""

    guest: int | None = Field(description="By the guest: pswpout or pswpin.")
    store: int | None = Field(description="By the store: pages put or got.")

    @property
    def agreement(self) -> float | None:
        """The store's count over the guest's: 1 when both agree."""
        if self.store is None or not self.guest:
            return None
        return self.store / self.guest

    @property
    def disagrees(self) -> bool:
        """The two counts differ by more than what the samples' times can explain: 5 %."""
        return self.agreement is not None and abs(self.agreement - 1) > 0.05


class PoolTraffic(Result):
    """What a guest's kernel asked of pools of a kind while workloads ran, in pages."""

    puts: int | None
    gets: int | None
    get_hits: int | None = Field(description="Gets that found their page.")
    flushes: int | None
    failed_puts: int | None = Field(description="Refused puts.")
    evicted: int | None = Field(description="Pages that had to give way to others.")


class Cleancache(Result):
    """What a guest's kernel counted of clean pages of files while workloads ran."""

    puts: int | None = Field(description="Pages that it offered to the store.")
    failed_puts: int | None = Field(
        description="Those that it wanted to, and had no room or request for."
    )
    succ_gets: int | None = Field(description="Pages that came back.")
    failed_gets: int | None = Field(description="Those it asked for in vain.")
    invalidates: int | None = Field(description="Pages, and whole files, that it forgot.")

    @property
    def hit_share(self) -> float | None:
        """Of the pages that it asked for those that came."""
        if self.succ_gets is None or self.failed_gets is None:
            return None
        asked = self.succ_gets + self.failed_gets
        return self.succ_gets / asked if asked else None


class GuestResult(Result):
    """One guest."""

    name: str
    group: str
    frontend: str
    client: str | None
    memory_bytes: int
    swap_bytes: int
    swapped_out_pages: int | None
    swapped_in_pages: int | None
    stored_pages: int | None = Field(description="Most pages held in the store at once.")
    stored_bytes: int | None = Field(description="Most memory they took in the store.")
    ratio: float | None = Field(description="Compression ratio when most pages were stored.")
    refused_pages: int | None = Field(
        description="Pages the store refused while workloads ran: for the two causes that follow, "
        "or because it was full."
    )
    over_cap_pages: int | None = Field(
        default=None, description="Of these: refused for the guest's cap."
    )
    over_reservation_pages: int | None = Field(
        default=None, description="Of these: refused for what other guests have reserved."
    )
    persistent: PoolTraffic | None = Field(
        default=None, description="With frontend `tmem`: swapped pages."
    )
    ephemeral: PoolTraffic | None = Field(
        default=None, description="With frontend `tmem`: clean pages of files."
    )
    cleancache: Cleancache | None = Field(
        default=None, description="The same by the guest's own count."
    )
    disk_read_bytes: int | None = Field(
        default=None, description="Read from disks while workloads ran: the guest's pgpgin."
    )
    load_pages: int = Field(description="Pages its workloads filled.")
    out: Traffic
    into: Traffic
    workloads: list[WorkloadResult]

    @property
    def longest_access_seconds(self) -> float | None:
        """What the slowest page took, whichever workload it was."""
        times = [workload.longest_access_seconds for workload in self.workloads]
        return max((time for time in times if time is not None), default=None)


class HostResult(Result):
    """The machine it ran on."""

    kernel: str
    machine: str
    cpus: int | None
    memory_bytes: int | None


class Summary(Result):
    """The whole run."""

    lab: str
    run: str = Field(description="The run directory.")
    report: str = Field(description="The HTML report.")
    accel: str
    started: datetime
    origin: float = Field(description="The start on the host's monotonic clock, seconds.")
    seconds: float
    versions: dict[str, str] = Field(description="Of the programs that took part.")
    host: HostResult
    guests: list[GuestResult]
    store: dict[str, Any] | None = Field(description="The store's last status.")
    deduplicated_bytes: int | None = Field(
        default=None,
        description="Most memory that pages saved at once which were the same; guests are charged "
        "for it all the same.",
    )
    errors: list[RunError] = []
    warnings: list[str] = []

    @property
    def ok(self) -> bool:
        """Nothing went wrong."""
        workloads = [workload for guest in self.guests for workload in guest.workloads]
        return not self.errors and all(workload.ok for workload in workloads)

    def brief(self) -> dict[str, Any]:
        """The object that ``--json`` prints."""
        traffic = ("swapped_out_pages", "swapped_in_pages", "stored_pages", "stored_bytes")
        files = ("disk_read_bytes", "cleancache")
        result = ("name", "ok", "seconds", "bad_pages", "longest_access_seconds", "operations")
        return self.model_dump(mode="json", include={"lab", "run", "report", "accel"}) | {
            "guests": [
                guest.model_dump(mode="json", include={"name", "frontend", *traffic, *files})
                | {
                    "workloads": [
                        workload.model_dump(mode="json", include=set(result))
                        for workload in guest.workloads
                    ]
                }
                for guest in self.guests
            ]
        }


def summarize(
    run: RunDirectory,
    *,
    accel: str,
    started: datetime,
    origin: float,
    ended: float,
    ran: Sequence[Ran],
    versions: dict[str, str],
    errors: Sequence[RunError] = (),
    warnings: Sequence[str] = (),
) -> Summary:
    """Puts results and samples together and writes summary.json.

    `origin` and `ended` are the run's start and end on the monotonic clock. Traffic is counted in
    full if there are samples after the last workload.
    """
    cluster = run.cluster()
    store = run.samples("store")
    reports = {each.guest: each for each in ran}
    interval = cluster.collect.interval
    guests = [
        _guest(guest, reports.get(guest.name) or Ran(guest=guest.name), run, store, interval)
        for guest in cluster.expanded()
    ]
    summary = Summary(
        lab=cluster.lab,
        run=str(run.path),
        report=str(run.report),
        accel=accel,
        started=started,
        origin=origin,
        seconds=round(ended - origin, 3),
        versions=versions,
        host=_host(run.samples("host")),
        guests=guests,
        store=next((sample["status"] for sample in reversed(store) if "status" in sample), None),
        deduplicated_bytes=_whole(arena_series(store, "deduplicated_bytes", interval).peak()),
        errors=list(errors),
        warnings=[*warnings, *(said for guest in guests for said in _refusals(guest))],
    )
    run.write(run.summary.name, summary.model_dump_json(indent=2) + "\n")
    return summary


def read_summary(run: RunDirectory) -> Summary:
    """The summary of a run that has ended, its paths as they are now; raises `BadInput` if there is
    none."""
    try:
        summary = Summary.model_validate_json(run.summary.read_bytes())
    except FileNotFoundError:
        raise BadInput(f"the run in {run.path} was interrupted: it has no summary") from None
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]["msg"]
        raise BadInput(f"{run.summary} is not a summary of this version: {detail}") from None
    return summary.model_copy(update={"run": str(run.path), "report": str(run.report)})


def arena_series(store: Sequence[Sample], key: str, interval: float) -> Series:
    """A figure of the store's arena over time."""
    return extract(store, lambda sample: sample["status"]["arena"][key], interval)


def client_series(
    store: Sequence[Sample], client: str, key: str, interval: float, pools: str | None = None
) -> Series:
    """A figure of one client over time: ``stored_pages`` and such, or one of its ``counters``; of
    its ``persistent`` or ``ephemeral`` pools alone if `pools` says so."""

    def value(sample: Sample) -> float:
        clients = sample["status"]["clients"]
        found = next((each for each in clients if each["name"] == client), None)
        if found is None:  # not added yet, or removed already
            return 0.0
        figures = found if pools is None else found[pools]
        return float(figures[key] if key in figures else figures["counters"][key])

    return extract(store, value, interval)


def cleancache_series(store: Sequence[Sample], client: str, key: str, interval: float) -> Series:
    """A counter of a guest's kernel, as its agent has told the store."""

    def value(sample: Sample) -> float:
        clients = sample["status"]["clients"]
        (found,) = (each for each in clients if each["name"] == client)
        return float(found["guest"]["stats"]["cleancache"][key])

    return extract(store, value, interval)


def vmstat_series(samples: Sequence[Sample], key: str, interval: float) -> Series:
    """A counter of a guest's /proc/vmstat over time."""
    return extract(samples, lambda sample: float(sample["vmstat"][key]), interval)


def swap_series(samples: Sequence[Sample], key: str, interval: float) -> Series:
    """A guest's pswpin or pswpout over time, with what its zswap took, which counts by itself."""

    def value(sample: Sample) -> float:
        return float(sample["vmstat"][key] + sample["vmstat"].get(f"z{key[1:]}", 0))

    return extract(samples, value, interval)


def _guest(
    guest: Guest, ran: Ran, run: RunDirectory, store: Sequence[Sample], interval: float
) -> GuestResult:
    samples = run.samples(f"guest-{guest.name}")
    windows: list[Window] = [(each.started, each.ended) for each in ran.workloads]
    if not windows and samples:  # a guest without workloads: all of the time it was watched
        windows = [(samples[0]["mono"], samples[-1]["mono"])]
    # A tmem guest's device is empty: what it swaps is in persistent pools, and no more than that.
    swapped_to = "persistent" if guest.spec.frontend == "tmem" else None
    traffic = {}
    for ours, theirs in (("pswpout", "puts"), ("pswpin", "gets")):
        swapped = swap_series(samples, ours, interval) if guest.spec.swap_size else Series([], [])
        counted = (
            client_series(store, ran.client, theirs, interval, swapped_to)
            if ran.client
            else Series([], [])
        )
        traffic[ours] = Traffic(
            guest=_whole(swapped.increase(windows)), store=_whole(counted.increase(windows))
        )

    def counted_pages(key: str, pools: str | None) -> int | None:
        if ran.client is None:
            return None
        return _whole(client_series(store, ran.client, key, interval, pools).increase(windows))

    def pool_traffic(pools: str) -> PoolTraffic | None:
        if guest.spec.frontend != "tmem":
            return None
        return PoolTraffic(**{key: counted_pages(key, pools) for key in PoolTraffic.model_fields})

    def cleancache() -> Cleancache | None:
        if guest.spec.frontend != "tmem" or ran.client is None:
            return None
        counted = {
            key: _whole(cleancache_series(store, ran.client, key, interval).increase(windows))
            for key in Cleancache.model_fields
        }
        return Cleancache(**counted)

    read_kib = vmstat_series(samples, "pgpgin", interval).increase(windows)
    pages, size, ratio = _stored(store, ran.client, interval)
    return GuestResult(
        name=guest.name,
        group=guest.group,
        frontend=guest.spec.frontend,
        client=ran.client,
        memory_bytes=guest.spec.memory,
        swap_bytes=guest.spec.swap_size,
        swapped_out_pages=traffic["pswpout"].guest,
        swapped_in_pages=traffic["pswpin"].guest,
        stored_pages=pages,
        stored_bytes=size,
        ratio=ratio,
        refused_pages=counted_pages("failed_puts", swapped_to),
        over_cap_pages=counted_pages("over_cap", swapped_to),
        over_reservation_pages=counted_pages("over_reservation", swapped_to),
        persistent=pool_traffic("persistent"),
        ephemeral=pool_traffic("ephemeral"),
        cleancache=cleancache(),
        disk_read_bytes=None if read_kib is None else int(read_kib) * 1024,
        load_pages=sum(workload.pages or 0 for workload in ran.workloads),
        out=traffic["pswpout"],
        into=traffic["pswpin"],
        workloads=ran.workloads,
    )


def _stored(
    store: Sequence[Sample], client: str | None, interval: float
) -> tuple[int | None, int | None, float | None]:
    """The most pages and bytes a client had in the store, and the ratio at the most pages."""
    if client is None:
        return None, None, None
    pages = client_series(store, client, "stored_pages", interval)
    size = client_series(store, client, "stored_bytes", interval)
    disk = client_series(store, client, "spilled_bytes", interval)
    most = max(
        (
            (held, held * PAGE / (taken + spilled))
            for held, taken, spilled in zip(pages.values, size.values, disk.values, strict=True)
            if held is not None and taken and spilled is not None
        ),
        default=None,
    )
    ratio = None if most is None else round(most[1], 3)
    return _whole(pages.peak()), _whole(size.peak()), ratio


def _refusals(guest: GuestResult) -> Iterator[str]:
    """What to say of a guest whose pages did not all find room; it kept those in its memory."""
    capped, reserved = guest.over_cap_pages or 0, guest.over_reservation_pages or 0
    if full := (guest.refused_pages or 0) - capped - reserved:
        yield (
            f"the store was full and refused {full:,} pages of {guest.name}: give it more memory, "
            "or the guests less to swap"
        )
    if capped:
        yield (
            f"{guest.name} was at its cap and {capped:,} of its pages were refused: raise the cap, "
            "or give it less to swap"
        )
    if reserved:
        yield (
            f"other guests have reserved what {reserved:,} pages of {guest.name} would have taken: "
            "give the store more memory, or reserve less"
        )


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _host(samples: Sequence[Sample]) -> HostResult:
    facts = platform.uname()
    memory = next((sample["memory"]["total"] for sample in samples if "memory" in sample), None)
    return HostResult(
        kernel=f"{facts.system} {facts.release}",
        machine=facts.machine,
        cpus=os.cpu_count(),
        memory_bytes=memory,
    )
