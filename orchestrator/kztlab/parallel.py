# SPDX-License-Identifier: GPL-2.0-or-later
"""Several things at once, interruptible.

A thread pool would make Ctrl-C wait for whatever its threads are blocked in. Here the threads are
told to stop and get a moment to do so; one that cannot is left behind, which is safe because
everything it might start is on record already (see `kztlab.lab.record`).
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Generic, TypeVar

from kztlab.errors import KztlabError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

K = TypeVar("K")
T = TypeVar("T")

GRACE = 10.0
"""Seconds that interrupted threads get at most: ending a command in a busy guest takes a while."""


class _Task(threading.Thread, Generic[T]):
    def __init__(self, work: Callable[[], T]) -> None:
        super().__init__(daemon=True)
        self._work = work
        self.ended = threading.Event()
        """To wait for instead of `join`: in Python 3.11, a join that Ctrl-C interrupts takes a
        running thread for ended."""
        self.result: T | KztlabError | None = None
        self.bug: Exception | None = None

    def run(self) -> None:
        try:
            self.result = self._work()
        except KztlabError as error:
            self.result = error
        except Exception as error:  # noqa: BLE001  -- raised again by `in_parallel`
            self.bug = error
        finally:
            self.ended.set()


def in_parallel(
    works: Mapping[K, Callable[[], T]], stop: threading.Event
) -> dict[K, T | KztlabError]:
    """Do all of it at once; each one's result, or the `KztlabError` it failed with.

    An exception in the caller, such as KeyboardInterrupt, sets `stop`, which the works must heed,
    and passes on after at most `GRACE` seconds.
    """
    tasks = {key: _Task(work) for key, work in works.items()}
    try:
        for task in tasks.values():
            task.start()
        for task in tasks.values():
            task.ended.wait()
    except BaseException:
        stop.set()
        deadline = time.monotonic() + GRACE
        for task in tasks.values():
            if task.ident is not None:
                task.ended.wait(max(0.0, deadline - time.monotonic()))
        raise
    results: dict[K, T | KztlabError] = {}
    for key, task in tasks.items():
        if task.bug:
            raise task.bug
        results[key] = task.result  # type: ignore[assignment]  # a T may itself be None
    return results
