# SPDX-License-Identifier: GPL-2.0-or-later
"""What a sampler is to the collector."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import threading

    from kztlab.observe.samples import Recorder, Sample


class Sampler(Protocol):
    """Records one source until told to stop."""

    @property
    def source(self) -> str:
        """Names the samples' file."""

    def sample(self) -> Sample:
        """One sample, now; raises when there is none to have."""

    def run(self, recorder: Recorder, interval: float, stop: threading.Event) -> None:
        """Records a sample every `interval` seconds; returns soon after `stop` is set."""


class Poller(ABC):
    """A sampler that asks for one sample at a time."""

    source: str

    @abstractmethod
    def sample(self) -> Sample:
        """One sample. What it raises becomes a gap in the samples."""

    def run(self, recorder: Recorder, interval: float, stop: threading.Event) -> None:
        """Samples at whole multiples of the interval; a slow sample skips those it overran."""
        start = time.monotonic()
        while True:
            try:
                sample = self.sample()
            except Exception as error:  # noqa: BLE001 -- watching must never end what is watched
                recorder.gap(describe(error))
            else:
                recorder.write(sample)
            elapsed = time.monotonic() - start
            if stop.wait(interval - elapsed % interval):
                return


def describe(error: Exception) -> str:
    """An exception as the reason of a gap."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
