# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs samplers beside a lab."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Self

from kztlab.observe.sampler import describe

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from kztlab.observe.run import RunDirectory
    from kztlab.observe.sampler import Sampler
    from kztlab.observe.samples import Recorder

_GRACE = 3.0


class Collector:
    """Records samples into a run directory until it is stopped.

    Samplers can be added at any time, as guests become ready. One that fails says so in its samples
    and in `failures`, and never disturbs the run.
    """

    def __init__(self, run: RunDirectory, interval: float) -> None:
        """`interval` is the time between two samples of a source, in seconds."""
        self.failures: list[str] = []
        self._run = run
        self._interval = interval
        self._stop = threading.Event()
        self._running: list[tuple[Sampler, Recorder, threading.Thread]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def add(self, sampler: Sampler) -> None:
        """Starts a sampler."""
        recorder = self._run.recorder(sampler.source)
        thread = _start(sampler.source, self._sample, sampler, recorder)
        self._running.append((sampler, recorder, thread))

    def stop(self) -> None:
        """Ends all samplers, each with a last sample, so that the samples cover what went before.

        Takes 3 s at most: one that waits for a guest that is stuck is left behind, and whatever it
        may still have to say is dropped.
        """
        self._stop.set()
        deadline = time.monotonic() + _GRACE
        threads = [thread for _, _, thread in self._running]
        threads += [
            _start(f"last {sampler.source}", _sample_once, sampler, recorder)
            for sampler, recorder, _ in self._running
        ]
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        for _, recorder, _ in self._running:
            recorder.close()
        self._running.clear()

    def _sample(self, sampler: Sampler, recorder: Recorder) -> None:
        try:
            sampler.run(recorder, self._interval, self._stop)
        except Exception as error:  # noqa: BLE001 -- watching must never end what is watched
            self.failures.append(f"no more samples of {sampler.source}: {describe(error)}")


def _sample_once(sampler: Sampler, recorder: Recorder) -> None:
    try:
        recorder.write(sampler.sample())
    except Exception as error:  # noqa: BLE001 -- the same
        with suppress(OSError):  # a full disk, which `failures` tells of already
            recorder.gap(describe(error))


def _start(name: str, target: Callable[..., None], *args: object) -> threading.Thread:
    thread = threading.Thread(target=target, args=args, name=name, daemon=True)
    thread.start()
    return thread
