# SPDX-License-Identifier: GPL-2.0-or-later
"""kztmemd killed again and again under a guest that swaps: the guest must not notice."""

from __future__ import annotations

import json
import os
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from kztlab.store import StoreUnreachable

if TYPE_CHECKING:
    from tests.integration.conftest import Kztlab, Up

pytestmark = [pytest.mark.guest, pytest.mark.fault]

KILLS = 5
PAGES_BETWEEN = 1500
"""Pages put between two kills: less than a second's worth, so that all fall into the load."""


def status(kztlab: Kztlab) -> dict[str, Any]:
    """The store's status, as soon as it has one."""
    while True:
        try:
            with kztlab.store("shared") as store:
                return store.status()
        except StoreUnreachable:
            time.sleep(0.02)


def puts(kztlab: Kztlab) -> int:
    found: int = status(kztlab)["clients"][0]["counters"]["puts"]
    return found


def test_no_page_is_lost(shared: Up) -> None:
    kztlab = shared.kztlab
    load = "workloads: [{name: fill, on: [a], anon: {size: 240MiB, content: text}}]\n"
    with kztlab.start("up", shared.again("killed", load), "--json") as up:
        up.until("a: fill: running")
        killed = set()
        for _ in range(KILLS):
            target = puts(kztlab) + PAGES_BETWEEN
            while puts(kztlab) < target:
                assert up.process.poll() is None, "the load ended before the kills did"
                time.sleep(0.05)
            pid = status(kztlab)["pid"]
            os.kill(pid, signal.SIGKILL)
            killed.add(pid)
        code, stdout, stderr = up.end()
    assert code == 0, stderr
    (load_result,) = json.loads(stdout)["guests"][0]["workloads"]
    assert load_result["bad_pages"] == 0
    assert len(killed) == KILLS
    now = status(kztlab)
    assert now["pid"] not in killed
    assert now["recovery"]["reason"] == "recovered"
