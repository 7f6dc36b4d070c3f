# SPDX-License-Identifier: GPL-2.0-or-later
"""One command at a time changes a lab.

The lock is a flock on a file in the lab's folder, so it goes with the process that holds it,
however that one dies. The file holds its owner's pid, for the message to whoever comes second.
"""

from __future__ import annotations

import contextlib
import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from kztlab.errors import HostUnable
from kztlab.locks import lock_file

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
        descriptor = lock_file(path, wait=False)
        if descriptor is not None:
            return descriptor
        if time.monotonic() > deadline:
            raise HostUnable(
                f"another kztlab command is at work on the lab {lab}: process {_owner(path)}",
                hint="wait for it, or end it: the lab stays as it is then",
            )
        time.sleep(0.1)


def _owner(path: Path) -> str:
    try:
        return path.read_bytes()[:20].decode("ascii", "replace") or "unknown"
    except OSError:
        return "unknown"
