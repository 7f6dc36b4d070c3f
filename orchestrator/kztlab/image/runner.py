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
from typing import IO, TYPE_CHECKING

from kztlab.errors import HostUnable
from kztlab.programs import search_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from kztlab.places import Places

    Progress = Callable[[str, float], None]
    """Called with a step's name and the seconds since it began: at its start, then each second."""

_UNTIL_ORPHANED = """trap 'trap "" TERM; kill -TERM 0; wait' TERM; "$@" & wait "$!\""""
_GRACE = 10.0
_TAIL = 12


@dataclass(slots=True)
class Runner:
    """Runs one build's programs in `folder`."""

    places: Places
    folder: Path
    keep: int
    """A descriptor that every program inherits: its lock is held until the last of them ended."""
    progress: Progress
    mode: str = field(default="unshare", init=False)

    def choose_mode(self) -> None:
        """Settle on user namespaces or, for root only, on none; raises `HostUnable`."""
        tried = self._try(self._command(["true"], inside=True))
        if tried.returncode == 0:
            return
        if self.places.user is None:
            name = self.places.account().pw_name
            raise HostUnable(
                f"mmdebstrap cannot make a user namespace: {tried.stdout.strip()}",
                hint=f"give {name} a range in /etc/subuid and /etc/subgid: "
                f"usermod --add-subuids 700000-765535 --add-subgids 700000-765535 {name}",
            )
        self.progress("no user namespaces here, building as root", 0.0)
        self.mode = "root"

    def step(
        self, name: str, command: list[str], *, inside: bool = False, lines: int | None = None
    ) -> None:
        """Run a program as the build's user, or `inside` the namespace as its root.

        One that prints about so many `lines` tells by them how far it has come. Raises
        `HostUnable` with the end of its output if it fails.
        """
        began = time.monotonic()
        with self._log.open("ab") as log, self._started(command, log, inside=inside) as process:
            start = log.tell()
            self.progress(name, 0.0)
            while (status := _wait(process, 1.0)) is None:
                shown = f"{name}: {self._percent(start, lines)} %" if lines else name
                self.progress(shown, time.monotonic() - began)
        if status:
            raise self._failure(name, status)

    def erase(self) -> None:
        """Remove the folder with all that the build's user and its namespace's root made there."""
        if self.places.user is None:
            # What lies in the folders of the namespace's root only that root may remove; the
            # emptied ones are then ours.
            entries = [str(path) for path in self.folder.iterdir()]
            self._try(self._command(["rm", "-rf", "--", *entries], inside=True))
        shutil.rmtree(self.folder)

    def _command(self, command: list[str], *, inside: bool) -> list[str]:
        """As the right user, under a shell that ends the whole group when this process is killed.

        mmdebstrap alone would not do: it ignores the signal and leaves it to its children.
        """
        identity: list[str] = []
        if self.mode == "unshare":
            if inside:
                command = ["mmdebstrap", "--unshare-helper", *command]
            if self.places.user is not None:
                account = self.places.account()
                identity = [f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}"]
                identity.append("--init-groups")
        return [
            "setpriv",
            "--pdeathsig=TERM",
            *identity,
            "sh",
            "-c",
            _UNTIL_ORPHANED,
            "sh",
            *command,
        ]

    def _try(self, command: list[str]) -> subprocess.CompletedProcess[str]:
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
    def _started(
        self, command: list[str], log: IO[bytes], *, inside: bool
    ) -> Iterator[subprocess.Popen[bytes]]:
        process = subprocess.Popen(
            self._command(command, inside=inside),
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

    def _environment(self) -> dict[str, str]:
        return os.environ | {
            "HOME": str(self.folder),
            "TMPDIR": str(self.folder),
            "PATH": search_path(),
            "LC_ALL": "C.UTF-8",
        }

    def _percent(self, start: int, lines: int) -> int:
        """How much of a step is done, in tens; never all of it."""
        with self._log.open("rb") as log:
            log.seek(start)
            done = sum(block.count(b"\n") for block in iter(lambda: log.read(1 << 16), b""))
        return min(100 * done // lines, 99) // 10 * 10

    @property
    def _log(self) -> Path:
        return self.folder / "log"

    def _failure(self, name: str, status: int) -> HostUnable:
        tail = self._log.read_text(errors="replace").splitlines()[-_TAIL:]
        if any("No space left on device" in line for line in tail):
            return HostUnable(f"{name}: the disk is full", hint="make room, then try again")
        return HostUnable("\n".join([f"{name} failed (exit status {status}):", *tail]))


def _wait(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a program and all it started: gently, then not."""
    os.killpg(process.pid, signal.SIGTERM)
    if _wait(process, _GRACE) is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
