# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest has more to swap than its store has memory: the rest goes to a disk and comes back."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kztlab.store import StoreUnreachable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.integration.conftest import Kztlab

# A gigabyte goes through each guest, and it may have no KVM.
pytestmark = [pytest.mark.guest, pytest.mark.timeout(1800)]

MIB = 1 << 20

ROOMY = """\
lab: {lab}
store: {{memory: 256MiB, spill: 512MiB}}
guests: {{g: {{frontend: {frontend}, memory: 192MiB, swap: 704MiB}}}}
workloads:
  - {{name: fill, on: [g], anon: {{size: 600MiB, content: random}}, timeout: 30min}}
"""


@contextmanager
def most_blocks(kztlab: Kztlab, lab: str) -> Iterator[dict[str, int]]:
    """Samples what arena and spill file occupy, as the file system has it; the most, at the end."""
    done = threading.Event()
    most = {"arena": 0, "spill": 0, "samples": 0}

    def sample() -> None:
        files: dict[str, Path] = {}
        while not done.wait(0.01):
            try:
                if not files:
                    with kztlab.store(lab) as store:
                        status = store.status()
                    files = {name: Path(status[name]["path"]) for name in ("arena", "spill")}
                for name, file in files.items():
                    most[name] = max(most[name], file.stat().st_blocks * 512)
                most["samples"] += 1
            except (StoreUnreachable, FileNotFoundError):
                pass  # not yet, or no more

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        yield most
    finally:
        done.set()
        sampler.join()


@pytest.mark.parametrize("frontend", ["nbd", "relay"])
def test_random_pages_that_memory_cannot_hold_come_back_right(
    kztlab: Kztlab, frontend: str
) -> None:
    lab = f"spill-{frontend}"
    spec = kztlab.spec(lab, ROOMY.format(lab=lab, frontend=frontend))
    with most_blocks(kztlab, lab) as most:
        result = kztlab.json("up", spec)
    (guest,) = result["guests"]
    (load,) = guest["workloads"]
    with kztlab.store(lab) as store:
        status = store.status()
    (client,) = status["clients"]
    assert kztlab("down", lab).returncode == 0
    assert load["ok"]
    assert load["bad_pages"] == 0
    # Twice 600 MiB went through: filled, then touched and verified.
    assert guest["stored_pages"] > 256 * MIB // 4096
    assert client["counters"]["failed_puts"] == 0
    assert client["counters"]["spill_reads"] > 0
    assert status["spill"]["counters"]["written"] > 0
    assert most["samples"] > 100
    assert most["arena"] <= status["arena"]["limit_bytes"] == 256 * MIB
    # Where its blocks are, its file system writes down beside them.
    assert most["spill"] <= status["spill"]["limit_bytes"] + MIB
    assert not Path(status["spill"]["path"]).exists()
