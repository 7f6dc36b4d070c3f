# SPDX-License-Identifier: GPL-2.0-or-later
"""What files occupy, as their file system has it: sampled all the while, whoever writes them."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from kztlab.store import StoreUnreachable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

_INTERVAL: Final = 0.01
_BLOCK: Final = 512
"""What `st_blocks` counts, on any file system."""


class Occupancy:
    """The most bytes that each of some files was seen to occupy."""

    def __init__(self, locate: Callable[[], Mapping[str, Path]]) -> None:
        self._locate = locate
        self._files: Mapping[str, Path] = {}
        self.most: dict[str, int] = {}
        self.samples = 0

    def sample(self) -> None:
        """Looks at the files, as soon as it is known where they are and for as long as they are."""
        try:
            self._files = self._files or self._locate()
            for name, file in self._files.items():
                self.most[name] = max(self.most.get(name, 0), file.stat().st_blocks * _BLOCK)
            self.samples += 1
        except (StoreUnreachable, FileNotFoundError):
            pass  # not yet, or no more

    def __str__(self) -> str:
        most = ", ".join(f"{name} {size / 2**20:.2f} MiB" for name, size in self.most.items())
        return f"{most}, the most of {self.samples} samples"


@contextmanager
def sampled(locate: Callable[[], Mapping[str, Path]]) -> Iterator[Occupancy]:
    """Samples files from a thread meanwhile, and once more in the end.

    `locate` says where they are, by name, or fails as long as the store does not say so.
    """
    occupancy = Occupancy(locate)
    done = threading.Event()

    def sample() -> None:
        while not done.wait(_INTERVAL):
            occupancy.sample()

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        yield occupancy
        occupancy.sample()
    finally:
        done.set()
        sampler.join()
