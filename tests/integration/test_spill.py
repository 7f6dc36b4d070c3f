# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest has more to swap than its store has memory: the rest goes to a disk and comes back.

What neither holds is refused, and the guest keeps it.
"""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.occupancy import Occupancy, sampled
from tests.support.swapping import Swapper

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

FULL = """\
lab: {lab}
store: {{memory: 48MiB, spill: 48MiB, overcommit: true}}
guests: {{g: {{frontend: {frontend}, memory: 192MiB, swap: 512MiB}}}}
workloads:
  - {{name: fill, on: [g], anon: {{size: 160MiB, content: random}}, timeout: 20min}}
"""
"""Guest and store have room for the load together, but not the store for all that is swapped out:
the kernel leaves a page in its swap slot when it reads it."""

TOO_MUCH = "320MiB"
"""More than both have room for."""


def check_occupancy(status: dict[str, Any], occupancy: Occupancy) -> None:
    print(occupancy)  # `pytest -rP` shows it
    assert occupancy.samples > 100
    assert occupancy.most["arena"] <= status["arena"]["limit_bytes"]
    # Where its blocks are, its file system writes down beside them.
    assert occupancy.most["spill"] <= status["spill"]["limit_bytes"] + MIB


def files(kztlab: Kztlab, lab: str) -> dict[str, Path]:
    with kztlab.store(lab) as store:
        status = store.status()
    return {name: Path(status[name]["path"]) for name in ("arena", "spill")}


@pytest.mark.parametrize("frontend", ["nbd", "relay"])
def test_random_pages_that_memory_cannot_hold_come_back_right(
    kztlab: Kztlab, frontend: str
) -> None:
    lab = f"spill-{frontend}"
    spec = kztlab.spec(lab, ROOMY.format(lab=lab, frontend=frontend))
    with sampled(lambda: files(kztlab, lab)) as occupancy:
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
    assert status["arena"]["limit_bytes"] == 256 * MIB
    check_occupancy(status, occupancy)
    assert not Path(status["spill"]["path"]).exists()


@pytest.fixture
def full(kztlab: Kztlab, request: pytest.FixtureRequest) -> Iterator[tuple[str, Path]]:
    """A lab with more to swap than there is room for, and its specification; it goes down again."""
    lab = f"full-{request.param}"
    yield lab, kztlab.spec(lab, FULL.format(lab=lab, frontend=request.param))
    assert kztlab("down", lab).returncode == 0


# Over the relay a hopeless load takes longer than anybody waits: each refusal has its way through
# the agent.
@pytest.mark.parametrize(
    ("full", "hopeless", "told"),
    [
        ("nbd", True, "Write-error on swap-device"),
        ("relay", False, f"block nbd0: Other side returned error ({errno.ENOSPC})"),
    ],
    indirect=["full"],
)
def test_with_the_spill_file_full_too_pages_stay_where_they_are(
    kztlab: Kztlab, full: tuple[str, Path], *, hopeless: bool, told: str
) -> None:
    lab, spec = full
    with sampled(lambda: files(kztlab, lab)) as occupancy:
        result = kztlab.json("up", spec)
        (guest,) = result["guests"]
        (load,) = guest["workloads"]
        swapper = Swapper(kztlab, lab, "g")
        after = swapper.client()["counters"]
        log = swapper.run("dmesg")
        if hopeless:
            # What fits nowhere is the guest's own trouble, and it gets over that.
            with swapper.loading(TOO_MUCH, content="random", seconds=30) as too_much:
                assert too_much.killed()
            assert swapper.client()["counters"]["failed_puts"] > after["failed_puts"]
        status = swapper.status()
        with swapper.loading("128MiB", content="random") as load_again:
            again = load_again.report()
    assert (load["ok"], load["bad_pages"]) == (True, 0)
    # It is told to the guest as an error of its disk (nbd says it of each request, and the last of
    # them are all that is left of the kernel's log), to the operator with its reason.
    summary = json.loads((Path(result["run"]) / "summary.json").read_text())
    assert after["failed_puts"] >= summary["guests"][0]["refused_pages"] > 0
    assert after["over_cap"] == after["over_reservation"] == after["io_errors"] == 0
    assert told in log
    assert "Read-error" not in swapper.run("dmesg")
    assert any("the store was full and refused" in warning for warning in summary["warnings"])
    (seen,) = kztlab.json("status", lab)["guests"]
    assert seen["state"] == "running"
    assert again["pswpout"] > 0
    check_occupancy(status, occupancy)
