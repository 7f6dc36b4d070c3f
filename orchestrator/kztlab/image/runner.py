# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs the programs of a build as the user they belong to, and none of them outlives it.

mmdebstrap makes the files of the new system in a user namespace whose root is the first of the
user's subordinate ids. So nobody needs to be root, and as root the service user does it. Where root
has no user namespaces (some containers), mmdebstrap runs as root instead.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kztlab.errors import HostUnable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from kztlab.places import Places

    Progress = Callable[[str, float], None]
    """Called with a step's name and the seconds since it began: at its start, then each second."""

_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_GRACE = 10.0
_TAIL = 12


def search_path() -> str:
    """PATH with the folders of mke2fs, which ordinary users' lacks."""
    return f"{os.environ.get('PATH', '')}:{_SYSTEM_PATH}"


@dataclass(slots=True)
class Runner:
    """Runs one build's programs in `folder`, their output in `log`."""

    places: Places
    folder: Path
    log: Path
    keep: int
    """A descriptor that every program inherits: its lock is held until the last of them ended."""
    progress: Progress
    mode: str = field(default="unshare", init=False)

    def choose_mode(self) -> None:
        """Settle on user namespaces or, for root only, on none; raises `HostUnable`."""
        tried = self._run(self._as_user(["mmdebstrap", "--unshare-helper", "true"]))
        if tried.returncode == 0:
            return
        if self.places.user is None:
            name = self.places.account().pw_name
            raise HostUnable(
                f"mmdebstrap cannot make a user namespace: {tried.stdout.strip()}",
                hint=f"give {name} a range in /etc/subuid and /etc/subgid: "
                f"usermod --add-subuids 700000-765535 --add-subgids 700000-765535 {name}",
            )
        self.mode = "root"

    def step(self, name: str, command: list[str], *, inside: bool = False) -> None:
        """Run a program as the build's user, or `inside` the namespace as its root.

        Raises `HostUnable` with the end of its output if it fails.
        """
        if inside and self.mode == "unshare":
            command = ["mmdebstrap", "--unshare-helper", *command]
        command = self._as_user(command) if self.mode == "unshare" else command
        with self.log.open("ab") as log, self._started(command, log) as process:
            began = time.monotonic()
            while True:
                self.progress(name, time.monotonic() - began)
                try:
                    status = process.wait(timeout=1.0)
                except subprocess.TimeoutExpired:
                    continue
                break
        if status:
            raise self._failure(name, status)

    def erase(self) -> None:
        """Remove the folder with all that the build's user and its namespace's root made there."""
        if self.places.user is None:  # only the namespace's root may remove what belongs to it
            self._run(["mmdebstrap", "--unshare-helper", "rm", "-rf", "--", str(self.folder)])
        shutil.rmtree(self.folder)

    def _run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )

    @contextmanager
    def _started(self, command: list[str], log: object) -> Iterator[subprocess.Popen[bytes]]:
        process = subprocess.Popen(
            command,
            cwd=self.folder,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=[self.keep],
            start_new_session=True,  # a Ctrl-C is ours to pass on, once
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                _stop(process)

    def _as_user(self, command: list[str]) -> list[str]:
        """With the signal that ends it when this process is killed."""
        dying = ["setpriv", "--pdeathsig", "TERM"]
        if self.places.user is None:
            return [*dying, *command]
        account = self.places.account()
        identity = [f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--init-groups"]
        return [*dying, *identity, *command]

    def _environment(self) -> dict[str, str]:
        return os.environ | {
            "HOME": str(self.folder),
            "TMPDIR": str(self.folder),
            "PATH": search_path(),
            "LC_ALL": "C.UTF-8",
        }

    def _failure(self, name: str, status: int) -> HostUnable:
        lines = self.log.read_text(errors="replace").splitlines()
        tail = "\n".join(lines[-_TAIL:])
        if any("No space left on device" in line for line in lines[-_TAIL:]):
            return HostUnable(f"{name}: the disk is full", hint="make room, then try again")
        reason = f"exit status {status}" if status > 0 else signal.Signals(-status).name
        return HostUnable(f"{name}: failed ({reason})\n{tail}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a program and all it started: gently, then not."""
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(timeout=_GRACE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
