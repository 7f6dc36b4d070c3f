# SPDX-License-Identifier: GPL-2.0-or-later
"""What the parts of a spec say about each other, beyond what each must be for itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kztlab.spec.problem import Finding, suggest
from kztlab.spec.units import MIB, format_duration, format_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from kztlab.spec.model import GuestSpec, WorkloadSpec

MAX_GUESTS = 64
MAX_NAME = 31

WORKLOAD_HEADROOM = 32 * MIB
"""RAM that is never a workload's: the kernel and the guest's own services live there."""


class InconsistentError(ValueError):
    """A spec whose parts contradict each other."""

    def __init__(self, findings: Sequence[Finding]) -> None:
        self.findings = findings
        super().__init__("; ".join(found.message for found in findings))


def expand(group: str, count: int) -> list[str]:
    """The guests' names of a group."""
    return [group] if count == 1 else [f"{group}-{number}" for number in range(1, count + 1)]


def contradictions(
    guests: Mapping[str, GuestSpec | None], workloads: Mapping[int, WorkloadSpec]
) -> Iterator[Finding]:
    """All contradictions. A guest of `None` exists but is not known any closer, because its own
    keys are wrong: nothing is said that depends on it."""
    known = {name: spec for name, spec in guests.items() if spec is not None}
    yield from _names(known)
    for name, spec in known.items():
        limit = spec.workload_memory_max
        if limit is not None and limit > spec.memory:
            message = f"{format_size(limit)} is more than the guest's {format_size(spec.memory)}"
            path = ("guests", name, "workload_memory_max")
            yield Finding(path, message, "memory.max must be below the guest's memory")
        for key in ("cleancache", "tmem"):
            if getattr(spec, key) is not None and spec.frontend != "tmem":
                message = f"frontend {spec.frontend!r} has no {key}"
                hint = "use frontend tmem, or leave it out"
                yield Finding(("guests", name, key), message, hint)
        if spec.cap is not None and (spec.reservation or 0) > spec.cap:
            message = f"{format_size(spec.reservation or 0)} is more than the guest's cap"
            hint = f"at most its cap of {format_size(spec.cap)}"
            yield Finding(("guests", name, "reservation"), message, hint)
    seen: dict[str, int] = {}
    for index, workload in workloads.items():
        first = seen.setdefault(workload.name, index)
        if first != index:
            message = f"{workload.name!r} is already the name of workloads[{first}]"
            yield Finding(("workloads", index, "name"), message, "choose another name")
        if workload.files is not None and workload.files.duration >= workload.timeout:
            timeout = format_duration(workload.timeout)
            message = f"{format_duration(workload.files.duration)} and more do not fit in {timeout}"
            hint = f"raise workloads[{index}].timeout, which is for creating the files, too"
            yield Finding(("workloads", index, "files", "duration"), message, hint)
        yield from _targets(index, workload, guests)


def _names(guests: Mapping[str, GuestSpec]) -> Iterator[Finding]:
    owners: dict[str, str] = {}
    for group, spec in guests.items():
        for name in expand(group, spec.count):
            if len(name) > MAX_NAME:
                message = f"{name!r} is longer than {MAX_NAME} characters"
                yield Finding(("guests", group), message, "shorten the name", at_key=True)
                break
            owner = owners.setdefault(name, group)
            if owner != group:
                message = f"{name!r} is also a guest of {owner!r}"
                yield Finding(("guests", group), message, "rename one of the two", at_key=True)
                break
    total = sum(spec.count for spec in guests.values())
    if total > MAX_GUESTS:
        message = f"{total} guests are too many"
        yield Finding(("guests",), message, f"at most {MAX_GUESTS} in all", at_key=True)


def _targets(
    index: int, workload: WorkloadSpec, guests: Mapping[str, GuestSpec | None]
) -> Iterator[Finding]:
    groups = {
        name: group
        for group, spec in guests.items()
        for name in [group, *(expand(group, spec.count) if spec else ())]
    }
    unsure = tuple(f"{group}-" for group, spec in guests.items() if spec is None)
    reported = set()
    for position, name in enumerate(workload.on):
        if name not in groups:
            if not name.startswith(unsure):
                path = ("workloads", index, "on", position)
                yield Finding(path, f"unknown guest {name!r}", suggest(name, groups))
            continue
        group = groups[name]
        spec = guests[group]
        if spec is not None and group not in reported:
            reported.add(group)
            yield from _fits(index, workload, group, spec)


def _fits(index: int, workload: WorkloadSpec, group: str, spec: GuestSpec) -> Iterator[Finding]:
    """A workload must have its place in RAM and swap together, or it is killed for sure."""
    if workload.anon is None:
        return
    room = spec.memory - WORKLOAD_HEADROOM
    if spec.workload_memory_max is not None:
        room = min(room, spec.workload_memory_max)
    room += spec.swap_size
    if workload.anon.size > room:
        size = format_size(workload.anon.size)
        message = f"{size} do not fit guest {group!r}: it has {format_size(room)} for workloads"
        hint = f"RAM and swap: reduce the size or enlarge guests.{group}.swap"
        if spec.frontend == "none":
            hint = f"reduce the size or give guests.{group} a frontend that swaps"
        yield Finding(("workloads", index, "anon", "size"), message, hint)
