# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from kztlab.observe import RunDirectory
from kztlab.spec import Cluster, GuestSpec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from kztlab.observe import Sample


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(
        tmp_path / "run", Cluster(lab="q", guests={"a": GuestSpec(), "b": GuestSpec()})
    )


@pytest.fixture
def until(run: RunDirectory) -> Callable[[str, Callable[[list[Sample]], bool]], list[Sample]]:
    """Waits until the samples of a source are as wanted; the test's timeout is the limit."""

    def until(source: str, wanted: Callable[[list[Sample]], bool]) -> list[Sample]:
        while not wanted(samples := run.samples(source)):
            time.sleep(0.01)
        return samples

    return until
