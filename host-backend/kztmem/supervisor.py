# SPDX-License-Identifier: GPL-2.0-or-later
"""A fork server that keeps a child serving.

It has everything loaded before the first fork, so a restart costs a fork and the recovery, and
works where the serving user could not read the program's files. It never starts a thread: a child
forked beside one might find a lock held for ever.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kztmem.errors import BadInput, HostUnable

if TYPE_CHECKING:
    from collections.abc import Callable

QUICK: Final = 1.0
"""A child that lives shorter than this many seconds died quickly."""

GIVE_UP: Final = 30
"""Quick deaths in a row after which nothing will help any more."""

KILL_AFTER: Final = 4.0
"""Seconds that a child has to stop before it is killed; its pages survive that."""

_IMMEDIATE: Final = 10
_FIRST_DELAY: Final = 0.05
_LONGEST_DELAY: Final = 0.5

_REFUSALS: Final = frozenset({BadInput.exit_code, HostUnable.exit_code})

_log = logging.getLogger(__name__)


def delay_before_restart(quick_deaths: int) -> float:
    """Seconds to wait after so many quick deaths in a row: none at first, then longer."""
    if quick_deaths <= _IMMEDIATE:
        return 0.0
    doubled: float = _FIRST_DELAY * 2 ** (quick_deaths - _IMMEDIATE - 1)
    return min(doubled, _LONGEST_DELAY)


def supervise(serve: Callable[[], int]) -> int:
    """Runs `serve` in a child until it ends by itself or by SIGTERM; returns the exit code.

    `serve` starts with SIGTERM blocked and unblocks it once it is able to stop in order. If the
    first child refuses to start (bad input, host unable), there is no second. Must be called in a
    session of its own, without threads.
    """
    _check_single_threaded()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, signal.SIGTERM})
    # What is loaded stays: without this the child's first collection would copy all of it.
    gc.collect()
    gc.freeze()
    return _Supervisor(serve).run()


class _Supervisor:
    def __init__(self, serve: Callable[[], int]) -> None:
        self._serve = serve
        self._stopping = False

    def run(self) -> int:
        quick_deaths = 0
        first = True
        while True:
            born = time.monotonic()
            code = self._run_child()
            lived = time.monotonic() - born
            if code == 0 or self._stopping:
                return 0
            if code in _REFUSALS and first:
                return code
            first = False
            quick_deaths = quick_deaths + 1 if lived < QUICK else 0
            _log.error("the serving process %s after %.1f s", _how(code), lived)
            if quick_deaths >= GIVE_UP:
                _log.critical("giving up: it died %d times within %g s", quick_deaths, QUICK)
                return HostUnable.exit_code
            if self._stops_within(delay_before_restart(quick_deaths)):
                return 0
            _log.info("restarting it")

    def _run_child(self) -> int:
        """Forks a child that serves and waits for it; its exit code, or minus its signal."""
        try:
            child = os.fork()
        except OSError:
            _log.exception("cannot fork")
            return 1
        if child == 0:
            code = 1
            try:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
                code = self._serve()
            except BaseException:  # noqa: BLE001 -- the last frame of this process
                _log.exception("the serving process failed")
            finally:
                logging.shutdown()
                os._exit(code)
        return self._wait(child)

    def _wait(self, child: int) -> int:
        kill_at: float | None = None
        while True:
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid == child:
                return os.waitstatus_to_exitcode(status)
            timeout = 3600.0 if kill_at is None else max(kill_at - time.monotonic(), 0.0)
            got = signal.sigtimedwait({signal.SIGCHLD, signal.SIGTERM}, timeout)
            if got is None and kill_at is not None:
                _log.error("the serving process does not stop: killing it")
                os.kill(child, signal.SIGKILL)
                kill_at = None
            elif got is not None and got.si_signo == signal.SIGTERM and not self._stopping:
                self._stopping = True
                os.kill(child, signal.SIGTERM)
                kill_at = time.monotonic() + KILL_AFTER

    def _stops_within(self, seconds: float) -> bool:
        """Waits before a restart; True if SIGTERM came instead."""
        return signal.sigtimedwait({signal.SIGTERM}, seconds) is not None


def _how(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"


def _check_single_threaded() -> None:
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads != 1:
        raise RuntimeError(f"the supervisor has {threads} threads and cannot fork safely")
