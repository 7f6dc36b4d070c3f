# SPDX-License-Identifier: GPL-2.0-or-later
"""The example with staggered peaks: the store's memory goes to whoever is busy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.integration.conftest import Kztlab

pytestmark = [pytest.mark.guest, pytest.mark.timeout(900)]

EXAMPLE = Path(__file__).parents[2] / "examples" / "staggered.yaml"


def test_memory_moves_from_the_idle_guest_to_the_busy_one(kztlab: Kztlab) -> None:
    guests = {guest["name"]: guest for guest in kztlab.json("run", EXAMPLE)["guests"]}
    assert {guest["frontend"] for guest in guests.values()} == {"nbd", "relay"}
    assert [guest["workloads"][0]["bad_pages"] for guest in guests.values()] == [0, 0, 0]

    (run,) = kztlab.places.runs.glob("staggered-*")
    lines = (run / "samples" / "store.jsonl").read_text().splitlines()
    statuses = [sample["status"] for sample in map(json.loads, lines) if "status" in sample]
    held = [
        {client["name"]: client["stored_bytes"] for client in status["clients"]}
        for status in statuses
    ]
    limit = statuses[0]["arena"]["limit_bytes"]
    peaks = {name: max(sample.get(name, 0) for sample in held) for name in guests}
    assert sum(peaks.values()) > limit
    assert all(sum(sample.values()) <= limit for sample in held)
    # What the first had at its peak is gone when the last one is at its own.
    at_last = next(sample for sample in held if sample.get("evening") == peaks["evening"])
    assert at_last["morning"] < 0.1 * peaks["morning"]
    summary = json.loads((run / "summary.json").read_text())
    assert [guest["refused_pages"] for guest in summary["guests"]] == [0, 0, 0]
