# SPDX-License-Identifier: GPL-2.0-or-later
"""Locks on files and folders, that end with the processes that hold them."""

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
