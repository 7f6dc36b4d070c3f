# SPDX-License-Identifier: GPL-2.0-or-later
"""Locks on files and folders. They go with the processes that hold them, however these die."""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def lock(path: Path, *, wait: bool = True) -> Iterator[int]:
    """Hold the exclusive lock of an existing file or folder; yields its descriptor.

    Raises `BlockingIOError` if it is held and the caller does not wait.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield descriptor
    finally:
        os.close(descriptor)


def lock_file(path: Path, *, wait: bool = True) -> int | None:
    """Create and lock a file that whoever holds it may unlink, also with the folder around it.

    Returns its descriptor; None if it is gone again, or held while the caller does not wait: the
    caller makes the folder anew and calls again. A lock on an unlinked file keeps nobody out, so a
    descriptor is returned only if the file has its name still.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        if os.path.samestat(path.stat(), os.fstat(descriptor)):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None
