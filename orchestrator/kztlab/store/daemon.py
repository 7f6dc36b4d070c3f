# SPDX-License-Identifier: GPL-2.0-or-later
"""The life of a lab's own kztmemd: started detached, found again, stopped, removed."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kztlab.errors import BadInput, HostUnable
from kztlab.store.client import StoreClient, StoreUnreachable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kztlab.spec import StoreSpec

START_LIMIT = 30.0
"""Seconds until it serves: it may wait 5 s for a dying owner's lock and then recover an arena."""

STOP_LIMIT = 15.0
"""Seconds for a clean end."""

LOG_LINES = 10

COMMAND = Path(sys.executable).with_name("kztmemd")
"""It is installed into the same environment as kztlab."""


@dataclass(frozen=True, slots=True)
class Daemon:
    """A kztmemd by its folders, whether it runs or not."""

    state: Path
    sockets: Path
    user: str | None

    @property
    def api(self) -> Path:
        return self.sockets / "api.sock"

    def start(self, spec: StoreSpec) -> None:
        """Start it detached, without clients, and return once it serves.

        Raises `HostUnable` or `BadInput` with what the daemon says.
        """
        options = [f"--memory={spec.memory}", f"--codec={spec.codec}"]
        options.append(f"--spill={spec.spill or 'none'}")
        options += [f"--persistent={spec.persistent}", f"--ephemeral={spec.ephemeral}"]
        if self.user:
            options.append(f"--user={self.user}")
        output = self._call("--detach", *options)
        try:
            ready: object = json.loads(output)["ready"]
        except (ValueError, TypeError, KeyError):
            ready = False
        if ready is not True:
            raise HostUnable(f"kztmemd started but said {output!r}", hint=f"see {self._log}")

    def serves(self) -> bool:
        """Whether it answers now."""
        try:
            with StoreClient(self.api) as store:
                store.status()
        except StoreUnreachable:
            return False
        return True

    def stop(self) -> None:
        """End it if it runs, answering or not; its pages stay in the arena."""
        while processes := self._processes():
            if _end(processes):
                raise HostUnable(f"kztmemd does not end: processes {processes}")

    def remove(self) -> None:
        """Throw away arena and sockets of a stopped daemon."""
        if self.state.exists():
            self._call("--remove")

    @property
    def _log(self) -> Path:
        return self.state / "kztmemd.log"

    def _call(self, *options: str) -> str:
        command = [str(COMMAND), f"--state={self.state}", f"--sockets={self.sockets}", *options]
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=START_LIMIT,
                check=False,
            )
        except OSError as error:
            raise HostUnable(
                f"cannot run {COMMAND}: {error.strerror}", hint="./dev setup installs it"
            ) from error
        except subprocess.TimeoutExpired as error:
            raise HostUnable(
                f"kztmemd was not ready after {START_LIMIT:.0f} s", hint=f"see {self._log}"
            ) from error
        if done.returncode:
            said = done.stderr.strip().removeprefix("kztmemd: ").removeprefix("error: ")
            kind = BadInput if done.returncode == BadInput.exit_code else HostUnable
            raise kind(f"kztmemd: {said or f'exit code {done.returncode}'}{self._log_tail()}")
        return done.stdout

    def _log_tail(self) -> str:
        """The end of its log: the log itself may be about to go with the lab."""
        try:
            lines = self._log.read_text("utf-8", "replace").splitlines()[-LOG_LINES:]
        except OSError:
            return ""
        return "".join(f"\n    | {line}" for line in lines)

    def _processes(self) -> list[int]:
        """Supervisor and serving process: whoever has the daemon's lock open."""
        lock = str(self.state.resolve() / "lock")
        found = []
        for folder in Path("/proc").glob("[0-9]*/fd"):
            with contextlib.suppress(OSError):  # it has ended meanwhile, or is somebody else's
                if any(str(link.readlink()) == lock for link in folder.iterdir()):
                    found.append(int(folder.parent.name))
        return found


def _end(pids: Sequence[int]) -> bool:
    """SIGTERM, and SIGKILL for those that take no notice; whether any of them is there even then.

    By pidfd, so that nobody else is met.
    """
    with ExitStack() as stack:
        descriptors = []
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                descriptors.append(os.pidfd_open(pid))
                stack.callback(os.close, descriptors[-1])
        for number in (signal.SIGTERM, signal.SIGKILL):
            for descriptor in descriptors:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(descriptor, number)
            descriptors = _still_there(descriptors, STOP_LIMIT)
        return bool(descriptors)


def _still_there(descriptors: Sequence[int], limit: float) -> list[int]:
    """Those of the processes that have not ended within `limit` seconds."""
    waiting = list(descriptors)
    deadline = time.monotonic() + limit
    while waiting and time.monotonic() < deadline:
        ended = select.select(waiting, [], [], deadline - time.monotonic())[0]
        waiting = [descriptor for descriptor in waiting if descriptor not in ended]
    return waiting
