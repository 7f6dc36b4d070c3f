# SPDX-License-Identifier: GPL-2.0-or-later
"""Samples of a guest, sent by a small shell loop that runs in it.

A guest under emulation and short of memory must not be disturbed by being watched. The loop runs
one `grep` and one `sleep` per sample, busybox's where there is one: being small and static they
cost an emulated guest 20 ms of CPU time and QEMU no newly translated code, where GNU's cost 75 ms
and 4 MiB, and a loop of the shell's own `read`, a system call per byte, 40 ms. `grep` picks the
fields, so that little has to go through SSH, and names the file of each line.
"""

from __future__ import annotations

import re
import shlex
from contextlib import contextmanager
from typing import TYPE_CHECKING

from kztlab.observe.sampler import describe

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterable, Iterator

    from kztlab.observe.samples import Recorder, Sample

_MEMINFO = (
    "MemTotal",
    "MemFree",
    "MemAvailable",
    "Buffers",
    "Cached",
    "SwapCached",
    "AnonPages",
    "SReclaimable",
    "Dirty",
    "Writeback",
    "SwapTotal",
    "SwapFree",
)
_VMSTAT = (
    "pgpgin",
    "pswpin",
    "pswpout",
    "zswpin",
    "zswpout",
    "pgmajfault",
    "pgscan_kswapd",
    "pgscan_direct",
    "pgsteal_kswapd",
    "pgsteal_direct",
    "oom_kill",
)
_BUSYBOX = "b=$(command -v busybox)"
_PRESSURES = ("memory", "io", "cpu")

_LINE = re.compile(r"(/[^:]+):\s*(.*)")
_FIELD = re.compile(r"(\w+):?\s+([0-9]{1,19})(?: kB)?")
_PRESSURE = re.compile(r"(some|full) .*\btotal=([0-9]{1,19})")
_NUMBER = re.compile(r"[0-9]{1,19}(?:\.[0-9]{1,9})?")
_MAX_LINES = 200
_MAX_LINE = 400
_RETRY = 1.0


class GuestSampler:
    """Samples one guest.

    ``{"uptime", "meminfo": {...}, "vmstat": {...}, "pressure": {"memory": {"some", "full"}, ...},
    "cgroup": {"current", "swap"}}``: bytes, the counters of /proc/vmstat, seconds. What the guest's
    kernel does not have is missing.
    """

    def __init__(
        self,
        guest: str,
        stream: Callable[[str], Iterator[str]],
        *,
        cgroup: str | None = None,
    ) -> None:
        """`stream` runs a command in the guest and yields the lines it prints; `cgroup` is the
        folder of the control group that workloads run in."""
        self.source = f"guest-{guest}"
        self._stream = stream
        self._cgroup = cgroup

    def sample(self) -> Sample:
        """One sample, now."""
        with self._lines(f"{_BUSYBOX}; {self._grep()}; echo") as lines:
            for sample in _samples(lines):
                return sample
        message = "the guest printed no sample"
        raise ValueError(message)

    def run(self, recorder: Recorder, interval: float, stop: threading.Event) -> None:
        """Records until told to stop, connecting again when the stream breaks.

        It notices `stop` with the next line from the guest; a guest that says nothing holds it up.
        """
        # Counting the interval from the start of a sample keeps it however slow the guest is.
        loop = (
            f"{_BUSYBOX}; while :; do $b sleep {interval:g} & {self._grep()};"
            " echo || exit; wait $! || exit; done"
        )
        while not stop.is_set():
            reason = "the guest ended the stream"
            try:
                with self._lines(loop) as lines:
                    for sample in _samples(lines):
                        if stop.is_set():
                            return
                        recorder.write(sample)
            except Exception as error:  # noqa: BLE001 -- watching must never end what is watched
                reason = describe(error)
            recorder.gap(reason)
            stop.wait(max(interval, _RETRY))

    @contextmanager
    def _lines(self, command: str) -> Iterator[Iterator[str]]:
        """What a command prints in the guest; it is ended afterwards."""
        lines = self._stream(command)
        try:
            yield lines
        finally:
            close = getattr(lines, "close", None)
            if close is not None:
                close()

    def _grep(self) -> str:
        files = ["/proc/uptime", "/proc/meminfo", "/proc/vmstat"]
        files += [f"/proc/pressure/{resource}" for resource in _PRESSURES]
        if self._cgroup is not None:
            files += [f"{self._cgroup}/memory.current", f"{self._cgroup}/memory.swap.current"]
        fields = "|".join(
            [f"({'|'.join(_MEMINFO)}):", f"({'|'.join(_VMSTAT)}) ", "some|full|[0-9]"]
        )
        return "$b " + shlex.join(["grep", "-sHE", f"^({fields})", *files])


def _samples(lines: Iterable[str]) -> Iterator[Sample]:
    """The samples in what the loop prints. The guest may print anything: what is not understood is
    skipped, and nothing grows without bound."""
    block: list[str] = []
    for line in lines:
        text = line.strip()
        if text:
            if len(block) >= _MAX_LINES or len(text) > _MAX_LINE:
                message = "the guest prints no samples"
                raise ValueError(message)
            block.append(text)
        elif block:
            if sample := parse(block):
                yield sample
            block = []


def parse(block: list[str]) -> Sample:
    sample: Sample = {}
    for line in block:
        named = _LINE.fullmatch(line)
        if named is None:
            continue
        path, text = named.groups()
        folder, _, name = path.rpartition("/")
        if name in {"meminfo", "vmstat"} and (field := _FIELD.fullmatch(text)):
            factor = 1024 if name == "meminfo" else 1
            if field[1] in (_MEMINFO if name == "meminfo" else _VMSTAT):
                sample.setdefault(name, {})[field[1]] = int(field[2]) * factor
        elif folder == "/proc/pressure" and (stall := _PRESSURE.fullmatch(text)):
            resource = sample.setdefault("pressure", {}).setdefault(name, {})
            resource[stall[1]] = int(stall[2]) / 1e6
        elif name == "uptime" and (number := _NUMBER.match(text)):
            sample["uptime"] = float(number[0])
        elif name in {"memory.current", "memory.swap.current"} and _NUMBER.fullmatch(text):
            key = "current" if name == "memory.current" else "swap"
            sample.setdefault("cgroup", {})[key] = int(float(text))
    return sample
