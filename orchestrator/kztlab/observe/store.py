# SPDX-License-Identifier: GPL-2.0-or-later
"""Samples of the page store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kztlab.observe.sampler import Poller

if TYPE_CHECKING:
    from collections.abc import Callable

    from kztlab.observe.samples import Sample


class StoreSampler(Poller):
    """Samples a kztmemd by its status, which is kept as it is: ``{"status": {...}}``."""

    source = "store"

    def __init__(self, fetch: Callable[[], Sample]) -> None:
        """`fetch` gives the answer of ``GET /v1/status``, or raises if there is none."""
        self._fetch = fetch

    def sample(self) -> Sample:
        return {"status": self._fetch()}
