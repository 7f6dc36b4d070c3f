# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs real kztmemd processes and ends each of them, whatever a test does."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import httpx

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMAND: Final = (sys.executable, "-m", "kztmem.daemon")

_PATIENCE: Final = 60.0
"""Seconds after which something that should happen is called missing."""


class Daemon:
    """One state directory and the daemon that serves it; a context manager that leaves nothing."""

    def __init__(self, state: Path, *options: str, memory: str = "64MiB") -> None:
        self.state = state
        self.options = ["--state", str(state), "--memory", memory, *options]
        self.ready: dict[str, Any] = {}
        self._process: subprocess.Popen[str] | None = None
        self._supervisor = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.kill()
        finally:
            remove(self.state)

    def start(self) -> Self:
        """Starts it in the foreground and waits until it serves."""
        log = (self.state.parent / f"{self.state.name}.stderr").open("ab")
        with log:
            self._process = subprocess.Popen(
                [*COMMAND, *self.options], stdout=subprocess.PIPE, stderr=log, text=True
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, Path(log.name).read_text()
        self.ready = json.loads(line)
        return self

    def detach(self) -> Self:
        """Starts it detached, under its supervisor."""
        return self.adopt(run(*self.options, "--detach").stdout)

    def adopt(self, line: str) -> Self:
        """Takes over a detached daemon that printed this line."""
        self.ready = json.loads(line)
        self._supervisor = int(self.status()["supervisor_pid"])
        return self

    @property
    def process(self) -> subprocess.Popen[str]:
        """The one in the foreground."""
        assert self._process is not None
        return self._process

    def nbd(self, client: str) -> Path:
        """Path of a client's NBD socket."""
        return Path(self.ready["clients"][client]["nbd"])

    def http(self) -> httpx.Client:
        """An HTTP client of its API."""
        return http(Path(self.ready["api"]))

    def status(self) -> dict[str, Any]:
        """What it says about itself."""
        with self.http() as api:
            status: dict[str, Any] = api.get("/v1/status").raise_for_status().json()
            return status

    def log(self) -> str:
        """What a detached daemon wrote."""
        return (self.state / "kztmemd.log").read_text()

    def wait(self) -> int:
        """Waits for the end of the one in the foreground; its exit code."""
        assert self._process is not None
        self._process.communicate()
        code = self._process.returncode
        self._process = None
        return code

    def kill(self) -> None:
        """Ends supervisor and serving process as if the power went, and waits for both."""
        if self._process is not None:
            self._process.kill()
            self.wait()
        elif self._supervisor:
            # The supervisor first, so that nobody starts another after the second is found.
            kill(self._supervisor)
            kill(int((self.state / "lock").read_text()))
            self._supervisor = 0


def http(api: Path) -> httpx.Client:
    """An HTTP client of the API on a socket."""
    transport = httpx.HTTPTransport(uds=str(api))
    return httpx.Client(transport=transport, base_url="http://kztmemd", timeout=_PATIENCE)


def run(*options: str) -> subprocess.CompletedProcess[str]:
    """Runs the command to its end, which must be a good one."""
    done = try_run(*options)
    assert done.returncode == 0, done.stderr
    return done


def try_run(*options: str) -> subprocess.CompletedProcess[str]:
    """Runs the command to its end, whatever that is."""
    command = [*COMMAND, *options]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=_PATIENCE,
        stdin=subprocess.DEVNULL,
    )


def remove(state: Path) -> None:
    """Removes what a daemon left outside its state directory."""
    run("--state", str(state), "--remove")


def kill(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Sends a process, no child of ours, a signal that ends it; returns when it has ended."""
    with contextlib.suppress(ProcessLookupError), _handle(pid) as handle:
        signal.pidfd_send_signal(handle, number)
        _wait(handle, pid)


def wait_for_end(pid: int) -> None:
    """Waits for the end of a process that is not a child of ours."""
    with contextlib.suppress(ProcessLookupError), _handle(pid) as handle:
        _wait(handle, pid)


def child_of(parent: int, *, after: int = 0, session_leader: bool = False) -> int:
    """Waits for a child of a process, another than `after`; perhaps in a session of its own."""
    deadline = time.monotonic() + _PATIENCE
    children = Path(f"/proc/{parent}/task/{parent}/children")
    while time.monotonic() < deadline:
        for child in map(int, children.read_text().split()):
            # Short-lived children may be gone before they are looked at.
            with contextlib.suppress(ProcessLookupError):
                if child != after and (not session_leader or os.getsid(child) == child):
                    return child
    raise AssertionError(f"process {parent} forks no child")


@contextlib.contextmanager
def _handle(pid: int) -> Iterator[int]:
    handle = os.pidfd_open(pid)
    try:
        yield handle
    finally:
        os.close(handle)


def _wait(handle: int, pid: int) -> None:
    ended, _, _ = select.select([handle], [], [], _PATIENCE)
    assert ended, f"process {pid} does not end"
