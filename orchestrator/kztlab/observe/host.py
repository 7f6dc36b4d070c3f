# SPDX-License-Identifier: GPL-2.0-or-later
"""Samples of the host: memory, CPU, shared memory, and what each guest's QEMU takes of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from kztlab.observe.sampler import Poller

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kztlab.observe.samples import Sample

_KIB = 1024
_IDLE_FIELDS = slice(3, 5)  # idle and iowait among the fields of /proc/stat's "cpu" line
_TICKS = os.sysconf("SC_CLK_TCK")


class HostSampler(Poller):
    """Samples this machine.

    ``{"memory": {"total", "available"}, "shm": {"size", "used"}, "cpu",
    "guests": {NAME: {"resident", "cpu_seconds"}}}``: bytes; `cpu` is the busy share of all
    CPUs since the last sample, from 0 to 1, and missing in the first one.
    """

    source = "host"

    def __init__(self, processes: Callable[[], Mapping[str, int]]) -> None:
        """`processes` gives the process id of each running guest's QEMU, by guest."""
        self._processes = processes
        self._ticks: tuple[int, int] | None = None

    def sample(self) -> Sample:
        memory = _meminfo()
        shm = os.statvfs("/dev/shm")  # noqa: S108 -- asked for its size, not written to
        sample: Sample = {
            "memory": {"total": memory["MemTotal"], "available": memory["MemAvailable"]},
            "shm": {
                "size": shm.f_blocks * shm.f_frsize,
                "used": (shm.f_blocks - shm.f_bfree) * shm.f_frsize,
            },
            "guests": {
                guest: usage
                for guest, pid in self._processes().items()
                if (usage := _process(pid)) is not None
            },
        }
        if (cpu := self._cpu()) is not None:
            sample["cpu"] = round(cpu, 4)
        return sample

    def _cpu(self) -> float | None:
        line = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0]
        # The later fields count guests' time, which is part of the earlier ones already.
        ticks = [int(field) for field in line.split()[1:9]]
        before, self._ticks = self._ticks, (sum(ticks[_IDLE_FIELDS]), sum(ticks))
        if before is None:
            return None
        idle, total = self._ticks[0] - before[0], self._ticks[1] - before[1]
        return max(0.0, 1 - idle / total) if total > 0 else None


def _meminfo() -> dict[str, int]:
    return _sizes(Path("/proc/meminfo").read_text(encoding="ascii"))


def _sizes(text: str) -> dict[str, int]:
    """The fields of /proc/meminfo or /proc/PID/status that are sizes, in bytes."""
    fields = (line.split() for line in text.splitlines())
    return {field[0].rstrip(":"): int(field[1]) * _KIB for field in fields if field[-1] == "kB"}


def _process(pid: int) -> Sample | None:
    """A process's CPU time, and its resident memory without files, which it shares with others of
    its kind; `None` if it is gone."""
    folder = Path(f"/proc/{pid}")
    try:
        sizes = _sizes((folder / "status").read_text(encoding="utf-8", errors="replace"))
        stat = (folder / "stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    if "RssAnon" not in sizes:  # it has ended and waits for its parent to notice
        return None
    # The name in parentheses may hold anything, so count fields from its end.
    fields = stat.rpartition(")")[2].split()
    seconds = (int(fields[11]) + int(fields[12])) / _TICKS
    return {
        "resident": sizes["RssAnon"] + sizes["RssShmem"],
        "cpu_seconds": round(seconds, 2),
    }
