# SPDX-License-Identifier: GPL-2.0-or-later
"""Where builds work: a folder of their own, which goes with them.

It needs a place that a user namespace's root can reach, which a private home is not: it lies under
/var/tmp (or $TMPDIR), and is locked for as long as a process of its build lives.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from kztlab.errors import HostUnable
from kztlab.image.runner import Runner
from kztlab.locks import lock

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kztlab.image.runner import Progress
    from kztlab.places import Places

_PREFIX = "kztlab-image-"


def workshops() -> Path:
    """Where builds have their temporary folders."""
    return Path(os.environ.get("TMPDIR") or "/var/tmp")  # noqa: S108  -- made by mkdtemp


def check_room(build: int, keep: int, home: Path, what: str) -> None:
    """Raise `HostUnable` if there is too little to build something and to keep it in `home`."""
    for folder, need in ((workshops(), build), (home, keep)):
        try:
            free = shutil.disk_usage(folder).free
        except OSError as error:
            raise HostUnable(f"cannot build {what} in {folder}: {error.strerror}") from error
        if free < need:
            raise HostUnable(
                f"building {what} needs {need >> 20} MiB in {folder}, {free >> 20} MiB are free"
            )


@contextmanager
def workshop(places: Places, progress: Progress) -> Iterator[Runner]:
    """A folder to build in, removed afterwards; those of builds that were killed are now."""
    _sweep(places, progress)
    unlocked = Path(tempfile.mkdtemp(prefix=".", suffix=".new", dir=workshops()))
    unlocked.chmod(0o711)  # the namespace's root has to pass
    places.own(unlocked)
    with lock(unlocked) as descriptor:
        # Named so that other builds would sweep it only now that they would find it locked.
        folder = unlocked.rename(unlocked.with_name(f"{_PREFIX}{unlocked.name.strip('.')}"))
        run = Runner(places, folder, descriptor, progress)
        try:
            run.choose_mode()
            yield run
        finally:
            run.erase()


def _sweep(places: Places, progress: Progress) -> None:
    for stale in workshops().glob(f"{_PREFIX}*"):
        if stale.lstat().st_uid != places.account().pw_uid:
            continue
        with suppress(BlockingIOError), lock(stale, wait=False) as descriptor:
            progress("removing an interrupted build", 0.0)
            Runner(places, stale, descriptor, progress).erase()
