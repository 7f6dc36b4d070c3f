# SPDX-License-Identifier: GPL-2.0-or-later
"""One command at a time changes a lab.

The lock is a flock on a file in the lab's folder, so it goes with the process that holds it,
however that one dies. The file holds its owner's pid, for the message to whoever comes second.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from kztlab.errors import HostUnable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kztlab.places import Places

FILE = "lock"

PATIENCE = 5.0
"""Seconds to wait for another command that is about to end."""


@contextmanager
def locked(places: Places, lab: str, *, patience: float = PATIENCE) -> Iterator[None]:
    """Hold the lab, creating its folder if need be; `HostUnable` names a process in the way."""
    descriptor = _acquire(places, lab, time.monotonic() + patience)
    try:
        with contextlib.suppress(OSError):  # on a full disk, labs still go down
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):  # somebody removed the folder by hand
            _tidy(places.lab(lab))
        os.close(descriptor)


def _tidy(folder: Path) -> None:
    """Leave no folder behind for a lab that came to nothing."""
    if [path.name for path in folder.iterdir()] == [FILE]:
        (folder / FILE).unlink()
        folder.rmdir()


def _acquire(places: Places, lab: str, deadline: float) -> int:
    path = places.lab(lab) / FILE
    while True:
        places.folder(path.parent)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            continue  # a `down` took the folder away between the two calls
        if _flock(descriptor) and _is(path, descriptor):
            return descriptor
        owner = os.pread(descriptor, 20, 0).decode("ascii", "replace")
        os.close(descriptor)
        if time.monotonic() > deadline:
            raise HostUnable(
                f"another kztlab command is at work on the lab {lab}: process {owner or 'unknown'}",
                hint="wait for it, or end it: the lab stays as it is then",
            )
        time.sleep(0.1)


def _flock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is(path: Path, descriptor: int) -> bool:
    """Whether this is the file of that name: `down` unlinks the one it holds, and a lock on an
    unlinked file keeps nobody out."""
    try:
        return path.stat().st_ino == os.fstat(descriptor).st_ino
    except FileNotFoundError:
        return False
