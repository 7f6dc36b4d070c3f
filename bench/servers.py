# SPDX-License-Identifier: GPL-2.0-or-later
"""The NBD servers that are compared, each started afresh and ended by a context manager."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

MEMORY_LIMIT = "1GiB"
"""kztmemd's limit: above the device, so that incompressible pages fit."""

START_LIMIT = 15.0
"""Seconds a server may take to open its socket."""


@dataclass(frozen=True)
class Running:
    """A server that accepts connections on `socket`."""

    socket: Path
    held: Callable[[], int]
    """Bytes of memory it holds at this moment, for its data and for itself."""


@dataclass(frozen=True)
class Server:
    """A way to start a server: `start(folder, size)` serves `size` bytes from a fresh state."""

    name: str
    start: Callable[[Path, int], AbstractContextManager[Running]]


def _ended(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _resident(pid: int, key: str = "VmRSS") -> int:
    """A size in bytes from the kernel's account of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    sizes = dict(line.split(":", 1) for line in lines)
    return int(sizes[key].split()[0]) * 1024


@contextmanager
def kztmemd(folder: Path, size: int) -> Iterator[Running]:
    """Serve a client of a new store with the default codec."""
    command = Path(sys.executable).with_name("kztmemd")
    state = folder / "store"
    daemon = subprocess.Popen(
        [command, "--state", state, "--memory", MEMORY_LIMIT, "--client", f"bench:{size}"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        if daemon.stdout is None:
            raise AssertionError
        ready = json.loads(daemon.stdout.readline() or "{}")
        if not ready:
            raise RuntimeError("kztmemd ended before it was ready")
        api = httpx.Client(
            transport=httpx.HTTPTransport(uds=ready["api"]), base_url="http://kztmemd"
        )

        def held() -> int:
            arena = api.get("/v1/status").raise_for_status().json()["arena"]
            # The arena is counted by its file, so the mapped part of it is left out.
            private = _resident(ready["pid"]) - _resident(ready["pid"], "RssShmem")
            return int(arena["allocated_bytes"]) + private

        with api:
            yield Running(Path(ready["clients"]["bench"]["nbd"]), held)
    finally:
        _ended(daemon)
        subprocess.run([command, "--state", state, "--remove"], check=False)


def nbdkit(allocator: str) -> Server:
    """Serve nbdkit's memory plugin with one of its allocators."""

    @contextmanager
    def start(folder: Path, size: int) -> Iterator[Running]:
        socket = folder / "nbdkit.sock"
        daemon = subprocess.Popen(
            [
                *("nbdkit", "--foreground", "--unix", str(socket)),
                *("memory", f"size={size}", f"allocator={allocator}"),
            ],
            text=True,
        )
        try:
            deadline = time.monotonic() + START_LIMIT
            while not socket.exists():
                if daemon.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"nbdkit with allocator {allocator} did not start")
                time.sleep(0.01)
            yield Running(socket, lambda: _resident(daemon.pid))
        finally:
            _ended(daemon)

    return Server(f"nbdkit {allocator}", start)


SERVERS = (Server("kztmemd", kztmemd), nbdkit("sparse"), nbdkit("zstd"))
