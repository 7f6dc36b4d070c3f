# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a host can carry a lab."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kztlab.spec.problem import Finding
from kztlab.spec.units import KIB, MIB, format_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kztlab.spec.model import Cluster
    from kztlab.spec.problem import Problem

QEMU_OVERHEAD = 256 * MIB
"""What a guest costs the host beyond its RAM. Under emulation most of it is translated code: some
220 MiB after a minute's load in a guest of 160 MiB. With KVM it is far less."""


@dataclass(frozen=True)
class HostFacts:
    """What a host has to give, in bytes."""

    memory_available: int
    shm_free: int

    @classmethod
    def read(cls) -> HostFacts:
        """The facts of this machine, now."""
        meminfo = Path("/proc/meminfo").read_text(encoding="ascii")
        fields = dict(line.split(":", 1) for line in meminfo.splitlines())
        shm = os.statvfs("/dev/shm")  # noqa: S108 -- asked for its size, not written to
        return cls(
            memory_available=int(fields["MemAvailable"].split()[0]) * KIB,
            shm_free=shm.f_bavail * shm.f_frsize,
        )


def check(cluster: Cluster, host: HostFacts) -> list[Problem]:
    """Why this host cannot carry this lab: an empty list if it can."""
    findings = [
        *_store_fits(cluster, host),
        *_guests_fit(cluster, host),
        *_swap_fits(cluster),
        *_reservations_fit(cluster),
    ]
    return [cluster.problem(found) for found in findings]


def _own_store(cluster: Cluster) -> int:
    """Memory of the store that comes with the lab; a store it joins is there already."""
    swaps = any(guest.spec.uses_store for guest in cluster.expanded())
    return cluster.store.memory if swaps and cluster.store.socket is None else 0


def _store_fits(cluster: Cluster, host: HostFacts) -> Iterator[Finding]:
    store = _own_store(cluster)
    if store > host.shm_free:
        message = f"{format_size(store)} do not fit /dev/shm, which has {_mib(host.shm_free)} free"
        yield Finding(("store", "memory"), message, "reduce it or enlarge /dev/shm")


def _guests_fit(cluster: Cluster, host: HostFacts) -> Iterator[Finding]:
    """Reports the group of guests with which the host's memory is exceeded, and no later one."""
    store = _own_store(cluster)
    needed = store
    for name, spec in cluster.guests.items():
        needed += spec.count * (spec.memory + QEMU_OVERHEAD)
        if needed > host.memory_available:
            message = (
                f"the guests up to here need {_mib(needed)} of host memory"
                f"{f' (store: {_mib(store)})' if store else ''},"
                f" {_mib(host.memory_available)} are available"
            )
            yield Finding(("guests", name, "memory"), message, "reduce memory or count")
            return


def _swap_fits(cluster: Cluster) -> Iterator[Finding]:
    """A store that is full refuses pages, and a guest cannot do without a page it swapped out."""
    store = cluster.store
    if store.socket is not None or store.overcommit:
        return
    swap = sum(guest.spec.swap for guest in cluster.expanded() if guest.spec.relies_on_store)
    # That pages shrink on the disk as well is a reserve.
    room = store.memory * store.ratio + (store.spill or 0)
    if swap > room:
        enough = math.ceil((swap - (store.spill or 0)) / store.ratio / MIB) * MIB
        message = (
            f"the guests' swap devices hold {_mib(swap)}, the store about {_mib(int(room))}"
            f" ({format_size(store.memory)} at ratio {store.ratio:g}"
            f"{f' and {format_size(store.spill)} of disk' if store.spill else ''})"
        )
        spill = "" if store.spill else "store.spill, or "
        hint = f"{format_size(enough)} would do, or {spill}smaller swap, or store.overcommit: true"
        yield Finding(("store", "memory"), message, hint)


def _reservations_fit(cluster: Cluster) -> Iterator[Finding]:
    """Reports the group of guests with which more is reserved than can be, and no later one."""
    if cluster.store.socket is not None:
        return
    most = reservable(cluster.store.memory)
    reserved = 0
    for name, spec in cluster.guests.items():
        if spec.uses_store:
            reserved += spec.count * (spec.reservation or 0)
        if reserved > most:
            message = (
                f"the guests up to here reserve {_mib(reserved)}, of the store's"
                f" {format_size(cluster.store.memory)} {_mib(most)} can be reserved"
            )
            hint = "reduce it, or enlarge store.memory"
            yield Finding(("guests", name, "reservation"), message, hint)
            return


def reservable(memory: int) -> int:
    """Most bytes that clients of a store of that memory can reserve together: the store keeps an
    extent for itself and a ninth of the rest for what its allocators waste."""
    return (memory - 64 * KIB) // 9 * 8


def _mib(size: int) -> str:
    return f"{size // MIB}MiB"
