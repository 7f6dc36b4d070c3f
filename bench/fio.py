# SPDX-License-Identifier: GPL-2.0-or-later
"""fio's nbd engine against each server: one connection, fixed seed, buffers refilled."""

import json
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench.servers import Server

MIB = 1 << 20
DEVICE_BYTES = 256 * MIB
SEED = 20
COMPRESSIBLE_PERCENT = {"70 % compressible": 70, "incompressible": 0}


@dataclass(frozen=True)
class Job:
    """One fio job; every block of the device is read or written once."""

    name: str
    pattern: str
    block: int
    depth: int


# In this order on a fresh server: the first writes touch memory nobody has touched, the second
# find it in place.
JOBS = (
    Job("4 KiB random write, cold", "randwrite", 4096, 16),
    Job("4 KiB random write, warm", "randwrite", 4096, 16),
    Job("4 KiB random read", "randread", 4096, 16),
    Job("128 KiB sequential write", "write", 128 * 1024, 16),
    Job("128 KiB sequential read", "read", 128 * 1024, 16),
)


@dataclass(frozen=True)
class Figure:
    """What one server reached in one job: the runs' values, in the order they were taken."""

    data: str
    job: str
    server: str
    mib_per_second: list[float]

    @property
    def median(self) -> float:
        """MiB/s."""
        return median(self.mib_per_second)


@dataclass(frozen=True)
class Held:
    """Memory a server holds once the device is full."""

    data: str
    server: str
    bytes: list[int]

    @property
    def median(self) -> float:
        """Bytes."""
        return median(self.bytes)


def run_job(job: Job, socket: Path, compressible: int) -> float:
    """Run one job and return its MiB/s."""
    options = {
        "name": job.pattern,
        "ioengine": "nbd",
        "uri": f"nbd+unix:///?socket={socket}",
        "rw": job.pattern,
        "bs": job.block,
        "iodepth": job.depth,
        "size": DEVICE_BYTES,
        "randseed": SEED,
        "refill_buffers": 1,
        "buffer_compress_percentage": compressible,
        "output-format": "json",
    }
    done = subprocess.run(
        ["fio", *(f"--{key}={value}" for key, value in options.items())],
        check=True,
        capture_output=True,
        text=True,
    )
    direction = "read" if job.pattern.endswith("read") else "write"
    # Some versions of fio print notes before the JSON.
    result = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
    if result["error"] or result[direction]["io_bytes"] != DEVICE_BYTES:
        raise RuntimeError(f"fio: {job.name} on {socket} ended early")
    return float(result[direction]["bw_bytes"]) / MIB


def compare(
    servers: Sequence[Server], repetitions: int, progress: Callable[[str], None]
) -> tuple[list[Figure], list[Held]]:
    """Run all jobs on all servers, the servers in turn within each repetition."""
    rates: dict[tuple[str, str, str], list[float]] = {}
    held: dict[tuple[str, str], list[int]] = {}
    for repetition in range(repetitions):
        for data, compressible in COMPRESSIBLE_PERCENT.items():
            for server in servers:
                progress(f"{repetition + 1}/{repetitions}: {server.name}, {data}")
                with (
                    tempfile.TemporaryDirectory(prefix="kztbench-") as name,
                    server.start(_reachable(Path(name)), DEVICE_BYTES) as running,
                ):
                    for job in JOBS:
                        rate = run_job(job, running.socket, compressible)
                        rates.setdefault((data, job.name, server.name), []).append(rate)
                    held.setdefault((data, server.name), []).append(running.held())
    return (
        [Figure(data, job, server, runs) for (data, job, server), runs in rates.items()],
        [Held(data, server, runs) for (data, server), runs in held.items()],
    )


def _reachable(folder: Path) -> Path:
    """Let the store's service user pass through the folder, but not list it."""
    folder.chmod(0o711)
    return folder
